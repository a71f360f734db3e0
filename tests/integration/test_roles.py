"""docs/roles.sql on a real Postgres: each role can do its work, and no more."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator

import psycopg2
import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from graph_migrator import graph_writer, run_graph_migration
from graph_migrator.core.execution.recovery import sweep, sweeping
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.graphs import find_graph, list_graphs
from graph_migrator.core.interchange import import_graph
from graph_migrator.core.rollouts.current import look, move_to_front
from graph_migrator.core.rollouts.operations import Operator, hold_all, unhold_all
from graph_migrator.core.rollouts.policy import Mode, set_policy, start_what_is_behind
from graph_migrator.core.rollouts.workers import WorkerState, announce, retire, served
from graph_migrator.core.settings import settings
from graph_migrator.core.store import schema
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.lock_sessions import lock_sessions
from graph_migrator.core.store.session import Executors
from tests.acceptance.cluster import ROOT
from tests.databases import Databases
from tests.integration.fleet_inline import PACKED, QUICK, Fleet, add_tenants, tenants
from tests.integration.scripted import Script
from tests.rows import add_graph, graph_row, rows

LogIn = Callable[[str], Engine]


@pytest.fixture(scope="module")
def databases(databases: Databases) -> Databases:
    """Databases in which the script has run."""
    return databases.prepared(run_script)


@pytest.fixture
def log_in(database_url: str, engine: Engine) -> Iterator[LogIn]:
    """Connects as a login of one of the roles, made for the test."""
    made: list[str] = []
    engines: list[Engine] = []

    def connect(role: str) -> Engine:
        name = f"login_{uuid.uuid4().hex[:8]}"
        with engine.begin() as connection:
            connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'x' IN ROLE graph_migrator_{role}"))
        made.append(name)
        url = make_url(database_url).set(username=name, password="x")
        engines.append(make_engine(url.render_as_string(hide_password=False)))
        return engines[-1]

    yield connect
    for each in engines:
        each.dispose()
    with engine.begin() as connection:
        for name in made:
            connection.execute(text(f"DROP ROLE {name}"))


def run_script(url: str) -> None:
    raw = psycopg2.connect(url)
    try:
        raw.autocommit = True
        with raw.cursor() as cursor:
            cursor.execute((ROOT / "docs" / "roles.sql").read_text())
    finally:
        raw.close()


def refused(engine: Engine, statement: str) -> str:
    with pytest.raises(DBAPIError) as caught, engine.begin() as connection:
        connection.execute(text(statement))
    return str(caught.value.orig.pgcode)  # type: ignore[union-attr]


DENIED, KEPT = "42501", "23000"


def test_the_script_can_run_again(database_url: str) -> None:
    run_script(database_url)


def test_the_worker_migrates_and_recovers(engine: Engine, log_in: LogIn, script: Script) -> None:
    worker = log_in("worker")
    add_graph(engine, "g", "plain")
    add_graph(engine, "b", "batched", nodes=25)
    assert run_graph_migration(worker, "g").version == find_graph(engine, "g").version
    run_graph_migration(worker, "b")
    assert graph_state(worker, "g").graph.read_only is None
    with sweeping(Executors(worker)) as executor:
        assert executor is not None
        assert sweep(executor).is_empty


def test_the_worker_moves_a_fleet_and_the_application_opens_a_graph_of_it(
    engine: Engine, log_in: LogIn
) -> None:
    registry.register(tenants())
    add_tenants(engine, 5)
    fleet = Fleet(Executors(log_in("worker")))
    served_types = {"tenant": served(tenants())}
    state = WorkerState(name="w", queue=settings().queue, types=served_types, pool="prefork", processes=1)
    fleet.do(announce, state)
    fleet.do(set_policy, "tenant", Mode.AUTOMATIC, Operator("ada"), strategy=QUICK, settle_seconds=0)
    with sweeping(fleet.executors, holder="w", lease_seconds=1) as executor:
        assert executor is not None
        sweep(executor)
        assert start_what_is_behind(executor) == [("tenant", 3, 5)]
    application = log_in("application")
    with application.connect() as connection:
        standing = look(connection, "t004", 3)
    assert standing.pending
    assert standing.rollout_id is not None
    with application.begin() as connection:
        move_to_front(connection, standing.rollout_id, standing.graph_id)
    fleet.do(hold_all, Operator("ada"))
    fleet.do(unhold_all, Operator("ada"))
    assert fleet.run().rollout.status == "succeeded"
    fleet.do(retire, state)


def test_graphs_of_a_pack_share_their_transactions_in_the_workers_role(engine: Engine, log_in: LogIn) -> None:
    """Without a right that this needs they would all be moved as well, each by itself."""
    registry.register(tenants())
    add_tenants(engine, 12)
    fleet = Fleet(Executors(log_in("worker")))
    fleet.start(PACKED)
    assert fleet.run().rollout.status == "succeeded"
    assert rows(engine, "SELECT status, count(*) FROM hop_attempts GROUP BY status") == [("succeeded", 24)]


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("DROP TABLE graph_migrator.nodes", DENIED),
        ("DELETE FROM graph_migrator.rollout_changes", DENIED),
        ("DELETE FROM graph_migrator.policies", DENIED),
        ("ALTER TABLE graph_migrator.nodes DISABLE TRIGGER ALL", DENIED),
        ("ALTER TABLE graph_migrator.graphs DISABLE TRIGGER graph_migrator_guard", DENIED),
        ("DROP TRIGGER hop_attempts_are_kept ON graph_migrator.hop_attempts", DENIED),
        (
            "CREATE OR REPLACE FUNCTION graph_migrator.refuse_change() RETURNS trigger LANGUAGE sql AS ''",
            DENIED,
        ),
        ("SET session_replication_role = replica", DENIED),
        ("TRUNCATE graph_migrator.hop_attempts", DENIED),
        ("DELETE FROM graph_migrator.hop_attempts", DENIED),
        ("DELETE FROM graph_migrator.migrations", DENIED),
        ("DELETE FROM graph_migrator.requests", DENIED),
        ("UPDATE graph_migrator.hop_attempts SET status = 'lost'", KEPT),
        ("UPDATE graph_migrator.migrations SET status = 'failed', error_type = 'x'", KEPT),
        ("UPDATE graph_migrator.graphs SET version = 1", KEPT),
        ("CREATE TABLE graph_migrator.mine (a int)", DENIED),
    ],
)
def test_the_worker_cannot_undo_what_protects_the_data(
    engine: Engine, log_in: LogIn, script: Script, statement: str, state: str
) -> None:
    add_graph(engine, "g", "plain")
    run_graph_migration(engine, "g")
    assert refused(log_in("worker"), statement) == state


def test_the_application_writes_through_the_guard(engine: Engine, log_in: LogIn, script: Script) -> None:
    application = log_in("application")
    graph = add_graph(engine, "g", "plain")
    with application.begin() as connection, graph_writer(connection, "g", version=1) as found:
        connection.execute(
            text("INSERT INTO nodes (graph_id, id, label) VALUES (:g, 'new', 'Node')"), {"g": found.id}
        )
        connection.execute(
            text("UPDATE nodes SET properties = '{\"a\": 1}' WHERE graph_id = :g"), {"g": graph}
        )
        connection.execute(
            text(
                "INSERT INTO edges (graph_id, id, source, target, type) VALUES (:g, 'e', 'new', 'new', 'T')"
            ),
            {"g": graph},
        )
    with application.begin() as connection:
        connection.execute(text("UPDATE graphs SET owner_read_only = true WHERE slug = 'g'"))
    with pytest.raises(DBAPIError, match="read-only"), application.begin() as connection:
        connection.execute(text("DELETE FROM nodes WHERE graph_id = :g AND id = 'n0000'"), {"g": graph})


def test_the_application_imports(log_in: LogIn) -> None:
    lines = b'{"kind": "node", "id": "a", "label": "N", "properties": {}}\n'
    report = import_graph(
        log_in("application"), io.BytesIO(lines), slug="i", graph_type="plain", version=1, format="jsonl"
    )
    assert report.nodes == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE graph_migrator.graphs SET version = 2",
        "UPDATE graph_migrator.graphs SET migration_id = NULL",
        "UPDATE graph_migrator.graphs SET graph_type = 'other'",
        "UPDATE graph_migrator.graphs SET partially_migrated = NULL",
        "INSERT INTO graph_migrator.migrations SELECT * FROM graph_migrator.migrations",
        "SELECT * FROM graph_migrator.hop_attempts",
        "SELECT graph_migrator.release_migration(gen_random_uuid(), gen_random_uuid(), NULL)",
        "SELECT graph_migrator.become_executor(gen_random_uuid())",
        "SELECT graph_migrator.terminate_holders(gen_random_uuid())",
        "ALTER TABLE graph_migrator.nodes DISABLE TRIGGER ALL",
        "TRUNCATE graph_migrator.nodes CASCADE",
    ],
)
def test_the_application_changes_neither_claim_nor_version(
    engine: Engine, log_in: LogIn, statement: str
) -> None:
    add_graph(engine, "g", "plain")
    assert refused(log_in("application"), statement) == DENIED
    assert graph_row(engine, "g").version == 1


def test_the_reader_reads(engine: Engine, log_in: LogIn, script: Script) -> None:
    reader = log_in("reader")
    graph = add_graph(engine, "g", "plain")
    run_graph_migration(engine, "g")
    assert graph_state(reader, "g").nodes == 3
    assert len(reading.history(reader, "g")) == 1
    assert [g.slug for g in list_graphs(reader)] == ["g"]
    assert lock_sessions(reader, graph) == []
    for statement in (
        "DELETE FROM graph_migrator.nodes",
        "UPDATE graph_migrator.graphs SET slug = 'x'",
        "INSERT INTO graph_migrator.nodes SELECT * FROM graph_migrator.nodes",
        "SELECT * FROM graph_migrator.write_guard('g', 1)",
    ):
        assert refused(reader, statement) == DENIED


def test_the_owner_upgrades(log_in: LogIn) -> None:
    before, after = schema.upgrade(log_in("owner"))
    assert before == after
