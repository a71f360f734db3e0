"""Data is mended while a migration stands failed, by the named transaction alone, and on record."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from graph_migrator import GraphType, HopContext, Node, Nodes, graph_repair, run_graph_migration
from graph_migrator.core.errors import IllegalTransition, InvalidRequest
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection.history import history
from graph_migrator.core.store.session import Executors
from graph_migrator.tasks.cli.history import print_story
from tests.rows import add_graph, one, properties

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to.md"
SLUG = "analytical-society"


@pytest.fixture
def failed(engine: Engine, executors: Executors) -> None:
    kind = GraphType("people")

    def greet(ctx: HopContext, persons: list[Node]) -> None:
        for person in persons:
            person.properties["greeting"] = f"Hello {person.properties['name']}"

    kind.hop(1, 2, over=Nodes())(greet)
    registry.register(kind)
    graph = add_graph(engine, SLUG, "people")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM nodes WHERE graph_id = :g"), {"g": graph})
        connection.execute(text("INSERT INTO nodes VALUES (:g, 'ada', 'Person', '{}')"), {"g": graph})
    with pytest.raises(KeyError, match="name"):
        run_graph_migration(executors, SLUG)


@pytest.mark.usefixtures("failed")
def test_the_recipe_mends_the_data_and_the_retry_succeeds(engine: Engine, executors: Executors) -> None:
    section = PAGE.read_text().split("## Mend data that a hop cannot process")[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    names = {"engine": engine, "Session": Session, "text": text, "graph_repair": graph_repair}
    exec(found[1], names)
    assert run_graph_migration(executors, SLUG).version == 2
    assert properties(engine, SLUG)["ada"]["greeting"] == "Hello unknown"
    repair = one(engine, "SELECT requested_by, outcome, migration_id FROM requests WHERE verb = 'repair'")
    recorded = {"reason": "ticket 71: a person without a name", "rows": {"nodes": 1}}
    assert (repair.requested_by, repair.outcome) == ("ada", recorded)
    assert repair.migration_id is not None
    (story,) = history(engine, SLUG)
    assert [(r.requested_by, r.reason, r.rows) for r in story.repairs] == [
        ("ada", recorded["reason"], {"nodes": 1})
    ]
    shown = StringIO()
    print_story(story, to=Console(file=shown))
    assert "data repaired by ada: ticket 71: a person without a name (nodes: 1 row)" in shown.getvalue()


@pytest.mark.usefixtures("failed")
@pytest.mark.parametrize(
    "change", ["version = 2", "graph_type = 'other'", "migration_id = NULL", "changed_at = NULL"]
)
def test_a_repair_changes_neither_version_nor_type_nor_claim(engine: Engine, change: str) -> None:
    with (
        engine.connect() as connection,
        pytest.raises(DBAPIError, match="a repair corrects data"),
        graph_repair(connection, SLUG, by="ada", reason="test"),
    ):
        connection.execute(text(f"UPDATE graphs SET {change}"))
    assert one(engine, "SELECT version, graph_type, migration_id IS NOT NULL FROM graphs") == (
        1,
        "people",
        True,
    )


@pytest.mark.usefixtures("failed")
def test_rows_that_were_written_before_the_repair_are_not_counted(engine: Engine) -> None:
    add_graph(engine, "other", "people", nodes=3)
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'X' WHERE id LIKE 'n%'"))
        with graph_repair(connection, SLUG, by="ada", reason="test"):
            connection.execute(text("UPDATE nodes SET label = 'X' WHERE id = 'ada'"))
    assert one(engine, "SELECT outcome -> 'rows' FROM requests WHERE verb = 'repair'") == ({"nodes": 1},)


@pytest.mark.usefixtures("failed")
def test_nobody_else_may_write_meanwhile_nor_this_transaction_afterwards(engine: Engine) -> None:
    update = text("UPDATE nodes SET label = 'X'")
    with engine.connect() as connection, connection.begin() as transaction:
        with graph_repair(connection, SLUG, by="ada", reason="test"):
            with engine.connect() as other, pytest.raises(DBAPIError, match="read-only"):
                other.execute(update)  # before this transaction's own, whose row locks it would wait for
            connection.execute(update)
        with pytest.raises(DBAPIError, match="read-only"):
            connection.execute(update)
        transaction.rollback()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM requests WHERE verb = 'repair'")).scalar() == 0


def test_a_graph_that_nothing_holds_is_not_repaired(engine: Engine) -> None:
    add_graph(engine, "g", "people")
    with (
        engine.connect() as connection,
        pytest.raises(IllegalTransition, match="not migrating"),
        graph_repair(connection, "g", by="ada", reason="test"),
    ):
        raise AssertionError("it was let in")
    with (
        engine.connect() as connection,
        pytest.raises(InvalidRequest, match="blank"),
        graph_repair(connection, "g", by="ada", reason=" "),
    ):
        raise AssertionError("it was let in")
