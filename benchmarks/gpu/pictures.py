"""What comes before the GPU: pictures decoded and read from the cache, copies to the card, and what then holds up.

JPEG pictures of 800 x 800 pixels to CLIP's 224, as in `benchmarks.speed.pictures`; a few dozen different ones, many
times over, since decoding does not remember. The last rows are bulk encoding, a picture and a title each.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from benchmarks.gpu import Setting
from benchmarks.gpu.measure import measure, synchronise
from benchmarks.gpu.models import clip_folder, moved, objective, prepared, sentences
from benchmarks.gpu.record import Record, Row
from benchmarks.gpu.steps import stepper
from benchmarks.speed.pictures import product_jpeg
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader, Dataset

from opengcl.cores import usable_cores
from opengcl.data import RankedDataset, Schema, write_dataset
from opengcl.encode import encode
from opengcl.inputs import Inputs
from opengcl.model import BiEncoder, FieldMix, open_encoder

DISTINCT = 32
REPEATS = 3


def run(record: Record, setting: Setting) -> None:
    """Decoding first, as all else stands beside it."""
    folder, _, pixels = clip_folder(setting, setting.scratch / "model")
    catalogue = Catalogue(setting, open_encoder(str(folder), device="cpu"))
    cores = usable_cores()
    some = sorted({1, max(1, cores // 2), cores}) if setting.full else [1]
    for workers in some:
        decoding(record, setting, catalogue, workers)
    for threads in sorted({min(8, cores), cores}) if setting.full else [1]:
        filling(record, setting, catalogue, threads)
    if catalogue.kept is None:
        record.skip("everything from the cache", "the cache was not filled")
        return
    for workers in [0, *some[1:]]:
        reading(record, setting, catalogue, workers)
    transfers(record, setting, pixels)
    loops(record, setting, catalogue, pixels, some[-1])
    bulk(record, setting, catalogue, some[-1])


class Catalogue:
    """A data set of pictures with titles, its encoder, and the inputs that its cache serves once it is filled."""

    def __init__(self, setting: Setting, encoder: SentenceTransformer) -> None:
        self.rows = 4_096 if setting.full else 12
        self.batch = 128 if setting.full else 4
        self.encoder, self._scratch = encoder, setting.scratch
        size = 800 if setting.full else 64
        jpegs = [product_jpeg(seed, size) for seed in range(DISTINCT if setting.full else 2)]
        ids = [f"d{row}" for row in range(self.rows)]
        pictures = [jpegs[row % len(jpegs)] for row in range(self.rows)]
        write_dataset(
            self._scratch / "data",
            Schema("pictures", {"query": "text"}, {"image": "image", "title": "text"}, 0.0, 1.0),
            pa.table({"query_id": ["q"], "query": ["red shoe"]}),
            pa.table(
                {"doc_id": ids, "image": pa.array(pictures, pa.binary()), "title": sentences(self.rows, 12, seed=1)}
            ),
            pa.table({"query_id": ["q"] * len(ids), "doc_id": ids, "score": [1.0] * len(ids)}),
        )
        data = RankedDataset.open(self._scratch / "data", cache_dir=self._scratch / "cache", progress=False)
        self.documents, self.bytes = data.documents, sum(map(len, jpegs)) / len(jpegs)
        self.kept: Inputs | None = None

    def inputs(self, *fields: str) -> Inputs:
        """Fresh ones, which decode every time."""
        return Inputs(self.encoder, self.documents, list(fields) or ["image"])

    def fill(self, threads: int) -> Inputs:
        """Decode every picture into a cache of its own."""
        inputs = self.inputs("image", "title")
        inputs.cache(
            self._scratch / f"texts{threads}",
            image_cache_bytes=1e12,
            pictures=self._scratch / f"kept{threads}",
            workers=threads,
            progress=False,
        )
        return inputs

    def in_batches(self, rows: int, batch: int | None = None) -> list[np.ndarray]:
        """So many rows, again from the start where there are fewer."""
        size = batch or self.batch
        return [np.arange(start, start + size) % self.rows for start in range(0, rows, size)]


class _Batches(Dataset[Any]):
    """Features of batches of rows."""

    def __init__(self, inputs: Inputs, batches: list[np.ndarray]) -> None:
        self._inputs, self._batches = inputs, batches

    def __getitem__(self, number: int) -> Any:
        return self._inputs.of(self._batches[number])

    def __len__(self) -> int:
        return len(self._batches)


def loader(inputs: Inputs, batches: list[np.ndarray], workers: int, **options: Any) -> Iterator[Any]:
    """The batches in order, made by so many workers (0: here)."""
    more = {"prefetch_factor": 2, **options} if workers else {"pin_memory": options.get("pin_memory", False)}
    return iter(DataLoader(_Batches(inputs, batches), batch_size=None, num_workers=workers, **more))


def decoding(record: Record, setting: Setting, catalogue: Catalogue, workers: int) -> None:
    """Pictures decoded for every batch; workers' start is not counted."""
    # As many as there are workers begin together; those are not counted, and three more rounds are.
    batches = catalogue.in_batches(catalogue.batch * 4 * workers)

    def work(row: Row) -> None:
        found = loader(catalogue.inputs(), batches, workers)
        for _ in range(workers):
            next(found)
        started, counted = time.perf_counter(), 0
        for _ in found:
            counted += catalogue.batch
        row["seconds"], row["documents"] = [time.perf_counter() - started], counted

    name = f"decoding, {workers} workers"
    record.piece(name, work, needs=10 if setting.full else 0.5, workers=workers, jpeg_bytes=catalogue.bytes)


def filling(record: Record, setting: Setting, catalogue: Catalogue, threads: int) -> None:
    """Every picture decoded once, into the cache, as `opengcl train` begins."""

    def work(row: Row) -> None:
        started = time.perf_counter()
        catalogue.kept = catalogue.fill(threads)
        row["seconds"], row["documents"] = [time.perf_counter() - started], catalogue.rows

    record.piece(f"filling the cache, {threads} threads", work, needs=10 if setting.full else 0.5, threads=threads)


def reading(record: Record, setting: Setting, catalogue: Catalogue, workers: int) -> None:
    """Batches from the cache."""
    inputs = catalogue.kept
    batches = catalogue.in_batches(catalogue.rows)

    def work(row: Row) -> None:
        if inputs is None:
            raise ValueError("the cache was not filled")
        found = loader(inputs, batches, workers)
        next(found)
        started, counted = time.perf_counter(), 0
        for _ in found:
            counted += catalogue.batch
        row["seconds"], row["documents"] = [time.perf_counter() - started], counted

    record.piece(f"reading the cache, {workers} workers", work, needs=5 if setting.full else 0.5, workers=workers)


def transfers(record: Record, setting: Setting, pixels: int) -> None:
    """A batch's pixels to the card: float32 as now, pageable and pinned, and as the bytes that they come from."""
    documents = 1_024 if setting.full else 2
    shape = (documents, 3, pixels, pixels)
    floats = torch.rand(shape)

    def copied(source: torch.Tensor) -> Callable[[Row], None]:
        return lambda row: measure(
            row, lambda: source.to(setting.device, non_blocking=source.is_pinned()), setting, repeats=REPEATS
        )

    about: dict[str, Any] = {"documents": documents, "needs": 1}
    record.piece("pixels to the card, float32, pageable", copied(floats), bytes=floats.nbytes, **about)
    if not setting.on_gpu:
        record.skip("pinned memory", "there is no GPU to copy to")
        return
    pinning = lambda row: measure(row, floats.pin_memory, setting, repeats=REPEATS)  # noqa: E731
    record.piece("pixels pinned", pinning, bytes=floats.nbytes, **about)
    record.piece("pixels to the card, float32, pinned", copied(floats.pin_memory()), bytes=floats.nbytes, **about)
    raw = torch.randint(0, 256, shape, dtype=torch.uint8).pin_memory()
    record.piece("pixels to the card, bytes, pinned", copied(raw), bytes=raw.nbytes, **about)


def loops(record: Record, setting: Setting, catalogue: Catalogue, pixels: int, workers: int) -> None:
    """Training steps fed by workers, by pinning and prefetching, beside steps whose batch is on the card."""
    documents = 1_024 if setting.full else 4
    steps = 14 if setting.full else 3
    made = objective(catalogue.encoder, setting.device)
    batch = prepared(made.model.encoder, documents, pixels, setting.device)
    step = stepper(made, batch.batch, "bf16", setting)
    record.piece(
        "steps, the batch on the card",
        lambda row: measure(row, step, setting, repeats=REPEATS, warm_up=3),
        needs=3,
        documents=documents,
    )
    choices = [
        (workers, True, 2),
        (workers, False, 2),
        (workers, True, 4),
        (0, True, 2),
        (max(1, workers // 2), True, 2),
    ]
    if not setting.full:
        choices = [(1, False, 2)]
    for count, pinned, prefetch in choices:
        name = f"steps fed from the cache, {count} workers, {'pinned' if pinned else 'pageable'}, prefetch {prefetch}"

        def work(row: Row, count: int = count, pinned: bool = pinned, prefetch: int = prefetch) -> None:
            if catalogue.kept is None:
                raise ValueError("the cache was not filled")
            pictures = Inputs(catalogue.encoder, catalogue.documents, ["image"])
            pictures._sources["image"] = catalogue.kept._sources["image"]
            options: dict[str, Any] = {"pin_memory": pinned and setting.on_gpu, "prefetch_factor": prefetch}
            fed = loader(pictures, catalogue.in_batches(documents * steps, documents), count, **options)
            row["seconds"] = fed_steps(fed, batch.batch, step, setting, pinned)

        record.piece(name, work, needs=8 if setting.full else 0.5, documents=documents, workers=count)


def fed_steps(
    fed: Iterator[Any], batch: dict[str, Any], step: Callable[[], None], setting: Setting, pinned: bool
) -> list[float]:
    """Seconds a step, the mean over all but the first two, of steps on pictures that come from a loader.

    Steps are not waited for one by one, so that input and computing overlap as far as they can.
    """
    counted = 0
    started = time.perf_counter()
    for number, pictures in enumerate(fed):
        batch["documents"] = moved(pictures, setting.device, non_blocking=pinned)
        step()
        if number == 1:
            synchronise(setting.device)
            started = time.perf_counter()
        counted += number > 1
    synchronise(setting.device)
    return [(time.perf_counter() - started) / max(1, counted)]


def bulk(record: Record, setting: Setting, catalogue: Catalogue, workers: int) -> None:
    """Documents with a picture and a title into vectors: the GPU alone, `opengcl.encode.encode`, and with workers."""
    mix = FieldMix({"query": 1.0}, {"image": 0.5, "title": 0.5}, {"query": "text"}, {"image": "image", "title": "text"})
    model = BiEncoder(copy.deepcopy(catalogue.encoder), mix).to(setting.device).eval()
    kept = catalogue.kept
    if kept is None:
        return
    size = 1_024 if setting.full else 4
    rows = np.arange(size)
    ready = moved(kept.of(rows), setting.device)

    def forward(half: torch.dtype | None, features: Any = ready) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(setting.device, half, enabled=half is not None):
            return model.fuse(model.encode_fields(features, "document"), "document")

    for name, half in (("float32", None), ("bf16", torch.bfloat16)):
        record.piece(
            f"encoding, features on the card, {name}",
            lambda row, half=half: measure(row, lambda: forward(half), setting, repeats=REPEATS),  # type: ignore[misc]
            needs=2,
            documents=size,
        )

    def whole(inputs: Inputs, rows: np.ndarray) -> Callable[[Row], None]:
        def work(row: Row) -> None:
            row["documents"] = len(rows)
            measure(
                row,
                lambda: encode(model, catalogue.documents, "document", rows, inputs=inputs, batch_size=size),
                setting,
                repeats=1,
                warm_up=1,
            )

        return work

    needs = 8 if setting.full else 0.5
    record.piece("encode, from the cache", whole(kept, np.arange(catalogue.rows)), needs=needs)
    record.piece("encode, decoding", whole(catalogue.inputs("image", "title"), rows), needs=2 * needs)

    def with_workers(row: Row) -> None:
        batches = catalogue.in_batches(catalogue.batch * (4 * workers + 2))
        found = loader(catalogue.inputs("image", "title"), batches, workers, pin_memory=setting.on_gpu)
        forward(torch.bfloat16, moved(next(found), setting.device))
        synchronise(setting.device)
        started, counted = time.perf_counter(), 0
        for features in itertools.islice(found, 4 * workers):
            forward(torch.bfloat16, moved(features, setting.device, non_blocking=True))
            counted += catalogue.batch
        synchronise(setting.device)
        row["seconds"], row["documents"] = [time.perf_counter() - started], counted

    record.piece(f"encoding, decoded by {workers} workers, bf16", with_workers, needs=needs, workers=workers)
