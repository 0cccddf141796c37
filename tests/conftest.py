"""Settings that every test runs under, and the real data set where it is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from jaxtyping import install_import_hook

import tests.shape_checks  # noqa: F401 - the hook below looks it up by name

# Before torch or transformers are imported by any test module.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

_FASHION = Path(__file__).resolve().parents[1] / ".." / "shared" / "fashion"
_cache = tempfile.mkdtemp(prefix="opengcl-tests-")
os.environ["OPENGCL_CACHE"] = _cache


def pytest_unconfigure() -> None:
    shutil.rmtree(_cache, ignore_errors=True)


# The shapes and types in the signatures of array functions are checked in every test; where a
# test passes wrong ones on purpose, it takes `unchecked`.
_CHECKED = ("data.qrels", "data.records", "data.splits", "batches", "fields", "search")
install_import_hook([f"opengcl.{name}" for name in _CHECKED], "tests.shape_checks.checked")


@pytest.fixture(scope="session")
def fashion() -> Path:
    """Folder of the fashion-small data set; tests that need it are skipped where it is not."""
    if not (_FASHION / "dataset.yaml").is_file():
        pytest.skip("the data set ../shared/fashion (beside the repository) is not here")
    return _FASHION.resolve()


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A cache folder of this test's own."""
    return tmp_path / "cache"


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No checks of signatures at run time, so that a module's own checks show."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
