"""Preconditions, checks and timeouts of hops, and the errors that are tried again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator import HopContext
from graph_migrator.core.errors import CheckFailed, HopTimedOut
from graph_migrator.core.execution.in_process import execute_migration, run_graph_migration
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import AttemptStatus
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Flaky, Script, fails, trails, with_sqlstate
from tests.rows import add_graph, attempts, graph_row, rows

pytestmark = pytest.mark.usefixtures("script")


# ── when, check, timeout ──────────────────────────────────────────────────────────────────────────────


def test_a_hop_whose_precondition_is_false_is_skipped_and_the_version_still_moves(
    engine: Engine, script: Script
) -> None:
    add_graph(engine, "g", "careful")
    script.on["when"] = lambda _: False
    report = run_graph_migration(engine, "g")
    assert (report.version, report.last_applied) == (3, "plain_end")
    assert attempts(engine, "g") == [("guarded", "skipped"), ("plain_end", "succeeded")]
    assert script.invoked == ["plain_end"]
    assert report.hops[0].status is AttemptStatus.SKIPPED


def test_a_skipped_batched_hop_moves_the_version_too(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "batched", nodes=15)
    script.on["when"] = lambda _: False
    assert run_graph_migration(engine, "g").version == 3
    assert attempts(engine, "g") == [("visit", "skipped"), ("arrive", "succeeded")]


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(False, "it returned False"), ("two people without a name", "two people without a name")],
)
def test_a_failing_check_rolls_the_hop_back(
    engine: Engine, script: Script, verdict: Any, reason: str
) -> None:
    add_graph(engine, "g", "careful")
    script.on["check"] = lambda _: verdict
    with pytest.raises(CheckFailed, match=reason) as error:
        run_graph_migration(engine, "g")
    assert error.value.args == ("g", "guarded", reason)
    assert (trails(engine, "g"), graph_row(engine, "g").version) == ({""}, 1)
    assert attempts(engine, "g") == [("guarded", "failed")]


def test_a_check_sees_what_the_hop_did(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "careful")
    seen = []
    script.on["check"] = lambda ctx: seen.append(
        ctx.execute("SELECT properties FROM nodes WHERE graph_id = :graph_id").all()
    )
    run_graph_migration(engine, "g", 2)
    assert seen == [[({"trail": ["guarded"]},)] * 3]


def test_a_hop_that_outlasts_its_timeout_is_rolled_back(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "careful")
    script.on["guarded"] = lambda ctx: ctx.execute("SELECT pg_sleep(30)")
    with pytest.raises(HopTimedOut) as error:
        run_graph_migration(executors, "g")
    assert error.value.args == ("g", "guarded", 0.3)
    assert attempts(engine, "g") == [("guarded", "failed")]
    with executors.borrow() as executor, executor.cursor() as cursor:  # the session is lent again without it
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)


def test_a_hops_timeout_leaves_that_of_the_callers_transaction_alone(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "careful")
    seen = []
    script.on["guarded"] = lambda ctx: seen.append(ctx.execute("SHOW statement_timeout").scalar_one())
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '77s'"))
        execute_migration(connection, "g", 2)
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "77s"
    assert seen == ["300ms"]


# ── errors that pass ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", ["40P01", "40001", "55P03"])
def test_transient_database_errors_are_tried_again_with_an_attempt_row_each(
    engine: Engine, script: Script, code: str
) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = lambda ctx: script.invoked.count("two") <= 3 and with_sqlstate(code)(ctx)
    report = run_graph_migration(engine, "g", 3)
    assert attempts(engine, "g") == [("one", "succeeded"), *[("two", "failed")] * 3, ("two", "succeeded")]
    assert (report.dispatch, report.hops[1].attempts) == (1, 4)
    assert rows(
        engine, "SELECT DISTINCT transient, error_message FROM hop_attempts WHERE status = 'failed'"
    ) == [(True, "passing")]
    assert trails(engine, "g") == {"one two"}


def test_a_real_deadlock_is_tried_again(engine: Engine, script: Script) -> None:
    """The hop and another transaction each hold a row that the other one waits for."""
    add_graph(engine, "g", "plain")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE public.beside (id int PRIMARY KEY, n int)"))
        connection.execute(text("INSERT INTO public.beside VALUES (1, 0), (2, 0)"))
    add = "UPDATE public.beside SET n = n + 1 WHERE id = {}"
    with ThreadPoolExecutor(1) as pool:
        held, rival = threading.Event(), []

        def compete() -> None:
            with engine.begin() as connection:
                connection.execute(
                    text("SET LOCAL deadlock_timeout = '30s'")
                )  # the hop is the one that gives in
                connection.execute(text(add.format(2)))
                held.set()
                connection.execute(text(add.format(1)))

        def cross(ctx: HopContext) -> None:
            ctx.execute("SET LOCAL deadlock_timeout = '20ms'")
            ctx.execute(add.format(1))
            if not rival:
                rival.append(pool.submit(compete))
                assert held.wait(30)
            ctx.execute(add.format(2))

        script.on["one"] = cross
        assert run_graph_migration(engine, "g", 2).version == 2
        rival[0].result(30)
    assert attempts(engine, "g") == [("one", "failed"), ("one", "succeeded")]
    assert rows(engine, "SELECT n FROM public.beside") == [(2,), (2,)]


def test_an_error_named_by_the_hop_is_tried_again(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "careful")

    def flake(ctx: HopContext) -> None:
        if script.invoked.count("guarded") < 3:
            raise Flaky("busy")

    script.on["guarded"] = flake
    assert run_graph_migration(engine, "g", 2).version == 2
    assert attempts(engine, "g") == [("guarded", "failed")] * 2 + [("guarded", "succeeded")]


def test_an_error_that_does_not_pass_fails_after_so_many_tries(
    engine: Engine, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_MAX_TRANSIENT_TRIES", "3")
    settings.cache_clear()
    add_graph(engine, "g", "careful")
    script.on["guarded"] = fails(Flaky("still busy"))
    with pytest.raises(Flaky, match="still busy"):
        run_graph_migration(engine, "g", 2)
    assert attempts(engine, "g") == [("guarded", "failed")] * 3
    script.on["guarded"] = lambda ctx: script.invoked.count("guarded") < 6 and fails(Flaky("again"))(ctx)
    assert run_graph_migration(engine, "g", 2).version == 2  # a retry counts anew
    assert script.invoked.count("guarded") == 6


def test_a_lost_connection_is_one_more_try_and_the_data_is_there_once(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = lambda ctx: (
        script.invoked.count("two") == 1 and ctx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    )
    assert run_graph_migration(engine, "g", 3).version == 3
    assert attempts(engine, "g") == [("one", "succeeded"), ("two", "failed"), ("two", "succeeded")]
    assert trails(engine, "g") == {"one two"}
