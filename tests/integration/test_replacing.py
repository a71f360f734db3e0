"""`import --replace`: what it keeps, what it refuses, and who may write afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from graph_migrator import graph_writer
from graph_migrator.core.embedded import Redis
from graph_migrator.core.settings import settings
from tests.acceptance.cluster import Cluster
from tests.integration.console import Outcome, call
from tests.rows import dump, graph_row, mark_partially_migrated, rows

ADD = text(
    "INSERT INTO graph_migrator.nodes (graph_id, id, label, properties) VALUES (:graph, 'late', 'Person', '{}')"
)


@pytest.fixture
def here(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    """Services without a worker; this process is connected to them."""
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        yield cluster


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two nodes, one with an id that the graph has already, and an edge."""
    records = [
        {"kind": "node", "id": "n0000", "label": "Person", "properties": {"new": True}},
        {"kind": "node", "id": "other", "label": "Person", "properties": {}},
        {"kind": "edge", "id": "e", "source": "n0000", "target": "other", "type": "KNOWS", "properties": {}},
    ]
    found = tmp_path / "new.jsonl"
    found.write_text("".join(json.dumps(record) + "\n" for record in records))
    return found


def replace(file: Path, *more: object, version: int = 1, kind: str = "trail") -> Outcome:
    arguments = ("--slug", "g", "--type", kind, "--version", version, "--replace")
    return call("import", file, *arguments, *more)


def test_a_replaced_graph_keeps_id_slug_and_history(here: Cluster, file: Path) -> None:
    graph = here.add_graph("g", "trail", edges=[("e", "n0000", "n0001")])
    call("migrate", "g", "--to", 2, "--inline")
    created = graph_row(here.engine, "g").created_at
    outcome = replace(file, "--yes")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "g: 2 nodes and 1 edge" in outcome.out
    found = graph_row(here.engine, "g")
    assert (str(found.id), found.version, found.created_at) == (str(graph), 1, created)
    nodes = rows(here.engine, "SELECT id, properties FROM nodes ORDER BY id")
    assert [tuple(each) for each in nodes] == [("n0000", {"new": True}), ("other", {})]
    assert [tuple(e) for e in rows(here.engine, "SELECT source, target FROM edges")] == [("n0000", "other")]
    (migration,) = call("history", "g", "--json").json()
    assert migration["report"]["status"] == "succeeded"
    assert call("validate").exit_code == 0
    said = "now v1; it had 3 nodes and 1 edge at v2"
    assert said in call("history", "g").out
    assert call("migrate", "g", "--to", 3, "--inline").exit_code == 0


def test_replacing_asks_first(here: Cluster, file: Path) -> None:
    here.add_graph("g", "trail")
    before = dump(here.engine)
    assert replace(file).exit_code == 2  # nobody answers
    assert (
        call(
            "import", file, "--slug", "g", "--type", "trail", "--version", 1, "--replace", answer="n\n"
        ).exit_code
        == 1
    )
    assert dump(here.engine) == before


def test_a_graph_in_other_hands_is_not_replaced(here: Cluster, file: Path) -> None:
    here.add_graph("g", "trail")
    call("lock", "g")
    before = dump(here.engine)
    outcome = replace(file, "--yes")
    assert (outcome.exit_code, "its owner locked it" in outcome.err) == (3, True)
    assert dump(here.engine) == before
    call("unlock", "g")
    order = here.steer("fail", "g", "second", "no luck")
    assert call("migrate", "g", "--to", 3, "--inline").exit_code == 1
    order.unlink()
    before = dump(here.engine)
    outcome = replace(file, "--yes")
    assert (outcome.exit_code, "failed and keeps the graph" in outcome.err) == (3, True)
    assert dump(here.engine) == before


def test_open_write_transactions_are_waited_for_and_named(
    here: Cluster, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.add_graph("g", "trail")
    monkeypatch.setenv("GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS", "0.1")
    settings.cache_clear()
    before = dump(here.engine)
    with here.engine.begin() as connection, graph_writer(connection, "g"):
        outcome = replace(file, "--yes")
        assert outcome.exit_code == 3
        assert "open write transactions did not end within 0.1 s: " in outcome.err
        assert "they ended just now" not in outcome.err
    assert dump(here.engine) == before


def test_whoever_began_before_the_replacement_may_not_write_into_it(here: Cluster, file: Path) -> None:
    graph = here.add_graph("g", "trail")
    with here.engine.connect() as connection:
        with connection.begin():
            connection.execute(text("SELECT count(*) FROM graph_migrator.nodes"))
            assert replace(file, "--yes").exit_code == 0
            with pytest.raises(OperationalError, match="after this transaction began"):
                connection.execute(ADD, {"graph": graph})
        with connection.begin():
            connection.execute(ADD, {"graph": graph})
    assert len(rows(here.engine, "SELECT id FROM nodes")) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "batched_trail"}, "is of type 'trail', and a replacement keeps the type"),
        ({"version": 9}, "not 9"),
    ],
    ids=["another type", "an unknown version"],
)
def test_what_cannot_be_replaced_is_left_as_it_is(
    here: Cluster, file: Path, arguments: dict[str, object], says: str
) -> None:
    here.add_graph("g", "trail")
    before = dump(here.engine)
    outcome = replace(file, "--yes", **arguments)
    assert (outcome.exit_code, says in outcome.err) == (2, True)
    assert dump(here.engine) == before


def test_nothing_is_replaced_where_nothing_is(here: Cluster, file: Path) -> None:
    outcome = replace(file, "--yes")
    assert (outcome.exit_code, "there is no graph 'g'" in outcome.err) == (2, True)
    assert not rows(here.engine, "SELECT * FROM nodes")


def test_a_faulty_file_and_a_check_leave_the_old_graph(here: Cluster, file: Path) -> None:
    here.add_graph("g", "trail")
    before = dump(here.engine)
    checked = replace(file, "--check")
    assert (checked.exit_code, "no faults; 2 nodes and 1 edge are sound" in checked.out) == (0, True)
    assert dump(here.engine) == before
    file.write_text(file.read_text() + file.read_text())
    outcome = replace(file, "--yes")
    assert (outcome.exit_code, "already the id of another node" in outcome.err) == (2, True)
    assert dump(here.engine) == before


def test_a_partially_migrated_graph_is_whole_again(here: Cluster, file: Path) -> None:
    here.add_graph("g", "trail")
    mark_partially_migrated(here.engine, "g")
    assert replace(file, "--yes").exit_code == 0
    assert graph_row(here.engine, "g").partially_migrated is None
    assert "at v1, partially migrated" in call("history", "g").out
