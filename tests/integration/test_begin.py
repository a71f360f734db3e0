"""Beginning a migration: what is refused, and how begin meets writers and other calls."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from graph_migrator.core.errors import (
    GraphPartiallyMigrated,
    InvalidRequest,
    IrreversibleHop,
    MigrationInFlight,
    OpenWriteTransactions,
    UnknownGraph,
    UnknownGraphType,
    UnknownTarget,
)
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration, lock_and_load_graph
from graph_migrator.core.execution.in_process import follow, run_graph_migration
from graph_migrator.core.execution.model import Dispatch
from graph_migrator.core.settings import settings
from graph_migrator.core.store import protocol
from graph_migrator.core.store.session import Executor, Executors
from tests.integration.scripted import Script, fails_now, trails
from tests.rows import add_graph, advisory_locks, dump, rows
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("script")


def partially_migrated(engine: Engine, executors: Executors, script: Script, slug: str) -> None:
    """A graph that was force-released inside a batched hop."""
    add_graph(engine, slug, "batched", nodes=25)
    script.on["visit"] = lambda ctx: len(script.batches) == 2 and fails_now()
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(engine, slug)
    script.clear()
    with executors.borrow() as executor:
        operations.release(executor, slug, force=True)


def test_each_refusal_has_an_error_of_its_own_and_changes_not_one_row(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "free", "plain")
    add_graph(engine, "high", "plain", version=5)
    add_graph(engine, "strange", "unheard-of")
    add_graph(engine, "busy", "plain")
    partially_migrated(engine, executors, script, "half")
    with executors.borrow() as executor:
        busy = begin_migration(executor, "busy", 3)
    assert isinstance(busy, Dispatch)
    before = dump(engine)
    for slug, target, expected, says in [
        ("nobody", 2, UnknownGraph, "nobody"),
        (str(uuid4()), 2, UnknownGraph, "there is no graph"),
        ("strange", 2, UnknownGraphType, "unheard-of"),
        ("free", 6, UnknownTarget, "versions 1 to 5"),
        ("free", 0, InvalidRequest, "target"),
        ("high", 3, IrreversibleHop, "no_way_back"),
        ("busy", 3, MigrationInFlight, str(busy.migration_id)),
        ("busy", 4, MigrationInFlight, str(busy.migration_id)),
        ("half", 3, GraphPartiallyMigrated, "visit"),
        ("half", 1, GraphPartiallyMigrated, "10 rows done"),
    ]:
        with pytest.raises(expected, match=says):
            run_graph_migration(engine, slug, target)
        assert dump(engine) == before, slug
    assert script.invoked == []
    assert advisory_locks(engine) == []


def test_already_at_the_target_is_a_report_and_not_one_row(engine: Engine) -> None:
    graph_id = add_graph(engine, "g", "plain", version=5)
    before = dump(engine)
    for target in (5, None):
        report = run_graph_migration(engine, "g", target)
        assert (report.status, report.changed, report.version) == ("succeeded", False, 5)
        assert (report.graph_id, report.hops, report.last_applied) == (graph_id, (), None)
    assert dump(engine) == before


def test_ten_threads_begin_one_migration(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    start = threading.Barrier(10)

    def begin(_: int) -> Dispatch | MigrationInFlight:
        with executors.borrow() as executor:
            executor.call(protocol.TrySweep())  # connected, before anybody starts
            start.wait(30)
            try:
                begun = begin_migration(executor, "g", 3)
            except MigrationInFlight as refusal:
                return refusal
            assert isinstance(begun, Dispatch)
            return begun

    with ThreadPoolExecutor(10) as pool:
        outcomes = list(pool.map(begin, range(10)))
    begun = [outcome for outcome in outcomes if isinstance(outcome, Dispatch)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, MigrationInFlight)]
    assert (len(begun), len(refused)) == (1, 9)
    assert {refusal.migration_id for refusal in refused} == {str(begun[0].migration_id)}
    assert len(rows(engine, "SELECT * FROM migrations")) == 1
    assert follow(executors, begun[0]).version == 3
    assert trails(engine, "g") == {"one two"}


def test_begin_waits_for_a_writer_in_flight(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as writer:
            writer.execute(text("UPDATE nodes SET label = 'Late'"))
            running = pool.submit(run_graph_migration, executors, "g", 2)
            _wait_for_a_waiting_lock(engine)
            assert rows(engine, "SELECT * FROM migrations") == []
        assert running.result(30).version == 2
    assert rows(engine, "SELECT DISTINCT label FROM nodes") == [("Late",)]


def _wait_for_a_waiting_lock(engine: Engine) -> None:
    until(
        lambda: rows(engine, "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"),
        "begin waits for the writer",
    )


def test_a_writer_that_does_not_end_is_named_and_nothing_changed(
    engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_graph(engine, "g", "plain")
    monkeypatch.setenv("GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS", "0.2")
    settings.cache_clear()
    with engine.begin() as writer:
        writer.execute(text("UPDATE nodes SET label = 'Late'"))
        pid = writer.execute(text("SELECT pg_backend_pid()")).scalar_one()
        before = dump(engine)
        with pytest.raises(OpenWriteTransactions, match=f"pid {pid}"):
            run_graph_migration(executors, "g", 2)
        assert dump(engine) == before
    assert run_graph_migration(executors, "g", 2).version == 2


def test_a_migration_that_ends_while_another_looks_is_not_entered_without_the_lock(
    engine: Engine, executors: Executors
) -> None:
    """The lock of a live migration is left alone; that migration may have ended before the state is read."""
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        begin_migration(executor, "g", 3)
    with ThreadPoolExecutor(1) as pool, engine.begin() as ends:
        ends.execute(text("LOCK TABLE checkpoints"))  # which the second look reads
        begins = pool.submit(_facts_of, engine, "g")
        waits = "SELECT pid FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
        until(lambda: rows(engine, waits), "enter between its two looks")
        ends.execute(text("SELECT graph_migrator.release_migration(migration_id, id, NULL) FROM graphs"))
        ends.commit()
        facts = begins.result(30)
    assert (facts.claim, facts.locked) == (None, True)


def _facts_of(engine: Engine, slug: str) -> Any:
    executor = Executor.connect(engine)
    try:
        return lock_and_load_graph(executor, slug, None)
    finally:
        executor.close()
