"""Marqo-GS-10M, the paper's data set: as its archives unpack, as the archive itself, and as the hub has it.

Zhu, T. et al., "Generalized Contrastive Learning for Multi-Modal Retrieval and Ranking", arXiv 2404.08535.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ijson
import pyarrow as pa
import pyarrow.compute as pc

from opengcl.data import tables as typed
from opengcl.data.problems import DataSetError, number_of, shown
from opengcl.data.schema import DOCUMENT_ID, PART, QUERY_ID, SPLIT, FieldType
from opengcl.sources.archives import unpack
from opengcl.sources.columns import ids, numbers, texts
from opengcl.sources.hub import HubTable
from opengcl.sources.mapping import hashed
from opengcl.sources.source import Batch, Description
from opengcl.sources.table_files import Rows, Table, TableFile

SCORES = ("score_linear", "score_reciprocal")
HUB = "Marqo/marqo-GS-10M"
# Their X of queries and Y of documents: 0 is seen in training, 1 is novel.
_SPLITS = {"0": "seen", "1": "novel"}
_CORPORA = {"corpus_1.json": "seen", "corpus_2.json": "novel"}
_HUB_SPLITS = {
    "in_domain": ("seen", "seen"),
    "novel_document": ("seen", "novel"),
    "novel_query": ("novel", "seen"),
    "zero_shot": ("novel", "novel"),
}
_TABLES = re.compile(r"corpus_[12]\.json|query_[01]_product_id_[01](\.csv|_gt_(dev|test)\.json)")
_IMAGE_FOLDERS = frozenset(["image", "images"])
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".tif", ".tiff")
_ROWS = 4096
_FIELDS: dict[str, FieldType] = {"title": "text", "image": "image"}


@dataclass(frozen=True)
class MarqoFolder:
    """A subset as it lies on disk: ``corpus_1.json``, ``corpus_2.json``, ``query_X_product_id_Y.csv``, ground truth.

    Their splits are kept: queries of X = 0 are seen, of X = 1 novel; documents of the first corpus are seen, of the
    second novel. So are their dev and test queries, from ``..._gt_dev.json`` and ``..._gt_test.json``; a query in both
    counts as test. Pairs that only the ground truth has come in with its relevance. A query's id is a hash of its text,
    as not all files have one.

    Attributes:
        folder: The subset, such as ``marqo_gs_wfash_1m``.
        score: Which column the score comes from: ``score_linear`` or ``score_reciprocal``.
        left_out: Files of its archive that were left out.
    """

    folder: Path
    score: str = SCORES[0]
    left_out: int = 0

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise DataSetError(f"score: found {shown(self.score)}; allowed: {', '.join(SCORES)}")

    def describe(self) -> Description:
        """See `Source`."""
        corpora, judged = self._corpora(), self._judged()
        files = [*corpora, *(path for path, _ in judged), *(path for path, _ in self._truth())]
        pictures = all(path.is_file() for path in corpora) and self._has_pictures(corpora[0])
        return Description(
            source="marqo",
            name=self.folder.resolve().name,
            queries={"query": "text"},
            documents=_FIELDS if pictures else {"title": "text"},
            scores_are_places=True,
            options={"score": self.score},
            files=tuple(files),
            picture_root=self.folder,
            notes=tuple(self._notes(len(judged))),
        )

    def _notes(self, judged: int) -> Iterator[str]:
        if judged < 4:
            yield f"{judged} of the 4 files query_X_product_id_Y.csv are there"
        if self.left_out:
            yield f"{number_of(self.left_out, 'file')} of the archive left out: neither tables of the format nor images"

    def batches(self, *, progress: bool) -> Iterator[Batch]:
        """See `Source`."""
        parts = self._parts()
        pictures = "image" in self.describe().documents
        for path, seen in self._judged():
            yield from self._queries_and_pairs(TableFile(path, quoted=True, decimal="."), seen, parts, progress)
        for path, seen in self._truth():
            yield from self._ground_truth(path, seen, parts)
        for path in self._corpora():
            yield from self._documents(path, pictures)

    def _corpora(self) -> list[Path]:
        found = [self.folder / name for name in _CORPORA]
        if lost := [path for path in found if not path.is_file()]:
            raise DataSetError(f"{lost[0]}: no such file; required: {', '.join(_CORPORA)} and query_X_product_id_Y.csv")
        return found

    def _judged(self) -> list[tuple[Path, str]]:
        """Files of judged pairs and whether their queries are seen."""
        places = ((x, self.folder / f"query_{x}_product_id_{y}.csv") for x in "01" for y in "01")
        found = [(path, _SPLITS[x]) for x, path in places if path.is_file()]
        if not found:
            raise DataSetError(f"{self.folder}: no query_X_product_id_Y.csv (X and Y 0 or 1)")
        return found

    def _truth(self) -> list[tuple[Path, str]]:
        return [
            (path, _SPLITS[x])
            for part in ("dev", "test")
            for x in "01"
            for y in "01"
            if (path := self.folder / f"query_{x}_product_id_{y}_gt_{part}.json").is_file()
        ]

    def _parts(self) -> dict[str, str]:
        """Query id -> dev or test. The files come dev first, so that test wins."""
        found: dict[str, str] = {}
        for path, _ in self._truth():
            part = path.stem.rpartition("_")[2]
            for query, _judged in _items(path):
                found[hashed([query]) or ""] = part
        return found

    def _queries_and_pairs(self, file: TableFile, seen: str, parts: dict[str, str], progress: bool) -> Iterator[Batch]:
        position = ["position"] if "position" in file.columns else []
        for rows in file.read(["query", "product_id", self.score, *position], progress=progress):
            query = texts(rows.batch.column("query"), file.name, "query")
            query_id = pa.array([hashed([one]) for one in query.to_pylist()], pa.large_string())
            yield _query_batch(query_id, query, seen, parts, file.name, rows.first, rows.lines)
            raw = rows.batch.column(self.score)
            place = rows.batch.column("position") if position else pa.nulls(len(query), pa.large_string())
            document = rows.batch.column("product_id")
            yield _pair_batch(query_id, document, raw, place, file.name, rows.first, rows.lines)

    def _ground_truth(self, path: Path, seen: str, parts: dict[str, str]) -> Iterator[Batch]:
        queries: list[str] = []
        pairs: list[tuple[str, str, Any]] = []
        for query, judged in _items(path):
            if not isinstance(judged, dict):
                raise DataSetError(
                    f"{path.name}, query {shown(query)}: found {shown(judged)}; allowed: {{product: score}}"
                )
            queries.append(query)
            pairs += [(query, document, relevance) for document, relevance in judged.items()]
            if len(pairs) >= _ROWS:
                yield from self._truth_batches(path, seen, parts, queries, pairs)
                queries, pairs = [], []
        if queries:
            yield from self._truth_batches(path, seen, parts, queries, pairs)

    def _truth_batches(
        self, path: Path, seen: str, parts: dict[str, str], queries: list[str], pairs: list[tuple[str, str, Any]]
    ) -> Iterator[Batch]:
        query = pa.array(queries, pa.large_string())
        query_id = pa.array([hashed([one]) for one in queries], pa.large_string())
        yield _query_batch(query_id, query, seen, parts, path.name, 0)
        if pairs:
            asked, documents, relevance = zip(*pairs, strict=True)
            pair_ids = pa.array([hashed([one]) for one in asked], pa.large_string())
            raw = pa.array([str(one) for one in relevance], pa.large_string())
            none = pa.nulls(len(raw), pa.large_string())
            yield _pair_batch(pair_ids, pa.array(documents, pa.large_string()), raw, none, path.name, 0)

    def _has_pictures(self, corpus: Path) -> bool:
        for number, (_, product) in enumerate(_items(corpus)):
            if isinstance(product, dict) and product.get("image_local"):
                return True
            if number == 100:
                break
        return False

    def _documents(self, path: Path, pictures: bool) -> Iterator[Batch]:
        block: list[tuple[str, str | None, str | None]] = []
        first = 0
        for document, product in _items(path):
            if not isinstance(product, dict):
                raise DataSetError(f"{path.name}, {shown(document)}: found {shown(product)}; allowed: an object")
            block.append((document, product.get("title"), product.get("image_local")))
            if len(block) == _ROWS:
                yield _document_batch(block, _CORPORA[path.name], pictures, path.name, first)
                first, block = first + len(block), []
        if block:
            yield _document_batch(block, _CORPORA[path.name], pictures, path.name, first)


@dataclass(frozen=True)
class MarqoHub:
    """The copy on the hub, streamed: four splits, each with its queries, documents and scores in one table.

    Attributes:
        location: Its name there, or a folder with a copy.
        score: As in `MarqoFolder`.
        splits: Which of the four; ``in_domain`` is needed to train.
    """

    location: str = HUB
    score: str = SCORES[0]
    splits: tuple[str, ...] = tuple(_HUB_SPLITS)
    tables: dict[str, Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise DataSetError(f"score: found {shown(self.score)}; allowed: {', '.join(SCORES)}")
        if wrong := [one for one in self.splits if one not in _HUB_SPLITS]:
            raise DataSetError(f"split: found {shown(wrong[0])}; allowed: {', '.join(_HUB_SPLITS)}")
        for split in self.splits:
            self.tables.setdefault(split, HubTable(self.location, split))

    def describe(self) -> Description:
        """See `Source`."""
        return Description(
            source="marqo-hub",
            name=self.location.rpartition("/")[2],
            queries={"query": "text"},
            documents=_FIELDS,
            scores_are_places=True,
            options={"score": self.score, "splits": list(self.splits), "location": self.location},
        )

    def batches(self, *, progress: bool) -> Iterator[Batch]:
        """See `Source`."""
        wanted = ["query", "product_id", "title", "image", self.score, "position"]
        for split in self.splits:
            table = self.tables[split]
            for rows in table.read(wanted, progress=progress):
                yield from self._batches(rows, table.name, *_HUB_SPLITS[split])

    def _batches(self, rows: Rows, file: str, query_seen: str, document_seen: str) -> Iterator[Batch]:
        query = texts(rows.batch.column("query"), file, "query")
        query_id = pa.array([hashed([one]) for one in query.to_pylist()], pa.large_string())
        batch = _query_batch(query_id, query, query_seen, {}, file, rows.first)
        yield Batch("queries", batch.rows.drop_columns([PART]), file, rows.first)
        documents = {
            DOCUMENT_ID: ids(rows.batch.column("product_id"), file, "product_id"),
            "title": texts(rows.batch.column("title"), file, "title"),
            "image": typed.pictures(rows.batch.column("image"), file=file, column="image", first_row=rows.first),
            SPLIT: pa.array([document_seen] * len(query), pa.large_string()),
        }
        yield Batch("documents", pa.RecordBatch.from_pydict(documents), file, rows.first)
        place = rows.batch.column("position")
        yield _pair_batch(query_id, documents[DOCUMENT_ID], rows.batch.column(self.score), place, file, rows.first)


def _query_batch(
    query_id: pa.Array, query: pa.Array, seen: str, parts: dict[str, str], file: str, first: int, lines: Any = None
) -> Batch:
    columns = {
        QUERY_ID: query_id,
        "query": query,
        SPLIT: pa.array([seen] * len(query), pa.large_string()),
        PART: pa.array([parts.get(one or "") for one in query_id.to_pylist()], pa.large_string()),
    }
    return Batch("queries", pa.RecordBatch.from_pydict(columns), file, first, lines=lines)


def _pair_batch(
    query_id: pa.Array, document: pa.Array, raw: pa.Array, place: pa.Array, file: str, first: int, lines: Any = None
) -> Batch:
    columns = {
        QUERY_ID: query_id,
        DOCUMENT_ID: ids(document, file, "product_id"),
        "score": numbers(raw, file, "score"),
        "position": pc.cast(numbers(place, file, "position"), pa.int32(), safe=False),
    }
    return Batch("qrels", pa.RecordBatch.from_pydict(columns), file, first, raw_score=raw, lines=lines)


def _document_batch(
    block: list[tuple[str, str | None, str | None]], seen: str, pictures: bool, file: str, first: int
) -> Batch:
    documents, titles, images = zip(*block, strict=True)
    columns = {
        DOCUMENT_ID: ids(pa.array(documents, pa.large_string()), file, "product_id"),
        "title": pa.array([None if one is None else str(one) for one in titles], pa.large_string()),
        SPLIT: pa.array([seen] * len(block), pa.large_string()),
    }
    if pictures:
        columns["image"] = pa.array([None if one is None else str(one) for one in images], pa.large_string())
    return Batch("documents", pa.RecordBatch.from_pydict(columns), file, first)


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Keys and values of a file that is one JSON object, one at a time, whatever its size."""
    try:
        with path.open("rb") as file:
            yield from ijson.kvitems(file, "", use_float=True)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise DataSetError(f"{path.name}: not one JSON object: {error}") from error


def unpacked(archive: Path, into: Path) -> tuple[Path, int]:
    """Unpacks a tar archive (plain or compressed), as `archives.unpack` does: a new folder inside ``into``.

    Returns:
        The folder with the corpora, and how many files were left out, being none of the format.

    Raises:
        DataSetError: It cannot be unpacked, or has no corpora.
    """
    folder, left_out = unpack(archive, into, _is_of_the_format)
    found = sorted(path.parent for path in folder.rglob("corpus_1.json"))
    if not found:
        shutil.rmtree(folder)
        raise DataSetError(f"{archive}: no corpus_1.json in it")
    return found[0], left_out


def _is_of_the_format(parts: tuple[str, ...]) -> bool:
    """Tables by their names; images by their suffix, or by a folder of that name."""
    name = parts[-1]
    in_images = any(part.lower() in _IMAGE_FOLDERS for part in parts[:-1])
    return in_images or name.lower().endswith(_IMAGE_SUFFIXES) or _TABLES.fullmatch(name) is not None
