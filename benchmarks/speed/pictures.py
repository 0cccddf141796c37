"""Pictures into features, against sentence-transformers' own way: an image column, decoded by its collator's workers.

The peer is what its trainer does with a ``datasets.Image`` column: a DataLoader over the data set, whose collator
(`SentenceTransformerDataCollator`) calls the model's ``preprocess`` on the decoded pictures of a batch. Ours is what
`opengcl train` does: fill the cache, then batches from `Inputs` through a DataLoader with as many workers.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageDraw
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader, Dataset

from opengcl.data import RankedDataset, Records, Schema, write_dataset
from opengcl.encoders import tiny_clip
from opengcl.inputs import Inputs
from opengcl.model import BiEncoder, FieldMix

from . import Row, in_turn

if TYPE_CHECKING:
    import datasets

PEER = "sentence-transformers' image column"
BATCH = 64
DOCUMENTS = 512
QUERIES_A_DOCUMENT = 4  # of the epoch over judged pairs
STEP_ROWS = 512


def product_jpeg(seed: int, size: int = 800) -> bytes:
    """A drawn product on white, with the noise of a photograph: some 50 kB."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = generator.integers(size // 6, size // 2, 2)
        width, height = generator.integers(size // 20, size // 3, 2)
        box = (int(x), int(y), int(x + width), int(y + height))
        draw.ellipse(box, fill=tuple(generator.integers(0, 256, 3).tolist()))
    pixels = np.asarray(image).astype(np.float32)
    noisy = pixels + generator.normal(0, 6, pixels.shape) * (pixels.mean(2, keepdims=True) < 250)
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def shop(folder: Path, pictures: list[bytes]) -> RankedDataset:
    """A data set of these pictures."""
    ids = [f"d{row}" for row in range(len(pictures))]
    write_dataset(
        folder / "data",
        Schema("pictures", {"query": "text"}, {"image": "image"}, 0.0, 1.0),
        pa.table({"query_id": ["q"], "query": ["red shoe"]}),
        pa.table({"doc_id": ids, "image": pa.array(pictures, pa.binary())}),
        pa.table({"query_id": ["q"] * len(ids), "doc_id": ids, "score": [1.0] * len(ids)}),
    )
    return RankedDataset.open(folder / "data", cache_dir=folder / "cache", progress=False)


class _Batches(Dataset[object]):
    """Ours: the features of a batch's distinct documents."""

    def __init__(self, inputs: Inputs, rows: np.ndarray) -> None:
        self._inputs, self._rows = inputs, rows

    def __getitem__(self, number: int) -> object:
        return self._inputs.of(np.unique(self._rows[number * BATCH : (number + 1) * BATCH]))

    def __len__(self) -> int:
        return -(-len(self._rows) // BATCH)


def _read_ours(inputs: Inputs, rows: np.ndarray, workers: int) -> None:
    for _ in DataLoader(_Batches(inputs, rows), batch_size=None, num_workers=workers):
        pass


def _read_peer(encoder: SentenceTransformer, column: datasets.Dataset, rows: np.ndarray, workers: int) -> None:
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    collate = SentenceTransformerDataCollator(preprocess_fn=encoder.preprocess)
    batches = [rows[start : start + BATCH].tolist() for start in range(0, len(rows), BATCH)]
    for _ in DataLoader(column, batch_sampler=batches, collate_fn=collate, num_workers=workers):
        pass


def _filled(encoder: SentenceTransformer, records: Records, kept: Path, workers: int) -> Inputs:
    inputs = Inputs(encoder, records, ["image"])
    inputs.cache(kept / "texts", image_cache_bytes=1e9, pictures=kept, workers=max(1, workers), progress=False)
    return inputs


def measure(repeats: int) -> Iterator[Row]:
    """Epochs over pictures, then steps over rows that come again."""
    import datasets  # here, so that the cost model and the GPU's benchmark run without it

    encoder = tiny_clip(["red shoe", "blue hat"], image_size=224)
    with tempfile.TemporaryDirectory(prefix="opengcl-speed-") as name:
        folder = Path(name)
        pictures = [product_jpeg(seed) for seed in range(DOCUMENTS)]
        data = shop(folder, pictures).documents
        column = datasets.Dataset.from_dict({"document": pictures}).cast_column("document", datasets.Image())
        about: dict[str, object] = {
            "pictures": DOCUMENTS,
            "kilobytes": round(sum(map(len, pictures)) / DOCUMENTS / 1e3),
            "pixels": "800 x 800 to 224 x 224",
            "batch": BATCH,
        }
        for workers in (0, 2):
            yield from _epochs(encoder, data, column, folder / "kept", workers, repeats, about)
    yield from _repeated(repeats)


def _epochs(
    encoder: SentenceTransformer,
    data: Records,
    column: datasets.Dataset,
    kept: Path,
    workers: int,
    repeats: int,
    about: dict[str, object],
) -> Iterator[Row]:
    generator = np.random.default_rng(0)
    once = generator.permutation(DOCUMENTS)
    pairs = generator.permutation(np.repeat(np.arange(DOCUMENTS), QUERIES_A_DOCUMENT))
    about = {**about, "workers": workers}

    def forget() -> None:
        shutil.rmtree(kept, ignore_errors=True)

    def fresh(rows: np.ndarray) -> None:
        _read_ours(_filled(encoder, data, kept, workers), rows, workers)

    for what, rows, aim in (("each document once", once, 3.0), (f"{QUERIES_A_DOCUMENT} pairs a document", pairs, 3.0)):
        ours, peer = in_turn(
            partial(fresh, rows),
            partial(_read_peer, encoder, column, rows, workers),
            repeats,
            before=forget,
        )
        yield Row(f"first epoch, {what}, {workers} workers", ours, peer, PEER, aim, about)
    inputs = _filled(encoder, data, kept, workers)
    ours, peer = in_turn(
        lambda: _read_ours(inputs, once, workers), lambda: _read_peer(encoder, column, once, workers), repeats
    )
    yield Row(f"second epoch, each document once, {workers} workers", ours, peer, PEER, 10.0, about)


def _repeated(repeats: int) -> Iterator[Row]:
    """Encoding a batch's distinct rows against every row, forward and backward."""
    with tempfile.TemporaryDirectory(prefix="opengcl-speed-") as name:
        pictures = [product_jpeg(seed, 64) for seed in range(STEP_ROWS)]
        data = shop(Path(name), pictures)
        encoder = tiny_clip(["red shoe", "blue hat"])
        model = BiEncoder(encoder, FieldMix.choose(encoder, data.schema, None, None))
        inputs = _filled(encoder, data.documents, Path(name) / "kept", 1)

        def step(rows: np.ndarray) -> None:
            vectors = model.fuse(model.encode_fields(inputs.of(rows), "document"), "document")
            torch.square(vectors - 0.1).sum().backward()

        for share in (1.0, 0.5, 0.25, 0.125):
            rows = np.repeat(np.arange(round(STEP_ROWS * share)), round(1 / share))
            ours, peer = in_turn(partial(step, np.unique(rows)), partial(step, rows), repeats)
            about: dict[str, object] = {"rows": len(rows), "distinct": share, "model": "tiny, 64 pixels"}
            yield Row(f"a batch with a share of {share:g} distinct", ours, peer, "encoding every row", 1 / share, about)
