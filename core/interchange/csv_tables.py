"""CSV: a file of nodes and a file of edges, with a header each.

Headers are plain (`id`, `label`; `source`, `target`, `type`) or those of Neo4j's import tool
(https://neo4j.com/docs/operations-manual/current/tools/neo4j-admin/neo4j-admin-import/), whose types are read.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from graph_migrator.core.interchange.dialect import delimiter_of
from graph_migrator.core.interchange.exact_json import Unstorable, decode_line
from graph_migrator.core.interchange.input_file import LONGEST_RECORD, InputFile
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

_NODE_NAMES: Final = {"id": "id", ":id": "id", "label": "label", "labels": "labels", ":label": "labels"}
_EDGE_NAMES: Final = {
    "id": "id", ":id": "id", "type": "type", ":type": "type",
    "source": "source", "src": "source", "from": "source", ":start_id": "source",
    "target": "target", "dst": "target", "to": "target", ":end_id": "target",
}  # fmt: skip
_NUMBERS: Final = frozenset({"int", "long", "short", "byte", "float", "double"})
_TEXTS: Final = frozenset(
    {"string", "char", "point", "date", "localtime", "time", "localdatetime", "datetime", "duration"}
)
_BOOLEANS: Final = {"true": True, "false": False}
_ARRAY_DELIMITER: Final = ";"


@dataclass(frozen=True)
class _Column:
    header: str
    field: str | None
    """What of the record it is; None for a property."""
    name: str
    """The property; empty where it is none."""
    type: str

    def value(self, cell: str) -> Any:
        """A property's value.

        Raises:
            BadField: The cell is not of the column's type.
        """
        if not self.type.endswith("[]"):
            return _typed(self.header, self.type, cell)
        kind = self.type.removesuffix("[]")
        return [_typed(f"{self.header}[{i}]", kind, c) for i, c in enumerate(cell.split(_ARRAY_DELIMITER))]


class CsvReader:
    """Reads nodes from one file and edges from another.

    Args:
        nodes: The file with nodes.
        edges: The file with edges; None for a graph without any.
        choices: What the caller decides.
    """

    def __init__(self, nodes: InputFile, edges: InputFile | None, choices: Choices) -> None:
        self._nodes = nodes
        self._edges = edges
        self._choices = choices
        self.attributes: dict[str, Any] = {}
        self._used: set[str] = set()

    def records(self) -> Iterator[NodeRecord | EdgeRecord]:
        """All nodes, then all edges.

        Raises:
            InvalidRecord: A header or a row is malformed.
        """
        yield from self._rows(self._nodes, _NODE_NAMES, ("id",), self._node)
        if self._edges is not None:
            yield from self._rows(self._edges, _EDGE_NAMES, ("source", "target"), self._edge)
        if unused := sorted(set(self._choices.columns.values()) - self._used):
            raise self._nodes.invalid(1, unused[0], "is no column of the file, although --column names it")

    def _rows(
        self,
        source: InputFile,
        names: dict[str, str],
        needed: tuple[str, ...],
        make: Callable[..., NodeRecord | EdgeRecord],
    ) -> Iterator[NodeRecord | EdgeRecord]:
        lines = _Lines(source)
        header = next(lines, "")
        lines.push(header)
        rows = csv.reader(lines, delimiter=delimiter_of(header), strict=True)
        columns: list[_Column] | None = None
        # It counts for the whole process, and is only ever raised here.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_RECORD))
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                raise source.invalid(line, "record", f"is not CSV: {error}") from error
            if columns is None:
                columns = self._columns(source, row, names, needed)
            elif row:
                yield from build(source, Place(line), make, columns, row)

    def _columns(
        self, source: InputFile, header: list[str], names: dict[str, str], needed: tuple[str, ...]
    ) -> list[_Column]:
        chosen = {
            name: field
            for field, name in self._choices.columns.items()
            if field in names.values() and name in header
        }
        self._used.update(chosen)
        columns = [_column(title.strip(), names, chosen) for title in header]
        fields = [column.field for column in columns if column.field is not None]
        titles = [column.name for column in columns if column.name]
        for what in (fields, titles):
            if twice := [name for name in what if what.count(name) > 1]:
                raise source.invalid(1, twice[0], "stands in the header twice; say which with --column")
        if missing := [name for name in needed if name not in fields]:
            if missing[0] == "id" and {"source", "target"} <= {_EDGE_NAMES.get(t.lower()) for t in header}:
                raise source.invalid(
                    1, "file", "holds edges. Nodes come from a file of their own: "
                    "graph-migrator import NODES.csv --edges EDGES.csv"
                )  # fmt: skip
            raise source.invalid(
                1, missing[0], f"no column of the header is it; say which with --column {missing[0]}=HEADER"
            )
        for column in columns:
            kind = column.type.removesuffix("[]")
            if column.name and kind not in _NUMBERS | _TEXTS | {"boolean"}:
                raise source.invalid(1, column.header[:100], f"is of no known type ({kind[:40]!r})")
        return columns

    def _node(self, place: Place, columns: list[_Column], row: list[str]) -> NodeRecord:
        fields, properties = _cells(columns, row)
        found: dict[str, Any] = dict(properties)
        if fields.get("label"):
            found["label"] = fields["label"]
        elif fields.get("labels"):
            found["labels"] = [label for label in fields["labels"].split(_ARRAY_DELIMITER) if label]
        label = take_label(found, self._choices) if "label" in found or "labels" in found else "Node"
        return NodeRecord(place, _filled("id", fields), label, properties_of("", found))

    def _edge(self, place: Place, columns: list[_Column], row: list[str]) -> EdgeRecord:
        fields, properties = _cells(columns, row)
        return EdgeRecord(
            place,
            _filled("id", fields) if fields.get("id") else None,
            _filled("source", fields),
            _filled("target", fields),
            text_of("type", fields.get("type") or NO_TYPE),
            properties_of("", properties),
        )


class _Lines:
    """A file's lines as text, without blank ones between rows being lost to a quoted field."""

    def __init__(self, source: InputFile) -> None:
        self._source = source
        self._lines = source.lines(keep_blank=True)
        self._pushed: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._pushed:
            return self._pushed.pop()
        number, line = next(self._lines)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            bad = line[error.start]
            raise self._source.invalid(number, "", f"is not UTF-8: byte {bad:#04x}") from error

    def push(self, line: str) -> None:
        """Give this line again."""
        self._pushed.append(line)


def _column(title: str, names: dict[str, str], chosen: dict[str, str]) -> _Column:
    name, colon, type_ = title.rpartition(":")
    if not colon:
        name, type_ = title, "string"
    special = type_.split("(")[0].split("{")[0].upper() if colon else ""
    if title in chosen:
        return _Column(title, chosen[title], "", "string")
    if special == "IGNORE":
        return _Column(title, None, "", "string")
    if special and f":{special.lower()}" in names:
        field = names[f":{special.lower()}"]
        # `personId:ID` is a property as well, as in Neo4j; `:ID` is none.
        return _Column(
            title, None if field in chosen.values() else field, name if special == "ID" else "", "string"
        )
    field_of_name = names.get(title.lower())
    if field_of_name is not None and field_of_name not in chosen.values():
        return _Column(title, field_of_name, "", "string")
    return _Column(title, None, name, type_.split("{")[0].lower())


def _cells(columns: list[_Column], row: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    if len(row) != len(columns):
        raise BadField("", f"has {len(row)} columns, and the header has {len(columns)}")
    fields: dict[str, str] = {}
    properties: dict[str, Any] = {}
    for column, cell in zip(columns, row, strict=True):
        if column.field is not None:
            fields[column.field] = cell
        if column.name and cell:  # an empty cell is no value
            properties[column.name] = column.value(cell)
    return fields, properties


def _filled(field: str, fields: dict[str, str]) -> str:
    if not fields.get(field):
        raise BadField(field, "is empty")
    return text_of(field, fields[field])


def _typed(field: str, kind: str, cell: str) -> Any:
    if kind in _NUMBERS:
        try:
            number = decode_line(cell.strip().encode())
        except (Unstorable, UnicodeEncodeError):
            number = None
        if isinstance(number, int | ExactFloat) and not isinstance(number, bool):
            return number
        raise BadField(field, f"{cell[:40]!r} is no number")
    if kind == "boolean":
        try:
            return _BOOLEANS[cell.strip().lower()]
        except KeyError:
            raise BadField(field, f"{cell[:40]!r} is neither true nor false") from None
    return cell
