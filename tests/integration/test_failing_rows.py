"""An error of a batched hop names the row that it is about, or the batch; never the row's data."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator import Edge, Edges, GraphType, HopContext, Node, Nodes, run_graph_migration
from graph_migrator.core.errors import HopAddsRows
from graph_migrator.core.events import types as events
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.history import Attempt, history
from graph_migrator.core.store.session import Executors
from tests.integration.test_batches import make_graph, scalar

NESTED: Any = []
for _ in range(400):
    NESTED = [NESTED]


SPOILED: dict[str, Any] = {
    "NUL": lambda node: node.properties.update(x="\x00"),
    "lone surrogate": lambda node: node.properties.update(x="\ud800"),
    "NaN": lambda node: node.properties.update(x=float("nan")),
    "400 nested lists": lambda node: node.properties.update(x=NESTED),
    "KeyError": lambda node: node.properties["email"],
}


@pytest.mark.parametrize("how", SPOILED)
def test_the_row_at_which_a_batch_fails_is_named_everywhere(
    engine: Engine, executors: Executors, how: str
) -> None:
    kind = GraphType("t")

    def spoil(ctx: HopContext, rows: list[Node]) -> None:
        for row in rows:
            if row.id == "n000123":
                SPOILED[how](row)

    kind.hop(1, 2, over=Nodes(), batch_size=50)(spoil)
    registry.register(kind)
    graph = str(make_graph(engine, "t", 200, '{"secret": "hunter2"}'))
    seen: list[events.Event] = []
    unsubscribe = events.subscribe(seen.append)
    try:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its type is the hop's affair
            run_graph_migration(executors, graph)
    finally:
        unsubscribe()

    shown = "at node 'n000123'"
    assert shown in caught.value.__notes__
    (story,) = history(engine, graph)
    assert story.report.error_rows == shown
    assert story.attempts[-1].error_rows == shown
    state = graph_state(engine, graph)
    assert state.migration is not None
    assert state.migration.error_rows == shown
    assert [e.error_rows for e in seen if isinstance(e, events.HopFailed)] == [shown]
    assert [e.error_rows for e in seen if isinstance(e, events.MigrationFinished)] == [shown]
    assert "hunter2" not in story.model_dump_json()
    # What the search ran has been rolled back: the checkpoint is that of the last good batch.
    assert state.checkpoint_done is not None
    assert 0 < state.checkpoint_done < 123


def test_a_failing_row_of_a_sql_hop_is_named(engine: Engine, executors: Executors) -> None:
    kind = GraphType("t")
    kind.sql_hop(
        1,
        2,
        name="halve",
        forward=(
            "UPDATE edges SET properties = jsonb_build_object('x', 1 / (id <> 'e000077')::int) "
            "WHERE graph_id = :graph_id AND id BETWEEN :first AND :last"
        ),
        over=Edges(),
        batch_size=40,
    )
    registry.register(kind)
    graph = str(make_graph(engine, "t", 200))
    with pytest.raises(Exception, match="division by zero"):
        run_graph_migration(executors, graph)
    (story,) = history(engine, graph)
    assert story.report.error_rows == "at edge 'e000077'"


def test_an_error_that_no_row_alone_raises_names_the_batch(engine: Engine, executors: Executors) -> None:
    kind = GraphType("t")

    def together(ctx: HopContext, rows: list[Edge]) -> None:
        if len(rows) > 1 and rows[0].id > "e000050":
            raise RuntimeError("two together")

    kind.hop(1, 2, over=Edges(), batch_size=50)(together)
    registry.register(kind)
    graph = str(make_graph(engine, "t", 200))
    with pytest.raises(RuntimeError, match="two together"):
        run_graph_migration(executors, graph)
    (story,) = history(engine, graph)
    assert story.report.error_rows is not None
    assert story.report.error_rows.endswith("edges after 'e000050'")


def test_history_keeps_the_line_of_the_hops_own_code(engine: Engine, executors: Executors) -> None:
    kind = GraphType("t")

    def ask(ctx: HopContext, rows: list[Node]) -> None:
        for row in rows:
            row.properties.pop("email")

    kind.hop(1, 2, over=Nodes(), batch_size=50)(ask)
    registry.register(kind)
    graph = str(make_graph(engine, "t", 3))
    with pytest.raises(KeyError) as caught:
        run_graph_migration(executors, graph)
    (story,) = history(engine, graph)
    line = story.attempts[-1].error_line
    assert line is not None
    assert line.startswith("test_failing_rows.py:")
    assert line.endswith('in ask: row.properties.pop("email")')
    assert caught.traceback[-1].name == "ask"  # and so it is in the traceback that Celery logs


def test_a_hop_that_inserts_what_it_processes_is_stopped(engine: Engine, executors: Executors) -> None:
    kind = GraphType("t")

    def grow(ctx: HopContext, rows: list[Node]) -> None:
        for row in rows:
            ctx.execute("INSERT INTO nodes VALUES (:graph_id, :id, 'Person')", {"id": f"{row.id}x"})
        seen.extend(row.id for row in rows)
        assert len(seen) < 10_000, "it was not stopped"

    seen: list[str] = []
    kind.hop(1, 2, over=Nodes(), batch_size=50)(grow)
    registry.register(kind)
    graph = str(make_graph(engine, "t", 6))
    with pytest.raises(HopAddsRows, match="there were 6 when it began") as caught:
        run_graph_migration(executors, graph)
    assert 1_000 < caught.value.done < 1_200
    assert scalar(engine, "SELECT version FROM graphs WHERE id = CAST(:g AS uuid)", g=graph) == 1


def test_the_rate_of_a_resumed_hop_is_that_of_this_attempt(engine: Engine, executors: Executors) -> None:
    """Rows that earlier attempts processed took none of this attempt's time."""
    kind = GraphType("t")
    seen: list[Attempt] = []

    def look(ctx: HopContext) -> None:
        with engine.begin() as connection:  # five rows were done before, and this attempt is 1,000 s old
            connection.execute(
                text("UPDATE hop_attempts SET done = 5, progress_at = progress_at - interval '1000 s'")
            )
        ctx.progress(6, 20)
        running = graph_state(engine, ctx.graph.slug).running
        assert running is not None
        seen.append(running)

    kind.hop(1, 2)(look)
    registry.register(kind)
    run_graph_migration(executors, str(make_graph(engine, "t", 1)))
    (running,) = seen
    assert running.rows_per_second == pytest.approx(0.001, rel=0.1)
    assert running.seconds_left == pytest.approx(14_000, rel=0.1)


def test_events_and_status_show_the_same_rate(engine: Engine, executors: Executors) -> None:
    kind = GraphType("t")
    seen: list[events.HopProgressed] = []

    def compare(ctx: HopContext, rows: list[Node]) -> None:
        if seen:
            running = graph_state(engine, ctx.graph.slug).running
            assert running is not None
            assert seen[-1].rows_per_second == running.rows_per_second
            assert seen[-1].seconds_left == running.seconds_left
            compared.append(running.seconds_left)

    compared: list[float | None] = []
    kind.hop(1, 2, over=Nodes(), batch_size=10)(compare)
    registry.register(kind)
    unsubscribe = events.subscribe(lambda e: seen.append(e) if isinstance(e, events.HopProgressed) else None)
    try:
        run_graph_migration(executors, str(make_graph(engine, "t", 60)))
    finally:
        unsubscribe()
    assert compared
    assert all(compared)
