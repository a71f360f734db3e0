"""Files of other tools into Postgres, checks, and the commands for both."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from graph_migrator.core.errors import GraphExists, InvalidRecord
from graph_migrator.core.interchange import CheckReport, Dialect, check_graph_file, export_graph, import_graph
from tests.acceptance.cluster import Cluster
from tests.integration.console import call, spawn

TARGET: dict[str, Any] = {"slug": "g", "graph_type": "knowledge", "version": 1}


def load(engine: Engine, data: bytes | str, **options: Any) -> Any:
    stream = io.BytesIO(data.encode() if isinstance(data, str) else data)
    return import_graph(engine, stream, **{**TARGET, **options})


def check(engine: Engine, data: str, **options: Any) -> CheckReport:
    return check_graph_file(engine, io.BytesIO(data.encode()), **{**TARGET, **options})


def exported(engine: Engine, slug: str = "g", form: str = "node-link") -> bytes:
    stream = io.BytesIO()
    export_graph(engine, slug, stream, format=form)
    return stream.getvalue()


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        query = "SELECT count(*) FROM graph_migrator.graphs, graph_migrator.nodes, graph_migrator.edges"
        return int(connection.scalar(text(query)) or 0)


# ── there and back ──────────────────────────────────────────────────────────────────────────────────


GRAPHS: dict[str, Any] = {
    "graphml": nx.write_graphml,
    "gexf": nx.write_gexf,
    "cytoscape": lambda graph, stream: stream.write(json.dumps(nx.cytoscape_data(graph)).encode()),
    "node-link": lambda graph, stream: stream.write(json.dumps(nx.node_link_data(graph)).encode()),
}


@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph, nx.MultiGraph, nx.MultiDiGraph])
@pytest.mark.parametrize("dialect", GRAPHS)
def test_a_graph_of_networkx_is_the_same_graph_whatever_it_was_written_in(
    engine: Engine, dialect: str, kind: Any
) -> None:
    graph = kind()
    graph.add_node("a", born=1815, name="Ada")
    graph.add_edge("b", "a", weight=1.5)
    graph.add_edge("b", "b", weight=2.5)
    if graph.is_multigraph():
        graph.add_edge("b", "a", weight=3.5)
    stream = io.BytesIO()
    GRAPHS[dialect](graph, stream)
    report = load(engine, stream.getvalue())
    assert (report.dialect, report.nodes, report.edges) == (Dialect(dialect), 2, graph.number_of_edges())
    back = nx.node_link_graph(json.loads(exported(engine)), edges="edges")
    assert back.is_directed() == graph.is_directed()
    assert back.nodes["a"]["born"] == 1815
    ends = tuple if graph.is_directed() else frozenset
    assert sorted((sorted(ends(e[:2])), e[2]) for e in back.edges.data("weight")) == sorted(
        (sorted(ends(e[:2])), e[2]) for e in graph.edges.data("weight")
    )
    load(engine, exported(engine), slug="again")
    assert exported(engine, "again") == exported(engine)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=4,
)
PROPERTIES = st.dictionaries(
    NAMES.filter(lambda name: name not in {"id", "label", "labels", "source", "target", "type"}),
    VALUES,
    max_size=3,
)


@st.composite
def elements(draw: st.DrawFn) -> tuple[list[Any], list[Any]]:
    ids = draw(st.lists(NAMES, unique=True, min_size=1, max_size=4))
    ends = st.sampled_from(ids)
    nodes = [(id_, draw(NAMES), draw(PROPERTIES)) for id_ in ids]
    edges = [
        (id_, draw(ends), draw(ends), draw(NAMES), draw(PROPERTIES))
        for id_ in draw(st.lists(NAMES, unique=True, max_size=4))
    ]
    return nodes, edges


def as_lines(nodes: list[Any], edges: list[Any]) -> str:
    found = [{"kind": "node", "id": i, "label": la, "properties": p} for i, la, p in nodes]
    found += [
        {"kind": "edge", "id": i, "source": s, "target": t, "type": ty, "properties": p}
        for i, s, t, ty, p in edges
    ]
    return "\n".join(map(json.dumps, found))


def as_apoc(nodes: list[Any], edges: list[Any]) -> str:
    found = [{"type": "node", "id": i, "labels": [la], "properties": p} for i, la, p in nodes]
    found += [
        {"type": "relationship", "id": i, "label": ty, "properties": p, "start": {"id": s}, "end": {"id": t}}
        for i, s, t, ty, p in edges
    ]
    return "\n".join(map(json.dumps, found))


def as_json_graph(nodes: list[Any], edges: list[Any]) -> str:
    return json.dumps({"graph": {
        "nodes": {i: {"label": la, "metadata": p} for i, la, p in nodes},
        "edges": [{"id": i, "source": s, "target": t, "relation": ty, "metadata": p} for i, s, t, ty, p in edges],
    }})  # fmt: skip


def as_cytoscape(nodes: list[Any], edges: list[Any]) -> str:
    found = [{"data": {"id": i, "label": la, **p}} for i, la, p in nodes]
    found += [{"data": {"id": i, "source": s, "target": t, "type": ty, **p}} for i, s, t, ty, p in edges]
    return json.dumps({"elements": found})


@given(graph=elements())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_graph_is_the_same_in_every_dialect(engine: Engine, graph: tuple[list[Any], list[Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM graph_migrator.graphs"))
    load(engine, as_lines(*graph))
    expected = exported(engine, form="jsonl")
    for write in (as_apoc, as_json_graph, as_cytoscape):
        load(engine, write(*graph), slug=write.__name__)
        assert exported(engine, write.__name__, "jsonl") == expected, write.__name__


def test_csv_of_nodes_and_edges_is_one_graph(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "nodes.txt").write_text("person,label,born:int\na,Person,1815\nb,,\n")
    (tmp_path / "edges.txt").write_text("source,target,id\na,b,e\n")
    options: dict[str, Any] = {**TARGET, "edges": tmp_path / "edges.txt", "columns": {"id": "person"}}
    (tmp_path / "bad.txt").write_text("source,target,id\na,b,e\nb,a,e\n")
    with pytest.raises(InvalidRecord, match=r"bad\.txt:3: id: 'e' is already"):
        import_graph(engine, tmp_path / "nodes.txt", **{**options, "edges": tmp_path / "bad.txt"})
    report = import_graph(engine, tmp_path / "nodes.txt", **options)
    assert (report.dialect, report.nodes, report.edges) == (Dialect.CSV, 2, 1)
    assert [json.loads(line)["id"] for line in exported(engine, form="jsonl").splitlines()] == ["a", "b", "e"]


def test_numbers_that_name_no_node_may_be_positions(engine: Engine) -> None:
    document = {"nodes": [{"id": "a"}, {"id": "b"}], "links": [{"source": 0, "target": 1}]}
    with pytest.raises(InvalidRecord, match="positions in 'nodes', convert with Python") as caught:
        load(engine, json.dumps(document))
    assert caught.value.field == "links"
    assert count(engine) == 0


# ── checked ─────────────────────────────────────────────────────────────────────────────────────────


def node(id_: Any, **properties: Any) -> dict[str, Any]:
    return {"kind": "node", "id": id_, "label": "N", "properties": properties}


def edge(id_: str, source: str, target: str) -> dict[str, Any]:
    return {"kind": "edge", "id": id_, "source": source, "target": target, "type": "E", "properties": {}}


def lines(*records: Any) -> str:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)


@pytest.mark.parametrize("chunk", [1, 3, 1_000])
def test_a_check_names_every_fault_and_imports_nothing(
    engine: Engine, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph_migrator.core.interchange.loading._CHUNK_ROWS", chunk)
    good = [node(f"n{i}") for i in range(10)]
    faulty = ["{", node(7), node("n3"), node("ok"), edge("e", "n1", "n2"), node("n5"), edge("e", "n1", "n1")]
    found = check(engine, lines(*good, *faulty, edge("f", "n1", "away"), "[]", edge("g", "gone", "n1")))
    assert found.count == 8, found.faults
    where = {fault.split(": ")[0] for fault in found.faults}
    assert where == {"<stream>", *(f"<stream>:{line}" for line in (11, 12, 13, 16, 17, 19))}
    assert (found.nodes, found.edges) == (11, 3)
    assert any("'n3' is already the id of another node" in fault for fault in found.faults)
    assert any("no 'away'" in fault for fault in found.faults)
    assert not any("Nothing was imported" in fault for fault in found.faults)
    assert count(engine) == 0
    load(engine, lines(*good))  # the slug is free


def test_a_check_counts_beyond_the_first_hundred(engine: Engine) -> None:
    found = check(engine, lines(node("a"), *(edge(f"e{i}", "a", "b") for i in range(150)), *[node("a")] * 60))
    assert (found.count, len(found.faults), found.nodes) == (210, 100, 1)
    found = check(engine, json.dumps({"nodes": [{}] * 250, "edges": []}))
    assert (found.count, len(found.faults)) == (250, 100)


def test_a_check_of_a_sound_file_finds_nothing_and_of_a_broken_one_where_it_ends(engine: Engine) -> None:
    sound = lines(node("a", x=-0.0), edge("e", "a", "a"))
    assert check(engine, sound).model_dump() == {
        "dialect": Dialect.JSON_LINES, "nodes": 1, "edges": 1, "negative_zeros": 1, "count": 0, "faults": [],
    }  # fmt: skip
    found = check(engine, '{"nodes": [{"x": 1}, {"id": 1}, {"id": 2')
    assert [fault.split(": ")[1] for fault in found.faults] == ["nodes[0].id", "nodes[2]"]
    assert "GML" in check(engine, "graph [\n]").faults[0]
    load(engine, sound)
    with pytest.raises(GraphExists):
        check(engine, sound)


# ── the commands ────────────────────────────────────────────────────────────────────────────────────


OPTIONS = ("--slug", "h", "--type", "trail", "--version", 1)


def test_check_prints_faults_and_its_exit_code_says_whether_there_are_any(
    here: Cluster, tmp_path: Path
) -> None:
    file = tmp_path / "g"
    file.write_text(lines(node("a"), node(1), node("a", x=-0.0)))
    outcome = call("import", file, *OPTIONS, "--check")
    assert outcome.exit_code == 2
    assert outcome.out.splitlines() == [
        f"{file}:2: id: must be text, not a number.",
        f"{file}:3: id: 'a' is already the id of another node.",
        f"{file}: 2 faults; 1 node and 0 edges are sound. Nothing was imported.",
    ]
    assert call("import", file, *OPTIONS, "--check", "--json").json()["count"] == 2
    file.write_text(lines(node("a", x=-0.0)))
    outcome = call("import", file, *OPTIONS, "--check")
    assert (outcome.exit_code, outcome.out) == (
        0,
        f"{file}: no faults; 1 node and 0 edges are sound. Nothing was imported.\n",
    )
    outcome = call("import", file, *OPTIONS)
    assert outcome.out.startswith("h: 1 node and 0 edges in ")
    assert "1 number is -0.0 and is stored as 0.0" in outcome.err


def test_csv_is_imported_by_the_command(here: Cluster, tmp_path: Path) -> None:
    nodes, edges = tmp_path / "nodes.csv", tmp_path / "edges.csv"
    nodes.write_text("who,label\na,Person\n")
    edges.write_text("source,target\na,a\n")
    command = ("import", nodes, *OPTIONS, "--edges", edges)
    assert "--column id=HEADER" in call(*command).err
    assert "must be FIELD=HEADER" in call(*command, "--column", "x=who").err
    assert call(*command, "--column", "id=who").out.startswith("h: 1 node and 1 edge in ")


def test_several_labels_are_kept_by_the_command_that_names_a_property(here: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    file.write_text('{"type":"node","id":"0","labels":["A","B"]}')
    outcome = call("import", file, *OPTIONS)
    assert outcome.exit_code == 2
    assert "With --labels-property NAME" in outcome.err
    assert call("import", file, *OPTIONS, "--labels-property", "also").exit_code == 0
    assert json.loads(call("export", "h", "--format", "jsonl").out)["properties"] == {"also": ["B"]}


def test_a_count_goes_to_a_pipe(here: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "g.jsonl"
    file.write_text(lines(node("a"), node("b")))
    assert "read:" not in call("import", file, *OPTIONS).err  # it takes no five seconds
    monkeypatch.setattr("graph_migrator.tasks.cli.import_export._PIPE_SECONDS", 0.0)
    outcome = call("import", file, "--slug", "i", *OPTIONS[2:])
    assert outcome.err == "read: 2 nodes and 0 edges\n"
    assert call("export", "i", tmp_path / "out").err.startswith("written: 2 nodes and 0 edges\n")


def test_a_file_of_another_dialect_is_named_on_standard_error(here: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    file.write_text('{"nodes": [{"id": 1}], "edges": [{"from": 1, "to": 1}]}')
    outcome = spawn("import", file, *OPTIONS, env=here.environment)
    assert outcome.exit_code == 2
    assert "is vis.js's JSON (edges have 'from' and 'to'), which is not imported. jq" in outcome.err
