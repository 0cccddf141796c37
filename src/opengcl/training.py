"""From a config to a run folder: Hugging Face's Trainer around `opengcl.objective.RankingObjective`."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import sentence_transformers
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

import opengcl
from opengcl import checkpoints, run_identity
from opengcl.batches import Batches, DocumentBatches, GroupedBatches, Pairs, Relations, ShuffledBatches
from opengcl.checkpoints import Checkpoints
from opengcl.config import TrainConfig
from opengcl.data import RankedDataset
from opengcl.data.problems import NO_FIELD, not_relevant_note
from opengcl.devices import check_training_device
from opengcl.distributed import join_ranks, rank, slice_of_rank, wait_for_ranks, world_size
from opengcl.encode import fit_fill_in, inputs_for
from opengcl.encoders import make_encoder
from opengcl.evaluation import Evaluation, Limit, evaluate
from opengcl.fill_in import FillIn
from opengcl.inputs import Inputs, temporary_cache
from opengcl.lora import add_adapters, backbones, merge_adapters
from opengcl.model import BiEncoder, FieldMix
from opengcl.objective import Batch, RankingObjective, read_target, relation_tensors
from opengcl.per_query import by_fields_path
from opengcl.progress import progress_bar
from opengcl.prompts import Side, described, settle_prompts
from opengcl.report import write_report
from opengcl.run_identity import TrainError
from opengcl.weights import weight_function
from opengcl.whole_files import put, put_text

DEV_METRICS = ("ndcg@10", "recall@100")
BEST = "eval_ndcg@10"
ENDED = "metrics.json"
"""Written last: a run folder that has it has ended."""
_CHECKPOINTS = "checkpoints"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
logger = logging.getLogger(__name__)


def train(config: TrainConfig, *, resume: bool = False, baseline: Path | None = None, progress: bool = True) -> Path:
    """Train, evaluate on the test queries (``config.final_queries``) of the four splits, and write the run folder.

    The folder gets ``config.yaml``, ``model/``, ``metrics.json``, ``per_query.parquet``, ``results.parquet``,
    ``history.json``, ``tensorboard/``, ``report.html`` and the checkpoints that ``resume`` goes on from.

    Args:
        config: All settings.
        resume: Go on from the last whole checkpoint in ``config.out``; the result equals an uninterrupted run's. A run
            that has ended is left as it is.
        baseline: Another run folder to show beside this one in the report.
        progress: Show bars.

    Returns:
        The run folder.

    Raises:
        TrainError: The folder holds a run and ``resume`` was not asked, or another process trains there, or settings or
            data differ on resume, or the disk is full or read-only, or the loss stopped being finite.
        CheckpointError: A file of the checkpoint to go on from, or of the best one, is not what was written.
        DeviceError: The machine lacks the device, or its arithmetic.
        ValueError: Settings that do not fit the data set or the model.
    """
    check_training_device(config.device, config.precision)
    weight_function(config.weights)  # a missing function of the user's is an error before any work
    join_ranks(cpu=config.device == "cpu")
    out = Path(config.out)
    shown = progress and rank() == 0
    dataset = RankedDataset.open(config.data, strict=config.strict, progress=shown)
    judged = dataset
    if config.evaluation_data is not None:
        judged = RankedDataset.open(config.evaluation_data, strict=config.strict, progress=shown)
        _check_unseen(dataset, judged)
    for opened in (dataset, judged):
        _check_skipped(opened, config.max_unreadable)
        _tell_lost_scores(opened)
    objective = build_objective(config, dataset)
    inputs = _inputs(objective.model, dataset, config)
    judged_inputs = inputs if judged is dataset else _inputs(objective.model, judged, config)
    if shown and (told := described(objective.model.prompts)):
        logger.info("%s", told)
    with contextlib.ExitStack() as held:
        held.enter_context(_told_what_the_disk_said(out))
        if rank() == 0:
            _claim(out, config, dataset, judged, objective.model.prompts, resume, held)
        wait_for_ranks()
        if not (out / ENDED).is_file():
            _train(config, objective, (dataset, inputs), (judged, judged_inputs), progress=progress)
        if rank() == 0 and not (out / "report.html").is_file():
            write_report(out, judged, baseline=baseline)
        wait_for_ranks()
    return out


def _train(
    config: TrainConfig,
    objective: RankingObjective,
    trained: tuple[RankedDataset, tuple[Inputs, Inputs]],
    evaluated: tuple[RankedDataset, tuple[Inputs, Inputs]],
    *,
    progress: bool,
) -> None:
    """From the last checkpoint, or the beginning, to the results."""
    out, shown = Path(config.out), progress and rank() == 0
    (dataset, inputs), (judged, judged_inputs) = trained, evaluated
    with temporary_cache(out / "cache") as cache:
        _fill_caches(inputs, config, Path(cache) / "data", shown)
        if judged is not dataset:
            _fill_caches(judged_inputs, config, Path(cache) / "evaluation_data", shown)
        newest = _newest_checkpoint(out)
        if rank() == 0:
            tables = {"queries": inputs[0], "documents": inputs[1]}
            if judged is not dataset:
                tables |= {"evaluation queries": judged_inputs[0], "evaluation documents": judged_inputs[1]}
            run_identity.check_pictures(out, tables, begun=newest is not None)
        trainer = _trainer(config, dataset, objective, inputs, (judged, judged_inputs), newest, progress)
        started = time.perf_counter()
        folder = Checkpoints(out / _CHECKPOINTS).at(newest) if newest is not None else None
        trainer.train(resume_from_checkpoint=str(folder) if folder else None)
        trainer.take_best_weights()
        seconds = time.perf_counter() - started
        model = _finished_model(objective, config, dataset, trainer, seconds)
        if _fills_in(model):
            model.fill_in = _learned_fill_in(model, dataset, inputs[1])
        evaluation = evaluate(model, judged, part=config.final_queries, inputs=judged_inputs, progress=progress)
    if rank() == 0:
        _write_results(out, model, judged, evaluation, trainer.state.log_history)


def build_objective(config: TrainConfig, dataset: RankedDataset) -> RankingObjective:
    """The untrained module that a config asks for, on the CPU.

    Raises:
        ValueError: A field, model or option that does not fit; the message says which.
    """
    encoder = make_encoder(config.model, dataset, seed=config.seed, dim=config.dim)
    settle_prompts(encoder, query=config.query_prompt, document=config.document_prompt)
    mix = FieldMix.choose(encoder, dataset.schema, config.query_fields, config.fields)
    if config.lora_rank is not None:
        add_adapters(encoder, config.lora_rank, seed=config.seed)
    if config.gradient_checkpointing:
        for backbone in backbones(encoder):
            backbone.activation_checkpointing_enable({"use_reentrant": False})
    return RankingObjective(
        BiEncoder(encoder, mix, missing_fields=config.missing_fields),
        target=read_target(config.target),
        direction=config.used_direction,
        combine=config.combine,
        temperature=config.temperature,
        learn_temperature=config.learn_temperature,
        recompute=config.mini_batch_size is not None,
    )


class TrainingBatches(Dataset[Batch]):
    """A batch by (epoch, number): the whole relation, and this rank's share of the inputs."""

    def __init__(self, batches: Batches, relations: Relations, inputs: tuple[Inputs, Inputs]) -> None:
        self._batches, self._relations, self._inputs = batches, relations, inputs

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        relation = self._relations.of(self._batches.pairs(*place))
        shares = [
            rows[slice_of_rank(len(rows), rank(), world_size())] for rows in (relation.queries, relation.documents)
        ]
        return {
            "queries": self._inputs[0].of(shares[0]),
            "documents": self._inputs[1].of(shares[1]),
            "relation": relation_tensors(relation),
            "rows": {"queries": torch.from_numpy(relation.queries), "documents": torch.from_numpy(relation.documents)},
        }

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def documents(self) -> Inputs:
        """The inputs of all documents."""
        return self._inputs[1]


class _EpochSampler:
    """(epoch, number) of every batch, one a step, so that a resumed epoch can skip to its place."""

    def __init__(self, batches: int) -> None:
        self._batches, self.epoch = batches, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([(self.epoch, number)] for number in range(self._batches))

    def __len__(self) -> int:
        return self._batches

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class _BatchLoader(DataLoader[Batch]):
    steps: _EpochSampler

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer when an epoch begins."""
        self.steps.set_epoch(epoch)


def _only(batch: list[Batch]) -> Batch:
    return batch[0]


class RankingTrainer(Trainer):  # type: ignore[misc]
    """The Trainer, fed by `TrainingBatches` and evaluated by `opengcl.evaluate` on dev queries."""

    def __init__(
        self,
        objective: RankingObjective,
        args: TrainingArguments,
        dataset: RankedDataset,
        batches: TrainingBatches,
        judged: tuple[RankedDataset, tuple[Inputs, Inputs]],
        limit: Limit,
    ) -> None:
        super().__init__(model=objective, args=args, train_dataset=batches, eval_dataset=batches)
        self._objective, self._ranked, self._limit = objective, dataset, limit
        self._judged, self._inputs = judged
        self._kept = Checkpoints(Path(args.output_dir))
        self.control: TrainerControl

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """One item a step; ranks see the same steps and take their own share inside."""
        steps = _EpochSampler(len(self.train_dataset))
        loader = _BatchLoader(
            self.train_dataset,
            batch_sampler=steps,
            collate_fn=_only,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
        )
        loader.steps = steps
        return loader

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """A step is a whole batch over all ranks."""
        return int(args.per_device_train_batch_size)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """No weight decay on the temperature."""
        return [name for name in super().get_decay_parameter_names(model) if "log_logit_scale" not in name]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], **_: Any) -> Tensor:
        """The batch's loss, which must be finite."""
        rows = inputs.pop("rows")
        loss: Tensor = model(**inputs)["loss"]
        if not bool(torch.isfinite(loss)):
            raise self._not_finite(loss.item(), rows)
        return loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Dev queries of the four splits; ``eval_ndcg@10`` is the mean over the splits."""
        model = self._objective.model
        if self._judged is not self._ranked and _fills_in(
            model
        ):  # else evaluate learns the same from its own documents
            model = model.with_fill_in(_learned_fill_in(model, self._ranked, self.train_dataset.documents))
        evaluation = evaluate(
            model,
            self._judged,
            part="dev",
            metrics=DEV_METRICS,
            depth=100,
            inputs=self._inputs,
            limit=self._limit,
        )
        splits = evaluation.splits()
        metrics = {f"{metric_key_prefix}_{split}_{m}": row[m] for split, row in splits.items() for m in DEV_METRICS}
        for name in DEV_METRICS:
            metrics[f"{metric_key_prefix}_{name}"] = float(np.mean([row[name] for row in splits.values()]))
        metrics["temperature"] = 1 / self._objective.logit_scale
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def take_best_weights(self) -> None:
        """The weights of the best evaluation, where there were evaluations.

        Raises:
            CheckpointError: Its files are not what was written.
        """
        best = self.state.best_global_step
        if best is not None:
            self._kept.check(best)
            checkpoints.load_weights(self._kept.at(best) / checkpoints.WEIGHTS, self._objective)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Instead of the Trainer's, which can be half written, has no hashes, and holds pickles."""
        step = self.state.global_step
        if rank() == 0:
            self._kept.begin(step)
        wait_for_ranks()
        folder = self._kept.unfinished(step)
        checkpoints.save_random_state(folder / checkpoints.random_file(rank()), self.args.device)
        if rank() == 0:
            checkpoints.save_weights(folder / checkpoints.WEIGHTS, self._objective)
            scaler = self.accelerator.scaler
            checkpoints.save_optimiser(folder / checkpoints.OPTIMISER, self.optimizer, self.lr_scheduler, scaler)
            self.state.save_to_json(str(folder / checkpoints.STATE))
        wait_for_ranks()
        if rank() == 0:
            self._kept.finish(step)
            self._kept.prune()
        wait_for_ranks()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoints.load_weights(Path(resume_from_checkpoint) / checkpoints.WEIGHTS, self._objective)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            file = Path(checkpoint) / checkpoints.OPTIMISER
            checkpoints.load_optimiser(file, self.optimizer, self.lr_scheduler, self.accelerator.scaler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """With the optimiser."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        file = Path(checkpoint) / checkpoints.random_file(rank())
        if file.is_file():
            checkpoints.load_random_state(file, self.args.device)
        else:
            logger.warning("%s: missing, as fewer processes wrote the checkpoint; dropout here is drawn anew", file)

    def _not_finite(self, loss: float, rows: dict[str, Tensor]) -> TrainError:
        step = self.state.global_step + 1
        ids = {
            "queries": self._ranked.queries.ids(rows["queries"].cpu().numpy()),
            "documents": self._ranked.documents.ids(rows["documents"].cpu().numpy()),
        }
        file = Path(self.args.output_dir).parent / "non_finite_batch.json"
        if rank() == 0:
            file.write_text(json.dumps({"step": step, "loss": str(loss), **ids}, indent=1) + "\n", encoding="utf-8")
        named = " and ".join(f"{len(names)} {side} (first: {names[0]})" for side, names in ids.items())
        return TrainError(
            f"the loss of step {step} is {loss}; its batch of {named} is listed in {file.name}. "
            "Try a lower learning rate, or precision fp32."
        )


class _Bar(ProgressCallback):  # type: ignore[misc]
    """One bar with loss, dev NDCG@10 and time left, instead of a printed dict a log entry."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.shown: dict[str, str] = {}
        if state.is_world_process_zero:
            self.training_bar = progress_bar(
                total=state.max_steps, done=state.global_step, desc="training", unit="step", show=True
            )
        self.current_step = state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        names = {"loss": "loss", BEST: "dev ndcg@10"}
        self.shown |= {shown: f"{float(logs[name]):.3f}" for name, shown in names.items() if name in (logs or {})}
        if self.training_bar is not None:
            self.training_bar.note(self.shown)


class _Intervals(TrainerCallback):  # type: ignore[misc]
    """Evaluates and saves at the last step too; logs wherever it saves, as the loss since then is in no checkpoint."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"
        control.should_log |= control.should_save


def _check_unseen(dataset: RankedDataset, judged: RankedDataset) -> None:
    """No query or document may be novel to the evaluation and known from training."""
    pairs = dataset.splits.training_pairs()
    for what, ours, theirs, rows, seen in (
        ("query", dataset.queries, judged.queries, dataset.qrels.query[pairs], judged.splits.query_seen),
        ("document", dataset.documents, judged.documents, dataset.qrels.document[pairs], judged.splits.document_seen),
    ):
        novel = set(theirs.ids(np.flatnonzero(~seen)))
        trained = ours.ids(np.unique(rows))
        known = [name for name in trained if name in novel]
        if known:
            raise TrainError(
                f"{what} {known[0]!r} and {len(known) - 1:,} more are trained on, but novel in {judged.schema.name} "
                "(evaluation_data); mark them as seen there"
            )


def _inputs(model: BiEncoder, dataset: RankedDataset, config: TrainConfig) -> tuple[Inputs, Inputs]:
    options: dict[str, Any] = {"strict": config.strict, "max_unreadable": config.max_unreadable}
    queries = inputs_for(model, dataset.queries, "query", **options)
    return queries, inputs_for(model, dataset.documents, "document", **options)


def _check_skipped(dataset: RankedDataset, limit: float) -> None:
    """Few rows may have been skipped or changed when the data set was opened (``strict: false``).

    Those that only lack every field are left out like others that a model cannot read, whatever their share.
    """
    for records in (dataset.queries, dataset.documents):
        for problem in dataset.problems:
            share = problem.count / (len(records) + problem.count)
            if problem.file == records.file and problem.kind != NO_FIELD and share > limit:
                raise TrainError(
                    f"{dataset.path}: {problem}. Found: a share of {share:.3g}; allowed: {limit:g} (max_unreadable)"
                )


def _tell_lost_scores(dataset: RankedDataset) -> None:
    """Warns where most scores are below 0, which makes negatives of these pairs."""
    if lost := not_relevant_note(len(dataset.qrels), dataset.qrels.not_relevant()[1]):
        logger.warning("%s: %s; import again with --score-zero", dataset.path, lost)


def _claim(
    out: Path,
    config: TrainConfig,
    dataset: RankedDataset,
    judged: RankedDataset,
    prompts: dict[Side, str],
    resume: bool,
    held: contextlib.ExitStack,
) -> None:
    """The run folder is this run's, and no other process's until ``held`` is closed."""
    data = {"data": dataset} if judged is dataset else {"data": dataset, "evaluation_data": judged}
    if resume:
        run_identity.check(out, config, data, prompts)
        if (out / ENDED).is_file():
            logger.warning("%s: this run has ended; nothing to resume", out)
            return
    held.enter_context(run_identity.alone_in(out))
    if not resume:
        run_identity.begin(out, config, data, prompts)
        return
    run_identity.tidy(out)
    kept = Checkpoints(out / _CHECKPOINTS)
    kept.clear()
    newest = _newest_checkpoint(out)
    if newest is not None:
        kept.check(newest)


@contextlib.contextmanager
def _told_what_the_disk_said(out: Path) -> Iterator[None]:
    """A full or read-only disk is told with what is kept and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in _DISK:
            raise
        kept = Checkpoints(out / _CHECKPOINTS)
        with contextlib.suppress(OSError):
            kept.clear()
        there = f"{kept.at(kept.steps()[-1]).name} is whole" if kept.steps() else "there is no checkpoint yet"
        raise TrainError(f"{out}: cannot be written: {error}; {there}. Make room or writable, and resume") from error


def _newest_checkpoint(out: Path) -> int | None:
    steps = Checkpoints(out / _CHECKPOINTS).steps()
    return steps[-1] if steps else None


def _fill_caches(pair: tuple[Inputs, Inputs], config: TrainConfig, cache: Path, progress: bool) -> None:
    for name, inputs in zip(("queries", "documents"), pair, strict=True):
        if config.mini_batch_size is not None:
            inputs.chunk_rows = config.mini_batch_size
        inputs.cache(
            cache / name, image_cache_bytes=config.image_cache_gb * 1e9, workers=config.workers, progress=progress
        )


def _trainer(
    config: TrainConfig,
    dataset: RankedDataset,
    objective: RankingObjective,
    inputs: tuple[Inputs, Inputs],
    judged: tuple[RankedDataset, tuple[Inputs, Inputs]],
    resumed: int | None,
    progress: bool,
) -> RankingTrainer:
    batches = make_batches(config, dataset, _usable_pairs(dataset, inputs))
    relations = Relations(dataset, weight_function(config.weights), config.scaling)
    steps = math.ceil(config.epochs * len(batches))
    fed = TrainingBatches(batches, relations, inputs)
    limit = Limit(config.dev_queries, config.dev_documents, config.seed)
    trainer = RankingTrainer(objective, _arguments(config, steps), dataset, fed, judged, limit)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(_Intervals())
    if progress:
        trainer.add_callback(_Bar())
    if rank() == 0:
        from torch.utils.tensorboard import SummaryWriter

        folder, lost_from = Path(config.out) / "tensorboard", (resumed or 0) + 1
        writer = SummaryWriter(str(folder), purge_step=lost_from if folder.exists() else None)
        trainer.add_callback(TensorBoardCallback(writer))
    return trainer


def _usable_pairs(dataset: RankedDataset, inputs: tuple[Inputs, Inputs]) -> Pairs:
    """Training pairs whose query and document can both be read."""
    pairs = dataset.splits.training_pairs()
    kept = inputs[0].usable(dataset.qrels.query[pairs]) & inputs[1].usable(dataset.qrels.document[pairs])
    if not kept.all():
        logger.warning("%d of %d training pairs are left out, as one side cannot be read", (~kept).sum(), len(kept))
    return pairs[kept]


def make_batches(config: TrainConfig, dataset: RankedDataset, pairs: Pairs | None = None) -> Batches:
    """The batches a config asks for, over pairs of seen queries and seen documents, or those given here."""
    pairs = dataset.splits.training_pairs() if pairs is None else pairs
    if config.used_queries_per_doc:
        read = config.fields or dataset.documents.fields
        pictures_alone = all(dataset.documents.fields[field] == "image" for field in read)
        return DocumentBatches(
            pairs,
            dataset.qrels.document[pairs],
            config.batch_size,
            config.used_queries_per_doc,
            config.seed,
            config.used_sampling_exponents(pictures_alone=pictures_alone),
            config.epochs,
        )
    if config.docs_per_query is not None:
        queries = dataset.qrels.query[pairs]
        return GroupedBatches(pairs, queries, config.batch_size, config.docs_per_query, config.seed)
    return ShuffledBatches(pairs, config.batch_size, config.seed)


def _arguments(config: TrainConfig, steps: int) -> TrainingArguments:
    interval = max(1, math.ceil(steps / (config.evaluations or 10)))
    evaluated = config.evaluations > 0
    return TrainingArguments(
        output_dir=str(Path(config.out) / _CHECKPOINTS),
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.peak_learning_rate,
        lr_scheduler_type={"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[config.schedule],
        warmup_steps=round(config.warmup * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        eval_strategy="steps" if evaluated else "no",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        metric_for_best_model=BEST if evaluated else None,
        greater_is_better=True if evaluated else None,
        logging_steps=max(1, steps // 200),
        logging_nan_inf_filter=False,
        dataloader_num_workers=config.workers,
        ddp_find_unused_parameters=True,
        use_cpu=config.device == "cpu",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def _finished_model(
    objective: RankingObjective, config: TrainConfig, dataset: RankedDataset, trainer: RankingTrainer, seconds: float
) -> BiEncoder:
    if config.lora_rank is not None:
        merge_adapters(objective.model.encoder)
    model = objective.model
    model.logit_scale = objective.logit_scale
    settings = {name: value for name, value in vars(config).items() if name not in ("data", "out")}
    model.provenance = {
        "opengcl": opengcl.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "data": {"name": dataset.schema.name, "fingerprint": dataset.fingerprint},
        "settings": settings,
        "prompts": model.prompts,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "training_seconds": round(seconds, 1),
        "ranks": world_size(),
        "threads": torch.get_num_threads(),
    }
    return model


def _fills_in(model: BiEncoder) -> bool:
    return model.missing_fields == "fill_in" and len(model.mix.document) > 1


def _learned_fill_in(model: BiEncoder, dataset: RankedDataset, documents: Inputs) -> FillIn:
    return fit_fill_in(model, dataset.documents, np.flatnonzero(dataset.splits.document_seen), inputs=documents)


def _write_results(
    out: Path, model: BiEncoder, dataset: RankedDataset, evaluation: Evaluation, history: list[dict[str, Any]]
) -> None:
    """Everything but the report; ``metrics.json`` comes last and says that the run has ended."""
    partial = out / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save(partial)
    shutil.rmtree(out / "model", ignore_errors=True)
    put(partial, out / "model")
    put_text(out / "history.json", json.dumps(history, indent=1) + "\n")
    listed, per_query, metrics = (out / f".{name}.partial" for name in ("results.parquet", "per_query.parquet", ENDED))
    pq.write_table(evaluation.results, listed)
    evaluation.write(metrics, per_query=per_query, provenance=model.provenance)
    put(listed, out / "results.parquet")
    put(per_query, out / "per_query.parquet")
    if evaluation.by_fields is not None:
        put(by_fields_path(per_query), by_fields_path(out / "per_query.parquet"))
    with contextlib.suppress(OSError):
        (out / "cache").rmdir()
    put(metrics, out / ENDED)
    logger.info("%s: evaluated on %s", out, dataset.schema.name)
