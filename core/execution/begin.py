"""Beginning a migration, and retrying one that failed.

The four primitives are `begin_migration` here, `core.execution.run_hop.run_hop`, `core.execution.fail.fail_migration`
and `core.execution.apply_hop.commit_migration`. The Celery chain, `run_graph_migration` and `execute_migration`
(`core.execution.in_process`) all consist of these. Every decision is made in `core.decisions`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import overload
from uuid import UUID, uuid4

from graph_migrator.core.decision_inputs import BeginState, OperatorState
from graph_migrator.core.decisions import (
    AlreadyThere,
    Begin,
    Ignored,
    IsInFlight,
    IsPartiallyMigrated,
    KnownRequest,
    Later,
    NoSuchGraph,
    ResumeFailed,
    decide_begin,
)
from graph_migrator.core.errors import (
    GraphBeyondTarget,
    GraphMigratorError,
    GraphPartiallyMigrated,
    InvalidRequest,
    MigrationInFlight,
    OpenWriteTransactions,
    UnknownGraph,
    UnknownGraphType,
    UnknownTarget,
)
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.recorded import (
    load_dispatch,
    load_report,
    record_outcome,
    recorded_outcome,
)
from graph_migrator.core.execution.waits import next_turn
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.planning import Plan, Step, continue_plan, make_plan, versions_left
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store import protocol
from graph_migrator.core.store.errors import sqlstate
from graph_migrator.core.store.lock_sessions import lock_holders
from graph_migrator.core.store.locks import GraphLock, Wait, one_try
from graph_migrator.core.store.session import Executor


def begin_migration(
    executor: Executor,
    graph: str | UUID,
    target: int | None = None,
    *,
    caller: Caller | None = None,
    finish_partially_migrated: bool = False,
    direction: int | None = None,
    may_wait: bool = False,
    turns: int | None = None,
) -> Dispatch | MigrationReport | Ignored | Later:
    """Take a graph for a migration.

    Waits for writers in flight to finish, then plans, and commits request, migration and claim together.
    A graph whose last migration to this target failed is resumed where it stopped.

    Args:
        executor: The session to do it on; it is left without any lock.
        graph: Id or slug.
        target: The version to reach; None for the newest that the graph's type knows.
        caller: Who asks. With a task id, the call is remembered and never carried out twice.
        finish_partially_migrated: Also take a graph that was force-released in the middle of a hop, to finish that hop.
        direction: 1 or -1 where the graph may move in that direction only, as in a rollout; None for either.
        may_wait: Another worker may have newer code: a refusal because this process lacks the type, or a version
            newer than those that it knows, is not recorded.
        turns: How often this message has waited for open write transactions before. With it they are waited for
            shortly; `Later` says when to call again. None: wait for them in one go.

    Returns:
        The chain to send; the final report where there is nothing to do, or where this very call was answered before;
        `Ignored` where it is being carried out already; `Later` where open write transactions are to be waited for.

    Raises:
        UnknownGraph, UnknownGraphType, UnknownTarget, IrreversibleHop: Nothing was changed.
        MigrationInFlight, GraphPartiallyMigrated, GraphBeyondTarget, OpenWriteTransactions: Nothing was changed.
        MigrationError: This call was answered before, with this error.
    """
    caller = caller or Caller()
    if target is not None and target < 1:
        raise InvalidRequest("target", f"a version is 1 or more, not {target}")
    try:
        state = lock_and_load_graph(executor, str(graph), caller.task_id, turns=turns)
    except GraphMigratorError as refusal:
        record_outcome(executor, caller, graph, target, refusal)
        raise
    if isinstance(state, Later):
        return state
    with GraphLock(executor, state.graph_id, held=state.locked) as lock:
        failpoints.hit("begin_locked")
        if state.request_known:
            return _answer_again(executor, state)
        try:
            _require_direction(state, target, direction)
            begun = _begin(executor, state, lock, graph, target, caller, finish=finish_partially_migrated)
        except GraphMigratorError as error:
            named = _naming_the_worker(error, caller)
            if not (may_wait and lacks_code(named)):
                record_outcome(executor, caller, graph, target, named)
            raise named from None
        if isinstance(begun, MigrationReport):
            record_outcome(executor, caller, graph, target, begun)
        return begun


def _naming_the_worker(refusal: GraphMigratorError, caller: Caller) -> GraphMigratorError:
    """What one worker does not know, another one may."""
    if isinstance(refusal, UnknownTarget | UnknownGraphType):
        return replace(refusal, asked=caller.worker)
    return refusal


def _require_direction(state: BeginState, target: int | None, direction: int | None) -> None:
    """Refuse a graph that somebody has moved beyond the target meanwhile: it would be moved back."""
    if direction is None or target is None or state.graph_id is None:
        return
    if versions_left(state.version, target, direction) < 0:
        raise GraphBeyondTarget(state.slug, state.version, target)


def lacks_code(refusal: GraphMigratorError) -> bool:
    """Whether a worker with newer code may carry out what was refused here."""
    if isinstance(refusal, UnknownTarget):
        return refusal.target > refusal.newest
    return isinstance(refusal, UnknownGraphType)


def _begin(
    executor: Executor,
    state: BeginState,
    lock: GraphLock,
    graph: str | UUID,
    target: int | None,
    caller: Caller,
    *,
    finish: bool,
) -> Dispatch | MigrationReport:
    if state.graph_id is None:
        raise UnknownGraph(str(graph))
    kind = graph_type(state.graph_type)
    goal = kind.newest if target is None else target
    match decide_begin(state, goal, finish_partially_migrated=finish):
        case KnownRequest() | NoSuchGraph():
            raise AssertionError("handled above")
        case IsInFlight():
            raise MigrationInFlight(state.slug, str(state.claim), state.status or "", state.to_version or 0)
        case IsPartiallyMigrated():
            raise partially_migrated(state)
        case AlreadyThere():
            make_plan(state.slug, kind, state.version, goal)  # the version itself must be known
            return _nothing_to_do(state)
        case ResumeFailed():
            return _go_on(executor, state, kind, goal, caller)
        case Begin(releases):
            plan = make_plan(state.slug, kind, state.version, goal, undoable_to=state.undoable_to)
            if not plan.steps and state.partially_migrated is None:
                return _release_failed(executor, state, releases)
            return _start(executor, state, lock, plan, target, caller, releases)


def _go_on(executor: Executor, state: BeginState, kind: GraphType, goal: int, caller: Caller) -> Dispatch:
    """The failed migration has the same target: it goes on where it stopped."""
    plan = make_plan(state.slug, kind, state.version, goal, undoable_to=state.undoable_to)
    require_same_code(state, plan.steps)
    steps = continue_plan(list(state.steps), plan)
    again = retry_migration(executor, state, steps, caller, verb="migrate")
    publish.resumed(executor, state, state.owner, "migrate", again.number, caller)
    return again


def _release_failed(executor: Executor, state: BeginState, releases: UUID | None) -> MigrationReport:
    """The target is the version that the graph has: nothing is left but to release the failed migration."""
    executor.call(protocol.ReleaseMigration(migration=releases, graph=state.graph, partially_migrated=None))
    if releases is not None:
        publish.ended(executor, releases)
    return _nothing_to_do(state)


def _start(
    executor: Executor,
    state: BeginState,
    lock: GraphLock,
    plan: Plan,
    target: int | None,
    caller: Caller,
    releases: UUID | None,
) -> Dispatch:
    """Commit request, migration and claim; that commit releases the lock."""
    migration_id = uuid4()
    failpoints.hit("begin_before_commit")
    executor.call(
        protocol.BeginMigration(
            migration=migration_id,
            graph=state.graph,
            graph_type=state.graph_type,
            from_=state.version,
            to=plan.to_version,
            plan=plan.as_json,
            release=releases,
            request=caller.task_id,
            target=target,
            by=caller.requested_by,
            reason=caller.reason,
            deadline_seconds=settings().deadline_seconds,
            unlock=not executor.in_callers_transaction,
        )
    )
    lock.mark_released()
    failpoints.hit("begin_committed")
    begun = Dispatch(migration_id, state.slug, state.graph_type, 1, caller.task_id, plan.steps)
    publish.begun(executor, begun, state, plan.to_version, caller, releases)
    return begun


def retry_migration(
    executor: Executor, state: BeginState, steps: tuple[Step, ...], caller: Caller, *, verb: str
) -> Dispatch:
    """Retry a failed migration, under the graph's lock: new dispatch, plan of today, counters at 0.

    A `migrate_graph` call becomes the one that the chain answers; an operator's retry leaves that to the
    latest `migrate_graph` call.
    """
    number = executor.call(
        protocol.RetryMigration(
            migration=state.owner,
            plan=[step.to_json() for step in steps],
            request=caller.task_id,
            verb=verb,
            target=state.to_version,
            by=caller.requested_by,
            deadline_seconds=settings().deadline_seconds,
        )
    )
    return load_dispatch(executor, state.owner, expect=number)


@overload
def lock_and_load_graph(executor: Executor, graph: str, task_id: str | None) -> BeginState: ...


@overload
def lock_and_load_graph(
    executor: Executor, graph: str, task_id: str | None, *, turns: int | None
) -> BeginState | Later: ...


def lock_and_load_graph(
    executor: Executor, graph: str, task_id: str | None, *, turns: int | None = None
) -> BeginState | Later:
    """Read everything under the graph's lock; wait for writers in flight, but not for ever.

    A writer may hold rows that another waits for, so the wait is one of pieces. With `turns` it is one short piece; see
    `begin_migration`.
    """
    turn = next_turn(turns)
    wait = Wait(turn.seconds)
    while True:
        try:
            with one_try(executor):
                state = executor.call(
                    protocol.LockAndLoadGraph(
                        graph=graph,
                        request=task_id,
                        wait_ms=wait.piece_ms(),
                        session=not executor.in_callers_transaction,
                    )
                )
        except Exception as error:
            if sqlstate(error) not in {"55P03", "40P01"}:
                raise
            if wait.is_over():
                if not turn.is_last:
                    return Later(turn.pause, "open write transactions")
                limit, holders = settings().writer_drain_seconds, lock_holders(executor.connection, graph)
                raise OpenWriteTransactions(graph, limit, holders) from None
        else:
            if state.locked or state.graph_id is None or state.request_known or _is_owned(state):
                return state
            # The live migration that kept it from locking has ended since: no lock protected what was read.
            continue
        wait.let_writers_pass()


def _is_owned(state: BeginState) -> bool:
    return state.claim is not None and state.status != MigrationStatus.FAILED


def _answer_again(executor: Executor, state: BeginState) -> Dispatch | MigrationReport | Ignored:
    """A request that is known never begins anything a second time."""
    if state.request_migration is None:
        return MigrationReport.model_validate(recorded_outcome(state.request_outcome))
    report = load_report(executor, state.request_migration)
    error = report.error()
    if error is not None:
        raise error
    if report.status.is_settled:
        return report
    if report.status is MigrationStatus.QUEUED:
        with suppress(LookupError):  # it has been started meanwhile, or ended: then no message is needed
            return load_dispatch(executor, state.request_migration)
    return Ignored("this call is being carried out already")


def require_same_code(state: BeginState, steps: tuple[Step, ...]) -> None:
    """A partially migrated batched hop goes on only with the code that began it, unless an operator accepts other code.

    Raises:
        GraphPartiallyMigrated: The code of the hop that stands half-way has changed.
    """
    if state.checkpoint is None:
        return
    to = state.checkpoint["to_version"]
    began = next(step.fingerprint for step in state.steps if step.to_version == to)
    if began != next(step.fingerprint for step in steps if step.to_version == to):
        raise partially_migrated(state, code_changed=True)


def partially_migrated(
    state: BeginState | OperatorState, *, code_changed: bool = False
) -> GraphPartiallyMigrated:
    """The refusal for a graph of whose rows only some are migrated."""
    half = state.partially_migrated or {}
    released = bool(half)
    if state.partially_migrated is None:  # a failed or paused migration stopped half-way through a hop
        assert state.checkpoint is not None  # noqa: S101 - that is why it is refused
        to = state.checkpoint["to_version"]
        step = next(step for step in state.steps if step.to_version == to)
        half = {**step.to_json(), "hop": step.name, "done": state.checkpoint["done"]}
    return GraphPartiallyMigrated(
        state.slug,
        half["hop"],
        half["from_version"],
        half["to_version"],
        half["done"],
        released,
        code_changed,
        not released and state.status == MigrationStatus.PAUSED,
    )


def _nothing_to_do(state: BeginState) -> MigrationReport:
    return MigrationReport(
        migration_id=None,
        graph_id=state.graph,
        graph=state.slug,
        graph_type=state.graph_type,
        status=MigrationStatus.SUCCEEDED,
        from_version=state.version,
        to_version=state.version,
        version=state.version,
    )
