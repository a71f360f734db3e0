"""Killing an executor at every boundary, and holding what recovery makes of it against a run without crash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import follow
from graph_migrator.core.execution.model import Dispatch
from graph_migrator.core.execution.recorded import load_dispatch, load_report
from graph_migrator.core.execution.recovery import sweep, sweeping
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.store.session import Executors
from graph_migrator.core.testing.assertions import require_same, require_type
from graph_migrator.core.testing.sample import SampleGraph

BOUNDARIES = frozenset(
    {
        "hop_opened", "hop_before_data", "hop_after_data", "hop_before_commit", "hop_committed",
        "batch_before_data", "batch_before_commit", "batch_committed",
        "shards_cut", "shards_chosen", "shard_opened", "shard_before_commit", "shard_committed", "shard_left",
        "rebuild_before_swap", "rebuild_swapped", "undo_before_data",
    }
)  # fmt: skip
"""Where the executor dies: around each batch and each commit."""


class Crash(BaseException):
    """The executor dies. No `except Exception` in a hop stops it, as none stops SIGKILL."""


def assert_survives_crash(
    graph_type: GraphType, graph: SampleGraph, target: int | None = None, *, batch_size: int = 2
) -> None:
    """Let the executor die once at every boundary on the way to `target`, each time on a copy of the graph.

    Its connection is closed there; recovery finds what it left and the migration goes on. In the end the
    data must be what it is without a crash. That shows what a hop does outside of its transaction, or
    twice to the same row.

    Args:
        graph_type: The type whose hops are run.
        graph: The graph to copy.
        target: The version to reach; None for the newest.
        batch_size: Rows of the first batch of batched hops, so that a small graph has several.

    Raises:
        AssertionError: After some crash the data differ; names where the executor died.
        Exception: What a hop raised.
    """
    require_type(graph_type, graph)
    goal = graph_type.newest if target is None else target
    with _small_batches(graph_type, batch_size):
        with _dying_at(None) as passed:
            whole = graph.copy().migrate(goal).contents()
        for number, point in enumerate(passed):
            copy = graph.copy()
            _crash_and_recover(copy, goal, number)
            when = f"after a crash at {point} (boundary {number + 1} of {len(passed)})"
            if copy.version != goal:
                raise AssertionError(f"{when}, the graph is at v{copy.version}, not at v{goal}")
            require_same(copy.contents(), whole, when)


def _crash_and_recover(graph: SampleGraph, goal: int, number: int) -> None:
    executors = Executors(graph.engine)
    try:
        with executors.borrow() as executor:
            begun = begin_migration(executor, graph.id, goal)
        assert isinstance(begun, Dispatch)  # noqa: S101 - the graph is new and not at the goal
        try:
            with _dying_at(number):
                follow(executors, begun)
        except Crash:
            _recover(executors, begun)
    finally:
        executors.close()


def _recover(executors: Executors, begun: Dispatch) -> None:
    """What a worker does about it, at once: sweep, and where nothing was running, redeliver without waiting."""
    with sweeping(executors) as sweeper:
        if sweeper is not None:
            sweep(sweeper)
    with executors.borrow() as executor:
        if load_report(executor, begun.migration_id).status.is_settled:
            return
        rest = load_dispatch(executor, begun.migration_id)
    follow(executors, rest)


@contextmanager
def _dying_at(number: int | None) -> Iterator[list[str]]:
    """Die at the boundary of this number, counted from 0; yields the boundaries that were passed."""
    passed: list[str] = []
    before = failpoints.hook

    def reach(point: str) -> None:
        if point in BOUNDARIES:
            passed.append(point)
            if len(passed) - 1 == number:
                raise Crash(point)

    failpoints.hook = reach
    try:
        yield passed
    finally:
        failpoints.hook = before


@contextmanager
def _small_batches(graph_type: GraphType, size: int) -> Iterator[None]:
    ways = [way for hop in graph_type.hops for way in hop.directions.values() if way.is_batched]
    before = [way.batch_size for way in ways]
    try:
        for way in ways:
            object.__setattr__(way, "batch_size", min(size, way.batch_size))
        yield
    finally:
        for way, original in zip(ways, before, strict=True):
            object.__setattr__(way, "batch_size", original)
