"""Behind PgBouncer: session mode works; transaction mode is found before it can do harm. Runs where it is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from graph_migrator import graph_writer
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.errors import GraphReadOnly
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection.doctor import Level, examine
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.history import history
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.session import Executors
from tests.integration.pgbouncer import pgbouncer
from tests.integration.test_majors import kind
from tests.rows import add_graph, advisory_locks, graph_row, properties


@pytest.fixture(params=["session", "transaction"])
def through(request: pytest.FixtureRequest, database_url: str) -> Iterator[tuple[str, Engine]]:
    """The pool mode, and an engine that leads through it."""
    registry.register(kind)
    with pgbouncer(database_url, request.param) as url:
        engine = make_engine(url)
        yield request.param, engine
        engine.dispose()


def test_session_mode_works_and_transaction_mode_is_named(
    engine: Engine, through: tuple[str, Engine]
) -> None:
    mode, pooled = through
    wrong = [each.check for each in examine(pooled, {"kind": kind}) if each.level is Level.WRONG]
    if mode == "transaction":
        assert wrong == ["pooling"]
        return
    assert wrong == []
    for slug in ("g", "h"):
        add_graph(engine, slug, "kind", nodes=25)
    executors = Executors(pooled)
    for slug in ("g", "h"):
        assert run_graph_migration(executors, slug).version == 3
    executors.close()
    assert properties(engine, "g")["n0024"] == {"name": "n0024"}
    assert advisory_locks(engine) == []
    assert verify_chains(pooled).count == 0
    assert len(history(pooled, "g")) == 1
    assert graph_state(pooled, "g").nodes == 25
    with pooled.begin() as connection, graph_writer(connection, "g", version=3):
        connection.execute(text("UPDATE graph_migrator.nodes SET label = 'seen' WHERE id = 'n0001'"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE graphs SET owner_read_only = true WHERE slug = 'g'"))
    with pytest.raises(GraphReadOnly), pooled.begin() as connection, graph_writer(connection, "g"):
        pass
    assert graph_row(engine, "g").version == 3
