"""Numbers that the page's language would round, in its own code without a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import opengcl.serve

PAGE = Path(opengcl.serve.__file__).parent / "page"
NODE = shutil.which("node")


def evaluated(module: str, expression: str) -> Any:
    """What an expression gives within a module, as JSON."""
    if NODE is None:
        pytest.skip("no node here")
    code = f"{(PAGE / module).read_text()}\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run([NODE, "--input-type=module"], input=code, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_large_integers_in_answers_become_their_digits() -> None:
    answer = {
        "sku": 9_223_372_036_854_775_807,
        "minus": -9_007_199_254_740_993,
        "year": 2024,
        "safe": 9_007_199_254_740_991,
        "score": 0.12345678901234567,
        "tiny": 1.2345678901234567e-05,
        "text": 'say "9223372036854775807", \\',
        "list": [12_345_678_901_234_567_890, None],
    }
    found = evaluated("api.js", f"exactly({json.dumps(json.dumps(answer))})")
    assert found == {
        **answer,
        "sku": "9223372036854775807",
        "minus": "-9007199254740993",
        "list": ["12345678901234567890", None],
    }


def test_large_integers_of_filters_stay_as_typed() -> None:
    typed = ["9223372036854775807", "-9007199254740993", "2024", "2.5", "", "x"]
    found = evaluated("state.js", f"{json.dumps(typed)}.map(asNumber)")
    assert found == ["9223372036854775807", "-9007199254740993", 2024, 2.5, None, None]
    state = evaluated("state.js", 'read("?f.sku=9223372036854775807..", {sku: "integer"}).filters')
    assert state == {"sku": {"low": "9223372036854775807", "high": None}}
