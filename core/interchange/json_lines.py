"""JSON Lines: one node or edge a line, in any order. Two dialects: our own, and that of Neo4j's APOC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from graph_migrator.core.interchange.exact_json import Unstorable, decode_line
from graph_migrator.core.interchange.input_file import InputFile
from graph_migrator.core.interchange.records import (
    BadField,
    Choices,
    EdgeRecord,
    NodeRecord,
    Place,
    build,
    object_of,
    properties_of,
    take_identity,
    take_label,
    text_of,
)

_NODE_FIELDS: Final = frozenset({"kind", "id", "label", "properties"})
_EDGE_FIELDS: Final = frozenset({"kind", "id", "source", "target", "type", "properties"})
_APOC_NODE_FIELDS: Final = frozenset({"type", "id", "labels", "properties"})
_APOC_EDGE_FIELDS: Final = frozenset({"type", "id", "label", "start", "end", "properties"})
_APOC_END_FIELDS: Final = frozenset({"id", "labels", "properties"})
_OPTIONAL: Final = frozenset({"properties", "labels"})

Make = Callable[[Place, Any, Choices], "NodeRecord | EdgeRecord"]


class LinesReader:
    """Reads one file line by line.

    Args:
        source: The file.
        choices: What the caller decides.
        make: Makes the record of one line.
    """

    def __init__(self, source: InputFile, choices: Choices, make: Make) -> None:
        self._source = source
        self._choices = choices
        self.attributes: dict[str, Any] = {}
        self._make = make

    def records(self) -> Iterator[NodeRecord | EdgeRecord]:
        """The file's records, one at a time.

        Raises:
            InvalidRecord: A line is malformed.
        """
        for number, line in self._source.lines():
            try:
                value = decode_line(line)
            except Unstorable as error:
                self._source.report(number, "", error.reason)
            else:
                yield from build(self._source, Place(number), self._make, value, self._choices)


def own_record(place: Place, value: Any, choices: Choices) -> NodeRecord | EdgeRecord:
    """A line of the project's own JSON Lines.

    Raises:
        BadField: It is malformed.
    """
    value = object_of("", value)
    match value.get("kind"):
        case "node":
            _require(value, _NODE_FIELDS, "a line of kind 'node'")
            return NodeRecord(
                place,
                text_of("id", value["id"]),
                text_of("label", value["label"]),
                properties_of("properties", value.get("properties", {})),
            )
        case "edge":
            _require(value, _EDGE_FIELDS, "a line of kind 'edge'")
            return EdgeRecord(
                place,
                text_of("id", value["id"]),
                text_of("source", value["source"]),
                text_of("target", value["target"]),
                text_of("type", value["type"]),
                properties_of("properties", value.get("properties", {})),
            )
    raise BadField("kind", "must be 'node' or 'edge'" if "kind" in value else "is missing")


def apoc_record(place: Place, value: Any, choices: Choices) -> NodeRecord | EdgeRecord:
    """A line of ``apoc.export.json`` (https://neo4j.com/docs/apoc/current/export/json/).

    The labels and properties of an edge's ends are copies of what the nodes' own lines say, and are skipped.

    Raises:
        BadField: It is malformed.
    """
    value = object_of("", value)
    match value.get("type"):
        case "node":
            _require(value, _APOC_NODE_FIELDS, "a node of APOC", optional=_OPTIONAL)
            attributes = object_of("properties", value.get("properties", {}))
            label = _apoc_label(value.get("labels", []), attributes, choices)
            return NodeRecord(
                place, take_identity("id", value), label, properties_of("properties", attributes)
            )
        case "relationship":
            _require(value, _APOC_EDGE_FIELDS, "a relationship of APOC")
            return EdgeRecord(
                place,
                take_identity("id", value),
                _apoc_end("start", value),
                _apoc_end("end", value),
                text_of("label", value["label"]),
                properties_of("properties", value.get("properties", {})),
            )
    raise BadField("type", "must be 'node' or 'relationship'" if "type" in value else "is missing")


def _apoc_label(labels: Any, attributes: dict[str, Any], choices: Choices) -> str:
    if not isinstance(labels, list):
        raise BadField("labels", "must be a list")
    found: dict[str, Any] = {"labels": labels}
    label = take_label(found, choices)
    if clash := sorted(found.keys() & attributes.keys()):
        raise BadField(f"properties.{clash[0]}", "stands there already; give --labels-property another name")
    attributes.update(found)
    return label


def _apoc_end(field: str, value: dict[str, Any]) -> str:
    end = object_of(field, value[field])
    if unknown := sorted(end.keys() - _APOC_END_FIELDS):
        raise BadField(f"{field}.{unknown[0]}", "is unknown in the end of a relationship")
    return take_identity("id", end, f"{field}.")


def _require(
    value: dict[str, Any],
    fields: frozenset[str],
    what: str,
    optional: frozenset[str] = frozenset({"properties"}),
) -> None:
    if value.keys() == fields:
        return
    if unknown := sorted(value.keys() - fields):
        raise BadField(unknown[0], f"is unknown in {what}")
    if missing := sorted(fields - value.keys() - optional):
        raise BadField(missing[0], "is missing")
