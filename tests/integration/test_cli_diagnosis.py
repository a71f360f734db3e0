"""`status` names what holds a graph up; `doctor` finds what is wrong with a deployment; `guard` mends some of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from unittest.mock import MagicMock

import psycopg2
import pytest
from celery.signals import worker_init
from sqlalchemy import text

from graph_migrator import GraphType, HopContext, run_graph_migration
from graph_migrator.core.errors import MigrationReleased
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection import doctor
from graph_migrator.core.inspection.doctor import Finding, Level
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.lock_sessions import without_values
from graph_migrator.core.store.session import Executors
from graph_migrator.tasks import processes, runtime
from tests.acceptance.cluster import Cluster
from tests.integration.console import call, spawn
from tests.rows import graph_row
from tests.waiting import until


@pytest.fixture
def session(here: Cluster) -> Iterator[Any]:
    """An application's session."""
    raw = psycopg2.connect(
        here.database_url, application_name="billing", options="-c search_path=graph_migrator"
    )
    yield raw
    raw.close()


def execute(raw: Any, statement: str, *values: Any) -> None:
    with raw.cursor() as cursor:
        cursor.execute(statement, values or None)


def reasons(slug: str) -> dict[str, str]:
    found = call("status", slug, "--json").json()["reasons"]
    return {each["kind"]: f"{each['what']} {each['way_out'] or ''}" for each in found}


def begin(here: Cluster, slug: str, graph_type: str = "trail", **options: Any) -> None:
    """A graph whose migration has begun, and nobody works on it."""
    here.add_graph(slug, graph_type, **options)
    with runtime.executors().borrow() as executor:
        begin_migration(executor, slug)


# ── why is it not moving? ──────────────────────────────────────────────────────────────────────────


def test_no_worker_on_the_queue(here: Cluster) -> None:
    begin(here, "g")
    seen = reasons("g")
    assert "celery -A graph_migrator worker -Q migrations" in seen["no-worker"]
    assert "Recovery sends it again in" in seen["deadline"]
    here.start_worker("other", arguments=("-Q", "elsewhere"))
    assert "(1 serves other queues)" in reasons("g")["no-worker"]


def test_workers_that_do_not_know_the_type_or_have_other_code(here: Cluster) -> None:
    begin(here, "g")
    here.start_worker("bare", env={"GRAPH_MIGRATOR_TYPES": "examples.knowledge:knowledge"})
    assert "none of them knows the type 'trail'" in reasons("g")["unknown-type"]
    doctor = {f["found"]: f for f in call("doctor", "--json").json()}
    assert doctor["'trail' is known here, and no worker knows it"]["level"] == "wrong"


def test_the_broker_is_out_of_reach(here: Cluster) -> None:
    begin(here, "g")
    outcome = spawn(
        "status", "g", env={**here.environment, "CELERY_BROKER_URL": "redis://:hush@127.0.0.1:1/0"}
    )
    assert outcome.exit_code == 0
    assert "The broker is out of reach" in outcome.out
    assert "hush" not in outcome.out + outcome.err


def test_another_session_holds_the_lock(here: Cluster, session: Any) -> None:
    begin(here, "g")
    graph = graph_row(here.engine, "g").id
    execute(session, "SELECT pg_advisory_lock(lock_key(%s)) /* 'hush' */", str(graph))
    shown = reasons("g")["lock-held"]
    assert f"pid {session.info.backend_pid} (billing, postgres@127.0.0.1) since 20" in shown
    assert "idle in transaction, last ran: SELECT pg_advisory_lock(lock_key('…'))" in shown
    assert "hush" not in shown
    assert str(graph) not in shown


def test_writers_keep_a_migration_from_beginning(here: Cluster, session: Any) -> None:
    here.add_graph("g", "trail")
    execute(session, "UPDATE nodes SET properties = '{\"a\": \"hush\"}' WHERE id = 'n0000'")
    waiting = psycopg2.connect(here.database_url, options="-c search_path=graph_migrator", async_=False)
    try:
        from threading import Thread

        graph = graph_row(here.engine, "g").id
        waiter = Thread(target=execute, args=(waiting, "SELECT pg_advisory_lock(lock_key(%s))", str(graph)))
        waiter.start()
        shown = until(lambda: reasons("g").get("open-write-transactions"), "the waiting begin seen")
        assert "billing" in shown
        assert "hush" not in shown
        session.rollback()
        waiter.join(20)
    finally:
        waiting.close()


def test_a_worker_is_on_it_then_paused_then_failed(here: Cluster) -> None:
    worker = here.start_worker(concurrency=1)
    begin(here, "g")
    hold = here.steer("hold", "g", "first")
    call("recover")
    with here.engine.begin() as connection:  # redeliver now, not in half a minute
        connection.execute(text("UPDATE migrations SET deadline = now() - interval '1 s'"))
    here.pid_in("g", "first")
    assert "graph-migrator" in reasons("g")["working"]
    assert "on w1@localhost" in call("status", "g").out
    begin(here, "h")
    from graph_migrator.core.execution.recorded import load_dispatch
    from graph_migrator.tasks.migrate import send

    for slug in ("h", "h"):
        with runtime.executors().borrow() as executor:
            send(load_dispatch(executor, graph_row(here.engine, slug).migration_id))
    seen = until(lambda: reasons("h").get("queue"), "the queue seen")
    assert "the queue before 1 worker." in seen
    call("pause", "g")
    hold.unlink()
    until(lambda: call("status", "g", "--json").json()["migration"]["status"] == "paused", "paused")
    assert "graph-migrator resume g" in reasons("g")["paused"]
    assert worker.is_alive


def test_no_worker_has_the_planned_code(here: Cluster) -> None:
    begin(here, "g")
    with here.engine.begin() as connection:  # as two workers of another release leave it
        connection.execute(
            text("SELECT graph_migrator.count_mismatch(id, 30) FROM migrations, generate_series(1, 2)")
        )
    assert "requeued it 2 times" in reasons("g")["other-code"]


def test_a_call_that_no_worker_has_taken(here: Cluster) -> None:
    here.add_graph("g", "trail")
    assert call("migrate", "g").exit_code == 0
    assert "1 message waits" in reasons("g")["no-worker"]


def test_a_worker_whose_types_cannot_be_loaded_is_seen(here: Cluster) -> None:
    here.start_worker(env={"GRAPH_MIGRATOR_TYPES": "nosuch:types"})
    begin(here, "g")
    assert "none of them knows the type 'trail'" in reasons("g")["unknown-type"]


def test_a_graph_that_nothing_owns(here: Cluster) -> None:
    here.add_graph("old", "trail")
    here.add_graph("new", "trail", 5)
    here.add_graph("strange", "unheard-of")
    call("lock", "new")
    assert "graph-migrator migrate old" in reasons("old")["behind"]
    assert "graph-migrator unlock new" in reasons("new")["owner-locked"]
    assert "GRAPH_MIGRATOR_TYPES" in reasons("strange")["unknown-type-here"]


def test_paused_half_way_through_a_hop(here: Cluster) -> None:
    here.add_graph("g", "batched_trail", nodes=25)
    from graph_migrator import run_graph_migration
    from graph_migrator.core.execution import failpoints

    def pause(point: str) -> None:
        if point == "batch_committed":
            failpoints.hook = None
            with runtime.executors().borrow() as executor:
                operations.pause(executor, "g")

    def run() -> None:
        with suppress(MigrationReleased):
            run_graph_migration(here.engine, "g")

    failpoints.hook = pause
    running = threading.Thread(target=run)  # it waits for somebody to go on
    running.start()
    until(lambda: "paused" in reasons("g"), "the pause")
    seen = reasons("g")["paused"]
    assert "in the middle of a hop, after 10 rows" in seen
    assert "cancel" not in seen
    refused = call("release", "g", "--yes")
    assert refused.exit_code == 3
    assert "a paused migration stands half-way" in refused.err
    assert "Finish it with `graph-migrator resume g`" in refused.err
    assert call("release", "g", "--yes", "--force").exit_code == 0
    running.join(20)
    assert not running.is_alive()


def test_a_hop_partially_migrated(here: Cluster) -> None:
    here.add_graph("g", "batched_trail", nodes=25)
    from graph_migrator import run_graph_migration
    from graph_migrator.core.execution import failpoints

    def fail_late(point: str) -> None:
        if point == "batch_committed":
            raise RuntimeError("out of luck")

    failpoints.hook = fail_late
    try:
        with pytest.raises(RuntimeError):
            run_graph_migration(here.engine, "g")
    finally:
        failpoints.hook = None
    seen = reasons("g")["failed"]
    assert "after 10 rows: the graph is partially migrated" in seen
    assert "end the migration with `graph-migrator release g --force`" in seen
    refused = call("release", "g", "--yes")
    assert refused.exit_code == 3
    assert "a failed migration stands half-way through" in refused.err
    assert "`graph-migrator release g --force`" in refused.err
    assert call("release", "g", "--yes", "--force").exit_code == 0
    assert "graph-migrator retry g" in reasons("g")["partially-migrated"]


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("UPDATE t SET a = 'it''s me', b = 42 WHERE c1 = $1", "UPDATE t SET a = '…', b = … WHERE c1 = $1"),
        ("SELECT $$secret$$, $x$secret$x$, 'cut of", "SELECT '…', '…', '…'"),
        ("SELECT 1.5e3,\n  -7", "SELECT …e3, -…"),
    ],
)
def test_statements_are_shown_without_values(statement: str, shown: str) -> None:
    assert "secret" not in without_values(statement)
    if "e3" not in statement:
        assert without_values(statement) == shown


# ── doctor ─────────────────────────────────────────────────────────────────────────────────────────


def findings(*, level: Level | None = None) -> list[dict[str, Any]]:
    return [f for f in call("doctor", "--json").json() if level is None or f["level"] == level]


def test_a_healthy_deployment(here: Cluster) -> None:
    here.start_worker(concurrency=1)
    outcome = call("doctor")
    assert outcome.exit_code == 0, outcome.out
    assert {f["check"] for f in findings()} == {
        "database", "pooling", "server", "clock", "client_connection_check_interval", "schema", "guard", "sessions",
        "graphs", "types", "broker", "results", "workers", "worker-types",
    }  # fmt: skip
    assert findings(level=Level.WRONG) == []


def test_everything_out_of_reach_is_named_with_a_remedy_and_no_password() -> None:
    env = {
        "DATABASE_URL": "postgresql://me:hush@127.0.0.1:1/g",
        "CELERY_BROKER_URL": "redis://:hush@127.0.0.1:1/0",
        "CELERY_RESULT_BACKEND": "redis://:hush@127.0.0.1:1/1",
    }
    outcome = spawn("doctor", "--json", env=env)
    assert outcome.exit_code == 1
    wrong = [f for f in outcome.json() if f["level"] == "wrong"]
    assert [f["check"] for f in wrong] == ["database", "broker", "results"]
    assert all(f["remedy"] for f in wrong)
    assert "hush" not in outcome.out + outcome.err


def test_missing_tables_and_missing_workers(here: Cluster, empty_database_url: str) -> None:
    outcome = spawn("doctor", "--json", env={**here.environment, "DATABASE_URL": empty_database_url})
    assert outcome.exit_code == 1
    wrong = {f["check"]: f["remedy"] for f in outcome.json() if f["level"] == "wrong"}
    assert wrong.keys() == {"schema", "workers"}
    assert "db upgrade" in wrong["schema"]


def test_a_disabled_trigger_a_new_partition_and_their_remedy(here: Cluster) -> None:
    with here.engine.begin() as connection:
        for statement in (
            "CREATE TABLE public.orders (graph_id uuid NOT NULL, id int, PRIMARY KEY (graph_id, id)) "
            "PARTITION BY RANGE (id)",
            "CREATE TABLE public.orders_1 PARTITION OF public.orders FOR VALUES FROM (0) TO (10)",
        ):
            connection.execute(text(statement.replace("RANGE (id)", "RANGE (id)")))
    assert call("guard", "install", "public.orders").exit_code == 0
    assert not [f for f in findings(level=Level.WRONG) if f["check"] == "guard"]
    with here.engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE public.orders_2 PARTITION OF public.orders FOR VALUES FROM (10) TO (20)")
        )
        connection.execute(text("ALTER TABLE nodes DISABLE TRIGGER graph_migrator_guard_update"))
    wrong = {f["found"]: f["remedy"] for f in findings(level=Level.WRONG) if f["check"] == "guard"}
    assert wrong["public.orders: no guard on public.orders_2"] == (
        "`graph-migrator guard install public.orders --column graph_id`"
    )
    assert (
        "`graph-migrator repair guard graph_migrator.nodes`"
        in wrong["graph_migrator.nodes: graph_migrator.nodes: graph_migrator_guard_update is off"]
    )
    assert "no guard on public.orders_2" in call("guard", "list").out
    call("guard", "install", "public.orders")
    assert [f["found"][:20] for f in findings(level=Level.WRONG) if f["check"] == "guard"] == [
        "graph_migrator.nodes"
    ]
    assert call("guard", "remove", "public.orders", answer="n\n").exit_code == 1
    assert "public.orders" in call("guard", "list").out
    assert call("guard", "remove", "public.orders", "--yes").exit_code == 0
    assert "public.orders" not in call("guard", "list").out


def test_idle_lock_holders_and_prepared_transactions(here: Cluster, session: Any) -> None:
    graph = here.add_graph("g", "trail")
    execute(session, "SELECT pg_advisory_lock(lock_key(%s))", str(graph))
    session.commit()
    other = psycopg2.connect(here.database_url)
    try:
        execute(other, "CREATE TABLE public.t (a int)")
        execute(other, "PREPARE TRANSACTION 'left behind'")
    finally:
        other.close()
    try:
        with here.engine.connect() as connection:
            found = list(doctor.sessions(connection, idle=0))
    finally:
        session.rollback()
        session.autocommit = True
        execute(session, "ROLLBACK PREPARED 'left behind'")
    assert [f.level for f in found] == [Level.WRONG, Level.WARNING]
    assert f"g: pid {session.info.backend_pid} (billing) has held its lock, idle" in found[0].found
    assert "'left behind'" in found[1].found


def test_graphs_that_nobody_recovers(here: Cluster) -> None:
    begin(here, "g")
    with here.engine.begin() as connection:
        connection.execute(text("UPDATE migrations SET deadline = now() - interval '1 h'"))
    with here.engine.connect() as connection:
        found = list(doctor.graphs(connection))
    assert [f.level for f in found] == [Level.WRONG]


def connect_through_a_pooling_proxy() -> Callable[[], Any]:
    """The proxy's one rule: a backend is a connection's from the first statement to the commit."""
    free = [1, 2]

    def connect() -> Any:
        held: list[int] = []

        def run(_: str) -> None:
            if not held:
                held.append(free.pop(0))

        def commit() -> None:
            free.insert(0, held.pop())

        proxied = MagicMock()
        cursor = proxied.cursor.return_value.__enter__.return_value
        cursor.execute.side_effect = run
        cursor.fetchone.side_effect = lambda: (held[0],)
        proxied.commit.side_effect = commit
        return proxied

    return connect


def test_a_transaction_pooling_proxy_is_noticed(here: Cluster) -> None:
    assert doctor.pooling(connect_through_a_pooling_proxy()).level is Level.WRONG
    assert doctor.pooling(lambda: here.engine.raw_connection()).level is Level.OK


def test_a_worker_does_not_start_behind_a_transaction_pooling_proxy(
    here: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = processes._refuse_a_pooling_proxy
    assert any(reference() is check for _, reference in worker_init.receivers)
    check()
    proxy = MagicMock(raw_connection=connect_through_a_pooling_proxy())
    monkeypatch.setattr(processes, "engine", lambda: proxy)
    with pytest.raises(SystemExit, match="transaction-pooling proxy"):
        check()
    monkeypatch.setattr(processes, "engine", lambda: make_engine("postgresql://127.0.0.1:1/graphs"))
    check()  # nobody there yet: it waits


def test_a_hop_that_computes_between_two_statements_is_never_to_be_ended(here: Cluster) -> None:
    found: list[Finding] = []
    named: list[Finding] = []

    def compute(ctx: HopContext) -> None:
        ctx.execute("SELECT 1")
        with here.engine.connect() as connection:
            found.extend(doctor.sessions(connection, idle=0))
            named.extend(doctor.sessions(connection, idle=0, quiet_hop=0))

    kind = GraphType("thinker")
    kind.hop(1, 2)(compute)
    registry.register(kind)
    here.add_graph("g", "thinker")
    executors = Executors(here.engine)
    run_graph_migration(executors, "g")
    executors.close()
    assert [f.level for f in found] == [Level.OK]
    (quiet,) = named
    assert quiet.level is Level.WARNING
    assert "'compute'" in quiet.found
    assert "pg_terminate_backend" not in (quiet.remedy or "")


def test_executors_leave_nothing_to_find(here: Cluster) -> None:
    executors = Executors(here.engine)
    here.add_graph("g", "trail")
    with executors.borrow() as executor:
        begin_migration(executor, "g")
    with here.engine.connect() as connection:
        assert [f.level for f in doctor.sessions(connection, idle=0)] == [Level.OK]
    executors.close()
