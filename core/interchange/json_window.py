"""A JSON document, read value by value.

``ijson`` would stream it too, but its C parser turns half a surrogate pair into ``?`` silently. Here the
standard library's scanner reads one value at a time from a window that moves over the file, so the memory
needed is that of the largest value, and every error knows its line.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, Final

from graph_migrator.core.interchange.exact_json import Unstorable, scan, text_fault
from graph_migrator.core.interchange.input_file import LONGEST_RECORD, InputFile
from graph_migrator.core.interchange.records import Place

_WINDOW: Final = 256 * 1024
_BLANK: Final = " \t\r\n"
_CUT_OFF: Final = 16
"""An error this close to the window's end may only mean that the text goes on (longer than ``-Infinity``)."""


class JsonWindow:
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

    def members(self, field: str, reason: str) -> Iterator[tuple[int, str]]:
        """The keys of the object that stands next, each with its line; the caller consumes every value.

        Raises:
            InvalidRecord: No object stands there (with this field and reason), or it is no JSON.
        """
        self.expect("{", field, reason)
        more = self.peek() != "}"
        while more:
            if self.peek() != '"':
                raise self._source.invalid(self.line, field, "is not JSON: a key in quotes is missing")
            line, key = self.value(field)
            self.expect(":", field, "is not JSON: ':' is missing")
            if fault := text_fault(key):
                raise self._source.invalid(line, field, f"has a key that {fault}")
            yield line, key
            more = self.peek() == ","
            if more:
                self.expect(",", field, "")
        self.expect("}", field, "is not JSON: ',' or '}' is missing")

    def elements(self, field: str) -> Iterator[tuple[Place, Any]]:
        """The values of the list that stands next, each with its place.

        Raises:
            InvalidRecord: No list stands there, or it is no JSON.
        """
        self.expect("[", field, "must be a list")
        index = 0
        more = self.peek() != "]"
        while more:
            element = f"{field}[{index}]"
            line, value = self.value(element)
            yield Place(line, element), value
            index += 1
            more = self.peek() == ","
            if more:
                self.expect(",", field, "")
        self.expect("]", f"{field}[{index}]", "is not JSON: ',' or ']' is missing before it")

    def end(self) -> None:
        """Nothing but blanks follows.

        Raises:
            InvalidRecord: Something does.
        """
        if self.peek():
            raise self._source.invalid(self.line, "document", "is not JSON: something follows its end")

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
