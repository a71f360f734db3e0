"""Going back over a rebuild hop: one commit by old values where nothing has changed the graph since, else by code."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from graph_migrator import graph_repair, graph_writer
from graph_migrator.core.audit.digests import verify_data
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.errors import IrreversibleHop, OldValuesGone
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import execute_migration, follow, run_graph_migration
from graph_migrator.core.execution.model import Dispatch
from graph_migrator.core.execution.recovery import sweep
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.history import history
from graph_migrator.core.store.session import Executors
from graph_migrator.tasks.cli.history import print_story
from tests.integration.hand_driven import ISOLATIONS
from tests.integration.scripted import Killed, Script
from tests.integration.test_rebuild_hops import circle, exported, staged
from tests.rows import add_graph, graph_row, migration_of, one, rows

pytestmark = pytest.mark.usefixtures("script")


def undid(engine: Engine) -> list[bool]:
    """Of each attempt on the way back that was committed: whether it restored old values."""
    found = rows(
        engine,
        "SELECT undid IS NOT NULL FROM hop_attempts WHERE to_version < from_version AND status = 'succeeded' "
        "ORDER BY id",
    )
    return [is_undo for (is_undo,) in found]


def swept(executors: Executors, *, times: int = 1) -> None:
    for _ in range(times):
        with executors.borrow() as executor:
            sweep(executor)


def undo_ends(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE rebuilds SET undo_until = now() - interval '1 second'"))


# ── one commit ──────────────────────────────────────────────────────────────────────────────────────


def test_there_and_back_nothing_differs_and_no_code_runs(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    with engine.begin() as connection:  # numbers as Postgres has them, to the last digit
        connection.execute(
            text("UPDATE nodes SET properties = '{\"n\": 1.500, \"e\": 1e30}' WHERE id = 'n0003'")
        )
    first = exported(engine)
    run_graph_migration(engine, "g", 2)
    second = exported(engine)
    run_graph_migration(engine, "g", 3)
    assert graph_state(engine, "g").graph.undoable_to == 1
    script.clear()
    assert run_graph_migration(engine, "g", 2).version == 2
    assert exported(engine) == second
    assert run_graph_migration(engine, "g", 1).version == 1
    assert (exported(engine), script.invoked) == (first, [])
    attempts = [attempt for story in history(engine, "g") for attempt in story.attempts]
    assert [(a.hop_name, a.undid, a.rows_changed, a.done) for a in attempts[2:]] == [
        ("turn_edges", attempts[1].migration_id, 30, 30),
        ("rebuild_nodes", attempts[0].migration_id, 30, 30),
    ]
    assert (verify_data(engine).graphs, verify_data(engine).differences) == (1, ())
    assert verify_chains(engine).count == 0
    swept(executors, times=2)
    assert (staged(engine), rows(engine, "SELECT * FROM rebuilt_rows")) == ([], [])


def test_two_swaps_are_taken_back_by_one_call(engine: Engine, script: Script) -> None:
    circle(engine)
    before = exported(engine)
    run_graph_migration(engine, "g", 3)
    assert run_graph_migration(engine, "g", 1).version == 1
    assert (exported(engine), undid(engine)) == (before, [True, True])
    # The way there runs the code of today, also where old values of the way back could be had.
    script.clear()
    assert run_graph_migration(engine, "g", 2).version == 2
    assert script.invoked == ["rebuild_nodes"] * 3


def test_the_reverse_is_a_rebuild_hop_too_and_is_not_taken_back(engine: Engine, script: Script) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    undo_ends(engine)
    with Executors(engine).borrow() as executor:
        sweep(executor)
    assert run_graph_migration(engine, "g", 1).version == 1
    assert (undid(engine), graph_row(engine, "g").undo_id) == ([False], None)
    assert run_graph_migration(engine, "g", 2).version == 2
    assert script.invoked.count("rebuild_nodes") == 9


def test_in_the_callers_transaction_it_is_taken_back_too(engine: Engine) -> None:
    circle(engine)
    before = exported(engine)
    run_graph_migration(engine, "g", 2)
    with engine.begin() as connection:
        assert execute_migration(connection, "g", 1).version == 1
    assert (exported(engine), undid(engine)) == (before, [True])


def test_a_death_on_the_way_back_costs_nothing(
    engine: Engine, executors: Executors, monkeypatch: Any
) -> None:
    circle(engine)
    before = exported(engine)
    run_graph_migration(engine, "g", 3)
    with executors.borrow() as executor:
        dispatch = begin_migration(executor, "g", 2)
    assert isinstance(dispatch, Dispatch)

    def die(point: str) -> None:
        if point == "hop_before_commit":
            raise Killed

    monkeypatch.setattr("graph_migrator.core.execution.failpoints.hook", die)
    with pytest.raises(Killed):
        run_hop(executors, dispatch.messages()[0])
    monkeypatch.undo()
    assert graph_row(engine, "g").version == 3
    with executors.borrow() as executor:
        (again,) = sweep(executor).to_send
    assert follow(executors, again).version == 2
    assert run_graph_migration(engine, "g", 1).version == 1
    assert exported(engine) == before


# ── never guessed ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE nodes SET properties = properties || '{\"w\": 1}' WHERE graph_id = :graph AND id = 'n0003'",
        "INSERT INTO nodes (graph_id, id, label, properties) VALUES (:graph, 'late', 'Rebuilt', '{\"trail\": []}')",
        "DELETE FROM edges WHERE graph_id = :graph AND id = 'e0003'",
    ],
)
def test_what_a_writer_has_changed_stays(engine: Engine, statement: str, isolation: str) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    graph = graph_row(engine, "g").id
    with engine.connect().execution_options(isolation_level=isolation) as connection, connection.begin():
        connection.execute(text(statement), {"graph": graph})
    assert graph_state(engine, "g").graph.undoable_to is None
    assert run_graph_migration(engine, "g", 1).version == 1
    assert undid(engine) == [False]
    if "UPDATE" in statement:
        assert one(engine, "SELECT properties FROM nodes WHERE id = 'n0003'").properties == {"w": 1}


def test_a_writer_that_rolls_back_has_changed_nothing(engine: Engine) -> None:
    circle(engine)
    before = exported(engine)
    run_graph_migration(engine, "g", 2)
    with engine.connect() as connection:
        with graph_writer(connection, "g") as graph:
            connection.execute(text("DELETE FROM edges WHERE graph_id = :id"), {"id": graph.id})
        connection.rollback()
    run_graph_migration(engine, "g", 1)
    assert (exported(engine), undid(engine)) == (before, [True])


def test_writers_do_not_wait_for_one_another(engine: Engine) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    graph = graph_row(engine, "g").id
    write = text(
        "UPDATE nodes SET properties = properties || '{\"w\": 1}' WHERE graph_id = :graph AND id = :id"
    )
    with engine.connect() as one_, engine.connect() as other:
        one_.execute(write, {"graph": graph, "id": "n0001"})
        other.execute(text("SET LOCAL lock_timeout = '2s'"))
        other.execute(write, {"graph": graph, "id": "n0002"})
        one_.commit()
        other.commit()
    assert len(rows(engine, "SELECT * FROM rebuild_changes")) == 2
    with engine.begin() as third:
        third.execute(write, {"graph": graph, "id": "n0003"})
    assert len(rows(engine, "SELECT * FROM rebuild_changes")) == 2


def test_nothing_is_noted_once_nothing_is_kept(engine: Engine, executors: Executors) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    undo_ends(engine)
    swept(executors)
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET properties = '{}' WHERE id = 'n0001'"))
    assert (staged(engine), rows(engine, "SELECT * FROM rebuild_changes")) == ([], [])


def _another_hop_and_back(engine: Engine, _: Executors, __: Script) -> None:
    run_graph_migration(engine, "g", 4)
    run_graph_migration(engine, "g", 3)


def _repair_of_a_later_migration(engine: Engine, executors: Executors, script: Script) -> None:
    def fail(_: object) -> None:
        raise ValueError("no")

    script.on["plain_after"] = fail
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 4)
    with engine.begin() as connection, graph_repair(connection, "g", by="ada", reason="mended"):
        connection.execute(
            text("UPDATE nodes SET properties = properties || '{\"w\": 1}' WHERE id = 'n0001'")
        )
    with executors.borrow() as executor:
        operations.release(executor, "g")


def _expiry(engine: Engine, executors: Executors, _: Script) -> None:
    undo_ends(engine)
    swept(executors)


@pytest.mark.parametrize("change", [_another_hop_and_back, _repair_of_a_later_migration, _expiry])
def test_without_old_values_a_hop_without_a_reverse_refuses_to_go_back(
    engine: Engine, executors: Executors, script: Script, change: Callable[[Engine, Executors, Script], None]
) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 3)
    change(engine, executors, script)
    before = exported(engine)
    with pytest.raises(IrreversibleHop):
        run_graph_migration(engine, "g", 2)
    assert (exported(engine), graph_row(engine, "g").version) == (before, 3)


def test_a_failed_hop_that_was_rolled_back_has_changed_nothing(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    before = exported(engine)
    run_graph_migration(engine, "g", 3)

    def fail(ctx: Any) -> None:
        ctx.execute("UPDATE nodes SET label = 'X' WHERE graph_id = :graph_id")
        raise ValueError("no")

    script.on["plain_after"] = fail
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 4)
    run_graph_migration(engine, "g", 2)  # replaces the failed migration
    assert (exported(engine), undid(engine)) == (before, [True])


def test_a_writer_between_two_swaps_keeps_the_lower_one_from_being_undone(engine: Engine) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE nodes SET properties = properties || '{\"w\": 1}' WHERE id = 'n0003'")
        )
    run_graph_migration(engine, "g", 3)
    assert graph_state(engine, "g").graph.undoable_to == 2
    assert run_graph_migration(engine, "g", 1).version == 1
    assert undid(engine) == [True, False]
    assert one(engine, "SELECT properties FROM nodes WHERE id = 'n0003'").properties == {"w": 1}


def test_a_graph_that_replaces_another_has_nothing_to_undo(engine: Engine) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    old = graph_row(engine, "g")
    with engine.begin() as connection:
        connection.execute(text("SELECT open_replacement('g', 'rebuilt', 2, 'ada', 1000)"))
    assert (graph_row(engine, "g").id, graph_row(engine, "g").undo_id) == (old.id, None)
    with engine.begin() as connection, pytest.raises(DBAPIError, match="only migrations change"):
        connection.execute(text("UPDATE graphs SET undo_id = :id"), {"id": old.undo_id})
    other = add_graph(engine, "other", "rebuilt", 2)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM nodes WHERE graph_id = :id"), {"id": other})
        connection.execute(text("DELETE FROM graphs WHERE id = :id"), {"id": other})
        connection.execute(
            text(
                "INSERT INTO graphs (id, slug, graph_type, version, undo_id) VALUES (:id, 'o', 'rebuilt', 2, :undo)"
            ),
            {"id": other, "undo": old.undo_id},
        )
    assert graph_row(engine, "o").undo_id is None


# ── the sweep ───────────────────────────────────────────────────────────────────────────────────────


def test_the_sweep_keeps_what_a_migration_has_begun_for(engine: Engine, executors: Executors) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    before = exported(engine)
    run_graph_migration(engine, "g", 3)
    with executors.borrow() as executor:
        dispatch = begin_migration(executor, "g", 2)
    assert isinstance(dispatch, Dispatch)
    undo_ends(engine)
    swept(executors, times=2)
    assert [status for status, *_ in staged(engine)] == ["kept", "kept"]
    assert follow(executors, dispatch).version == 2
    assert (exported(engine), undid(engine)) == (before, [True])


def test_the_sweep_keeps_what_a_writer_holds_the_lock_of(engine: Engine, executors: Executors) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    undo_ends(engine)
    with engine.connect() as connection, graph_writer(connection, "g"):
        swept(executors)
        assert staged(engine)[0][0] == "kept"
    swept(executors, times=2)
    assert staged(engine) == []


def test_the_sweep_removes_a_bounded_number_of_rows_at_a_time(
    engine: Engine, executors: Executors, monkeypatch: Any
) -> None:
    circle(engine)
    monkeypatch.setattr("graph_migrator.core.execution.recovery.REMOVED_ROWS", 12)
    run_graph_migration(engine, "g", 2)
    undo_ends(engine)
    seen = []
    while staged(engine):
        swept(executors)
        seen.append(one(engine, "SELECT count(*) AS n FROM rebuilt_rows").n)
    assert seen == [18, 6, 0]


def test_the_sweep_removes_many_small_ones_at_a_time(engine: Engine, executors: Executors) -> None:
    for slug in ("one", "two", "three"):
        add_graph(engine, slug, "rebuilt")
        run_graph_migration(engine, slug, 2)
    undo_ends(engine)
    swept(executors)
    assert (staged(engine), rows(engine, "SELECT * FROM rebuilt_rows")) == ([], [])


def test_a_repair_on_the_way_back_is_not_undone(engine: Engine, executors: Executors) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 3)
    with executors.borrow() as executor:
        dispatch = begin_migration(executor, "g", 2)
        assert isinstance(dispatch, Dispatch)
        operations.pause(executor, "g")
    with engine.begin() as connection, graph_repair(connection, "g", by="ada", reason="mended"):
        connection.execute(text("UPDATE edges SET properties = '{\"w\": 1}' WHERE id = 'e0001'"))
    with executors.borrow() as executor:
        _, again = operations.resume(executor, "g")
    assert again is not None
    with pytest.raises(OldValuesGone, match="was changed since"):
        follow(executors, again)
    assert (migration_of(engine, "g").status, graph_row(engine, "g").version) == ("failed", 3)
    with executors.borrow() as executor, pytest.raises(IrreversibleHop):
        operations.retry(executor, "g")
    with executors.borrow() as executor:
        assert operations.release(executor, "g").message == "released to its writers at v3"


# ── what people see ─────────────────────────────────────────────────────────────────────────────────


def test_the_state_says_what_is_staged_and_until_when_it_can_be_undone(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    script.on["rebuild_nodes"] = lambda _: operations_pause(executors)
    with executors.borrow() as executor:
        dispatch = begin_migration(executor, "g", 2)
    assert isinstance(dispatch, Dispatch)
    run_hop(executors, dispatch.messages()[0])
    state = graph_state(engine, "g")
    assert state.rebuild is not None
    assert (state.rebuild.status, state.rebuild.rows, state.checkpoint_done) == ("staging", 10, None)
    assert state.rebuild.phrase(None) == (
        "10 rows staged beside the graph, which is whole at v1 until they are swapped in."
    )
    script.on.clear()
    with executors.borrow() as executor:
        _, again = operations.resume(executor, "g")
    assert again is not None
    follow(executors, again)
    state = graph_state(engine, "g")
    assert state.rebuild is not None
    assert state.rebuild.phrase(state.graph.undoable_to).startswith("Going back to v1 is one commit until 20")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM edges WHERE id = 'e0001'"))
    state = graph_state(engine, "g")
    assert state.rebuild is not None
    assert "but the graph was changed since" in state.rebuild.phrase(state.graph.undoable_to)


def test_the_history_says_what_was_restored(engine: Engine) -> None:
    circle(engine)
    run_graph_migration(engine, "g", 2)
    run_graph_migration(engine, "g", 1)
    printed = io.StringIO()
    for story in history(engine, "g"):
        print_story(story, Console(file=printed, width=200))
    assert printed.getvalue().count("restored the old values that were kept") == 1


def operations_pause(executors: Executors) -> UUID | None:
    with executors.borrow() as executor:
        return operations.pause(executor, "g").migration_id
