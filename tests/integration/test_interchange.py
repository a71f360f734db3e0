"""Graphs into Postgres and out again."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from graph_migrator.core.errors import (
    DanglingEdges,
    GraphExists,
    GraphMigratorError,
    InvalidRecord,
    InvalidRequest,
    UnknownGraph,
)
from graph_migrator.core.interchange import Format, ImportReport, export_graph, import_graph

TABLES = ("graphs", "nodes", "edges", "migrations", "hop_attempts", "checkpoints", "requests")


def load(engine: Engine, data: bytes | str, slug: str = "g", **options: Any) -> ImportReport:
    stream = io.BytesIO(data.encode() if isinstance(data, str) else data)
    return import_graph(engine, stream, **{"slug": slug, "graph_type": "knowledge", "version": 1, **options})


def dump(engine: Engine, graph: str | UUID = "g", form: str = "node-link") -> bytes:
    stream = io.BytesIO()
    export_graph(engine, graph, stream, format=form)
    return stream.getvalue()


def counts(engine: Engine) -> list[int]:
    query = ", ".join(f"(SELECT count(*) FROM graph_migrator.{table})" for table in TABLES)
    with engine.connect() as connection:
        return list(connection.execute(text(f"SELECT {query}")).one())


def rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def forget(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM graph_migrator.graphs"))


def node(id_: str, **properties: Any) -> dict[str, Any]:
    return {"kind": "node", "id": id_, "label": "Person", "properties": properties}


def edge(id_: str, source: str, target: str, **properties: Any) -> dict[str, Any]:
    ends = {"source": source, "target": target}
    return {"kind": "edge", "id": id_, **ends, "type": "KNOWS", "properties": properties}


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def node_link(nodes: list[Any], edges: list[Any], **attributes: Any) -> str:
    return json.dumps({**attributes, "nodes": nodes, "edges": edges})


# ── there and back ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("edges", ["edges", "links"])
def test_les_miserables_comes_back_as_the_same_graph(engine: Engine, edges: str) -> None:
    graph = nx.les_miserables_graph()
    graph.graph["title"] = "Les Misérables"
    report = load(engine, json.dumps(nx.node_link_data(graph, edges=edges)))
    assert (report.slug, report.nodes, report.edges) == ("g", 77, 254)
    assert report.seconds > 0

    back = nx.node_link_graph(json.loads(dump(engine)))
    assert type(back) is nx.Graph
    assert back.graph == {"title": "Les Misérables"}
    assert set(back) == set(graph)
    assert {frozenset((u, v)): w for u, v, w in back.edges.data("weight")} == {
        frozenset((u, v)): w for u, v, w in graph.edges.data("weight")
    }
    assert back.nodes["Valjean"] == {"label": "Node"}

    found = rows(
        engine, "SELECT id, slug, graph_type, version, migration_id, owner_read_only, config FROM graphs"
    )
    config = {"directed": False, "multigraph": False, "graph": {"title": "Les Misérables"}}
    assert found == [(report.graph_id, "g", "knowledge", 1, None, False, config)]
    assert rows(engine, "SELECT changed_at = created_at FROM graphs") == [(True,)]


@pytest.mark.parametrize("form", list(Format))
def test_export_import_export_gives_the_same_bytes(engine: Engine, form: Format) -> None:
    load(engine, json.dumps(nx.node_link_data(nx.les_miserables_graph())))
    first = dump(engine, form=form)
    load(engine, first, "again")
    assert dump(engine, "again", form) == first


def test_the_export_is_readable_line_by_line(engine: Engine) -> None:
    load(engine, node_link([{"id": "b", "n": 1}, {"id": "B"}], [{"source": "b", "target": "B"}], note="x"))
    assert dump(engine).decode() == (
        '{"directed": false,\n"graph": {},\n"multigraph": true,\n"note": "x",\n'
        '"nodes": [\n{"id": "B", "label": "Node"},\n{"id": "b", "label": "Node", "n": 1}\n],\n'
        '"edges": [\n{"id": "0", "source": "b", "target": "B", "type": "RELATED"}\n]}\n'
    )
    assert dump(engine, form="jsonl").decode() == (
        '{"kind": "node", "id": "B", "label": "Node", "properties": {}}\n'
        '{"kind": "node", "id": "b", "label": "Node", "properties": {"n": 1}}\n'
        '{"kind": "edge", "id": "0", "source": "b", "target": "B", "type": "RELATED", "properties": {}}\n'
    )


def test_an_empty_graph_is_a_graph(engine: Engine) -> None:
    report = load(engine, node_link([], []))
    assert (report.nodes, report.edges) == (0, 0)
    again = dump(engine)
    load(engine, again, "again")
    assert dump(engine, "again") == again
    assert dump(engine, form="jsonl") == b""


NUMBERS = ["9007199254740993", "1.0", "1", "1.50", "123456789012345678901234567890", "0.10000000000000000555",
           "-12345678901234567.25", "1E-7", "2e3"]  # fmt: skip


@pytest.mark.parametrize("form", list(Format))
def test_numbers_survive_digit_by_digit(engine: Engine, form: Format) -> None:
    properties = '{"numbers": [' + ", ".join(NUMBERS) + "]}"
    if form is Format.JSON_LINES:
        load(engine, lines(node("a")).replace("{}", properties))
    else:
        load(engine, node_link([{"id": "a"}], []).replace('{"id": "a"}', '{"id": "a", ' + properties[1:]))
    exported = json.loads(dump(engine, form="jsonl"), parse_float=Decimal)["properties"]["numbers"]
    assert [Decimal(number) for number in NUMBERS] == exported
    assert b"1.0, 1, 1.50, 1234567890" in dump(engine, form=form)


@pytest.mark.parametrize("said", [{}, {"directed": False}, {"directed": True}])
def test_a_document_without_directed_is_undirected_and_stays_so(
    engine: Engine, said: dict[str, bool]
) -> None:
    document = node_link([{"id": "b"}, {"id": "a"}], [{"source": "b", "target": "a"}], **said)
    load(engine, document)
    before = nx.node_link_graph(json.loads(document), edges="edges")
    back = nx.node_link_graph(json.loads(dump(engine)), edges="edges")
    assert type(back) is type(before)
    load(engine, dump(engine), "again")
    assert dump(engine, "again") == dump(engine)


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("zero", ["-0.0", "-0", "-0e7", "-0.000E-3"])
def test_a_negative_zero_is_stored_as_zero_and_counted(engine: Engine, form: Format, zero: str) -> None:
    properties = '"x": [ZERO, 0.0, -0.5, 1e-0], "text": "-0.0 \\"-0", "y": {"z": ZERO}'.replace("ZERO", zero)
    if form is Format.NODE_LINK:
        key = '{"source": ZERO, "target": ZERO, "key": ZERO}'
        document = '{"a": ZERO, "nodes": [{"id": ZERO, PROPERTIES}], "edges": [KEY, KEY]}'
        document = document.replace("KEY", key).replace("ZERO", zero).replace("PROPERTIES", properties)
        report = load(engine, document)
        # The document's own, two in the node, and the keys, which stay properties; ids are texts.
        assert report.negative_zeros == 5
        assert rows(engine, "SELECT id FROM nodes") == [(zero,)]
        return
    report = load(engine, lines(node("a"), edge("e", "a", "a")).replace("{}", "{" + properties + "}"))
    assert report.negative_zeros == 4
    exported = json.loads(dump(engine, form=form).split(b"\n")[0], parse_float=str, parse_int=str)[
        "properties"
    ]
    assert exported["y"]["z"].strip("0.") == ""
    assert exported["x"][1:] == ["0.0", "-0.5", "1"]


IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | IDS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(IDS, children, max_size=3),
    max_leaves=5,
)


@st.composite
def graphs(draw: st.DrawFn) -> list[dict[str, Any]]:
    properties = st.dictionaries(
        IDS.filter(lambda key: key not in {"id", "label", "source", "target", "type"}), VALUES
    )
    ids = draw(st.lists(IDS, unique=True, min_size=1, max_size=6))
    found = [{"kind": "node", "id": id_, "label": draw(IDS), "properties": draw(properties)} for id_ in ids]
    ends = st.sampled_from(ids)
    found += [
        {"kind": "edge", "id": id_, "source": draw(ends), "target": draw(ends), "type": draw(IDS),
         "properties": draw(properties)}
        for id_ in draw(st.lists(IDS, unique=True, max_size=6))
    ]  # fmt: skip
    return draw(st.permutations(found))


@given(records=graphs())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_graph_survives_both_formats(engine: Engine, records: list[dict[str, Any]]) -> None:
    forget(engine)
    report = load(engine, lines(*records), "one")
    assert report.nodes + report.edges == len(records)
    as_lines, as_document = dump(engine, "one", "jsonl"), dump(engine, "one")
    load(engine, as_lines, "two")
    load(engine, as_document, "three")
    for slug in ("two", "three"):
        assert dump(engine, slug, "jsonl") == as_lines
        assert dump(engine, slug) == as_document

    def order(record: dict[str, Any]) -> tuple[bool, bytes]:
        return record["kind"] == "edge", record["id"].encode()

    # What docs/formats.md promises: every digit, and of negative zeros how many there were.
    written = json.dumps(records)
    floats: list[str] = []
    json.loads(written, parse_float=floats.append)
    assert report.negative_zeros == floats.count("-0.0")

    def exact(data: str) -> Any:
        return json.loads(data, parse_float=Decimal, parse_int=Decimal)

    # Not splitlines(): it would also break at the rarer line separators of Unicode.
    exported = [exact(line) for line in as_lines.decode().split("\n")[:-1]]
    assert exported == exact(json.dumps(sorted(records, key=order)))


def test_paths_gzip_and_stdin_like_streams_are_read(engine: Engine, tmp_path: Path) -> None:
    data = lines(edge("e", "a", "b"), node("a"), node("b")).encode()
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(data))
    options: dict[str, Any] = {"graph_type": "knowledge", "version": 3}
    import_graph(engine, tmp_path / "g.jsonl.gz", slug="path", **options)
    import_graph(engine, str(tmp_path / "g.jsonl.gz"), slug="text", **options)
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    with open(reading, "rb", buffering=0) as stream:
        import_graph(engine, stream, slug="pipe", **options)
    assert len({dump(engine, slug) for slug in ("path", "text", "pipe")}) == 1


# ── ids of edges ────────────────────────────────────────────────────────────────────────────────────


def edges_of(engine: Engine) -> list[tuple[Any, ...]]:
    return rows(engine, "SELECT id, source || target, properties FROM edges ORDER BY source || target, id")


def test_keys_become_ids_where_no_two_edges_share_one(engine: Engine) -> None:
    ends = {"source": "a", "target": "b"}
    edges = [{**ends, "key": "first"}, {**ends, "key": 2}, {**ends, "key": "tab\t\\x", "w": 1}]
    load(engine, node_link([{"id": "a"}, {"id": "b"}], edges))
    assert edges_of(engine) == [("2", "ab", {}), ("first", "ab", {}), ("tab\t\\x", "ab", {"w": 1})]


@pytest.mark.parametrize("chunk", [1, 1_000])
def test_keys_of_a_networkx_multigraph_stay_properties(
    engine: Engine, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph_migrator.core.interchange.loading._CHUNK_ROWS", chunk)
    graph = nx.MultiDiGraph()
    for source, target, key in [("a", "b", 0), ("a", "b", "KNOWS"), ("b", "a", 0), ("b", "b", "KNOWS")]:
        graph.add_edge(source, target, key, weight=1.5)
    assert load(engine, json.dumps(nx.node_link_data(graph))).edges == 4
    assert [id_ for id_, _, _ in edges_of(engine)] == ["0", "1", "2", "3"]
    back = nx.node_link_graph(json.loads(dump(engine)))
    assert type(back) is nx.MultiDiGraph
    assert set(back.edges(keys=True)) == set(graph.edges(keys=True))


def test_numbers_go_round_the_ids_that_stand_in_the_file(engine: Engine) -> None:
    edges = [
        {"source": "a", "target": "a"},
        {"source": "a", "target": "b"},
        {"source": "b", "target": "a", "id": 1},
        {"source": "b", "target": "b", "key": "0"},
    ]
    load(engine, node_link([{"id": "a"}, {"id": "b"}], edges))
    assert edges_of(engine) == [("2", "aa", {}), ("3", "ab", {}), ("1", "ba", {}), ("0", "bb", {})]


def test_a_key_that_is_another_edges_id_names_nothing(engine: Engine) -> None:
    edges = [{"source": "a", "target": "a", "id": "x"}, {"source": "a", "target": "b", "key": "x", "w": 1}]
    load(engine, node_link([{"id": "a"}, {"id": "b"}], edges))
    assert edges_of(engine) == [("x", "aa", {}), ("0", "ab", {"key": "x", "w": 1})]


def test_many_edges_are_numbered_across_chunks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph_migrator.core.interchange.loading._CHUNK_ROWS", 7)
    monkeypatch.setattr("graph_migrator.core.interchange.edge_spool._IN_MEMORY", 100)
    edges: list[dict[str, Any]] = [{"source": "a", "target": "a", "n": n} for n in range(50)]
    edges += [{"source": "a", "target": "a", "id": str(n)} for n in range(0, 30, 2)]
    report = load(engine, node_link([{"id": "a"}], edges))
    assert report.edges == 65
    numbered = rows(
        engine, "SELECT id::int FROM edges WHERE properties ? 'n' ORDER BY (properties->'n')::int"
    )
    assert numbered == [(n,) for n in range(65) if n >= 30 or n % 2]


# ── refused, and nothing kept ───────────────────────────────────────────────────────────────────────

GOOD = lines(node("a"), node("b"), edge("e", "a", "b"))

LINE = '{"kind": "node", "id": "c", "label": "x", "properties": {}}'
LONG = os.urandom(9_000).hex()
BAD_FILES: dict[str, tuple[str | bytes, int | None, str]] = {
    "empty": ("", None, "file"),
    "not json": (GOOD + "{\n", 4, "record"),
    "not an object": (GOOD + "[]\n", 4, "record"),
    "bad utf-8": (GOOD.encode() + b'{"\xff', 4, "record"),
    "damaged gzip": (gzip.compress(GOOD.encode())[:-6], None, "file"),
    "unknown kind": (GOOD + '{"kind": "x"}', 4, "kind"),
    "unknown field": (GOOD + LINE.replace('"label"', '"colour": 1, "label"'), 4, "colour"),
    "missing id": (GOOD + LINE.replace('"id": "c", ', ""), 4, "id"),
    "wrong type": (GOOD + LINE.replace('"c"', "3"), 4, "id"),
    "nan": (GOOD + LINE.replace("{}", '{"x": NaN}'), 4, "properties.x"),
    "infinity": (GOOD + LINE.replace("{}", '{"x": Infinity}'), 4, "properties.x"),
    "number too large": (GOOD + LINE.replace("{}", '{"x": 1e999999}'), 4, "properties.x"),
    "nul": (GOOD + LINE.replace("{}", '{"x": "\\u0000"}'), 4, "properties.x"),
    "half a surrogate pair": (GOOD + LINE.replace("{}", '{"x": "\\udc00"}'), 4, "properties.x"),
    "node twice": (GOOD + LINE + "\n" + lines(node("a")), 5, "id"),
    "edge twice": (lines(edge("e", "a", "b"), edge("e", "b", "a"), node("a"), node("b")), 2, "id"),
    "id too long for an index": (GOOD + LINE.replace('"c"', f'"{LONG}"'), 4, "record"),
    "document cut off": (node_link([{"id": "a"}], [])[:-3], 1, "edges"),
    "element without id": (node_link([{"id": "a"}, {"x": 1}], []), 1, "nodes[1].id"),
    "element twice": (node_link([{"id": 1}, {"id": 2}, {"id": "1"}], []), 1, "nodes[2].id"),
    "edge element twice": (
        node_link([{"id": 1}], [{"source": 1, "target": 1, "id": "e"}] * 2),
        1,
        "edges[1].id",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_by_line_and_field_and_nothing_is_imported(engine: Engine, name: str) -> None:
    load(engine, GOOD, "before")
    before = counts(engine)
    data, line, field = BAD_FILES[name]
    with pytest.raises(InvalidRecord) as caught:
        load(engine, data)
    error = caught.value
    assert (error.line, error.field) == (line, field)
    assert error.file == "<stream>"
    assert error.exit_code == 2
    assert "Nothing was imported" in str(error)
    assert counts(engine) == before
    load(engine, GOOD)  # the slug is free, nothing is locked


@pytest.mark.parametrize("chunk", [1, 2, 3, 1_000])
def test_a_duplicate_is_named_with_its_id_and_line_wherever_chunks_end(
    engine: Engine, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph_migrator.core.interchange.loading._CHUNK_ROWS", chunk)
    nodes = [node(f"n{i}") for i in range(20)]
    with pytest.raises(InvalidRecord) as caught:
        load(engine, lines(edge("e", "n1", "n2"), *nodes, node("n7"), node("n3"), node("new")))
    assert (caught.value.line, caught.value.field) == (22, "id")
    assert caught.value.reason == "'n7' is already the id of another node"
    assert counts(engine)[:3] == [0, 0, 0]


def test_dangling_edges_are_counted_and_named(engine: Engine) -> None:
    edges = [edge(f"e{i}", "a", f"x{i}") for i in range(7)] + [edge("f", "y", "y"), edge("ok", "a", "a")]
    with pytest.raises(DanglingEdges) as caught:
        load(engine, lines(*edges, node("a")))
    error = caught.value
    assert (error.file, error.count, len(error.examples)) == ("<stream>", 8, 5)
    assert error.examples[0] == "'e0' ('a' → 'x0': no 'x0')"
    assert "(and 3 more)" in str(error)
    with pytest.raises(DanglingEdges) as caught:
        load(engine, node_link([{"id": 1}], [{"source": 1, "target": 1.0}]))
    assert caught.value.examples == ["'0' ('1' → '1.0': no '1.0')"]
    assert counts(engine)[:3] == [0, 0, 0]


def test_an_edge_to_another_graphs_node_dangles(engine: Engine) -> None:
    load(engine, lines(node("elsewhere"), node("a")), "other")
    with pytest.raises(DanglingEdges):
        load(engine, lines(node("a"), edge("e", "a", "elsewhere")))


def test_a_taken_slug_is_refused_and_the_graph_is_as_it_was(engine: Engine) -> None:
    load(engine, GOOD)
    before = dump(engine)
    with pytest.raises(GraphExists) as caught:
        load(engine, lines(node("other")))
    assert caught.value.graph == "g"
    assert dump(engine) == before
    assert counts(engine)[:3] == [1, 2, 1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("slug", bad) for bad in ["", "-a", "a b", "ä", "a" * 101, "a\n", None]),
        *(("slug", bad) for bad in [str(UUID(int=7)), str(UUID(int=10)).upper()]),
        *(("graph_type", bad) for bad in ["", "Knowledge", "a b", "a" * 64, None, "a\n"]),
        *(("version", bad) for bad in [0, -1, True, "1", 1.0, None, 2**31]),
        ("format", "xml"),
    ],
)  # fmt: skip
def test_a_malformed_argument_is_refused_before_the_file_is_read(
    engine: Engine, field: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(engine, GOOD, **{field: value})
    assert caught.value.field == field
    assert counts(engine)[:3] == [0, 0, 0]


def test_what_the_progress_callback_raises_ends_the_import(engine: Engine) -> None:
    def stop(_nodes: int, _edges: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(engine, GOOD, on_progress=stop)
    assert counts(engine)[:3] == [0, 0, 0]


def test_nobody_sees_a_graph_before_it_is_whole(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph_migrator.core.interchange.loading._CHUNK_ROWS", 2)
    seen: list[tuple[tuple[int, int], list[int]]] = []
    load(engine, GOOD, on_progress=lambda nodes, edges: seen.append(((nodes, edges), counts(engine)[:3])))
    assert seen == [((2, 0), [0, 0, 0]), ((2, 1), [0, 0, 0])]
    assert counts(engine)[:3] == [1, 2, 1]


@given(st.binary(max_size=60), st.sampled_from([b"", GOOD.encode(), b'{"nodes": [', b"\x1f\x8b\x08"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_raise_nothing_but_our_errors(engine: Engine, data: bytes, begin: bytes) -> None:
    forget(engine)
    try:
        load(engine, begin + data)
    except GraphMigratorError:
        assert counts(engine)[:3] == [0, 0, 0]


# ── export ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_graph_is_exported_by_slug_or_id_with_its_counts(engine: Engine) -> None:
    imported = load(engine, GOOD, version=4)
    seen: list[tuple[int, int]] = []
    for name in ("g", imported.graph_id, str(imported.graph_id).upper()):
        stream = io.BytesIO()
        report = export_graph(engine, name, stream, format="jsonl", on_progress=lambda *at: seen.append(at))
        assert (report.graph_id, report.slug, report.version) == (imported.graph_id, "g", 4)
        assert (report.format, report.nodes, report.edges) == (Format.JSON_LINES, 2, 1)
        assert stream.getvalue().count(b"\n") == 3
    assert seen[-1] == (2, 1)


@pytest.mark.parametrize("graph", ["missing", str(UUID(int=1)), "", "a\nb"])
def test_an_unknown_graph_is_not_exported(engine: Engine, graph: str) -> None:
    with pytest.raises(UnknownGraph):
        dump(engine, graph)


def test_an_unknown_format_is_not_exported(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"^format: "):
        dump(engine, form="xml")


@pytest.mark.parametrize(
    "record",
    [
        node("z", id="x"),
        node("z", label=1),
        edge("z", "a", "a", type=None),
        edge("z", "a", "a") | {"properties": {"source": 1}},
    ],
)
def test_node_link_refuses_a_property_that_it_cannot_distinguish_from_a_field(
    engine: Engine, record: Any
) -> None:
    load(engine, GOOD + lines(record))
    stream = io.BytesIO()
    with pytest.raises(InvalidRequest, match=r"'z' has a property named .* Use 'jsonl'"):
        export_graph(engine, "g", stream)
    assert stream.getvalue() == b""
    again = dump(engine, form="jsonl")
    load(engine, again, "again")
    assert dump(engine, "again", "jsonl") == again


def test_an_export_is_what_one_transaction_sees(engine: Engine) -> None:
    load(engine, GOOD)
    expected = dump(engine, form="jsonl")

    class Meddling(io.BytesIO):
        def write(self, data: Any) -> int:
            if not self.tell():
                with engine.begin() as connection:
                    connection.execute(text("UPDATE graph_migrator.edges SET type = 'CHANGED'"))
            return super().write(data)

    stream = Meddling()
    export_graph(engine, "g", stream, format="jsonl")
    assert stream.getvalue() == expected
    assert b"CHANGED" in dump(engine)


def test_a_reader_that_goes_away_ends_the_export(engine: Engine) -> None:
    load(engine, lines(*(node(f"n{i}") for i in range(5_000))))

    class Gone(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() > 1_000:
                raise BrokenPipeError
            return super().write(data)

    with pytest.raises(BrokenPipeError):
        export_graph(engine, "g", Gone(), format="jsonl")


# ── larger than memory ──────────────────────────────────────────────────────────────────────────────

MEASURE = """
import resource, sys
from graph_migrator.core.interchange import export_graph, import_graph
from graph_migrator.core.store.connections import make_engine

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

url, path, small, out = sys.argv[1:]
engine = make_engine(url)
for slug, file in (("small", small), ("large", path)):
    import_graph(engine, file, slug=slug, graph_type="knowledge", version=1)
    with open(out, "wb") as stream:
        for form in ("node-link", "jsonl"):
            export_graph(engine, slug, stream, format=form)
    print(peak())
"""


def _records(rows: int) -> Iterator[dict[str, Any]]:
    for i in range(rows):
        yield (
            node(f"n{i}", text="x" * 300) if i % 2 == 0 else edge(f"e{i}", f"n{i - 1}", "n0", text="y" * 300)
        )


def _write_lines(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in _records(rows))


def _write_document(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for kind, opening in (("edge", '{"edges": ['), ("node", '], "nodes": [')):
            separator = opening
            for record in _records(rows):
                if record["kind"] == kind:
                    del record["kind"], record["label" if kind == "node" else "id"]
                    file.write(separator + json.dumps({**record.pop("properties"), **record}))
                    separator = ", "
        file.write("]}")


@pytest.mark.parametrize("write", [_write_lines, _write_document])
def test_memory_does_not_grow_with_the_file(
    database_url: str, tmp_path: Path, write: Callable[[Path, int], None]
) -> None:
    """35 MB, on one line or on 100,000; the process may grow by 15 MB over what a small file needs."""
    small, large = tmp_path / "small", tmp_path / "large"
    write(small, 20_000)
    write(large, 100_000)
    assert large.stat().st_size > 32_000_000
    command = [sys.executable, "-c", MEASURE, database_url, str(large), str(small), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after_small, after_large = map(int, done.stdout.split())
    assert after_large - after_small < 15_000  # kB


# ── the write guard ─────────────────────────────────────────────────────────────────────────────────


def test_an_import_declares_the_version_that_it_writes(engine: Engine) -> None:
    """A database whose writers are all made for v9 still takes a graph at v1, and guards it afterwards."""
    with engine.begin() as connection:
        database = connection.scalar(text("SELECT current_database()"))
        connection.execute(
            text(f"""ALTER DATABASE {database} SET graph_migrator.versions = '{{"knowledge": 9}}'""")
        )
    engine.dispose()  # such a setting holds for new sessions
    load(engine, GOOD)
    with pytest.raises(DBAPIError), engine.begin() as connection:
        connection.execute(text("UPDATE graph_migrator.nodes SET label = 'x'"))
