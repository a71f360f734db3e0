"""Operators and graphs that are partially migrated: forced releases, retries, and declaring a graph whole."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext
from graph_migrator.core.errors import GraphBusy, GraphPartiallyMigrated, MigrationReleased
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.in_process import follow, run_graph_migration
from graph_migrator.core.execution.model import Caller, Failed
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store import protocol
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.integration.verbs import begin, do, half_way, lock_held
from tests.rows import add_graph, advisory_locks, attempts, dump, graph_row, migration_of, properties, rows


def test_a_partially_migrated_graph_is_released_by_force_only_and_remembers_it(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        before = dump(engine)
        with pytest.raises(GraphPartiallyMigrated) as refusal:
            do(executors, "release", "g")
        assert refusal.value.args == ("g", "visit", 1, 2, 10, False, False, False)
        assert "release g --force" in refusal.value.message
        assert dump(engine) == before
        report = do(executors, "release --force", "g")
    assert "partially migrated" in report.message
    half = graph_row(engine, "g").partially_migrated
    assert (half["hop"], half["cursor"], half["done"], half["target"]) == ("visit", ["n0009"], 10, 3)
    assert (migration_of(engine, "g").status, graph_row(engine, "g").migration_id) == ("released", None)


def test_a_force_released_partially_migrated_graph_is_finished_by_a_retry(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        do(executors, "release --force", "g")
        with executors.borrow() as executor:
            report, dispatch = operations.retry(executor, "g", Caller("retry-1"))
            again, nothing = operations.retry(executor, "g", Caller("retry-1"))
    assert (again, nothing) == (report, None)
    assert dispatch is not None
    assert dispatch.task_id is None  # the verb's own answer is its report, not the migration's
    assert follow(executors, dispatch).version == 3
    assert [values["trail"] for values in properties(engine, "g").values()] == [["visit", "arrive"]] * 25
    assert graph_row(engine, "g").partially_migrated is None
    assert len(rows(engine, "SELECT * FROM migrations")) == 2


def test_a_force_released_partially_migrated_graph_is_declared_whole_by_an_operator(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        do(executors, "release --force", "g")
    for verb in ("release", "release --force"):
        with pytest.raises(GraphPartiallyMigrated, match="release g --whole"):
            do(executors, verb, "g")
    do(executors, "release --whole", "g")
    assert graph_row(engine, "g").partially_migrated is None
    assert run_graph_migration(executors, "g", 2).version == 2


def test_a_partially_migrated_hop_whose_code_changed_goes_on_only_where_the_operator_says_so(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE migrations SET plan = jsonb_set(plan, '{0,fingerprint}', '\"other code\"')")
            )
        before = dump(engine)
        with pytest.raises(GraphPartiallyMigrated, match="retry g --accept-new-code"):
            do(executors, "retry", "g")
        with pytest.raises(GraphPartiallyMigrated, match="retry g --accept-new-code"):
            run_graph_migration(executors, "g")  # calling again resumes, but not with other code
        assert dump(engine) == before
        with executors.borrow() as executor:
            _, dispatch = operations.retry(executor, "g", accept_new_code=True)
    assert dispatch is not None
    assert follow(executors, dispatch).version == 3


def test_a_partially_migrated_hop_that_is_batched_no_more_leaves_no_checkpoint(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        mended = GraphType("batched")
        mended.sql_hop(1, 2, name="visit", forward="SELECT :graph_id")
        mended.sql_hop(2, 3, name="arrive", forward="SELECT :graph_id")
        registry.register(mended)
        with executors.borrow() as executor:
            _, dispatch = operations.retry(executor, "g", accept_new_code=True)
    assert dispatch is not None
    assert follow(executors, dispatch).version == 3
    assert rows(engine, "SELECT 1 FROM checkpoints") == []


def test_a_force_released_partially_migrated_graph_goes_on_with_other_code_only_where_the_operator_says_so(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        do(executors, "release --force", "g")
        with engine.begin() as connection:
            connection.execute(text("SELECT become_executor(:id)"), {"id": migration_of(engine, "g").id})
            connection.execute(
                text(
                    "UPDATE graphs SET partially_migrated = "
                    "jsonb_set(partially_migrated, '{fingerprint}', '\"other code\"')"
                )
            )
            connection.execute(text("SELECT set_config('graph_migrator.executor', '', false)"))
        before = dump(engine)
        with pytest.raises(GraphPartiallyMigrated):
            do(executors, "retry", "g")
        assert dump(engine) == before
        with executors.borrow() as executor:
            _, dispatch = operations.retry(executor, "g", accept_new_code=True)
    assert dispatch is not None
    assert follow(executors, dispatch).version == 3


def test_a_forced_release_waits_for_the_lock_and_ends_its_holder_only_when_asked_to(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 4)
    with lock_held(engine, "g") as holder:
        before = dump(engine)
        with pytest.raises(GraphBusy, match="its lock is held by pid"):
            do(executors, "release --force", "g")
        assert dump(engine) == before
        with executors.borrow() as executor:
            operations.release(executor, "g", force=True, terminate=True)
        with pytest.raises(Exception, match=r"terminating connection|closed"):
            holder.call(protocol.TrySweep())
    assert migration_of(engine, "g").status == "released"
    assert isinstance(run_hop(executors, dispatch.messages()[0]), Failed)
    assert script.invoked == []
    assert advisory_locks(engine) == []


def test_an_executor_that_was_forced_off_its_graph_settles_nothing(
    engine: Engine, executors: Executors, script: Script
) -> None:
    """Its hop is in the middle of its data when an operator ends its session and releases the graph."""
    add_graph(engine, "g", "plain")

    def lose(ctx: HopContext) -> None:
        with executors.borrow() as executor:
            operations.release(executor, "g", force=True, terminate=True)

    script.on["two"] = lose
    with pytest.raises(MigrationReleased):
        run_graph_migration(executors, "g", 4)
    assert attempts(engine, "g") == [("one", "succeeded"), ("two", "lost")]
    assert (graph_row(engine, "g").version, migration_of(engine, "g").status) == (2, "released")
    assert {tuple(values["trail"]) for values in properties(engine, "g").values()} == {("one",)}
