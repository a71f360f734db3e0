"""A hop that is cut into shards: the cut, which shard is sent when, and who closes the hop.

docs/decisions/0014-sharded-hops.md says why it is done this way. The hop's own message coordinates: under the graph's
exclusive lock it cuts the hop, sends what is not done, or closes the hop where all is done. A shard's executor holds
the graph's lock shared and its shard's own; when it has left both, it looks at the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from graph_migrator.core.decision_inputs import HopState
from graph_migrator.core.decisions import HopMessage, Ignored, Later
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.model import Sharded
from graph_migrator.core.execution.recorded import load_dispatch
from graph_migrator.core.execution.recovery import settle_now
from graph_migrator.core.graph_types.context import GraphFacts
from graph_migrator.core.graph_types.definition import DirectedHop
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.keyset import Key, Keyset
from graph_migrator.core.store.protocol import (
    CutShards,
    GraphDigest,
    NextShards,
    PrepareRebuild,
    ShardsToSend,
)
from graph_migrator.core.store.session import Executor

SHARD_ROWS: Final = 100_000
MOST_SHARDS: Final = 256


def coordinate(
    executor: Executor, message: HopMessage, state: HopState, hop: DirectedHop
) -> Sharded | Ignored | Later | None:
    """Do what a hop's message asks for where the hop runs in shards. The caller holds the graph's lock.

    Returns:
        What to send; None where the hop is to be run: it is not cut, or all its shards are done and it is to be closed.
        `Ignored` where an operator was quicker; `Later` where what other code has staged was discarded with its shards.
    """
    # A hop that stands half-way goes on as it began, whatever its code says about shards today. What is taken back by
    # the old values needs neither.
    if not state.shards and (hop.shards is None or state.cursor is not None or state.undo is not None):
        return None
    shards, rebuild_id, may_cut = state.shards, None, hop.shards is not None
    if hop.rebuild or shards:
        prepared = executor.call(_preparing(message, state, hop))
        shards, rebuild_id = prepared.shards, prepared.rebuild_id
        may_cut = may_cut and not prepared.is_begun
    if not shards:
        found_cut = cut(executor, _graph_of(state), hop) if may_cut else None
        if found_cut is None:
            return Later(0, "its shards were of other code") if state.shards else None
        if not executor.call(_cutting(executor, message, state, hop, found_cut, rebuild_id)):
            return Ignored("the migration has changed meanwhile")
        failpoints.hit("shards_cut")
    found = _next(executor, message, anew=True)
    failpoints.hit("shards_chosen")
    for lost_id in found.lost_ids:
        publish.lost(executor, message.migration_id, lost_id, "executor")
    if found.status != MigrationStatus.RUNNING:
        return Ignored(f"the migration is {found.status}")
    return None if found.all_done else Sharded(_messages(message, found))


def leave(executor: Executor, message: HopMessage) -> Sharded | Ignored:
    """What is left to do once a shard's executor holds no lock any more: perhaps it was the last one."""
    failpoints.hit("shard_left")
    found = _next(executor, message, anew=False)
    if found.status in {MigrationStatus.PAUSING, MigrationStatus.CANCELLING}:
        settle_now(executor, message.migration_id)
    if found.status != MigrationStatus.RUNNING:
        return Ignored(f"the migration is {found.status}")
    if not found.all_done:
        return Sharded(_messages(message, found))
    try:
        return Sharded(closing=load_dispatch(executor, message.migration_id, expect=message.dispatch))
    except LookupError:
        return Ignored("the migration has ended or gone on meanwhile")


@dataclass(frozen=True)
class Cut:
    """The rows of a hop in ranges.

    Attributes:
        table: The table's name, with its schema.
        key: The columns of its key.
        ranges: Two or more of equal rows, each as its last key (None: to the end) and its rows.
    """

    table: str
    key: tuple[str, ...]
    ranges: list[tuple[Key | None, int]]


def cut(executor: Executor, graph: GraphFacts, hop: DirectedHop) -> Cut | None:
    """Cut the rows of a hop; None where the graph is small, or its key is of types that the guard cannot compare."""
    assert hop.over is not None  # noqa: S101 - a hop with shards has a selector
    keyset = Keyset(hop.over, graph)
    with executor.cursor() as cursor:
        total = keyset.count(cursor)
        wanted = min(max(2, total // SHARD_ROWS), MOST_SHARDS) if hop.shards == "auto" else hop.shards or 1
        number = min(wanted, total // hop.batch_size)
        table = keyset.cut_table(cursor) if number >= 2 else None
        if table is None:
            return None
        rows = -(-total // number)
        lasts = keyset.every(cursor, rows)
    if len(lasts) * rows == total:  # the last row ends a range, and the last range has no end
        lasts.pop()
    return Cut(table, keyset.key, [*((last, rows) for last in lasts), (None, total - rows * len(lasts))])


def _cutting(
    executor: Executor,
    message: HopMessage,
    state: HopState,
    hop: DirectedHop,
    found: Cut,
    rebuild_id: int | None,
) -> CutShards:
    return CutShards(
        migration=message.migration_id,
        to=message.to_version,
        status=state.status,
        dispatch=message.dispatch,
        table_name=found.table,
        key=list(found.key),
        rebuild=rebuild_id,
        shards=[list(each) for each in found.ranges],
        digest=executor.call(GraphDigest(graph=state.graph_id)) if hop.digest else None,
        deadline_seconds=settings().deadline_seconds,
    )


def _preparing(message: HopMessage, state: HopState, hop: DirectedHop) -> PrepareRebuild:
    return PrepareRebuild(
        migration=message.migration_id,
        graph=state.graph_id,
        from_=message.from_version,
        to=message.to_version,
        table_name=hop.over.table if hop.rebuild and hop.over is not None else None,
        fingerprint=hop.fingerprint,
    )


def _next(executor: Executor, message: HopMessage, *, anew: bool) -> ShardsToSend:
    return executor.call(
        NextShards(
            migration=message.migration_id,
            to=message.to_version,
            dispatch=message.dispatch,
            most_of_graph=settings().max_shards_per_graph,
            most_shards=settings().max_shards,
            anew=anew,
        )
    )


def _messages(message: HopMessage, found: ShardsToSend) -> tuple[HopMessage, ...]:
    return tuple(
        HopMessage(message.migration_id, message.from_version, message.to_version, message.dispatch, number)
        for number in found.numbers
    )


def _graph_of(state: HopState) -> GraphFacts:
    assert state.version is not None  # noqa: S101 - a claimed graph cannot be deleted
    return GraphFacts(state.graph_id, state.slug, state.graph_type, state.version, state.config or {})
