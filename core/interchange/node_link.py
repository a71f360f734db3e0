"""Node-link JSON as NetworkX writes it, read element by element.

``ijson`` would stream it too, but its C parser turns half a surrogate pair into ``?`` without a word. Here
the standard library's scanner reads one element at a time from a window that moves over the file, so the
memory needed is that of the largest element, and every error knows its line.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, Final

from graph_migrator.core.interchange.exact_json import ExactNumber, Unstorable, scan
from graph_migrator.core.interchange.input_file import LONGEST_RECORD, InputFile
from graph_migrator.core.interchange.records import (
    BadField,
    EdgeRecord,
    NodeRecord,
    Place,
    json_type,
    properties_of,
    text_of,
)

_WINDOW: Final = 256 * 1024
_BLANK: Final = " \t\r\n"
_CUT_OFF: Final = 16
"""An error this close to the window's end may only mean that the text goes on (longer than ``-Infinity``)."""
_EDGE_KEYS: Final = ("edges", "links")


class NodeLinkReader:
    """Reads one document.

    Attributes:
        attributes: All that stands beside nodes and edges; complete when `records` is exhausted.
    """

    def __init__(self, source: InputFile) -> None:
        self.attributes: dict[str, Any] = {}
        self._source = source
        self._window = _Window(source)

    def records(self) -> Iterator[NodeRecord | EdgeRecord]:
        """The document's nodes and edges, in the order in which it holds them.

        Raises:
            InvalidRecord: The document or one of its elements is malformed.
        """
        window = self._window
        window.expect("{", "document", "must be an object with 'nodes' and 'edges'")
        seen: set[str] = set()
        more = window.peek() != "}"
        while more:
            line, key = self._key()
            if key in seen or (key in _EDGE_KEYS and not seen.isdisjoint(_EDGE_KEYS)):
                raise self._source.invalid(line, key, "stands in the document a second time")
            seen.add(key)
            if key == "nodes" or key in _EDGE_KEYS:
                yield from self._elements(key)
            else:
                self.attributes[key] = self._attribute(key)
            more = window.peek() == ","
            if more:
                window.expect(",", key, "")
        window.expect("}", "document", "is not JSON: ',' or '}' is missing")
        if window.peek():
            raise self._source.invalid(window.line, "document", "is not JSON: something follows its end")
        if "nodes" not in seen:
            raise self._source.invalid(None, "nodes", "is missing")
        if seen.isdisjoint(_EDGE_KEYS):
            raise self._source.invalid(None, "edges", "is missing ('links' is read too)")

    def _key(self) -> tuple[int, str]:
        window = self._window
        if window.peek() != '"':
            raise self._source.invalid(window.line, "document", "is not JSON: a key in quotes is missing")
        line, key = window.value("document")
        window.expect(":", "document", "is not JSON: ':' is missing")
        try:
            return line, text_of("document", key)
        except BadField as error:
            raise self._source.invalid(line, "document", f"has a key that {error.reason}") from error

    def _attribute(self, key: str) -> Any:
        line, value = self._window.value(key)
        try:
            properties_of("", {key: value})
        except BadField as error:
            raise self._source.invalid(line, error.field, error.reason) from error
        if key in {"directed", "multigraph"} and not isinstance(value, bool):
            raise self._source.invalid(line, key, f"must be true or false, not {json_type(value)}")
        if key == "graph" and not isinstance(value, dict):
            raise self._source.invalid(line, key, f"must be an object, not {json_type(value)}")
        return value

    def _elements(self, key: str) -> Iterator[NodeRecord | EdgeRecord]:
        window = self._window
        window.expect("[", key, "must be a list")
        build = _node if key == "nodes" else _edge
        index = 0
        more = window.peek() != "]"
        while more:
            element = f"{key}[{index}]"
            line, value = window.value(element)
            place = Place(line, element)
            try:
                yield build(place, value)
            except BadField as error:
                raise self._source.invalid(line, place.field(error.field), error.reason) from error
            index += 1
            more = window.peek() == ","
            if more:
                window.expect(",", key, "")
        window.expect("]", f"{key}[{index}]", "is not JSON: ',' or ']' is missing before it")


def _node(place: Place, value: Any) -> NodeRecord:
    attributes = _attributes(value)
    id_ = _identity("id", attributes)
    label = text_of("label", attributes.pop("label", "Node"))
    return NodeRecord(place, id_, label, properties_of("", attributes))


def _edge(place: Place, value: Any) -> EdgeRecord:
    attributes = _attributes(value)
    source = _identity("source", attributes)
    target = _identity("target", attributes)
    type_ = text_of("type", attributes.pop("type", "RELATED"))
    if "id" in attributes:
        id_ = _identity("id", attributes)
        return EdgeRecord(place, id_, source, target, type_, properties_of("", attributes))
    key = attributes.get("key")
    if "key" in attributes:
        _identity("key", attributes)
    return EdgeRecord(place, None, source, target, type_, properties_of("", attributes), key)


def _attributes(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadField("", f"must be an object, not {json_type(value)}")
    return value


def _identity(field: str, attributes: dict[str, Any]) -> str:
    """Take an id out of an element's attributes. A number becomes the text it is written as."""
    try:
        value = attributes.pop(field)
    except KeyError:
        raise BadField(field, "is missing") from None
    if isinstance(value, int | ExactNumber) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadField(field, f"must be text or a number, not {json_type(value)}")
    return text_of(field, value)


class _Window:
    """A piece of the file's text, moved forward as it is read."""

    def __init__(self, source: InputFile) -> None:
        self._source = source
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        self._ended = False
        self._line = 1
        self._counted = 0

    @property
    def line(self) -> int:
        """The line of what is read next."""
        return self._line_of(self._at)

    def peek(self) -> str:
        """The next character that is not blank, not yet consumed; empty at the end of the file."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in _BLANK:
                at += 1
            self._at = at
            if at < len(text):
                return text[at]
            if self._ended:
                return ""
            self._read_on()

    def expect(self, character: str, field: str, reason: str) -> None:
        """Consume this character.

        Raises:
            InvalidRecord: Another one stands there; with this field and reason.
        """
        if self.peek() != character:
            ended = "" if self.peek() else " (the file ends here)"
            raise self._source.invalid(self.line, field, f"{reason}{ended}")
        self._at += 1

    def value(self, field: str) -> tuple[int, Any]:
        """Consume one JSON value; gives its line too.

        Raises:
            InvalidRecord: It is no JSON.
        """
        self.peek()
        while True:
            try:
                value, end = scan(self._text, self._at)
            except StopIteration as stopped:
                self._read_on_after(field, stopped.value, "a value is missing")
            except json.JSONDecodeError as error:
                # Only the end of the window leaves a string open: a line break inside is another error.
                at = len(self._text) if error.msg.startswith("Unterminated string") else error.pos
                self._read_on_after(field, at, error.msg)
            except RecursionError as error:
                raise self._source.invalid(self.line, field, "is nested too deeply") from error
            except Unstorable as error:
                raise self._source.invalid(self.line, field, error.reason) from error
            else:
                if end < len(self._text) or self._ended:
                    line, self._at = self.line, end
                    return line, value
                self._read_on()  # a number may go on

    def _read_on_after(self, field: str, at: int, reason: str) -> None:
        if self._ended or at < len(self._text) - _CUT_OFF:
            line = self._line_of(self._at) + self._text.count("\n", self._at, at)
            raise self._source.invalid(line, field, f"is not JSON: {reason}")
        if len(self._text) - self._at > LONGEST_RECORD:
            raise self._source.invalid(self.line, field, f"is longer than {LONGEST_RECORD:,} characters")
        self._read_on()

    def _read_on(self) -> None:
        self._line_of(self._at)
        rest = self._text[self._at :]
        # At least as much again: a large element is then scanned a few times, not once for every window.
        data = self._source.read(max(_WINDOW, len(rest)))
        try:
            more = self._decode(data, not data)
        except UnicodeDecodeError as error:
            line = self._line + rest.count("\n") + error.object[: error.start].count(b"\n")
            bad = error.object[error.start]
            raise self._source.invalid(line, "document", f"is not UTF-8: byte {bad:#04x}") from error
        self._text, self._at, self._counted, self._ended = rest + more, 0, 0, not data

    def _line_of(self, at: int) -> int:
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        return self._line
