"""Edges lead to nodes that are there: checked for a whole import at once where the role may, else row by row.

A foreign key checks every row by a query of its own, three for an edge, which takes more than half of an import.
Here all rows are new, in one transaction, and nobody else sees them: one query over all of them at the end says the
same. The constraints stay as they are for everybody; this transaction alone does not fire them, which Postgres
allows to superusers and to roles with SET on `session_replication_role`. The write guard fires always.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg2

# Whatever else hangs on the two tables would not fire either: then rows are checked one by one. Foreign keys of
# other tables that lead here have nothing to check when a row is new.
_ONLY_OURS: Final = """
SELECT NOT EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid IN ('graph_migrator.nodes'::regclass, 'graph_migrator.edges'::regclass)
        AND NOT tgisinternal AND tgenabled IN ('O', 'R')
) AND NOT EXISTS (
    SELECT FROM pg_constraint WHERE conrelid IN ('graph_migrator.nodes'::regclass, 'graph_migrator.edges'::regclass)
        AND (contype = 'f' OR condeferrable) AND conname <> ALL (%s)
)
"""
_OURS: Final = [
    "nodes_graph_id_fkey", "edges_graph_id_fkey", "edges_source_is_a_node", "edges_target_is_a_node",
]  # fmt: skip
_INSUFFICIENT_PRIVILEGE: Final = "42501"
_CHECK_ROWS: Final = (
    "SET CONSTRAINTS graph_migrator.edges_source_is_a_node, graph_migrator.edges_target_is_a_node IMMEDIATE"
)
_DANGLING: Final = """
SELECT count(*) OVER (), e.id, e.source, e.target, s.id IS NULL, t.id IS NULL
FROM graph_migrator.edges e
LEFT JOIN graph_migrator.nodes s ON s.graph_id = e.graph_id AND s.id = e.source
LEFT JOIN graph_migrator.nodes t ON t.graph_id = e.graph_id AND t.id = e.target
WHERE e.graph_id = %s AND (s.id IS NULL OR t.id IS NULL)
ORDER BY e.id COLLATE "C" LIMIT %s
"""
_FOREIGN_KEY_VIOLATION: Final = "23503"


class DanglingEdge(NamedTuple):
    """An edge without one of its nodes."""

    all: int
    """How many such edges there are."""
    id: str
    source: str
    target: str
    has_no_source: bool
    has_no_target: bool

    @property
    def sentence(self) -> str:
        """Which edge it is, and what is missing."""
        ends = ((self.source, self.has_no_source), (self.target, self.has_no_target))
        missing = " and no ".join(dict.fromkeys(repr(end) for end, lacks in ends if lacks))
        return f"{self.id!r} ({self.source!r} → {self.target!r}: no {missing})"


class EdgeEnds:
    """The check of one new graph, in the transaction that makes it.

    Attributes:
        at_once: Whether all edges are checked by one query.
    """

    def __init__(self, cursor: Any, graph_id: UUID) -> None:
        self._cursor = cursor
        self._graph_id = graph_id
        self.at_once = False

    def begin(self) -> None:
        """Before the first row, and after the graph's own."""
        self._cursor.execute(_ONLY_OURS, (_OURS,))
        if not self._cursor.fetchone()[0]:
            return
        self._cursor.execute("SAVEPOINT before_regime")
        try:
            self._cursor.execute("SET LOCAL session_replication_role = replica")
        except psycopg2.Error as error:
            if error.pgcode != _INSUFFICIENT_PRIVILEGE:
                raise
            self._cursor.execute("ROLLBACK TO SAVEPOINT before_regime")
        else:
            self._cursor.execute("RELEASE SAVEPOINT before_regime")
            self.at_once = True

    def dangling(self, most: int) -> list[DanglingEdge]:
        """After the last row: the first edges that lead nowhere; none where all are sound."""
        if self.at_once:
            self._cursor.execute("SET LOCAL session_replication_role = origin")
        elif self._rows_are_sound():
            return []
        # The rows are too new for statistics: a nested loop would be chosen for one row and run for all.
        self._cursor.execute("SET LOCAL enable_nestloop = off")
        self._cursor.execute(_DANGLING, (self._graph_id, most))
        return [DanglingEdge(*row) for row in self._cursor]

    def _rows_are_sound(self) -> bool:
        self._cursor.execute("SAVEPOINT before_check")
        try:
            self._cursor.execute(_CHECK_ROWS)
        except psycopg2.Error as error:
            if error.pgcode != _FOREIGN_KEY_VIOLATION:
                raise
            self._cursor.execute("ROLLBACK TO SAVEPOINT before_check")
            return False
        return True
