"""Single-stage search over a data set's documents with a trained run: one query vector, one exact search."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from opengcl.data import RankedDataset
from opengcl.encode import encode, encode_texts, inputs_for
from opengcl.model import CARD, BiEncoder, trained_folder
from opengcl.search import exact_top_k


@dataclass(frozen=True)
class Hit:
    """A found document."""

    rank: int  # from 1
    score: float  # cosine, -1 to 1
    doc_id: str
    title: str  # the document's first text field, empty where it has none


class ProductSearch:
    """All documents of a data set, encoded once and kept beside the model.

    Args:
        run: A run folder or model folder.
        dataset: Whose documents are searched, seen and novel alike.
        progress: Show a bar while they are encoded.

    Raises:
        ModelError: ``run`` holds no trained model.
    """

    def __init__(self, run: str | Path, dataset: RankedDataset, *, progress: bool = True) -> None:
        folder = trained_folder(run)
        self._dataset = dataset
        self._model = BiEncoder.load(folder)
        self._vectors = self._documents(folder, progress)
        self._rows = np.flatnonzero(self._vectors.any(1))  # zeros stand for what the model cannot read
        texts = [name for name, kind in dataset.documents.fields.items() if kind == "text"]
        self._title = texts[0] if texts else None

    def __call__(self, query: str, k: int = 10) -> list[Hit]:
        """The ``k`` nearest documents, best first, ties in document order.

        Raises:
            ValueError: A blank query, ``k`` below 1, or a model whose queries are not text.
        """
        scores, rows = exact_top_k(encode_texts(self._model, [query]), self._vectors, k, rows=self._rows)
        ids = self._dataset.documents.ids(rows[0])
        titles = self._dataset.documents.texts(self._title, rows[0]) if self._title else [None] * len(ids)
        found = zip(scores[0].tolist(), ids, titles, strict=True)
        return [Hit(rank, score, doc_id, title or "") for rank, (score, doc_id, title) in enumerate(found, start=1)]

    def _documents(self, folder: Path, progress: bool) -> Float[np.ndarray, "documents d"]:
        file = folder / "vectors" / f"{self._key(folder)}.npy"
        if not file.is_file():
            rows = np.arange(len(self._dataset.documents))
            documents, strict = self._dataset.documents, self._dataset.strict
            vectors = encode(
                self._model,
                documents,
                "document",
                rows,
                inputs=inputs_for(self._model, documents, "document", strict=strict),
                zero_unreadable=not strict,
                progress=progress,
            )
            file.parent.mkdir(exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.partial")
            with partial.open("wb") as stream:
                np.save(stream, vectors, allow_pickle=False)
            partial.replace(file)
        return np.load(file, mmap_mode="r", allow_pickle=False)

    def _key(self, folder: Path) -> str:
        """Changes with the documents and with the model."""
        content = [self._dataset.documents.fingerprint.encode(), (folder / CARD).read_bytes()]
        content.append(json.dumps(self._model.prompts, sort_keys=True).encode())
        for weights in sorted(folder.rglob("*.safetensors")):
            stat = weights.stat()
            content.append(f"{weights.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        return hashlib.sha256(b"\n".join(content)).hexdigest()[:24]
