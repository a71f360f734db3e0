"""Node-link JSON as NetworkX writes it, read element by element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from graph_migrator.core.interchange.input_file import InputFile
from graph_migrator.core.interchange.json_window import JsonWindow
from graph_migrator.core.interchange.link_positions import BY_POSITION, CONVERSION, LinkPositions
from graph_migrator.core.interchange.records import (
    NO_TYPE,
    BadField,
    Choices,
    EdgeRecord,
    NodeRecord,
    Place,
    build,
    json_type,
    object_of,
    properties_of,
    take_identity,
    take_label,
    text_of,
)

_EDGE_KEYS: Final = ("edges", "links")


class NodeLinkReader:
    """Reads one document.

    Attributes:
        attributes: All that stands beside nodes and edges; complete when `records` is exhausted.
    """

    def __init__(self, source: InputFile, choices: Choices | None = None) -> None:
        self.attributes: dict[str, Any] = {}
        self._source = source
        self._choices = choices or Choices()
        self._window = JsonWindow(source)
        self._positions: LinkPositions | None = None

    def records(self) -> Iterator[NodeRecord | EdgeRecord]:
        """The document's nodes and edges, in the order in which it holds them.

        Raises:
            InvalidRecord: The document or one of its elements is malformed.
        """
        window = self._window
        watched = LinkPositions()
        seen: set[str] = set()
        for line, key in window.members("document", "must be an object with 'nodes' and 'edges'"):
            if key in seen or (key in _EDGE_KEYS and not seen.isdisjoint(_EDGE_KEYS)):
                raise self._source.invalid(line, key, "stands in the document a second time")
            seen.add(key)
            if key == "nodes":
                yield from self._nodes(watched)
            elif key in _EDGE_KEYS:
                yield from self._edges(key, watched)
            else:
                self.attributes[key] = read_attribute(self._source, window, key)
        window.end()
        if "nodes" not in seen:
            raise self._source.invalid(None, "nodes", "is missing")
        if seen.isdisjoint(_EDGE_KEYS):
            raise self._source.invalid(None, "edges", "is missing ('links' is read too)")
        # What leaves it out is undirected to NetworkX, and an export must say the same.
        self.attributes.setdefault("directed", False)
        if "links" in seen and watched.by_position():
            self._source.report(None, "links", BY_POSITION)
        self._positions = watched

    def explain_missing_nodes(self) -> str:
        """What else edges to missing nodes may mean in this document; empty where nothing is known."""
        if self._positions is None or not self._positions.may_explain_missing_nodes():
            return ""
        return f"their ends are numbers; where they are positions in 'nodes', convert with {CONVERSION}"

    def _nodes(self, watched: LinkPositions) -> Iterator[NodeRecord]:
        for place, value in self._window.elements("nodes"):
            if isinstance(value, dict):
                watched.see_node(value.get("id"))
            yield from build(self._source, place, _node, value, self._choices)

    def _edges(self, key: str, watched: LinkPositions) -> Iterator[EdgeRecord]:
        for place, value in self._window.elements(key):
            if isinstance(value, dict):
                watched.see_link(value.get("source"), value.get("target"))
            yield from build(self._source, place, _edge, value)


def read_attribute(source: InputFile, window: JsonWindow, key: str) -> Any:
    """One value at the top of a document, for the graph's `config`.

    Raises:
        InvalidRecord: Postgres cannot store it, or it is not of the type that NetworkX reads there.
    """
    line, value = window.value(key)
    try:
        properties_of("", {key: value})
    except BadField as error:
        raise source.invalid(line, error.field, error.reason) from error
    if key in {"directed", "multigraph"} and not isinstance(value, bool):
        raise source.invalid(line, key, f"must be true or false, not {json_type(value)}")
    if key == "graph" and not isinstance(value, dict):
        old = " (NetworkX before 1.10 wrote lists; convert with dict(...))" if isinstance(value, list) else ""
        raise source.invalid(line, key, f"must be an object, not {json_type(value)}{old}")
    return value


def _node(place: Place, value: Any, choices: Choices) -> NodeRecord:
    attributes = object_of("", value)
    if "id" not in attributes and "key" in attributes:
        raise BadField("id", "is missing; a node with a 'key' is graphology's, which `graph-migrator import` "
                       "does not read: rename 'key' to 'id' and spread 'attributes'")  # fmt: skip
    id_ = take_identity("id", attributes)
    label = take_label(attributes, choices)
    return NodeRecord(place, id_, label, properties_of("", attributes))


def _edge(place: Place, value: Any) -> EdgeRecord:
    attributes = object_of("", value)
    if "source" not in attributes and {"from", "to"} <= attributes.keys():
        raise BadField("source", "is missing; an edge with 'from' and 'to' is vis.js's: rename them to "
                       "'source' and 'target'")  # fmt: skip
    source = take_identity("source", attributes)
    target = take_identity("target", attributes)
    type_ = text_of("type", attributes.pop("type", NO_TYPE))
    if "id" in attributes:
        id_ = take_identity("id", attributes)
        return EdgeRecord(place, id_, source, target, type_, properties_of("", attributes))
    key = attributes.get("key")
    if "key" in attributes:
        take_identity("key", attributes)
    return EdgeRecord(place, None, source, target, type_, properties_of("", attributes), key)
