"""Requests that may come twice: the first one acts, the others get its answer."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg2.extras import Json
from sqlalchemy import Engine, text

from graph_migrator.core.errors import InvalidRequest, RequestInProgress
from graph_migrator.core.recorded_errors import json_args, name_of, own_error

_PATIENCE_SECONDS = 60


def begin_request(
    engine: Engine, request_id: UUID, verb: str, subject: str, by: str
) -> dict[str, Any] | None:
    """Take a request on.

    Args:
        engine: The database.
        request_id: The caller's id for it.
        verb: What is asked for.
        subject: Of what.
        by: Who asks.

    Returns:
        None where it is to be carried out; the recorded answer where it has been.

    Raises:
        InvalidRequest: The id was used for another request.
        RequestInProgress: It is being carried out at this moment.
        GraphMigratorError: It was refused, with this error.
    """
    asked = {"id": request_id, "verb": verb, "subject": subject, "by": by, "patience": _PATIENCE_SECONDS}
    with engine.begin() as connection:
        taken = connection.execute(
            text(
                "INSERT INTO graph_migrator.api_requests AS r (id, verb, subject, requested_by) "
                "VALUES (:id, :verb, :subject, :by) ON CONFLICT (id) DO UPDATE SET created_at = clock_timestamp() "
                # Whoever took it on has died over it.
                "WHERE r.outcome IS NULL AND r.verb = :verb AND r.subject = :subject "
                "AND r.created_at < clock_timestamp() - make_interval(secs => :patience) RETURNING true"
            ),
            asked,
        ).scalar()
        if taken:
            return None
        row = connection.execute(
            text("SELECT verb, subject, outcome FROM graph_migrator.api_requests WHERE id = :id"), asked
        ).one()
    if (row.verb, row.subject) != (verb, subject):
        raise InvalidRequest("Idempotency-Key", "it was used for another request")
    if row.outcome is None:
        raise RequestInProgress(str(request_id))
    if "error" in row.outcome:
        raise own_error(row.outcome["error"]["type"], row.outcome["error"]["args"])
    return dict(row.outcome)


def end_request(engine: Engine, request_id: UUID, outcome: dict[str, Any] | Exception) -> None:
    """Record how a request ended."""
    stored = outcome
    if isinstance(outcome, Exception):
        stored = {"error": {"type": name_of(outcome), "args": json_args(outcome)}}
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE graph_migrator.api_requests SET outcome = :outcome WHERE id = :id"),
            {"id": request_id, "outcome": Json(stored)},
        )


def find_answer(engine: Engine, request_id: UUID) -> dict[str, Any] | None:
    """How a request was answered; None where there is none, or it has not ended."""
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT outcome FROM graph_migrator.api_requests WHERE id = :id"), {"id": request_id}
        ).scalar_one_or_none()
    if found is not None and "error" in found:
        return {"message": f"refused: {own_error(found['error']['type'], found['error']['args'])}"}
    return found
