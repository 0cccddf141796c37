"""The forms of requests and replies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(max_length=10_000)]
Picture = Annotated[str, Field(description="A picture's file in base64, or a data: URL.", max_length=44 << 20)]
Weight = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Form(BaseModel):
    """A request's form: an unknown key is an error, so that a misspelt one is not overlooked."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Negative(Form):
    """What the results should not be like."""

    text: Text | None = None
    image: Picture | None = None
    weight: Weight = 0.5


class Query(Form):
    """What is searched for: a text, a picture or both, minus some others."""

    text: Text | None = None
    image: Picture | None = None
    text_weight: Weight = 1.0
    image_weight: Weight = 1.0
    negatives: Annotated[list[Negative], Field(max_length=64)] = []


class SearchRequest(Form):
    """``POST /search``."""

    query: Query
    k: Annotated[int, Field(ge=1, le=10_000)] = 20
    offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    where: Annotated[str | None, Field(max_length=10_000, description='As `price < 50 and brand in ("x", "y")`.')] = (
        None
    )
    fields: Annotated[list[Name] | None, Field(max_length=256)] = None
    model: Name | None = None


class Hit(BaseModel):
    """One found document."""

    doc_id: str
    rank: int = Field(description="From 1, over all pages.")
    score: float = Field(description="Cosine, -1 to 1.")
    fields: dict[str, Any]
    relevance: float | None = Field(description="Judged score over its range, 0 to 1; null: not judged.")


class SearchReply(BaseModel):
    """What was found."""

    model_config = ConfigDict(populate_by_name=True)

    model: str
    took_ms: float
    total: int = Field(description="Documents that match `where`.")
    hits: list[Hit]
    ndcg_at_10: Annotated[float | None, Field(alias="ndcg@10")] = None


class FilterInfo(BaseModel):
    """What can be asked of one field in `where`."""

    type: Literal["text", "integer", "number", "boolean"]
    values: list[Any] | None = Field(description="Up to 50 most frequent values; null where they hardly repeat.")
    min: int | float | None
    max: int | float | None


class ModelInfo(BaseModel):
    """One model that is served, and its live index."""

    name: str
    label: str
    dimension: int
    documents: int
    fields: dict[str, str]
    filters: dict[str, FilterInfo]
    images: list[str] = Field(description="Fields of `GET /image`.")
    query: list[str] = Field(description="What a query may be: text, image.")
    inputs: dict[str, str] = Field(description="Fields that `POST /documents` encodes.")
    index: str = Field(description="Name of the live index.")
    fingerprint: str = Field(description="Of the model.")


class NewDocument(Form):
    """A document to encode and put into the index, in place of one with the same id."""

    doc_id: Name
    fields: Annotated[dict[Name, Any], Field(max_length=256)]


class DocumentsRequest(Form):
    """``POST /documents``."""

    documents: Annotated[list[NewDocument], Field(min_length=1, max_length=100_000)]
    model: Name | None = None

    @model_validator(mode="after")
    def _each_id_once(self) -> DocumentsRequest:
        seen: set[str] = set()
        for row, document in enumerate(self.documents):
            if document.doc_id in seen:
                raise ValueError(f"documents.{row}.doc_id: {document.doc_id!r} is here twice; allowed: each id once")
            seen.add(document.doc_id)
        return self


class DocumentsReply(BaseModel):
    """What is in the index now; it is durable and found from here on."""

    model: str
    upserted: int
    took_ms: float


class Deleted(BaseModel):
    """``DELETE /documents``."""

    model: str
    deleted: int


class Document(BaseModel):
    """A document's fields as the index keeps them."""

    doc_id: str
    fields: dict[str, Any]


def _listed(texts: Any) -> Any:
    return [texts] if isinstance(texts, str) else texts


Texts = Annotated[
    list[Text],
    Field(min_length=1, max_length=100_000),
    BeforeValidator(_listed, json_schema_input_type=Text | list[Text]),
]
"""One text or several."""


class EmbeddingsRequest(BaseModel):
    """``POST /v1/embeddings``, as OpenAI's; keys that we do not know are left alone."""

    model_config = ConfigDict(strict=True)

    input: Texts
    model: Annotated[str | None, Field(max_length=512)] = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, Field(ge=1, le=1 << 20)] = None
    input_type: Annotated[
        Literal["query", "document"],
        Field(description="Whose prompt goes before the texts: that of queries, as `/search` uses it, or documents'."),
    ] = "query"
    user: Annotated[str | None, Field(max_length=512)] = None


class Embedding(BaseModel):
    """One vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens are not counted."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsReply(BaseModel):
    """Unit vectors, in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage = Usage()


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str
    field: str | None


class ErrorReply(BaseModel):
    """Every error has this form."""

    error: ErrorDetail


class Health(BaseModel):
    """``GET /healthz``."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """``GET /readyz``: 200 while requests are taken; what the operator should know stands in `warnings`."""

    status: Literal["ready", "draining"]
    models: dict[str, str] = Field(description="Name -> index that it searches.")
    warnings: list[str]
