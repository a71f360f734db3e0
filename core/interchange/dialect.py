"""Which dialect a file is written in, recognised by its content and never by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from graph_migrator.core.errors import InvalidRequest
from graph_migrator.core.interchange.exact_json import Unstorable, decode_line
from graph_migrator.core.interchange.json_outline import outline

_BLANK: Final = b" \t\r\n"


class Format(StrEnum):
    """The formats that an export writes."""

    NODE_LINK = "node-link"
    JSON_LINES = "jsonl"

    @classmethod
    def named(cls, name: str) -> Format:
        """The format of this name.

        Raises:
            InvalidRequest: There is none.
        """
        try:
            return cls(name)
        except ValueError:
            known = " or ".join(map(repr, map(str, cls)))
            raise InvalidRequest("format", f"must be {known}, not {name!r}") from None


class Dialect(StrEnum):
    """What an import reads: docs/formats.md."""

    NODE_LINK = "node-link"
    JSON_LINES = "jsonl"
    APOC = "apoc"
    CSV = "csv"
    JSON_GRAPH = "jgf"
    CYTOSCAPE = "cytoscape"
    GRAPHML = "graphml"
    GEXF = "gexf"

    @classmethod
    def named(cls, name: str) -> Dialect:
        """The dialect of this name.

        Raises:
            InvalidRequest: There is none.
        """
        try:
            return cls(name)
        except ValueError:
            *others, last = map(repr, map(str, cls))
            raise InvalidRequest("format", f"must be {', '.join(others)} or {last}, not {name!r}") from None


@dataclass(frozen=True)
class Foreign:
    """A dialect that is known and not read."""

    name: str
    remedy: str

    @property
    def sentence(self) -> str:
        """What it is, and how to convert it."""
        return f"is {self.name}, which is not imported. {self.remedy}"


def _through_networkx(read: str, *, first: str = "") -> str:
    return f'Python: {first}json.dump(networkx.node_link_data({read}), open("graph.json", "w"))'


ZIP: Final = Foreign(
    "a zip archive", "Unpack it (unzip FILE) and import the file in it; gzip is read as it is"
)
_CONTAINERS: Final[tuple[tuple[bytes, Foreign], ...]] = (
    (b"PK\x03\x04", ZIP),
    (b"BZh", Foreign("bzip2 data", "bunzip2 < FILE | graph-migrator import - …")),
    (b"\xfd7zXZ\0", Foreign("xz data", "xz -dc FILE | graph-migrator import - …")),
    (b"\x28\xb5\x2f\xfd", Foreign("Zstandard data", "zstd -dc FILE | graph-migrator import - …")),
    (b"SQLite format 3\0", Foreign("an SQLite database", "Write its tables of nodes and edges as CSV")),
    (b"PAR1", Foreign("Parquet", "Write it as CSV (pandas: read_parquet(FILE).to_csv(…))")),
    (b"\x80\x04\x95", Foreign("a Python pickle", _through_networkx('pickle.load(open(FILE, "rb"))'))),
)
UTF_16: Final = Foreign("UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > NEW")
UTF_32: Final = Foreign("UTF-32", "iconv -f UTF-32 -t UTF-8 FILE > NEW")

ADJACENCY: Final = Foreign("NetworkX's adjacency data",
    _through_networkx("networkx.adjacency_graph(json.load(open(FILE)))"))  # fmt: skip
TREE: Final = Foreign("NetworkX's tree data (or D3's hierarchy)",
    _through_networkx("networkx.tree_graph(json.load(open(FILE)))"))  # fmt: skip
CX: Final = Foreign("CX, the exchange format of NDEx and Cytoscape",
    "In Cytoscape export the network as 'Cytoscape.js JSON', which is imported")  # fmt: skip
ELEMENTS: Final = Foreign("a bare list of Cytoscape's elements", "jq '{elements: .}' FILE > NEW")
GRAPHOLOGY: Final = Foreign(
    "graphology's JSON (nodes have a 'key')",
    'jq \'{directed: (.options.type != "undirected"), nodes: [.nodes[] | (.attributes // {}) + {id: .key}], '
    "edges: [.edges[] | (.attributes // {}) + ({id: .key, source, target} | "
    "with_entries(select(.value != null)))]}' FILE > NEW",
)
VIS: Final = Foreign(
    "vis.js's JSON (edges have 'from' and 'to')",
    "jq '.edges |= map(. + {source: .from, target: .to} | del(.from, .to))' FILE > NEW",
)
D3_POSITIONS: Final = Foreign(
    "D3's JSON with links by position",
    "jq '.nodes as $n | .nodes |= map(.id //= .name) | "
    ".links |= map(.source |= ($n[.] | .id // .name) | .target |= ($n[.] | .id // .name))' FILE > NEW",
)
APOC_DOCUMENT: Final = Foreign(
    "JSON of Neo4j's APOC in one document",
    "Export it as lines: CALL apoc.export.json.all(FILE, {jsonFormat: 'JSON_LINES'})",
)
JSON_LD: Final = Foreign(
    "JSON-LD", "Map its triples to nodes and edges in your own code, and write JSON Lines"
)
EDGES_ONLY: Final = Foreign(
    "a list of edges without nodes",
    "jq -c '{nodes: ([.[] | .source, .target] | unique | map({id: .})), edges: .}' FILE > NEW",
)
PAIRS: Final = Foreign(
    "a list of lists (an edge list or a matrix)",
    _through_networkx("networkx.Graph(json.load(open(FILE)))")
    + " for pairs; networkx.from_numpy_array for a matrix",
)
DOT: Final = Foreign("DOT, Graphviz's language", _through_networkx("networkx.nx_pydot.read_dot(FILE)"))
GML: Final = Foreign("GML", _through_networkx("networkx.read_gml(FILE)"))
PAJEK: Final = Foreign("Pajek's format", _through_networkx("networkx.read_pajek(FILE)"))
TURTLE: Final = Foreign("RDF (Turtle or N-Triples)",
    "Map its triples to nodes and edges in your own code (rdflib reads them), and write JSON Lines")  # fmt: skip
CYPHER: Final = Foreign("a Cypher script",
    "Load it into Neo4j, then CALL apoc.export.json.all(FILE, {jsonFormat: 'JSON_LINES'})")  # fmt: skip
XML: Final = Foreign("XML, and neither GraphML nor GEXF", "Convert it to one of the two, or write JSON Lines")
APOC_CSV: Final = Foreign("CSV of Neo4j's APOC with nodes and edges in one file",
    "Export it as lines: CALL apoc.export.json.all(FILE, {jsonFormat: 'JSON_LINES'})")  # fmt: skip
EDGE_LIST: Final = Foreign(
    "an edge list or adjacency list (names with blanks between them)",
    _through_networkx("networkx.read_edgelist(FILE)") + "; networkx.read_adjlist for an adjacency list",
)

_LONGEST_PROLOG: Final = 8_192
_XML_ROOT: Final = re.compile(r"<(?:[\w.-]+:)?([A-Za-z][\w.-]*)[\s/>]")
_TEXTS: Final[tuple[tuple[re.Pattern[str], Foreign], ...]] = (
    (re.compile(r"(?:strict\s+)?(?:di)?graph\b[^\[{]{0,200}\{", re.IGNORECASE), DOT),
    (re.compile(r"(?:(?:Creator|Version|comment)\b[^\n]*\n\s*)*graph\s*\[", re.IGNORECASE), GML),
    (re.compile(r"\*(?:vertices|network|arcs|edges)\b", re.IGNORECASE), PAJEK),
    (
        re.compile(
            r"(?:@prefix|@base|prefix\s+\w*:\s*<|base\s+<|<[a-z][a-z0-9+.-]*:[^>\s]*>\s+<)", re.IGNORECASE
        ),
        TURTLE,
    ),
    (re.compile(r"(?::begin|CREATE\s|MERGE\s*\(|UNWIND\s)", re.IGNORECASE), CYPHER),
)
_COMMENTS: Final = re.compile(r"(?:\s*(?:#[^\n]*|//[^\n]*|/\*.*?\*/))*\s*", re.DOTALL)
_EDGE_LINE: Final = re.compile(r"[^\s{}\[\]<>\",;]+(?:[ \t]+[^\s{}\[\]<>\",;]+)+(?:[ \t]+\{[^\n]*\})?\s*")
_HEADER_WORDS: Final = frozenset(
    {"id", "source", "target", "src", "dst", "from", "to", ":id", ":start_id", ":end_id", ":label", ":type"}
)
_TYPED: Final = re.compile(r"[^:]*:(?:ID|START_ID|END_ID|LABEL|TYPE)(?:\(.*\))?\Z")


def container(head: bytes) -> Foreign | None:
    """What wraps the text and must be taken off first; None where the bytes may be UTF-8."""
    for magic, found in _CONTAINERS:
        if head.startswith(magic):
            return found
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) or head[:4].count(0) == 3:
        return UTF_32
    return UTF_16 if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[:4].count(0) == 2 else None


def recognise(head: bytes) -> Dialect | Foreign | None:
    """The dialect of a file.

    Args:
        head: Its first bytes, unpacked and without a byte order mark.

    Returns:
        The dialect; or what else it is; or None where the beginning does not say.
    """
    text = head.decode("utf-8", "replace").lstrip()
    if text[:1] in {"{", "["}:
        return _lines(head) or _document(outline(text))
    if text.startswith("<") and (root := _xml_root(text)):
        return {"graphml": Dialect.GRAPHML, "gexf": Dialect.GEXF}.get(root, XML)
    bare = text[_match_end(_COMMENTS, text) :]
    for pattern, found in _TEXTS:
        if pattern.match(text) or pattern.match(bare):
            return found
    return _table(text, bare)


def delimiter_of(header: str) -> str:
    """The character that separates the columns of a CSV header: the most frequent of comma, tab, semicolon, bar."""
    return max(",\t;|", key=header.count)


def _match_end(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.match(text)
    return found.end() if found else 0


def _xml_root(text: str) -> str:
    text = text[:_LONGEST_PROLOG]
    bare = re.sub(
        r"<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[.*?\])?\s*>", "", text, flags=re.DOTALL
    ).lstrip()
    if not text.startswith(("<?", "<!")) and re.match(
        r"<[a-z][a-z0-9+.-]*:[^>\s]*>\s+<", bare, re.IGNORECASE
    ):
        return ""
    found = _XML_ROOT.match(bare)
    return found[1].lower() if found else "?" if text.startswith("<?") else ""


def _lines(head: bytes) -> Dialect | None:
    """JSON Lines, recognised by the first line: one object that is a record."""
    first = head.lstrip(_BLANK).split(b"\n", 1)[0]
    try:
        value = decode_line(first)
    except Unstorable:
        # A line that is cut off, or faulty: what it begins with must do.
        found = outline(first.decode("utf-8", "replace"))
        value = {key: said.strip('"') for key, said in found.items() if key} if found.get("") == "{" else None
    if not isinstance(value, dict) or "nodes" in value:
        return None
    if "kind" in value:
        return Dialect.JSON_LINES
    is_apoc = value.get("type") in ("node", "relationship") and ("id" in value or "start" in value)
    return Dialect.APOC if is_apoc else None


_Test = Callable[[Mapping[str, str]], bool]
_LISTS: Final[tuple[tuple[_Test, Foreign], ...]] = (
    (lambda o: o.get("[0].type") in ('"node"', '"relationship"'), APOC_DOCUMENT),
    (lambda o: bool({"[0].numberVerification", "[0].CXVersion", "[0].metaData"} & o.keys()), CX),
    (lambda o: "[0].data" in o, ELEMENTS),
    (lambda o: {"[0].source", "[0].target"} <= o.keys(), EDGES_ONLY),
    (lambda o: "[0][0]" in o, PAIRS),
    (lambda o: "[0].@id" in o or "[0].@context" in o, JSON_LD),
)
_DOCUMENTS: Final[tuple[tuple[_Test, Dialect | Foreign], ...]] = (
    (lambda o: o.get("elements") in ("{", "["), Dialect.CYTOSCAPE),
    (lambda o: o.get("graphs") == "[" and "nodes" not in o, Dialect.JSON_GRAPH),
    (lambda o: o.get("graph") == "{" and "nodes" not in o and bool({"graph.nodes", "graph.edges"} & o.keys()),
     Dialect.JSON_GRAPH),
    (lambda o: "@context" in o or "@graph" in o, JSON_LD),
    (lambda o: "nodes" in o and "rels" in o, APOC_DOCUMENT),
    (lambda o: o.get("nodes[0].type") == '"node"' and "nodes[0].labels" in o, APOC_DOCUMENT),
    (lambda o: "adjacency" in o, ADJACENCY),
    (lambda o: o.get("children") == "[" and "nodes" not in o, TREE),
    (lambda o: "nodes[0].key" in o and "nodes[0].id" not in o, GRAPHOLOGY),
    (lambda o: "edges[0].key" in o and "nodes[0].key" in o and "nodes[0].attributes" in o, GRAPHOLOGY),
    (lambda o: {"edges[0].from", "edges[0].to"} <= o.keys() and "edges[0].source" not in o, VIS),
    (lambda o: o.get("links[0].source", "x").isdigit() and "nodes[0]" in o and "nodes[0].id" not in o, D3_POSITIONS),
)  # fmt: skip


def _document(found: Mapping[str, str]) -> Dialect | Foreign | None:
    tests = _LISTS if found.get("") == "[" else _DOCUMENTS
    for test, answer in tests:
        if test(found):
            return answer
    return Dialect.NODE_LINK if "nodes" in found else None


def _table(text: str, bare: str) -> Dialect | Foreign | None:
    header = text.split("\n", 1)[0].strip()
    delimiter = delimiter_of(header)
    names = [name.strip().strip('"') for name in header.split(delimiter)]
    if {"_id", "_labels"} <= set(names) or {"_start", "_end"} <= set(names):
        return APOC_CSV
    if any(name.lower() in _HEADER_WORDS or _TYPED.match(name) for name in names) and (
        len(names) > 1 or "\n" in text
    ):
        return Dialect.CSV
    lines = [line for line in bare.splitlines() if line.strip()][:3]
    return EDGE_LIST if lines and all(map(_EDGE_LINE.fullmatch, lines[:-1] or lines)) else None
