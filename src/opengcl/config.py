"""What a training run is made of: one flat list of settings, written to and read from ``config.yaml``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from opengcl.data.problems import shown
from opengcl.fields import COMBINES, MISSING, Combine, Missing, check_fields, parse_fields
from opengcl.loss import DIRECTIONS, TARGETS, Direction
from opengcl.plain_yaml import Key, YamlError, advice, read_yaml, write_yaml
from opengcl.weights import SCALINGS, Scaling, weight_function

Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["cosine", "linear", "constant"]
FinalQueries = Literal["test", "dev"]
_Read = TypeVar("_Read")
_WIDEST = 65_536.0  # of a vector
_LARGEST = float(2**40)  # beyond any machine, and finite
_LISTS = ("full_row", "ranked")  # targets that normalise a query's documents, and so can do without the other direction


class ConfigError(ValueError):
    """A setting that cannot be; the message names it, what was found and what is allowed.

    Attributes:
        key: The setting, and what is inside it.
    """

    def __init__(self, message: str, *, key: Key = ()) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; ``config.yaml`` of a run folder holds all of them and runs again."""

    data: str
    """Folder of the ranked data set."""
    model: str
    """``static``, ``tiny``, ``text=MODEL,image=MODEL``, or a sentence-transformers model (folder or hub name)."""
    out: str
    """Run folder."""
    strict: bool = True
    """Whether bad rows of the data set are an error; else they are skipped, counted and reported."""
    dim: int | None = None
    """Width of the vectors, for ``static``, ``tiny`` (128 when not given) and two towers (256)."""
    fields: dict[str, float] | None = None
    """Document field -> weight; all fields that the model reads, equally, when not given."""
    query_fields: dict[str, float] | None = None
    """Query field -> weight."""
    query_prompt: str | None = None
    """What goes before each query, saved with the model; the model's own prompt when not given, none when empty."""
    document_prompt: str | None = None
    """What goes before each text of a document, likewise; never before images."""
    combine: Combine = "mean"
    """How fields enter the loss: ``mean`` (fused vectors), ``pairwise`` (field by field), ``both``."""
    missing_fields: Missing = "fill_in"
    """A field that a document lacks: ``fill_in`` what the fields it has predict, or ``leave_out`` of the mean."""
    weights: str = "exponential"
    """Score -> weight function, as ``opengcl.weights.weight_function`` reads it."""
    scaling: Scaling = "dataset"
    """Scores are brought into [1, 100] per ``dataset`` or per ``query``."""
    target: str = "ranked"
    """Form of the loss, see ``opengcl.gcl_loss``, or the import path of your own, ``my_shop.losses:name``.

    ``gcl_loss`` and `GCLLoss` have ``diagonal``, which needs a weight a pair alone; here every judged pair is known.
    """
    direction: Direction | None = None
    """Softmax over documents (``query``), queries (``document``), ``both``; see `used_direction`."""
    temperature: float = 0.07
    """Where the temperature starts, in [0.01, 1]."""
    learn_temperature: bool = True
    """Whether the temperature is trained."""
    epochs: float = 10
    """Passes over the training pairs, > 0."""
    batch_size: int = 1024
    """Judged pairs of a batch, over all ranks, >= 2."""
    docs_per_query: int | None = None
    """Documents of a query that come together."""
    queries_per_doc: int | None = None
    """Queries that come with each document, ``batch_size // queries_per_doc`` documents a batch; 0: single pairs.

    When not given: 4 for ``full_row`` and ``ranked`` without ``docs_per_query``, else 0.
    """
    sampling_exponent: float | None = None
    """With ``queries_per_doc``: documents are drawn in proportion to the number of their training pairs to this power.

    0: evenly. 1: as often as by pairs. In [0, 2]. When neither this nor ``final_sampling_exponent`` is given: from 1.5
    to 0 where documents are read by pictures alone, else 0.
    """
    final_sampling_exponent: float | None = None
    """Where ``sampling_exponent`` ends, on a straight line over the run; where it starts, when not given. In [0, 2]."""
    learning_rate: float | None = None
    """Peak learning rate; 5e-3 for ``static``, 1e-3 for ``tiny``, 2e-5 otherwise, when not given."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises, in [0, 1)."""
    weight_decay: float = 0.01
    """AdamW's weight decay, >= 0; biases, norms and the temperature have none."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 turns clipping off."""
    seed: int = 0
    """Of the weights, the order of batches, and dropout."""
    precision: Precision = "fp32"
    """Arithmetic of the encoder; the loss always accumulates in float32."""
    mini_batch_size: int | None = None
    """Rows encoded at a time and recomputed in the backward pass, for batches beyond memory (GradCache)."""
    gradient_checkpointing: bool = False
    """Recompute activations inside the encoder, layer by layer."""
    lora_rank: int | None = None
    """Train low-rank adapters of this rank instead of all weights; merged into the saved model."""
    evaluations: int = 10
    """Evaluations on dev queries over the run; a checkpoint is written at each, and the best is kept. 0: none."""
    dev_queries: int = 2000
    """Dev queries of each split in an evaluation, at most; drawn by seed."""
    dev_documents: int = 50_000
    """Documents of each split in an evaluation on dev queries, at most: judged ones, and others drawn by seed."""
    evaluation_data: str | None = None
    """Ranked data set to evaluate on, such as judgements beside clicks; ``data`` when not given."""
    final_queries: FinalQueries = "test"
    """Queries that the finished model is evaluated on; ``dev`` while settings are searched."""
    image_cache_gb: float = 4.0
    """Pictures are decoded once and kept for later runs, at most so many GB over all data sets. 0: nothing is kept."""
    max_unreadable: float = 0.01
    """Share of the rows, or of a field's pictures, that may be unusable; above it the run stops."""
    workers: int = 0
    """Processes that prepare batches beside the training."""
    device: str | None = None
    """``cpu`` or ``cuda``; the best there is when not given."""

    def __post_init__(self) -> None:
        _check_types(self)
        choices: tuple[tuple[str, tuple[str | None, ...]], ...] = (
            ("combine", COMBINES),
            ("missing_fields", MISSING),
            ("scaling", SCALINGS),
            ("direction", (None, *DIRECTIONS)),
            ("precision", get_args(Precision)),
            ("schedule", get_args(Schedule)),
            ("final_queries", get_args(FinalQueries)),
            ("device", (None, "cpu", "cuda")),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                named = ", ".join(choice for choice in allowed if choice is not None)
                raise ConfigError(f"{name}: found {shown(getattr(self, name))}; allowed: {named}", key=(name,))
        ranges: tuple[tuple[str, float, float], ...] = (
            ("temperature", 0.01, 1),
            ("epochs", 1e-9, _LARGEST),
            ("batch_size", 2, _LARGEST),
            ("docs_per_query", 1, self.batch_size),
            ("queries_per_doc", 0, self.batch_size),
            ("sampling_exponent", 0, 2),
            ("final_sampling_exponent", 0, 2),
            ("learning_rate", 1e-12, _LARGEST),
            ("warmup", 0, 0.999),
            ("weight_decay", 0, _LARGEST),
            ("max_grad_norm", 0, _LARGEST),
            ("seed", 0, 2**32 - 1),
            ("mini_batch_size", 1, _LARGEST),
            ("lora_rank", 1, _WIDEST),
            ("evaluations", 0, _LARGEST),
            ("dev_queries", 1, _LARGEST),
            ("dev_documents", 1, _LARGEST),
            ("image_cache_gb", 0, _LARGEST),
            ("max_unreadable", 0, 1),
            ("workers", 0, 1024),
            ("dim", 1, _WIDEST),
        )
        for name, low, high in ranges:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                limits = f"from {low:g}" if high == _LARGEST else f"from {low:g} to {high:g}"
                raise ConfigError(f"{name}: found {shown(value)}; allowed: {limits}", key=(name,))
        for name in ("fields", "query_fields"):
            if getattr(self, name) is not None:
                _named(name, check_fields, getattr(self, name))
        _named("weights", weight_function, self.weights)
        if self.docs_per_query and self.queries_per_doc:
            raise ConfigError("docs_per_query and queries_per_doc are two ways to make batches; give one")
        for name in ("sampling_exponent", "final_sampling_exponent"):
            if getattr(self, name) and not self.used_queries_per_doc:
                value = f"{getattr(self, name):g}"
                raise ConfigError(f"{name} is {value}, but no documents are drawn; give queries_per_doc too")
        if self.target not in TARGETS and ":" not in self.target:
            allowed_targets = f"{', '.join(TARGETS)}, or package.module:name"
            raise ConfigError(f"target: found {shown(self.target)}; allowed: {allowed_targets}", key=("target",))

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate that applies."""
        if self.learning_rate is not None:
            return self.learning_rate
        return {"static": 5e-3, "tiny": 1e-3}.get(self.model, 2e-5)

    @property
    def used_direction(self) -> Direction:
        """The direction that applies: when not given, ``query`` for ``full_row`` and ``ranked``, else ``both``."""
        if self.direction is not None:
            return self.direction
        return "query" if self.target in _LISTS else "both"

    @property
    def used_queries_per_doc(self) -> int:
        """The queries that come with each document; 0 where pairs are drawn one by one or query by query."""
        if self.queries_per_doc is not None:
            return self.queries_per_doc
        return min(4, self.batch_size) if self.target in _LISTS and not self.docs_per_query else 0

    def used_sampling_exponents(self, *, pictures_alone: bool) -> tuple[float, float]:
        """The powers at the start and at the end of the run, by whether documents are read by pictures alone."""
        if self.sampling_exponent is None and self.final_sampling_exponent is None:
            return (1.5, 0.0) if pictures_alone else (0.0, 0.0)
        first = self.sampling_exponent or 0.0
        return first, first if self.final_sampling_exponent is None else self.final_sampling_exponent

    def to_yaml(self) -> str:
        """Every setting, in the order above."""
        return write_yaml(dataclasses.asdict(self))

    def write(self, file: Path) -> None:
        """Write `to_yaml` to a file."""
        file.write_text(self.to_yaml(), encoding="utf-8")


def load_config(
    file: Path | None, settings: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Settings of a YAML file (optional), overridden by those given here.

    ``fields`` and ``query_fields`` may be written as mappings or as ``image=0.9,title=0.1``.

    Args:
        file: The file, of the form that `plain_yaml.parse_yaml` reads.
        settings: Settings that win over the file's, where they are not None.
        changes: Settings that win over both, None included.

    Raises:
        ConfigError: Not YAML, an unknown setting, one of the wrong type or out of range, or a required one missing;
            the message names the file and the line where the value comes from there.
    """
    given = {**{name: value for name, value in settings.items() if value is not None}, **(changes or {})}
    if file is None:
        return _config(given)
    try:
        read = read_yaml(file, texts=TEXT_SETTINGS)
        content = read.mapping()
    except YamlError as error:
        raise ConfigError(str(error)) from error
    try:
        return _config({**content, **given})
    except ConfigError as error:
        if not error.key or error.key[0] in given:
            raise
        raise ConfigError(f"{read.place(error.key)}: {error}", key=error.key) from error


def _config(merged: dict[str, Any]) -> TrainConfig:
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown := sorted(set(merged) - known):
        message = f"unknown setting {shown(unknown[0])}; the settings are {', '.join(sorted(known))}"
        raise ConfigError(message, key=(unknown[0],))
    if missing := [name for name in ("data", "model", "out") if merged.get(name) is None]:
        told = f"give it in the config file, or as --{missing[0]}"
        raise ConfigError(f"the setting {missing[0]!r} is missing; {told}")
    for name in ("fields", "query_fields"):
        if isinstance(merged.get(name), str):
            merged[name] = _named(name, parse_fields, merged[name])
    return TrainConfig(**merged)


def _named(name: str, read: Callable[[Any], _Read], value: object) -> _Read:
    """What `read` makes of a setting's value; its errors name the setting."""
    try:
        return read(value)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}", key=(name,)) from error


def _check_types(config: TrainConfig) -> None:
    for name, hint in get_type_hints(TrainConfig).items():
        value = getattr(config, name)
        allowed = _allowed_types(hint)
        if not any(_is_a(kind, value) for kind in allowed):
            kinds = " or ".join(_TYPE_NAMES[kind] for kind in allowed)
            raise ConfigError(f"{name}: found {shown(value)}; allowed: {kinds}{advice(value)}", key=(name,))
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}: found {value}; allowed: a finite number", key=(name,))


_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a mapping of fields to numbers",
    type(None): "null",
}


def _is_a(kind: type, value: object) -> bool:
    if kind is dict and type(value) is dict:
        return all(type(name) is str for name in value)
    return type(value) is kind or (kind is float and type(value) is int)  # YAML writes 10 for 10.0


def _allowed_types(hint: Any) -> list[type]:
    """The plain types of a setting's hint: ``Literal`` is written as a string, ``dict[str, float]`` as a mapping."""
    origin = get_origin(hint)
    if origin is Literal:
        return [str]
    if origin is dict or isinstance(hint, type):
        return [origin or hint]
    return [kind for option in get_args(hint) for kind in _allowed_types(option)]


TEXT_SETTINGS = tuple(name for name, hint in get_type_hints(TrainConfig).items() if str in _allowed_types(hint))
"""Settings that want a text, whatever it looks like: ``data: 2024`` is a folder."""
