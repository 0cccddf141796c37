"""Queries, search, scores, pictures, data set: every reply kept before it counts, and each stage over all queries."""

from __future__ import annotations

import logging
import math
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opengcl.curate.budget import Budget
from opengcl.curate.calls import Calls
from opengcl.curate.config import CurateConfig, LLMOptions, SerpApiOptions, ServiceOptions
from opengcl.curate.errors import CallError, CurateError
from opengcl.curate.http_source import JsonSearch
from opengcl.curate.journal import Journal, Spent
from opengcl.curate.judge import PROMPT_NAMES as JUDGE_NAMES
from opengcl.curate.judge import Batch, Judge
from opengcl.curate.judged_pairs import JudgedPairs
from opengcl.curate.keys import Keys
from opengcl.curate.llm import ChatModel
from opengcl.curate.prompts import Prompt
from opengcl.curate.provenance import provenance
from opengcl.curate.queries import PROMPT_NAMES as QUERY_NAMES
from opengcl.curate.queries import Query, QueryWriter, given_queries
from opengcl.curate.rejects import Rejects
from opengcl.curate.scores import Values, mixed, position_scores
from opengcl.curate.search_source import SearchResult, SearchSource
from opengcl.curate.serpapi import SerpApi
from opengcl.curate.tables import document_reader, qrels_table, query_table
from opengcl.curate.teacher import Teacher
from opengcl.curate.topics import read_topics
from opengcl.curate.workers import together
from opengcl.data import FieldType, Schema, write_dataset
from opengcl.fetch import FetchOptions, fetch_pictures
from opengcl.only_writer import only_writer
from opengcl.picture_store import PictureStore
from opengcl.progress import tracked

log = logging.getLogger(__name__)

JOURNAL = "replies.jsonl.gz"
REJECTS = "rejects.parquet"
PICTURES = "pictures"


@dataclass(frozen=True)
class Curated:
    """What a run made.

    Attributes:
        path: The data set's folder.
        counts: Queries, documents and pairs in it, and what was left out.
        spent: Requests and cost of the work folder over all runs.
    """

    path: Path
    counts: dict[str, int]
    spent: Spent


def curate(
    config: CurateConfig, *, source: SearchSource | None = None, rescore: bool = False, progress: bool = True
) -> Curated:
    """Makes a data set from queries, a shopping search and scores.

    Stopped at any moment, even by a kill, the same call goes on from there: every reply that was received is in the
    work folder, and is not asked for again.

    Args:
        config: The settings.
        source: Your own search, in place of ``config.search``; it keeps and counts its requests itself.
        rescore: If True, nobody is asked: the data set is made of the replies and pictures that are kept, and what is
            not is left out.
        progress: Whether progress bars are shown on stderr.

    Raises:
        CurateError: If a setting, key or file is wrong, the budget is used up, a service refuses, or too much fails.
        DataSetError: If the folder of the data set exists and is not empty.
    """
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CurateError(f"{out}: exists already; allowed: a new or empty folder")
    keys = Keys()
    with ExitStack() as stack:
        stack.enter_context(only_writer(out))
        config.work_folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(keys.out_of_logs())
        journal = stack.enter_context(Journal(config.work_folder / JOURNAL))
        return _Run(config, journal, keys, stack, source, rescore, progress).finish()


class _Run:
    """One run: the services it asks, and its stages in order."""

    def __init__(
        self,
        config: CurateConfig,
        journal: Journal,
        keys: Keys,
        stack: ExitStack,
        source: SearchSource | None,
        rescore: bool,
        progress: bool,
    ) -> None:
        self.config = config
        self.journal = journal
        self.keys = keys
        self.stack = stack
        self.rescore = rescore
        self.progress = progress
        self.stop = threading.Event()
        self.budget = Budget(config.budget.requests, config.budget.cost, journal.spent)
        self.rejects = Rejects()
        self.services: list[Calls] = []
        self.prompts: dict[str, str] = {}
        # All that can be wrong with keys, files and models shows here, before the first request.
        self.writer = self._writer()
        self.source = source or self._search()
        self.judge = self._judge()
        self.teacher = Teacher(config.scores.teacher, journal) if config.scores.teacher else None

    def finish(self) -> Curated:
        """All stages."""
        try:
            queries = self._queries()
            pairs = self._results(queries)
            self._score(pairs)
            return self._write(pairs, len(queries))
        finally:
            self.rejects.write(self.config.work_folder / REJECTS)

    # What is asked

    def _calls(self, name: str, options: ServiceOptions) -> Calls:
        calls = Calls(
            name, options, self.journal, self.budget, self.keys, self.rejects, offline=self.rescore, stop=self.stop
        )
        self.services.append(calls)
        return calls

    def _model(self, name: str, options: LLMOptions) -> ChatModel:
        key = self.keys.read(options.key_env) if options.key_env and not self.rescore else None
        model = ChatModel(options, self._calls(name, options), key)
        self.stack.callback(model.close)
        return model

    def _prompt(self, name: str, file: str | None, names: frozenset[str]) -> Prompt:
        prompt = Prompt.read(file, name, names)
        self.prompts[name] = prompt.hash
        return prompt

    def _writer(self) -> QueryWriter | None:
        options, llm, seed = self.config.queries, self.config.writer_llm, self.config.seed
        if llm is None:
            return None
        prompt = self._prompt("queries", options.prompt, QUERY_NAMES)
        topics = read_topics(options, seed)
        return QueryWriter(options, topics, self._model("queries", llm), prompt, self.rejects, seed)

    def _judge(self) -> Judge | None:
        options, model = self.config.scores.judge, self.config.judge_llm
        if options is None or model is None:
            return None
        prompt = self._prompt("judge", options.prompt, JUDGE_NAMES)
        return Judge(options, self._model("judge", model), prompt, self.config.seed)

    def _search(self) -> SearchSource:
        options = self.config.search
        calls = self._calls("search", options)
        search: SerpApi | JsonSearch
        if isinstance(options, SerpApiOptions):
            search = SerpApi(options, calls, None if self.rescore else self.keys.read(options.key_env))
        else:
            search = JsonSearch(options, calls, None if self.rescore else self.keys)
        self.stack.callback(search.close)
        return search

    # The stages

    def _queries(self) -> list[Query]:
        if self.writer is None:
            return given_queries(self.config.queries)
        found = self.writer.write(failures=self.config.failures, stop=self.stop, progress=self.progress)
        if not found:
            raise CurateError(f"no query came of the model; see {self.config.work_folder / REJECTS}")
        if len(found) < self.config.queries.count:
            wanted, rounds = self.config.queries.count, self.config.queries.rounds
            log.warning("Only %d of %d queries after %d rounds; more topics or styles help", len(found), wanted, rounds)
        return found

    def _results(self, queries: list[Query]) -> JudgedPairs:
        def search(query: Query) -> SearchResult:
            found = self.source.search(query.text, self.config.search.results)
            return SearchResult(found.hits, [])  # the journal has the raw replies, which are far larger

        results = together(
            search,
            queries,
            workers=self.config.search.concurrency,
            failures=self.config.failures,
            stop=self.stop,
            task="Searches",
            progress=self.progress,
        )
        pairs = JudgedPairs()
        for query, result in zip(queries, results, strict=True):
            if isinstance(result, CallError):
                self.rejects.add("search", str(result), query.text, "")
            else:
                pairs.add(query, result)
        if not pairs.queries:
            raise CurateError(f"no search found anything; see {self.config.work_folder / REJECTS}")
        return pairs

    def _score(self, pairs: JudgedPairs) -> None:
        positions = self.config.scores.positions
        if positions is not None:
            places = np.array(pairs.position, np.float64)
            pairs.scores["positions"] = position_scores(places, positions.form, positions.depth)
        if self.judge is not None:
            self._label(pairs, self.judge)
        if self.teacher is not None:
            self._teach(pairs, self.teacher)

    def _label(self, pairs: JudgedPairs, judge: Judge) -> None:
        batches: list[Batch] = []
        rows: list[dict[str, int]] = []
        for query, own in zip(pairs.queries, pairs.rows_of(), strict=True):
            documents = [(pairs.document[row], pairs.documents[pairs.document[row]]) for row in own]
            found = judge.batches(query.text, documents)
            batches += found
            rows += [dict(zip((name for name, _ in documents), own, strict=True))] * len(found)
        replies = together(
            judge.label,
            batches,
            workers=judge.model.options.concurrency,
            failures=self.config.failures,
            stop=self.stop,
            task="Judgements",
            progress=self.progress,
        )
        scores = pairs.unscored()
        for batch, row_of, reply in zip(batches, rows, replies, strict=True):
            if isinstance(reply, CallError):
                self.rejects.add("judge", str(reply), batch.query, "")
                continue
            for document, label in reply.items():
                scores[row_of[document]] = judge.options.labels[label]
                pairs.labels[row_of[document]] = label
        pairs.scores["judge"] = scores

    def _teach(self, pairs: JudgedPairs, teacher: Teacher) -> None:
        scores = pairs.unscored()
        work = zip(pairs.queries, pairs.rows_of(), strict=True)
        for query, own in tracked(work, desc="Teacher", unit="query", total=len(pairs.queries), show=self.progress):
            rows = list(own)[: teacher.options.top]
            scores[rows] = teacher.scores(query.text, [pairs.documents[pairs.document[row]].title for row in rows])
        pairs.scores["teacher"] = scores

    # What comes out

    def _write(self, pairs: JudgedPairs, queries: int) -> Curated:
        options = self.config.scores
        sources = {"positions": options.positions, "judge": options.judge, "teacher": options.teacher}
        score = mixed(pairs.scores, {name: one.weight for name, one in sources.items() if one})
        rows = np.flatnonzero(np.isfinite(score)).tolist()
        if not rows:
            raise CurateError(f"no pair has a score; see {self.config.work_folder / REJECTS}")
        used = sorted({pairs.query[row] for row in rows})
        named = {pairs.document[row] for row in rows}
        documents = {name: product for name, product in pairs.documents.items() if name in named}
        with ExitStack() as stack:
            picture, missing = None, 0
            if self.config.pictures.fetch:
                store = stack.enter_context(PictureStore(self.config.work_folder / PICTURES))
                self._fetch([product.image for product in documents.values() if product.image], store)
                missing = sum(not (one.image and one.image in store) for one in documents.values())
                picture = store.get
            counts = {
                "queries": len(used),
                "documents": len(documents),
                "pairs": len(rows),
                "queries without results or scores": queries - len(used),
                "pairs without a score": len(score) - len(rows),
                "documents without a picture": missing,
                "rejected queries": self.rejects.count("queries"),
            }
            path = write_dataset(
                self.config.out,
                self._schema(counts, with_pictures=picture is not None),
                query_table(pairs, used),
                document_reader(documents, picture),
                qrels_table(pairs, _within(score), rows),
            )
        return Curated(path, counts, self.journal.spent)

    def _fetch(self, urls: list[str], store: PictureStore) -> None:
        if self.rescore:
            return
        options = self.config.pictures.model_dump(exclude={"fetch"})
        fetch_pictures(urls, store, FetchOptions(**options), progress=self.progress)

    def _schema(self, counts: dict[str, int], *, with_pictures: bool) -> Schema:
        fields: dict[str, FieldType] = {"title": "text", "image": "image"} if with_pictures else {"title": "text"}
        used = {key: cost for service in self.services for key, cost in service.used.items()}
        teacher = self.teacher.version if self.teacher else None
        told = provenance(self.config, self.prompts, teacher, counts, len(used), math.fsum(used.values()))
        return Schema(self.config.name, {"query": "text"}, fields, *self._range(), provenance=told)

    def _range(self) -> tuple[float, float]:
        """The lowest and highest score there can be: places have no 0."""
        positions = self.config.scores.positions
        return (1.0 if positions and not self.judge and not self.teacher else 0.0), 100.0


def _within(score: Values) -> Values:
    """Sums of floats may pass a bound in the last digit."""
    return np.clip(score, 0.0, 100.0)
