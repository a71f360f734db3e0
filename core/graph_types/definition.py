"""Graph types: the versions of a kind of graph, and the hops between them.

    knowledge = GraphType("knowledge")

    @knowledge.hop(1, 2)
    def rename_knows(ctx):
        '''KNOWS becomes ACQUAINTED_WITH.'''
        ctx.execute("UPDATE edges SET type = 'ACQUAINTED_WITH' WHERE graph_id = :graph_id AND type = 'KNOWS'")

    @rename_knows.reverse
    def rename_back(ctx): ...

A type is data: nothing here touches a database. `core.graph_types.registry` checks a type (`GraphType.validate`) before
it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, TypeVar, overload

from graph_migrator.core.errors import InvalidGraphType
from graph_migrator.core.graph_types.checks import problems_of
from graph_migrator.core.graph_types.directed_hop import (
    BATCH_SIZE,
    UNDO_FOR,
    Check,
    DirectedHop,
    Direction,
    HopFunction,
    HopOptions,
    Models,
    Shards,
    When,
)

if TYPE_CHECKING:
    from graph_migrator.core.graph_types.context import HopContext
    from graph_migrator.core.graph_types.selectors import Selector

__all__ = ["DirectedHop", "Direction", "GraphType", "Hop"]

_F = TypeVar("_F", bound=HopFunction)

Detect = Callable[["HopContext"], int | None]
"""Sees in a graph's data which version it is of; None where it cannot say."""


@dataclass(eq=False)
class Hop:
    """The edge between two neighbouring versions. Calling it calls its forward function, as in a test.

    Attributes:
        graph_type: The type that it belongs to.
        name: Unique in its type; the name of the forward function.
        from_version: The lower version.
        to_version: The upper one.
        directions: The directions in which it can be run.
    """

    graph_type: GraphType = field(repr=False)
    name: str
    from_version: int
    to_version: int
    directions: dict[Direction, DirectedHop] = field(default_factory=dict, repr=False)

    @property
    def forward(self) -> DirectedHop:
        """The way from the lower version to the upper one."""
        return self.directions[Direction.FORWARD]

    @property
    def is_reversible(self) -> bool:
        """Whether there is a way back."""
        return Direction.REVERSE in self.directions

    @property
    def undo(self) -> DirectedHop:
        """The way back of a rebuild hop without a reverse: it has no code, only the old values that were kept."""
        return replace(
            self.forward,
            from_version=self.to_version,
            to_version=self.from_version,
            direction=Direction.REVERSE,
            run=None,
            when=None,
            check=None,
            node_models={},
            edge_models={},
        )

    @property
    def description(self) -> str:
        """One line for people."""
        return self.forward.description

    @overload
    def reverse(self, function: _F, /) -> _F: ...

    @overload
    def reverse(
        self, /, *, over: Selector | None = None, when: When | None = None, check: Check | None = None
    ) -> Callable[[_F], _F]: ...

    def reverse(
        self,
        function: _F | None = None,
        /,
        *,
        over: Selector | None = None,
        when: When | None = None,
        check: Check | None = None,
    ) -> _F | Callable[[_F], _F]:
        """Declare the way back, as ``@hop.reverse`` or ``@hop.reverse(when=…, check=…)``.

        Batch size, `shards`, `rebuild`, `retry_on` and `timeout` are the hop's. Its `when` and `check` apply to the
        forward direction only.

        Args:
            function: Takes what the hop's own function takes.
            over: What the reverse hop processes, where it is not what the hop processes: a hop that renames the
                label of its nodes has to select the new label on the way back.
            when: Precondition of the way back.
            check: Postcondition of the way back.

        Returns:
            The function as it was.

        Raises:
            InvalidGraphType: There is a reverse already, or the function's source is unavailable.
        """
        there = self.forward
        options = HopOptions(
            over=over or there.over,
            batch_size=there.batch_size,
            when=when,
            check=check,
            retry_on=there.retry_on,
            timeout=there.timeout,
            shards=there.shards,
            rebuild=there.rebuild,
        )

        def declare(function: _F) -> _F:
            self.add(Direction.REVERSE, function, options)
            return function

        return declare if function is None else declare(function)

    def add(
        self,
        direction: Direction,
        code: HopFunction | str,
        options: HopOptions,
        description: str | None = None,
    ) -> None:
        """Add a direction in which the hop can be run; `GraphType` and `reverse` do it.

        Raises:
            InvalidGraphType: It is there already, or the code's source is unavailable.
        """
        kind = self.graph_type
        if direction in self.directions:
            raise InvalidGraphType(kind.name, f"hop {self.name!r} has two ways in {direction}")
        versions = (self.from_version, self.to_version)
        start, end = versions if direction is Direction.FORWARD else versions[::-1]
        try:
            self.directions[direction] = DirectedHop.declare(
                code,
                options,
                name=self.name,
                versions=(start, end),
                direction=direction,
                models=(kind.nodes.get(end, {}), kind.edges.get(end, {})),
                digest=kind.digest,
                description=description,
            )
        except OSError as error:
            reason = f"hop {self.name!r} has no fingerprint, its source is unavailable ({error}). "
            raise InvalidGraphType(kind.name, f"{reason}Define it in a file, not in exec()") from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the forward function.

        Raises:
            TypeError: The hop is SQL.
        """
        if self.forward.run is None:
            raise TypeError(f"hop {self.name!r} is SQL and cannot be called; its text is .forward.sql")
        return self.forward.run(*args, **kwargs)


class GraphType:
    """A kind of graph: its versions, the hops between them, and what its data must look like.

    Attributes:
        name: Lower-case letters, digits, ``_`` and ``-``, at most 63.
        nodes: Models of node properties by version and label.
        edges: Models of edge properties by version and type.
        digest: Whether each hop records digests of the graph's nodes and edges before and after it.
        detector: Sees in a graph's data which version it is of; None where none is declared.
        module: The name of the module that defines the type.
    """

    def __init__(
        self,
        name: str,
        *,
        nodes: Mapping[int, Models] | None = None,
        edges: Mapping[int, Models] | None = None,
        digest: bool = False,
    ) -> None:
        """Name the type; its hops are declared with `hop` and `sql_hop`.

        A version without models, or a label without a model in its version, is not validated. With `digest`, each hop
        reads all nodes and edges of its graph twice more, and `audit verify --data` says later whether the graph still
        is what its last hop left. Tables of your own are not in the digest.
        """
        self.name = name
        self.nodes = dict(nodes or {})
        self.edges = dict(edges or {})
        self.digest = digest
        self.detector: Detect | None = None
        self._hops: list[Hop] = []
        self.module: str = sys._getframe(1).f_globals.get("__name__", "")

    def __repr__(self) -> str:
        """The type's name, as code."""
        return f"GraphType({self.name!r})"

    # ── declaring ───────────────────────────────────────────────────────────────────────────────────

    def hop(
        self,
        from_version: int,
        to_version: int,
        *,
        over: Selector | None = None,
        batch_size: int = BATCH_SIZE,
        when: When | None = None,
        check: Check | None = None,
        retry_on: type[Exception] | tuple[type[Exception], ...] = (),
        timeout: float | None = None,
        shards: Shards | None = None,
        rebuild: bool = False,
        undo_for: float | timedelta = UNDO_FOR,
    ) -> Callable[[HopFunction], Hop]:
        """Declare a hop: the decorated function moves a graph from one version to the next.

        Without `over`, the hop is one transaction and its function takes ``(ctx)``. With it, the hop is
        batched, a transaction and a checkpoint for each batch, and its function takes ``(ctx, rows)``; what
        is visited is described in `core.graph_types.selectors`. The first line of the docstring describes the hop.

        Args:
            from_version: The version that the graph has before.
            to_version: The next one.
            over: What a batched hop processes.
            batch_size: Rows of the first batch; the worker adapts it to the time that batches take.
            when: Precondition; where it is false the hop is skipped and the version still moves.
            check: Postcondition, in the hop's last transaction.
            retry_on: Errors of the hop that are worth another try.
            timeout: Seconds after which the hop fails.
            shards: Cut the hop into so many ranges of its rows (`"auto"`: one for each 100,000, 256 at most), which
                run side by side on as many pool processes as are free. The hop's code then sees one range: it may read
                the whole graph, whose other rows are of either version, and write nothing but the rows that it is
                given, and rows that it inserts into or deletes from that very range; the write guard refuses all else.
                Not with `when`. `check`, and models of other rows, come at the end, once. A graph with fewer than two
                batches of rows is not cut, nor are `Rows` whose key is not of Postgres's own types and enums; of a
                table without the write guard nobody refuses rows of another range.
            rebuild: Readers see the old version whole until the hop's last commit, and then the new one. Batches stage
                what the function changes in the rows that it is given; that is all that it may write: the write guard
                refuses the rest. Whatever it reads is the old version, also where a row is staged already. `when` sees
                the old version, `check` the new one; neither writes. For `Nodes` and `Edges`, in
                `shards` or not.
            undo_for: Seconds, or a timedelta, for which the old values are kept. Until then, and until the graph is
                changed, going back takes one commit, which restores them, also where the hop has no reverse.

        Raises:
            InvalidGraphType: The function's source is unavailable, so that it has no fingerprint.
        """
        options = HopOptions(
            over=over,
            batch_size=batch_size,
            when=when,
            check=check,
            retry_on=retry_on if isinstance(retry_on, tuple) else (retry_on,),
            timeout=timeout,
            shards=shards,
            rebuild=rebuild,
            undo_for=undo_for.total_seconds() if isinstance(undo_for, timedelta) else undo_for,
        )

        def declare(function: HopFunction) -> Hop:
            hop = Hop(self, getattr(function, "__name__", type(function).__name__), from_version, to_version)
            hop.add(Direction.FORWARD, function, options)
            self._hops.append(hop)
            update_wrapper(hop, function)
            return hop

        return declare

    def sql_hop(
        self,
        from_version: int,
        to_version: int,
        *,
        name: str,
        forward: str,
        reverse: str | None = None,
        over: Selector | None = None,
        batch_size: int = BATCH_SIZE,
        when: When | None = None,
        check: Check | None = None,
        timeout: float | None = None,
        shards: Shards | None = None,
        doc: str = "",
    ) -> Hop:
        """Declare a hop that is one SQL statement.

        The statement names the graph as ``:graph_id``. A batched one names its batch by the first and the
        last key in it: ``WHERE graph_id = :graph_id AND id BETWEEN :first AND :last``. Repeat the selector's
        own condition (the label, the type, `where`) in it: between two keys there are other rows, too.

        Args:
            from_version: The version that the graph has before.
            to_version: The next one.
            name: The hop's name, unique in its type.
            forward: The statement.
            reverse: The statement for the way back; none makes the hop irreversible, unless a Python
                function is declared with `Hop.reverse`.
            over: What a batched hop processes; its key is a single column.
            batch_size: Rows of the first batch.
            when: Precondition of the way forward.
            check: Postcondition of the way forward.
            timeout: Seconds after which the hop fails, in either direction.
            shards: Cut the hop, in either direction, into ranges that run side by side; see `hop`.
            doc: One line that describes the hop.

        Raises:
            InvalidGraphType: The source of `when` or `check` is unavailable.
        """
        hop = Hop(self, name, from_version, to_version)
        way_back = HopOptions(over=over, batch_size=batch_size, timeout=timeout, shards=shards)
        hop.add(Direction.FORWARD, forward, replace(way_back, when=when, check=check), doc)
        if reverse is not None:
            hop.add(Direction.REVERSE, reverse, way_back, doc)
        self._hops.append(hop)
        return hop

    def detect(self, function: Detect) -> Detect:
        """Declare how a graph's version is seen in its data, as ``@knowledge.detect``.

        `graph-migrator baseline --detect` asks it about graphs that were migrated by other means.

        Args:
            function: Takes ``(ctx)`` in a read-only transaction; returns the version, or None where it cannot be seen.

        Returns:
            The function as it was.
        """
        self.detector = function
        return function

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def hops(self) -> tuple[Hop, ...]:
        """All hops, from the oldest version to the newest."""
        return tuple(sorted(self._hops, key=lambda hop: (hop.from_version, hop.to_version)))

    @property
    def oldest(self) -> int:
        """The version that the first hop starts from."""
        return self._some_hops()[0].from_version

    @property
    def newest(self) -> int:
        """The version that the last hop leads to."""
        return self._some_hops()[-1].to_version

    def directed(self, from_version: int, to_version: int) -> DirectedHop:
        """The hop between two neighbouring versions, from the first to the second.

        The way back of a rebuild hop without a reverse is its `undo`.

        Raises:
            LookupError: There is no such hop, or it has no reverse.
        """
        low, high = sorted((from_version, to_version))
        direction = Direction.FORWARD if from_version == low else Direction.REVERSE
        for hop in self._hops:
            if (hop.from_version, hop.to_version) == (low, high):
                if direction in hop.directions:
                    return hop.directions[direction]
                if hop.forward.rebuild:
                    return hop.undo
                raise LookupError(f"{self.name}: hop {hop.name!r} (v{low}→v{high}) has no reverse")
        raise LookupError(f"{self.name}: there is no hop between v{from_version} and v{to_version}")

    def _some_hops(self) -> tuple[Hop, ...]:
        if not self._hops:
            raise InvalidGraphType(self.name, "it has no hops")
        return self.hops

    # ── checking ────────────────────────────────────────────────────────────────────────────────────

    def validate(self) -> None:
        """Check that the type does not contradict itself.

        Raises:
            InvalidGraphType: It does; all that is wrong is named.
        """
        problems = dict.fromkeys(problems_of(self))
        if problems:
            raise InvalidGraphType(self.name, "; ".join(problems))
