"""What happens beside a hop does not change how the hop ends, nor what is recorded of it."""

from __future__ import annotations

import time
from unittest.mock import patch

import psycopg2
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from graph_migrator import HopContext
from graph_migrator.core.decisions import Later
from graph_migrator.core.errors import HopFailed, HopTimedOut
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import execute_migration, run_graph_migration
from graph_migrator.core.execution.model import Applied, Dispatch
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.execution.waits import backoff
from graph_migrator.core.recorded_errors import LONGEST_MESSAGE, LONGEST_TRACEBACK
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.rows import add_graph, rows


def test_progress_that_cannot_be_written_does_not_roll_the_hop_back(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    refused = OperationalError("", {}, psycopg2.OperationalError("FATAL: sorry, too many clients already"))

    def report(ctx: HopContext) -> None:
        with patch.object(Engine, "connect", side_effect=refused) as connect:
            ctx.progress(1, 1)
        assert connect.called

    script.on["one"] = report
    assert run_graph_migration(engine, "g", 2).version == 2
    assert rows(engine, "SELECT status FROM hop_attempts") == [("succeeded",)]


def test_another_database_that_cannot_be_reached_is_an_error_of_the_hop(
    engine: Engine, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    script.on["one"] = lambda _: psycopg2.connect("host=127.0.0.1 port=1 connect_timeout=2")
    with pytest.raises(Exception, match="refused"):
        run_graph_migration(engine, "g", 2)
    (found,) = rows(engine, "SELECT status, transient, error_type, error_message FROM hop_attempts")
    assert found[:3] == ("failed", False, "psycopg2.OperationalError")
    assert "connection to Postgres was lost" not in found[3]


def test_a_connection_of_our_own_that_is_lost_is_known_whatever_the_hop_raises(
    engine: Engine, script: Script
) -> None:
    add_graph(engine, "g", "plain")

    def wrap(ctx: HopContext) -> None:
        if ctx.attempt > 1:
            return
        try:
            ctx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        except Exception:
            raise ValueError("something of its own") from None

    script.on["one"] = wrap
    assert run_graph_migration(engine, "g", 2).version == 2
    assert rows(engine, "SELECT status FROM hop_attempts ORDER BY id") == [("failed",), ("succeeded",)]


def test_a_time_limit_does_not_hide_what_was_raised_in_a_callers_transaction(
    engine: Engine, script: Script
) -> None:
    add_graph(engine, "g", "careful")
    script.on["guarded"] = lambda ctx: ctx.execute("SELECT 1 / 0")
    with engine.connect() as connection, connection.begin():
        with pytest.raises(Exception, match="division by zero"):
            execute_migration(connection, "g", 2)
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "0"
    script.on["guarded"] = lambda ctx: ctx.execute("SELECT pg_sleep(30)")
    with engine.connect() as connection, connection.begin(), pytest.raises(HopTimedOut):
        execute_migration(connection, "g", 2)


def test_an_outage_of_any_length_has_a_pause() -> None:
    assert 0 < backoff(1024) <= settings().retry_max_seconds
    assert 0 < backoff(10**9) <= settings().retry_max_seconds


def test_an_error_is_stored_at_a_bounded_length(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")

    def fail(_: HopContext) -> None:
        raise ValueError("x" * 1_000_000)

    script.on["one"] = fail
    with pytest.raises(HopFailed, match="xxx"):
        run_graph_migration(engine, "g", 2)
    ((message, trace, of_migration),) = rows(
        engine,
        "SELECT length(a.error_message), length(a.traceback), length(m.error_message) "
        "FROM hop_attempts a JOIN migrations m ON m.id = a.migration_id",
    )
    assert message <= LONGEST_MESSAGE + 100
    assert trace <= LONGEST_TRACEBACK + 100
    assert of_migration <= LONGEST_MESSAGE + 100


def test_a_schema_upgrade_under_live_workers_is_met_with_a_fresh_session(
    engine: Engine, executors: Executors, script: Script
) -> None:
    """The upgrade adds a column to what a prepared function returns: 0A000, and a column of a later release."""
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        begun = begin_migration(executor, "g", 3)
    assert isinstance(begun, Dispatch)
    first, second = begun.messages()
    assert isinstance(run_hop(executors, first), Applied)
    signature = "graph_migrator.lock_and_open_hop(uuid, integer, integer, jsonb, text, integer, text, double precision)"
    ((before,),) = rows(engine, f"SELECT pg_get_functiondef('{signature}'::regprocedure)")
    after = before.replace("OUT facts json", "OUT facts json, OUT of_a_later_release text")
    assert after != before
    try:
        _replace(engine, signature, after)
        outcome = run_hop(executors, second)
        assert isinstance(outcome, Later)
        end = time.monotonic() + 30
        while isinstance(outcome, Later) and time.monotonic() < end:
            outcome = run_hop(executors, second)
        assert isinstance(outcome, Applied)
        assert outcome.report is not None
        assert outcome.report.version == 3
    finally:
        _replace(engine, signature, before)
    assert script.invoked == ["one", "two"]


def _replace(engine: Engine, signature: str, definition: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP FUNCTION {signature}")
        connection.exec_driver_sql(definition.replace("%", "%%"))
