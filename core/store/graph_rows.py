"""A batch of nodes or edges: read, given to a hop, and what it changed written back.

A batch is written with one COPY into a temporary table and one UPDATE that joins it, whatever its size. The
UPDATE names the batch's key range: without it the planner hashes the whole table for every batch (measured
at 3.4 times the time).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, Final

from psycopg2 import sql

from graph_migrator.core.graph_types.data import Edge, Node
from graph_migrator.core.store.copy_text import escape, escape_json
from graph_migrator.core.store.json_text import dumps, loads_many
from graph_migrator.core.store.keyset import Key, Keyset, fetch

_NULL: Final = "\\N"


class GraphRows:
    """Nodes or edges of one batch.

    Attributes:
        rows: What the hop is given.
        is_cut: There may be more rows in the page that was asked for.
    """

    def __init__(self, kind: type[Node] | type[Edge], keyset: Keyset) -> None:
        self._kind: Callable[..., Node | Edge] = kind
        self._table = "nodes" if kind is Node else "edges"
        self._columns = ("label",) if kind is Node else ("source", "target", "type")
        self._outer: Callable[[Any], Any] = attrgetter(*self._columns)
        self._keyset = keyset
        self.rows: list[Any] = []
        self.is_cut = False
        self._given: list[Any] = []
        self._ids: list[str] = []
        self._before: list[tuple[Any, str]] = []
        self._after: list[str] = []

    def read(self, cursor: Any, after: Key | None, limit: int, budget: int) -> None:
        """Read the next page, up to `budget` characters of JSON."""
        columns = sql.SQL(", ").join(map(sql.Identifier, ("id", *self._columns)))
        page = self._keyset.page(cursor, sql.SQL("{}, properties::text").format(columns), after, limit)
        found, self.is_cut = fetch(cursor, page, limit, budget, _length_of_json)
        properties = loads_many([row[-1] for row in found])
        build, outer = self._kind, self._outer
        self.rows = [build(*row[:-1], value) for row, value in zip(found, properties, strict=True)]
        self._given = list(self.rows)
        self._ids = [row[0] for row in found]
        self._before = [(outer(row), dumps(value)) for row, value in zip(self.rows, properties, strict=True)]

    @property
    def first(self) -> Key:
        """The smallest key."""
        return [self._ids[0]]

    @property
    def last(self) -> Key:
        """The largest key."""
        return [self._ids[-1]]

    def settle(self) -> list[tuple[Any, str]]:
        """After the hop: the rows, each with its properties as they will be stored.

        Raises:
            ValueError: The hop took rows out of the list, put some in, or changed an id.
        """
        require_same(self.rows, self._given)
        for row, id_ in zip(self._given, self._ids, strict=True):
            if row.id != id_:
                raise ValueError(
                    f"a hop must not change the id of a row it processes ({id_!r} became {row.id!r})"
                )
        self._after = [dumps(row.properties) for row in self._given]
        return list(zip(self._given, self._after, strict=True))

    def write_back(self, cursor: Any) -> int:
        """Write the rows that changed; `settle` comes first. Returns how many there were."""
        outer = self._outer
        changed = [(row, new) for row, new, _, _ in self._changed()]
        if not changed:
            return 0
        moved = any(
            outer(row) != columns for row, (columns, _) in zip(self._given, self._before, strict=True)
        )
        columns = self._columns if moved else ()
        cells = attrgetter("id", *columns) if columns else None
        lines = [
            f"{_cells((row.id,) if cells is None else cells(row))}\t{escape_json(new)}\n"
            for row, new in changed
        ]
        return self._merge(cursor, columns, lines)

    def _changed(self) -> Iterator[tuple[Any, str, Any, str]]:
        """The rows that the hop changed, each with its new properties, and the columns and properties that it had."""
        outer = self._outer
        for row, new, (columns, old) in zip(self._given, self._after, self._before, strict=True):
            if new != old or outer(row) != columns:
                yield row, new, columns, old

    def stage(self, cursor: Any, rebuild_id: int) -> int:
        """Write what changed to `rebuilt_rows` instead; `settle` comes first. Returns how many rows there were."""
        lines = []
        for row, new, columns, old in self._changed():
            before, after = self._texts(columns), self._texts(self._outer(row))
            pairs = [
                *((escape(one), escape(other)) for one, other in zip(before, after, strict=True)),
                (escape_json(old), escape_json(new)),
            ]
            cells = [
                cell for one, other in pairs for cell in ((_NULL, _NULL) if one == other else (one, other))
            ]
            lines.append("\t".join((str(rebuild_id), escape(row.id), *cells)) + "\n")
        if lines:
            columns = ("kind",) if self._table == "nodes" else ("source", "target", "kind")
            names = ", ".join(
                f"{side}_{name}" for name in (*columns, "properties") for side in ("old", "new")
            )
            copy = f"COPY graph_migrator.rebuilt_rows (rebuild_id, id, {names}) FROM STDIN (ENCODING 'UTF8')"
            cursor.copy_expert(copy, io.BytesIO("".join(lines).encode()), 1 << 18)
        return len(lines)

    def _texts(self, columns: Any) -> tuple[str, ...]:
        """Columns as `_outer` gives them: one by itself, several as a tuple."""
        return columns if len(self._columns) > 1 else (columns,)

    def _merge(self, cursor: Any, columns: tuple[str, ...], lines: list[str]) -> int:
        beside = sql.Identifier("pg_temp", f"graph_migrator_{self._table}")
        texts = sql.SQL(", ").join(
            sql.SQL("{} text").format(sql.Identifier(c)) for c in ("id", *self._columns)
        )
        # In a caller's transaction it may still hold the batch before.
        cursor.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}, properties jsonb) ON COMMIT DELETE ROWS; "
                "DELETE FROM {}"
            ).format(sql.Identifier(f"graph_migrator_{self._table}"), texts, beside)
        )
        names = sql.SQL(", ").join(map(sql.Identifier, ("id", *columns, "properties")))
        copy = sql.SQL("COPY {} ({}) FROM STDIN (ENCODING 'UTF8')").format(beside, names)
        cursor.copy_expert(copy.as_string(cursor), io.BytesIO("".join(lines).encode()), 1 << 18)
        cursor.execute(
            sql.SQL(
                "UPDATE {} AS t SET {} FROM {} AS b WHERE t.{} AND t.id = b.id AND t.id BETWEEN {} AND {}"
            ).format(
                self._keyset.table,
                sql.SQL(", ").join(
                    sql.SQL("{0} = b.{0}").format(sql.Identifier(c)) for c in (*columns, "properties")
                ),
                beside,
                self._keyset.graph,
                sql.Literal(self._ids[0]),
                sql.Literal(self._ids[-1]),
            )
        )
        return int(cursor.rowcount)


def require_same(rows: list[Any], given: list[Any]) -> None:
    """A hop changes rows in place.

    Raises:
        ValueError: The list has other members than it was given with.
    """
    if len(rows) != len(given) or any(a is not b for a, b in zip(rows, given, strict=True)):
        raise ValueError(
            "a hop changes the rows it is given in place; to insert or delete rows it runs SQL (ctx.execute)"
        )


def _length_of_json(row: Any) -> int:
    return len(row[-1])


def _cells(values: tuple[str, ...]) -> str:
    return "\t".join(map(escape, values))
