"""Migrating without Celery: `run_graph_migration` commits hop by hop, `execute_migration` not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from graph_migrator.core.decisions import (
    HopMessage,
    Ignored,
    Later,
)
from graph_migrator.core.errors import (
    InvalidRequest,
)
from graph_migrator.core.execution.apply_hop import apply_hop
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.limits import limits_of_settings
from graph_migrator.core.execution.model import (
    Applied,
    Attempt,
    Caller,
    Dispatch,
    EnoughSeen,
    Failed,
    HopOutcome,
    Sharded,
    Worker,
)
from graph_migrator.core.execution.recorded import load_report
from graph_migrator.core.execution.recovery import Sweep, recover_one
from graph_migrator.core.execution.run_hop import open_call, run_hop
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.planning import Step
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.connections import require_psycopg2
from graph_migrator.core.store.protocol import LockAndLoadHop
from graph_migrator.core.store.session import Executor, Executors


def run_graph_migration(
    session_factory: Engine | sessionmaker[Session] | Executors,
    graph_id: str | UUID,
    target: int | None = None,
    *,
    caller: Caller | None = None,
    on_hop: Callable[[HopMessage, HopOutcome], None] | None = None,
) -> MigrationReport:
    """Migrate a graph in this process: the same commits as the Celery chain, no broker.

    Another process may take over at any hop (a worker's recovery, if this process hangs); then this call
    waits for it and reports the same outcome.

    Args:
        session_factory: The database: an engine of psycopg2, or a session factory bound to one.
        graph_id: Id or slug.
        target: The version to reach; None for the newest.
        caller: Who asks, for the audit rows.
        on_hop: Called after each hop.

    Raises:
        InvalidRequest: The engine has another driver.
        GraphMigratorError: As `begin_migration`.
        Exception: What a hop raised.
    """
    executors, owned = _executors_of(session_factory)
    try:
        with executors.borrow() as executor:
            begun = begin_migration(executor, graph_id, target, caller=caller)
        if not isinstance(begun, Dispatch):
            if isinstance(begun, Ignored | Later):
                raise InvalidRequest("task_id", begun.why)
            return begun
        return follow(executors, begun, on_hop=on_hop)
    finally:
        if owned:
            executors.close()


def follow(
    executors: Executors,
    dispatch: Dispatch,
    *,
    on_hop: Callable[[HopMessage, HopOutcome], None] | None = None,
) -> MigrationReport:
    """Run a dispatched chain in this process, to the end of its migration."""
    for message in dispatch.messages():
        outcome = _run(executors, message)
        if on_hop is not None:
            on_hop(message, outcome)
        if isinstance(outcome, Sharded):
            return _follow_shards(executors, dispatch, outcome, on_hop)
        if isinstance(outcome, Failed):
            raise outcome.error
        if isinstance(outcome, Applied) and outcome.report is not None:
            return outcome.report
        if isinstance(outcome, Ignored):
            break
    return _wait_for_the_end(executors, dispatch.migration_id)


def _run(executors: Executors, message: HopMessage) -> HopOutcome:
    while isinstance(outcome := run_hop(executors, message), Later):
        time.sleep(outcome.seconds)
    return outcome


def _follow_shards(
    executors: Executors,
    dispatch: Dispatch,
    sharded: Sharded,
    on_hop: Callable[[HopMessage, HopOutcome], None] | None,
) -> MigrationReport:
    """Run shards one after another, then the rest of the chain. Workers may take some of them."""
    ahead = list(sharded.messages)
    while ahead:
        outcome = _run(executors, ahead.pop(0))
        match outcome:
            case Sharded(messages, None):
                ahead += messages
            case Sharded(closing=Dispatch() as rest):
                return follow(executors, rest, on_hop=on_hop)
            case Failed(error):
                raise error
            case _:
                pass
    return _wait_for_the_end(executors, dispatch.migration_id)


def _wait_for_the_end(executors: Executors, migration_id: UUID) -> MigrationReport:
    """Another process has it, or nobody: then this one recovers it, as a worker would."""
    while True:
        with executors.borrow() as executor:
            found = Sweep()
            recover_one(executor, migration_id, found, limits_of_settings())
            report = load_report(executor, migration_id)
        if found.to_send:
            return follow(executors, found.to_send[0])
        error = report.error()
        if error is not None:
            raise error
        if report.status.is_settled or report.status is MigrationStatus.PAUSED:
            return report
        time.sleep(0.2)


def _executors_of(source: Engine | sessionmaker[Session] | Executors) -> tuple[Executors, bool]:
    if isinstance(source, Executors):
        return source, False
    engine = source if isinstance(source, Engine) else source.kw.get("bind")
    if not isinstance(engine, Engine):
        raise InvalidRequest("session_factory", "it must be bound to an engine")
    require_psycopg2(engine, "session_factory")
    return Executors(engine), True


def execute_migration(
    connection: Connection, graph_id: str | UUID, target: int | None = None
) -> MigrationReport:
    """Run a whole plan in the caller's transaction: all or nothing, for small graphs and tests.

    Nothing is visible to others, and nothing is kept, unless the caller commits. On an error everything
    done here is rolled back to a savepoint, and the caller's transaction can go on.

    Args:
        connection: A connection of psycopg2 with READ COMMITTED isolation. With an older snapshot the hops would see
            rows of another version than the one they name.
        graph_id: Id or slug.
        target: The version to reach; None for the newest.

    Raises:
        InvalidRequest: The connection is in autocommit mode, or has another isolation level or driver.
        GraphMigratorError: As `begin_migration`.
        Exception: What a hop raised.
    """
    report: MigrationReport | None = None
    for step in migrate_within(connection, graph_id, target):
        report = step.report
    if report is None:
        raise LookupError("a migration without an end")
    return report


@dataclass(frozen=True)
class StepWithin:
    """What `migrate_within` has just done: begun, with what is planned; then one hop after the other."""

    report: MigrationReport
    planned: tuple[Step, ...] = ()
    seconds: float = 0.0
    seen: EnoughSeen | None = None


def migrate_within(
    connection: Connection,
    graph_id: str | UUID,
    target: int | None = None,
    *,
    most_batches: int | None = None,
) -> Iterator[StepWithin]:
    """Run a plan hop by hop in the caller's transaction; see `execute_migration`.

    Args:
        connection: As there.
        graph_id: Id or slug.
        target: The version to reach; None for the newest.
        most_batches: Stop for good inside a batched hop after this many batches, as a dry run does.

    Yields:
        The report so far: when it has begun, and after each hop.
    """
    require_psycopg2(connection, "connection")
    driver: Any = connection.connection.dbapi_connection  # the server does not know of autocommit
    isolation = "AUTOCOMMIT" if driver.autocommit else connection.get_isolation_level()
    if isolation != "READ COMMITTED":
        raise InvalidRequest("connection", f"its isolation level must be READ COMMITTED, not {isolation}")
    with connection.begin_nested():
        executor = Executor.within(connection)
        with executor.callers_settings():
            begun = begin_migration(executor, graph_id, target)
            if not isinstance(begun, Dispatch):
                assert isinstance(begun, MigrationReport)  # noqa: S101 - no task id, so nothing to ignore
                yield StepWithin(begun)
                return
            yield StepWithin(load_report(executor, begun.migration_id), begun.steps)
            for message in begun.messages():
                started = time.monotonic()
                seen = _hop_within(executor, begun, message, most_batches)
                report = load_report(executor, begun.migration_id)
                yield StepWithin(report, begun.steps, time.monotonic() - started, seen)
                if seen is not None:
                    return


def _hop_within(
    executor: Executor, begun: Dispatch, message: HopMessage, most_batches: int | None
) -> EnoughSeen | None:
    # Dispatch 0 is nobody's: `lock_and_load_hop` reads and leaves the lock alone; this transaction has it.
    state = executor.call(LockAndLoadHop(migration=message.migration_id, to=message.to_version, dispatch=0))
    assert state is not None  # noqa: S101 - it was begun in this transaction
    if state.shards:
        raise InvalidRequest(
            "connection", f"hop {state.hop_name!r} stands half-way in shards, which have commits of their own"
        )
    hop = graph_type(begun.graph_type).directed(message.from_version, message.to_version)
    opened = executor.call(open_call(message, state, hop, None, Worker()))
    assert opened is not None  # noqa: S101 - nobody else can change what this transaction has begun
    attempt = Attempt(opened.attempt_id, opened.attempt, message, state, hop)
    try:
        apply_hop(executor, attempt, most_batches=most_batches)
    except EnoughSeen as seen:
        return seen
    return None
