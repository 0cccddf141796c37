"""The loss and a graded evaluator for sentence-transformers' own trainer.

``GCLLoss`` goes where ``MultipleNegativesRankingLoss`` went, ``GradedRetrievalEvaluator`` where
``InformationRetrievalEvaluator`` went. Written for sentence-transformers 6.2.

Sources: Generalized Contrastive Learning, arXiv 2404.08535; gradient caching, arXiv 2101.06983.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from PIL.Image import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import Tensor, nn

from opengcl import metrics as ranking_metrics
from opengcl.data.problems import shown
from opengcl.distributed import gather_rows, world_size
from opengcl.fields import MISSING, Missing, check_fields, fuse
from opengcl.fill_in import learned_fill_in
from opengcl.given_lists import listed, not_one_text
from opengcl.inputs import only_text
from opengcl.loss import DIRECTIONS, TARGETS, Direction, Target, contrastive_loss
from opengcl.progress import progress_bar
from opengcl.prompts import SIDES, Side, prompt_of
from opengcl.search import exact_top_k
from opengcl.weights import WeightFunction, pair_weights, weight_function, weights_name

logger = logging.getLogger(__name__)

# Labels travel as float32, which holds every whole number up to here.
_LARGEST_NUMBER = 1 << 24
_BLOCKS = 64  # batches that are encoded, sorted by length among themselves, between two moves of the progress bar


class RankedPairs:
    """All judged (query, document, score) triples, so that a batch can find the judged pairs off its diagonal.

    The trainer hands a loss the columns' features and one label a row, never ids. So ``labels`` carries them: with it
    as the data set's ``score`` column, each row says which query and which document it is.

    Args:
        queries: One id or text a pair; equal values are one query.
        documents: One id or text a pair; equal values are one document.
        scores: One ranking score a pair.

    A score of 0 or below means judged not relevant: `GCLLoss` gives such a pair no weight, and treats it as a negative.

    Raises:
        ValueError: Lengths differ, nothing is given, a score is not finite, a pair has two different scores, or there
            are more than 2^24 distinct queries or documents (labels are float32).
    """

    labels: Float[np.ndarray, "pairs 3"]
    """float32 (score, query number, document number), in the order of the pairs given."""

    def __init__(self, queries: Sequence[Hashable], documents: Sequence[Hashable], scores: Sequence[float]) -> None:
        if not len(queries) == len(documents) == len(scores) > 0:
            raise ValueError(
                "ranked pairs need as many queries as documents and scores, and at least one; got "
                f"{len(queries)}, {len(documents)} and {len(scores)}"
            )
        query, document = _numbers(queries, "queries"), _numbers(documents, "documents")
        score = np.asarray(scores, dtype=np.float64)
        if not (finite := np.isfinite(score)).all():
            at = int(finite.argmin())
            raise ValueError(
                f"query {shown(queries[at])} and document {shown(documents[at])} (pair {at}) have the score {score[at]}"
                "; allowed: finite numbers"
            )
        self.labels = np.stack([score, query, document], axis=1).astype(np.float32)
        order = np.lexsort((document, query))
        again = np.flatnonzero((np.diff(query[order]) == 0) & (np.diff(document[order]) == 0)) + 1
        differs = score[order[again]] != score[order[again - 1]]
        if differs.any():
            first, second = order[again[differs][0] - 1], order[again[differs][0]]
            raise ValueError(
                f"query {shown(queries[first])} and document {shown(documents[first])} have two scores, {score[first]} "
                f"and {score[second]} (pairs {first} and {second}); allowed: one score a pair, so take one of them "
                "(opengcl data import has --repeated-pairs for it)"
            )
        order = np.delete(order, again)
        self._document, self.scores = document[order], score[order]
        self._offsets = np.searchsorted(query[order], np.arange(query.max() + 2))

    def between(
        self, queries: Int64[np.ndarray, " m"], documents: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " judged"], Int64[np.ndarray, " judged"], Int64[np.ndarray, " judged"]]:
        """Every judged pair among a batch's rows, as (i, j, position in ``scores``): query i is judged for document j.

        Args:
            queries: Query numbers; one may repeat.
            documents: Document numbers; one may repeat.
        """
        order = np.argsort(documents, kind="stable")
        owner, position = _ranges(self._offsets[queries], self._offsets[queries + 1])
        judged, present = self._document[position], documents[order]
        which, place = _ranges(np.searchsorted(present, judged), np.searchsorted(present, judged, side="right"))
        return owner[which], order[place], position[which]

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of distinct queries and documents."""
        return len(self._offsets) - 1, int(self._document.max()) + 1


class GCLLoss(CachedLossMixin, nn.Module):  # type: ignore[misc]
    r"""Weighted contrastive loss on ranking scores, as a sentence-transformers loss.

    Columns of the data set, in this order: the query; one column for each field of the document (title, image, ...);
    and the ranking score, named ``score``, ``scores``, ``label`` or ``labels``. With field weights ``a_f``,

        q_i = normalize(model(query_i)),  d_i = normalize(sum_f a_f normalize(model(field_f of document i))),
        S = Q D^T / temperature,  w_i = f(s_i),
        L = -1/2 sum_i w_i (log softmax_row(S)_ii + log softmax_col(S)_ii) / sum_i w_i

    for ``target="diagonal"`` (arXiv 2404.08535, section 3); the other targets are those of ``opengcl.loss.gcl_loss``.
    ``diagonal`` is the default because the trainer's columns hold nothing but each pair's own score. What
    `opengcl.train` does by default, since it knows every judged pair of a batch, is ``target="ranked",
    direction="query"`` with ``judged``.
    With ``weights="constant"`` and one field this is ``MultipleNegativesSymmetricRankingLoss`` at ``scale = 1 /
    temperature``.

    The other targets need to know which pairs off the diagonal are judged. Nothing in a batch says so: give ``judged``
    and use its ``labels`` as the score column. Rows of a batch are kept as they are, so a query or document that is in
    a batch twice counts twice. A row's known pairs are those in ``judged``, whether or not the pair itself is a row of
    the batch. A score of 0 or below means judged not relevant: such a row has weight 0, whatever ``weights`` are, and
    its query and document are negatives for all others; in ``masked`` they stay in the denominators.

    The trainer puts no prompt before a column unless its arguments say so: for a model with prompts give
    ``prompts=column_prompts(...)`` there, or what is trained is not what ``encode_query`` and ``encode_document`` give.

    The temperature is fixed: sentence-transformers optimises a parameter of a loss but leaves it out of checkpoints, so
    a learnt one would start again at every resumption.

    Args:
        model: The model that is trained.
        weights: Weight function as ``opengcl.weights.weight_function`` reads it: ``"exponential"``, ``"linear"``,
            ``"exponential:decay=10"``, ``"package.module:function"``, ...; or a function of an array of scores in [1,
            100].
        score_range: Lowest and highest possible score; they become 1 and 100 before the weight function. A lowest score
            below 0 counts as 0.
        target: ``diagonal``, or with ``judged`` ``masked``, ``full``, ``full_row`` or ``ranked``.
        temperature: Above 0.
        fields: Field weights in the order of the document columns; the names are for the reader and the model card,
            since the trainer passes columns on without names. Equal weights by default.
        judged: All judged pairs; needed by every target but ``diagonal``.
        mini_batch_size: Rows embedded at a time with GradCache (arXiv 2101.06983): the gradients of the whole batch at
            a mini-batch's memory, for a second forward pass. None embeds the batch at once.
        gather_across_devices: Compute the loss over the rows of all ranks; gradients, averaged over ranks as
            DistributedDataParallel does, equal those of one process with the whole batch. Every rank must hold the
            same number of rows.
        direction: ``query``, ``document`` or ``both``.

    Raises:
        ValueError: An option is not as described, ``target`` needs ``judged``, a score of ``judged`` is outside
            ``score_range``, or the model's inputs cannot be cut into mini-batches (StaticEmbedding). During training:
            no label or a label of another shape, a score outside ``score_range``, another number of document columns
            than ``fields``, a row that is not in ``judged``, or ranks with different numbers of rows.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        weights: str | WeightFunction = "exponential",
        score_range: tuple[float, float] = (1.0, 100.0),
        target: Target = "diagonal",
        temperature: float = 0.07,
        fields: Mapping[str, float] | None = None,
        judged: RankedPairs | None = None,
        mini_batch_size: int | None = None,
        gather_across_devices: bool = False,
        direction: Direction = "both",
    ) -> None:
        super().__init__()
        _check_options(model, target, direction, temperature, score_range, judged, mini_batch_size)
        self.model = model
        self.weights, self._weigh = weights_name(weights), weight_function(weights)
        self.score_range, self.target, self.temperature = score_range, target, temperature
        self.fields = None if fields is None else check_fields(fields)
        self.judged = judged
        self.mini_batch_size = mini_batch_size
        self.gather_across_devices = gather_across_devices
        self.direction = direction
        # sentence-transformers asks the instance: MatryoshkaLoss treats cached losses in another way.
        self.uses_gradient_cache = mini_batch_size is not None
        self._prompts_checked = False
        self._judged_weights = np.zeros(0) if judged is None else self._weights_of(judged.scores, "judged pair")

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None) -> Float[Tensor, ""]:
        """The loss of a batch.

        Args:
            sentence_features: Model inputs of the query column, then of each document column.
            labels: Scores, shape (batch,), or rows of ``RankedPairs.labels``, shape (batch, 3).
        """
        features = list(sentence_features)
        if len(features) < 2 or (self.fields is not None and len(features) - 1 != len(self.fields)):
            wanted = "at least one" if self.fields is None else f"{len(self.fields)} ({', '.join(self.fields)})"
            raise ValueError(
                f"the data set needs a query column and {wanted} document column(s) beside the score; the loss got "
                f"{len(features)} column(s) in all"
            )
        if not self._prompts_checked:
            self._prompts_checked = True
            # Under several processes the trainer puts the model wrapped into the loss.
            wrapped = isinstance(self.model, nn.parallel.DistributedDataParallel | nn.DataParallel)
            _warn_of_missing_prompts(self.model.module if wrapped else self.model, features)
        if self.mini_batch_size is not None:
            cached: Tensor = CachedLossMixin.forward_cached(self, features, labels)
            return cached
        return self._loss([self.model(column)["sentence_embedding"] for column in features], labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Float[Tensor, ""]:
        """The loss of a batch from its mini-batches' embeddings; ``CachedLossMixin`` calls this.

        Args:
            reps: For each column its mini-batches' embeddings.
            labels: As for ``forward``.
            with_backward: Also leave the gradients on ``reps`` and detach the result.
        """
        loss = self._loss([torch.cat(column) for column in reps], labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for the model card."""
        return {
            "weights": self.weights,
            "score_range": list(self.score_range),
            "target": self.target,
            "temperature": self.temperature,
            "fields": self.fields,
            "mini_batch_size": self.mini_batch_size,
            "gather_across_devices": self.gather_across_devices,
            "direction": self.direction,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper, for the model card."""
        return """
@misc{zhu2024generalized,
    title={Generalized Contrastive Learning for Multi-Modal Retrieval and Ranking},
    author={Tianyu Zhu and Myong Chol Jung and Jesse Clark},
    year={2024},
    eprint={2404.08535},
    archivePrefix={arXiv},
    primaryClass={cs.IR}
}
"""

    def _loss(self, columns: list[Tensor], labels: Tensor | None) -> Tensor:
        queries, documents = self._fused(columns)
        labels = self._checked_labels(labels, len(queries))
        if self.gather_across_devices and world_size() > 1:
            total = _rows_of_all_ranks(queries)
            queries, documents = gather_rows(queries, total), gather_rows(documents, total)
            labels = gather_rows(labels.to(queries.device), total)
        weights = self._weight_matrix(labels.cpu().numpy())
        if not _teaches(weights, self.target):
            return 0.0 * (queries.sum() + documents.sum())
        return contrastive_loss(
            queries, documents, weights, 1.0 / self.temperature, target=self.target, direction=self.direction
        )

    def _fused(self, columns: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Unit query and document rows, in float32 at least."""
        wide = torch.promote_types(columns[0].dtype, torch.float32)
        query, *fields = [F.normalize(column.to(wide), dim=-1) for column in columns]
        shares = [1.0] * len(fields) if self.fields is None else list(self.fields.values())
        embeddings = torch.stack(fields)
        present = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return query, fuse(embeddings, present, embeddings.new_tensor(shares))

    def _checked_labels(self, labels: Tensor | None, rows: int) -> Float[Tensor, "rows columns"]:
        """Labels as floats, (rows, 1) or (rows, 3)."""
        if labels is None:
            raise ValueError("GCLLoss needs a ranking score a row: a column named score, scores, label or labels")
        if not labels.is_floating_point():
            labels = labels.to(torch.float32)
        allowed = [(rows, 3)] if self.target != "diagonal" else [(rows,), (rows, 3)]
        if tuple(labels.shape) not in allowed:
            hint = (
                "" if self.target == "diagonal" else f"; target {self.target!r} needs RankedPairs.labels as the score"
            )
            raise ValueError(
                f"the labels have shape {tuple(labels.shape)}; allowed for {rows} rows: "
                f"{' or '.join(map(str, allowed))}{hint}"
            )
        return labels.detach().reshape(rows, -1)

    def _weight_matrix(self, labels: Float[np.ndarray, "rows columns"]) -> Tensor:
        """Weights of the diagonal, (rows,), or of all pairs that are judged relevant, sparse (rows, rows)."""
        if self.target == "diagonal" or self.judged is None:
            return torch.from_numpy(self._weights_of(labels[:, 0], "row"))
        queries, documents = labels[:, 1].astype(np.int64), labels[:, 2].astype(np.int64)
        sizes = self.judged.size
        known = (queries >= 0) & (queries < sizes[0]) & (documents >= 0) & (documents < sizes[1])
        if not known.all():
            _refuse_row(int(known.argmin()), labels)
        row, column, position = self.judged.between(queries, documents)
        own = np.zeros(len(labels), dtype=bool)
        own[row[row == column]] = True
        if not own.all():
            _refuse_row(int(own.argmin()), labels)
        relevant = self.judged.scores[position] > 0
        row, column, position = row[relevant], column[relevant], position[relevant]
        return torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([row, column])),
            torch.from_numpy(self._judged_weights[position]),
            (len(labels), len(labels)),
            check_invariants=False,
        )

    def _weights_of(self, scores: np.ndarray, what: str) -> Float[np.ndarray, " scores"]:
        low, high = self.score_range
        slack = float(np.spacing(np.float32(max(abs(low), abs(high)))))  # labels are float32
        inside = (scores >= low - slack) & (scores <= high + slack)
        if not inside.all():
            at = int(inside.argmin())
            raise ValueError(f"{what} {at} has score {scores[at]}; score_range is [{low}, {high}]")
        clipped = np.clip(scores.astype(np.float64), low, high)
        return pair_weights(clipped, np.zeros(len(clipped), dtype=np.int64), self._weigh, low=low, high=high)


Judged = Mapping[str, Mapping[str, float] | Collection[str]]
"""What is judged for each query: ``{document id: relevance}``, or the ids of the relevant documents."""


def column_prompts(model: SentenceTransformer, query: str, documents: Sequence[str]) -> dict[str, str]:
    """The model's own prompts by column, for ``SentenceTransformerTrainingArguments(prompts=...)``.

    With them the trainer's columns are what ``encode_query`` and ``encode_document`` make of the same texts. A prompt
    goes before texts alone, so columns of images may be named too.

    Args:
        model: Whose prompts.
        query: Name of the query column.
        documents: Names of the document columns.

    Returns:
        Column -> prompt; columns without a prompt are left out.

    Raises:
        ValueError: A column is named twice.
    """
    columns = [query, *not_one_text("documents", documents)]
    if len(set(columns)) < len(columns):
        raise ValueError(f"found columns {', '.join(columns)}; allowed: each column once")
    found = {column: prompt_of(model, side) for column, side in zip(columns, _sides(len(columns)), strict=True)}
    return {column: prompt for column, prompt in found.items() if prompt}


class GradedRetrievalEvaluator(SentenceEvaluator):  # type: ignore[misc]
    """Retrieval metrics on graded relevance, for texts, images and documents of several fields.

    Every judged query searches the whole corpus by cosine, exactly (``opengcl.search.exact_top_k``; equal scores in
    corpus order), and ``opengcl.metrics`` scores the first ``k`` documents. ``InformationRetrievalEvaluator`` knows
    only relevant and not; here relevance is a float: NDCG, ERR and RBP use it as a gain, the others count a document
    above 0 as relevant, and below 0 it counts as 0. A judged query with nothing relevant among its results, or nothing
    relevant at all, counts as 0.

    Returns, on a call, ``{name_metric: mean over the judged queries}``; with an output path it appends a row to
    ``Graded-Retrieval_evaluation_<name>_results.csv``. The primary metric is the first of ``metrics``.

    Args:
        queries: Text or PIL image of every query id. Queries without a judgment are left out.
        corpus: Text, PIL image, or ``{field: text or image}`` of every document id. A field may be missing, None or a
            blank text; see ``missing_fields``.
        qrels: ``{query id: {document id: relevance}}``, relevance finite; a pair not named is 0. Or ``{query id:
            {document id, ...}}``, a set or list, all of them of relevance 1. A query with none is left out.
        relevant_docs: The same under ``InformationRetrievalEvaluator``'s name; give one of the two.
        name: Goes before each metric's name.
        metrics: Names as ``opengcl.metrics.compute`` takes them; ``opengcl.metrics.DEFAULT_METRICS`` by default.
        ndcg_at_k: Cutoffs, with what follows instead of ``metrics``, as ``InformationRetrievalEvaluator`` has them; the
            largest of these is the primary metric.
        mrr_at_k: Cutoffs of MRR.
        accuracy_at_k: Cutoffs of ``success``, the share of the queries that find something relevant.
        precision_recall_at_k: Cutoffs of precision and recall.
        map_at_k: Cutoffs of MAP.
        k: Documents retrieved for a query. Metrics without a cutoff see these k ranks.
        fields: Weights of the documents' fields; equal by default.
        missing_fields: ``fill_in``: a field that a document lacks is predicted from those it has, by maps learned at
            each call from the documents that have both, as `opengcl.evaluate` does for a model without maps of its
            own (`opengcl.fill_in`). ``leave_out``: it is left out of the document's fused vector.
        batch_size: Texts or images encoded at a time.
        query_prompt: Put before each query that is a text; None for the model's own prompt, empty for none.
        corpus_prompt: The same for the texts of documents.
        query_prompt_name: One of the model's prompts instead, by its name.
        corpus_prompt_name: The same for documents.
        corpus_chunk_size: Changes nothing; it is there so that arguments written for ``InformationRetrievalEvaluator``
            can stay. Search compares all documents in pieces of its own.
        show_progress_bar: Show the encoding's progress.
        write_csv: Write the file described above.

    Raises:
        ValueError: Ids in ``qrels`` that ``queries`` or ``corpus`` lack, a relevance that is no finite number, no
            judged query, a query or document that is neither text nor image, a document without any field, a field
            that ``fields`` does not name, an unknown metric, a metric whose cutoff is above ``k``, another value of
            ``missing_fields``, or a prompt's name that the model does not have.
    """

    def __init__(
        self,
        queries: Mapping[str, str | Image],
        corpus: Mapping[str, str | Image | Mapping[str, str | Image | None]],
        qrels: Judged | None = None,
        *,
        relevant_docs: Judged | None = None,
        name: str = "",
        metrics: Sequence[str] | None = None,
        ndcg_at_k: Sequence[int] = (),
        mrr_at_k: Sequence[int] = (),
        accuracy_at_k: Sequence[int] = (),
        precision_recall_at_k: Sequence[int] = (),
        map_at_k: Sequence[int] = (),
        k: int = 1000,
        fields: Mapping[str, float] | None = None,
        missing_fields: Missing = "fill_in",
        batch_size: int = 32,
        query_prompt: str | None = None,
        query_prompt_name: str | None = None,
        corpus_prompt: str | None = None,
        corpus_prompt_name: str | None = None,
        corpus_chunk_size: int | None = None,
        show_progress_bar: bool = False,
        write_csv: bool = True,
    ) -> None:
        super().__init__()
        cutoffs = {"ndcg": ndcg_at_k, "mrr": mrr_at_k, "success": accuracy_at_k, "precision": precision_recall_at_k}
        metrics = _chosen_metrics(metrics, {**cutoffs, "recall": precision_recall_at_k, "map": map_at_k})
        _check_metrics(metrics, k)
        qrels = _graded(qrels, relevant_docs)
        _check_qrels(queries, corpus, qrels)
        self.name, self.metrics, self.k = name, tuple(metrics), k
        self.query_ids = [query for query, judged in qrels.items() if judged]
        self._queries = [queries[query] for query in self.query_ids]
        if missing_fields not in MISSING:
            raise ValueError(f"missing_fields: found {missing_fields!r}; allowed: {', '.join(MISSING)}")
        self._documents, self.fields = _by_field(corpus, fields)
        self.missing_fields = missing_fields
        self._corpus_size = len(corpus)
        row = {document: number for number, document in enumerate(corpus)}
        self._judged_rows = [np.array([row[document] for document in qrels[query]]) for query in self.query_ids]
        self._relevance = [np.array(list(qrels[query].values()), dtype=np.float64) for query in self.query_ids]
        self.batch_size, self.show_progress_bar, self.write_csv = batch_size, show_progress_bar, write_csv
        self.query_prompt, self.corpus_prompt = query_prompt, corpus_prompt
        self.query_prompt_name, self.corpus_prompt_name = query_prompt_name, corpus_prompt_name
        self.corpus_chunk_size = corpus_chunk_size
        self.primary_metric = self.metrics[0]
        self.csv_file = f"Graded-Retrieval_evaluation{'_' + name if name else ''}_results.csv"
        self.csv_headers = ["epoch", "steps", *self.metrics]

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Encode, search and score.

        Args:
            model: The model to evaluate.
            output_path: Folder of the CSV file.
            epoch: Written to the CSV file; -1 outside training.
            steps: Written to the CSV file; -1 outside training.

        Returns:
            The mean of each metric, under its prefixed name.
        """
        per_query = self.per_query(model)
        means = {metric: float(values.mean()) for metric, values in per_query.items()}
        summary = ", ".join(f"{metric} {value:.4f}" for metric, value in means.items())
        logger.info("Graded retrieval %s, epoch %s, %d queries: %s", self.name, epoch, len(self.query_ids), summary)
        if output_path is not None and self.write_csv:
            self._write_row(Path(output_path), [epoch, steps, *means.values()])
        prefixed: dict[str, float] = self.prefix_name_to_metrics(means, self.name)
        self.store_metrics_in_model_card_data(model, prefixed, epoch, steps)
        return prefixed

    def per_query(self, model: SentenceTransformer) -> dict[str, Float[np.ndarray, " queries"]]:
        """Each metric's value for each query of ``query_ids``: what a paired test between two models needs."""
        prompt = _named_prompt(model, self.query_prompt, self.query_prompt_name)
        queries = _encode(model.encode_query, self._queries, prompt, self.batch_size, self.show_progress_bar)
        documents = self._encode_corpus(model)
        _, rows = exact_top_k(
            F.normalize(queries, dim=-1).numpy(), documents.numpy(), self.k, device=torch.device(model.device)
        )
        judged = np.zeros((len(rows), max(map(len, self._relevance))))
        retrieved = np.zeros(rows.shape)
        gain = np.zeros(self._corpus_size)
        for query, (judged_rows, relevance) in enumerate(zip(self._judged_rows, self._relevance, strict=True)):
            judged[query, : len(relevance)] = relevance
            gain[judged_rows] = relevance
            retrieved[query] = gain[rows[query]]
            gain[judged_rows] = 0.0
        return ranking_metrics.compute(self.metrics, retrieved, judged)

    def get_config_dict(self) -> dict[str, Any]:
        """The options that matter to the numbers, for the model card."""
        config: dict[str, Any] = {"k": self.k, "queries": len(self.query_ids), "documents": self._corpus_size}
        if len(self.fields) > 1:
            config |= {"fields": self.fields, "missing_fields": self.missing_fields}
        prompts = {"query_prompt": self.query_prompt, "corpus_prompt": self.corpus_prompt}
        prompts |= {"query_prompt_name": self.query_prompt_name, "corpus_prompt_name": self.corpus_prompt_name}
        return config | {key: prompt for key, prompt in prompts.items() if prompt is not None}

    def _encode_corpus(self, model: SentenceTransformer) -> Float[Tensor, "documents d"]:
        columns, present = [], torch.zeros(len(self._documents), self._corpus_size, dtype=torch.bool)
        prompt = _named_prompt(model, self.corpus_prompt, self.corpus_prompt_name)
        for number, (rows, values) in enumerate(self._documents.values()):
            found = _encode(model.encode_document, values, prompt, self.batch_size, self.show_progress_bar)
            column = torch.zeros(self._corpus_size, found.shape[1])
            column[rows] = F.normalize(found, dim=-1)
            columns.append(column)
            present[number, rows] = True
        embeddings = torch.stack(columns)
        if self.missing_fields == "fill_in" and not present.all():
            embeddings, present = learned_fill_in(embeddings, present, list(self.fields))(
                embeddings, present, self.fields
            )
        return fuse(embeddings, present, torch.tensor(list(self.fields.values())))

    def _write_row(self, folder: Path, row: list[float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.csv_file
        new = not path.is_file()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([self.csv_headers, row] if new else [row])


def _check_options(
    model: SentenceTransformer,
    target: str,
    direction: str,
    temperature: float,
    score_range: tuple[float, float],
    judged: RankedPairs | None,
    mini_batch_size: int | None,
) -> None:
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; use one of {', '.join(TARGETS)}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r} is unknown; use one of {', '.join(DIRECTIONS)}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be a finite number above 0")
    if not score_range[0] < score_range[1]:
        raise ValueError(f"score_range is {score_range}; its first number must be below its second")
    if target != "diagonal" and judged is None:
        raise ValueError(
            f"target {target!r} needs the judged pairs off the diagonal, which the trainer's columns do not say: "
            "give judged=RankedPairs(...), and its labels as the score column"
        )
    if mini_batch_size is None:
        return
    if mini_batch_size < 1:
        raise ValueError(f"mini_batch_size is {mini_batch_size}; it must be at least 1, or None")
    if has_static_embedding_input(model):
        raise ValueError("a StaticEmbedding's inputs cannot be cut into mini-batches; use mini_batch_size=None")


def _numbers(ids: Sequence[Hashable], what: str) -> Int64[np.ndarray, " pairs"]:
    """0, 1, ... for each distinct id, in the order of their first use."""
    number: dict[Hashable, int] = {}
    numbers = np.array([number.setdefault(value, len(number)) for value in ids], dtype=np.int64)
    if len(number) > _LARGEST_NUMBER:
        raise ValueError(f"{len(number)} distinct {what}; labels are float32 and can tell {_LARGEST_NUMBER} apart")
    return numbers


def _ranges(
    starts: Int64[np.ndarray, " groups"], stops: Int64[np.ndarray, " groups"]
) -> tuple[Int64[np.ndarray, " total"], Int64[np.ndarray, " total"]]:
    """The whole numbers from each start up to its stop, and which group each belongs to."""
    lengths = stops - starts
    group = np.repeat(np.arange(len(starts)), lengths)
    before = np.cumsum(lengths) - lengths
    return group, np.arange(len(group)) - before[group] + starts[group]


def _teaches(weights: Tensor, target: Target) -> bool:
    """Whether any pair that the target uses has a weight; a batch may hold nothing but pairs judged not relevant."""
    if weights.layout != torch.sparse_coo:
        return bool((weights > 0).any())
    (row, column), values = weights._indices(), weights._values()
    return bool((values[row == column] > 0).any() if target == "masked" else (values > 0).any())


def _refuse_row(row: int, labels: np.ndarray) -> None:
    raise ValueError(
        f"row {row} of the batch is (query number, document number) {labels[row, 1:].tolist()}, which is no pair of "
        "`judged`; use the labels of the same RankedPairs as the score column"
    )


def _rows_of_all_ranks(rows: Tensor) -> int:
    """Rows over all ranks; every rank must hold as many."""
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    held = [int(other) for other in counts]
    if len(set(held)) > 1:
        raise ValueError(
            f"the ranks hold {', '.join(map(str, held))} rows; gather_across_devices needs the same number on each "
            "(set dataloader_drop_last=True)"
        )
    return sum(held)


def _chosen_metrics(metrics: Sequence[str] | None, cutoffs: Mapping[str, Sequence[int]]) -> Sequence[str]:
    """The metrics' names, from names or from cutoffs, NDCG's largest first."""
    if metrics is not None:
        metrics = listed("metrics", metrics)
    named = [f"{name}@{k}" for name, ks in cutoffs.items() for k in sorted(ks, reverse=name == "ndcg")]
    if named and metrics is not None:
        raise ValueError(
            f"found metrics {', '.join(metrics)} and cutoffs for {', '.join(named)}; allowed: one of the two"
        )
    return named or (ranking_metrics.DEFAULT_METRICS if metrics is None else metrics)


def _graded(qrels: Judged | None, relevant_docs: Judged | None) -> dict[str, Mapping[str, float]]:
    """Each query's judgments as relevance by document id."""
    given = qrels if relevant_docs is None else relevant_docs
    if given is None or (qrels is not None and relevant_docs is not None):
        raise ValueError("give the judgments once, as qrels or as relevant_docs")
    found: dict[str, Mapping[str, float]] = {}
    for query, documents in given.items():
        if isinstance(documents, str | bytes) or not isinstance(documents, Mapping | Collection):
            raise ValueError(
                f"the judgments of query {shown(query)} are {shown(documents)}; allowed: {{document id: relevance}}, "
                "or a set or list of the ids of its relevant documents"
            )
        found[query] = documents if isinstance(documents, Mapping) else dict.fromkeys(documents, 1.0)
    return found


def _check_metrics(metrics: Sequence[str], k: int) -> None:
    if not metrics:
        raise ValueError("no metric is named")
    ranking_metrics.check_names(metrics)
    for metric in metrics:
        base, _, cutoff = metric.partition("@")
        if base != "rbp" and cutoff and int(cutoff) > k:
            raise ValueError(f"{metric} looks at {cutoff} ranks, but k is {k}: only so many documents are retrieved")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")


def _check_qrels(queries: Mapping[str, Any], corpus: Mapping[str, Any], qrels: Mapping[str, Mapping[str, Any]]) -> None:
    judged = {document: query for query, documents in qrels.items() for document in documents}
    for what, unknown in (("queries", set(qrels) - set(queries)), ("corpus", set(judged) - set(corpus))):
        if unknown:
            ids = sorted(unknown, key=str)[:5]
            owner = f" (the first is judged for query {shown(judged[ids[0]])})" if what == "corpus" else ""
            listed = f"{', '.join(map(shown, ids))}{', ...' * (len(unknown) > 5)}"
            raise ValueError(f"qrels name {len(unknown)} id(s) that {what} lacks: {listed}{owner}")
    if not judged:
        raise ValueError("qrels hold no judgment")
    for query, documents in qrels.items():
        if not isinstance(queries[query], str | Image):
            raise ValueError(f"query {shown(query)} is {shown(queries[query])}; allowed: a text or an image")
        for document, relevance in documents.items():
            if not isinstance(relevance, Real) or not np.isfinite(float(relevance)):
                raise ValueError(
                    f"the relevance of document {shown(document)} for query {shown(query)} is {shown(relevance)}; "
                    "allowed: a finite number, where 0 or below means not relevant"
                )


def _by_field(
    corpus: Mapping[str, Any], fields: Mapping[str, float] | None
) -> tuple[dict[str, tuple[list[int], list[str | Image]]], dict[str, float]]:
    """For each field the documents that have it and their values; and the fields' weights."""
    found: dict[str, tuple[list[int], list[str | Image]]] = {}
    for row, (document, content) in enumerate(corpus.items()):
        values = content if isinstance(content, Mapping) else {"document": content}
        present = {
            field: value
            for field, value in values.items()
            if value is not None and not (isinstance(value, str) and not value.strip())
        }
        if not present:
            raise ValueError(f"document {shown(document)} has no field with a value")
        for field, value in present.items():
            if not isinstance(value, str | Image):
                where = f"document {shown(document)}, field {shown(field)}"
                raise ValueError(f"{where}: found {shown(value)}; allowed: a text or an image")
            if fields is not None and field not in fields:
                raise ValueError(f"document {shown(document)} has field {field!r}; fields names {', '.join(fields)}")
            rows, contents = found.setdefault(field, ([], []))
            rows.append(row)
            contents.append(value)
    weights = check_fields(dict.fromkeys(found, 1.0) if fields is None else fields)
    return found, {field: weights[field] for field in found}


def _named_prompt(model: SentenceTransformer, prompt: str | None, name: str | None) -> str | None:
    """A prompt as it is given, or by its name in the model."""
    if prompt is not None or name is None:
        return prompt
    if name not in model.prompts:
        raise ValueError(f"the model has no prompt {name!r}; it has: {', '.join(model.prompts) or 'none'}")
    return str(model.prompts[name])


def _encode(
    encode: Any, values: list[str | Image], prompt: str | None, batch_size: int, progress: bool
) -> Float[Tensor, "values d"]:
    """float32 vectors on the CPU; texts behind their prompt, images without one."""
    texts = [row for row, value in enumerate(values) if isinstance(value, str)]
    images = [row for row, value in enumerate(values) if not isinstance(value, str)]
    inputs = [only_text(value) if isinstance(value, str) else value for value in values]
    order, made = [], []
    with progress_bar(total=len(values), desc="encoding", unit="row", show=progress) as bar:
        for rows, before in ((texts, prompt), (images, "")):
            for start in range(0, len(rows), _BLOCKS * batch_size):
                block = rows[start : start + _BLOCKS * batch_size]
                vectors: Tensor = encode(
                    [inputs[row] for row in block],
                    prompt=before,
                    batch_size=batch_size,
                    show_progress_bar=False,
                    convert_to_tensor=True,
                )
                order += block
                made.append(vectors.detach().to("cpu", torch.float32))
                bar.update(len(block))
    found = torch.cat(made)
    return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)


def _sides(columns: int) -> list[Side]:
    """The first column is the query; all others are fields of the document."""
    return [SIDES[min(column, 1)] for column in range(columns)]


def _warn_of_missing_prompts(model: SentenceTransformer, features: Sequence[Mapping[str, Any]]) -> None:
    """Columns of texts that came without the prompt that the model's own encoding puts before them."""
    model = getattr(model, "module", model)  # as several processes wrap it
    for column, side in zip(features, _sides(len(features)), strict=True):
        prompt = prompt_of(model, side)
        # Only a Transformer says how long a prompt was; what other modules made cannot be told.
        if prompt and isinstance(model[0], Transformer) and "input_ids" in column and "prompt_length" not in column:
            logger.warning(
                "the model has the %s prompt %s, but the trainer puts none before its columns: give "
                "SentenceTransformerTrainingArguments(prompts=opengcl.sbert.column_prompts(model, 'query', ['title', "
                "...])), or empty the model's prompts; otherwise it is trained on other inputs than it is used with",
                side,
                shown(prompt),
            )
            return
