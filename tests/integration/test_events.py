"""Events follow commits: each one is true when it is emitted, and none is emitted for what was rolled back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from graph_migrator import GraphType, HopContext, Node, Nodes, execute_migration, run_graph_migration
from graph_migrator.core.events import types as events
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.recovery import sweep, sweeping
from graph_migrator.core.graph_types.registry import register
from graph_migrator.core.settings import settings
from graph_migrator.core.store import protocol
from graph_migrator.core.store.session import Executors
from tests.rows import add_graph, one

emitted: list[events.Event] = []


@pytest.fixture(autouse=True)
def _listening() -> Iterator[None]:
    emitted.clear()
    stop = events.subscribe(emitted.append)
    yield
    stop()


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> GraphType:
    monkeypatch.setenv("GRAPH_MIGRATOR_BATCH_TARGET_SECONDS", "0.000001")  # batches stay at two
    settings.cache_clear()
    kind = GraphType("emitted")

    @kind.hop(1, 2)
    def mark(ctx: HopContext) -> None:
        """Mark every node."""
        ctx.execute("UPDATE nodes SET properties = '{\"m\": 1}' WHERE graph_id = :graph_id")

    @kind.hop(2, 3, over=Nodes(), batch_size=2)
    def visit(ctx: HopContext, nodes: list[Node]) -> None:
        """Walk the nodes by twos."""
        for node in nodes:
            node.properties["w"] = 1

    @kind.hop(3, 4, when=lambda ctx: False)
    def never(ctx: HopContext) -> None:
        """Never needed."""

    @kind.hop(4, 5)
    def fails(ctx: HopContext) -> None:
        """Fail."""
        raise ValueError("by design")

    register(kind)
    return kind


def names() -> list[str]:
    return [event.name for event in emitted]


def the(name: str) -> Any:
    (event,) = (event for event in emitted if event.name == name)
    return event


def test_a_migration_emits_its_events_in_order(engine: Engine, kind: GraphType) -> None:
    graph_id = add_graph(engine, "g", "emitted", nodes=5)
    report = run_graph_migration(engine, "g", 4, caller=Caller(requested_by="me", reason="why not"))
    assert names() == [
        "migration_begun",
        "hop_started",
        "hop_succeeded",
        "hop_started",
        "hop_progressed",
        "hop_progressed",
        "hop_succeeded",
        "hop_started",
        "hop_succeeded",
        "migration_finished",
    ]
    begun, finished = the("migration_begun"), the("migration_finished")
    assert begun.fields() == {
        "migration_id": report.migration_id,
        "graph_id": graph_id,
        "graph": "g",
        "graph_type": "emitted",
        "at": begun.at,
        "from_version": 1,
        "to_version": 4,
        "hops": 3,
        "requested_by": "me",
        "reason": "why not",
    }
    succeeded = [event for event in emitted if isinstance(event, events.HopSucceeded)]
    assert [(e.hop, e.rows_changed, e.skipped) for e in succeeded] == [
        ("mark", 5, False),
        ("visit", 5, False),
        ("never", 0, True),
    ]
    progressed = [event for event in emitted if isinstance(event, events.HopProgressed)]
    assert [(e.done, e.total, e.rows_changed) for e in progressed] == [(2, 5, 2), (4, 5, 2)]
    assert (finished.status, finished.version, finished.hops, finished.attempts) == ("succeeded", 4, 3, 3)
    assert finished.rows_changed == 10
    assert finished.seconds == report.seconds


def test_every_event_is_emitted_after_its_commit(engine: Engine, kind: GraphType) -> None:
    """A subscriber finds what an event says in Postgres, from a connection of its own."""
    seen: list[Any] = []

    def look(event: events.Event) -> None:
        row = one(
            engine,
            "SELECT g.version, m.status, (SELECT status FROM hop_attempts a WHERE a.migration_id = m.id "
            "ORDER BY id DESC LIMIT 1) FROM graphs g, migrations m WHERE m.id = :id",
            id=event.migration_id,
        )
        seen.append((event.name, *row))

    stop = events.subscribe(look)
    add_graph(engine, "g", "emitted", version=3)
    with pytest.raises(ValueError, match="by design"):
        run_graph_migration(engine, "g", 5)
    stop()
    assert seen == [
        ("migration_begun", 3, "queued", None),
        ("hop_started", 3, "running", "running"),
        ("hop_succeeded", 4, "running", "skipped"),
        ("hop_started", 4, "running", "running"),
        ("hop_failed", 4, "failed", "failed"),
        ("migration_finished", 4, "failed", "failed"),
    ]
    failed, finished = the("hop_failed"), the("migration_finished")
    assert (failed.error_type, failed.error_message, failed.retry_in) == (
        "ValueError",
        "by design",
        None,
    )
    assert (finished.status, finished.error_type, finished.version) == ("failed", "ValueError", 4)


def test_nothing_is_emitted_in_a_callers_transaction(engine: Engine, kind: GraphType) -> None:
    add_graph(engine, "g", "emitted")
    with engine.connect() as connection, connection.begin() as transaction:
        execute_migration(connection, "g", 3)
        transaction.rollback()
    assert emitted == []


def test_a_subscriber_that_raises_breaks_nothing(
    engine: Engine, kind: GraphType, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: events.Event) -> None:
        raise RuntimeError("out of order")

    stop = events.subscribe(broken)
    add_graph(engine, "g", "emitted", nodes=5)
    with caplog.at_level(logging.ERROR, "graph_migrator.events"):
        report = run_graph_migration(engine, "g", 3)
    stop()
    assert report.status == "succeeded"
    assert len(emitted) == len(caplog.records) > 5
    assert "hop_started was not delivered to" in caplog.text


def test_nobody_listens_any_more_after_unsubscribing() -> None:
    heard: list[events.Event] = []
    stop = events.subscribe(heard.append)
    stop()
    stop()
    assert events.anybody_listens()  # the fixture does
    assert heard == []


def test_operators_verbs_are_emitted_once_they_are_committed(
    engine: Engine, executors: Executors, kind: GraphType
) -> None:
    seen: list[tuple[str, str]] = []

    def look(event: events.Event) -> None:
        status = one(engine, "SELECT status FROM migrations WHERE id = :id", id=event.migration_id).status
        seen.append((event.name, status))

    stop = events.subscribe(look)
    add_graph(engine, "g", "emitted", version=3)
    with executors.borrow() as executor:
        begun = begin_migration(executor, "g", 5)
        assert isinstance(begun, Dispatch)
        operations.pause(executor, "g", Caller(requested_by="op"))
        operations.resume(executor, "g")
        operations.cancel(executor, "g")
    stop()
    assert seen == [
        ("migration_begun", "queued"),
        ("migration_asked", "pausing"),
        ("migration_paused", "paused"),
        ("migration_resumed", "running"),
        ("migration_asked", "cancelling"),
        ("migration_finished", "cancelled"),
    ]
    asked = [event for event in emitted if isinstance(event, events.MigrationAsked)]
    assert [(e.verb, e.requested_by) for e in asked] == [("pause", "op"), ("cancel", None)]
    assert (the("migration_resumed").verb, the("migration_resumed").dispatch) == ("resume", 2)
    assert (the("migration_finished").status, the("migration_finished").version) == ("cancelled", 3)


def test_a_failed_migration_is_emitted_as_retried_and_released(
    engine: Engine, executors: Executors, kind: GraphType
) -> None:
    add_graph(engine, "g", "emitted", version=4)
    for _ in range(2):
        with pytest.raises(ValueError, match="by design"):
            run_graph_migration(engine, "g", 5)
    with executors.borrow() as executor:
        operations.retry(executor, "g", Caller(requested_by="op"))
        operations.release(executor, "g", force=True)
    resumed = [event for event in emitted if isinstance(event, events.MigrationResumed)]
    assert [(e.verb, e.dispatch, e.requested_by) for e in resumed] == [
        ("migrate", 2, None),
        ("retry", 3, "op"),
    ]
    finished = [event for event in emitted if isinstance(event, events.MigrationFinished)]
    assert [e.status for e in finished] == ["failed", "failed", "released"]


def test_another_target_emits_that_the_failed_migration_is_released(
    engine: Engine, executors: Executors, kind: GraphType
) -> None:
    add_graph(engine, "g", "emitted", version=3)
    with pytest.raises(ValueError, match="by design"):
        run_graph_migration(engine, "g", 5)
    emitted.clear()
    with executors.borrow() as executor:
        begin_migration(executor, "g", 4)
    assert names() == ["migration_finished"]  # it stands at 4 already
    assert the("migration_finished").status == "released"


def _opened(begun: Dispatch, facts: Any, dispatch: int) -> protocol.OpenHop:
    """An attempt of the last hop, by a worker that is about to die."""
    return protocol.OpenHop(
        migration=begun.migration_id,
        graph=facts.graph_id,
        status=facts.status,
        dispatch=dispatch,
        lost=None,
        from_=3,
        to=4,
        hop="never",
        fingerprint=begun.steps[0].fingerprint,
        worker="w",
        pid=1,
        task=None,
        done=0,
        deadline_seconds=30,
    )


def test_a_dead_executor_is_emitted_by_who_finds_it(
    engine: Engine, executors: Executors, kind: GraphType
) -> None:
    add_graph(engine, "g", "emitted", version=3)
    with executors.borrow() as executor:
        begun = begin_migration(executor, "g", 4)
    assert isinstance(begun, Dispatch)
    for lost in (1, 2, 3):  # the process is seen to die each time
        with executors.borrow() as executor:
            facts = executor.call(protocol.LockAndLoadHop(migration=begun.migration_id, to=4, dispatch=lost))
            executor.call(_opened(begun, facts, lost))
            executor.call(protocol.ReportDeath(worker="w", pid=1, how="signal 9", alive_seconds=60))
            executor.close()
        emitted.clear()
        with sweeping(Executors(engine)) as sweeper:
            assert sweeper is not None
            sweep(sweeper)
        last = "migration_recovered" if lost < 3 else "migration_finished"
        assert names() == ["hop_lost", last]
        assert the("hop_lost").found_by == "recovery"
        if lost < 3:
            assert (the(last).because, the(last).dispatch) == ("lost", lost + 1)
    assert the("migration_finished").error_type == "graph_migrator.HopCrashedRepeatedly"


def test_a_hop_that_is_interrupted_again_is_lost_and_not_sent_at_once(
    engine: Engine, executors: Executors, kind: GraphType
) -> None:
    add_graph(engine, "g", "emitted", version=3)
    with executors.borrow() as executor:
        begun = begin_migration(executor, "g", 4)
    assert isinstance(begun, Dispatch)
    for lost, expected in ((1, ["hop_lost", "migration_recovered"]), (2, ["hop_lost"])):
        with executors.borrow() as executor:
            facts = executor.call(protocol.LockAndLoadHop(migration=begun.migration_id, to=4, dispatch=lost))
            executor.call(_opened(begun, facts, lost))
            executor.close()
        emitted.clear()
        with sweeping(Executors(engine)) as sweeper:
            assert sweeper is not None
            done = sweep(sweeper)
        assert names() == expected
        assert bool(done.to_send) == (lost == 1)
