"""A whole table's vectors as files: by one process or many, on one machine or many, each file whole or not at all.

A shard is a run of rows. Whoever encodes it makes the same vectors, so that shards can be shared out in any way, and
those that are there are never made again.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from opengcl.data import RankedDataset, Records
from opengcl.data.problems import number_of, shown
from opengcl.encode import encode, inputs_for, rows_with_fields
from opengcl.index.identity import model_fingerprint
from opengcl.index.protocol import VectorType
from opengcl.index.vectors import shorten, to_int8
from opengcl.inputs import Inputs
from opengcl.model import BiEncoder
from opengcl.only_writer import only_writer
from opengcl.plain_files import read_plain
from opengcl.progress import progress_bar
from opengcl.prompts import Side

ShardFormat = Literal["parquet", "npy"]
SHARD_FORMATS: tuple[ShardFormat, ...] = get_args(ShardFormat)
MANIFEST, LEFT_OUT = "vectors.json", "left_out.json"
SHARD_ROWS = 16_384
"""Rows of a shard: 32 MB at 512 components."""


class ShardError(ValueError):
    """Files of vectors that cannot be made or read as asked."""


@dataclass(frozen=True)
class Manifest:
    """What a folder of vectors holds; ``vectors.json``.

    Attributes:
        model: Fingerprint of the model.
        data: Fingerprint of the data set.
        side: ``query`` or ``document``.
        rows: Of the table that the model can read, which is as many vectors.
        dimension: Components of a vector.
        dtype: ``float32`` of length 1, or ``int8`` as `opengcl.index.IndexSpec` says.
        shard_rows: Rows of each shard but the last.
        format: ``parquet``: ``part-00000.parquet`` with the columns of ids (``query_id`` or ``doc_id``) and ``vector``;
            ``npy``: ``part-00000.npy``, and the ids as ``part-00000.json``.
        left_out: Other rows of the table, which have none of the model's fields; ``left_out.json`` has their ids.
    """

    model: str
    data: str
    side: Side
    rows: int
    dimension: int
    dtype: VectorType
    shard_rows: int
    format: ShardFormat
    left_out: int = 0

    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """Which of the rows a shard holds."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def file(self, folder: Path, shard: int) -> Path:
        """Where a shard's vectors are."""
        return folder / f"part-{shard:05d}.{self.format}"


@dataclass(frozen=True)
class EncodeJob:
    """What is to be encoded, for any process that takes part in it; see `encode_table`."""

    run: str
    data: str
    out: str
    side: Side = "document"
    dimension: int | None = None
    dtype: VectorType = "float32"
    format: ShardFormat = "parquet"
    shard_rows: int = SHARD_ROWS
    device: str | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        """Checks what doesn't need the model.

        Raises:
            ShardError: Naming what was found and what is allowed.
        """
        choices = (("side", get_args(Side)), ("dtype", get_args(VectorType)), ("format", SHARD_FORMATS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ShardError(f"{name}: found {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.shard_rows < 1:
            raise ShardError(f"shard_rows: found {self.shard_rows}; allowed: 1 or more")


def encode_table(job: EncodeJob, *, workers: int = 1, progress: bool = True) -> Manifest:
    """Encodes all queries or documents of a data set into files.

    Shards that are there are kept, so a call that was stopped goes on where it was. Under ``torchrun`` (or with
    ``RANK`` and ``WORLD_SIZE`` set by another launcher) each rank makes its share of them; all must see the folder.

    The vectors of a shard do not depend on who made it: on CPUs they are the same bit by bit wherever a process has as
    many threads, and otherwise to float32's rounding.

    Args:
        job: What to encode, and where to.
        workers: Processes on this machine, each with one thread where there are several.
        progress: Show a bar on the first rank.

    Returns:
        What the folder holds. With several ranks, others may still be at work on theirs.

    Raises:
        ShardError: The folder holds vectors of another model, data set or settings.
        FolderBusyError: Another process encodes into the folder; ranks of one run may.
        ModelError: There is no trained model.
        OSError: A worker was killed, or the disk is full; the shards so far stay.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if workers < 1:
        raise ShardError(f"workers: found {workers}; allowed: 1 or more")
    with contextlib.ExitStack() as held:
        if ranks == 1:  # ranks share the folder, each with shards of its own
            held.enter_context(only_writer(Path(job.out)))
        return _encoded(job, rank, ranks, workers, progress=progress)


def _encoded(job: EncodeJob, rank: int, ranks: int, workers: int, *, progress: bool) -> Manifest:
    encoder = _ShardEncoder(job)
    manifest, out = encoder.manifest, Path(job.out)
    _settle(manifest, out, encoder.left_out())
    own = range(rank, manifest.shards(), ranks)
    left = [shard for shard in own if not manifest.file(out, shard).is_file()]
    total = sum(len(manifest.rows_of(shard)) for shard in own)
    done = total - sum(len(manifest.rows_of(shard)) for shard in left)
    with progress_bar(total=total, done=done, desc="encoding", unit="row", show=progress and rank == 0) as bar:
        for shard in _in_workers(job, left, workers) if workers > 1 else map(encoder, left):
            bar.update(len(manifest.rows_of(shard)))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Reads what a folder of vectors holds.

    Raises:
        ShardError: It isn't one, or its shards aren't all there.
    """
    manifest = _manifest(folder)
    missing = [shard for shard in range(manifest.shards()) if not manifest.file(folder, shard).is_file()]
    if missing:
        raise ShardError(
            f"{folder}: {len(missing)} of {manifest.shards()} shards are not there yet, the first is "
            f"{manifest.file(folder, missing[0]).name}; run opengcl encode again"
        )
    return manifest


def _manifest(folder: Path) -> Manifest:
    try:
        found = Manifest(**json.loads(read_plain(folder / MANIFEST)))
        counts = (found.rows, found.left_out, found.dimension, found.shard_rows)
        if not all(isinstance(one, int) for one in counts) or min(counts) < 0 or not found.dimension * found.shard_rows:
            raise ValueError(f"found {counts} as counts of rows")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ShardError(
            f"{folder}: holds no {MANIFEST} of this version; required: a folder of opengcl encode"
        ) from error
    return found


def read_left_out(folder: Path, manifest: Manifest) -> list[str]:
    """Ids of the rows that have no vector.

    Raises:
        ShardError: The file cannot be read, or has another number of ids than the manifest says.
    """
    if manifest.left_out == 0:
        return []
    try:
        ids = json.loads(read_plain(folder / LEFT_OUT))
    except (OSError, ValueError) as error:
        raise ShardError(f"{folder / LEFT_OUT}: cannot be read: {error}") from error
    if not isinstance(ids, list) or len(ids) != manifest.left_out or not all(isinstance(one, str) for one in ids):
        raise ShardError(f"{folder / LEFT_OUT}: required: a list of {number_of(manifest.left_out, 'id')}")
    return ids


def read_shard(folder: Path, manifest: Manifest, shard: int) -> tuple[list[str], np.ndarray]:
    """Ids and vectors of one shard, the vectors of the manifest's type.

    Raises:
        ShardError: Its file cannot be read, or holds something else.
    """
    file = manifest.file(folder, shard)
    try:
        if manifest.format == "npy":
            return json.loads(read_plain(file.with_suffix(".json"))), np.load(file, allow_pickle=False)
        table = pq.read_table(file)
        flat = table["vector"].combine_chunks().flatten().to_numpy()
        return table.column(0).to_pylist(), flat.reshape(-1, manifest.dimension)
    except (OSError, EOFError, ValueError, KeyError, AttributeError, pa.ArrowException) as error:
        way_out = "remove it and run opengcl encode again"
        raise ShardError(f"{file}: cannot be read as vectors: {shown(str(error))}; {way_out}") from error


class _ShardEncoder:
    """A process's model and table; called with a shard's number, it writes the shard."""

    def __init__(self, job: EncodeJob) -> None:
        self.job = job
        dataset = RankedDataset.open(job.data, strict=job.strict)
        self._model = BiEncoder.load(job.run, device=job.device or _device_of_rank())
        self._records: Records = dataset.queries if job.side == "query" else dataset.documents
        self._inputs: Inputs = inputs_for(self._model, self._records, job.side, strict=job.strict)
        self._rows = rows_with_fields(self._model, self._records, job.side)
        width = self._model.encoder.get_embedding_dimension() or 0
        if job.dimension is not None and not 1 <= job.dimension <= width:
            raise ShardError(
                f"dimension: found {job.dimension}; allowed: 1 to {width}, the width of the model's vectors"
            )
        self.manifest = Manifest(
            model=model_fingerprint(job.run),
            data=dataset.fingerprint,
            side=job.side,
            rows=len(self._rows),
            dimension=job.dimension or width,
            dtype=job.dtype,
            shard_rows=job.shard_rows,
            format=job.format,
            left_out=len(self._records) - len(self._rows),
        )

    def __call__(self, shard: int) -> int:
        rows = self._rows[np.asarray(self.manifest.rows_of(shard))]
        whole = encode(self._model, self._records, self.job.side, rows, inputs=self._inputs)
        vectors = shorten(whole, self.manifest.dimension)
        kept = to_int8(vectors) if self.job.dtype == "int8" else vectors
        self._write(self.manifest.file(Path(self.job.out), shard), self._records.ids(rows), kept)
        return shard

    def left_out(self) -> list[str]:
        """Ids of the rows that have no vector."""
        every = np.arange(len(self._records))
        return self._records.ids(np.setdiff1d(every, self._rows, assume_unique=True))

    def _write(self, file: Path, ids: list[str], vectors: np.ndarray) -> None:
        if self.job.format == "npy":
            with _whole(file.with_suffix(".json")) as temporary:  # first, as the other says that the shard is there
                temporary.write_text(json.dumps(ids), encoding="utf-8")
            with _whole(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, vectors, allow_pickle=False)
            return
        packed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        table = pa.table({self._records.id_column: pa.array(ids, pa.string()), "vector": packed})
        with _whole(file) as temporary:
            pq.write_table(table, temporary, compression="none")


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """A file to write, which takes its place when the block ends and is removed if it ends with an error."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _settle(manifest: Manifest, out: Path, left_out: list[str]) -> None:
    """Makes the folder, or makes sure that it is for the same vectors."""
    file = out / MANIFEST
    if file.is_file():
        there = asdict(_manifest(out))
        other = [name for name, value in asdict(manifest).items() if there[name] != value]
        if other:
            raise ShardError(f"{out}: holds vectors with another {' and '.join(other)}; choose another folder")
        return
    if out.is_dir() and any(out.glob("part-*")):
        raise ShardError(f"{out}: holds files of vectors without {MANIFEST}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    if left_out:
        with _whole(out / LEFT_OUT) as temporary:
            temporary.write_text(json.dumps(left_out), encoding="utf-8")
    with _whole(file) as temporary:
        temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def _device_of_rank() -> str | None:
    """A GPU of its own for each rank of a machine; else the best there is."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and torch.cuda.is_available() else None


_encoders: list[_ShardEncoder] = []  # of a worker process: its one


def _start_worker(job: EncodeJob) -> None:
    torch.set_num_threads(1)
    _encoders.append(_ShardEncoder(job))


def _work(shard: int) -> int:
    return _encoders[0](shard)


def _in_workers(job: EncodeJob, shards: list[int], workers: int) -> Iterator[int]:
    """Shards as they are written by processes of their own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(1, len(shards))), context, _start_worker, (job,)) as pool:
        waiting = [pool.submit(_work, shard) for shard in shards]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BrokenProcessPool as error:
            raise OSError("a worker was killed, perhaps for its memory; run it again to go on") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
