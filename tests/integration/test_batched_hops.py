"""Batched hops: every row once, also where they fail, die, are paused or cancelled between two batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from typing import NoReturn

import pytest
from sqlalchemy import Engine, text

from graph_migrator import HopContext
from graph_migrator.core.errors import (
    CheckFailed,
    GraphPartiallyMigrated,
    MigrationCancelled,
    PartiallyMigrated,
)
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.in_process import follow, run_graph_migration
from graph_migrator.core.execution.recovery import sweep
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Killed, Script, fails_now, trails
from tests.rows import add_graph, attempts, graph_row, migration_of, one, properties, rows

pytestmark = pytest.mark.usefixtures("script")


def ids(first: int, last: int) -> list[str]:
    """Ids of nodes from `first` up to and without `last`."""
    return [f"n{i:04}" for i in range(first, last)]


def on_batch(script: Script, number: int, act: Callable[[HopContext], object]) -> None:
    """Do something in the middle of the nth batch that is begun."""

    def play(ctx: HopContext) -> None:
        if len(script.batches) == number:
            act(ctx)

    script.on["visit"] = play


def test_a_batched_hop_processes_every_row_once_in_batches(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "batched", nodes=25)
    report = run_graph_migration(engine, "g", 2)
    assert script.batches == [ids(0, 10), ids(10, 20), ids(20, 25)]
    assert trails(engine, "g") == {"visit"}
    assert (report.version, report.hops[0].rows_changed) == (2, 25)
    attempt = one(engine, "SELECT done, total, batches FROM hop_attempts")
    assert tuple(attempt) == (25, 25, 2)
    assert rows(engine, "SELECT * FROM checkpoints") == []


def test_a_batched_hop_processes_an_exact_multiple_and_an_empty_graph(engine: Engine, script: Script) -> None:
    for slug, nodes in (("exact", 20), ("empty", 0)):
        add_graph(engine, slug, "batched", nodes=nodes)
        assert run_graph_migration(engine, slug).version == 3
    assert script.batches == [ids(0, 10), ids(10, 20)]


def test_a_finished_batch_is_seen_while_the_next_one_runs(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "batched", nodes=25)
    seen = []
    on_batch(
        script,
        3,
        lambda _: seen.append((trails(engine, "g"), rows(engine, "SELECT cursor, done FROM checkpoints"))),
    )
    run_graph_migration(engine, "g", 2)
    assert seen == [({"visit", ""}, [(["n0019"], 20)])]


def test_a_failed_batch_is_resumed_from_its_checkpoint(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "batched", nodes=25)
    on_batch(script, 2, lambda _: fails_now())
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(engine, "g")
    assert (graph_row(engine, "g").version, trails(engine, "g")) == (1, {"visit", ""})
    script.on.clear()
    del script.batches[2:]  # halves of the failed batch, tried to name the row and rolled back
    report = run_graph_migration(engine, "g")
    assert script.batches == [ids(0, 10), ids(10, 20), ids(10, 20), ids(20, 25)]
    assert trails(engine, "g") == {"visit arrive"}
    assert (report.version, report.hops[0].rows_changed) == (3, 25)


def test_a_batched_hop_whose_connection_dies_goes_on_without_repeating_a_batch(
    engine: Engine, script: Script
) -> None:
    add_graph(engine, "g", "batched", nodes=25)
    on_batch(script, 2, lambda ctx: ctx.execute("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert run_graph_migration(engine, "g").version == 3
    assert script.batches == [ids(0, 10), ids(10, 20), ids(10, 20), ids(20, 25)]
    assert trails(engine, "g") == {"visit arrive"}


def dies(_: HopContext) -> NoReturn:
    raise Killed


def test_a_batched_hop_whose_executor_dies_is_found_and_finished(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "batched", nodes=25)
    on_batch(script, 2, dies)
    with pytest.raises(Killed):
        run_graph_migration(executors, "g")
    assert attempts(engine, "g") == [("visit", "running")]
    script.on.clear()
    with executors.borrow() as executor:
        done = sweep(executor)
    assert (done.lost, [dispatch.number for dispatch in done.to_send]) == (1, [2])
    assert follow(executors, done.to_send[0]).version == 3
    assert attempts(engine, "g") == [("visit", "lost"), ("visit", "succeeded"), ("arrive", "succeeded")]
    assert trails(engine, "g") == {"visit arrive"}


def test_a_hop_whose_executor_dies_is_found_and_run_again(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = dies
    with pytest.raises(Killed):
        run_graph_migration(executors, "g", 4)
    script.on.clear()
    with executors.borrow() as executor:
        (dispatch,) = sweep(executor).to_send
    assert follow(executors, dispatch).version == 4
    assert attempts(engine, "g") == [
        ("one", "succeeded"),
        ("two", "lost"),
        ("two", "succeeded"),
        ("three", "succeeded"),
    ]
    assert trails(engine, "g") == {"one two three"}


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_pause_takes_effect_between_two_batches_and_resume_goes_on(
    engine: Engine, executors: Executors, script: Script, batch: int
) -> None:
    add_graph(engine, "g", "batched", nodes=25)

    def ask(_: HopContext) -> None:
        with executors.borrow() as executor:
            operations.pause(executor, "g")

    on_batch(script, batch, ask)
    report = run_graph_migration(executors, "g")
    assert report.status is MigrationStatus.PAUSED
    # The last batch commits the hop; the boundary after it is the next hop's.
    assert len(script.batches) == batch
    assert report.version == (1 if batch < 3 else 2)
    assert attempts(engine, "g") == [("visit", "stopped" if batch < 3 else "succeeded")]
    script.on.clear()
    with executors.borrow() as executor:
        _, dispatch = operations.resume(executor, "g")
    assert dispatch is not None
    assert follow(executors, dispatch).version == 3
    assert trails(engine, "g") == {"visit arrive"}
    assert list(chain.from_iterable(script.batches)) == ids(0, 25)


def test_cancel_between_two_batches_fails_partially_migrated_and_a_retry_finishes(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "batched", nodes=25)

    def ask(_: HopContext) -> None:
        with executors.borrow() as executor:
            operations.cancel(executor, "g")

    on_batch(script, 2, ask)
    with pytest.raises(PartiallyMigrated) as error:
        run_graph_migration(executors, "g")
    assert error.value.args == ("g", "visit", 20)
    assert (graph_row(engine, "g").version, migration_of(engine, "g").status) == (1, "failed")
    assert graph_row(engine, "g").migration_id is not None
    with pytest.raises(GraphPartiallyMigrated, match="visit"):
        run_graph_migration(executors, "g", 2)
    script.on.clear()
    with executors.borrow() as executor:
        _, dispatch = operations.retry(executor, "g")
    assert dispatch is not None
    assert follow(executors, dispatch).version == 3
    assert list(chain.from_iterable(script.batches)) == ids(0, 25)


def test_cancel_in_the_last_hop_comes_too_late(engine: Engine, executors: Executors, script: Script) -> None:
    add_graph(engine, "g", "plain")

    def ask(_: HopContext) -> None:
        with executors.borrow() as executor:
            operations.cancel(executor, "g")

    script.on["two"] = ask
    assert run_graph_migration(executors, "g", 3).status is MigrationStatus.SUCCEEDED


def test_cancel_at_a_boundary_leaves_a_whole_graph_that_is_free(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")

    def ask(_: HopContext) -> None:
        with executors.borrow() as executor:
            operations.cancel(executor, "g")

    script.on["one"] = ask
    with pytest.raises(MigrationCancelled, match="whole at v2"):
        run_graph_migration(executors, "g", 4)
    assert (script.invoked, trails(engine, "g")) == (["one"], {"one"})
    assert graph_row(engine, "g").migration_id is None
    script.on.clear()
    assert run_graph_migration(executors, "g", 4).version == 4


def test_a_check_of_a_batched_hop_speaks_at_its_end_and_leaves_finished_batches(
    engine: Engine, script: Script
) -> None:
    add_graph(engine, "g", "batched", nodes=25)
    script.on["check"] = lambda _: "not good enough"
    with pytest.raises(CheckFailed, match="not good enough"):
        run_graph_migration(engine, "g")
    assert rows(engine, "SELECT cursor, done FROM checkpoints") == [(["n0019"], 20)]
    script.on.clear()
    assert run_graph_migration(engine, "g").version == 3
    assert trails(engine, "g") == {"visit arrive"}


def test_a_batched_sql_hop_touches_each_row_once(engine: Engine) -> None:
    graph_id = add_graph(engine, "g", "in_sql", nodes=25, label="Counted")
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO nodes (graph_id, id, label) VALUES (:id, 'n0005x', 'Other')"), {"id": graph_id}
        )
    report = run_graph_migration(engine, "g")
    found = properties(engine, "g")
    assert found.pop("n0005x") == {}
    assert list(found.values()) == [{"n": 1}] * 25
    assert report.hops[0].rows_changed == 25
    assert run_graph_migration(engine, "g", 1).version == 1
    assert set(map(json.dumps, properties(engine, "g").values())) == {"{}"}


def test_a_hop_processes_the_rows_of_a_table_of_ones_own(engine: Engine, script: Script) -> None:
    graph_id, other = add_graph(engine, "g", "with_orders"), add_graph(engine, "other", "with_orders")
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE public.orders (graph_id uuid, year int, number bigint, total numeric(12, 2), tags jsonb, "
                "PRIMARY KEY (graph_id, year, number))"
            )
        )
        for owner in (graph_id, other):
            connection.execute(
                text(
                    "INSERT INTO public.orders SELECT :graph, 2020 + i % 2, i, i - 1 + 0.25, '[\"new\"]' "
                    "FROM generate_series(1, 25) i"
                ),
                {"graph": owner},
            )
            connection.execute(text("UPDATE public.orders SET total = 0 WHERE number = 7"))
    on_orders = script.on
    on_orders["price"] = lambda _: len(script.batches) == 2 and fails_now()
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(engine, "g")
    on_orders.clear()
    del script.batches[2:]  # halves of the failed batch, tried to name the row and rolled back
    report = run_graph_migration(engine, "g")
    assert (report.version, report.hops[0].rows_changed) == (2, 24)
    committed = [script.batches[0], *script.batches[2:]]
    assert list(chain.from_iterable(committed)) == [
        f"{2020 + odd}/{n}" for odd in (0, 1) for n in range(1, 26) if n % 2 == odd and n != 7
    ]
    select = "SELECT number, total::text, tags FROM public.orders WHERE graph_id = :graph ORDER BY number"
    assert rows(engine, select, graph=graph_id) == [
        (7, "0.00", ["new"]) if n == 7 else (n, f"{1000 + n - 1}.25", ["new", "priced"]) for n in range(1, 26)
    ]
    assert {tuple(tags) for _, _, tags in rows(engine, select, graph=other)} == {("new",)}
