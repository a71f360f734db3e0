"""Content digests before and after each hop, and what `audit verify --data` and `validate --data` say of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext, Node, Nodes
from graph_migrator.core.audit.digests import verify_data
from graph_migrator.core.audit.validate import validate
from graph_migrator.core.errors import UnknownGraph
from graph_migrator.core.execution.in_process import execute_migration, run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from graph_migrator.core.store.writers import graph_writer
from tests.rows import add_graph, one, rows

fails_at: list[str] = []


class Named(BaseModel):
    """What a node holds at v2."""

    name: str


kept = GraphType("kept", digest=True, nodes={3: {"Node": Named}})


@kept.hop(1, 2)
def label(ctx: HopContext) -> None:
    """One transaction; reports its progress, as a long hop does."""
    ctx.execute("UPDATE nodes SET properties = '{\"step\": 1}' WHERE graph_id = :graph_id")
    ctx.progress(1, 2)


@kept.hop(2, 3, over=Nodes(), batch_size=10)
def name(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        if node.id in fails_at:
            raise ValueError(node.id)
        node.properties["name"] = node.id


@kept.hop(3, 4, when=lambda ctx: False)
def skip(ctx: HopContext) -> None: ...


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_BATCH_TARGET_SECONDS", "0.000001")
    settings.cache_clear()
    registry.register(kept)
    fails_at.clear()


def digest(engine: Engine, graph: str) -> str:
    return str(one(engine, "SELECT graph_digest(id) AS d FROM graphs WHERE slug = :s", s=graph).d)


def recorded(engine: Engine) -> list[tuple[Any, ...]]:
    return rows(
        engine, "SELECT to_version, status, digest_before, digest_after FROM hop_attempts ORDER BY id"
    )


def test_a_digest_ignores_order_and_sees_every_change(engine: Engine) -> None:
    properties = {"a": {"x": 1, "y": 2}, "b": {}}
    add_graph(engine, "g", "kept", nodes=properties, edges=[("e", "a", "b")])
    add_graph(engine, "h", "kept", nodes={"b": {}, "a": {"y": 2, "x": 1}}, edges=[("e", "a", "b")])
    add_graph(engine, "nothing", "kept", nodes=0)
    first = digest(engine, "g")
    assert first == digest(engine, "h")
    assert (first.split(":")[0], digest(engine, "nothing")) == ("3", "0:0:0")
    for change in (
        "UPDATE nodes SET properties = '{\"x\": 1, \"y\": 3}' WHERE id = 'a'",
        "UPDATE nodes SET label = 'Other' WHERE id = 'a'",
        "UPDATE edges SET source = 'b', target = 'a'",
        "UPDATE edges SET type = 'Other'",
        "DELETE FROM edges",
    ):
        with engine.connect() as connection, connection.begin() as transaction:
            connection.execute(text(change))
            now = connection.execute(text("SELECT graph_digest(id) FROM graphs WHERE slug = 'g'")).scalar()
            transaction.rollback()
        assert now != first, change


def test_digests_of_two_halves_add_up(engine: Engine) -> None:
    add_graph(engine, "whole", "kept", nodes={"a": {}, "b": {}, "c": {}})
    add_graph(engine, "left", "kept", nodes={"a": {}})
    add_graph(engine, "right", "kept", nodes={"b": {}, "c": {}})
    parts = [list(map(int, digest(engine, each).split(":"))) for each in ("left", "right", "whole")]
    assert [(a + b) % 2**64 for a, b in zip(parts[0], parts[1], strict=True)] == parts[2]


def test_each_hop_records_the_data_before_and_after_it(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "kept", nodes=25)
    before = digest(engine, "g")
    run_graph_migration(executors, "g")
    (first, second, third) = recorded(engine)
    assert first[:3] == (2, "succeeded", before)
    assert first[3] == second[2] != before
    assert second[3] == third[2] == third[3] == digest(engine, "g")
    assert third[1] == "skipped"


def test_a_hop_that_is_resumed_keeps_the_digest_from_before_its_first_batch(
    engine: Engine, executors: Executors
) -> None:
    add_graph(engine, "g", "kept", 2, nodes=25)
    before = digest(engine, "g")
    fails_at.append("n0015")
    with pytest.raises(ValueError, match="n0015"):
        run_graph_migration(executors, "g", 3)
    assert digest(engine, "g") != before, "a batch was committed"
    fails_at.clear()
    run_graph_migration(executors, "g", 3)
    assert recorded(engine) == [
        (3, "failed", before, None),
        (3, "succeeded", before, digest(engine, "g")),
    ]


def test_a_migration_in_the_callers_transaction_records_them_too(engine: Engine) -> None:
    add_graph(engine, "g", "kept")
    with engine.begin() as connection:
        execute_migration(connection, "g", 2)
    assert recorded(engine)[0][3] == digest(engine, "g")


def test_a_type_without_it_records_nothing(engine: Engine, executors: Executors) -> None:
    plain = GraphType("plain")
    plain.sql_hop(1, 2, name="nothing", forward="SELECT 1 WHERE CAST(:graph_id AS text) IS NULL")
    registry.register(plain)
    add_graph(engine, "g", "plain")
    run_graph_migration(executors, "g")
    assert recorded(engine) == [(2, "succeeded", None, None)]


def test_verify_data_names_graphs_that_were_changed_since_their_last_hop(
    engine: Engine, executors: Executors
) -> None:
    for slug in ("a", "b", "never"):
        add_graph(engine, slug, "kept")
    for slug in ("a", "b"):
        run_graph_migration(executors, slug)
    found = verify_data(engine)
    assert (found.graphs, found.migrating, found.without_digest, found.differences) == (2, 0, 1, ())
    with engine.begin() as connection, graph_writer(connection, "a", version=4):
        connection.execute(
            text(
                "DELETE FROM nodes WHERE id = 'n0000' AND graph_id = (SELECT id FROM graphs WHERE slug = 'a')"
            )
        )
    (one_,) = verify_data(engine).differences
    assert (one_.graph, one_.version, one_.now) == ("a", 4, digest(engine, "a"))
    assert verify_data(engine, ["b"]).differences == ()
    assert verify_data(engine, ["b"]).graphs == 1
    with pytest.raises(UnknownGraph):
        verify_data(engine, ["unheard-of"])


def test_validate_data_names_rows_that_the_models_do_not_take(engine: Engine) -> None:
    add_graph(engine, "fits", "kept", 3, nodes={"a": {"name": "Ada"}})
    add_graph(engine, "breaks", "kept", 3, nodes={"a": {"name": "Ada"}, "b": {"name": 7}, "c": {}})
    add_graph(engine, "other-version", "kept", 2, nodes={"a": {}})
    assert validate(engine, {"kept": kept}).is_valid
    (found,) = validate(engine, {"kept": kept}, data=True).discrepancies
    assert (found.check, found.count, found.found) == (
        "data", 2, "rows of kept v3 do not fit the models of that version",
    )  # fmt: skip
    assert sorted(found.examples) == [
        "breaks: node 'b': name (string_type)",
        "breaks: node 'c': name (missing)",
    ]
    assert len(validate(engine, {"kept": kept}, data=True, sample=2).discrepancies) == 1


def test_the_commands(engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch) -> None:
    from graph_migrator.tasks import runtime
    from tests.integration.console import call

    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    runtime.engine.cache_clear()
    settings.cache_clear()
    add_graph(engine, "g", "kept")
    run_graph_migration(executors, "g", 2)
    done = call("audit", "verify", "--data", "--graph", "g")
    assert (done.exit_code, "data of 1 graph compared: 1 as the last hop left them" in done.out) == (0, True)
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'X'"))
    done = call("audit", "verify", "--data")
    assert done.exit_code == 1
    assert "✗ g: not what attempt 1 left at v2 (3 rows as then, with other contents)" in done.out
    assert call("audit", "verify", "--graph", "g").exit_code == 2
    assert call("validate", "--sample", 3).exit_code == 2
    assert call("validate", "--data", "--sample", 3).exit_code in {0, 1}
    runtime.engine.cache_clear()
