"""Errors as problem details (RFC 9457), the same shape whatever went wrong, and nothing of the inside in them."""

import json
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from geobacter_core.api.batching import BusyError
from geobacter_core.errors import (
    EmbeddingsError,
    FeaturesError,
    GeobacterError,
    OutsideError,
    PlaceError,
    QueryError,
    RegistryError,
    TileCacheError,
)

MEDIA_TYPE = "application/problem+json"
_SECONDS = 2
_log = logging.getLogger(__name__)


class Problem(BaseModel):
    """Why a request was not answered (RFC 9457)."""

    title: str = Field(description="The status in words", examples=["Not Found"])
    status: int = Field(description="The HTTP status", examples=[404])
    detail: str = Field(description="What was wrong, where, and what to do", examples=["Place lon=0 lat=0: …"])


class ApiError(Exception):
    """A request that is answered with a problem."""

    def __init__(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


def problem_body(status: int, detail: str) -> bytes:
    """A problem as JSON."""
    return json.dumps(Problem(title=HTTPStatus(status).phrase, status=status, detail=detail).model_dump()).encode()


def problem_headers(retry_after_s: int | None = None) -> dict[str, str]:
    """What goes with it."""
    return {"Cache-Control": "no-store", **({"Retry-After": str(retry_after_s)} if retry_after_s else {})}


def problem(status: int, detail: str, retry_after_s: int | None = None) -> Response:
    """The response."""
    return Response(problem_body(status, detail), status, problem_headers(retry_after_s), MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the problems that an operation answers with, besides those that all of them do."""
    return {
        status: {
            "model": Problem,
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({401, 421, 503, *statuses})
    }


def of_error(error: GeobacterError) -> Response:
    """What an error of the core is for whoever asked; those of the inside are logged and not told."""
    match error:
        case OutsideError():
            return problem(404, str(error))
        case PlaceError():
            return problem(422, str(error))
        case QueryError():  # it may be right with another encoder
            return problem(409, str(error))
        case TileCacheError() | FeaturesError() | EmbeddingsError():
            _log.warning("%s", error)
            detail = "What the answer is made from is being replaced or is damaged. Try again; the log says more."
            return problem(503, detail, _SECONDS)
        case RegistryError():
            return problem(503, str(error), _SECONDS)
    _log.error("%s", error)
    return problem(500, "The answer could not be made; the server's log says why.")


def add_handlers(app: FastAPI) -> None:
    """Answer every error with a problem."""

    @app.exception_handler(ApiError)
    async def of_api(_: Request, error: ApiError) -> Response:
        return problem(error.status, error.detail, error.retry_after_s)

    @app.exception_handler(BusyError)
    async def of_busy(_: Request, error: BusyError) -> Response:
        return problem(503, str(error), error.retry_after_s)

    @app.exception_handler(GeobacterError)
    async def of_core(_: Request, error: GeobacterError) -> Response:
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def of_validation(_: Request, error: RequestValidationError) -> Response:
        return problem(422, said(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        answer = problem(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        if error.status_code == 405:  # there, Starlette names the methods of one route of several
            matching = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            methods = {method for route in matching for method in getattr(route, "methods", None) or ()}
            answer.headers["Allow"] = ", ".join(sorted(methods))
        return answer

    @app.exception_handler(Exception)
    async def of_bug(_: Request, error: Exception) -> Response:
        _log.error("a request failed", exc_info=error)
        return problem(500, "The answer could not be made; the server's log says why.")


def said(errors: Sequence[Any]) -> str:
    """The first thing that is wrong with a request's parameters or body, in a sentence."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path"))
    message = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    hint = ""
    if where.endswith("lat") and first["type"] in ("less_than_equal", "greater_than_equal"):
        hint = " Are longitude and latitude swapped?"
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where or 'The body'}: {message}.{hint} Correct it and ask again.{more}"
