"""Errors as RFC 9457 problem documents: a table for domain errors, and a handler per kind of exception."""

from __future__ import annotations

import errno
import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.exc import DataError, OperationalError, TimeoutError  # noqa: A004  its own name
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from orchestrator.domain.errors import (
    ConflictError,
    FindingsError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    StaleFenceError,
    TrainhopError,
    UnavailableError,
)
from orchestrator.entrypoints.http.methods import allowed
from orchestrator.ports.providers import ProviderError
from orchestrator.ports.stores import StoreError
from orchestrator.services.stores import from_store
from worker.shared import spec_errors
from worker.shared.job_spec import JobSpec
from worker.shared.plain_errors import in_words

RETRY_AFTER_S = 5
NO_SPACE = "The server's disk is full and nothing was changed. Free some space and try again."
MEDIA_TYPE = "application/problem+json"
_log = structlog.get_logger(__name__)

_STATUS: tuple[tuple[type[TrainhopError], int, str], ...] = (
    (GoneError, 410, "gone"),
    (NotFoundError, 404, "not-found"),
    (ForbiddenError, 403, "forbidden"),
    (FindingsError, 422, "data-findings"),
    (InvalidError, 422, "invalid"),
    (StaleFenceError, 409, "stale-fence"),
    (ConflictError, 409, "conflict"),
    (UnavailableError, 503, "unavailable"),
)
"""The first match counts, so subclasses come before their base."""

Problems = Sequence[tuple[str, str]]


def problem(
    status: int,
    detail: str,
    *,
    slug: str | None = None,
    errors: Problems = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document. `errors` are `(JSON pointer, sentence)` pairs."""
    title = HTTPStatus(status).phrase
    body: dict[str, Any] = {
        "type": f"urn:trainhop:problem:{slug or title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = [{"pointer": pointer, "detail": sentence} for pointer, sentence in errors]
    # ASCII, because a message can quote text that UTF-8 cannot encode.
    return Response(json.dumps(body), status, dict(headers or {}), media_type=MEDIA_TYPE)


def from_domain(error: TrainhopError) -> Response:
    """The response for a domain error."""
    status, slug = next((status, slug) for kind, status, slug in _STATUS if isinstance(error, kind))
    errors = error.problems if isinstance(error, InvalidError) else ()
    headers = {"Retry-After": _wait(error)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return problem(status, str(error), slug=slug, errors=errors, headers=headers)


def _wait(error: TrainhopError) -> str:
    asked = error.retry_after_s if isinstance(error, UnavailableError) else None
    return str(RETRY_AFTER_S if asked is None else math.ceil(asked))


def invalid(errors: Problems) -> Response:
    """Status 422 with the invalid fields."""
    return from_domain(
        InvalidError("; ".join(f"{p}: {m}" for p, m in errors[:3]) or "The request is not valid.", errors)
    )


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(TrainhopError, lambda _, error: from_domain(_as(TrainhopError, error)))
    app.add_exception_handler(StoreError, lambda _, error: from_domain(from_store(_as(StoreError, error))))
    app.add_exception_handler(ProviderError, lambda _, error: from_domain(UnavailableError(str(error))))
    app.add_exception_handler(HTTPException, _from_http)
    app.add_exception_handler(RequestValidationError, _from_request)
    app.add_exception_handler(ValidationError, _from_model)
    # The writer uses SQLite's driver directly, and the pool of connections has an error of its own.
    for unanswered in (OperationalError, sqlite3.OperationalError, TimeoutError):
        app.add_exception_handler(unanswered, _from_database)
    app.add_exception_handler(OSError, _from_disk)
    for unstorable in (DataError, OverflowError, UnicodeEncodeError):
        app.add_exception_handler(unstorable, _from_unstorable)
    app.add_exception_handler(ClientDisconnect, _from_gone_client)
    app.add_exception_handler(Exception, _from_bug)


def _as(kind: type[Any], error: Exception) -> Any:
    assert isinstance(error, kind)
    return error


def _from_http(request: Request, error: Exception) -> Response:
    found: HTTPException = _as(HTTPException, error)
    headers = dict(found.headers or {})
    if found.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # Starlette names only those of the path's first route
        methods = allowed(request.app.routes, request.scope)
        headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    return problem(found.status_code, str(found.detail), headers=headers)


def _from_request(_: Request, error: Exception) -> Response:
    """The response for FastAPI's validation errors. Errors of a job file get their own explanation."""
    found: RequestValidationError = _as(RequestValidationError, error)
    wrong = found.errors()
    if wrong and wrong[0]["type"] == "json_invalid":
        return _malformed(str(found.body), int(wrong[0]["loc"][-1]), str(wrong[0]["ctx"]["error"]))
    return invalid(spec_errors.limited([(_pointer(f["loc"]), in_words(f)) for f in wrong]))


def _malformed(text: str, at: int, why: str) -> Response:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    message = f"The body is not valid JSON: {why} at line {line}, column {column}"
    return problem(422, message, slug="malformed", errors=[("", message)])


def _pointer(location: Sequence[str | int]) -> str:
    where = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    return spec_errors.pointer(where)


def _from_model(request: Request, error: Exception) -> Response:
    """The response for an invalid job file or worker message. An error of another model is a bug."""
    found: ValidationError = _as(ValidationError, error)
    if found.title == JobSpec.__name__:
        return invalid(spec_errors.explain(found))
    if request.scope.get("trainhop.reads") == found.title:
        wrong = found.errors(include_url=False, include_context=False, include_input=False)
        return invalid(spec_errors.limited([(_pointer(f["loc"]), in_words(f)) for f in wrong]))
    return _from_bug(request, error)


def _from_database(request: Request, error: Exception) -> Response:
    _log.warning("database does not answer", path=request.url.path, error=type(error).__name__)
    if "disk is full" in str(error):
        return from_domain(UnavailableError(NO_SPACE))
    return from_domain(UnavailableError("The database does not answer and nothing was changed. Try again."))


def _from_disk(request: Request, error: Exception) -> Response:
    if _as(OSError, error).errno in (errno.ENOSPC, errno.EDQUOT):
        return from_domain(UnavailableError(NO_SPACE))
    return _from_bug(request, error)


def _from_unstorable(_: Request, __: Exception) -> Response:
    return from_domain(
        InvalidError("A value is too large or has characters that cannot be stored. Correct it and try again.")
    )


def _from_gone_client(_: Request, __: Exception) -> Response:
    """Nobody reads this. A client that leaves in the middle of its request is not an error of the server."""
    return problem(400, "The connection was closed before the whole request had arrived.")


def _from_bug(request: Request, error: Exception) -> Response:
    _log.error("unexpected error", path=request.url.path, exc_info=error)
    return problem(500, "The server had an unexpected error. See its log.")
