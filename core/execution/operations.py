"""What operators can do to a migration: retry, cancel, pause, resume, release; lock and unlock a graph.

Each verb follows one edge of the state machine, or is refused with the state it met. A verb that came as
a message is written down with its outcome in the same transaction, so that the message can come twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.decision_inputs import BeginState, OperatorState
from graph_migrator.core.decisions import Later, ResumeFailed, decide_begin
from graph_migrator.core.errors import GraphBusy, IllegalTransition, UnknownGraph
from graph_migrator.core.events import publish
from graph_migrator.core.execution.begin import (
    begin_migration,
    lock_and_load_graph,
    partially_migrated,
    require_same_code,
    retry_migration,
)
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.recorded import load_dispatch, recorded_outcome
from graph_migrator.core.execution.recovery import settle_now
from graph_migrator.core.execution.waits import NotThisTurn, next_turn
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.planning import continue_plan, make_plan
from graph_migrator.core.plural import count
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import EDGES, Edge, MigrationStatus, Verb
from graph_migrator.core.store import protocol
from graph_migrator.core.store.lock_sessions import lock_holders
from graph_migrator.core.store.locks import GraphLock, hold_graph_lock
from graph_migrator.core.store.session import Executor


class VerbReport(BaseModel):
    """What a verb did."""

    model_config = ConfigDict(frozen=True)

    graph: str = Field(description="The graph's slug.")
    verb: str
    migration_id: UUID | None
    status: MigrationStatus | None = Field(description="Of the migration, afterwards.")
    dispatch: int | None = None
    message: str


def pause(
    executor: Executor, graph: str, caller: Caller | None = None, *, migration_id: UUID | None = None
) -> VerbReport:
    """Ask a migration to stop at the next hop or batch boundary. Nothing is undone.

    Raises:
        UnknownGraph: Nothing has this id or slug.
        IllegalTransition: The graph's migration is in another state.
    """
    return _ask(executor, graph, caller, migration_id, Verb.PAUSE, EDGES["ask_pause"])


def cancel(
    executor: Executor, graph: str, caller: Caller | None = None, *, migration_id: UUID | None = None
) -> VerbReport:
    """Ask a migration to end at the next hop or batch boundary. The graph stays at the version it reached.

    In the middle of a batched hop it fails (`PartiallyMigrated`) and keeps the graph, which is partially migrated.
    In a rebuild hop it does not: before the swap the graph is whole.

    Raises:
        UnknownGraph: Nothing has this id or slug.
        IllegalTransition: The graph's migration is in another state.
    """
    return _ask(executor, graph, caller, migration_id, Verb.CANCEL, EDGES["ask_cancel"])


def resume(
    executor: Executor,
    graph: str,
    caller: Caller | None = None,
    *,
    migration_id: UUID | None = None,
    turns: int | None = None,
) -> tuple[VerbReport, Dispatch | None]:
    """Let a paused migration go on.

    Args:
        executor: The session to do it on.
        graph: Id or slug.
        caller: Who asks.
        migration_id: The migration that is meant; the verb is refused where the graph is under another one.
        turns: How often this message has waited for the graph's lock before; None: wait for it in one go.

    Returns:
        What was done, and the chain to send; no chain where the migration had not stopped yet.

    Raises:
        UnknownGraph: Nothing has this id or slug.
        IllegalTransition: The graph's migration is in another state.
        GraphBusy: The graph's lock is unavailable.
        NotThisTurn: With `turns`: it is unavailable yet; call again then.
    """
    caller = caller or Caller()
    with executor.transaction():
        state = _look(executor, graph, caller, migration_id, Verb.RESUME)
        if state.known:
            return _answered(state.known_outcome), None
        _require(state, Verb.RESUME, EDGES["unpause"], EDGES["resume"])
        if state.status == MigrationStatus.PAUSING:  # its executor may hold the lock for hours
            return _unpause(executor, state, caller), None
    with _locked(executor, graph, turns=turns) as (graph_id, _), executor.transaction():
        state = _look(executor, graph, caller, migration_id, Verb.RESUME)
        if state.known:  # the same message, carried out meanwhile by another worker
            return _answered(state.known_outcome), None
        _require(state, Verb.RESUME, EDGES["resume"])
        edge = EDGES["resume"]
        number = _follow(executor, state, edge, again=True)
        report = _report(state, Verb.RESUME, edge.target, "goes on", number)
        _record(executor, caller, graph_id, report)
        publish.resumed(executor, state, state.owner, Verb.RESUME, number, caller)
    try:
        return report, load_dispatch(executor, state.owner)
    except LookupError:  # paused or ended again meanwhile
        return report, None


def _unpause(executor: Executor, state: OperatorState, caller: Caller) -> VerbReport:
    """It has not stopped yet: the same dispatch goes on."""
    edge = EDGES["unpause"]
    _follow(executor, state, edge, again=False)
    report = _report(state, Verb.RESUME, edge.target, "goes on; it had not stopped yet", state.dispatch)
    _record(executor, caller, state.graph_id, report)
    publish.resumed(executor, state, state.owner, Verb.RESUME, state.dispatch, caller)
    return report


def retry(
    executor: Executor,
    graph: str,
    caller: Caller | None = None,
    *,
    accept_new_code: bool = False,
    migration_id: UUID | None = None,
    turns: int | None = None,
) -> tuple[VerbReport, Dispatch | None]:
    """Continue a failed migration where it stopped, with the code that is loaded now.

    Also finishes a graph that was force-released in the middle of a batched hop.

    Args:
        executor: The session to do it on.
        graph: Id or slug.
        caller: Who asks.
        accept_new_code: Go on with a batched hop that stands half-way although its code has changed.
        migration_id: The migration that is meant; the verb is refused where the graph is under another one.
        turns: How often this message has waited for the graph's lock before; None: wait for it in one go.

    Returns:
        What was done, and the chain to send.

    Raises:
        NotThisTurn: With `turns`: the graph's lock is unavailable yet; call again then.
        UnknownGraph, UnknownGraphType: Nothing was changed.
        IllegalTransition: The graph's migration has not failed.
        GraphPartiallyMigrated: The code of the partially applied hop has changed.
    """
    caller = caller or Caller()
    state = lock_and_load_graph(executor, graph, caller.task_id, turns=turns)
    if isinstance(state, Later):
        raise NotThisTurn(state)
    with GraphLock(executor, state.graph_id, held=state.locked):
        if state.graph_id is None:
            raise UnknownGraph(graph)
        if state.request_known:
            return _answered(state.request_outcome), None
        _require_meant(state.slug, Verb.RETRY, state.claim, state.partially_migrated, migration_id)
        if state.partially_migrated is not None:
            return _finish_partially_migrated(executor, state, caller, accept_new_code=accept_new_code)
        return _retry_failed(executor, state, caller, accept_new_code=accept_new_code)


def _retry_failed(
    executor: Executor, state: BeginState, caller: Caller, *, accept_new_code: bool
) -> tuple[VerbReport, Dispatch]:
    target = state.to_version or state.version
    if not isinstance(decide_begin(state, target), ResumeFailed):
        raise IllegalTransition(
            state.slug, Verb.RETRY, state.status or "not migrating", [MigrationStatus.FAILED],
            str(state.claim) if state.claim else None,
        )  # fmt: skip
    kind = graph_type(state.graph_type)
    plan = make_plan(state.slug, kind, state.version, target, undoable_to=state.undoable_to)
    if not accept_new_code:
        require_same_code(state, plan.steps)
    steps = continue_plan(list(state.steps), plan)
    with executor.transaction():
        dispatch = retry_migration(executor, state, steps, caller, verb=Verb.RETRY)
        publish.resumed(executor, state, state.owner, Verb.RETRY, dispatch.number, caller)
        report = VerbReport(
            graph=state.slug, verb=Verb.RETRY, migration_id=state.owner, status=MigrationStatus.RUNNING,
            dispatch=dispatch.number, message="retried; it goes on where it stopped",
        )  # fmt: skip
        _record(executor, caller, state.graph, report)
    return report, dispatch


def release(
    executor: Executor,
    graph: str,
    caller: Caller | None = None,
    *,
    force: bool = False,
    terminate: bool = False,
    whole: bool = False,
    migration_id: UUID | None = None,
    turns: int | None = None,
) -> VerbReport:
    """Release a graph: end its migration and let writers in, at the version it has.

    Args:
        executor: The session to do it on.
        graph: Id or slug.
        caller: Who asks.
        force: Also where it is live, or half-way through a batched hop; the graph then remembers that hop.
        terminate: End the session that holds the graph's lock, where that does not release it in time. A pool
            process whose hop runs on without it ends itself within seconds.
        whole: The graph was force-released before and its rows were corrected: declare it whole.
        migration_id: The migration that is meant; the verb is refused where the graph is under another one.
        turns: How often this message has waited for the graph's lock before; None: wait for it in one go.

    Raises:
        UnknownGraph: Nothing has this id or slug.
        IllegalTransition: Nothing to release; or it is live, and not forced.
        GraphPartiallyMigrated: The graph is partially migrated, and the release is not forced.
        GraphBusy: An executor holds the graph's lock and does not release it.
        NotThisTurn: With `turns`: an executor holds it yet; call again then.
    """
    caller = caller or Caller()
    edges = [EDGES["release"], EDGES["force_release"]] if force else [EDGES["release"]]
    with executor.transaction():  # what is refused now need not wait for a hop to end
        state = _look(executor, graph, caller, migration_id, Verb.RELEASE)
        if state.known:
            return _answered(state.known_outcome)
        if state.partially_migrated is None:
            _require(state, Verb.RELEASE, *edges)
    lock = _locked(executor, graph, turns=turns, terminate=terminate)
    with lock as (graph_id, terminated), executor.transaction():
        state = _look(executor, graph, caller, migration_id, Verb.RELEASE)
        if state.known:  # the same message, carried out meanwhile by another worker
            return _answered(state.known_outcome)
        if state.partially_migrated is not None:
            if not whole:
                raise partially_migrated(state)
            executor.call(protocol.DeclareWhole(graph=graph_id))
            report = _report(
                state, Verb.RELEASE, None, "declared whole; it can be written and migrated again"
            )
        else:
            _require(state, Verb.RELEASE, *edges)
            if state.checkpoint is not None and not force:
                raise partially_migrated(state)
            executor.call(
                protocol.ReleaseMigration(
                    migration=state.owner,
                    graph=graph_id,
                    partially_migrated=_partially_migrated(state),
                    terminated_by=(caller.requested_by or "an operator") if terminated else None,
                )
            )
            publish.ended(executor, state.owner)
            shown = "released to its writers" + (" partially migrated" if state.checkpoint else "")
            report = _report(state, Verb.RELEASE, MigrationStatus.RELEASED, f"{shown} at v{state.version}")
        _record(executor, caller, graph_id, report)
    return report


def set_read_only(executor: Executor, graph: str, caller: Caller | None = None, *, on: bool) -> VerbReport:
    """Lock a graph against writers on its owner's behalf, or unlock it. Migrations are not held up by it.

    Raises:
        UnknownGraph: Nothing has this id or slug.
    """
    caller = caller or Caller()
    verb = Verb.LOCK if on else Verb.UNLOCK
    with executor.transaction():
        state = _look(executor, graph, caller, None, verb)
        if state.known:
            return _answered(state.known_outcome)
        was = executor.call(protocol.SetOwnerReadOnly(graph=graph, on=on)).was
        shown = ("read-only for its owner" if on else "writable again") + (" already" if was == on else "")
        report = VerbReport(graph=state.slug, verb=verb, migration_id=None, status=None, message=shown)
        _record(executor, caller, state.graph_id, report)
    return report


# ── common to the verbs ─────────────────────────────────────────────────────────────────────────────


def _ask(
    executor: Executor, graph: str, caller: Caller | None, migration_id: UUID | None, verb: Verb, edge: Edge
) -> VerbReport:
    caller = caller or Caller()
    with executor.transaction():
        state = _look(executor, graph, caller, migration_id, verb)
        if state.known:
            return _answered(state.known_outcome)
        _require(state, verb, edge)
        _follow(executor, state, edge, again=False)
        report = _report(
            state, verb, edge.target, "asked; it takes effect at the next boundary", state.dispatch
        )
        _record(executor, caller, state.graph_id, report)
        publish.asked(executor, state, verb, caller)
    settle_now(executor, state.owner)  # at once, where nobody executes
    return report


def _look(
    executor: Executor, graph: str, caller: Caller, migration_id: UUID | None, verb: Verb
) -> OperatorState:
    state = executor.call(protocol.LoadOperatorState(graph=graph, request=caller.task_id))
    if state is None:
        raise UnknownGraph(graph)
    if not state.known:
        _require_meant(state.slug, verb, state.migration_id, state.partially_migrated, migration_id)
    return state


def _require_meant(
    slug: str, verb: Verb, owner: UUID | None, partially_migrated: dict[str, Any] | None, meant: UUID | None
) -> None:
    """A verb that comes late does not hit the graph's next migration."""
    found = owner or (UUID(partially_migrated["migration_id"]) if partially_migrated else None)
    if meant is not None and found != meant:
        state = f"under migration {found}" if found else "not migrating"
        raise IllegalTransition(slug, verb, state, [f"migration {meant}"])


def _require(state: OperatorState, verb: Verb, *edges: Edge) -> None:
    allowed = frozenset[MigrationStatus]().union(*(edge.sources for edge in edges))
    if state.status not in allowed:
        raise IllegalTransition(
            state.slug, verb, state.status or "not migrating", sorted(allowed),
            str(state.migration_id) if state.migration_id else None,
        )  # fmt: skip


def _report(
    state: OperatorState,
    verb: Verb,
    status: MigrationStatus | None,
    message: str,
    dispatch: int | None = None,
) -> VerbReport:
    return VerbReport(
        graph=state.slug, verb=verb, migration_id=state.migration_id, status=status, dispatch=dispatch,
        message=message,
    )  # fmt: skip


def _follow(executor: Executor, state: OperatorState, edge: Edge, *, again: bool) -> int:
    """Follow an edge of the state machine; `again` numbers the chain anew."""
    return executor.call(
        protocol.FollowEdge(
            migration=state.owner,
            from_=state.status or "",
            to=edge.target,
            again=again,
            deadline_seconds=settings().deadline_seconds,
        )
    )


def _record(executor: Executor, caller: Caller, graph_id: UUID, report: VerbReport) -> None:
    if caller.task_id is not None:
        executor.call(
            protocol.RecordVerb(
                task=caller.task_id,
                verb=report.verb,
                graph=graph_id,
                migration=report.migration_id,
                outcome=report.model_dump(mode="json"),
                by=caller.requested_by,
            )
        )


def _answered(outcome: dict[str, Any] | None) -> VerbReport:
    """How this very call ended before: its report, or its refusal."""
    return VerbReport.model_validate(recorded_outcome(outcome))


@contextmanager
def _locked(
    executor: Executor, graph: str, *, turns: int | None, terminate: bool = False
) -> Iterator[tuple[UUID, bool]]:
    """Hold the graph's lock around a verb's transaction; yields the graph, and whether its holders were ended."""
    state = executor.call(protocol.LoadOperatorState(graph=graph, request=None))
    if state is None:
        raise UnknownGraph(graph)
    turn = next_turn(turns)
    with hold_graph_lock(executor, state.graph_id, seconds=turn.seconds) as lock:
        if lock is not None:
            yield state.graph_id, False
            return
    if not turn.is_last:
        raise NotThisTurn(Later(turn.pause, "the graph's lock is held"))
    holders = "; ".join(lock_holders(executor.connection, graph)) or "somebody"
    if not terminate:
        raise GraphBusy(graph, holders)
    executor.call(protocol.TerminateHolders(graph=state.graph_id))
    with hold_graph_lock(executor, state.graph_id, seconds=10) as lock:
        if lock is None:
            raise GraphBusy(graph, holders)
        yield state.graph_id, True


def _partially_migrated(state: OperatorState) -> dict[str, Any] | None:
    """What the graph remembers of a batched hop that was half-way when its migration was force-released."""
    if state.checkpoint is None:
        return None
    to = state.checkpoint["to_version"]
    step = next(step for step in state.steps if step.to_version == to)
    return {
        "migration_id": str(state.owner),
        "hop": step.name,
        "fingerprint": step.fingerprint,
        "from_version": step.from_version,
        "to_version": to,
        "target": state.to_version,
        "cursor": state.checkpoint["cursor"],
        "done": state.checkpoint["done"],
    }


def _finish_partially_migrated(
    executor: Executor, state: BeginState, caller: Caller, *, accept_new_code: bool
) -> tuple[VerbReport, Dispatch | None]:
    half = state.partially_migrated
    assert half is not None  # noqa: S101 - that is what is to be finished
    hop = graph_type(state.graph_type).directed(half["from_version"], half["to_version"])
    if hop.fingerprint != half["fingerprint"] and not accept_new_code:
        raise partially_migrated(state, code_changed=True)
    with executor.transaction():
        # Without its task id: that is this verb's, and no caller of `migrate_graph` waits for it.
        unnamed = Caller(None, caller.requested_by, caller.reason)
        begun = begin_migration(
            executor, state.slug, half["target"], caller=unnamed, finish_partially_migrated=True
        )
        assert isinstance(begun, Dispatch)  # noqa: S101 - half a hop is left to do
        report = VerbReport(
            graph=state.slug, verb=Verb.RETRY, migration_id=begun.migration_id, status=MigrationStatus.QUEUED,
            dispatch=begun.number, message=f"goes on with {half['hop']!r} after {count(half['done'], 'row')}",
        )  # fmt: skip
        _record(executor, caller, state.graph, report)
    return report, begun


__all__ = ["VerbReport", "cancel", "pause", "release", "resume", "retry", "set_read_only"]
