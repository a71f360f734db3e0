"""Failed migrations: which graphs, at which hop, with which error; grouped by cause."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, text

from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.inspection.graphs import UNREACHABLE

_EXAMPLES = 3


class FailedGraph(BaseModel):
    """A graph whose migration has failed."""

    model_config = ConfigDict(frozen=True)

    graph: str = Field(description="The slug.")
    graph_type: str
    version: int
    to_version: int
    migration_id: UUID
    hop: str | None = Field(description="The hop that failed; None where none was started.")
    error_type: str | None
    error_message: str | None
    attempt_id: int | None = Field(description="The last attempt; `history GRAPH --traceback` takes it.")
    is_type_known: bool = Field(description="Whether this process knows the graph's type.")
    is_unreachable: bool = Field(description="Whether the type does not know the graph's version.")

    @property
    def can_be_retried(self) -> bool:
        """Whether this process can plan a way for it."""
        return self.is_type_known and not self.is_unreachable


class FailureGroup(BaseModel):
    """Failed graphs that have hop and error type in common."""

    model_config = ConfigDict(frozen=True)

    graph_type: str
    hop: str | None
    error_type: str | None
    error_message: str | None = Field(description="Of the first example.")
    count: int
    retryable: int = Field(description="For how many of them this process can plan a way.")
    unreachable: int = Field(description="How many are at a version that the type does not know.")
    more: bool = Field(description="Whether there may be more than were counted.")
    examples: tuple[FailedGraph, ...] = Field(description="The first three by slug.")
    is_type_known: bool


_COLUMNS = f"""
SELECT g.slug AS graph, g.graph_type, g.version, m.to_version, m.id AS migration_id, m.error_type, m.error_message,
       a.hop_name AS hop, a.id AS attempt_id, CAST(:known AS jsonb) ? g.graph_type AS is_type_known,
       coalesce({UNREACHABLE}, false) AS is_unreachable
FROM (SELECT * FROM graph_migrator.migrations m
      WHERE m.status = 'failed' AND (CAST(:type AS text) IS NULL OR m.graph_type = :type)
      ORDER BY m.graph_id LIMIT :most) m
JOIN graph_migrator.graphs g ON g.migration_id = m.id
LEFT JOIN LATERAL (SELECT a.id, a.hop_name FROM graph_migrator.hop_attempts a
    WHERE a.graph_id = g.id AND a.migration_id = m.id ORDER BY a.id DESC LIMIT 1) a ON true
WHERE (CAST(:hop AS text) IS NULL OR a.hop_name = :hop)
  AND (CAST(:error AS text) IS NULL
       OR position(lower(:error) IN lower(concat_ws(': ', m.error_type, m.error_message))) > 0)
"""  # noqa: S608 - own text
_FAILED = text(f"{_COLUMNS} ORDER BY g.slug")
_GROUPS = text(f"""
WITH failed AS ({_COLUMNS})
SELECT graph_type, hop, error_type, count(*) AS count, bool_and(is_type_known) AS is_type_known,
       count(*) FILTER (WHERE is_type_known AND NOT is_unreachable) AS retryable,
       count(*) FILTER (WHERE is_unreachable) AS unreachable,
       coalesce(sum(count(*)) OVER () >= :most, false) AS more,
       (array_agg(to_jsonb(failed) ORDER BY graph))[1:{_EXAMPLES}] AS examples
FROM failed GROUP BY graph_type, hop, error_type ORDER BY count(*) DESC, graph_type, hop
""")  # noqa: S608 - own text


def failed_graphs(
    source: Engine | Connection,
    types: Mapping[str, GraphType],
    *,
    graph_type: str | None = None,
    hop: str | None = None,
    error: str | None = None,
) -> list[FailedGraph]:
    """All graphs whose migration has failed, in the order of their slug.

    Args:
        source: The database.
        types: The graph types that this process knows.
        graph_type: Only graphs of this type.
        hop: Only those that failed in the hop of this name.
        error: Only those whose error's type and message contain this, in whatever case.
    """
    if isinstance(source, Engine):
        with source.connect() as connection:
            return failed_graphs(connection, types, graph_type=graph_type, hop=hop, error=error)
    rows = source.execute(_FAILED, _parameters(types, graph_type, hop, error, None)).mappings()
    return [FailedGraph.model_validate(dict(row)) for row in rows]


def failure_groups(
    source: Engine | Connection,
    types: Mapping[str, GraphType],
    *,
    graph_type: str | None = None,
    hop: str | None = None,
    error: str | None = None,
    most: int | None = None,
) -> list[FailureGroup]:
    """The same by type, hop and error type, the largest group first.

    Args:
        source: The database.
        types: The graph types that this process knows.
        graph_type: As `failed_graphs`.
        hop: Likewise.
        error: Likewise.
        most: How many failed graphs are looked at, at most; None for all.
    """
    if isinstance(source, Engine):
        with source.connect() as connection:
            return failure_groups(connection, types, graph_type=graph_type, hop=hop, error=error, most=most)
    rows = source.execute(_GROUPS, _parameters(types, graph_type, hop, error, most)).mappings()
    return [
        FailureGroup.model_validate({**row, "error_message": row["examples"][0]["error_message"]})
        for row in rows
    ]


def _parameters(
    types: Mapping[str, GraphType],
    graph_type: str | None,
    hop: str | None,
    error: str | None,
    most: int | None,
) -> dict[str, Any]:
    known = json.dumps({kind.name: (kind.oldest, kind.newest) for kind in types.values()})
    return {"known": known, "type": graph_type, "hop": hop, "error": error, "most": most}
