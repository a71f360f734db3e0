"""Reading files: what is read, and what each bad record is called."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_migrator.core.errors import InvalidRecord, InvalidRequest
from graph_migrator.core.interchange import json_window
from graph_migrator.core.interchange.dialect import Dialect
from graph_migrator.core.interchange.exact_json import Unstorable, decode_line, encode
from graph_migrator.core.interchange.input_file import InputFile, open_input
from graph_migrator.core.interchange.node_link import NodeLinkReader
from graph_migrator.core.interchange.readers import reader_of
from graph_migrator.core.interchange.records import Choices, EdgeRecord, NodeRecord

NODE = '{"kind":"node","id":"a","label":"Person","properties":{}}'
EDGE = '{"kind":"edge","id":"e","source":"a","target":"a","type":"KNOWS","properties":{}}'


def read(data: bytes, chosen: str | None = None) -> list[NodeRecord | EdgeRecord]:
    with open_input(io.BytesIO(data), chosen) as (source, found):
        return list(reader_of(found, source, None, Choices()).records())


def refusal(data: bytes | str, chosen: str | None = None) -> InvalidRecord:
    with pytest.raises(InvalidRecord) as caught:
        read(data.encode() if isinstance(data, str) else data, chosen)
    assert caught.value.file == "<stream>"
    assert str(caught.value).encode()
    return caught.value


def element(text: str, kind: str = "nodes") -> str:
    other = "edges" if kind == "nodes" else "nodes"
    return f'{{"directed": true,\n"{other}": [],\n"{kind}": [\n{text}\n]}}'


# ── numbers and text ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "number",
    ["1", "1.0", "1.50", "-0.0", "9007199254740993", "123456789012345678901234567890", "1e5", "1E-7", "0.1e1",
     "0.1000000000000000055511151231257827021181583404541015625", "1e131071", "0e99", "9" * 5000],
)  # fmt: skip
def test_a_number_is_carried_as_it_is_written(number: str) -> None:
    assert encode(decode_line(f'{{"n": [{number}]}}'.encode())) == f'{{"n":[{number}]}}'


@pytest.mark.parametrize("number", ["1e131072", "1e-16384", "-1e999999999", "1e99999999999999999999999"])
def test_a_number_beyond_postgres_is_refused_with_its_path(number: str) -> None:
    with pytest.raises(Unstorable) as caught:
        encode(decode_line(f'{{"a": {{"b": [0, {number}]}}}}'.encode()))
    assert caught.value.path == ".a.b[1]"
    assert number in caught.value.reason


@pytest.mark.parametrize("text", [r"\\u0000", r"\\\\u0000", r"\u0001", r"\ud83d\ude00", "😀", r"\"\\"])
def test_text_that_postgres_stores_is_not_refused(text: str) -> None:
    value = decode_line(f'{{"t": "{text}"}}'.encode())
    assert json.loads(encode(value)) == json.loads(f'{{"t": "{text}"}}')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (r"x\u0000", "u0000"),
        (r"\\\u0000", "u0000"),
        (r"\ud800", "surrogate"),
        (r"\ud83d\u0041", "surrogate"),
        (r"\ude00\ud83d", "surrogate"),
    ],
)
def test_text_that_postgres_cannot_store_is_refused_everywhere(text: str, reason: str) -> None:
    for place, line in {
        "id": NODE.replace('"a"', f'"{text}"'),
        "label": NODE.replace('"Person"', f'"{text}"'),
        "properties.t[0]": NODE.replace("{}", f'{{"t":["{text}"]}}'),
        "properties": NODE.replace("{}", f'{{"{text}":1}}'),
        "source": EDGE.replace('"source":"a"', f'"source":"{text}"'),
        "type": EDGE.replace('"KNOWS"', f'"{text}"'),
    }.items():
        error = refusal(f"{NODE}\n{line}\n")
        assert (error.line, error.field) == (2, place)
        assert reason in error.reason
    for field in ("id", "label", "other"):
        error = refusal(element(json.dumps({"id": "a", field: "@"}).replace("@", text)))
        assert (error.line, error.field) == (4, f"nodes[0].{field}")
        assert reason in error.reason


# ── JSON Lines ──────────────────────────────────────────────────────────────────────────────────────


def test_json_lines_are_read_in_any_order_with_blank_lines_between() -> None:
    edge, node = read(f"\n{EDGE}\r\n \n{NODE}".encode(), "jsonl")
    assert isinstance(edge, EdgeRecord)
    assert (edge.id, edge.source, edge.target, edge.type, edge.properties) == ("e", "a", "a", "KNOWS", "{}")
    assert isinstance(node, NodeRecord)
    assert (node.id, node.label, node.properties, node.place.line) == ("a", "Person", "{}", 4)


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ("{", "record", "not JSON"),
        ("nonsense", "record", "not JSON"),
        (NODE + "}", "record", "something follows"),
        ("[]", "record", "must be an object, not a list"),
        ("3", "record", "must be an object, not a number"),
        ("{}", "kind", "is missing"),
        ('{"kind":"hyperedge"}', "kind", "'node' or 'edge'"),
        ('{"kind":["node"]}', "kind", "'node' or 'edge'"),
        ('{"kind":"node","label":"x"}', "id", "is missing"),
        ('{"kind":"node","id":"x"}', "label", "is missing"),
        (NODE.replace('"id":"a"', '"id":1'), "id", "must be text, not a number"),
        (NODE.replace('"id":"a"', '"id":1.5'), "id", "must be text, not a number"),
        (NODE.replace('"id":"a"', '"id":null'), "id", "must be text, not null"),
        (NODE.replace('"Person"', "true"), "label", "must be text, not a boolean"),
        (NODE.replace("{}", "[]"), "properties", "must be an object, not a list"),
        (NODE.replace("{}", "null"), "properties", "must be an object, not null"),
        (NODE.replace('"label"', '"labels":1,"label"'), "labels", "unknown"),
        (EDGE.replace('"id":"e",', ""), "id", "is missing"),
        (EDGE.replace('"source":"a"', '"source":{}'), "source", "must be text, not an object"),
        (EDGE.replace('"target":"a",', ""), "target", "is missing"),
        (EDGE.replace('"type"', '"label"'), "label", "unknown"),
        (NODE.replace("{}", '{"x":NaN}'), "properties.x", "NaN is no JSON number"),
        (NODE.replace("{}", '{"x":-Infinity}'), "properties.x", "-Infinity is no JSON number"),
        (NODE.replace("{}", '{"x":1e400000}'), "properties.x", "beyond what Postgres can hold"),
        (NODE.replace("{}", '{"x":' + "[" * 500 + "]" * 500 + "}"), "properties", "nested too deeply"),
        (NODE.replace("{}", '{"x":' + "[" * 99999 + "}"), "record", "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_with_line_field_and_reason(line: str, field: str, reason: str) -> None:
    error = refusal(f"{NODE}\n\n{line}\n{EDGE}\n", "jsonl")
    assert (error.line, error.field) == (3, field)
    assert reason in error.reason


def test_bad_utf8_is_named_with_its_line_in_both_formats() -> None:
    error = refusal(f"{NODE}\n".encode() + NODE.encode().replace(b"Person", b"\xff"), "jsonl")
    assert (error.line, error.field) == (2, "record")
    assert "0xff" in error.reason
    error = refusal(element('{"id": "a"},\n{"id": "@"}').encode().replace(b"@", b"\xed\xa0\x80"))
    assert error.line == 5
    assert "0xed" in error.reason


def test_a_line_too_long_to_be_one_is_refused_without_being_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph_migrator.core.interchange.input_file.LONGEST_RECORD", 200)
    assert "longer than 200" in refusal(NODE + "\n" + NODE.replace("{}", '{"x":"' + "y" * 200 + '"}')).reason


# ── node-link ───────────────────────────────────────────────────────────────────────────────────────


def test_les_miserables_is_read_as_networkx_writes_it() -> None:
    graph = nx.les_miserables_graph()
    records = read(json.dumps(nx.node_link_data(graph)).encode())
    assert {r.id for r in records if isinstance(r, NodeRecord)} == set(graph)
    edges = [r for r in records if isinstance(r, EdgeRecord)]
    assert [(e.id, e.key, e.type) for e in edges] == [(None, None, "RELATED")] * 254
    weights = {(e.source, e.target): json.loads(e.properties) for e in edges}
    assert weights == {(u, v): data for u, v, data in graph.edges(data=True)}


def test_label_type_id_and_key_are_taken_out_and_the_rest_are_properties() -> None:
    document = {
        "edges": [
            {"source": 1, "target": 2.5, "id": 7, "key": "k", "type": "KNOWS", "since": 1815},
            {"source": "1", "target": "x", "key": 3, "since": 1816},
        ],
        "nodes": [{"id": 1, "label": "Person", "age": 3}, {"id": 12345678901234567890}],
        "graph": {"title": "x"},
    }
    with open_input(io.BytesIO(json.dumps(document).encode()), None) as (source, _):
        reader = NodeLinkReader(source)
        records = [tuple(record)[1:] for record in reader.records()]
    assert reader.attributes == {"graph": {"title": "x"}, "directed": False}
    assert records == [
        ("7", "1", "2.5", "KNOWS", '{"key":"k","since":1815}', None),
        (None, "1", "x", "RELATED", '{"since":1816}', 3),
        ("1", "Person", '{"age":3}'),
        ("12345678901234567890", "Node", "{}"),
    ]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64])
def test_a_document_cut_anywhere_by_the_window_is_read_the_same(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {
        "directed": False,
        "graph": {"n": -1.5e10, "t": True, "z": None},
        "nodes": [{"id": 'ä😀\\"\n', "n": [1, 12.5, {"x": "]},"}]}, {"id": -17}, {"id": 1e22}],
        "links": [{"source": "a", "target": "b", "key": 12345678901234567890}],
        "number": 1234567,
    }
    for text in (json.dumps(document), json.dumps(document, indent=3, ensure_ascii=False)):
        whole = read(text.encode())
        with monkeypatch.context() as patch:
            patch.setattr(json_window, "_WINDOW", window)
            cut = read(text.encode())
        assert _plain(cut) == _plain(whole)


def _plain(records: list[Any]) -> list[Any]:
    return [[str(value) for value in record] for record in records]


@pytest.mark.parametrize(
    ("document", "line", "field", "reason"),
    [
        ("[]", 1, "document", "must be an object"),
        ('"x"', 1, "document", "must be an object"),
        ("{", 1, "document", "a key in quotes is missing"),
        ("{}", None, "nodes", "is missing"),
        ('{"nodes": []}', None, "edges", "is missing"),
        ('{"links": []}', None, "nodes", "is missing"),
        ('{"nodes": {}}', 1, "nodes", "must be a list"),
        ('{"nodes": [],\n"edges": []', 2, "document", "missing (the file ends here)"),
        ('{"nodes": [],\n"edges": []} x', 2, "document", "something follows"),
        ('{"nodes": [],\n"edges": []}{}', 2, "document", "something follows"),
        ('{"nodes": [],\n"nodes": []}', 2, "nodes", "a second time"),
        ('{"nodes": [],\n"edges": [],\n"links": []}', 3, "links", "a second time"),
        ('{"nodes": [],\n"edges" []}', 2, "document", "':' is missing"),
        ('{"nodes": [],}', 1, "document", "a key in quotes is missing"),
        ('{"nodes": [\n{"id": 1},\n]}', 3, "nodes[1]", "not JSON"),
        ('{"nodes": [\n{"id": 1}\n{"id": 2}]}', 3, "nodes[1]", "',' or ']' is missing"),
        ('{"nodes": [\n{"id": 1,\n "x": nope}]}', 3, "nodes[0]", "not JSON"),
        ('{"nodes": [\n{"id": 1,\n "x": NaN}]}', 2, "nodes[0].x", "NaN is no JSON number"),
        ('{"nodes": [\n{"id": 1,\n "x": "a\nb"}]}', 3, "nodes[0]", "not JSON"),
        ('{"nodes": [\n{"id": "never closed', 2, "nodes[0]", "Unterminated string"),
        ('{"directed": 1, "nodes": []}', 1, "directed", "must be true or false"),
        ('{"multigraph": null}', 1, "multigraph", "must be true or false"),
        ('{"graph": []}', 1, "graph", "must be an object"),
        ('{"graph": {"a": "\\u0000"}}', 1, "graph.a", "u0000"),
        ('{"\\u0000": 1}', 1, "document", "has a key that contains"),
        (element("17"), 4, "nodes[0]", "must be an object, not a number"),
        (element('{"id": "a"},\n{"name": "b"}'), 5, "nodes[1].id", "is missing"),
        (element('{"id": ["a", 1]}'), 4, "nodes[0].id", "must be text or a number, not a list"),
        (element('{"id": NaN}'), 4, "nodes[0].id", "NaN is no JSON number"),
        (
            element('{"id": 1, "x": {"y": [0, -Infinity]}}'),
            4,
            "nodes[0].x.y[1]",
            "-Infinity is no JSON number",
        ),
        ('{"graph": {"a": NaN}}', 1, "graph.a", "NaN is no JSON number"),
        (element('{"id": true}'), 4, "nodes[0].id", "must be text or a number, not a boolean"),
        (element('{"id": null}'), 4, "nodes[0].id", "must be text or a number, not null"),
        (element('{"id": 1, "label": 3}'), 4, "nodes[0].label", "must be text, not a number"),
        (element('{"id": 1, "x": [1e999999]}'), 4, "nodes[0].x[0]", "beyond what Postgres can hold"),
        (element('{"target": "a"}', "edges"), 4, "edges[0].source", "is missing"),
        (element('{"source": "a"}', "links"), 4, "links[0].target", "is missing"),
        (element('{"source": "a", "target": {}}', "edges"), 4, "edges[0].target", "not an object"),
        (element('{"source": 1, "target": 1, "type": 1}', "edges"), 4, "edges[0].type", "must be text"),
        (element('{"source": 1, "target": 1, "id": null}', "edges"), 4, "edges[0].id", "not null"),
        (element('{"source": 1, "target": 1, "key": []}', "edges"), 4, "edges[0].key", "not a list"),
        ('{"nodes": [' + "[" * 99999, 1, "nodes[0]", "nested too deeply"),
    ],
)
def test_a_bad_document_is_named_with_line_element_and_reason(
    document: str, line: int | None, field: str, reason: str
) -> None:
    error = refusal(document)
    assert (error.line, error.field) == (line, field)
    assert reason in error.reason


def test_an_element_too_long_to_be_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_window, "LONGEST_RECORD", 1_000)
    monkeypatch.setattr(json_window, "_WINDOW", 100)
    document = element(json.dumps({"id": "x" * 10_000}))
    assert "longer than 1,000" in refusal(document).reason


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data", [b"", b" \n\r\n\t", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0), b" " * 100]
)
@pytest.mark.parametrize("chosen", [None, "jsonl", "node-link"])
def test_an_empty_file_is_refused(data: bytes, chosen: str | None) -> None:
    error = refusal(data, chosen)
    assert (error.field, error.reason) == ("file", "is empty")


def test_endless_blanks_are_refused() -> None:
    assert "blanks" in refusal(b" " * 1_000_000 + b"{}").reason


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("g.jsonl", b'{"nodes": []}', Dialect.NODE_LINK),
        ("g.NDJSON", b"{", Dialect.JSON_LINES),
        ("g.jsonl.gz", gzip.compress(b"{", mtime=0), Dialect.JSON_LINES),
        ("g.json", NODE.encode(), Dialect.JSON_LINES),
        ("g.json", b"\n\n" + EDGE.encode() + b"\n", Dialect.JSON_LINES),
        ("g", b'{"id":"a","kind":"node"}\nrubbish', Dialect.JSON_LINES),
        ("g", b'{"kind": "node", "id": "' + b"x" * 100_000, Dialect.JSON_LINES),
        ("g", b'{"nodes": [], "edges": [], "kind": "x"}', Dialect.NODE_LINK),
        ("g", b'{\n"nodes": [', Dialect.NODE_LINK),
        ("g.json.gz", gzip.compress(b'{"links": [', mtime=0), Dialect.NODE_LINK),
        ("g.json", b"\xef\xbb\xbf" + NODE.encode(), Dialect.JSON_LINES),
    ],
)
def test_the_dialect_is_recognised_by_the_content_and_the_suffix_only_breaks_a_tie(
    name: str, data: bytes, expected: Dialect, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with open_input(tmp_path / name, None) as (source, found):
        assert found is expected
        assert source.name == str(tmp_path / name)


def test_gzip_is_unpacked_and_its_damage_named(tmp_path: Path) -> None:
    lines = "".join(NODE.replace('"a"', f'"{i}"') + "\n" for i in range(20_000)).encode()
    packed = gzip.compress(lines)
    assert len(read(packed)) == 20_000
    for damaged in (
        packed[: len(packed) // 2],
        packed[:-5],
        packed[:-8] + b"\0" * 8,
        packed[:5],
        packed[:10] + b"\xff" * 20 + packed[30:],
    ):
        assert "gzip data is damaged" in refusal(damaged, "jsonl").reason
    refusal(packed[:3000] + b"\xff" * 50 + packed[3050:], "jsonl")  # unpacks to nonsense first
    (tmp_path / "plain.jsonl.gz").write_bytes(lines)
    with (
        pytest.raises(InvalidRecord, match="is not gzip data"),
        open_input(tmp_path / "plain.jsonl.gz", None),
    ):
        pass


def test_a_file_that_cannot_be_read_is_the_calls_fault(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path, "nul\0byte"):
        with pytest.raises(InvalidRequest, match=r"^file: "), open_input(path, None):
            pass
    with pytest.raises(
        InvalidRequest, match=r"^format: must be 'node-link', 'jsonl', .* or 'gexf', not 'xml'"
    ):
        read(b"{}", "xml")


def test_a_stream_that_gives_a_byte_at_a_time_is_read_and_left_open() -> None:
    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.rest = io.BytesIO(f"{NODE}\n{EDGE}\n".encode())

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self.rest.readinto(memoryview(buffer)[:1])

    stream = Slow()
    with open_input(stream, None) as (source, found):
        assert found is Dialect.JSON_LINES
        assert len(list(reader_of(found, source, None, Choices()).records())) == 2
    assert not stream.closed


# ── whatever comes ──────────────────────────────────────────────────────────────────────────────────

FIELDS = st.sampled_from(["kind", "id", "label", "properties", "source", "target", "type", "key", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(FIELDS, children, max_size=5),
    max_leaves=12,
)
TOP = st.sampled_from(["nodes", "edges", "links", "graph", "directed", "multigraph", "x"])
FORMATS = st.sampled_from([None, "jsonl", "node-link"])


def only_our_errors(data: bytes, chosen: str | None) -> None:
    with contextlib.suppress(InvalidRecord):
        read(data, chosen)


@given(
    st.binary(), FORMATS, st.sampled_from([b"", b"\x1f\x8b\x08\0", b"{", b'{"nodes":[', b'{"kind":"node",'])
)
def test_arbitrary_bytes_raise_nothing_but_our_errors(data: bytes, chosen: str | None, begin: bytes) -> None:
    only_our_errors(begin + data, chosen)


@given(st.lists(JSON | st.dictionaries(FIELDS, JSON)), st.dictionaries(TOP, JSON), FORMATS)
def test_arbitrary_json_raises_nothing_but_our_errors(
    lines: list[Any], document: dict[str, Any], chosen: str | None
) -> None:
    only_our_errors("\n".join(map(json.dumps, lines)).encode(), chosen)
    only_our_errors(json.dumps(document).encode(), chosen)


@given(st.data())
def test_a_damaged_document_raises_nothing_but_our_errors(data: st.DataObject) -> None:
    document = json.dumps(nx.node_link_data(nx.path_graph(4)), indent=data.draw(st.sampled_from([None, 1])))
    good = data.draw(st.sampled_from([document, f"{NODE}\n{EDGE}\n"])).encode()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 5)))
    only_our_errors(good[:start] + data.draw(st.binary(max_size=3)) + good[end:], None)


def test_errors_of_reading_name_the_line_reached() -> None:
    class Broken(io.BytesIO):
        def readline(self, size: Any = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(InvalidRequest, match="Input/output error"):
        list(InputFile("x", Broken()).lines())
