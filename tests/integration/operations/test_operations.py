"""Operators' verbs follow the edges of the state machine, and no others."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from graph_migrator.core.decisions import Ignored
from graph_migrator.core.errors import MigrationCancelled, MigrationReleased, UnknownGraph
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.in_process import follow, run_graph_migration
from graph_migrator.core.execution.model import Applied, Caller, Failed
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.integration.verbs import begin, do, in_state
from tests.rows import add_graph, attempts, graph_row, migration_of, rows

# ── what comes of it ──────────────────────────────────────────────────────────────────────────────────


def test_a_paused_migration_ignores_the_messages_it_had_sent_and_goes_on_under_a_new_dispatch(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    old = begin(executors, "g", 4)
    run_hop(executors, old.messages()[0])
    do(executors, "pause", "g")
    for message in old.messages():
        assert isinstance(run_hop(executors, message), Ignored)
    with executors.borrow() as executor:
        report, new = operations.resume(executor, "g")
    assert (report.dispatch, migration_of(engine, "g").dispatch) == (2, 2)
    assert new is not None
    assert [(step.from_version, step.to_version) for step in new.steps] == [(2, 3), (3, 4)]
    for message in old.messages():
        assert isinstance(run_hop(executors, message), Ignored)
    assert follow(executors, new).version == 4
    assert script.invoked == ["one", "two", "three"]


def test_resume_of_a_migration_that_has_not_stopped_yet_needs_no_lock_and_no_new_chain(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "pausing"), executors.borrow() as executor:
        report, dispatch = operations.resume(executor, "g")
    assert (report.status, report.dispatch, dispatch) == ("running", 1, None)


def test_pause_and_cancel_of_a_running_hop_take_effect_at_its_end(
    engine: Engine, executors: Executors, script: Script
) -> None:
    for verb, status in (("pause", "paused"), ("cancel", "cancelled")):
        add_graph(engine, verb, "plain")
        script.on["one"] = lambda ctx: do(executors, ctx.graph.slug, ctx.graph.slug)
        dispatch = begin(executors, verb, 4)
        assert run_hop(executors, dispatch.messages()[0]) == Applied()
        assert migration_of(engine, verb).status in {"pausing", "cancelling"}
        run_hop(executors, dispatch.messages()[1])
        assert (migration_of(engine, verb).status, graph_row(engine, verb).version) == (status, 2)
        assert attempts(engine, verb) == [("one", "succeeded")]


def test_a_cancelled_call_is_answered_with_where_the_graph_stands(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 4)
    run_hop(executors, dispatch.messages()[0])
    do(executors, "cancel", "g")
    outcome = run_hop(executors, dispatch.messages()[1])
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, MigrationCancelled)
    assert outcome.error.args == ("g", 2)
    assert graph_row(engine, "g").migration_id is None


def test_a_released_graph_is_writable_at_its_version_and_late_messages_do_nothing(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "failed"):
        old = rows(engine, "SELECT id FROM migrations")[0][0]
        do(executors, "release", "g")
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'Written'"))
    from graph_migrator.core.decisions import HopMessage

    outcome = run_hop(executors, HopMessage(old, 3, 4, 1))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, MigrationReleased)
    assert graph_row(engine, "g").version == 3


def test_a_retry_plans_anew_with_the_code_that_is_there_now(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "failed"):
        with engine.begin() as connection:  # as if it had been planned with other code
            connection.execute(
                text("UPDATE migrations SET plan = replace(plan::text, 'three', 'old')::jsonb")
            )
        with executors.borrow() as executor:
            _, dispatch = operations.retry(executor, "g")
    assert dispatch is not None
    assert [step.name for step in dispatch.steps] == ["three"]
    assert follow(executors, dispatch).version == 4


# ── the owner's lock ──────────────────────────────────────────────────────────────────────────────────


def test_an_owners_lock_keeps_writers_off_and_migrations_not(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        assert operations.set_read_only(executor, "g", on=True).message == "read-only for its owner"
        assert operations.set_read_only(executor, "g", on=True).message == "read-only for its owner already"
    with pytest.raises(Exception, match="its owner locked it"), engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'x'"))
    assert run_graph_migration(executors, "g", 2).version == 2
    with executors.borrow() as executor:
        assert operations.set_read_only(executor, "g", on=False).message == "writable again"
        with pytest.raises(UnknownGraph):
            operations.set_read_only(executor, "nobody", on=True)
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'x'"))


def test_a_lock_that_comes_again_does_not_lock_a_graph_that_was_unlocked_since(
    engine: Engine, executors: Executors
) -> None:
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        locked = operations.set_read_only(executor, "g", Caller("lock-1", "ann"), on=True)
        operations.set_read_only(executor, "g", Caller("unlock-1"), on=False)
        assert operations.set_read_only(executor, "g", Caller("lock-1", "ann"), on=True) == locked
    assert graph_row(engine, "g").owner_read_only is False
    asked = rows(engine, "SELECT task_id, verb, requested_by FROM requests ORDER BY task_id")
    assert asked == [("lock-1", "lock", "ann"), ("unlock-1", "unlock", None)]
