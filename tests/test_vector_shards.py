"""Vectors as files: the same whoever makes them, whole or not at all, gone on with after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from opengcl.data import RankedDataset
from opengcl.encode import encode
from opengcl.index import model_fingerprint
from opengcl.model import BiEncoder, FieldMix
from opengcl.vector_shards import EncodeJob, ShardError, encode_table, read_manifest, read_shard
from tests.builders import SCHEMA, clip, ranked

ROWS = 40


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> EncodeJob:
    """A CLIP and 40 documents in shards of 9; ``out`` is to be replaced."""
    folder = tmp_path_factory.mktemp("encode")
    ranked(folder / "data", documents=ROWS)
    encoder = clip()
    BiEncoder(encoder, FieldMix.choose(encoder, SCHEMA)).save(folder / "run" / "model")
    return EncodeJob(str(folder / "run"), str(folder / "data"), "", shard_rows=9, device="cpu")


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def vectors_of(folder: Path) -> tuple[list[str], np.ndarray]:
    manifest = read_manifest(folder)
    shards = [read_shard(folder, manifest, shard) for shard in range(manifest.shards())]
    return [one for ids, _ in shards for one in ids], np.concatenate([vectors for _, vectors in shards])


@pytest.fixture(scope="module")
def straight(job: EncodeJob, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process makes in one go."""
    out = tmp_path_factory.mktemp("straight") / "vectors"
    encode_table(replace(job, out=str(out)), progress=False)
    return files(out)


@pytest.mark.parametrize("file_format", ["parquet", "npy"])
def test_the_vectors_are_those_of_encode(job: EncodeJob, file_format: str, tmp_path: Path) -> None:
    job = replace(job, out=str(tmp_path), format=file_format)  # type: ignore[arg-type]
    manifest = encode_table(job, progress=False)
    data = RankedDataset.open(job.data, progress=False)
    assert (manifest.rows, manifest.shards(), manifest.dimension, manifest.side) == (ROWS, 5, 16, "document")
    assert (manifest.model, manifest.data) == (model_fingerprint(job.run), data.fingerprint)
    assert read_manifest(tmp_path) == manifest
    ids, vectors = vectors_of(tmp_path)
    assert ids == data.documents.ids()
    wanted = encode(BiEncoder.load(job.run, device="cpu"), data.documents, "document", np.arange(ROWS))
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    if file_format == "parquet":
        assert pq.read_table(tmp_path / "part-00004.parquet").column_names == ["doc_id", "vector"]
    assert len(list(tmp_path.iterdir())) == 6 if file_format == "parquet" else 11


def test_queries_shortened_and_rounded(job: EncodeJob, tmp_path: Path) -> None:
    encode_table(replace(job, out=str(tmp_path / "whole"), side="query"), progress=False)
    encode_table(replace(job, out=str(tmp_path / "small"), side="query", dimension=6, dtype="int8"), progress=False)
    ids, whole = vectors_of(tmp_path / "whole")
    other, small = vectors_of(tmp_path / "small")
    assert ids == other == [f"q{row}" for row in range(12)]
    assert small.dtype == np.int8
    assert (np.abs(small).max(axis=1) == 127).all()
    short = whole[:, :6]
    np.testing.assert_array_equal(small, np.rint(short * (127 / np.abs(short).max(1, keepdims=True))))


def test_several_processes_make_the_same_files(job: EncodeJob, straight: dict[str, bytes], tmp_path: Path) -> None:
    encode_table(replace(job, out=str(tmp_path / "out")), workers=2, progress=False)
    assert files(tmp_path / "out") == straight


def test_ranks_share_the_work_out(
    job: EncodeJob, straight: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, parts in ((2, ["part-00002"]), (0, ["part-00000", "part-00003"]), (1, ["part-00001", "part-00004"])):
        monkeypatch.setenv("RANK", str(rank))
        before = set(files(tmp_path)) if tmp_path.exists() else set()
        encode_table(replace(job, out=str(tmp_path)), progress=False)
        made = {name.partition(".")[0] for name in set(files(tmp_path)) - before}
        assert made - {"vectors"} == set(parts)
    assert files(tmp_path) == straight


@pytest.mark.slow
def test_torchrun_makes_the_same_files(job: EncodeJob, straight: dict[str, bytes], tmp_path: Path) -> None:
    """As the documentation has it, by two processes of one command."""
    here = Path(sys.executable).parent
    launch = [str(here / "torchrun"), "--nproc-per-node", "2", "--master-port", "0", "--no-python"]
    encode = [str(here / "opengcl"), "encode", job.run, "--data", job.data, "--out", str(tmp_path / "out")]
    words = [*launch, *encode, "--shard-rows", "9", "--device", "cpu"]
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == straight


SCRIPT = """
import os, signal, sys
from opengcl import vector_shards
from opengcl.vector_shards import EncodeJob, encode_table

write, written = vector_shards.pq.write_table, []

def killed_in_the_third(table, place, **options):
    write(table.slice(0, 4) if len(written) == 2 else table, place, **options)
    written.append(place)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

vector_shards.pq.write_table = killed_in_the_third
encode_table(EncodeJob(*sys.argv[1:4], shard_rows=9, device="cpu"), progress=False)
"""


def test_after_a_kill_only_what_is_missing_is_made(job: EncodeJob, straight: dict[str, bytes], tmp_path: Path) -> None:
    words = [sys.executable, "-c", SCRIPT, job.run, job.data, str(tmp_path)]
    assert subprocess.run(words, check=False, env=os.environ).returncode == -signal.SIGKILL
    left = files(tmp_path)
    assert {name for name in left if not name.startswith(".")} == {
        "part-00000.parquet",
        "part-00001.parquet",
        "vectors.json",
    }
    with pytest.raises(ShardError, match=r"3 of 5 shards are not there yet, the first is part-00002\.parquet"):
        read_manifest(tmp_path)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in left}
    encode_table(replace(job, out=str(tmp_path)), progress=False)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in left} == times
    made = files(tmp_path)
    assert {name: made[name] for name in made if not name.startswith(".")} == straight


def test_another_folder_for_other_vectors(job: EncodeJob, tmp_path: Path) -> None:
    encode_table(replace(job, out=str(tmp_path)), progress=False)
    before = files(tmp_path)
    for other, message in (
        ({"shard_rows": 8}, "another shard_rows"),
        ({"dtype": "int8"}, "another dtype"),
        ({"side": "query"}, "another side and rows"),
        ({"format": "npy"}, "another format"),
    ):
        with pytest.raises(ShardError, match=message):
            encode_table(replace(job, out=str(tmp_path), **other), progress=False)
    assert files(tmp_path) == before
    (tmp_path / "vectors.json").unlink()
    with pytest.raises(ShardError, match=r"without vectors\.json"):
        encode_table(replace(job, out=str(tmp_path)), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": "both"}, "side: found 'both'; allowed: query, document"),
        ({"format": "csv"}, "format: found 'csv'; allowed: parquet, npy"),
        ({"dtype": "int4"}, "allowed: float32, int8"),
        ({"shard_rows": 0}, "shard_rows: found 0"),
    ],
)
def test_wrong_jobs(job: EncodeJob, change: dict[str, object], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        replace(job, **change)
    with pytest.raises(ShardError, match="workers: found 0"):
        encode_table(job, workers=0)


def test_a_damaged_description_is_told(tmp_path: Path) -> None:
    (tmp_path / "vectors.json").write_text(json.dumps({"rows": 3}))
    with pytest.raises(ShardError, match=r"holds no vectors\.json of this version"):
        read_manifest(tmp_path)
