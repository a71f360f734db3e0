"""GraphML and GEXF, read by NetworkX: in memory, and with what NetworkX makes of their values."""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final
from xml.etree import ElementTree

from graph_migrator.core.errors import InvalidRequest
from graph_migrator.core.interchange.dialect import Dialect
from graph_migrator.core.interchange.input_file import InputFile
from graph_migrator.core.interchange.records import (
    NO_TYPE,
    BadField,
    Choices,
    EdgeRecord,
    NodeRecord,
    Place,
    build,
    properties_of,
    take_label,
    text_of,
)
from graph_migrator.core.store.json_text import ExactFloat

_NEEDED: Final = {"node": ("id",), "edge": ("source", "target")}
LARGEST: Final = 256 * 1024 * 1024
"""Bytes of XML that are read; a graph of NetworkX needs about ten times as much memory."""


class XmlReader:
    """Reads one file.

    Attributes:
        attributes: `directed`, `multigraph` and `graph`, as in node-link JSON.
    """

    def __init__(self, source: InputFile, dialect: Dialect, choices: Choices) -> None:
        self.attributes: dict[str, Any] = {}
        self._source = source
        self._dialect = dialect
        self._choices = choices

    def records(self) -> Iterator[NodeRecord | EdgeRecord]:
        """The graph's nodes, then its edges.

        Raises:
            InvalidRequest: NetworkX is not installed.
            InvalidRecord: The file is too large or malformed, or holds what NetworkX leaves out.
        """
        graph = self._read()
        attributes = {
            "directed": graph.is_directed(),
            "multigraph": graph.is_multigraph(),
            "graph": graph.graph,
        }
        try:
            properties_of("", plain := _plain("", attributes))
        except BadField as error:
            raise self._source.invalid(None, error.field, error.reason) from error
        self.attributes.update(plain)
        for id_, found in graph.nodes(data=True):
            place = Place(None, f"node {id_!r}"[:100])
            yield from build(self._source, place, _node, id_, found, self._choices)
        keyed = {"keys": True} if graph.is_multigraph() else {}
        for start, end, *key, found in graph.edges(data=True, **keyed):
            place = Place(None, f"edge {start!r} → {end!r}"[:200])
            yield from build(self._source, place, _edge, start, end, found, *key)

    def _read(self) -> Any:
        try:
            import networkx
        except ImportError as error:
            reason = f"{self._dialect} is read by NetworkX: pip install 'graph-migrator[networkx]'"
            raise InvalidRequest("format", reason) from error
        data = self._source.read_all(LARGEST)
        counts = self._refuse_what_is_left_out(data)
        read = networkx.read_graphml if self._dialect is Dialect.GRAPHML else networkx.read_gexf
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                graph = read(io.BytesIO(data))
            except Exception as error:
                raise self._source.invalid(
                    None, "document", f"NetworkX cannot read it: {_said(error)}"
                ) from error
        if warned:
            reason = f"NetworkX leaves something out: {warned[0].message}"
            raise self._source.invalid(None, "document", reason)
        self._refuse_what_is_made_up(graph, counts)
        return graph

    def _refuse_what_is_left_out(self, data: bytes) -> Counter[str]:
        counts: Counter[str] = Counter()
        try:
            for _, element in ElementTree.iterparse(io.BytesIO(data)):  # noqa: S314 - expat limits the expansion
                name = element.tag.rpartition("}")[2]
                counts[name] += 1
                if name == "hyperedge":
                    raise self._source.invalid(
                        None, "hyperedge", "is no edge with two ends, and not imported"
                    )
                for attribute in _NEEDED.get(name, ()):
                    if attribute not in element.attrib:
                        raise self._source.invalid(None, f"{name} {counts[name]}", f"has no {attribute!r}")
                element.clear()
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise self._source.invalid(None, "document", f"is not XML: {_said(error)}") from error
        if counts["graph"] != 1:
            reason = f"holds {counts['graph']} graphs (nested ones count), and an import makes one"
            raise self._source.invalid(None, "document", reason)
        return counts

    def _refuse_what_is_made_up(self, graph: Any, counts: Counter[str]) -> None:
        """NetworkX makes nodes for edges that have none, and one of two with the same id."""
        made = {"node": graph.number_of_nodes(), "edge": graph.number_of_edges()}
        for kind, count in made.items():
            if count != counts[kind]:
                reason = (
                    f"holds {counts[kind]} {kind}s, and NetworkX makes {count} of them: an edge leads to a "
                    "missing node, or two elements have the same id"
                )
                raise self._source.invalid(None, kind, reason)


def _node(place: Place, id_: Any, found: dict[str, Any], choices: Choices) -> NodeRecord:
    attributes = _plain("", found)
    labels = attributes.get("labels")
    if "label" not in attributes and isinstance(labels, str) and labels.startswith(":"):
        attributes["labels"] = labels[1:].split(":")  # as Neo4j's APOC writes GraphML
    label = take_label(attributes, choices)
    return NodeRecord(place, _identity("id", id_), label, properties_of("", attributes))


def _edge(place: Place, start: Any, end: Any, found: dict[str, Any], key: Any = None) -> EdgeRecord:
    attributes = _plain("", found)
    id_ = attributes.pop("id", None)
    # APOC names a relationship's type in `label`.
    type_ = text_of("type", attributes.pop("type", None) or attributes.pop("label", NO_TYPE))
    return EdgeRecord(
        place,
        None if id_ is None else text_of("id", str(id_)),
        _identity("source", start),
        _identity("target", end),
        type_,
        properties_of("", attributes),
        None if id_ is not None or key is None else text_of("key", str(key)),
    )


def _identity(field: str, value: Any) -> str:
    if value is None:
        raise BadField(field, "is missing")
    return text_of(field, str(value))


def _plain(path: str, value: Any) -> Any:
    """The value with nothing in it but what JSON has."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadField(path.removeprefix("."), f"{value} is no JSON number")
        return ExactFloat(repr(value))
    if isinstance(value, dict):
        return {str(key): _plain(f"{path}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{path}[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return ExactFloat(str(value))
    return value if isinstance(value, str | int | bool) or value is None else str(value)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300].encode("utf-8", "backslashreplace").decode()
