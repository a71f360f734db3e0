"""Who changed a graph outside of a migration, as far as it is recorded: replacements, and what `repair` did.

Repairs of a failed or paused migration's rows stand with that migration in its history.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, text

from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.statuses import Verb


class DataChange(BaseModel):
    """The replacement of a graph's whole data, or what `repair` did to it."""

    model_config = ConfigDict(frozen=True)

    verb: Verb
    at: datetime
    by: str | None
    to_version: int | None = Field(description="Of a replacement.")
    details: dict[str, Any] = Field(description="What a repair was about; what a replacement found.")

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        if self.verb is Verb.REPAIR:
            return f"repaired{by}: {self.details.get('check', '')}"
        had = f"{count(self.details['nodes'], 'node')} and {count(self.details['edges'], 'edge')}"
        half = ", partially migrated" if self.details["partially_migrated"] else ""
        return f"data replaced{by}: now v{self.to_version}; it had {had} at v{self.details['from_version']}{half}"


def data_changes(connection: Connection, graph_id: UUID, *, limit: int = 20) -> list[DataChange]:
    """The latest such changes of a graph, oldest first."""
    rows = connection.execute(_CHANGES, {"graph": graph_id, "limit": limit})
    return [DataChange.model_validate(dict(row)) for row in rows.mappings()][::-1]


_CHANGES = text("""
SELECT verb, created_at AS at, requested_by AS by, target AS to_version, outcome AS details
FROM graph_migrator.requests
WHERE graph_id = :graph AND verb IN ('repair', 'replace') AND migration_id IS NULL ORDER BY created_at DESC LIMIT :limit
""")
