"""A batch of rows of a user's own table: dicts that a hop changes, and one UPDATE that writes them back."""

from __future__ import annotations

import copy
from collections import defaultdict
from decimal import Decimal
from typing import Any

from psycopg2 import extensions, sql

from graph_migrator.core.store.graph_rows import require_same
from graph_migrator.core.store.json_text import dumps, loads
from graph_migrator.core.store.keyset import Key, Keyset, fetch


class OwnRows:
    """Rows of one batch, as dicts by column. Numbers inside of JSON columns keep every digit.

    Attributes:
        rows: What the hop is given.
        is_cut: There may be more rows in the page that was asked for.
    """

    def __init__(self, keyset: Keyset) -> None:
        self._keyset = keyset
        self.rows: list[dict[str, Any]] = []
        self.is_cut = False
        self._given: list[dict[str, Any]] = []
        self._before: list[dict[str, Any]] = []
        self._keys: list[Key] = []
        self._json: frozenset[str] = frozenset()

    def read(self, cursor: Any, after: Key | None, limit: int, budget: int) -> None:
        """Read the next page, up to about `budget` characters."""
        types = self._keyset.types(cursor)
        self._json = frozenset(name for name, type_ in types.items() if type_.is_json)
        columns = sql.SQL(", ").join(
            sql.SQL("{}::text").format(sql.Identifier(name)) if type_.is_json else sql.Identifier(name)
            for name, type_ in types.items()
        )
        page = self._keyset.page(
            cursor, sql.SQL("{}, {}").format(columns, self._keyset.key_texts()), after, limit
        )
        found, self.is_cut = fetch(cursor, page, limit, budget, _weight)
        width = len(types)
        self.rows = [
            {name: self._value(name, value) for name, value in zip(types, row[:width], strict=True)}
            for row in found
        ]
        self._keys = [list(row[width:]) for row in found]
        self._given = list(self.rows)
        self._before = [{name: self._kept(name, value) for name, value in row.items()} for row in self.rows]

    @property
    def first(self) -> Key:
        """The smallest key."""
        return self._keys[0]

    @property
    def last(self) -> Key:
        """The largest key."""
        return self._keys[-1]

    def settle(self) -> list[tuple[Any, str]]:
        """After the hop: nothing to validate, models are for nodes and edges."""
        require_same(self.rows, self._given)
        return []

    def write_back(self, cursor: Any) -> int:
        """Write the columns that changed, of the rows where they did. Returns how many rows there were.

        Raises:
            ValueError: The hop changed a key, or a row has other columns than the table.
        """
        groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for place, (row, old) in enumerate(zip(self._given, self._before, strict=True)):
            if row.keys() != old.keys():
                odd = sorted(row.keys() ^ old.keys())
                raise ValueError(f"a row must keep the columns of its table; look at {', '.join(odd)}")
            columns = tuple(n for n in row if _differ(self._kept(n, row[n]), old[n]))
            if columns:
                groups[columns].append(place)
        fixed = {*self._keyset.key, self._keyset.graph_column}
        if any(fixed & set(columns) for columns in groups):
            raise ValueError(
                f"a hop must not change the key of a row it processes ({', '.join(sorted(fixed))})"
            )
        return sum(self._update(cursor, columns, places) for columns, places in groups.items())

    def _update(self, cursor: Any, columns: tuple[str, ...], places: list[int]) -> int:
        types = self._keyset.types(cursor)
        wanted = [*self._keyset.key, *columns]
        template = "({})".format(", ".join("%s::" + types[name].name.replace("%", "%%") for name in wanted))
        values = b",".join(
            cursor.mogrify(
                template, [*self._keys[p], *(self._stored(name, self._given[p][name]) for name in columns)]
            )
            for p in places
        )
        head = sql.SQL("UPDATE {} AS t SET {} FROM (VALUES ").format(
            self._keyset.table,
            sql.SQL(", ").join(sql.SQL("{0} = v.{0}").format(sql.Identifier(c)) for c in columns),
        )
        tail = sql.SQL(") AS v ({}) WHERE t.{} AND {} AND {}").format(
            sql.SQL(", ").join(map(sql.Identifier, wanted)),
            self._keyset.graph,
            sql.SQL(" AND ").join(
                sql.SQL("t.{0} = v.{0}").format(sql.Identifier(k)) for k in self._keyset.key
            ),
            self._keyset.between(cursor, self._keys[places[0]], self._keys[places[-1]], of="t"),
        )
        encoding = extensions.encodings[cursor.connection.encoding]
        cursor.execute(
            head.as_string(cursor).encode(encoding) + values + tail.as_string(cursor).encode(encoding)
        )
        return int(cursor.rowcount)

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, memoryview):
            return bytes(value)
        return loads(value) if name in self._json and value is not None else value

    def _kept(self, name: str, value: Any) -> Any:
        """A value as it is compared: what can be changed in place is copied, or written out."""
        if name in self._json and value is not None:
            return dumps(value)
        return copy.deepcopy(value) if isinstance(value, list | dict | set | bytearray) else value

    def _stored(self, name: str, value: Any) -> Any:
        return dumps(value) if name in self._json and value is not None else value


def _differ(new: Any, old: Any) -> bool:
    """Whether a column must be written; 1, 1.0 and True are not the same, nor are 1.10 and 1.1."""
    if isinstance(new, Decimal) and isinstance(old, Decimal):
        return str(new) != str(old)
    return type(new) is not type(old) or bool(new != old)


def _weight(row: Any) -> int:
    return sum(len(value) if isinstance(value, str | bytes | memoryview) else 16 for value in row)
