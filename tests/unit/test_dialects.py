"""Which dialect a file is in, and what each reader makes of it."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import re
import zipfile
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_migrator.core.errors import InvalidRecord, InvalidRequest
from graph_migrator.core.interchange import dialect
from graph_migrator.core.interchange.dialect import Dialect, Foreign, recognise
from graph_migrator.core.interchange.input_file import Faults, open_input
from graph_migrator.core.interchange.json_outline import outline
from graph_migrator.core.interchange.readers import reader_of
from graph_migrator.core.interchange.records import Choices, EdgeRecord, NodeRecord

GRAPH = nx.les_miserables_graph()


def written(write: Any, graph: Any = None) -> bytes:
    stream = io.BytesIO()
    write(GRAPH if graph is None else graph, stream)
    return stream.getvalue()


def read(
    data: bytes | str, chosen: str | None = None, edges: str | None = None, **choices: Any
) -> tuple[Dialect, dict[str, Any], list[NodeRecord | EdgeRecord]]:
    with contextlib.ExitStack() as stack:
        stream = io.BytesIO(data.encode() if isinstance(data, str) else data)
        source, found = stack.enter_context(open_input(stream, chosen))
        second = None
        if edges is not None:
            second, _ = stack.enter_context(open_input(io.BytesIO(edges.encode()), "csv"))
        reader = reader_of(found, source, second, Choices(**choices))
        records = list(reader.records())
        return found, reader.attributes, records


def plain(records: list[NodeRecord | EdgeRecord]) -> list[tuple[Any, ...]]:
    """The records without their places, the properties read."""
    return [
        (*(r[1:3]), json.loads(r.properties))
        if isinstance(r, NodeRecord)
        else (*(r[1:5]), json.loads(r.properties))
        for r in records
    ]


def refusal(data: bytes | str, **given: Any) -> InvalidRecord:
    with pytest.raises(InvalidRecord) as caught:
        read(data, **given)
    assert str(caught.value).encode()
    return caught.value


# ── recognised ──────────────────────────────────────────────────────────────────────────────────────

APOC_NODE = '{"type":"node","id":"0","labels":["User"],"properties":{"name":"Adam","n":1.50}}'
APOC_EDGE = (
    '{"id":"0","type":"relationship","label":"KNOWS","properties":{"since":1993},'
    '"start":{"id":"0","labels":["User"]},"end":{"id":"0","labels":["User"],"properties":{"name":"Adam"}}}'
)
KNOWN: dict[str, tuple[bytes | str, Dialect]] = {
    "node-link": (json.dumps(nx.node_link_data(GRAPH)), Dialect.NODE_LINK),
    "node-link, indented": (json.dumps(nx.node_link_data(GRAPH), indent=1), Dialect.NODE_LINK),
    "own lines": ('{"kind":"node","id":"a","label":"x"}\n', Dialect.JSON_LINES),
    "own lines, kind last": ('{"id":"a","properties":{"type":"node"},"kind":"node"}\n{}', Dialect.JSON_LINES),
    "APOC": (f"{APOC_NODE}\n{APOC_EDGE}\n", Dialect.APOC),
    "APOC, an edge first": (APOC_EDGE, Dialect.APOC),
    "JSON Graph Format 2": ('{"graph": {"nodes": {"a": {}}}}', Dialect.JSON_GRAPH),
    "JSON Graph Format 1": ('{"graph": {"label": "x",\n"nodes": [{"id": "a"}]}}', Dialect.JSON_GRAPH),
    "JSON Graph Format, graphs": ('{"graphs": [{"nodes": {}}]}', Dialect.JSON_GRAPH),
    "Cytoscape": (json.dumps(nx.cytoscape_data(GRAPH)), Dialect.CYTOSCAPE),
    "Cytoscape, a list": ('{"elements": [{"data": {"id": "a"}}]}', Dialect.CYTOSCAPE),
    "GraphML": (written(nx.write_graphml), Dialect.GRAPHML),
    "GEXF": (written(nx.write_gexf), Dialect.GEXF),
    "GraphML, commented": ('<?xml version="1.0"?><!-- x -->\n<graphml/>', Dialect.GRAPHML),
    "CSV": ("id,name\n1,Ada\n", Dialect.CSV),
    "CSV, tabs": ("name\tid\nAda\t1\n", Dialect.CSV),
    "CSV of Neo4j": ("personId:ID(Person);name;:LABEL\n1;Ada;Person\n", Dialect.CSV),
    "CSV, edges": ('"Source","Target"\n1,2\n', Dialect.CSV),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_dialect_is_recognised_by_its_content(name: str) -> None:
    data, expected = KNOWN[name]
    data = data.encode() if isinstance(data, str) else data
    for form in (data, gzip.compress(data), b"\xef\xbb\xbf" + data, b"\n \n" + data):
        with open_input(io.BytesIO(form), None) as (_, found):
            if form is not data and expected in {Dialect.GRAPHML, Dialect.GEXF} and form[:1] == b"\n":
                continue  # an XML declaration stands at the very beginning
            assert found is expected


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("graph.json", "{}")
    return stream.getvalue()


PATH = nx.path_graph(3)
FOREIGN: dict[str, tuple[bytes | str, Foreign]] = {
    "zip": (zipped(), dialect.ZIP),
    "UTF-16": ('{"nodes": []}'.encode("utf-16"), dialect.UTF_16),
    "UTF-16, no mark": ('{"nodes": []}'.encode("utf-16-le"), dialect.UTF_16),
    "UTF-16, big": ('{"nodes": []}'.encode("utf-16-be"), dialect.UTF_16),
    "UTF-32": ('{"nodes": []}'.encode("utf-32"), dialect.UTF_32),
    "D3 by position": (
        '{"nodes": [{"name": "Myriel", "group": 1}], "links": [{"source": 0, "target": 0}]}',
        dialect.D3_POSITIONS,
    ),
    "vis.js": ('{"nodes": [{"id": 1, "label": "x"}], "edges": [{"from": 1, "to": 1}]}', dialect.VIS),
    "graphology": (
        '{"options": {"type": "mixed"}, "nodes": [{"key": "a", "attributes": {}}], "edges": []}',
        dialect.GRAPHOLOGY,
    ),
    "CX": ('[{"numberVerification": [{"longNumber": 281474976710655}]}]', dialect.CX),
    "CX2": ('[{"CXVersion": "2.0", "hasFragments": false}]', dialect.CX),
    "bare elements": ('[{"group": "nodes", "data": {"id": "a"}}]', dialect.ELEMENTS),
    "GML": ("".join(line + "\n" for line in nx.generate_gml(GRAPH)), dialect.GML),
    "GML, commented": ('Creator "igraph"\nVersion 1\ngraph\n[\n  directed 1\n]', dialect.GML),
    "DOT": ('digraph "G" {\n  a -> b;\n}', dialect.DOT),
    "DOT, strict": ("/* x */ strict graph\n{ a -- b }", dialect.DOT),
    "Pajek": (written(nx.write_pajek, nx.path_graph(["a", "b"])), dialect.PAJEK),
    "Turtle": ("# x\n@prefix foaf: <http://xmlns.com/foaf/0.1/> .\n", dialect.TURTLE),
    "Turtle, SPARQL": ("PREFIX a: <http://a/>\na:b a:c a:d .", dialect.TURTLE),
    "N-Triples": ("<http://a/b> <http://a/c> <http://a/d> .\n", dialect.TURTLE),
    "adjacency": (json.dumps(nx.adjacency_data(PATH)), dialect.ADJACENCY),
    "tree": (json.dumps(nx.tree_data(nx.path_graph(3, nx.DiGraph), 0)), dialect.TREE),
    "edge list": (written(nx.write_edgelist, GRAPH.subgraph([])) or b"a b\nb c\n", dialect.EDGE_LIST),
    "edge list, data": (written(nx.write_edgelist, PATH), dialect.EDGE_LIST),
    "adjacency list": (written(nx.write_adjlist, PATH), dialect.EDGE_LIST),
    "APOC, one document": ('{"nodes": [{"type": "node", "id": "0", "labels": []}], "rels": []}', dialect.APOC_DOCUMENT),
    "APOC, an array": (f"[{APOC_NODE}]", dialect.APOC_DOCUMENT),
    "APOC, CSV": ('"_id","_labels","name","_start","_end","_type"\n"0",":User","x",,,\n', dialect.APOC_CSV),
    "Cypher": ("CREATE (a:Person {name: 'Ada'});", dialect.CYPHER),
    "JSON-LD": ('{"@context": "https://schema.org"}', dialect.JSON_LD),
    "edges alone": ('[{"source": 1, "target": 2}]', dialect.EDGES_ONLY),
    "pairs": ("[[1, 2], [2, 3]]", dialect.PAIRS),
    "other XML": ('<?xml version="1.0"?><svg></svg>', dialect.XML),
    "pickle": (pickle.dumps(PATH, 4), dialect._CONTAINERS[-1][1]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_read_is_named_with_the_way_to_convert_it(name: str) -> None:
    data, expected = FOREIGN[name]
    error = refusal(data)
    assert (error.line, error.field, error.reason) == (None, "file", expected.sentence)
    assert re.search(
        r"Python: |jq |iconv |unzip |CALL apoc|rdflib|In Cytoscape|Convert it|Map its", error.reason
    )


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("adjacency", lambda data: nx.node_link_data(nx.adjacency_graph(json.loads(data)))),
        ("tree", lambda data: nx.node_link_data(nx.tree_graph(json.loads(data)))),
        ("GML", lambda data: nx.node_link_data(nx.parse_gml(data))),
        ("edge list, data", lambda data: nx.node_link_data(nx.read_edgelist(io.BytesIO(data)))),
        ("Pajek", lambda data: nx.node_link_data(nx.read_pajek(io.BytesIO(data)))),
    ],
)
def test_the_conversions_give_what_is_imported(name: str, convert: Any) -> None:
    found, _, records = read(json.dumps(convert(FOREIGN[name][0])))
    assert found is Dialect.NODE_LINK
    assert records


def test_an_outline_knows_the_first_values_by_their_paths() -> None:
    assert outline('{"a": [{"b": "x\\"}"}, {"c": 1}], "d": {"e": null}, "f": tr') == {
        "": "{", "a": "[", "a[0]": "{", "a[0].b": '"x\\"}"', "d": "{", "d.e": "null", "f": "tr",
    }  # fmt: skip
    assert outline('{"a": "cut off {') == {"": "{"}
    assert outline("[" * 1_000) == dict.fromkeys(["", "[0]", "[0][0]", "[0][0][0]", "[0][0][0][0]"], "[")
    assert outline('"' + '\\"' * 100_000) == {}  # in one pass, not one a quote


# ── APOC ────────────────────────────────────────────────────────────────────────────────────────────


def test_apoc_lines_are_read() -> None:
    found, attributes, records = read(f"{APOC_NODE}\n{APOC_EDGE}\n")
    assert (found, attributes) == (Dialect.APOC, {})
    assert plain(records) == [
        ("0", "User", {"name": "Adam", "n": 1.5}),
        ("0", "0", "0", "KNOWS", {"since": 1993}),
    ]
    assert '"n":1.50' in records[0].properties


SEVERAL = APOC_NODE.replace('["User"]', '["User","Admin","Person"]')


def test_several_labels_are_refused_or_kept_where_the_caller_says() -> None:
    for data, field in (
        (SEVERAL, "labels"),
        ('{"nodes": [{"id": "0", "labels": ["User", "Admin", "Person"]}], "edges": []}', "nodes[0].labels"),
        ('{"elements": [{"data": {"id": "0", "labels": ["User", "Admin", "Person"]}}]}', "elements[0].data.labels"),
        ('{"graph": {"nodes": {"0": {"labels": ["User", "Admin", "Person"]}}}}', "graph.nodes['0'].labels"),
        (":ID,:LABEL\n0,User;Admin;Person\n", "labels"),
    ):  # fmt: skip
        error = refusal(data)
        assert error.field == field
        assert (
            "3 labels (User, Admin, Person), and a node has one. With --labels-property NAME" in error.reason
        )
        (node,) = read(data, labels_property="also")[2]
        assert isinstance(node, NodeRecord)
        assert node.label == "User"
        assert json.loads(node.properties)["also"] == ["Admin", "Person"]
    error = refusal(SEVERAL, labels_property="name")
    assert (error.field, "another name" in error.reason) == ("properties.name", True)


def test_one_label_of_a_list_is_the_label_and_none_is_node() -> None:
    for labels, label in ('["User"]', "User"), ("[]", "Node"):
        (node,) = read(APOC_NODE.replace('["User"]', labels))[2]
        assert plain([node])[0][1] == label
        assert "labels" not in node.properties
        (node,) = read(f'{{"nodes": [{{"id": 1, "labels": {labels}}}], "edges": []}}')[2]
        assert plain([node]) == [("1", label, {})]
    # Beside a label it is a property like any other: an export writes it so.
    (node,) = read('{"nodes": [{"id": 1, "label": "A", "labels": ["B", "C"]}], "edges": []}')[2]
    assert plain([node]) == [("1", "A", {"labels": ["B", "C"]})]


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (APOC_NODE.replace('"node"', '"path"'), "type", "'node' or 'relationship'"),
        (APOC_NODE.replace('"id":"0",', ""), "id", "is missing"),
        (APOC_NODE.replace('["User"]', '"User"'), "labels", "must be a list"),
        (APOC_NODE.replace('["User"]', "[1]"), "labels[0]", "must be text"),
        (APOC_NODE.replace('"id"', '"x":1,"id"'), "x", "is unknown"),
        (APOC_NODE.replace("1.50", "NaN"), "properties.n", "NaN is no JSON number"),
        (APOC_EDGE.replace('"start":{"id":"0",', '"start":{'), "start.id", "is missing"),
        (APOC_EDGE.replace('"start":{"id"', '"start":{"x":1,"id"'), "start.x", "is unknown"),
        (APOC_EDGE.replace('"label":"KNOWS"', '"label":7'), "label", "must be text"),
        (APOC_EDGE.replace('"end":{', '"finish":{'), "finish", "is unknown"),
    ],
)
def test_a_bad_line_of_apoc_is_named(line: str, field: str, reason: str) -> None:
    error = refusal(f"{APOC_NODE}\n{line}\n")
    assert (error.line, error.field) == (2, field)
    assert reason in error.reason


# ── JSON Graph Format ───────────────────────────────────────────────────────────────────────────────

JGF = {
    "label": "Cars",
    "type": "of interest",
    "metadata": {"since": 1},
    "nodes": {"a": {"label": "Car", "metadata": {"wheels": 4}}, "b": {}},
    "edges": [
        {"source": "a", "target": "b", "relation": "PASSES", "directed": False, "metadata": {"at": 1.5}},
        {"id": "e", "source": "a", "target": "b", "label": "x"},
    ],
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("around", ["graph", "graphs"])
def test_json_graph_format_is_read(version: int, around: str) -> None:
    graph = dict(JGF)
    if version == 1:
        graph["nodes"] = [{"id": id_, **node} for id_, node in JGF["nodes"].items()]
    found, attributes, records = read(json.dumps({around: graph if around == "graph" else [graph]}))
    assert found is Dialect.JSON_GRAPH
    said = {"label": "Cars", "type": "of interest", "metadata": {"since": 1}}
    assert attributes == {"directed": True, "graph": said}
    assert plain(records) == [
        ("a", "Car", {"wheels": 4}),
        ("b", "Node", {}),
        (None, "a", "b", "PASSES", {"directed": False, "at": 1.5}),
        ("e", "a", "b", "RELATED", {"label": "x"}),
    ]


@pytest.mark.parametrize(
    ("document", "field", "reason"),
    [
        ('{"graphs": [{"nodes": {}}, {"nodes": {}}]}', "graphs[1]", "a second graph"),
        ('{"graphs": []}', "graphs", "is empty"),
        ('{"graph": {"nodes": {}}, "graph": {}}', "graph", "a second graph"),
        ('{"graph": {"nodes": {}, "hyperedges": []}}', "graph.hyperedges", "not imported"),
        ('{"graph": {"nodes": {}, "nodes": {}}}', "graph.nodes", "a second time"),
        ('{"graph": {"nodes": {"a": []}}}', "graph.nodes['a']", "must be an object"),
        (
            '{"graph": {"nodes": {"a": {"x": 1, "metadata": {"x": 2}}}}}',
            "graph.nodes['a'].x",
            "beside and inside",
        ),
        ('{"graph": {"nodes": [], "edges": [{"source": "a"}]}}', "graph.edges[0].target", "is missing"),
        ('{"graph": {"nodes": [], "directed": 1}}', "graph.directed", "true or false"),
        ('{"graph": {"nodes": [], "metadata": {"x": NaN}}}', "graph.metadata.x", "NaN"),
        ('{"graph": {"nodes": [1]', "graph.nodes[0]", "must be an object"),
    ],
)
def test_a_bad_json_graph_is_named(document: str, field: str, reason: str) -> None:
    error = refusal(document)
    assert error.field == field
    assert reason in error.reason


# ── Cytoscape ───────────────────────────────────────────────────────────────────────────────────────

NODES = [
    {"data": {"id": "a", "label": "Person", "n": 1}, "position": {"x": 1.5, "y": 2}},
    {"data": {"id": 2}},
]
EDGES = [
    {"data": {"id": "e", "source": "a", "target": 2, "interaction": "pp"}, "classes": "x"},
    {"data": {"source": "a", "target": "a", "type": "T", "interaction": "pp"}},
]


@pytest.mark.parametrize(
    "elements",
    [
        {"nodes": NODES, "edges": EDGES},
        [*NODES, *EDGES],
        [*({"group": "nodes", **n} for n in NODES), *({"group": "edges", **e} for e in EDGES)],
    ],
)
def test_cytoscape_is_read(elements: Any) -> None:
    found, attributes, records = read(json.dumps({"data": {"name": "x"}, "elements": elements}))
    assert (found, attributes) == (Dialect.CYTOSCAPE, {"data": {"name": "x"}, "directed": False})
    assert plain(records) == [
        ("a", "Person", {"n": 1, "position": {"x": 1.5, "y": 2}}),
        ("2", "Node", {}),
        ("e", "a", "2", "pp", {"classes": "x"}),
        (None, "a", "a", "T", {"interaction": "pp"}),
    ]


@pytest.mark.parametrize(
    ("document", "field", "reason"),
    [
        ('{"elements": [7]}', "elements[0]", "must be an object"),
        ('{"elements": [{"data": 7}]}', "elements[0].data", "must be an object"),
        ('{"elements": [{"group": ["nodes"], "data": {}}]}', "elements[0].group", "must be"),
        ('{"elements": [{"group": "edges", "data": {"id": "a"}}]}', "elements[0].data.source", "is missing"),
        ('{"elements": [{"data": {"x": 1}}]}', "elements[0].data.id", "is missing"),
        ('{"elements": [{"data": {"id": 1, "x": NaN}}]}', "elements[0].data.x", "NaN"),
        ('{"elements": [{"data": {"id": 1, "x": 1}, "x": 2}]}', "elements[0].x", "beside and inside"),
        ('{"elements": {"nodes": [], "hyper": []}}', "elements.hyper", "neither"),
        ('{"elements": {"nodes": [], "nodes": []}}', "elements.nodes", "a second time"),
        ('{"elements": {}, "elements": {}}', "elements", "a second time"),
    ],
)
def test_a_bad_cytoscape_document_is_named(document: str, field: str, reason: str) -> None:
    error = refusal(document)
    assert error.field == field
    assert reason in error.reason


# ── CSV ─────────────────────────────────────────────────────────────────────────────────────────────


def test_plain_csv_is_read_as_text() -> None:
    nodes = 'id,label,name,born\n1,Person,"Ada, ""the"" first\nprogrammer",1815\n\n2,,Charles,\n'
    found, _, records = read(nodes, edges="source,target,type,weight\n1,2,KNOWS,1.50\n2,1,,\n")
    assert found is Dialect.CSV
    assert plain(records) == [
        ("1", "Person", {"name": 'Ada, "the" first\nprogrammer', "born": "1815"}),
        ("2", "Node", {"name": "Charles"}),
        (None, "1", "2", "KNOWS", {"weight": "1.50"}),
        (None, "2", "1", "RELATED", {}),
    ]
    assert [r.place.line for r in records] == [2, 5, 2, 3]


def test_csv_of_neo4j_is_read_with_its_types() -> None:
    nodes = (
        "personId:ID(P),name,born:int,score:double,tags:string[],big:long,ok:boolean,x:IGNORE,:LABEL\n"
        'p1,Ada,1815,1.50,a;b,9007199254740993,TRUE,?,Person\n"p2",,,,,,false,,\n'
    )
    _, _, records = read(nodes, edges=":START_ID(P),since:int,:END_ID(P),:TYPE\np1,1830,p2,KNOWS\n")
    assert plain(records) == [
        ("p1", "Person", {"personId": "p1", "name": "Ada", "born": 1815, "score": 1.5, "tags": ["a", "b"],
                          "big": 9007199254740993, "ok": True}),
        ("p2", "Node", {"personId": "p2", "ok": False}),
        (None, "p1", "p2", "KNOWS", {"since": 1830}),
    ]  # fmt: skip
    assert '"score":1.50' in records[0].properties


def test_columns_are_mapped_to_fields() -> None:
    columns = {"id": "person", "source": "who", "target": "whom", "type": "how"}
    _, _, records = read(
        "person;name;id\na;Ada;7\n", edges="who;whom;how;from\na;a;KNOWS;x\n", columns=columns
    )
    assert plain(records) == [
        ("a", "Node", {"name": "Ada", "id": "7"}),
        (None, "a", "a", "KNOWS", {"from": "x"}),
    ]


@pytest.mark.parametrize(
    ("nodes", "edges", "line", "field", "reason"),
    [
        ("id,n\n1\n", None, 2, "record", "has 1 columns, and the header has 2"),
        ("id,n\n,x\n", None, 2, "id", "is empty"),
        ("id,n:int\n1,x\n", None, 2, "n:int", "'x' is no number"),
        ("id,n:int[]\n1,1;true\n", None, 2, "n:int[][1]", "'true' is no number"),
        ("id,n:float\n1,NaN\n", None, 2, "n", "NaN is no JSON number"),
        ("id,n:boolean\n1,yes\n", None, 2, "n:boolean", "neither true nor false"),
        ("id,n:colour\n1,x\n", None, 1, "n:colour", "of no known type"),
        ("id,id\n1,1\n", None, 1, "id", "twice"),
        ("id,n,n\n1,1,1\n", None, 1, "n", "twice"),
        ('id,n\n1,"x\n', None, 2, "record", "is not CSV"),
        ('id,n\n1,"x"y\n', None, 2, "record", "is not CSV"),
        ("id\n\udcff\n".encode("utf-8", "surrogateescape"), None, 2, "record", "is not UTF-8: byte 0xff"),
        ("id,n\n1,\0\n", None, 2, "n", "u0000"),
        ("source,target\n1,2\n", None, 1, "file", "holds edges"),
        ("name,label\n1,2\n", None, 1, "id", "--column id=HEADER"),
        ("id\n1\n", "a,b\n1,2\n", 1, "source", "--column source=HEADER"),
        ("id\n1\n", "source,target\n1,\n", 2, "target", "is empty"),
    ],
)
def test_a_bad_row_of_csv_is_named(nodes: Any, edges: str | None, line: int, field: str, reason: str) -> None:
    error = refusal(nodes, chosen="csv", edges=edges)
    assert (error.line, error.field) == (line, field)
    assert reason in error.reason


def test_a_mapped_column_must_be_there() -> None:
    assert "no column" in refusal("id\n1\n", columns={"label": "kind"}).reason


def test_a_file_of_edges_or_columns_belong_to_csv() -> None:
    with pytest.raises(InvalidRequest, match="belongs to a CSV file of nodes"):
        read('{"nodes": [], "edges": []}', edges="source,target\n")
    with pytest.raises(InvalidRequest, match="only CSV has columns"):
        read('{"nodes": [], "edges": []}', columns={"id": "x"})


# ── GraphML and GEXF ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("write", [nx.write_graphml, nx.write_gexf])
@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph, nx.MultiDiGraph])
def test_xml_of_networkx_is_read(write: Any, kind: Any) -> None:
    graph = kind()
    graph.add_node("a", label="Person", born=1815, score=1.5, ok=True)
    graph.add_node("b")
    graph.add_edge("a", "b", weight=2.5, type="KNOWS")
    _, attributes, records = read(written(write, graph))
    assert attributes["directed"] is graph.is_directed()
    nodes = {r.id: r for r in records if isinstance(r, NodeRecord)}
    assert nodes["a"].label == "Person"
    assert json.loads(nodes["a"].properties) == {"born": 1815, "score": 1.5, "ok": True}
    (edge,) = (r for r in records if isinstance(r, EdgeRecord))
    assert (edge.source, edge.target) == ("a", "b")
    assert json.loads(edge.properties)["weight"] == 2.5


GRAPHML = '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{}</graphml>'


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (GRAPHML.format(""), "holds 0 graphs"),
        (GRAPHML.format('<graph edgedefault="directed"/>' * 2), "holds 2 graphs"),
        (GRAPHML.format('<graph edgedefault="directed"><node id="a"><graph edgedefault="directed"/></node></graph>'),
         "nested"),
        (GRAPHML.format('<graph edgedefault="directed"><hyperedge/></graph>'), "no edge with two ends"),
        (GRAPHML.format('<graph edgedefault="directed"><node id="a"><port name="p"/></node></graph>'),
         "NetworkX leaves something out"),
        (GRAPHML.format('<graph edgedefault="directed"><node/></graph>'), "has no 'id'"),
        (GRAPHML.format('<graph edgedefault="directed"><node id="a"/><edge source="a" target="b"/></graph>'),
         "holds 1 nodes, and NetworkX makes 2"),
        (GRAPHML.format('<graph edgedefault="directed"><node id="a"/><node id="a"/></graph>'), "holds 2 nodes"),
        ("<graphml", "is not XML"),
        ('<gexf version="9"><graph/></gexf>', "NetworkX cannot read it"),
    ],
)  # fmt: skip
def test_xml_that_would_lose_something_is_refused(document: str, reason: str) -> None:
    chosen = "gexf" if document.startswith("<gexf") else "graphml"
    assert reason in refusal(document, chosen=chosen).reason


def test_a_float_that_is_no_number_is_named_in_xml() -> None:
    graph = nx.Graph()
    graph.add_node("a", x=float("nan"))
    error = refusal(written(nx.write_graphml, graph))
    assert (error.field, error.reason) == ("node 'a'.x", "nan is no JSON number")


def test_apoc_labels_in_graphml_are_labels() -> None:
    graph = nx.DiGraph()
    graph.add_node("n0", labels=":Person")
    graph.add_edge("n0", "n0", label="KNOWS")
    _, _, records = read(written(nx.write_graphml, graph))
    assert plain(records) == [("n0", "Person", {}), (None, "n0", "n0", "KNOWS", {})]


def test_networkx_that_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "networkx", None)
    with pytest.raises(InvalidRequest, match=re.escape("pip install 'graph-migrator[networkx]'")):
        read(GRAPHML.format(""), chosen="graphml")


def test_xml_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph_migrator.core.interchange.xml_graphs.LARGEST", 100)
    assert "larger than 100 bytes" in refusal(written(nx.write_graphml)).reason


# ── links by position ───────────────────────────────────────────────────────────────────────────────


def networkx_1(graph: Any) -> dict[str, Any]:
    """What NetworkX 1 wrote: ends are positions."""
    place = {node: at for at, node in enumerate(graph)}
    return {
        "directed": False, "multigraph": False, "graph": {},
        "nodes": [{"id": node} for node in graph],
        "links": [{"source": place[u], "target": place[v]} for u, v in graph.edges],
    }  # fmt: skip


@pytest.mark.parametrize("nodes", [[3, 1, 2, 0], [10, 11, 12, 13], [1, 2, 3, 4], [4, 3, 2, 1], [1, 0, 2, 3]])
@pytest.mark.parametrize("links_first", [False, True])
def test_links_by_position_into_numbered_nodes_are_refused(nodes: list[int], links_first: bool) -> None:
    graph = nx.Graph()
    graph.add_nodes_from(nodes)
    nx.add_path(graph, nodes)
    document = networkx_1(graph)
    if links_first:
        document = {"links": document.pop("links"), **document}
    error = refusal(json.dumps(document))
    assert error.field == "links"
    assert "by position" in error.reason
    found = re.search(r"json\.load\(open\(FILE\)\); (.*); json\.dump", error.reason)
    assert found
    scope = {"d": document}
    exec(found[1], scope)  # the conversion that the error names
    back = nx.node_link_graph(document, edges="edges")
    assert nx.utils.graphs_equal(back, graph)
    read(json.dumps(document))


@pytest.mark.parametrize("edges", ["links", "edges"])
def test_links_by_id_are_read(edges: str) -> None:
    for nodes in ([0, 1, 2, 3], [10, 11, 12, 13], [1, 2, 3, 4], [3, 1, 0, 2], ["0", "1", "2", "x"]):
        graph = nx.Graph()
        graph.add_nodes_from(nodes)
        nx.add_path(graph, nodes)
        _, _, records = read(json.dumps(nx.node_link_data(graph, edges=edges)))
        assert {(r.source, r.target) for r in records if isinstance(r, EdgeRecord)} == {
            (str(u), str(v)) for u, v in graph.edges
        }


# ── checked ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_check_reads_on_behind_a_faulty_record() -> None:
    for data, expected in (
        ("\n".join([APOC_NODE, "{", APOC_NODE.replace('"0"', "[]"), APOC_NODE]), [(2, "record"), (3, "id")]),
        ('{"nodes": [{}, {"id": 1}, {"id": []}], "edges": [{}]}',
         [(1, "nodes[0].id"), (1, "nodes[2].id"), (1, "edges[0].source")]),
        ("id,n:int\n1,x\n2,2\n,\n", [(2, "n:int"), (4, "id")]),
    ):  # fmt: skip
        faults = Faults()
        with open_input(io.BytesIO(data.encode()), None, faults) as (source, found):
            records = list(reader_of(found, source, None, Choices()).records())
        assert [(e.line, e.field) for e in faults.first if isinstance(e, InvalidRecord)] == expected
        assert faults.count == len(expected)
        assert records


# ── whatever comes ──────────────────────────────────────────────────────────────────────────────────

SEEDS = [data.encode() if isinstance(data, str) else data for data, _ in [*KNOWN.values(), *FOREIGN.values()]]


def only_our_errors(data: bytes, chosen: str | None = None) -> None:
    with contextlib.suppress(InvalidRecord):
        read(data, chosen)


@given(st.data())
def test_a_damaged_file_of_any_dialect_raises_nothing_but_our_errors(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from(SEEDS))
    start = data.draw(st.integers(0, min(len(good), 3_000)))
    end = data.draw(st.integers(start, min(len(good), start + 20)))
    inserted = data.draw(
        st.binary(max_size=5) | st.sampled_from([b'"', b"{", b"]", b"<", b"NaN", b"\0", b",", b"\n"])
    )
    damaged = good[:start] + inserted + good[end:]
    recognise(damaged)
    only_our_errors(damaged, data.draw(st.sampled_from([None, *Dialect])))


@given(st.binary(max_size=200), st.sampled_from([None, *Dialect]))
def test_arbitrary_bytes_raise_nothing_but_our_errors(data: bytes, chosen: str | None) -> None:
    only_our_errors(data, chosen)


FIELDS = ["id", "data", "group", "labels", "label", "metadata", "source", "target", "start", "end", "type"]
PARTS = ["properties", "nodes", "edges", "graph", "graphs", "elements", "from", "key"]
KEYS = st.sampled_from([*FIELDS, *PARTS])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["node", "relationship", "nodes", "\0"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(KEYS, children, max_size=5),
    max_leaves=15,
)


@given(JSON | st.dictionaries(KEYS, JSON), st.sampled_from([None, *Dialect]))
def test_arbitrary_json_raises_nothing_but_our_errors(value: Any, chosen: str | None) -> None:
    only_our_errors(json.dumps(value).encode(), chosen)
