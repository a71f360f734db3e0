"""Cytoscape's JSON (https://js.cytoscape.org/#notation/elements-json), read element by element."""

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
    merged,
    object_of,
    properties_of,
    take_identity,
    take_label,
    text_of,
)

_GROUPS: Final = ("nodes", "edges")


class CytoscapeReader(JsonDocumentReader):
    """Reads one document whose `elements` are a list, or an object with `nodes` and `edges`.

    Its `attributes` are all that stands beside `elements`.
    """

    keys = ("elements",)
    second = "stands in the document a second time"

    def _below(self, key: str) -> Iterator[NodeRecord | EdgeRecord]:
        yield from self._elements()
        self.attributes.setdefault("directed", False)

    def _elements(self) -> Iterator[NodeRecord | EdgeRecord]:
        window = self._window
        if window.peek() == "[":
            for place, value in window.elements("elements"):
                yield from build(self._source, place, _element, value, None, self._choices)
            return
        seen: set[str] = set()
        for line, group in window.members(
            "elements", "must be a list, or an object with 'nodes' and 'edges'"
        ):
            if group not in _GROUPS or group in seen:
                reason = "stands there a second time" if group in seen else "is neither 'nodes' nor 'edges'"
                raise self._source.invalid(line, f"elements.{group}", reason)
            seen.add(group)
            for place, value in window.elements(f"elements.{group}"):
                yield from build(self._source, place, _element, value, group, self._choices)


def _element(place: Place, value: Any, group: str | None, choices: Choices) -> NodeRecord | EdgeRecord:
    beside = object_of("", value)
    data = object_of("data", beside.pop("data", None) or {})
    said = beside.pop("group", None)
    group = group or said or ("edges" if "source" in data and "target" in data else "nodes")
    if group not in _GROUPS or (said is not None and said != group):
        raise BadField("group", f"must be {group!r}" if group in _GROUPS else "must be 'nodes' or 'edges'")
    if group == "nodes":
        id_ = take_identity("id", data, "data.")
        label = take_label(data, choices, "data.labels")
        return NodeRecord(place, id_, label, _properties(beside, data))
    id_of_edge = take_identity("id", data, "data.") if "id" in data else None
    source = take_identity("source", data, "data.")
    target = take_identity("target", data, "data.")
    # `interaction` is what the desktop program calls an edge's type.
    named = "type" if "type" in data else "interaction"
    type_ = text_of(f"data.{named}", data.pop(named, NO_TYPE))
    return EdgeRecord(place, id_of_edge, source, target, type_, _properties(beside, data))


def _properties(beside: dict[str, Any], data: dict[str, Any]) -> str:
    """Position, classes and the like stand beside `data`, and are properties as well."""
    return properties_of("", merged(beside, data, "data")) if beside else properties_of("data", data)
