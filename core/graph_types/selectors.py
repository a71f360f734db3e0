"""What a batched hop processes: nodes, edges, or rows of a table of your own.

A batched hop visits the rows of its graph in the order of their key. Each batch is read by a query of its
own, after the checkpoint of the batch before it was committed, so what is visited follows from the key:

- a row inserted behind the cursor (with a smaller key) is not visited;
- a row inserted ahead of it is visited, also one that the hop itself inserted;
- a row deleted ahead of it, or changed so that the selector no longer picks it, is not visited;
- a row whose key changes may be visited again, or never: leave keys alone.

Only the hop changes the graph meanwhile, so all of this depends on the hop alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from graph_migrator.core.errors import InvalidRequest

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


@dataclass(frozen=True)
class Nodes:
    """The graph's nodes in the order of their id.

    Attributes:
        label: Only the nodes that bear this label; None for all.
    """

    key: ClassVar[tuple[str, ...]] = ("id",)
    table: ClassVar[str] = "nodes"

    label: str | None = None


@dataclass(frozen=True)
class Edges:
    """The graph's edges in the order of their id.

    Attributes:
        type: Only the edges of this type; None for all.
    """

    key: ClassVar[tuple[str, ...]] = ("id",)
    table: ClassVar[str] = "edges"

    type: str | None = None


@dataclass(frozen=True, init=False)
class Rows:
    """The graph's rows in a table of your own, in the order of their key.

    Attributes:
        table: The table, with its schema where it needs one (``"sales.orders"``).
        key: The columns of the key. None of them is ever NULL, and together with `graph_id` they are
            unique: best the primary key, so that its index gives the order.
        where: A condition in SQL that further limits the rows; None for all rows of the graph. It is
            evaluated anew for each batch.
        graph_id: The column that holds the graph's id.

    Names are taken as they are written, upper and lower case included.
    """

    table: str
    key: tuple[str, ...]
    where: str | None
    graph_id: str

    def __init__(
        self,
        table: str,
        key: str | tuple[str, ...],
        where: str | None = None,
        graph_id: str = "graph_id",
    ) -> None:
        """Name the rows.

        Raises:
            InvalidRequest: A name is no plain identifier, the key is empty or names a column twice, or
                `where` is blank.
        """
        columns = (key,) if isinstance(key, str) else tuple(key)
        _require_identifiers("Rows.table", table.split("."), at_most=2)
        _require_identifiers("Rows.key", columns)
        _require_identifiers("Rows.graph_id", [graph_id])
        if len({*columns, graph_id}) <= len(columns):
            raise InvalidRequest("Rows.key", f"{graph_id!r} and {list(columns)} name a column twice")
        if where is not None and not where.strip():
            raise InvalidRequest("Rows.where", "it is blank; leave it out to process all rows of the graph")
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "key", columns)
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "graph_id", graph_id)


Selector = Nodes | Edges | Rows


def _require_identifiers(field: str, names: list[str] | tuple[str, ...], at_most: int | None = None) -> None:
    if not names or (at_most is not None and len(names) > at_most):
        raise InvalidRequest(field, f"{'.'.join(names)!r} is not a name")
    for name in names:
        if not _IDENTIFIER.fullmatch(name):
            reason = f"{name!r} is not a plain identifier (letters, digits and underscores, at most 63)"
            raise InvalidRequest(field, reason)
