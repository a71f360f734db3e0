"""A graph moves along its hops, one commit a hop, or it says exactly why not."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from typing import Any, NoReturn
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2.extras import NamedTupleCursor, RealDictCursor
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker

from graph_migrator import GraphType, HopContext, MigrationReport, Node, Nodes, graph_writer
from graph_migrator.core.errors import (
    CheckFailed,
    GraphPartiallyMigrated,
    GraphReadOnly,
    HopFailed,
    HopTimedOut,
    InvalidRequest,
    IrreversibleHop,
    MigrationCancelled,
    MigrationInFlight,
    OpenWriteTransactions,
    PartiallyMigrated,
    UnknownGraph,
    UnknownGraphType,
    UnknownTarget,
)
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration, lock_and_load
from graph_migrator.core.execution.dry_run import dry_run
from graph_migrator.core.execution.in_process import execute_migration, follow, run_graph_migration
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.execution.recorded import load_report
from graph_migrator.core.execution.recovery import sweep, sweeping
from graph_migrator.core.graph_types import registry
from graph_migrator.core.interchange import export_graph
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import AttemptStatus, MigrationStatus
from graph_migrator.core.store import protocol
from graph_migrator.core.store.session import Executor, Executors
from tests.integration.scripted import Flaky, Killed, Script, leave_mark
from tests.rows import (
    add_graph,
    advisory_locks,
    attempts,
    dump,
    graph_row,
    migration_of,
    one,
    properties,
    rows,
)
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("script")


def trails(engine: Engine, slug: str) -> set[str]:
    """The marks that hops have left on the nodes of a graph; one string where all nodes bear the same."""
    return {" ".join(values.get("trail", [])) for values in properties(engine, slug).values()}


def fails(error: Exception) -> Callable[[HopContext], NoReturn]:
    """What a hop does that changes data and then raises."""

    def fail(ctx: HopContext) -> NoReturn:
        leave_mark(ctx)
        raise error

    return fail


def report_of(engine: Engine, slug: str) -> MigrationReport:
    """The report of a graph's latest migration."""
    executors = Executors(engine)
    with executors.borrow() as executor:
        report = load_report(executor, migration_of(engine, slug).id)
    executors.close()
    return report


# ── success ─────────────────────────────────────────────────────────────────────────────────────────


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


# ── failure ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_failing_hop_leaves_its_story_and_none_of_its_data(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("name of n0001 is empty"))
    with pytest.raises(ValueError, match=r"^name of n0001 is empty$"):
        run_graph_migration(engine, "g", 4)
    assert trails(engine, "g") == {"one"}
    assert graph_row(engine, "g").version == 2
    failed = one(engine, "SELECT * FROM hop_attempts WHERE status = 'failed'")
    assert (failed.hop_name, failed.error_type, failed.error_message) == (
        "two",
        "ValueError",
        "name of n0001 is empty",
    )
    assert failed.traceback.startswith("Traceback (most recent call last)")
    assert "in fail" in failed.traceback
    assert failed.traceback.rstrip().endswith("ValueError: name of n0001 is empty")
    report = report_of(engine, "g")
    assert (report.status, report.version, report.last_applied) == ("failed", 2, "one")
    assert (report.error_type, report.error_message) == ("ValueError", "name of n0001 is empty")
    assert advisory_locks(engine) == []


def test_a_failed_graph_is_read_only_for_error(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 3)
    with pytest.raises(GraphReadOnly) as refusal, sessionmaker(engine).begin() as session:  # noqa: SIM117
        with graph_writer(session, "g"):
            pass
    assert (refusal.value.reason, refusal.value.migration_id) == ("error", str(migration_of(engine, "g").id))


def test_an_error_that_cannot_be_rebuilt_is_recorded_by_type_and_message(
    engine: Engine, script: Script
) -> None:
    class Local(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(f"code {code}")

    add_graph(engine, "g", "plain")
    script.on["one"] = fails(Local(7))
    with pytest.raises(HopFailed, match=r"hop 'one' failed: .*Local: code 7$"):
        run_graph_migration(engine, "g")


def test_calling_again_resumes_at_the_failed_hop(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 4)
    del script.on["two"]
    report = run_graph_migration(engine, "g", 4)
    assert script.invoked == ["one", "two", "two", "three"]
    assert trails(engine, "g") == {"one two three"}
    assert (report.status, report.version, report.dispatch) == ("succeeded", 4, 2)
    assert [(h.name, h.attempts) for h in report.hops] == [("one", 1), ("two", 2), ("three", 1)]
    assert len(rows(engine, "SELECT * FROM migrations")) == 1
    assert attempts(engine, "g") == [
        ("one", "succeeded"),
        ("two", "failed"),
        ("two", "succeeded"),
        ("three", "succeeded"),
    ]


def test_another_target_replaces_a_failed_migration(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 4)
    del script.on["two"]
    assert run_graph_migration(engine, "g", 3).version == 3
    assert [s for (s,) in rows(engine, "SELECT status FROM migrations ORDER BY created_at")] == [
        "released",
        "succeeded",
    ]


def test_back_to_where_it_stands_releases_a_failed_migration(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 4)
    report = run_graph_migration(engine, "g", 2)
    assert (report.changed, report.version) == (False, 2)
    assert migration_of(engine, "g").status == "released"
    assert graph_row(engine, "g").migration_id is None


def test_a_constraint_that_fails_at_commit_fails_the_hop(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain", edges=[("e", "n0000", "n0001")])
    script.on["two"] = lambda ctx: ctx.execute(
        "DELETE FROM nodes WHERE graph_id = :graph_id AND id = 'n0000'"
    )
    with pytest.raises(Exception, match="edges_source_is_a_node"):
        run_graph_migration(engine, "g", 3)
    assert attempts(engine, "g") == [("one", "succeeded"), ("two", "failed")]
    assert (graph_row(engine, "g").version, len(properties(engine, "g"))) == (2, 3)
    assert advisory_locks(engine) == []


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("raises", "says"),
    [
        (ValueError("a\x00b"), r"a\x00b"),
        (OSError("no file bad-\udcff.csv"), r"no file bad-\udcff.csv"),  # as Python names what is not UTF-8
        (CheckFailed("g", "one", "a\x00b \ud800"), r"a\x00b \ud800"),
        (Mute("x"), "no message that can be shown"),
    ],
    ids=["NUL", "surrogate", "own error", "no message"],
)
def test_an_error_whose_words_cannot_be_stored_as_they_are_fails_the_hop_like_any_other(
    engine: Engine, script: Script, raises: Exception, says: str
) -> None:
    add_graph(engine, "g", "plain")

    def fail(_: HopContext) -> NoReturn:
        raise raises

    script.on["one"] = fail
    with pytest.raises(Exception, match=re.escape(says)):
        run_graph_migration(engine, "g", 2)
    assert attempts(engine, "g") == [("one", "failed")]
    assert migration_of(engine, "g").status == "failed"
    assert says in one(engine, "SELECT error_message FROM hop_attempts").error_message


def test_a_database_error_is_recorded_without_row_data(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["one"] = lambda ctx: ctx.execute(
        "INSERT INTO nodes (graph_id, id, label) VALUES (:graph_id, 'n0000', 'secret')"
    )
    with pytest.raises(HopFailed, match="duplicate key value violates unique constraint"):
        run_graph_migration(engine, "g")
    failed = one(engine, "SELECT error_message, traceback FROM hop_attempts")
    assert "n0000" not in failed.error_message + failed.traceback


@pytest.mark.parametrize(
    "end",
    [
        lambda ctx: ctx.connection.commit(),
        lambda ctx: ctx.connection.rollback(),
        lambda ctx: (ctx.session.execute(text("SELECT 1")), ctx.session.rollback()),
        lambda ctx: ctx.connection.get_transaction().commit(),
        lambda ctx: ctx.execute("COMMIT"),
        lambda ctx: ctx.connection.exec_driver_sql("COMMIT"),
        lambda ctx: ctx.connection.exec_driver_sql("COMMIT; BEGIN"),
        lambda ctx: (driver(ctx).commit(), driver(ctx).cursor().execute("SELECT 1")),
        lambda ctx: (driver(ctx).rollback(), driver(ctx).cursor().execute("SELECT 1")),
    ],
    ids=[
        "connection.commit",
        "connection.rollback",
        "session.rollback",
        "transaction.commit",
        "COMMIT",
        "raw COMMIT",
        "raw COMMIT and BEGIN",
        "the driver's commit, and on",
        "the driver's rollback, and on",
    ],
)
def test_a_hop_that_ends_its_own_transaction_is_refused(
    engine: Engine, executors: Executors, script: Script, end: Any
) -> None:
    add_graph(engine, "early", "careful")
    script.on["guarded"] = end
    add_graph(engine, "late", "careful")
    with pytest.raises(Exception, match="transaction"):
        run_graph_migration(executors, "early", 2)
    script.on = {"check": lambda ctx: end(ctx) and None}  # the very last of the author's code
    with pytest.raises(Exception, match="transaction"):
        run_graph_migration(executors, "late", 2)
    assert attempts(engine, "late") == [("guarded", "failed")], "committed at once"

    # The session is as good as new: what the next hop does is one transaction, too.
    add_graph(engine, "next", "careful")
    seen: list[Any] = []
    script.on = {
        "guarded": lambda ctx: ctx.execute("UPDATE nodes SET label = 'Half' WHERE graph_id = :graph_id"),
        "check": lambda _: seen.extend(rows(engine, "SELECT 1 FROM nodes WHERE label = 'Half'")) or "no",
    }
    with pytest.raises(CheckFailed):
        run_graph_migration(executors, "next", 2)
    assert (seen, rows(engine, "SELECT 1 FROM nodes WHERE label = 'Half'")) == ([], [])

    for slug in ("early", "late"):
        assert (graph_row(engine, slug).version, migration_of(engine, slug).status) == (1, "failed")
        assert attempts(engine, slug) == [("guarded", "failed")]


@pytest.mark.parametrize("statement", ["SET work_mem = '9MB'", "set session work_mem TO '9MB'", "RESET ALL"])
def test_what_a_hop_would_leave_in_its_session_for_other_graphs_is_refused(
    engine: Engine, executors: Executors, script: Script, statement: str
) -> None:
    add_graph(engine, "g", "plain")
    script.on["one"] = lambda ctx: ctx.execute(statement)
    with pytest.raises(ValueError, match="SET LOCAL"):
        run_graph_migration(executors, "g", 2)
    script.on["one"] = lambda ctx: ctx.execute("SET LOCAL work_mem = '9MB'")
    script.on["two"] = lambda ctx: shown.append(ctx.execute("SHOW work_mem").scalar())
    shown: list[Any] = []
    assert run_graph_migration(executors, "g", 2).version == 2
    assert run_graph_migration(executors, "g", 3).version == 3
    assert shown == ["4MB"]


@pytest.mark.parametrize("batch", [1, 3], ids=["between", "the last one"])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_batch_that_ends_its_own_transaction_is_refused(
    engine: Engine, script: Script, batch: int, end: str
) -> None:
    """In words of SQL that pass the driver unseen; whatever goes through SQLAlchemy is refused before."""
    add_graph(engine, "g", "batched", nodes=25)

    def end_it(ctx: HopContext) -> None:
        if len(script.batches) == batch:
            ctx.connection.exec_driver_sql(end)

    script.on["visit"] = end_it
    with pytest.raises(Exception, match="ended its own transaction"):
        run_graph_migration(engine, "g", 3)
    assert (graph_row(engine, "g").version, migration_of(engine, "g").status) == (1, "failed")
    assert attempts(engine, "g") == [("visit", "failed")]
    assert rows(engine, "SELECT coalesce(sum(done), 0) FROM checkpoints") == [(10 * (batch - 1),)]


def test_without_any_worker_this_process_recovers_its_own_migration(engine: Engine, script: Script) -> None:
    add_graph(engine, "alone", "plain")

    def lose_the_attempt(_: HopContext) -> None:
        script.on.clear()
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE hop_attempts SET status = 'lost', finished_at = now() WHERE status = 'running'")
            )
            connection.execute(text("UPDATE migrations SET deadline = clock_timestamp()"))

    script.on["two"] = lose_the_attempt
    assert run_graph_migration(engine, "alone", 4).version == 4
    assert attempts(engine, "alone") == [
        ("one", "succeeded"), ("two", "lost"), ("two", "succeeded"), ("three", "succeeded"),
    ]  # fmt: skip
    assert all(node["trail"] == ["one", "two", "three"] for node in properties(engine, "alone").values())


def driver(ctx: HopContext) -> Any:
    """The driver's own connection, which knows nothing of hops."""
    return ctx.connection.connection.dbapi_connection


@pytest.mark.parametrize("first", ["SELECT 1", ""], ids=["after another statement", "at once"])
def test_a_hop_may_read_through_cursors_of_the_server(engine: Engine, script: Script, first: str) -> None:
    add_graph(engine, "g", "plain", nodes=50)
    read: list[int] = []

    def stream(ctx: HopContext) -> None:
        if first:
            ctx.execute(first)
        select = text("SELECT id FROM nodes WHERE graph_id = :graph FOR UPDATE")
        found = ctx.connection.execute(select, {"graph": ctx.graph.id}, execution_options={"yield_per": 7})
        read.append(sum(1 for _ in found))
        with driver(ctx).cursor("by_name") as cursor:
            cursor.execute("SELECT id FROM nodes")
            read.append(len(cursor.fetchmany(20)))

    script.on["one"] = stream
    assert run_graph_migration(engine, "g", 2).version == 2
    assert read == [50, 20]


@pytest.mark.parametrize("factory", [RealDictCursor, NamedTupleCursor])
def test_what_a_hop_writes_through_a_cursor_of_any_kind_is_in_its_transaction(
    engine: Engine, script: Script, factory: Any
) -> None:
    add_graph(engine, "g", "plain")

    def write(ctx: HopContext) -> None:
        with driver(ctx).cursor(cursor_factory=factory) as cursor:
            cursor.execute("UPDATE nodes SET label = 'Changed'")
        raise ValueError("afterwards")

    script.on["one"] = write
    with pytest.raises(ValueError, match="afterwards"):
        run_graph_migration(engine, "g", 2)
    assert rows(engine, "SELECT DISTINCT label FROM nodes") == [("Node",)]


def test_plans_that_were_made_while_the_tables_were_empty_use_the_indexes(
    engine: Engine, executors: Executors, script: Script
) -> None:
    """A session keeps its plans. One that reads whole tables would cost more with every migration."""
    tables = "hop_attempts", "migrations", "graphs", "requests", "checkpoints"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM ANALYZE {', '.join(tables)}")
    for number in range(8):  # the generic plan comes with the sixth use
        add_graph(engine, f"g{number}", "plain")
    before = scans(engine, executors, tables)
    for number in range(8):
        run_graph_migration(executors, f"g{number}", 3, caller=Caller(f"call-{number}"))
    with sweeping(executors) as executor:
        assert executor is not None
        sweep(executor)
    assert scans(engine, executors, tables) == before


def scans(engine: Engine, executors: Executors, tables: tuple[str, ...]) -> list[Any]:
    """How often each table was read as a whole."""
    with executors.borrow() as executor, executor.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")  # else it reports in a second
    return rows(
        engine,
        "SELECT relname, seq_scan FROM pg_stat_user_tables "
        "WHERE schemaname = 'graph_migrator' AND relname = ANY(:tables) ORDER BY relname",
        tables=list(tables),
    )


def test_a_sessions_commit_is_refused_also_where_the_hop_catches_that(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")

    def use_session(ctx: HopContext) -> None:
        ctx.session.execute(text("UPDATE nodes SET label = 'Changed'"))
        with suppress(RuntimeError):
            ctx.session.commit()

    script.on["one"] = use_session
    with pytest.raises(RuntimeError, match="neither commit nor roll back"):
        run_graph_migration(engine, "g", 2)
    assert rows(engine, "SELECT DISTINCT label FROM nodes") == [("Node",)]


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────


def partially_migrated(engine: Engine, executors: Executors, script: Script, slug: str) -> None:
    """A graph that was force-released inside a batched hop."""
    add_graph(engine, slug, "batched", nodes=25)
    script.on["visit"] = lambda ctx: len(script.batches) == 2 and fails_now()
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(engine, slug)
    script.clear()
    with executors.borrow() as executor:
        operations.release(executor, slug, force=True)


def fails_now() -> NoReturn:
    raise ValueError("half-way")


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
    """`lock_and_load` looks, leaves the lock of a live migration alone, and reads: it may have ended in between."""
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        begin_migration(executor, "g", 3)
    with ThreadPoolExecutor(1) as pool, engine.begin() as ends:
        ends.execute(text("LOCK TABLE checkpoints"))  # which the second look reads
        begins = pool.submit(_facts_of, engine, "g")
        waits = "SELECT pid FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
        until(lambda: rows(engine, waits), "enter between its two looks")
        ends.execute(text("SELECT graph_migrator.release(migration_id, id, NULL) FROM graphs"))
        ends.commit()
        facts = begins.result(30)
    assert (facts.claim, facts.locked) == (None, True)


def _facts_of(engine: Engine, slug: str) -> Any:
    executor = Executor.connect(engine)
    try:
        return lock_and_load(executor, slug, None)
    finally:
        executor.close()


# ── when, check, timeout ────────────────────────────────────────────────────────────────────────────


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


# ── errors that pass ────────────────────────────────────────────────────────────────────────────────


def raises_once(script: Script, hop: str, act: Callable[[HopContext], object], *, times: int = 1) -> None:
    """Let the first start of a hop (or the first few) end with what `act` does."""

    def play(ctx: HopContext) -> None:
        leave_mark(ctx)
        if script.invoked.count(hop) <= times:
            act(ctx)

    script.on[hop] = play


def with_sqlstate(code: str) -> Callable[[HopContext], object]:
    return lambda ctx: ctx.execute(f"DO $$ BEGIN RAISE EXCEPTION 'passing' USING ERRCODE = '{code}'; END $$")


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


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────


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


# ── one transaction of the caller's ─────────────────────────────────────────────────────────────────


def test_execute_migration_is_kept_where_the_caller_commits(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    with engine.begin() as connection:
        report = execute_migration(connection, "g", 4)
        assert graph_row(engine, "g").version == 1  # nobody else sees it yet
    assert (report.status, report.version, report.last_applied) == ("succeeded", 4, "three")
    assert trails(engine, "g") == {"one two three"}
    assert attempts(engine, "g") == [("one", "succeeded"), ("two", "succeeded"), ("three", "succeeded")]
    assert graph_row(engine, "g").migration_id is None
    assert advisory_locks(engine) == []


def test_execute_migration_rolled_back_leaves_nothing(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    add_graph(engine, "b", "batched", nodes=25)
    before = dump(engine)
    with engine.connect() as connection:
        transaction = connection.begin()
        assert execute_migration(connection, "g", 4).version == 4
        assert execute_migration(connection, "b").version == 3
        transaction.rollback()
        assert advisory_locks(engine) == []
    assert dump(engine) == before


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
def test_execute_migration_refuses_any_isolation_but_read_committed(engine: Engine, isolation: Any) -> None:
    add_graph(engine, "g", "plain")
    before = dump(engine)
    with (
        engine.connect().execution_options(isolation_level=isolation) as connection,
        pytest.raises(InvalidRequest, match="READ COMMITTED"),
    ):
        execute_migration(connection, "g")
    assert dump(engine) == before


@pytest.mark.parametrize(
    "error",
    [lambda _: fails_now(), with_sqlstate("40001"), with_sqlstate("23505")],
    ids=["python", "40001", "23505"],
)
def test_an_error_in_execute_migration_leaves_the_callers_transaction_usable(
    engine: Engine, script: Script, error: Any
) -> None:
    graph_id = add_graph(engine, "g", "plain")
    script.on["two"] = error
    with engine.begin() as connection:
        connection.execute(text("SET search_path = public"))
        connection.execute(text("CREATE TABLE public.mine AS SELECT 1 AS n"))
        with pytest.raises(Exception, match=r"half-way|passing"):
            execute_migration(connection, "g", 3)
        assert connection.execute(text("SHOW search_path")).scalar_one() == "public"
        assert connection.execute(text("SELECT n FROM mine")).scalar_one() == 1
        script.on.clear()
        assert execute_migration(connection, graph_id, 2).version == 2
    assert attempts(engine, "g") == [("one", "succeeded")]
    assert trails(engine, "g") == {"one"}


def test_execute_migration_waits_for_writers_like_begin_and_keeps_the_callers_settings(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_id = add_graph(engine, "g", "plain")
    monkeypatch.setenv("GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS", "0.2")
    settings.cache_clear()
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        with engine.begin() as writer:
            writer.execute(text("UPDATE nodes SET label = 'Late'"))
            pid = writer.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with pytest.raises(OpenWriteTransactions, match=f"pid {pid}"):
                execute_migration(connection, "g", 2)
            with pytest.raises(OpenWriteTransactions, match=f"pid {pid}"):
                dry_run(engine, graph_id)
        assert execute_migration(connection, "g", 2).version == 2
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "7s"


def test_execute_migration_refuses_like_begin(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        begin_migration(executor, "g", 3)
    before = dump(engine)
    with engine.begin() as connection:
        with pytest.raises(MigrationInFlight):
            execute_migration(connection, "g")
        with pytest.raises(UnknownGraph):
            execute_migration(connection, "nobody")
    assert dump(engine) == before


# ── there and back ──────────────────────────────────────────────────────────────────────────────────

round_trip = GraphType("round_trip")
round_trip.sql_hop(
    1,
    2,
    name="rename_edges",
    forward="UPDATE edges SET type = 'ACQUAINTED_WITH' WHERE graph_id = :graph_id AND type = 'KNOWS'",
    reverse="UPDATE edges SET type = 'KNOWS' WHERE graph_id = :graph_id AND type = 'ACQUAINTED_WITH'",
)


@round_trip.hop(2, 3, over=Nodes(), batch_size=3)
def wrap(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties = {"wrapped": node.properties}


@wrap.reverse
def unwrap(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties = node.properties["wrapped"]


@round_trip.hop(3, 4)
def mark(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = label || '+' WHERE graph_id = :graph_id")


@mark.reverse
def unmark(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = left(label, -1) WHERE graph_id = :graph_id")


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=5,
)
_graphs = st.dictionaries(_texts, st.dictionaries(_texts, _values, max_size=3), max_size=8).flatmap(
    lambda nodes: st.tuples(
        st.just(nodes),
        st.lists(st.tuples(st.sampled_from(sorted(nodes)), st.sampled_from(sorted(nodes))), max_size=5)
        if nodes
        else st.just([]),
    )
)


@hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(_graphs)
def test_up_to_the_last_version_and_back_gives_the_same_bytes(
    engine: Engine, graph: tuple[dict[str, Any], list[tuple[str, str]]]
) -> None:
    registry.register(round_trip)
    nodes, pairs = graph
    slug = f"g{uuid4().hex}"
    add_graph(
        engine, slug, "round_trip", nodes=nodes, edges=[(f"e{i}", *pair) for i, pair in enumerate(pairs)]
    )
    before = exported(engine, slug)
    executors = Executors(engine)
    assert run_graph_migration(executors, slug).version == 4
    if nodes:
        assert exported(engine, slug) != before
    assert run_graph_migration(executors, slug, 1).version == 1
    executors.close()
    assert exported(engine, slug) == before


def exported(engine: Engine, slug: str) -> bytes:
    stream = io.BytesIO()
    export_graph(engine, slug, stream, format="jsonl")
    return stream.getvalue()
