"""Edges without an id, kept on disk until every id of the file is known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Final, NamedTuple, Self

from graph_migrator.core.interchange.exact_json import encode
from graph_migrator.core.interchange.records import EdgeRecord, Place, number_text
from graph_migrator.core.store.copy_text import escape, escape_json

_IN_MEMORY: Final = 4 * 1024 * 1024


class EdgeAside(NamedTuple):
    """An edge of which only the id is open. The texts are columns of COPY, escaped already."""

    place: Place
    key: str
    """The id that the key suggests; empty without a key."""
    key_json: str
    ends_and_type: str
    properties: str

    @property
    def properties_with_key(self) -> str:
        """The properties of an edge whose key did not become its id."""
        if not self.key_json:
            return self.properties
        rest = "}" if self.properties == "{}" else f",{self.properties[1:]}"
        return f'{{"key":{self.key_json}{rest}'


class EdgesAside:
    """A queue of edges: a few megabytes in memory, the rest in a temporary file."""

    def __init__(self) -> None:
        self.count = 0
        self._file = SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8", newline="\n")  # noqa: SIM115 - closed below

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, edge: EdgeRecord) -> None:
        """Add an edge."""
        key = "" if edge.key is None else escape(number_text(edge.key))
        key_json = "" if edge.key is None else escape_json(encode(edge.key))
        self._file.write(
            f"{edge.place.line or ''}\t{edge.place.element}\t{key}\t{key_json}\t"
            f"{escape(edge.source)}\t{escape(edge.target)}\t{escape(edge.type)}\t{escape_json(edge.properties)}\n"
        )
        self.count += 1

    def chunks(self, rows: int) -> Iterator[list[EdgeAside]]:
        """All edges in the order in which they came; can be read again."""
        self._file.seek(0)
        while lines := list(islice(self._file, rows)):
            yield [_parse(line) for line in lines]


def _parse(line: str) -> EdgeAside:
    number, element, key, key_json, source, target, type_, properties = line[:-1].split("\t")
    place = Place(int(number) if number else None, element)
    return EdgeAside(place, key, key_json, f"{source}\t{target}\t{type_}", properties)
