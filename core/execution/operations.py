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

from graph_migrator.core.decisions import ResumeFailed, decide_begin
from graph_migrator.core.errors import GraphBusy, IllegalTransition, InvalidRequest, UnknownGraph
from graph_migrator.core.events import publish
from graph_migrator.core.execution.begin import (
    Caller,
    Dispatch,
    begin_migration,
    load_dispatch,
    lock_and_load,
    partially_migrated,
    require_same_code,
    retry_migration,
)
from graph_migrator.core.execution.recovery import Sweep, recover_one
from graph_migrator.core.execution.run_hop import limits_of_settings
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.planning import Step, continue_plan, make_plan
from graph_migrator.core.reports import own_error
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import EDGES, Edge, MigrationStatus, Verb
from graph_migrator.core.store.locks import lock_holders, take_lock
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

    Half-way through a batched hop it ends as failed (`PartiallyMigrated`) and keeps the graph: rows are of two shapes.

    Raises:
        UnknownGraph: Nothing has this id or slug.
        IllegalTransition: The graph's migration is in another state.
    """
    return _ask(executor, graph, caller, migration_id, Verb.CANCEL, EDGES["ask_cancel"])


def resume(
    executor: Executor, graph: str, caller: Caller | None = None, *, migration_id: UUID | None = None
) -> tuple[VerbReport, Dispatch | None]:
    """Let a paused migration go on.

    Returns:
        What was done, and the chain to send; no chain where the migration had not stopped yet.

    Raises:
        UnknownGraph: Nothing has this id or slug.
        IllegalTransition: The graph's migration is in another state.
        GraphBusy: The graph's lock was not to be had.
    """
    caller = caller or Caller()
    with executor.transaction():
        facts = _look(executor, graph, caller, migration_id, Verb.RESUME)
        if facts.known:
            return _answered(facts.known_outcome), None
        _require(facts, Verb.RESUME, EDGES["unpause"], EDGES["resume"])
        if facts.status == MigrationStatus.PAUSING:  # its executor may hold the lock for hours
            return _unpause(executor, facts, caller), None
    with _locked(executor, graph) as graph_id, executor.transaction():
        facts = _look(executor, graph, caller, migration_id, Verb.RESUME)
        if facts.known:  # the same message, carried out meanwhile by another worker
            return _answered(facts.known_outcome), None
        _require(facts, Verb.RESUME, EDGES["resume"])
        edge = EDGES["resume"]
        number = executor.call(
            "follow_edge", facts.migration_id, facts.status, edge.target, True, settings().deadline_seconds
        ).dispatch
        report = _report(facts, Verb.RESUME, edge.target, "goes on", number)
        _record(executor, caller, graph_id, facts, report)
        publish.resumed(executor, facts, facts.migration_id, Verb.RESUME, number, caller)
    try:
        return report, load_dispatch(executor, facts.migration_id)
    except LookupError:  # paused or ended again meanwhile
        return report, None


def _unpause(executor: Executor, facts: Any, caller: Caller) -> VerbReport:
    """It has not stopped yet: the same dispatch goes on."""
    edge = EDGES["unpause"]
    executor.call("follow_edge", facts.migration_id, facts.status, edge.target, False, 0)
    report = _report(facts, Verb.RESUME, edge.target, "goes on; it had not stopped yet", facts.dispatch)
    _record(executor, caller, facts.graph_id, facts, report)
    publish.resumed(executor, facts, facts.migration_id, Verb.RESUME, facts.dispatch, caller)
    return report


def retry(
    executor: Executor,
    graph: str,
    caller: Caller | None = None,
    *,
    accept_new_code: bool = False,
    migration_id: UUID | None = None,
) -> tuple[VerbReport, Dispatch | None]:
    """Take a failed migration up again where it stopped, with the code that is there now.

    Also finishes a graph that was forced loose half-way through a batched hop.

    Args:
        executor: The session to do it on.
        graph: Id or slug.
        caller: Who asks.
        accept_new_code: Go on with a batched hop that stands half-way although its code has changed.
        migration_id: The migration that is meant; the verb is refused where the graph is under another one.

    Returns:
        What was done, and the chain to send.

    Raises:
        UnknownGraph, UnknownGraphType: Nothing was changed.
        IllegalTransition: The graph's migration has not failed.
        GraphPartiallyMigrated: The half-done hop's code has changed.
    """
    caller = caller or Caller()
    facts = lock_and_load(executor, graph, caller.task_id)
    try:
        if facts.graph_id is None:
            raise UnknownGraph(graph)
        if facts.request_known:
            return _answered(facts.request_outcome), None
        _require_meant(facts.slug, Verb.RETRY, facts.claim, facts.partially_migrated, migration_id)
        if facts.partially_migrated is not None:
            return _finish_partially_migrated(executor, facts, caller, accept_new_code=accept_new_code)
        target = facts.to_version if facts.claim else facts.version
        if not isinstance(decide_begin(facts, target), ResumeFailed):
            raise IllegalTransition(
                facts.slug, Verb.RETRY, facts.status or "not migrating", [MigrationStatus.FAILED],
                str(facts.claim) if facts.claim else None,
            )  # fmt: skip
        plan = make_plan(facts.slug, graph_type(facts.graph_type), facts.version, target)
        if not accept_new_code:
            require_same_code(facts, plan.steps)
        steps = continue_plan([Step.from_json(s) for s in facts.plan], plan)
        with executor.transaction():
            dispatch = retry_migration(executor, facts, steps, caller, verb=Verb.RETRY)
            publish.resumed(executor, facts, facts.claim, Verb.RETRY, dispatch.number, caller)
            report = VerbReport(
                graph=facts.slug, verb=Verb.RETRY, migration_id=facts.claim, status=MigrationStatus.RUNNING,
                dispatch=dispatch.number, message="taken up again where it stopped",
            )  # fmt: skip
            if caller.task_id:
                executor.call(
                    "record_verb", caller.task_id, Verb.RETRY, facts.graph_id, facts.claim,
                    report.model_dump(mode="json"), caller.requested_by,
                )  # fmt: skip
        return report, dispatch
    finally:
        if facts.locked and not executor.is_closed:
            executor.release_lock(facts.graph_id)


def release(
    executor: Executor,
    graph: str,
    caller: Caller | None = None,
    *,
    force: bool = False,
    terminate: bool = False,
    whole: bool = False,
    migration_id: UUID | None = None,
) -> VerbReport:
    """Give a migration up and the graph back to its writers, at the version it has.

    Args:
        executor: The session to do it on.
        graph: Id or slug.
        caller: Who asks.
        force: Also where it is live, or half-way through a batched hop; the graph then remembers that hop.
        terminate: End the session that holds the graph's lock, where it does not give it back in time.
        whole: The graph was forced loose before; its rows have been mended, declare it whole.
        migration_id: The migration that is meant; the verb is refused where the graph is under another one.

    Raises:
        UnknownGraph: Nothing has this id or slug.
        IllegalTransition: Nothing to release; or it is live, and not forced.
        GraphPartiallyMigrated: Rows are of two shapes, and it is not forced.
        GraphBusy: An executor holds the graph's lock and does not give it back.
    """
    caller = caller or Caller()
    edges = [EDGES["release"], EDGES["force_release"]] if force else [EDGES["release"]]
    with executor.transaction():  # what is refused now need not wait for a hop to end
        facts = _look(executor, graph, caller, migration_id, Verb.RELEASE)
        if facts.known:
            return _answered(facts.known_outcome)
        if facts.partially_migrated is None:
            _require(facts, Verb.RELEASE, *edges)
    with _locked(executor, graph, terminate=terminate) as graph_id, executor.transaction():
        facts = _look(executor, graph, caller, migration_id, Verb.RELEASE)
        if facts.known:  # the same message, carried out meanwhile by another worker
            return _answered(facts.known_outcome)
        if facts.partially_migrated is not None:
            if not whole:
                raise partially_migrated(facts)
            executor.call("declare_whole", graph_id)
            report = _report(
                facts, Verb.RELEASE, None, "declared whole; it can be written and migrated again"
            )
        else:
            _require(facts, Verb.RELEASE, *edges)
            if facts.checkpoint is not None and not force:
                raise partially_migrated(facts)
            executor.call("release", facts.migration_id, graph_id, _loose_end(facts))
            publish.ended(executor, facts.migration_id)
            told = "given back to its writers" + (" half done" if facts.checkpoint else "")
            report = _report(facts, Verb.RELEASE, MigrationStatus.RELEASED, f"{told} at v{facts.version}")
        _record(executor, caller, graph_id, facts, report)
    return report


def set_read_only(executor: Executor, graph: str, caller: Caller | None = None, *, on: bool) -> VerbReport:
    """Lock a graph against writers on its owner's behalf, or unlock it. Migrations are not held up by it.

    Raises:
        UnknownGraph: Nothing has this id or slug.
    """
    caller = caller or Caller()
    verb = Verb.LOCK if on else Verb.UNLOCK
    with executor.transaction():
        facts = _look(executor, graph, caller, None, verb)
        if facts.known:
            return _answered(facts.known_outcome)
        was = executor.call("set_owner_read_only", graph, on).was
        told = ("read-only for its owner" if on else "writable again") + (" already" if was == on else "")
        report = VerbReport(graph=facts.slug, verb=verb, migration_id=None, status=None, message=told)
        _record(executor, caller, facts.graph_id, facts, report)
    return report


# ── common to the verbs ─────────────────────────────────────────────────────────────────────────────


def _ask(
    executor: Executor, graph: str, caller: Caller | None, migration_id: UUID | None, verb: Verb, edge: Edge
) -> VerbReport:
    caller = caller or Caller()
    with executor.transaction():
        facts = _look(executor, graph, caller, migration_id, verb)
        if facts.known:
            return _answered(facts.known_outcome)
        _require(facts, verb, edge)
        executor.call("follow_edge", facts.migration_id, facts.status, edge.target, False, 0)
        report = _report(
            facts, verb, edge.target, "asked; it takes effect at the next boundary", facts.dispatch
        )
        _record(executor, caller, facts.graph_id, facts, report)
        publish.asked(executor, facts, verb, caller)
    done = Sweep()
    recover_one(executor, facts.migration_id, done, limits_of_settings())  # at once, where nobody executes
    return report


def _look(executor: Executor, graph: str, caller: Caller, migration_id: UUID | None, verb: Verb) -> Any:
    facts = executor.call("load_operator_state", graph, caller.task_id)
    if facts.graph_id is None:
        raise UnknownGraph(graph)
    if not facts.known:
        _require_meant(facts.slug, verb, facts.migration_id, facts.partially_migrated, migration_id)
    return facts


def _require_meant(
    slug: str, verb: Verb, owner: UUID | None, partially_migrated: dict[str, Any] | None, meant: UUID | None
) -> None:
    """A verb that comes late does not hit the graph's next migration."""
    found = owner or (UUID(partially_migrated["migration_id"]) if partially_migrated else None)
    if meant is not None and found != meant:
        state = f"under migration {found}" if found else "not migrating"
        raise IllegalTransition(slug, verb, state, [f"migration {meant}"])


def _require(facts: Any, verb: Verb, *edges: Edge) -> None:
    allowed = frozenset[MigrationStatus]().union(*(edge.sources for edge in edges))
    if facts.status not in allowed:
        raise IllegalTransition(
            facts.slug, verb, facts.status or "not migrating", sorted(allowed),
            str(facts.migration_id) if facts.migration_id else None,
        )  # fmt: skip


def _report(
    facts: Any, verb: Verb, status: MigrationStatus | None, message: str, dispatch: int | None = None
) -> VerbReport:
    return VerbReport(
        graph=facts.slug, verb=verb, migration_id=facts.migration_id, status=status, dispatch=dispatch,
        message=message,
    )  # fmt: skip


def _record(executor: Executor, caller: Caller, graph_id: UUID, facts: Any, report: VerbReport) -> None:
    if caller.task_id is not None:
        executor.call(
            "record_verb", caller.task_id, report.verb, graph_id, facts.migration_id,
            report.model_dump(mode="json"), caller.requested_by,
        )  # fmt: skip


def _answered(outcome: dict[str, Any] | None) -> VerbReport:
    """What this very call was told before: its report, or its refusal."""
    if outcome is None:
        raise InvalidRequest("task_id", "this id was used for another verb")
    if "error" in outcome:
        raise own_error(outcome["error"]["type"], outcome["error"]["args"])
    return VerbReport.model_validate(outcome)


@contextmanager
def _locked(executor: Executor, graph: str, *, terminate: bool = False) -> Iterator[UUID]:
    """Hold the graph's lock around a verb's transaction."""
    graph_id = executor.call("load_operator_state", graph, None).graph_id
    if graph_id is None:
        raise UnknownGraph(graph)
    if not take_lock(executor, graph_id, seconds=settings().writer_drain_seconds):
        holders = "; ".join(lock_holders(executor, graph)) or "somebody"
        if not terminate:
            raise GraphBusy(graph, holders)
        executor.call("terminate_holders", graph_id)
        if not take_lock(executor, graph_id, seconds=10):
            raise GraphBusy(graph, holders)
    try:
        yield graph_id
    finally:
        if not executor.is_closed:
            executor.release_lock(graph_id)


def _loose_end(facts: Any) -> dict[str, Any] | None:
    """What the graph keeps to say of a batched hop that was half-way when it was forced loose."""
    if facts.checkpoint is None:
        return None
    to = facts.checkpoint["to_version"]
    step = next(step for step in facts.plan if step["to_version"] == to)
    return {
        "migration_id": str(facts.migration_id),
        "hop": step["name"],
        "fingerprint": step["fingerprint"],
        "from_version": step["from_version"],
        "to_version": to,
        "target": facts.to_version,
        "cursor": facts.checkpoint["cursor"],
        "done": facts.checkpoint["done"],
    }


def _finish_partially_migrated(
    executor: Executor, facts: Any, caller: Caller, *, accept_new_code: bool
) -> tuple[VerbReport, Dispatch | None]:
    half = facts.partially_migrated
    hop = graph_type(facts.graph_type).directed(half["from_version"], half["to_version"])
    if hop.fingerprint != half["fingerprint"] and not accept_new_code:
        raise partially_migrated(facts, code_changed=True)
    with executor.transaction():
        # Without its task id: that is this verb's, and no caller of `migrate_graph` waits for it.
        unnamed = Caller(None, caller.requested_by, caller.reason)
        begun = begin_migration(
            executor, facts.slug, half["target"], caller=unnamed, finish_partially_migrated=True
        )
        assert isinstance(begun, Dispatch)  # noqa: S101 - half a hop is left to do
        report = VerbReport(
            graph=facts.slug, verb=Verb.RETRY, migration_id=begun.migration_id, status=MigrationStatus.QUEUED,
            dispatch=begun.number, message=f"goes on with {half['hop']!r} after {half['done']} rows",
        )  # fmt: skip
        if caller.task_id:
            executor.call(
                "record_verb", caller.task_id, Verb.RETRY, facts.graph_id, begun.migration_id,
                report.model_dump(mode="json"), caller.requested_by,
            )  # fmt: skip
    return report, begun


__all__ = ["VerbReport", "cancel", "pause", "release", "resume", "retry", "set_read_only"]
