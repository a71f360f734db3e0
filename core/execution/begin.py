"""Beginning a migration, taking one up again, and what of its chain is left.

The four primitives are `begin_migration` here, `run_hop` and `fail_migration` in `core.execution.run_hop`, and
`commit_migration` in `core.execution.apply_hop`. The Celery chain, `run_graph_migration` and `execute_migration`
(`core.execution.in_process`) all consist of these. Every decision is made in `core.decisions`.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from graph_migrator.core.decisions import (
    AlreadyThere,
    Begin,
    HopMessage,
    Ignored,
    InFlight,
    IsPartiallyMigrated,
    KnownRequest,
    NoSuchGraph,
    ResumeFailed,
    decide_begin,
)
from graph_migrator.core.errors import (
    GraphMigratorError,
    GraphPartiallyMigrated,
    InvalidRequest,
    MigrationInFlight,
    OpenWriteTransactions,
    UnknownGraph,
    json_args,
    name_of,
)
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.planning import Step, continue_plan, make_plan
from graph_migrator.core.reports import MigrationReport, own_error
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus, Verb
from graph_migrator.core.store.errors import sqlstate
from graph_migrator.core.store.locks import lock_holders, one_try
from graph_migrator.core.store.session import Executor


@dataclass(frozen=True)
class Caller:
    """Who asks, and the id of the message that carries it (None for a direct call)."""

    task_id: str | None = None
    requested_by: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Dispatch:
    """The rest of a migration's chain, to be sent or run. The last task bears `task_id`."""

    migration_id: UUID
    graph: str
    graph_type: str
    number: int
    task_id: str | None
    steps: tuple[Step, ...]

    def messages(self) -> list[HopMessage]:
        """One message for each hop that is left, in order."""
        return [
            HopMessage(self.migration_id, step.from_version, step.to_version, self.number)
            for step in self.steps
        ]


# ── begin ───────────────────────────────────────────────────────────────────────────────────────────


def begin_migration(
    executor: Executor,
    graph: str | UUID,
    target: int | None = None,
    *,
    caller: Caller | None = None,
    finish_partially_migrated: bool = False,
) -> Dispatch | MigrationReport | Ignored:
    """Take a graph for a migration.

    Waits for writers in flight to finish, then plans, and commits request, migration and claim together.
    A graph whose last migration to this target failed is taken up again where it stopped.

    Args:
        executor: The session to do it on; it is left without any lock.
        graph: Id or slug.
        target: The version to reach; None for the newest that the graph's type knows.
        caller: Who asks. With a task id, the call is remembered and never carried out twice.
        finish_partially_migrated: Also take a graph that was forced loose half-way, to finish that hop.

    Returns:
        The chain to send; or the final report where there is nothing to do, or where this very call was
        answered before; or `Ignored` where it is being carried out already.

    Raises:
        UnknownGraph, UnknownGraphType, UnknownTarget, IrreversibleHop: Nothing was changed.
        MigrationInFlight, GraphPartiallyMigrated, OpenWriteTransactions: Nothing was changed.
        MigrationError: This call was answered before, with this error.
    """
    caller = caller or Caller()
    if target is not None and target < 1:
        raise InvalidRequest("target", f"a version is 1 or more, not {target}")
    facts = None
    try:
        facts = lock_and_load(executor, str(graph), caller.task_id)
        failpoints.hit("begin_locked")
        if facts.request_known:
            return _answer_again(executor, facts)
        begun = _begin(
            executor, facts, graph, target, caller, finish_partially_migrated=finish_partially_migrated
        )
        if isinstance(begun, MigrationReport):
            record_outcome(executor, caller, graph, target, begun)
        return begun
    except GraphMigratorError as refusal:
        if facts is None or not facts.request_known:
            record_outcome(executor, caller, graph, target, refusal)
        raise
    finally:
        if facts is not None and facts.locked:
            executor.release_lock(facts.graph_id)


def _begin(
    executor: Executor,
    facts: Any,
    graph: str | UUID,
    target: int | None,
    caller: Caller,
    *,
    finish_partially_migrated: bool,
) -> Dispatch | MigrationReport:
    if facts.graph_id is None:
        raise UnknownGraph(str(graph))
    kind = graph_type(facts.graph_type)
    goal = kind.newest if target is None else target
    match decide_begin(facts, goal, finish_partially_migrated=finish_partially_migrated):
        case KnownRequest() | NoSuchGraph():
            raise AssertionError("handled above")
        case InFlight():
            raise MigrationInFlight(facts.slug, str(facts.claim), facts.status, facts.to_version)
        case IsPartiallyMigrated():
            raise partially_migrated(facts)
        case AlreadyThere():
            make_plan(facts.slug, kind, facts.version, goal)  # the version itself must be known
            return _nothing_to_do(facts)
        case ResumeFailed():
            plan = make_plan(facts.slug, kind, facts.version, goal)
            require_same_code(facts, plan.steps)
            steps = continue_plan([Step.from_json(s) for s in facts.plan], plan)
            again = retry_migration(executor, facts, steps, caller, verb="migrate")
            publish.resumed(executor, facts, facts.claim, "migrate", again.number, caller)
            return again
        case Begin(releases):
            plan = make_plan(facts.slug, kind, facts.version, goal)
            if (
                not plan.steps and facts.partially_migrated is None
            ):  # back to where it stands: release says it
                executor.call("release", releases, facts.graph_id, None)
                if releases is not None:
                    publish.ended(executor, releases)
                return _nothing_to_do(facts)
            migration_id = uuid4()
            failpoints.hit("begin_before_commit")
            executor.call(
                "begin_migration", migration_id, facts.graph_id, kind.name, facts.version, goal,
                [step.to_json() for step in plan.steps], releases, caller.task_id, target,
                caller.requested_by, caller.reason, settings().deadline_seconds,
                not executor.in_callers_transaction,
            )  # fmt: skip
            facts.locked = False  # its commit has given the lock back
            failpoints.hit("begin_committed")
            begun = Dispatch(migration_id, facts.slug, kind.name, 1, caller.task_id, plan.steps)
            publish.begun(executor, begun, facts, goal, caller, releases)
            return begun


def retry_migration(
    executor: Executor, facts: Any, steps: tuple[Step, ...], caller: Caller, *, verb: str
) -> Dispatch:
    """Take a failed migration up again, under the graph's lock: new dispatch, plan of today, counters at 0.

    A `migrate_graph` call becomes the one that the chain answers; an operator's retry leaves that to the
    latest `migrate_graph` call.
    """
    number = executor.call(
        "retry_migration", facts.claim, [step.to_json() for step in steps], caller.task_id, verb,
        facts.to_version, caller.requested_by, settings().deadline_seconds,
    ).dispatch  # fmt: skip
    return load_dispatch(executor, facts.claim, expect=number)


def load_dispatch(executor: Executor, migration_id: UUID, *, expect: int | None = None) -> Dispatch:
    """The chain that a live migration still has to go, as Postgres knows it.

    Raises:
        LookupError: The migration is not there, or at another dispatch than expected.
    """
    row = executor.call("remaining", migration_id)
    if row.number is None or expect not in {None, row.number}:
        raise LookupError(f"migration {migration_id} is at dispatch {row.number}, not {expect}")
    steps = tuple(Step.from_json(step) for step in row.steps)
    return Dispatch(migration_id, row.graph, row.graph_type, row.number, row.task_id, steps)


def lock_and_load(executor: Executor, graph: str, task_id: str | None) -> Any:
    """Read everything under the graph's lock; wait for writers in flight, but not for ever.

    The wait is cut into pieces of at most two seconds: a writer may hold rows that another waits for, and
    a queued exclusive lock keeps new writers out while it waits.
    """
    limit = settings().writer_drain_seconds
    give_up_at = time.monotonic() + limit
    while True:
        wait_ms = max(1, min(2_000, int((give_up_at - time.monotonic()) * 1_000)))
        try:
            with one_try(executor):
                facts = executor.call(
                    "lock_and_load", graph, task_id, wait_ms, not executor.in_callers_transaction
                )
        except Exception as error:
            if sqlstate(error) not in {"55P03", "40P01"}:
                raise
            if time.monotonic() >= give_up_at:
                raise OpenWriteTransactions(graph, limit, lock_holders(executor, graph)) from None
        else:
            if facts.locked or facts.graph_id is None or facts.request_known or _is_owned(facts):
                return facts
            # The live migration that kept `lock_and_load` from locking has ended since: what it read is of no lock's.
            continue
        time.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - jitter: lets writers that queue behind us pass


def _is_owned(facts: Any) -> bool:
    return facts.claim is not None and facts.status != MigrationStatus.FAILED


def _answer_again(executor: Executor, facts: Any) -> Dispatch | MigrationReport | Ignored:
    """A request that is known never begins anything a second time."""
    if facts.request_migration is None:
        return _recorded_outcome(facts.request_outcome)
    report = load_report(executor, facts.request_migration)
    error = report.error()
    if error is not None:
        raise error
    if report.status.is_settled:
        return report
    if report.status is MigrationStatus.QUEUED:
        with suppress(LookupError):  # it has been started meanwhile, or ended: then it needs no doorbell
            return load_dispatch(executor, facts.request_migration)
    return Ignored("this call is being carried out already")


def _recorded_outcome(outcome: dict[str, Any] | None) -> MigrationReport:
    if outcome is None:
        raise InvalidRequest("task_id", "this id was used for another verb")
    if "error" in outcome:
        raise own_error(outcome["error"]["type"], outcome["error"]["args"])
    return MigrationReport.model_validate(outcome["report"])


def require_same_code(facts: Any, steps: tuple[Step, ...]) -> None:
    """A half-done batched hop goes on only with the code that began it, unless an operator accepts other code.

    Raises:
        GraphPartiallyMigrated: The code of the hop that stands half-way has changed.
    """
    if facts.checkpoint is None:
        return
    to = facts.checkpoint["to_version"]
    began = next(step["fingerprint"] for step in facts.plan if step["to_version"] == to)
    if began != next(step.fingerprint for step in steps if step.to_version == to):
        raise partially_migrated(facts, code_changed=True)


def partially_migrated(facts: Any, *, code_changed: bool = False) -> GraphPartiallyMigrated:
    """The refusal for a graph whose rows are of two shapes."""
    half = facts.partially_migrated or {}
    loose = bool(half)
    if not loose:  # a failed or paused migration stands half-way through a hop
        to = facts.checkpoint["to_version"]
        step = next(s for s in facts.plan if s["to_version"] == to)
        half = {**step, "hop": step["name"], "done": facts.checkpoint["done"]}
    return GraphPartiallyMigrated(
        facts.slug,
        half["hop"],
        half["from_version"],
        half["to_version"],
        half["done"],
        loose,
        code_changed,
        not loose and facts.status == MigrationStatus.PAUSED,
    )


def _nothing_to_do(facts: Any) -> MigrationReport:
    return MigrationReport(
        migration_id=None,
        graph_id=facts.graph_id,
        graph=facts.slug,
        graph_type=facts.graph_type,
        status=MigrationStatus.SUCCEEDED,
        from_version=facts.version,
        to_version=facts.version,
        version=facts.version,
    )


def record_outcome(
    executor: Executor,
    caller: Caller,
    graph: str | UUID,
    target: int | None,
    outcome: MigrationReport | Exception,
    verb: Verb = Verb.MIGRATE,
) -> None:
    """Remember how a call ended that began nothing: a no-op or a refusal. Only calls that have a task id.

    Raises:
        psycopg2.errors.SerializationFailure: A duplicate of this call has ended in another way meanwhile; whoever
            looks again answers as that one did.
    """
    if caller.task_id is None:
        return
    if isinstance(outcome, MigrationReport):
        stored: dict[str, Any] = {"report": outcome.model_dump(mode="json")}
    else:
        stored = {"error": {"type": name_of(outcome), "args": json_args(outcome)}}
    executor.call("record_outcome", caller.task_id, verb, str(graph), target, stored, caller.requested_by)


def load_report(executor: Executor, migration_id: UUID) -> MigrationReport:
    """The report of a migration as it stands.

    Raises:
        LookupError: There is no such migration.
    """
    found = executor.call("report", migration_id).report
    if found is None:
        raise LookupError(f"there is no migration {migration_id}")
    return MigrationReport.model_validate(found)
