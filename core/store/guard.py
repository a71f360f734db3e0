"""The write guard on users' own tables: put on, taken off, and looked at.

A trigger on a parent fires for statements on the parent, whichever partition or child the rows are in; it
does not fire for statements on a partition or child itself. So the guard goes on all of them. One that is
made later is unguarded until the guard is installed again; `list_guards` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from graph_migrator.core.errors import InvalidRequest

_BUILT_IN = {"graph_migrator.nodes", "graph_migrator.edges"}

# The table itself (depth 0) and all below it. `column_type` is NULL where there is no such column.
_FAMILY = text("""
WITH RECURSIVE family AS (
    SELECT to_regclass(:table)::oid AS id, 0 AS depth
    UNION SELECT i.inhrelid, f.depth + 1 FROM family f JOIN pg_inherits i ON i.inhparent = f.id
)
SELECT c.oid::bigint AS id, format('%I.%I', n.nspname, c.relname) AS name,
       n.nspname AS schema, c.relkind AS kind, a.atttypid::regtype::text AS column_type
FROM (SELECT id, min(depth) AS depth FROM family GROUP BY id) f
JOIN pg_class c ON c.oid = f.id JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = :column AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY f.depth, 2
""")

_REMOVE = """
DROP TRIGGER IF EXISTS graph_migrator_guard_insert ON {table};
DROP TRIGGER IF EXISTS graph_migrator_guard_update ON {table};
DROP TRIGGER IF EXISTS graph_migrator_guard_delete ON {table};
DROP TRIGGER IF EXISTS graph_migrator_guard_truncate ON {table}
"""

# Guarded tables and everything below them; our own are listed also where their triggers are gone. `root` is
# the topmost guarded table above each, `key` the column that its
# triggers were given.
_LIST = text(r"""
WITH RECURSIVE triggers AS (
    SELECT t.tgrelid AS id, t.tgname::text AS name, t.tgenabled = 'A' AS always,
           nullif(convert_from(rtrim(t.tgargs, '\x00'), getdatabaseencoding()), '') AS key
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE p.pronamespace = 'graph_migrator'::regnamespace
      AND p.proname IN ('guard_writes', 'guard_graphs', 'refuse_truncate')
), own (id, key) AS (
    VALUES (to_regclass('graph_migrator.graphs')::oid, 'id'),
           (to_regclass('graph_migrator.nodes'), 'graph_id'),
           (to_regclass('graph_migrator.edges'), 'graph_id')
), guards AS (
    SELECT id, coalesce(own.key, max(t.key)) AS key,
           count(t.name) = CASE own.key WHEN 'id' THEN 2 ELSE 4 END AS whole,
           coalesce(array_agg(t.name ORDER BY t.name) FILTER (WHERE NOT t.always), '{}') AS disabled
    FROM triggers t FULL JOIN own USING (id) WHERE id IS NOT NULL GROUP BY id, own.key
), ancestors AS (
    SELECT g.id AS start, g.id FROM guards g
    UNION SELECT a.start, i.inhparent FROM ancestors a JOIN pg_inherits i ON i.inhrelid = a.id
), roots AS (
    SELECT g.id, g.key FROM guards g
    WHERE NOT EXISTS (SELECT FROM ancestors a JOIN guards above ON above.id = a.id
                      WHERE a.start = g.id AND a.id <> g.id)
), family AS (
    SELECT r.id AS root, r.key, r.id FROM roots r
    UNION SELECT f.root, f.key, i.inhrelid FROM family f JOIN pg_inherits i ON i.inhparent = f.id
)
SELECT format('%I.%I', rn.nspname, rc.relname) AS root, format('%I.%I', n.nspname, c.relname) AS name,
       f.key, coalesce(g.whole AND g.key = f.key, false) AS guarded,
       coalesce(g.disabled, '{}') AS disabled
FROM family f
JOIN pg_class rc ON rc.oid = f.root JOIN pg_namespace rn ON rn.oid = rc.relnamespace
JOIN pg_class c ON c.oid = f.id JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN guards g ON g.id = f.id
ORDER BY 1, f.id <> f.root, 2
""")


@dataclass(frozen=True, slots=True)
class GuardedTable:
    """A table with the write guard, and the state that it is in.

    Attributes:
        table: Its qualified name.
        column: The column that holds the graph's id.
        unguarded: The table itself, its partitions and its children, where triggers are missing.
        disabled: Triggers that do not fire in every session, as ``schema.table: trigger``.
    """

    table: str
    column: str
    unguarded: tuple[str, ...]
    disabled: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether no statement gets past the guard."""
        return not self.unguarded and not self.disabled


def install_guard(connection: Connection, table: str, graph_id_column: str = "graph_id") -> None:
    """Put the write guard on a table, its partitions and its children. Repeating it mends and completes it.

    Waits for transactions that are writing to the table. From the commit on, its rows can be changed only
    where `graph_writer` would let the writer in, and its hops' changes count as the graph's.

    Args:
        connection: One that may own the table; the caller commits.
        table: Its name, with its schema or found through the search_path.
        graph_id_column: The uuid column that names the graph. A row where it is NULL belongs to no graph and
            is not guarded; a new row must name a graph that exists.

    Raises:
        InvalidRequest: There is no such table or column, or it is not of a kind that can be guarded.
    """
    family = _family(connection, table, graph_id_column)
    for member in family:
        _require_guardable(member, graph_id_column)
    for member in family:
        connection.execute(
            text("SELECT graph_migrator.guard_table(CAST(CAST(:id AS oid) AS regclass), :column)"),
            {"id": member.id, "column": graph_id_column},
        )


def remove_guard(connection: Connection, table: str) -> None:
    """Take the write guard off a table, its partitions and its children. A table without it stays as it is.

    Raises:
        InvalidRequest: There is no such table, or it is one of our own.
    """
    family = _family(connection, table, "")
    for member in family:
        if member.name in _BUILT_IN:
            raise InvalidRequest("table", f"{member.name} is never without its guard")
    for member in family:
        connection.exec_driver_sql(_REMOVE.format(table=member.name))


def list_guards(connection: Connection) -> list[GuardedTable]:
    """Every guarded table, our own among them, each with its partitions and children, by name."""
    found: dict[str, list[Any]] = {}
    for row in connection.execute(_LIST):
        found.setdefault(row.root, []).append(row)
    return [
        GuardedTable(
            table,
            rows[0].key,
            unguarded=tuple(row.name for row in rows if not row.guarded),
            disabled=tuple(f"{row.name}: {trigger}" for row in rows for trigger in row.disabled),
        )
        for table, rows in found.items()
    ]


def _family(connection: Connection, table: str, column: str) -> list[Any]:
    try:
        # A malformed name is an error in Postgres; it must not end the caller's transaction.
        with connection.begin_nested():
            family = list(connection.execute(_FAMILY, {"table": table, "column": column}))
    except ProgrammingError as error:
        raise InvalidRequest("table", f"{table!r} is not the name of a table") from error
    if not family:
        raise InvalidRequest("table", f"there is no table {table!r}")
    return family


def _require_guardable(member: Any, column: str) -> None:
    if member.schema == "graph_migrator" and member.name not in _BUILT_IN:
        raise InvalidRequest("table", f"{member.name} is one of our own")
    if member.kind == "f":
        raise InvalidRequest("table", f"{member.name} is a foreign table, which cannot be guarded")
    if member.kind not in {"r", "p"}:
        raise InvalidRequest("table", f"{member.name} is not a table")
    if member.column_type is None:
        raise InvalidRequest("graph_id_column", f"{member.name} has no column {column!r}")
    if member.column_type != "uuid":
        raise InvalidRequest("graph_id_column", f"{member.name}.{column} is {member.column_type}, not uuid")
