"""A graph with its history as one file, imported into another database, and its proof chain going on there."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from graph_migrator import GraphType, HopContext
from graph_migrator.core.audit import portable
from graph_migrator.core.audit.archive import archived_parts
from graph_migrator.core.audit.portable import export_with_history, import_with_history
from graph_migrator.core.audit.validate import validate
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.errors import GraphExists, IllegalTransition, InvalidRequest, UnknownGraph
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors
from tests.rows import add_graph, graph_row, one, properties, rows

kind = GraphType("kind")
broken = [False]


@kind.hop(1, 2)
def first(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET properties = properties || '{\"first\": 1.10}' WHERE graph_id = :graph_id")


@kind.hop(2, 3)
def second(ctx: HopContext) -> None:
    if broken[0]:
        raise ValueError('an ä and a "quote" \\ \t')


@pytest.fixture
def elsewhere(empty_database_url: str) -> Engine:
    upgrade(empty_database_url)
    return make_engine(empty_database_url)


@pytest.fixture
def file(engine: Engine, executors: Executors, tmp_path: Path) -> Path:
    """A graph with three links, one of them a failure, as one file."""
    registry.register(kind)
    add_graph(
        engine,
        "g",
        "kind",
        nodes={"a": {}, "b": {"x": 1}},
        edges=[("e", "a", "b")],
        config={"n": 1.5, "ä": [None]},
    )
    broken[0] = True
    with pytest.raises(ValueError, match="quote"):
        run_graph_migration(executors, "g")
    broken[0] = False
    run_graph_migration(executors, "g")
    with (tmp_path / "g.zip").open("wb") as stream:
        about = export_with_history(engine, "g", stream)
    assert (about.slug, about.version, about.migrations, about.attempts) == ("g", 3, 1, 3)
    return tmp_path / "g.zip"


def test_data_config_history_and_proof_arrive(
    engine: Engine, elsewhere: Engine, file: Path, tmp_path: Path
) -> None:
    report = import_with_history(
        elsewhere, file, tmp_path / "history", slug="copy", graph_type="kind", version=3
    )
    assert (report.nodes, report.edges) == (2, 1)
    assert properties(elsewhere, "copy") == properties(engine, "g")
    row = graph_row(elsewhere, "copy")
    assert (row.version, row.config) == (3, {"n": 1.5, "ä": [None]})
    assert (
        one(elsewhere, "SELECT graph_digest(id) AS d FROM graphs").d
        == one(engine, "SELECT graph_digest(id) AS d FROM graphs").d
    )
    with elsewhere.connect() as connection:
        (part,) = archived_parts(connection, report.graph_id)
    assert (part.location, part.migrations) == (str(tmp_path / "history"), 1)
    executors = Executors(elsewhere)
    run_graph_migration(executors, "copy", 3)
    assert validate(elsewhere, {"kind": kind}).is_valid
    found = verify_chains(elsewhere, archives=[tmp_path / "history"])
    assert (found.archived, found.archived_unread, found.count) == (3, 0, 0)
    back = GraphType("kind")
    back.sql_hop(1, 2, name="n", forward="SELECT 1 WHERE CAST(:graph_id AS text) = ''")
    back.sql_hop(2, 3, name="m", forward="SELECT 1 WHERE CAST(:graph_id AS text) = ''")
    back.sql_hop(3, 4, name="o", forward="SELECT 1 WHERE CAST(:graph_id AS text) = ''")
    registry.reset()
    registry.register(back)
    run_graph_migration(executors, "copy")
    executors.close()
    assert rows(elsewhere, "SELECT link FROM hop_attempts") == [(4,)]
    found = verify_chains(elsewhere, archives=[tmp_path / "history"])
    assert (found.attempts, found.archived, found.count) == (1, 3, 0)


def test_a_copy_of_a_copy_keeps_the_whole_chain(elsewhere: Engine, file: Path, tmp_path: Path) -> None:
    import_with_history(elsewhere, file, tmp_path / "one", slug="copy", graph_type="kind", version=3)
    with (tmp_path / "again.zip").open("wb") as stream:
        about = export_with_history(elsewhere, "copy", stream)
    assert (about.attempts, [run.last_link for run in about.earlier]) == (0, [3])
    import_with_history(
        elsewhere, tmp_path / "again.zip", tmp_path / "two", slug="third", graph_type="kind", version=3
    )
    found = verify_chains(elsewhere, archives=[tmp_path / "one", tmp_path / "two"])
    assert (found.graphs, found.archived, found.archived_unread, found.count) == (2, 6, 3, 0)


def test_what_was_changed_on_the_way_is_found(elsewhere: Engine, file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(damaged, "w") as bundle:
        about = json.loads(whole.read("graph.json"))
        bundle.writestr("graph.jsonl", whole.read("graph.jsonl"))
        bundle.writestr("history.jsonl.gz", whole.read("history.jsonl.gz")[:-1] + b"x")
        bundle.writestr("graph.json", json.dumps(about))
    target = {"slug": "copy", "graph_type": "kind", "version": 3}
    with pytest.raises(InvalidRequest, match=r"not what graph\.json says"):
        import_with_history(elsewhere, damaged, tmp_path / "history", **target)  # type: ignore[arg-type]
    (tmp_path / "text.zip").write_text("dear reader")
    with pytest.raises(InvalidRequest, match="no graph with its history"):
        import_with_history(elsewhere, tmp_path / "text.zip", tmp_path / "history", **target)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="of type 'kind' at v3, not of 'kind' at v2"):
        import_with_history(elsewhere, file, tmp_path / "h", slug="copy", graph_type="kind", version=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(InvalidRequest, match="not empty"):
        import_with_history(elsewhere, file, tmp_path / "full", **target)  # type: ignore[arg-type]
    assert rows(elsewhere, "SELECT * FROM graphs") == rows(elsewhere, "SELECT * FROM archives") == []


def test_a_taken_slug_and_a_failure_half_way_leave_nothing(
    elsewhere: Engine, file: Path, tmp_path: Path
) -> None:
    add_graph(elsewhere, "taken", "kind")
    with pytest.raises(GraphExists):
        import_with_history(elsewhere, file, tmp_path / "a", slug="taken", graph_type="kind", version=3)
    with elsewhere.begin() as connection:
        connection.execute(text("ALTER TABLE archives ADD CONSTRAINT none CHECK (false)"))
    with pytest.raises(Exception, match="none"):
        import_with_history(elsewhere, file, tmp_path / "b", slug="copy", graph_type="kind", version=3)
    assert rows(elsewhere, "SELECT slug FROM graphs") == [("taken",)]


def test_graph_and_history_arrive_with_one_commit(
    elsewhere: Engine, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    register = portable._register

    def watched(connection: Connection, *rest: Any) -> None:
        register(connection, *rest)
        seen.append(rows(elsewhere, "SELECT slug FROM graphs"))

    monkeypatch.setattr(portable, "_register", watched)
    import_with_history(elsewhere, file, tmp_path / "a", slug="copy", graph_type="kind", version=3)
    assert seen == [[]], "nobody sees the graph before its history is there"
    both = "SELECT slug, (SELECT count(*) FROM archives) FROM graphs"
    assert rows(elsewhere, both) == [("copy", 1)]


def test_a_graph_under_migration_is_not_exported(engine: Engine, executors: Executors, file: Path) -> None:
    add_graph(engine, "stuck", "kind")
    broken[0] = True
    with pytest.raises(ValueError, match="quote"):
        run_graph_migration(executors, "stuck")
    broken[0] = False
    for graph, error in (("stuck", IllegalTransition), ("none", UnknownGraph)):
        with pytest.raises(error), Path("/dev/null").open("wb") as stream:
            export_with_history(engine, graph, stream)


def test_the_commands(engine: Engine, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from graph_migrator.core.settings import settings
    from graph_migrator.tasks import runtime
    from tests.integration.console import call

    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    for cached in (runtime.engine, settings):
        cached.cache_clear()
    done = call("export", "g", tmp_path / "out.zip", "--with-history")
    assert (done.exit_code, done.err) == (0, "g at v3, with 1 migration and 3 attempts\n")
    into = ("--slug", "copy", "--type", "kind", "--version", 3, "--with-history", tmp_path / "kept")
    done = call("import", tmp_path / "out.zip", *into)
    assert (done.exit_code, done.out.startswith("copy: 2 nodes and 1 edge")) == (0, True)
    assert call("audit", "verify", "--archive", tmp_path / "kept").exit_code == 0
    assert call("export", "g", "--with-history").exit_code == 2
    assert call("import", "-", *into).exit_code == 2
    runtime.engine.cache_clear()
