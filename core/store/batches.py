"""Walking a graph's rows in the order of their key, one batch at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from graph_migrator.core.graph_types.context import GraphFacts, HopContext
from graph_migrator.core.graph_types.data import Edge, Node
from graph_migrator.core.graph_types.selectors import Edges, Nodes, Rows
from graph_migrator.core.store.graph_rows import GraphRows
from graph_migrator.core.store.keyset import Key, Keyset
from graph_migrator.core.store.session import Executor
from graph_migrator.core.store.table_rows import OwnRows
from graph_migrator.core.store.validation import validate_labels, validate_range, validate_rows

if TYPE_CHECKING:
    from graph_migrator.core.graph_types.definition import DirectedHop

_SMALLEST, _LARGEST = 100, 50_000

BUDGET: Final = 1_000_000
"""A batch of rows that come to Python ends at about so many characters, so memory has a bound."""

_TOTAL_BEFORE: Final = """
SELECT total FROM graph_migrator.hop_attempts
WHERE migration_id = (SELECT migration_id FROM graph_migrator.graphs WHERE id = %s) AND to_version = %s
  AND total IS NOT NULL ORDER BY id DESC LIMIT 1
"""


class BatchWalk:
    """A hop's way through its rows; what is visited is told in `core.graph_types.selectors`.

    Attributes:
        cursor: The key of the last row that has the new shape; None at the start.
        done: Rows visited, those of earlier attempts included.
        size: Rows that the next batch may have.
        is_at_start: No batch was taken, in this attempt or an earlier one.
        is_at_end: The last batch was taken.
    """

    def __init__(self, hop: DirectedHop, graph: GraphFacts, *, after: list[Any] | None, done: int) -> None:
        assert hop.over is not None  # noqa: S101 - that is what makes it batched
        self.hop = hop
        self.graph = graph
        self.cursor: Key | None = after
        self.done = done
        self.size = hop.batch_size
        self.is_at_start = after is None
        self.is_at_end = False
        self._over: Nodes | Edges | Rows = hop.over
        self._keyset = Keyset(hop.over, graph)

    def count(self, executor: Executor) -> int:
        """How many rows there are to walk, those behind the cursor included.

        They are counted once, at the start: later the selector may no longer pick the rows that are done.
        """
        with executor.cursor() as cursor:
            if not self.is_at_start:
                cursor.execute(_TOTAL_BEFORE, (self.graph.id, self.hop.to_version))
                if found := cursor.fetchone():
                    return int(found[0])
            return self._keyset.count(cursor)

    def advance(self, ctx: HopContext) -> None:
        """Take one batch: read, run the hop's code, validate, write back. Moves `cursor` and `done`.

        Raises:
            InvalidGraphData: The hop left data that does not fit the models of its version.
            ValueError: The hop did to its rows what it must not do.
            Exception: What the hop raised.
        """
        self.is_at_start = False
        cursor = _cursor(ctx)
        taken, is_full = (
            self._take_sql(ctx, cursor) if self.hop.sql is not None else self._take_rows(ctx, cursor)
        )
        self.done += taken
        # A hop may have put rows ahead of the cursor, even while it walked the last ones.
        self.is_at_end = not is_full and not (taken and self._keyset.has_more(cursor, self.cursor or []))
        if self.is_at_end:
            validate_labels(ctx, self.hop, except_for=self._over)

    def adapt(self, seconds: float, target: float) -> None:
        """Make the next batch larger or smaller, towards `target` seconds; at most by half or double."""
        factor = min(2.0, max(0.5, target / max(seconds, 1e-6)))
        smallest = min(_SMALLEST, self.hop.batch_size)
        self.size = int(min(max(self.size * factor, smallest), max(_LARGEST, self.hop.batch_size)))

    def _take_rows(self, ctx: HopContext, cursor: Any) -> tuple[int, bool]:
        assert self.hop.run is not None  # noqa: S101 - a hop has SQL or code
        batch = self._batch()
        batch.read(cursor, self.cursor, self.size, BUDGET)
        taken = len(batch.rows)
        if taken:
            self.hop.run(ctx, batch.rows)
            ctx.flush()
            validate_rows(ctx, self.hop, batch.settle())
            ctx.rows_changed += batch.write_back(cursor)
            self.cursor = batch.last
        return taken, batch.is_cut or taken == self.size

    def _batch(self) -> GraphRows | OwnRows:
        match self._over:
            case Nodes():
                return GraphRows(Node, self._keyset)
            case Edges():
                return GraphRows(Edge, self._keyset)
            case Rows():
                return OwnRows(self._keyset)

    def _take_sql(self, ctx: HopContext, cursor: Any) -> tuple[int, bool]:
        assert self.hop.sql is not None  # noqa: S101 - the caller looked
        first, last, text, taken = self._keyset.bounds(cursor, self.cursor, self.size)
        if text is not None:
            ctx.execute(self.hop.sql, {"first": first, "last": last})
            validate_range(ctx, self.hop, self._over, first, last)
            self.cursor = [text]
        return taken, taken == self.size


def _cursor(ctx: HopContext) -> Any:
    """A driver's cursor in the hop's transaction: reading 5,000 rows through an ORM costs ten times this."""
    return ctx.connection.connection.cursor()
