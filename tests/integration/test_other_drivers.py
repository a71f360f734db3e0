"""Applications on psycopg 3, SQLAlchemy 2.1's default: they write and read; migrations refuse their driver by name."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from graph_migrator import execute_migration, graph_writer, run_graph_migration
from graph_migrator.core.embedded import Postgres, Redis
from graph_migrator.core.errors import GraphReadOnly, GraphVersionMismatch, InvalidRequest, UnknownGraph
from graph_migrator.core.execution.dry_run import dry_run
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.errors import Failure, classify, postgres_error, sqlstate
from graph_migrator.core.store.guard import install_guard, list_guards, remove_guard
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.writers import translate_guard_error
from graph_migrator.tasks.serving import environment
from tests.integration.scripted import Script
from tests.rows import add_graph


@pytest.fixture
def application(database_url: str) -> Iterator[Engine]:
    """An application's engine, on psycopg 3."""
    url = database_url.replace("postgresql+psycopg2://", "postgresql://").replace(
        "postgresql:", "postgresql+psycopg:"
    )
    engine = create_engine(url)
    yield engine
    engine.dispose()


def lock(engine: Engine, slug: str) -> None:
    """Let the graph's owner lock it."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE graph_migrator.graphs SET owner_read_only = true WHERE slug = :slug"), {"slug": slug}
        )


def test_a_writer_on_psycopg_3_is_let_in(engine: Engine, application: Engine) -> None:
    add_graph(engine, "g", "plain")
    with Session(application) as session, session.begin(), graph_writer(session, "g", version=1) as graph:
        changed = session.execute(
            text("UPDATE graph_migrator.nodes SET label = 'New' WHERE graph_id = :graph"), {"graph": graph.id}
        )
    assert graph.slug == "g"
    assert changed.rowcount > 0  # type: ignore[attr-defined]


def test_a_writer_on_psycopg_3_is_refused_by_the_same_errors(engine: Engine, application: Engine) -> None:
    add_graph(engine, "g", "plain")
    add_graph(engine, "locked", "plain")
    lock(engine, "locked")
    with application.connect() as connection:
        with pytest.raises(UnknownGraph), graph_writer(connection, "no-such-graph"):
            pass
        connection.rollback()
        with pytest.raises(GraphVersionMismatch) as mismatch, graph_writer(connection, "g", version=7):
            pass
        connection.rollback()
        with pytest.raises(GraphReadOnly) as read_only, graph_writer(connection, "locked"):
            pass
    assert (mismatch.value.expected, mismatch.value.found) == (7, 1)
    assert read_only.value.reason == "owner"


def test_autocommit_on_psycopg_3_is_refused(engine: Engine, application: Engine) -> None:
    add_graph(engine, "g", "plain")
    autocommit = application.execution_options(isolation_level="AUTOCOMMIT")
    with (
        autocommit.connect() as connection,
        pytest.raises(InvalidRequest, match="autocommit"),
        graph_writer(connection, "g"),
    ):
        pass


def test_the_driver_alone_is_understood(engine: Engine, application: Engine) -> None:
    """Without SQLAlchemy, the guard's trigger raises psycopg 3's own error."""
    add_graph(engine, "g", "plain")
    lock(engine, "g")
    url = application.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        with pytest.raises(psycopg.Error) as refused:
            connection.execute("DELETE FROM graph_migrator.edges; DELETE FROM graph_migrator.nodes")
        connection.rollback()
        with pytest.raises(psycopg.Error) as malformed:
            connection.execute("SELECT %s::integer", ["hush"])
    assert isinstance(translate_guard_error(refused.value), GraphReadOnly)
    assert sqlstate(malformed.value) == "22P02"
    assert safe_message(malformed.value) == 'invalid input syntax for type integer: "…"'


def test_a_transient_error_is_known_by_its_sqlstate(engine: Engine, application: Engine) -> None:
    add_graph(engine, "g", "plain")
    take = text("SELECT 1 FROM graph_migrator.graphs FOR UPDATE NOWAIT")
    with engine.connect() as holder, application.connect() as other:
        holder.execute(take)
        with pytest.raises(OperationalError) as caught:
            other.execute(take)
    assert classify(caught.value) is Failure.TRANSIENT
    assert safe_message(caught.value) == 'could not obtain lock on row in relation "graphs"'


def test_what_another_drivers_connection_lost_is_not_the_executors() -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect("host=127.0.0.1 port=1 connect_timeout=2")
    assert classify(caught.value) is Failure.PERMANENT


def test_errors_of_pg8000_are_read_by_the_protocols_fields() -> None:
    said = {"S": "ERROR", "C": "55006", "M": "read-only", "D": '{"reason": "owner", "graph": "g"}'}
    error = Exception(said)
    found = postgres_error(error)
    assert found is not None
    assert (found.sqlstate, found.message) == ("55006", "read-only")
    assert isinstance(translate_guard_error(error), GraphReadOnly)


def test_reading_and_guarding_work_on_psycopg_3(engine: Engine, application: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    run_graph_migration(engine, "g")
    with application.begin() as connection:
        connection.execute(text("CREATE TABLE public.notes (graph_id uuid)"))
        install_guard(connection, "public.notes", "graph_id")
        assert "public.notes" in [guard.table for guard in list_guards(connection)]
        remove_guard(connection, "public.notes")
        assert graph_state(connection, "g").graph.version > 1


def test_migrations_refuse_the_driver_by_name(engine: Engine, application: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    for source in (application, sessionmaker(application)):
        with pytest.raises(
            InvalidRequest, match=r"run on psycopg2, not on psycopg\b.*postgresql\+psycopg2://"
        ):
            run_graph_migration(source, "g")
    with application.connect() as connection:
        with pytest.raises(InvalidRequest, match="not on psycopg"):
            execute_migration(connection, "g")
        with pytest.raises(InvalidRequest, match="not on psycopg"):
            dry_run(application, "g")
    with pytest.raises(InvalidRequest, match="not on pg8000"):
        make_engine("postgresql+pg8000://db/graphs")


def test_a_url_that_names_psycopg_3_is_read_as_psycopg2(database_url: str) -> None:
    engine = make_engine(database_url.replace("postgresql+psycopg2:", "postgresql:").replace(
        "postgresql:", "postgresql+psycopg:"))  # fmt: skip
    with engine.connect() as connection:
        assert connection.dialect.driver == "psycopg2"


def test_what_env_prints_is_not_read_as_psycopg_3(postgres: Postgres, redis_server: Redis) -> None:
    url = environment(postgres, redis_server)["DATABASE_URL"]
    assert create_engine(url).dialect.driver == "psycopg2"
