"""The API's description (OpenAPI), with what FastAPI cannot see: bodies that the routes read themselves, and keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from opengcl.serve import api

_PLACE = "#/components/schemas/{model}"
_REQUESTS = (api.SearchRequest, api.DocumentsRequest, api.EmbeddingsRequest)


def body_of(form: type[BaseModel], *, form_data: bool = False) -> dict[str, Any]:
    """A route's request body: the form as JSON, or also as a form with a picture as a file."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _PLACE.format(model=form.__name__)}}}
    if form_data:
        query = {"type": "string", "contentMediaType": "application/json", "description": "The same JSON."}
        image = {"type": "string", "format": "binary", "description": "The query's picture."}
        properties = {"query": query, "image": image}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": properties}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI) -> None:
    """Completes the description that the app gives at ``/openapi.json``."""
    by_itself = app.openapi

    def whole() -> dict[str, Any]:
        known = app.openapi_schema is not None
        description = by_itself()
        if not known:
            _, forms = models_json_schema([(form, "validation") for form in _REQUESTS], ref_template=_PLACE)
            components = description.setdefault("components", {})
            components["schemas"] = {**forms["$defs"], **components.get("schemas", {})}
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            description["security"] = [{}, {"key": []}]
        return description

    app.openapi = whole  # type: ignore[method-assign]
