"""Every request: who asked for what, when, and what became of it. One list over all places where one is recorded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, RowMapping, text

from graph_migrator.core.recorded_errors import own_error


class Requested(BaseModel):
    """One request."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    id: str = Field(description="The task id, the request id, or the number of a rollout's change.")
    who: str | None
    verb: str
    subject: str = Field(description="The graph's slug, or its id where it was deleted; or the rollout.")
    target: int | None
    outcome: str
    migration_id: str | None


_OF_GRAPHS = """
SELECT r.created_at AS at, r.task_id AS id, r.requested_by AS who, r.verb, r.target, r.outcome,
       coalesce(g.slug, r.graph_id::text, r.outcome#>>'{error,args,0}', '') AS subject,
       r.migration_id::text AS migration_id, m.status
FROM graph_migrator.requests r
LEFT JOIN graph_migrator.graphs g ON g.id = r.graph_id
LEFT JOIN graph_migrator.migrations m ON m.id = r.migration_id
"""
_ONE = f"{_OF_GRAPHS} WHERE r.task_id = :id"
_LIST = f"""
SELECT * FROM (
    ({_OF_GRAPHS}
     WHERE r.created_at <= :before AND (r.created_at, r.task_id) < (:before, :before_id)
     ORDER BY r.created_at DESC, r.task_id DESC LIMIT :limit)
    UNION ALL
    (SELECT c.at, c.id::text, c.who, 'rollout ' || c.what, NULL,
            jsonb_build_object('message', coalesce(c.why, 'done')),
            coalesce(c.rollout_id::text, 'all rollouts'), NULL, NULL
     FROM graph_migrator.rollout_changes c WHERE c.at <= :before AND (c.at, c.id::text) < (:before, :before_id)
     ORDER BY c.at DESC, c.id::text DESC LIMIT :limit)
    UNION ALL
    (SELECT p.changed_at, p.id::text, p.changed_by, 'policy ' || p.mode, NULL,
            jsonb_build_object('message', coalesce(p.why, 'done')), p.graph_type, NULL, NULL
     FROM graph_migrator.policies p
     WHERE p.changed_at <= :before AND (p.changed_at, p.id::text) < (:before, :before_id)
     ORDER BY p.changed_at DESC, p.id::text DESC LIMIT :limit)
    UNION ALL
    (SELECT a.created_at, a.id::text, a.requested_by, a.verb, NULL, a.outcome, a.subject, NULL, NULL
     FROM graph_migrator.api_requests a
     WHERE a.verb LIKE 'bulk %' AND a.created_at <= :before AND (a.created_at, a.id::text) < (:before, :before_id)
     ORDER BY a.created_at DESC, a.id::text DESC LIMIT :limit)
) each ORDER BY at DESC, id DESC LIMIT :limit
"""  # noqa: S608 - own text


def list_requests(
    source: Engine | Connection,
    *,
    before: tuple[datetime, str] | None = None,
    limit: int = 50,
) -> list[Requested]:
    """Requests, the latest first.

    Args:
        source: The database.
        before: Time and id of the last one of the page before.
        limit: How many at most.
    """
    if isinstance(source, Engine):
        with source.connect() as connection:
            return list_requests(connection, before=before, limit=limit)
    at, last = before or (datetime.max.replace(tzinfo=UTC), "")
    rows = source.execute(text(_LIST), {"before": at, "before_id": last, "limit": limit}).mappings()
    return [_requested(row) for row in rows]


def find_request(source: Engine | Connection, request_id: str) -> Requested | None:
    """One call of a verb on a graph, by its request id, which is its task id; None where no worker has begun it."""
    if isinstance(source, Engine):
        with source.connect() as connection:
            return find_request(connection, request_id)
    row = source.execute(text(_ONE), {"id": request_id}).mappings().one_or_none()
    return _requested(row) if row is not None else None


def _requested(row: RowMapping) -> Requested:
    values = {name: row[name] for name in Requested.model_fields if name != "outcome"}
    return Requested(**values, outcome=_in_words(row["outcome"], row["status"]))


def _in_words(outcome: dict[str, Any] | None, status: str | None) -> str:
    if outcome is not None and "error" in outcome:
        error = outcome["error"]
        return f"refused: {own_error(error['type'], error['args'])}"
    if outcome is not None and "message" in outcome:
        return str(outcome["message"])
    if outcome is not None and "report" in outcome:
        return "nothing to do"
    if status is not None:
        return str(status)
    return "accepted" if outcome is None else ", ".join(f"{k}: {v}" for k, v in outcome.items())[:200]
