"""What ``opengcl data curate`` is told: one YAML file, checked before anything is sent."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from opengcl.curate.errors import CurateError
from opengcl.data.problems import shown
from opengcl.plain_yaml import YamlError, YamlFile, advice, read_yaml

try:
    from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
    from pydantic_core import ErrorDetails
except ImportError as missing:  # pragma: no cover - in an environment without the extra
    raise CurateError("curating needs pydantic and openai: pip install 'opengcl[curate]'") from missing

Positive = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0, le=100)]

_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
VARIABLE = re.compile(r"\$\{(\w+)\}")
"""How a secret is named where it goes: ``${NAME}``, an environment variable."""


def _address(url: str) -> str:
    """An http or https address without credentials."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("allowed: an address that starts with https:// or http://")
    if "@" in parts.netloc:
        raise ValueError("allowed: an address without user and password; keys come from environment variables")
    if "{" in parts.netloc:
        raise ValueError("allowed: {query}, {count} and ${NAME} behind the host only")
    return url


Address = Annotated[str, AfterValidator(_address)]


class _Section(BaseModel):
    """A part of the config: unknown keys are errors, and "1" is not 1."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=False)


class ServiceOptions(_Section):
    """How a paid service is asked."""

    timeout: Annotated[float, Field(gt=0)] = 120
    """Seconds for a whole reply."""
    requests_per_minute: Annotated[float, Field(gt=0)] = 60
    """Requests started a minute, over all threads."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    """Requests under way at a time."""
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    """Further attempts after no answer or a status that may pass (408, 409, 425, 429, 5xx)."""
    longest_wait: Annotated[float, Field(ge=0, le=3600)] = 60
    """Seconds between two attempts, at most, whatever a Retry-After header says."""
    tries: Annotated[int, Field(ge=1, le=100)] = 3
    """Replies asked for in all where one came and cannot be used; each is paid for."""


class LLMOptions(ServiceOptions):
    """A model behind the chat completions protocol."""

    model: str
    """Its name at the service."""
    base_url: Address = "https://api.openai.com/v1"
    """Any compatible server."""
    key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with the key; null for a server without keys."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    """Not sent where null."""
    max_tokens: Positive = 2000
    """Tokens of a reply, at most."""
    limit_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """What the server calls that limit."""
    reply_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    """What the server is told about the form of the reply; it is checked here in any case."""
    send_seed: bool = True
    """Whether a seed is sent with each request."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request's body, such as reasoning_effort."""
    price_input: Price | None = None
    """Price of a million tokens sent."""
    price_output: Price | None = None
    """Price of a million tokens received."""


class Style(_Section):
    """One way to ask, for variety."""

    name: str
    instruction: str
    """What the model is told."""


DEFAULT_STYLES = (
    Style(name="kind", instruction="one to three words that name a kind of product, nothing more"),
    Style(name="attributes", instruction="a kind of product with one or two attributes: colour, material, size, cut"),
    Style(name="purpose", instruction="for an occasion, a person or a use, in three to seven words"),
    Style(name="problem", instruction="a need or a problem in the shopper's own words, without naming the product"),
    Style(name="exact", instruction="very specific, four to ten words, as from somebody who knows what they want"),
    Style(name="careless", instruction="typed in haste: lower case, abbreviations, now and then a spelling mistake"),
)


class QueryOptions(_Section):
    """Where queries come from: exactly one of ``categories``, ``catalogue`` and ``file``."""

    categories: str | None = None
    """Text file with a category a line, or a table; the model writes queries for each."""
    catalogue: str | None = None
    """Table of products (.parquet, .csv, .jsonl); the model writes queries for samples of them."""
    file: str | None = None
    """Text file with a query a line, or a table: real queries, no model."""
    column: str | None = None
    """Column of a table of categories or queries."""
    columns: list[str] | None = None
    """Columns of the catalogue that the model sees; all by default."""
    count: Positive = 100
    """Queries wanted; of a file, the first ones."""
    per_request: Annotated[int, Field(ge=1, le=100)] = 10
    """Queries asked for at a time."""
    products_per_request: Annotated[int, Field(ge=1, le=50)] = 5
    """Products of the catalogue shown at a time."""
    language: str = "English"
    """Of the queries; as the model is told."""
    styles: Annotated[list[Style], Field(min_length=1)] = list(DEFAULT_STYLES)
    """Taken in turn."""
    examples: list[str] = Field(default_factory=list)
    """Real queries, some of which are shown with each request."""
    examples_per_request: Annotated[int, Field(ge=0, le=50)] = 5
    prompt: str | None = None
    """File to use instead of our prompt."""
    longest: Annotated[int, Field(ge=1, le=1000)] = 120
    """Characters of a query, at most."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of character trigrams from which on the later of two queries is dropped."""
    rounds: Annotated[int, Field(ge=1, le=100)] = 5
    """Times that missing queries are asked for, at most."""

    @model_validator(mode="after")
    def _one_source(self) -> QueryOptions:
        given = [name for name in ("categories", "catalogue", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"give exactly one of categories, catalogue, file; found {found}")
        return self

    @property
    def generated(self) -> bool:
        """Whether a model writes the queries."""
        return self.file is None


class SearchOptions(ServiceOptions):
    """What every shopping search has."""

    timeout: Annotated[float, Field(gt=0)] = 60
    results: Annotated[int, Field(ge=1, le=1000)] = 40
    """Results of a query that count, at most."""
    price: Price | None = None
    """Price of a request."""


class SerpApiOptions(SearchOptions):
    """SerpApi's Google Shopping engine."""

    source: Literal["serpapi"]
    base_url: Address = "https://serpapi.com/search"
    key_env: str = "SERPAPI_API_KEY"
    engine: str = "google_shopping"
    parameters: dict[str, str] = Field(default_factory=dict)
    """Further parameters: gl (country), hl (language), location, google_domain, direct_link."""
    pages: Annotated[int, Field(ge=1, le=25)] = 1
    """Pages a query, at most, of about 40 results; each is a request."""

    @model_validator(mode="after")
    def _no_key_in_the_open(self) -> SerpApiOptions:
        if ours := sorted({"api_key", "engine", "q", "start"} & set(self.parameters)):
            raise ValueError(f"parameters: found {ours[0]}, which is set for you; the key comes from {self.key_env}")
        return self


class FieldPaths(_Section):
    """Where a result of a JSON reply has what: dotted paths, with numbers for places in lists."""

    title: str
    product_id: str | None = None
    url: str | None = None
    source: str | None = None
    price: str | None = None
    rating: str | None = None
    reviews: str | None = None
    image: str | None = None


class HttpOptions(SearchOptions):
    """Any search that answers with JSON: a shop's own, Elasticsearch, Vespa."""

    source: Literal["http"]
    url: Address
    """With ``{query}`` and ``{count}``, which are encoded for an address, and ``${NAME}`` for secrets."""
    method: Literal["GET", "POST"] = "GET"
    body: dict[str, Any] | None = None
    """Sent as JSON; ``{query}`` and ``{count}`` inside its texts are replaced, and ``"{count}"`` alone is a number."""
    headers: dict[str, str] = Field(default_factory=dict)
    """With ``${NAME}`` for secrets from the environment."""
    path: str
    """Where the list of results is, best first; "" where the reply is the list."""
    fields: FieldPaths

    @model_validator(mode="after")
    def _no_secrets_in_the_open(self) -> HttpOptions:
        for name, value in self.headers.items():
            if _SECRET_HEADER.search(name) and not VARIABLE.search(value):
                raise ValueError(f"the header {name} must take its secret from the environment: write ${{NAME}}")
        if self.body is not None and self.method == "GET":
            raise ValueError("a body needs method: POST")
        return self


class PositionOptions(_Section):
    """Scores from places in the result list."""

    weight: Weight = 1.0
    form: Literal["linear", "reciprocal"] = "linear"
    """``linear``: 100 for the first place down to 1 for the last; ``reciprocal``: 100 / place."""
    depth: Annotated[int, Field(ge=2)] = 100
    """The place that ``linear`` gives 1; with 100, the score is 101 - place, as in the paper."""


DEFAULT_LABELS = {"exact": 100.0, "substitute": 60.0, "complement": 20.0, "irrelevant": 0.0}


class JudgeOptions(_Section):
    """Scores from labels that a model gives."""

    weight: Weight = 1.0
    prompt: str | None = None
    """File to use instead of our rubric."""
    labels: Annotated[dict[str, Score], Field(min_length=2)] = Field(default_factory=lambda: dict(DEFAULT_LABELS))
    """Label -> score."""
    per_request: Annotated[int, Field(ge=1, le=100)] = 10
    """Products judged at a time."""
    top: Positive | None = None
    """Results of a query that are judged; all by default."""
    llm: LLMOptions | None = None
    """Another model than the one that writes queries; that one judges at temperature 0."""


class TeacherOptions(_Section):
    """Scores from a cross-encoder."""

    weight: Weight = 1.0
    model: str
    """Folder or hub name."""
    scale: Literal["sigmoid", "query"] = "sigmoid"
    """``sigmoid``: 100 times the sigmoid of its output; ``query``: from a query's lowest, 1, to its highest, 100."""
    top: Positive | None = None
    batch_size: Positive = 32
    max_length: Positive | None = 256
    """Tokens of a pair."""
    device: str | None = None


class ScoreOptions(_Section):
    """Which sources of scores there are; each pair's score is their weighted mean."""

    positions: PositionOptions | None = Field(default_factory=PositionOptions)
    judge: JudgeOptions | None = None
    teacher: TeacherOptions | None = None

    @model_validator(mode="after")
    def _some_weight(self) -> ScoreOptions:
        if not any(source.weight for source in (self.positions, self.judge, self.teacher) if source):
            raise ValueError("no source has a weight; give positions, judge or teacher one above 0")
        return self


class PictureOptions(_Section):
    """How products' pictures are fetched."""

    fetch: bool = True
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    timeout: Annotated[float, Field(gt=0)] = 20
    retries: Annotated[int, Field(ge=0, le=20)] = 2
    image_size: Positive | None = 384
    """Pictures are kept with this many pixels on the longer side, at most; as they are where null."""
    allow_private: bool = False
    """Whether addresses in one's own network may be asked."""


class BudgetOptions(_Section):
    """Limits over all runs in a work folder; they are never exceeded."""

    requests: Annotated[int, Field(ge=0)] = 1000
    """Paid requests, attempts that failed included."""
    cost: Price | None = None
    """In the currency of the prices."""


class CurateConfig(_Section):
    """All settings of ``opengcl data curate``."""

    out: str
    """Folder of the data set to make."""
    work: str | None = None
    """Folder for replies, pictures and rejects; ``<out>.work`` by default."""
    name: str = "curated"
    """The data set's name."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of everything drawn here, and what models are sent as seed."""
    queries: QueryOptions
    llm: LLMOptions | None = None
    search: Annotated[SerpApiOptions | HttpOptions, Field(discriminator="source")]
    scores: ScoreOptions = Field(default_factory=ScoreOptions)
    pictures: PictureOptions = Field(default_factory=PictureOptions)
    budget: BudgetOptions = Field(default_factory=BudgetOptions)
    failures: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of a stage's requests that may fail for good without ending the work."""

    @model_validator(mode="after")
    def _whole(self) -> CurateConfig:
        judge, positions = self.scores.judge, self.scores.positions
        if positions and positions.form == "linear" and self.search.results > positions.depth:
            raise ValueError(
                f"search.results is {self.search.results}; allowed: up to scores.positions.depth, {positions.depth}"
            )
        if self.llm is None and (self.queries.generated or (judge and judge.llm is None)):
            raise ValueError("llm is missing; the queries or the judge need a model")
        if self.budget.cost is not None:
            for name, price in self._prices().items():
                if price is None:
                    raise ValueError(f"budget.cost needs {name}; give the price, 0 if it is free")
        return self

    def _prices(self) -> dict[str, float | None]:
        models = {"llm": self.writer_llm, "scores.judge.llm": self.judge_llm}
        prices = {f"{place}.{name}": getattr(one, name) for place, one in models.items() if one for name in _PRICES}
        return {**prices, "search.price": self.search.price}

    @property
    def writer_llm(self) -> LLMOptions | None:
        """The model that writes queries, if one does."""
        return self.llm if self.queries.generated else None

    @property
    def judge_llm(self) -> LLMOptions | None:
        """The model that judges, if one does: where it is the one that writes, without the chance of a temperature."""
        if self.scores.judge is None or self.scores.judge.llm or self.llm is None:
            return self.scores.judge.llm if self.scores.judge else None
        return self.llm if self.llm.temperature is None else self.llm.model_copy(update={"temperature": 0.0})

    @property
    def work_folder(self) -> Path:
        """Where the work is kept."""
        return Path(self.work if self.work is not None else f"{self.out}.work")


_PRICES = ("price_input", "price_output")
_SOURCES = {"queries.categories", "queries.catalogue", "queries.file"}


def load_config(file: Path | None, changes: Mapping[str, Any]) -> CurateConfig:
    """Settings of a YAML file, overridden by ``changes``.

    Args:
        file: The file; None for none.
        changes: Dotted name -> value, such as ``{"search.pages": 2}``. Another source of queries
            takes the place of the file's.

    Raises:
        CurateError: Naming the setting, what was found, and what is allowed.
    """
    read = _read(file) if file is not None else None
    content = {} if read is None else read.mapping()
    if _SOURCES & set(changes) and isinstance(content.get("queries"), dict):
        # The file's own source gives way.
        content["queries"] = {
            name: one for name, one in content["queries"].items() if f"queries.{name}" not in _SOURCES
        }
    for name, value in changes.items():
        _put(content, name, value)
    try:
        return CurateConfig.model_validate(content)
    except ValidationError as error:
        raise CurateError(explained(error, read, changes)) from None


def explained(error: ValidationError, read: YamlFile | None = None, changes: Collection[str] = ()) -> str:
    """The first problems that pydantic found, in one line: where, what was found, what is allowed.

    Args:
        error: The problems.
        read: The file that the values come from, to name its lines.
        changes: Dotted names of values that come from elsewhere.
    """
    told = []
    for one in error.errors()[:3]:
        place = ".".join(str(part) for part in one["loc"])
        found = "" if one["type"] in ("missing", "value_error") else f" (found {shown(one['input'])})"
        problem = f"{one['msg'].removeprefix('Value error, ')}{found}"
        changed = any(place == name or place.startswith(f"{name}.") for name in changes)
        where = "" if read is None or changed else read.place(one["loc"])
        told.append(": ".join(filter(None, (where, place, problem))) + (_hint(one) if read is not None else ""))
    return "; ".join(told)


def _hint(problem: ErrorDetails) -> str:
    """What YAML has to do with a value of the wrong type."""
    if problem["type"] == "string_type" and isinstance(problem["input"], int | float):
        return " (quotes make it a text)"
    return advice(problem["input"]) if problem["type"].endswith("_type") else ""


def _read(file: Path) -> YamlFile:
    try:
        read = read_yaml(file)
        read.mapping()
    except YamlError as error:
        raise CurateError(str(error)) from error
    return read


def _put(content: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        if not isinstance(content.get(section), dict):
            content[section] = {}
        content = content[section]
    content[last] = copy.deepcopy(value)
