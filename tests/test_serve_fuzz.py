"""The API attacked by its own description: whatever is sent, no answer is 500 and each is of the form described."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import Shop, make_shop, running

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("fuzz"))


def attack(shop: Shop, folder: Path, *words: str) -> int:
    """Runs schemathesis; how many requests it sent."""
    with running([shop]) as server:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json"]
        found = subprocess.run(
            [*command, "--checks", CHECKS, "--no-color", "--suppress-health-check=all", "--seed=1", *words],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
        registry = server.state.metrics.registry
        samples = [
            one for metric in registry.collect() for one in metric.samples if one.name == "opengcl_requests_total"
        ]
        assert not [one for one in samples if re.fullmatch("50[^3]", one.labels["status"])]
        assert server.get("/search?q=redshoe").status_code == 200
        return int(sum(one.value for one in samples))


def test_a_few_hundred_requests_by_the_description(shop: Shop, tmp_path: Path) -> None:
    assert attack(shop, tmp_path, "--phases=examples,fuzzing", "--max-examples=25") > 200


@pytest.mark.slow
@pytest.mark.timeout(10_800)
def test_ten_thousand_requests_by_the_description(shop: Shop, tmp_path: Path) -> None:
    assert attack(shop, tmp_path, "--max-examples=900") > 10_000
