"""JSON Graph Format, versions 1 and 2 (https://jsongraphformat.info), read element by element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from graph_migrator.core.interchange.json_document import JsonDocumentReader
from graph_migrator.core.interchange.records import (
    NO_TYPE,
    BadField,
    Choices,
    EdgeRecord,
    NodeRecord,
    Place,
    build,
    json_type,
    merged,
    object_of,
    properties_of,
    take_identity,
    take_label,
    text_of,
)

_NO_OBJECT: Final = "must be an object"


class JsonGraphReader(JsonDocumentReader):
    """Reads one document with one graph.

    Its `attributes` are `directed`, and under `graph` all else that stands beside nodes and edges.
    """

    keys = ("graph", "graphs")
    second = "is a second graph, and an import makes one"

    def _below(self, key: str) -> Iterator[NodeRecord | EdgeRecord]:
        return self._graph(key) if key == "graph" else self._only_graph()

    def _only_graph(self) -> Iterator[NodeRecord | EdgeRecord]:
        window = self._window
        window.expect("[", "graphs", "must be a list")
        if window.peek() == "]":
            raise self._source.invalid(window.line, "graphs", "is empty")
        yield from self._graph("graphs[0]")
        if window.peek() == ",":
            raise self._source.invalid(
                window.line, "graphs[1]", "is a second graph, and an import makes one: cut the file into one "
                "file a graph (jq '{graph: .graphs[1]}')"
            )  # fmt: skip
        window.expect("]", "graphs", "is not JSON: ']' is missing")

    def _graph(self, path: str) -> Iterator[NodeRecord | EdgeRecord]:
        window = self._window
        beside: dict[str, Any] = {}
        seen: set[str] = set()
        for line, key in window.members(path, _NO_OBJECT):
            if key in seen:
                raise self._source.invalid(line, f"{path}.{key}", "stands there a second time")
            seen.add(key)
            if key == "nodes":
                yield from self._nodes(f"{path}.nodes")
            elif key == "edges":
                for place, value in window.elements(f"{path}.edges"):
                    yield from build(self._source, place, _edge, value)
            elif key == "hyperedges":
                raise self._source.invalid(
                    line, f"{path}.{key}", "are no edges with two ends, and not imported"
                )
            else:
                beside[key] = self._attribute(path, key)
        # The format's own default; here it is written out, so that an export says it too.
        self.attributes["directed"] = beside.pop("directed", True)
        self.attributes["graph"] = beside

    def _attribute(self, path: str, key: str) -> Any:
        line, value = self._window.value(f"{path}.{key}")
        try:
            properties_of(path, {key: value})
        except BadField as error:
            raise self._source.invalid(line, error.field, error.reason) from error
        if key == "directed" and not isinstance(value, bool):
            raise self._source.invalid(
                line, f"{path}.{key}", f"must be true or false, not {json_type(value)}"
            )
        return value

    def _nodes(self, path: str) -> Iterator[NodeRecord]:
        window = self._window
        if window.peek() == "{":
            for line, id_ in window.members(path, _NO_OBJECT):
                place = Place(line, f"{path}[{id_[:100]!r}]")
                _, value = window.value(place.element)
                yield from build(self._source, place, _node, value, id_, self._choices)
        else:
            for place, value in window.elements(path):
                yield from build(self._source, place, _node, value, None, self._choices)


def _node(place: Place, value: Any, id_: str | None, choices: Choices) -> NodeRecord:
    attributes = object_of("", value)
    if id_ is None:
        id_ = take_identity("id", attributes)
    label = take_label(attributes, choices)
    return NodeRecord(place, id_, label, properties_of("", _with_metadata(attributes)))


def _edge(place: Place, value: Any) -> EdgeRecord:
    attributes = object_of("", value)
    source = take_identity("source", attributes)
    target = take_identity("target", attributes)
    type_ = text_of("relation", attributes.pop("relation", NO_TYPE))
    id_ = take_identity("id", attributes) if "id" in attributes else None
    return EdgeRecord(place, id_, source, target, type_, properties_of("", _with_metadata(attributes)))


def _with_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    metadata = attributes.pop("metadata", None)
    return attributes if metadata is None else merged(attributes, object_of("metadata", metadata), "metadata")
