"""The rows that a selector picks, a page at a time, in the order of their key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from psycopg2 import sql

from graph_migrator.core.errors import InvalidRequest
from graph_migrator.core.graph_types.context import GraphFacts
from graph_migrator.core.graph_types.selectors import Edges, Nodes, Rows

Key = list[str]
"""A row's key as Postgres writes it, a text for each column: it fits into a checkpoint whatever its type."""

_FIRST_FETCH, _MOST_FETCHED = 200, 2_000


class Keyset:
    """One selector on one graph: its table, its key and the SQL that reads it.

    No statement here is run with parameters of the driver's, so a per cent sign in `where` is just that.
    """

    def __init__(self, over: Nodes | Edges | Rows, graph: GraphFacts, *, upto: Key | None = None) -> None:
        self.key = over.key
        self.graph_column = over.graph_id if isinstance(over, Rows) else "graph_id"
        self.graph = sql.SQL("{} = {}::uuid").format(
            sql.Identifier(self.graph_column), sql.Literal(str(graph.id))
        )
        conditions = [self.graph]
        match over:
            case Nodes(label):
                self.table: sql.Composable = sql.Identifier("graph_migrator", "nodes")
                if label is not None:
                    conditions.append(sql.SQL("label = {}").format(sql.Literal(label)))
            case Edges(kind):
                self.table = sql.Identifier("graph_migrator", "edges")
                if kind is not None:
                    conditions.append(sql.SQL("type = {}").format(sql.Literal(kind)))
            case Rows():
                self.table = sql.Identifier(*over.table.split("."))
                # A graph's id may be kept as uuid or as text.
                conditions[0] = self.graph = sql.SQL("{} = {}").format(
                    sql.Identifier(self.graph_column), sql.Literal(str(graph.id))
                )
                if over.where:
                    # On a line of its own: it may end in a comment.
                    conditions.append(sql.SQL("({}\n)").format(sql.SQL(over.where)))
        self.where = sql.SQL(" AND ").join(conditions)
        self._upto = upto  # of a shard; the cursor bounds it on the other side
        self._is_ours = not isinstance(over, Rows)
        self._types: dict[str, ColumnType] = {}

    # ── conditions ──────────────────────────────────────────────────────────────────────────────────

    def beyond(self, cursor: Any, key: Key) -> sql.Composable:
        """After this key."""
        return self._compared(cursor, ">", key)

    def between(self, cursor: Any, first: Key, last: Key, *, of: str) -> sql.Composable:
        """From one key to another, both included; `of` is what the statement calls the table."""
        return sql.SQL("{} AND {}").format(
            self._compared(cursor, ">=", first, of), self._compared(cursor, "<=", last, of)
        )

    def _compared(self, cursor: Any, operator: str, key: Key, *of: str) -> sql.Composable:
        types = self.types(cursor)
        return sql.SQL("({}) {} ({})").format(
            sql.SQL(", ").join(sql.Identifier(*of, column) for column in self.key),
            sql.SQL(operator),
            sql.SQL(", ").join(
                sql.SQL("{}::{}").format(sql.Literal(str(value)), sql.SQL(types[column].name))
                for column, value in zip(self.key, key, strict=True)
            ),
        )

    # ── queries ─────────────────────────────────────────────────────────────────────────────────────

    def page(self, cursor: Any, columns: sql.Composable, after: Key | None, limit: int) -> sql.Composable:
        """The next rows after a key, in order."""
        conditions: list[sql.Composable] = [self.where]
        if after is not None:
            conditions.append(self.beyond(cursor, after))
        if self._upto is not None:
            conditions.append(self._compared(cursor, "<=", self._upto))
        return sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT {}").format(
            columns,
            self.table,
            sql.SQL(" AND ").join(conditions),
            sql.SQL(", ").join(map(sql.Identifier, self.key)),
            sql.Literal(limit),
        )

    def key_texts(self) -> sql.Composable:
        """The columns of the key, as a checkpoint stores them."""
        # Names of their own: ORDER BY would take a result column for the table's, and sort as text.
        return sql.SQL(", ").join(
            sql.SQL("{}::text AS {}").format(
                sql.Identifier(column), sql.Identifier(f"graph_migrator_key_{place}")
            )
            for place, column in enumerate(self.key)
        )

    def count(self, cursor: Any) -> int:
        """How many rows there are."""
        cursor.execute(sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self.table, self.where))
        return int(cursor.fetchone()[0])

    def every(self, cursor: Any, rows: int) -> list[Key]:
        """The key of each so-manieth row, in order. Only an index is read, and nothing is kept but these keys."""
        key = sql.SQL(", ").join(map(sql.Identifier, self.key))
        cursor.execute(
            sql.SQL(
                "SELECT {0} FROM (SELECT {1}, row_number() OVER (ORDER BY {1}) AS graph_migrator_n "
                "FROM {2} WHERE {3}) x "
                "WHERE graph_migrator_n % {4} = 0 ORDER BY graph_migrator_n"
            ).format(self.key_texts(), key, self.table, self.where, sql.Literal(rows))
        )
        return [list(found) for found in cursor.fetchall()]

    def cut_table(self, cursor: Any) -> str | None:
        """The table's name with its schema; None where a key's type is not one of Postgres's own.

        The write guard compares a shard's keys by the operators of ``pg_catalog``.
        """
        cursor.execute(
            sql.SQL(_CUT_TABLE).format(sql.Literal(self.table.as_string(cursor)), sql.Literal(list(self.key)))
        )
        name, is_comparable = cursor.fetchone()
        return str(name) if is_comparable else None

    def has_more(self, cursor: Any, after: Key) -> bool:
        """Whether there is a row after this key."""
        cursor.execute(sql.SQL("SELECT EXISTS ({})").format(self.page(cursor, self.key_texts(), after, 1)))
        return bool(cursor.fetchone()[0])

    def bounds(self, cursor: Any, after: Key | None, limit: int) -> tuple[Any, Any, str | None, int]:
        """First and last key of the next page in the key's own type, the last as text, and its rows."""
        (key,) = self.key
        page = self.page(cursor, sql.SQL("{} AS k").format(sql.Identifier(key)), after, limit)
        cursor.execute(
            sql.SQL(
                "SELECT k[1], k[n], k[n]::text, n FROM (SELECT array_agg(k) AS k, count(*) AS n FROM ({}) p) q"
            ).format(page)
        )
        first, last, text, rows = cursor.fetchone()
        return first, last, text, int(rows)

    def types(self, cursor: Any) -> dict[str, ColumnType]:
        """The table's columns and their types, in order. Read once."""
        if self._is_ours:
            return _OURS
        if not self._types:
            name = self.table.as_string(cursor)
            cursor.execute(sql.SQL(_COLUMNS).format(sql.Literal(name)))
            self._types = {column: ColumnType(type_, base) for column, type_, base in cursor.fetchall()}
            missing = [c for c in (*self.key, self.graph_column) if c not in self._types]
            if not self._types:
                raise InvalidRequest("Rows.table", f"there is no table {name}")
            if missing:
                raise InvalidRequest("Rows.key", f"table {name} has no column {missing[0]!r}")
        return self._types


class ColumnType:
    """A column's type by name, and whether it holds JSON."""

    __slots__ = ("is_json", "name")

    def __init__(self, name: str, base: str) -> None:
        self.name = name
        self.is_json = base in {"json", "jsonb"}


_CUT_TABLE = """
SELECT format('%I.%I', n.nspname, c.relname), bool_and(t.typnamespace = 'pg_catalog'::regnamespace OR t.typtype = 'e')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = ANY ({1}) AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid WHERE c.oid = to_regclass({0}) GROUP BY n.nspname, c.relname
"""
_OURS = {"id": ColumnType("text", "text")}
_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod),
       format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass({}) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


def fetch(
    cursor: Any, query: sql.Composable, limit: int, budget: int, weigh: Callable[[Any], int]
) -> tuple[list[Any], bool]:
    """Read a page piece by piece, and stop early once it weighs `budget`: rows may be of any size.

    Returns:
        The rows, and whether there may be more of this page.
    """
    rows: list[Any] = []
    weight, step = 0, min(limit, _FIRST_FETCH)
    name = sql.SQL("graph_migrator_page")
    fetch_more = sql.SQL("FETCH {} FROM {}")
    cursor.execute(
        sql.SQL("DECLARE {} NO SCROLL CURSOR FOR {}; {}").format(
            name, query, fetch_more.format(sql.Literal(step), name)
        )
    )
    while True:
        piece: Sequence[Any] = cursor.fetchall()
        rows += piece
        weight += sum(map(weigh, piece))
        is_cut = len(piece) == step and len(rows) < limit
        if not is_cut or weight >= budget:
            break
        fits = (budget - weight) * len(rows) // max(weight, 1) + 1
        step = min(limit - len(rows), _MOST_FETCHED, fits)
        cursor.execute(fetch_more.format(sql.Literal(step), name))
    cursor.execute(sql.SQL("CLOSE {}").format(name))
    return rows, is_cut
