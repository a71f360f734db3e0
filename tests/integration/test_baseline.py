"""`baseline` adopts graphs that were migrated by other means; the audit accounts for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext, Nodes
from graph_migrator.core.audit.baseline import baseline
from graph_migrator.core.audit.validate import validate
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.errors import (
    GraphPartiallyMigrated,
    IllegalTransition,
    InvalidRequest,
    UnknownGraph,
    UnknownGraphType,
    UnknownTarget,
)
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.execution.model import Caller
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection.history import history
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from graph_migrator.core.store.writers import graph_writer
from tests.rows import add_graph, dump, graph_row, one, rows

kind = GraphType("kind")
broken = [False]


@kind.hop(1, 2)
def first(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = 'A' WHERE graph_id = :graph_id")


@kind.hop(2, 3, over=Nodes(), batch_size=2)
def second(ctx: HopContext, nodes: list[object]) -> None:
    if broken[0] and len(nodes) == 1:
        raise ValueError("stop")


@kind.detect
def version_of(ctx: HopContext) -> int | None:
    found = ctx.execute("SELECT max(properties ->> 'v') FROM nodes WHERE graph_id = :graph_id").scalar()
    return None if found is None else int(found)


WHY = Caller(None, "ada", "moved by a script in 2019")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_BATCH_TARGET_SECONDS", "0.000001")
    settings.cache_clear()
    registry.register(kind)
    broken[0] = False


def set_version(executors: Executors, graph: str, version: int | None) -> int:
    with executors.borrow() as executor:
        return baseline(executor, graph, version, WHY).to_version


def test_the_version_moves_and_history_says_who_and_why(engine: Engine, executors: Executors) -> None:
    graph = add_graph(engine, "g", "kind")
    data = dump(engine)["nodes"]
    assert set_version(executors, "g", 2) == 2
    row = graph_row(engine, "g")
    assert (row.version, row.migration_id, row.changed_at is None) == (2, None, False)
    assert dump(engine)["nodes"] == data
    (story,) = history(engine, "g")
    report = story.report
    assert (report.status, report.from_version, report.to_version) == ("succeeded", 1, 2)
    assert (report.requested_by, report.reason) == ("ada", "moved by a script in 2019")
    assert [(a.hop_name, a.status) for a in story.attempts] == [("baseline", "skipped")]
    request = one(engine, "SELECT * FROM requests WHERE graph_id = :g", g=graph)
    assert (request.verb, request.target, request.requested_by) == ("baseline", 2, "ada")
    assert request.answered_at is not None
    assert validate(engine, {"kind": kind}).discrepancies == ()
    assert verify_chains(engine).count == 0
    run_graph_migration(executors, "g")
    assert graph_row(engine, "g").version == 3
    assert validate(engine, {"kind": kind}).discrepancies == ()


def test_a_writer_of_the_new_version_gets_in_at_once(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "kind")
    set_version(executors, "g", 3)
    with engine.begin() as connection, graph_writer(connection, "g", version=3):
        connection.execute(text("UPDATE nodes SET label = 'new'"))


def test_a_graph_at_a_version_that_its_type_does_not_know_can_be_adopted(
    engine: Engine, executors: Executors
) -> None:
    add_graph(engine, "g", "kind", 9)
    set_version(executors, "g", 3)
    assert graph_row(engine, "g").version == 3


def test_the_data_says_which_version_it_is(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "kind", nodes={"a": {"v": "3"}})
    add_graph(engine, "silent", "kind", nodes={"a": {}})
    assert set_version(executors, "g", None) == 3
    with pytest.raises(InvalidRequest, match="gave None"):
        set_version(executors, "silent", None)


def test_a_detect_function_cannot_write(engine: Engine, executors: Executors) -> None:
    writing = GraphType("writing")
    writing.sql_hop(1, 2, name="n", forward="SELECT 1 WHERE CAST(:graph_id AS text) = ''")

    @writing.detect
    def write(ctx: HopContext) -> int:
        ctx.execute("UPDATE nodes SET label = 'X' WHERE graph_id = :graph_id")
        return 2

    registry.register(writing)
    add_graph(engine, "g", "writing")
    with pytest.raises(Exception, match="read-only transaction"):
        set_version(executors, "g", None)
    assert graph_row(engine, "g").version == 1


def test_what_is_refused_changes_nothing(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "kind")
    add_graph(engine, "other", "unheard-of")
    before = dump(engine)
    for graph, version, error in (
        ("none", 2, UnknownGraph),
        ("g", 4, UnknownTarget),
        ("other", 2, UnknownGraphType),
    ):
        with pytest.raises(error):
            set_version(executors, graph, version)
    with executors.borrow() as executor:
        assert baseline(executor, "g", 3, WHY, dry_run=True).changes
        assert not baseline(executor, "g", 1, WHY).changes
    with executors.borrow() as executor, pytest.raises(InvalidRequest, match="from v2 to v1 meanwhile"):
        baseline(executor, "g", 3, WHY, from_version=2)
    with executors.borrow() as executor, pytest.raises(InvalidRequest, match="reason"):
        baseline(executor, "g", 3, Caller(None, "ada", " "))
    assert dump(engine) == before


def test_a_graph_in_migration_is_refused(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "kind", nodes=3)
    broken[0] = True
    with pytest.raises(ValueError, match="stop"):
        run_graph_migration(executors, "g")
    with pytest.raises(IllegalTransition, match="cannot baseline"):
        set_version(executors, "g", 3)
    with executors.borrow() as executor:
        operations.release(executor, "g", force=True)
    with pytest.raises(GraphPartiallyMigrated):
        set_version(executors, "g", 3)


def test_the_command(
    engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from graph_migrator.tasks import runtime
    from tests.integration.console import call

    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    for cached in (runtime.engine, runtime.executors, settings):
        cached.cache_clear()
    for slug in ("a", "b", "c"):
        add_graph(engine, slug, "kind", nodes={"n": {"v": "2"}})
    why = ("--reason", "restored")
    asked = call("baseline", "a", "--version", 2, *why, answer="n\n")
    assert (asked.exit_code, "a: v1 → v2, data as it is" in asked.err) == (1, True)
    assert graph_row(engine, "a").version == 1
    done = call("baseline", "a", "--version", 2, *why, "--yes")
    assert (done.exit_code, done.out) == (0, "a: v2 (was v1)\n")
    (tmp_path / "list").write_text("# of 2019\nb 3\nnobody, 2\n")
    done = call("baseline", "--from", tmp_path / "list", *why, "--yes")
    assert (done.exit_code, done.out) == (2, "b: v3 (was v1)\n")
    assert "there is no graph 'nobody'" in done.err
    (tmp_path / "list").write_text("b three\n")
    assert "line 1 of" in call("baseline", "--from", tmp_path / "list", *why, "--yes").err
    detected = call("baseline", "--type", "kind", "--detect", *why, "--yes", "--json").json()
    assert [(each["graph"], each["to_version"]) for each in detected] == [("a", 2), ("b", 2), ("c", 2)]
    assert rows(engine, "SELECT DISTINCT version FROM graphs") == [(2,)]
    for wrong in (
        ("a",),
        ("a", "--version", 2, "--detect"),
        ("--detect",),
        ("a", "--type", "kind", "--detect"),
    ):
        assert call("baseline", *wrong, *why).exit_code == 2
    runtime.engine.cache_clear()
