"""JSON Lines: one node or edge a line, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from graph_migrator.core.interchange.exact_json import Unstorable, decode_line
from graph_migrator.core.interchange.input_file import InputFile
from graph_migrator.core.interchange.records import (
    BadField,
    EdgeRecord,
    NodeRecord,
    Place,
    json_type,
    properties_of,
    text_of,
)

_NODE_FIELDS: Final = frozenset({"kind", "id", "label", "properties"})
_EDGE_FIELDS: Final = frozenset({"kind", "id", "source", "target", "type", "properties"})


def read_json_lines(source: InputFile) -> Iterator[NodeRecord | EdgeRecord]:
    """The file's records, one at a time.

    Raises:
        InvalidRecord: A line is malformed.
    """
    for number, line in source.lines():
        try:
            yield _record(Place(number), decode_line(line))
        except Unstorable as error:
            raise source.invalid(number, "", error.reason) from error
        except BadField as error:
            raise source.invalid(number, error.field, error.reason) from error


def _record(place: Place, value: Any) -> NodeRecord | EdgeRecord:
    if not isinstance(value, dict):
        raise BadField("", f"must be an object, not {json_type(value)}")
    match value.get("kind"):
        case "node":
            _require(value, _NODE_FIELDS)
            return NodeRecord(
                place,
                text_of("id", value["id"]),
                text_of("label", value["label"]),
                properties_of("properties", value.get("properties", {})),
            )
        case "edge":
            _require(value, _EDGE_FIELDS)
            return EdgeRecord(
                place,
                text_of("id", value["id"]),
                text_of("source", value["source"]),
                text_of("target", value["target"]),
                text_of("type", value["type"]),
                properties_of("properties", value.get("properties", {})),
            )
    raise BadField("kind", "must be 'node' or 'edge'" if "kind" in value else "is missing")


def _require(value: dict[str, Any], fields: frozenset[str]) -> None:
    if value.keys() == fields:
        return
    if unknown := sorted(value.keys() - fields):
        raise BadField(unknown[0], f"is unknown in a line of kind {value['kind']!r}")
    if missing := sorted(fields - value.keys() - {"properties"}):
        raise BadField(missing[0], "is missing")
