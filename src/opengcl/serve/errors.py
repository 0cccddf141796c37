"""What goes wrong, as the server says it: one form of JSON, and nothing from inside the machine."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

log = logging.getLogger(__name__)

TYPES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    409: "conflict",
    413: "too_large",
    415: "unsupported_type",
    422: "invalid",
    429: "too_many_requests",
    500: "internal",
    503: "unavailable",
}
"""HTTP status -> ``error.type``."""


_UNKNOWN = "unknown key; allowed: those that /openapi.json lists"


GONE = 499
"""The client went away before the answer; nobody gets this status, logs and metrics have it (as nginx writes it)."""


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: One of `TYPES`.
        message: What was found and what is allowed.
        field: Which part of the request, as ``query.text`` or ``documents.3.fields.price``.
        retry_after: Seconds after which to try again, for 429 and 503.
    """

    def __init__(
        self, status: int, message: str, field: str | None = None, *, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.retry_after = status, message, field, retry_after

    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        found = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return {**found, **({"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else {})}

    def response(self) -> JSONResponse:
        """The answer itself."""
        return JSONResponse(body(self.status, self.message, self.field), self.status, self.headers())


def body(status: int, message: str, field: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {"type": TYPES.get(status, "error"), "message": message, "field": field}}


def invalid(error: ValidationError) -> ApiError:
    """A request that does not fit its form, told by its first problem."""
    return _invalid(error.errors(include_url=False, include_context=False, include_input=False))


def install(app: FastAPI) -> None:
    """Lets the app answer every error in our form."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _request_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unforeseen)


def _invalid(problems: Sequence[Any], skipped: int = 0) -> ApiError:
    first = problems[0]
    field = ".".join(map(str, first["loc"][skipped:])) or None
    if first["type"] == "json_invalid":
        return ApiError(400, f"not JSON: {first['msg']}")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = _UNKNOWN if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return ApiError(422, message + more, field)


async def _api_error(_: Request, error: Any) -> JSONResponse:
    answer: JSONResponse = error.response()
    return answer


async def _request_error(_: Request, error: Any) -> JSONResponse:
    return _invalid(error.errors(), skipped=1).response()  # "query", "path": where it stood


async def _http_error(_: Request, error: Any) -> JSONResponse:
    headers = dict(error.headers or {})
    return JSONResponse(body(error.status_code, str(error.detail)), error.status_code, headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=GONE)


async def _unforeseen(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse(body(500, "something went wrong inside; the server's log says what"), 500)
