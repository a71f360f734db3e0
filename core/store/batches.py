"""Reading a graph's rows in the order of their key, one batch at a time."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from graph_migrator.core.errors import HopAddsRows
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

MAX_BATCH_CHARACTERS: Final = 1_000_000
"""A batch of rows that come to Python ends at about this many characters, so that memory is bounded."""

MOST_ADDED: Final = 1_000
"""Rows that a hop inserted itself and may process, beside as many as there were at the start."""

_TOTAL_BEFORE: Final = """
SELECT total FROM graph_migrator.hop_attempts
WHERE migration_id = (SELECT migration_id FROM graph_migrator.graphs WHERE id = %s) AND to_version = %s
  AND total IS NOT NULL ORDER BY id DESC LIMIT 1
"""


@dataclass(frozen=True)
class Taken:
    """One batch that the hop has processed.

    Attributes:
        rows: How many rows it had.
        last: The key of its last row; that of the row before it where it had none.
        is_full: There may be rows after it.
    """

    rows: int
    last: Key | None
    is_full: bool


@dataclass(frozen=True)
class FailedBatch:
    """Which rows a hop's code, its models or Postgres refused: at most `size` rows after a key."""

    walk: BatchWalk
    after: Key | None
    size: int

    def __str__(self) -> str:
        return self.walk.describe(self.after, self.size)


def remember_batch(error: Exception, batch: FailedBatch) -> None:
    """Note on an error which batch it came from, for `failed_batch`."""
    with suppress(AttributeError):  # a foreign class may refuse attributes
        error._graph_migrator_batch = batch  # type: ignore[attr-defined] # any exception can carry one


def failed_batch(error: BaseException) -> FailedBatch | None:
    """The batch that an error came from."""
    found = getattr(error, "_graph_migrator_batch", None)
    return found if isinstance(found, FailedBatch) else None


class BatchWalk:
    """A hop's way through its rows; `core.graph_types.selectors` says which rows are visited.

    Attributes:
        cursor: The key of the last row that has the new shape; None at the start.
        done: Rows visited, those of earlier attempts included.
        size: Rows that the next batch may have.
        staged: Rows whose changes the last batch has staged, of a rebuild hop.
        is_at_start: No batch was taken, in this attempt or an earlier one.
        is_at_end: The last batch was taken.
    """

    def __init__(
        self,
        hop: DirectedHop,
        graph: GraphFacts,
        *,
        after: list[Any] | None,
        done: int,
        shard: Mapping[str, Any] | None = None,
        rebuild: int | None = None,
    ) -> None:
        assert hop.over is not None  # noqa: S101 - that is what makes it batched
        self.hop = hop
        self.graph = graph
        self.cursor: Key | None = after
        self.done = done
        self.size = hop.batch_size
        self.is_at_start = after is None
        self.is_at_end = False
        self.staged = 0
        self._total = 0
        self._most: int | None = None
        self._over: Nodes | Edges | Rows = hop.over
        self._shard = shard
        self._rebuild = rebuild
        if shard is not None and after is None and shard["after"] is not None:
            self.cursor = shard["after"]
        self._keyset = Keyset(hop.over, graph, upto=None if shard is None else shard["upto"])

    def count(self, executor: Executor) -> int:
        """How many rows there are to process, those behind the cursor included.

        They are counted once, at the start: later the selector may no longer pick the rows that are done.
        """
        if self._shard is not None:
            total = int(self._shard["total"])
        else:
            with executor.cursor() as cursor:
                before = None if self.is_at_start else self._total_before(cursor)
                total = self._keyset.count(cursor) if before is None else before
        self._total, self._most = total, max(2 * total, self.done) + MOST_ADDED
        return total

    def _total_before(self, cursor: Any) -> int | None:
        cursor.execute(_TOTAL_BEFORE, (self.graph.id, self.hop.to_version))
        found = cursor.fetchone()
        return int(found[0]) if found else None

    def advance(self, ctx: HopContext) -> None:
        """Take one batch: read, run the hop's code, validate, write back. Moves `cursor` and `done`.

        Raises:
            InvalidGraphData: The hop left data that does not fit the models of its version.
            HopAddsRows: It has processed far more rows than there were, so it inserts what it processes.
            ValueError: The hop did to its rows what it must not do.
            Exception: What the hop raised.
        """
        self.is_at_start = False
        self.staged = 0
        try:
            with _no_cycle_collection():
                taken = self.take(ctx, self.cursor, self.size)
        except Exception as error:
            remember_batch(error, FailedBatch(self, self.cursor, self.size))
            raise
        self.cursor = taken.last
        self.done += taken.rows
        if self._most is not None and self.done > self._most:
            raise HopAddsRows(self.graph.slug, self.hop.name, self.done, self._total)
        # A hop may have put rows ahead of the cursor, even while it processed the last ones.
        self.is_at_end = not taken.is_full and not (
            taken.rows and self._keyset.has_more(_cursor(ctx), self.cursor or [])
        )
        if self.is_at_end and self._shard is None:
            validate_labels(ctx, self.hop, except_for=self._over)

    def take(self, ctx: HopContext, after: Key | None, size: int) -> Taken:
        """Process at most `size` rows after a key. Changes nothing but the rows.

        Raises:
            Exception: As `advance`.
        """
        take = self._take_sql if self.hop.sql is not None else self._take_rows
        return take(ctx, _cursor(ctx), after, size)

    def describe(self, after: Key | None, size: int) -> str:
        """Some rows in words, by their keys alone."""
        what = {Nodes: "node", Edges: "edge", Rows: "row"}[type(self._over)]
        where = f"after {_in_words(after)}" if after is not None else "at the start"
        return f"among {size} {what}s {where}" if size > 1 else f"at the {what} {where}"

    def describe_row(self, key: Key) -> str:
        """One row in words, by its key alone."""
        match self._over:
            case Nodes():
                return f"at node {_in_words(key)}"
            case Edges():
                return f"at edge {_in_words(key)}"
            case Rows(table=table):
                return f"at row {_in_words(key)} of {table}"

    def adapt(self, seconds: float, target: float) -> None:
        """Make the next batch larger or smaller, towards `target` seconds; at most by half or double."""
        factor = min(2.0, max(0.5, target / max(seconds, 1e-6)))
        smallest = min(_SMALLEST, self.hop.batch_size)
        self.size = int(min(max(self.size * factor, smallest), max(_LARGEST, self.hop.batch_size)))

    def _take_rows(self, ctx: HopContext, cursor: Any, after: Key | None, size: int) -> Taken:
        assert self.hop.run is not None  # noqa: S101 - a hop has SQL or code
        batch = self._batch()
        batch.read(cursor, after, size, MAX_BATCH_CHARACTERS)
        rows = len(batch.rows)
        if not rows:
            return Taken(0, after, is_full=batch.is_cut)
        self.hop.run(ctx, batch.rows)
        ctx.flush()
        validate_rows(ctx, self.hop, batch.settle())
        if self._rebuild is None:
            ctx.rows_changed += batch.write_back(cursor)
        else:
            assert isinstance(batch, GraphRows)  # noqa: S101 - a type with others is refused when it is loaded
            self.staged = batch.stage(cursor, self._rebuild)
            ctx.rows_changed += self.staged
        return Taken(rows, batch.last, is_full=batch.is_cut or rows == size)

    def _batch(self) -> GraphRows | OwnRows:
        match self._over:
            case Nodes():
                return GraphRows(Node, self._keyset)
            case Edges():
                return GraphRows(Edge, self._keyset)
            case Rows():
                return OwnRows(self._keyset)

    def _take_sql(self, ctx: HopContext, cursor: Any, after: Key | None, size: int) -> Taken:
        assert self.hop.sql is not None  # noqa: S101 - the caller looked
        first, last, text, rows = self._keyset.bounds(cursor, after, size)
        if text is None:
            return Taken(rows, after, is_full=rows == size)
        ctx.execute(self.hop.sql, {"first": first, "last": last})
        validate_range(ctx, self.hop, self._over, first, last)
        return Taken(rows, [text], is_full=rows == size)

    def key_after(self, ctx: HopContext, after: Key | None) -> Key | None:
        """The key of the first row after another one; None where there is none."""
        cursor = _cursor(ctx)
        cursor.execute(self._keyset.page(cursor, self._keyset.key_texts(), after, 1))
        found = cursor.fetchone()
        return list(found) if found else None


@contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """Pause Python's search for cycles: a batch's rows, none of which is garbage, set it off again and again.

    Measured at a fifth of a batched hop's time. What a batch leaves is freed by its reference counts.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _in_words(key: Key) -> str:
    return "/".join(repr(part) for part in key)


def _cursor(ctx: HopContext) -> Any:
    """A driver's cursor in the hop's transaction: reading 5,000 rows through an ORM costs ten times this."""
    return ctx.connection.connection.cursor()
