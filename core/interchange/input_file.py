"""The file that is imported: opened, unpacked, its format recognised."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final

from graph_migrator.core.errors import InvalidRecord, InvalidRequest
from graph_migrator.core.interchange.exact_json import Unstorable, decode_line

LONGEST_RECORD: Final = 64 * 1024 * 1024
"""Bytes of one line, characters of one element. What is longer is taken for damage, not held in memory."""
_HEAD: Final = 64 * 1024
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"
_BLANK: Final = b" \t\r\n"
_LINE_SUFFIXES: Final = (".jsonl", ".ndjson")
_KIND_FIRST: Final = re.compile(rb'\s*\{\s*"kind"\s*:')


class Format(StrEnum):
    """The formats of docs/formats.md."""

    NODE_LINK = "node-link"
    JSON_LINES = "jsonl"

    @classmethod
    def named(cls, name: str) -> Format:
        """The format of this name.

        Raises:
            InvalidRequest: There is none.
        """
        try:
            return cls(name)
        except ValueError:
            known = " or ".join(map(repr, map(str, cls)))
            raise InvalidRequest("format", f"must be {known}, not {name!r}") from None


class InputFile:
    """Unpacked bytes, and errors that name the file they come from."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.name = name
        self._stream = stream

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end.

        Raises:
            InvalidRecord: The gzip data is damaged.
        """
        return self._guarded(self._stream.read, size, None)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, each with its number, counted from 1.

        Raises:
            InvalidRecord: A line is longer than `LONGEST_RECORD`, or the gzip data is damaged.
        """
        number = 0
        while line := self._guarded(self._stream.readline, LONGEST_RECORD + 1, number + 1):
            number += 1
            if len(line) > LONGEST_RECORD:
                raise self.invalid(number, "record", f"is longer than {LONGEST_RECORD:,} bytes")
            if not line.isspace():
                yield number, line

    def invalid(self, line: int | None, field: str, reason: str) -> InvalidRecord:
        """The error to raise about this file. An empty `field` means the record as a whole."""
        printable = (field or "record").encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
        return InvalidRecord(self.name, line, printable, reason)

    def _guarded(self, read: Any, size: int, line: int | None) -> bytes:
        try:
            data: bytes = read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self.invalid(line, "file", f"the gzip data is damaged ({error})") from error
        except OSError as error:
            raise InvalidRequest("file", f"{self.name} cannot be read ({error.strerror or error})") from error
        return data


@contextmanager
def open_input(path_or_stream: Any, chosen: str | None) -> Iterator[tuple[InputFile, Format]]:
    """Open a file to import; a stream of the caller's is left open.

    Args:
        path_or_stream: A path, or a binary stream, which need not be seekable. Gzip is recognised by its
            first bytes.
        chosen: The format; None guesses it from the suffix, else from the first line.

    Raises:
        InvalidRequest: There is no such file or format.
        InvalidRecord: It is empty, or damaged in its first bytes.
    """
    known = Format.named(chosen) if chosen is not None else None
    with ExitStack() as stack:
        if isinstance(path_or_stream, str | os.PathLike):
            name = os.fspath(path_or_stream)
            try:
                stream: Any = stack.enter_context(Path(name).open("rb"))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InvalidRequest("file", f"{name} cannot be opened ({reason})") from error
        else:
            stream = getattr(path_or_stream, "buffer", path_or_stream)
            name = str(getattr(stream, "name", "<stream>"))
        head, stream = _rewound(InputFile(name, stream), stream)
        if head.startswith(_GZIP):
            stream = gzip.GzipFile(fileobj=stream)
            head, stream = _rewound(InputFile(name, stream), stream)
        elif name.lower().endswith(".gz"):
            raise InvalidRecord(name, None, "file", "is not gzip data, although its name ends with .gz")
        yield InputFile(name, stream), known or _guess(name, head)


def _rewound(source: InputFile, stream: IO[bytes]) -> tuple[bytes, IO[bytes]]:
    """The first bytes, and a stream that begins with them, without a byte order mark."""
    head = b""
    while len(head) < _HEAD and (more := source.read(_HEAD - len(head))):
        head += more
    head = head.removeprefix(_BOM)
    if not head.strip(_BLANK):
        ended = not source.read(1)
        if ended or len(head) >= _HEAD - len(_BOM):
            raise source.invalid(None, "file", "is empty" if ended else "begins with nothing but blanks")
    return head, io.BufferedReader(_Rewound(head, stream), _HEAD)


class _Rewound(io.RawIOBase):
    """What was read to look at it, then the rest of the stream."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)]
        self._head = self._head[len(data) :]
        data = data or self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _guess(name: str, head: bytes) -> Format:
    plain = name.lower().removesuffix(".gz")
    if plain.endswith(_LINE_SUFFIXES):
        return Format.JSON_LINES
    first = head.lstrip(_BLANK).split(b"\n", 1)[0]
    try:
        value = decode_line(first)
    except Unstorable:
        return Format.JSON_LINES if _KIND_FIRST.match(first) else Format.NODE_LINK
    is_record = isinstance(value, dict) and "kind" in value and "nodes" not in value
    return Format.JSON_LINES if is_record else Format.NODE_LINK
