"""One attempt as an operator looks at it: what it did, why it ended, and where the same error came up."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, text

from graph_migrator.core.errors import UnknownAttempt
from graph_migrator.core.inspection.history import Attempt, attempts_after


class SameError(BaseModel):
    """Another graph that has failed with the same error."""

    model_config = ConfigDict(frozen=True)

    graph: str
    migration_id: UUID
    finished_at: datetime | None


class AttemptStory(BaseModel):
    """One attempt with what surrounds it."""

    model_config = ConfigDict(frozen=True)

    attempt: Attempt
    graph: str | None = Field(description="The graph's slug; None where it was deleted.")
    graph_id: UUID
    fingerprint: str
    batches: int = Field(description="How many batches it has committed.")
    traceback: str | None = Field(description="For operators only.")
    same_error: tuple[SameError, ...] = Field(
        description="Failed graphs of now with this error, ten at most."
    )


_ATTEMPT = """
SELECT a.graph_id, a.migration_id, a.fingerprint, a.batches, a.error_type, a.traceback, a.hop_name,
       (SELECT g.slug FROM graph_migrator.graphs g WHERE g.id = a.graph_id) AS graph
FROM graph_migrator.hop_attempts a WHERE a.id = :id
"""
_SAME = """
SELECT g.slug AS graph, m.id AS migration_id, m.finished_at
FROM (SELECT * FROM graph_migrator.migrations f WHERE f.status = 'failed' ORDER BY f.graph_id LIMIT 1000) m
JOIN graph_migrator.graphs g ON g.migration_id = m.id
WHERE m.error_type = :error AND m.id <> :migration AND (
    SELECT a.hop_name FROM graph_migrator.hop_attempts a
    WHERE a.graph_id = m.graph_id AND a.migration_id = m.id ORDER BY a.id DESC LIMIT 1) = :hop
ORDER BY g.slug LIMIT 10
"""


def attempt_story(source: Engine | Connection, attempt_id: int) -> AttemptStory:
    """One attempt, by the number that `history` shows.

    Raises:
        UnknownAttempt: There is none with this number.
    """
    if isinstance(source, Engine):
        with source.connect() as connection:
            return attempt_story(connection, attempt_id)
    row = source.execute(text(_ATTEMPT), {"id": attempt_id}).one_or_none()
    if row is None:
        raise UnknownAttempt(attempt_id)
    attempt = next(a for a in attempts_after(source, row.migration_id, attempt_id - 1) if a.id == attempt_id)
    same = []
    if row.error_type is not None:
        asked = {"error": row.error_type, "migration": row.migration_id, "hop": row.hop_name}
        same = [
            SameError.model_validate(dict(each)) for each in source.execute(text(_SAME), asked).mappings()
        ]
    return AttemptStory(
        attempt=attempt,
        graph=row.graph,
        graph_id=row.graph_id,
        fingerprint=row.fingerprint,
        batches=row.batches,
        traceback=row.traceback,
        same_error=tuple(same),
    )
