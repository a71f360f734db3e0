"""A graph moves along its hops, one commit a hop, or it says exactly why not."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

from graph_migrator import HopContext, graph_writer
from graph_migrator.core.errors import GraphReadOnly
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import follow, run_graph_migration
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script, leave_mark, trails
from tests.rows import add_graph, advisory_locks, attempts, graph_row, migration_of, rows

pytestmark = pytest.mark.usefixtures("script")


def test_one_hop_moves_data_version_and_audit_row_together(engine: Engine, script: Script) -> None:
    graph_id = add_graph(engine, "g", "plain")
    report = run_graph_migration(engine, "g", 2, caller=Caller(requested_by="ann", reason="why not"))
    assert (report.status, report.graph_id, report.graph, report.graph_type) == (
        "succeeded",
        graph_id,
        "g",
        "plain",
    )
    assert (report.from_version, report.to_version, report.version, report.last_applied) == (1, 2, 2, "one")
    assert (report.requested_by, report.reason, report.dispatch) == ("ann", "why not", 1)
    assert [(h.name, h.status, h.attempts, h.rows_changed) for h in report.hops] == [
        ("one", "succeeded", 1, 3)
    ]
    assert report.error() is None
    assert report.seconds is not None
    graph = graph_row(engine, "g")
    assert (graph.version, graph.migration_id) == (2, None)
    assert graph.changed_at is not None
    assert attempts(engine, "g") == [("one", "succeeded")]
    assert trails(engine, "g") == {"one"}
    assert advisory_locks(engine) == []


def test_several_hops_run_in_order_to_the_newest_version(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    report = run_graph_migration(engine, "g")
    assert (report.version, report.last_applied) == (5, "no_way_back")
    assert script.invoked == ["one", "two", "three", "no_way_back"]
    assert trails(engine, "g") == {"one two three no_way_back"}
    assert attempts(engine, "g") == [(name, "succeeded") for name in script.invoked]


def test_the_way_back_runs_the_reverses(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain", version=4)
    report = run_graph_migration(engine, "g", 2)
    assert (report.version, script.invoked) == (2, ["three", "two"])


def test_a_graph_is_found_by_id_and_through_a_session_factory(engine: Engine, script: Script) -> None:
    graph_id = add_graph(engine, "g", "plain")
    assert run_graph_migration(sessionmaker(engine), graph_id, 2).version == 2
    assert run_graph_migration(sessionmaker(engine), str(graph_id).upper(), 3).version == 3


def test_other_graphs_are_left_alone(engine: Engine) -> None:
    add_graph(engine, "g", "plain")
    add_graph(engine, "other", "plain")
    run_graph_migration(engine, "g", 3)
    assert trails(engine, "other") == {""}
    assert graph_row(engine, "other").version == 1


def test_a_second_connection_sees_finished_hops_while_a_later_one_runs(
    engine: Engine, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    seen: dict[str, Any] = {}

    def look(ctx: HopContext) -> None:
        leave_mark(ctx)  # not to be seen from outside
        seen["attempts"] = attempts(engine, "g")
        seen["version"] = graph_row(engine, "g").version
        seen["claim"] = graph_row(engine, "g").migration_id == migration_of(engine, "g").id
        seen["status"] = migration_of(engine, "g").status
        seen["trails"] = trails(engine, "g")

    script.on["three"] = look
    run_graph_migration(engine, "g", 4)
    assert seen == {
        "attempts": [("one", "succeeded"), ("two", "succeeded"), ("three", "running")],
        "version": 3,
        "claim": True,
        "status": "running",
        "trails": {"one two"},
    }


def test_progress_of_a_hop_is_seen_while_it_runs(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    seen = []

    def describe(ctx: HopContext) -> None:
        ctx.progress(3, 7)
        seen.append(rows(engine, "SELECT done, total FROM hop_attempts"))

    script.on["one"] = describe
    run_graph_migration(engine, "g", 2)
    assert seen == [[(3, 7)]]


def test_no_writer_gets_in_between_two_hops(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    refused = []

    def write(*_: Any) -> None:
        with pytest.raises(GraphReadOnly) as error, sessionmaker(engine).begin() as session:  # noqa: SIM117
            with graph_writer(session, "g"):
                pass
        refused.append(error.value.reason)

    with executors.borrow() as executor:
        begun = begin_migration(executor, "g", 3)
    assert isinstance(begun, Dispatch)
    write()
    on_hop = lambda message, _: message.to_version < 3 and write()  # noqa: E731
    follow(executors, begun, on_hop=on_hop)
    assert refused == ["migrating", "migrating"]
