"""Errors as HTTP answers: ``application/problem+json`` with the code and the fields of the error."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from graph_migrator.core.errors import (
    GraphMigratorError,
    MigrationError,
    Refused,
    ServiceUnavailable,
    UnknownAttempt,
    UnknownGraph,
    UnknownGraphType,
    UnknownRollout,
    WrongUsage,
)
from graph_migrator.core.recorded_errors import name_of
from graph_migrator.core.store.redaction import safe_message

_log = logging.getLogger("graph_migrator.console")
MEDIA_TYPE = "application/problem+json"
_UNKNOWN = (UnknownAttempt, UnknownGraph, UnknownGraphType, UnknownRollout)


class Problem(Exception):
    """An answer that is an error of this layer: rights, forms, a request id used twice."""

    def __init__(self, status: int, title: str, detail: str, code: str | None = None) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.code = status, title, detail, code


def status_of(error: GraphMigratorError) -> int:
    """The HTTP status: 400 and 404 for exit code 2, 409 for 3 and 1, 503 for 4."""
    match error:
        case _ if isinstance(error, _UNKNOWN):
            return 404
        case WrongUsage():
            return 400
        case Refused() | MigrationError():
            return 409
        case ServiceUnavailable():
            return 503
        case _:
            return 500


def as_problem(error: Exception) -> dict[str, Any]:
    """What is said of an error; of the unexpected nothing but that it is in the log."""
    if isinstance(error, Problem):
        problem: dict[str, Any] = {"status": error.status, "title": error.title, "detail": error.detail}
        return problem | ({"code": error.code} if error.code else {})
    if isinstance(error, HTTPException):
        return {"status": error.status_code, "title": str(error.detail), "detail": str(error.detail)}
    from graph_migrator.tasks.cli.errors import as_ours

    ours = as_ours(error)
    if ours is None:
        _log.error("unexpected: %s: %s", name_of(error), safe_message(error))
        detail = "The console met an error that it does not know. Its log names it."
        return {"status": 500, "title": "Unexpected error", "detail": detail}
    fields = {f.name: getattr(ours, f.name) for f in dataclasses.fields(ours)}
    status = status_of(ours)
    return {
        "status": status,
        "title": type(ours).__name__,
        "detail": ours.message,
        "code": name_of(ours),
        "exit_code": ours.exit_code,
        "fields": fields,
    }


def respond(problem: dict[str, Any]) -> Response:
    """The answer of the API."""
    body = json.dumps({"type": "about:blank", **problem}, default=str).encode()
    headers = {"Retry-After": "5"} if problem["status"] in {429, 503} else None
    return Response(body, problem["status"], media_type=MEDIA_TYPE, headers=headers)
