"""`wait_for` learns from Postgres when a migration has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, text

from graph_migrator import HopContext, MigrationReport, wait_for
from graph_migrator.core.errors import MigrationCancelled, UnknownGraph, UnknownTarget, WaitTimedOut
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import follow
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.inspection import listener, waiting
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.graphs import find_graph
from graph_migrator.core.store import protocol
from graph_migrator.core.store.session import Executors
from tests.integration.console import Outcome, call
from tests.integration.scripted import Script
from tests.rows import add_graph, migration_of, rows
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("script")


@dataclass
class Sent:
    """What `.delay()` returns, as far as `wait_for` looks."""

    id: str


@dataclass
class Waiting:
    """A `wait_for` in a thread of its own."""

    outcome: Future[MigrationReport]
    looks: list[MigrationReport | None] = field(default_factory=list)


@pytest.fixture
def wait(engine: Engine) -> Iterator[Callable[..., Waiting]]:
    with ThreadPoolExecutor() as pool:

        def start(what: Any, timeout: float = 60) -> Waiting:
            found = Waiting(Future())
            found.outcome = pool.submit(wait_for, what, timeout, database=engine, on_look=found.looks.append)
            return found

        yield start


def listeners(engine: Engine) -> int:
    """How many sessions wait for a migration, by notification."""
    held = (
        "SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database() "
        "WHERE l.locktype = 'advisory' AND l.mode = 'ShareLock'"
    )
    return len(rows(engine, held))


def begin(executors: Executors, slug: str = "g", target: int = 3, call: str | None = "call-1") -> Dispatch:
    with executors.borrow() as executor:
        begun = begin_migration(executor, slug, target, caller=Caller(call))
    assert isinstance(begun, Dispatch)
    return begun


@pytest.fixture
def no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a notification can end a wait."""
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 3_600.0)


@pytest.mark.usefixtures("no_poll")
def test_the_end_of_a_migration_is_announced(
    engine: Engine, executors: Executors, wait: Callable[..., Waiting]
) -> None:
    add_graph(engine, "g", "plain")
    begun = begin(executors)
    waiters = [wait(what) for what in (Sent("call-1"), begun.migration_id, "g", "call-1")]
    until(lambda: listeners(engine) == 4, "all listen")
    follow(executors, begun)
    for waiter in waiters:
        report = waiter.outcome.result(timeout=60)
        assert (report.migration_id, report.status, report.version) == (begun.migration_id, "succeeded", 3)
    until(lambda: listeners(engine) == 0, "no session left")


@pytest.mark.usefixtures("no_poll")
def test_the_end_of_each_hop_is_announced(
    engine: Engine, executors: Executors, script: Script, wait: Callable[..., Waiting]
) -> None:
    add_graph(engine, "g", "plain")
    begun = begin(executors)
    waiter = wait("g")
    until(lambda: listeners(engine) == 1, "it listens")

    def after_the_first(_: HopContext) -> None:
        until(lambda: [each for each in waiter.looks if each and each.last_applied == "one"], "hop one seen")

    script.on["two"] = after_the_first
    follow(executors, begun)
    assert waiter.outcome.result(timeout=60).last_applied == "two"


def fail(_: HopContext) -> None:
    raise ValueError("no name")


@pytest.mark.usefixtures("no_poll")
def test_what_a_hop_raised_is_raised(
    engine: Engine, executors: Executors, script: Script, wait: Callable[..., Waiting]
) -> None:
    add_graph(engine, "g", "plain")
    begun = begin(executors)
    script.on["one"] = fail
    waiter = wait("g")
    until(lambda: listeners(engine) == 1, "it listens")
    with pytest.raises(ValueError, match="no name"):
        follow(executors, begun)
    with pytest.raises(ValueError, match="no name"):
        waiter.outcome.result(timeout=60)


@pytest.mark.usefixtures("no_poll")
def test_a_cancelled_migration_raises(
    engine: Engine, executors: Executors, wait: Callable[..., Waiting]
) -> None:
    add_graph(engine, "g", "plain")
    begin(executors)
    waiter = wait("g")
    until(lambda: listeners(engine) == 1, "it listens")
    with executors.borrow() as executor:
        operations.cancel(executor, "g")
        executor.call(protocol.StopMigration(migration=migration_of(engine, "g").id, attempt_becomes="lost"))
    with pytest.raises(MigrationCancelled):
        waiter.outcome.result(timeout=60)


def test_nothing_is_notified_where_nobody_waits(
    database_url: str, engine: Engine, executors: Executors
) -> None:
    add_graph(engine, "g", "plain")
    listening = psycopg2.connect(database_url)
    try:
        listening.autocommit = True
        with listening.cursor() as cursor:
            cursor.execute("LISTEN graph_migrator")
            follow(executors, begin(executors))
            cursor.execute("SELECT 1")
        assert listening.notifies == []
    finally:
        listening.close()


def test_without_notifications_it_polls(
    engine: Engine, executors: Executors, wait: Callable[..., Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener.Listener, "_was_notified", lambda _: False)
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.05)
    add_graph(engine, "g", "plain")
    begun = begin(executors)
    waiter = wait("g")
    until(lambda: listeners(engine) == 1, "it listens")
    follow(executors, begun)
    assert waiter.outcome.result(timeout=60).version == 3


def test_a_call_that_has_not_arrived_is_waited_for(
    engine: Engine, executors: Executors, wait: Callable[..., Waiting]
) -> None:
    add_graph(engine, "g", "plain")
    waiter = wait(Sent("call-1"))
    until(lambda: waiter.looks, "a look")
    assert waiter.looks[0] is None
    follow(executors, begin(executors))
    assert waiter.outcome.result(timeout=60).version == 3


def test_a_refused_call_raises_its_refusal_and_one_with_nothing_to_do_returns(
    engine: Engine, executors: Executors
) -> None:
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor, pytest.raises(UnknownTarget):
        begin_migration(executor, "g", 99, caller=Caller("refused"))
    with executors.borrow() as executor:
        begin_migration(executor, "g", 1, caller=Caller("nothing"))
    with pytest.raises(UnknownTarget):
        wait_for(Sent("refused"), 60, database=engine)
    report = wait_for(Sent("nothing"), 60, database=engine)
    assert (report.changed, report.version) == (False, 1)


def test_a_graph_that_was_never_migrated_and_one_that_is_not_there(engine: Engine) -> None:
    add_graph(engine, "g", "plain")
    report = wait_for("g", 60, database=engine)
    assert (report.changed, report.version) == (False, 1)
    with pytest.raises(UnknownGraph):
        wait_for("nobody", 60, database=engine)


def test_a_wait_that_is_over_says_where_the_migration_stands(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    with pytest.raises(WaitTimedOut, match="no worker has begun it"):
        wait_for(Sent("call-1"), 0, database=engine)
    begun = begin(executors)
    with pytest.raises(WaitTimedOut, match=f"migration {begun.migration_id} is queued"):
        wait_for("g", 0, database=engine)


def test_a_lost_session_is_replaced(
    engine: Engine, executors: Executors, wait: Callable[..., Waiting]
) -> None:
    add_graph(engine, "g", "plain")
    begun = begin(executors)
    waiter = wait("g")
    until(lambda: waiter.looks and listeners(engine) == 1, "it has looked, and listens")
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE query LIKE '%graph_migrator.report%' AND pid <> pg_backend_pid()"
            )
        )
    until(lambda: listeners(engine) == 1, "it listens again")
    follow(executors, begun)
    assert waiter.outcome.result(timeout=60).version == 3


# ── watch ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def watching(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Future[Outcome]]]:
    """`watch` in a thread of its own, which looks once an hour."""
    monkeypatch.setattr("graph_migrator.tasks.cli.watch.engine", lambda: engine)
    with ThreadPoolExecutor() as pool:
        yield lambda *graphs: pool.submit(call, "watch", "--interval", 3_600, *graphs)


@pytest.mark.parametrize("named", [("g", "h"), ()])
def test_watch_is_notified_of_each_hop_of_each_graph(
    engine: Engine,
    executors: Executors,
    watching: Callable[..., Future[Outcome]],
    named: tuple[str, ...],
) -> None:
    for slug in ("g", "h"):
        add_graph(engine, slug, "plain")
    begun = [begin(executors, slug, call=None) for slug in ("g", "h")]
    watched = watching(*named)
    until(lambda: listeners(engine) == 2, "it follows both")
    for each in begun:
        follow(executors, each)
    outcome = watched.result(timeout=60)
    assert outcome.exit_code == 0
    for slug in ("g", "h"):
        assert f"{slug}  v3 → v3  two  succeeded" in outcome.out
    until(lambda: listeners(engine) == 0, "no session left")


def test_watch_goes_on_when_its_session_is_ended(
    engine: Engine, executors: Executors, watching: Callable[..., Future[Outcome]]
) -> None:
    add_graph(engine, "g", "plain")
    begun = begin(executors)
    watched = watching("g")
    until(lambda: listeners(engine) == 1, "it follows")
    ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
    assert rows(engine, ended)
    until(lambda: listeners(engine) == 1, "it follows again")
    follow(executors, begun)
    assert watched.result(timeout=60).exit_code == 0


def test_a_state_is_of_one_moment(
    engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_graph(engine, "g", "plain")
    begun = begin(executors)
    find = find_graph

    def find_and_go_on(*arguments: Any) -> Any:
        found = find(*arguments)
        follow(executors, begun)
        return found

    monkeypatch.setattr("graph_migrator.core.inspection.graph_state.find_graph", find_and_go_on)
    state = graph_state(engine, "g")
    assert state.migration is not None
    assert (state.graph.version, state.migration.status) == (1, "queued")
