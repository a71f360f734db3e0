"""Adopting graphs that were migrated by other means: the version moves, the data stays, and the audit says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import text

from graph_migrator.core.decision_inputs import BeginState
from graph_migrator.core.errors import IllegalTransition, InvalidRequest, UnknownGraph, UnknownTarget
from graph_migrator.core.execution.begin import lock_and_load_graph, partially_migrated
from graph_migrator.core.execution.model import Caller, Worker
from graph_migrator.core.graph_types.context import GraphFacts, HopContext
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.statuses import Verb
from graph_migrator.core.store.locks import GraphLock
from graph_migrator.core.store.protocol import Baseline
from graph_migrator.core.store.session import Executor


class BaselineReport(BaseModel):
    """What `baseline` did, or with `dry_run` would do, to one graph."""

    model_config = ConfigDict(frozen=True)

    graph: str = Field(description="The graph's slug.")
    graph_id: UUID
    from_version: int
    to_version: int
    migration_id: UUID | None = Field(description="The row that records it; None where nothing was changed.")

    @property
    def changes(self) -> bool:
        """Whether the version is another one."""
        return self.from_version != self.to_version


def baseline(
    executor: Executor,
    graph: str,
    version: int | None,
    caller: Caller,
    *,
    from_version: int | None = None,
    dry_run: bool = False,
) -> BaselineReport:
    """Say that a graph's data is of a version already. No hop runs and no data changes.

    It is recorded as a migration without hops, with who and why, and as a request.

    Args:
        executor: The session to do it on.
        graph: Id or slug.
        version: The version of its data; None asks the type's `detect` function.
        caller: Who says so, and why.
        from_version: Refuse a graph that is at another version than this one: it was changed since it was looked at.
        dry_run: Only say what would be done.

    Raises:
        UnknownGraph, UnknownGraphType, UnknownTarget: Nothing was changed.
        InvalidRequest: The version cannot be seen in the data, no reason is given, or the graph is not at
            `from_version`. Nothing was changed.
        IllegalTransition, GraphPartiallyMigrated: A migration owns the graph, or stopped inside of a hop.
        OpenWriteTransactions: Writers did not end in time.
    """
    if not (caller.reason or "").strip():
        raise InvalidRequest("reason", "it is blank; a baseline is recorded with who and why")
    state = lock_and_load_graph(executor, graph, None)
    with GraphLock(executor, state.graph_id, held=state.locked, stamp=not dry_run):
        if state.graph_id is None:
            raise UnknownGraph(graph)
        _require_free(state)
        if from_version not in (None, state.version):
            moved = f"it came from v{from_version} to v{state.version} meanwhile; look at it again"
            raise InvalidRequest(state.slug, moved)
        kind = graph_type(state.graph_type)
        to = version if version is not None else _detected(executor, state)
        if not kind.oldest <= to <= kind.newest:
            raise UnknownTarget(state.slug, kind.name, to, kind.oldest, kind.newest)
        migration = None if dry_run or to == state.version else uuid4()
        if migration is not None:
            executor.call(
                Baseline(
                    migration=migration,
                    graph=state.graph,
                    graph_type=state.graph_type,
                    from_=state.version,
                    to=to,
                    worker=Worker().name,
                    by=caller.requested_by,
                    reason=caller.reason,
                )
            )
    return BaselineReport(
        graph=state.slug,
        graph_id=state.graph_id,
        from_version=state.version,
        to_version=to,
        migration_id=migration,
    )


def _require_free(state: BeginState) -> None:
    if state.claim is not None:
        status = state.status or "gone"
        raise IllegalTransition(state.slug, Verb.BASELINE, status, ["no migration at all"], str(state.claim))
    if state.partially_migrated is not None:
        raise partially_migrated(state)


def _detected(executor: Executor, state: BeginState) -> int:
    """Ask the type, under the graph's lock: no writer and no migration changes the data meanwhile."""
    kind = graph_type(state.graph_type)
    if kind.detector is None:
        raise InvalidRequest(
            state.slug, f"graph type {kind.name!r} has no @{kind.name}.detect function; name the version"
        )
    with _reading(executor, state) as ctx:
        found: object = kind.detector(ctx)
    if not isinstance(found, int) or isinstance(found, bool):
        raise InvalidRequest(
            state.slug, f"@{kind.name}.detect gave {found!r} for it, which is no version; name the version"
        )
    return found


@contextmanager
def _reading(executor: Executor, state: BeginState) -> Iterator[HopContext]:
    facts = GraphFacts(state.graph, state.slug, state.graph_type, state.version)
    with executor.connection.engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        ctx = HopContext(
            connection, facts, hop="detect", from_version=state.version, to_version=state.version
        )
        try:
            yield ctx
        finally:
            ctx.close()
            connection.rollback()
