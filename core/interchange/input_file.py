"""The file that is imported: opened, unpacked, its dialect recognised."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

from graph_migrator.core.errors import GraphMigratorError, InvalidRecord, InvalidRequest
from graph_migrator.core.interchange.dialect import Dialect, Foreign, container, recognise

LONGEST_RECORD: Final = 64 * 1024 * 1024
"""Bytes of one line, characters of one element. What is longer is taken for damage, not held in memory."""
_HEAD: Final = 64 * 1024
_PIECE: Final = 1024 * 1024
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"
_BLANK: Final = b" \t\r\n"
_LINE_SUFFIXES: Final = (".jsonl", ".ndjson")


class Faults:
    """What a check has found: the first faults, and how many there are.

    Attributes:
        count: All of them.
        first: The first ones, `MOST` at most.
    """

    MOST: Final = 100

    def __init__(self) -> None:
        self.count = 0
        self.first: list[GraphMigratorError] = []

    def add(self, error: GraphMigratorError, count: int = 1) -> None:
        """Count a fault, or several of which `error` speaks."""
        self.count += count
        if len(self.first) < self.MOST:
            self.first.append(error)


class InputFile:
    """Unpacked bytes, and errors that name the file they come from.

    Attributes:
        name: What errors call the file.
        faults: Collects faulty records while a file is checked; None where the first one ends the import.
    """

    def __init__(self, name: str, stream: IO[bytes], faults: Faults | None = None) -> None:
        self.name = name
        self.faults = faults
        self._stream = stream

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end.

        Raises:
            InvalidRecord: The gzip data is damaged.
        """
        return self._guarded(self._stream.read, size, None)

    def read_all(self, most: int) -> bytes:
        """The whole file, for dialects that are not read piece by piece.

        Raises:
            InvalidRecord: It is larger than `most` bytes, or the gzip data is damaged.
        """
        pieces: list[bytes] = []
        size = 0
        while piece := self.read(_PIECE):
            size += len(piece)
            if size > most:
                raise self.invalid(
                    None, "file", f"is larger than {most:,} bytes, and this dialect is read in memory"
                )
            pieces.append(piece)
        return b"".join(pieces)

    def lines(self, *, keep_blank: bool = False) -> Iterator[tuple[int, bytes]]:
        """The lines, each with its number, counted from 1; those that are blank only on demand.

        Raises:
            InvalidRecord: A line is longer than `LONGEST_RECORD`, or the gzip data is damaged.
        """
        number = 0
        while line := self._guarded(self._stream.readline, LONGEST_RECORD + 1, number + 1):
            number += 1
            if len(line) > LONGEST_RECORD:
                raise self.invalid(number, "record", f"is longer than {LONGEST_RECORD:,} bytes")
            if keep_blank or not line.isspace():
                yield number, line

    def invalid(self, line: int | None, field: str, reason: str) -> InvalidRecord:
        """The error to raise about this file. An empty `field` means the record as a whole."""
        printable = (field or "record").encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
        return InvalidRecord(self.name, line, printable, reason)

    def report(self, line: int | None, field: str, reason: str) -> None:
        """A record is faulty, and the next one can be read nevertheless.

        Raises:
            InvalidRecord: The file is not just being checked.
        """
        error = self.invalid(line, field, reason)
        if self.faults is None:
            raise error
        self.faults.add(error)

    def _guarded(self, read: Any, size: int, line: int | None) -> bytes:
        try:
            data: bytes = read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self.invalid(line, "file", f"the gzip data is damaged ({error})") from error
        except OSError as error:
            raise InvalidRequest("file", f"{self.name} cannot be read ({error.strerror or error})") from error
        return data


@contextmanager
def open_input(
    path_or_stream: Any,
    chosen: str | None,
    faults: Faults | None = None,
    otherwise: Dialect | None = None,
) -> Iterator[tuple[InputFile, Dialect]]:
    """Open a file to import; a stream of the caller's is left open.

    Args:
        path_or_stream: A path, or a binary stream, which need not be seekable. Gzip is recognised by its
            first bytes.
        chosen: The dialect; None recognises it by the content.
        faults: Collects faulty records instead of raising the first.
        otherwise: The dialect of what is not recognised; None takes node-link JSON, or JSON Lines where the
            name says so.

    Raises:
        InvalidRequest: There is no such file or dialect.
        InvalidRecord: It is empty, damaged in its first bytes, or of a dialect that is not read.
    """
    known = Dialect.named(chosen) if chosen is not None else None
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
        source = InputFile(name, stream, faults)
        yield source, _dialect(source, head, known, otherwise)


def _dialect(source: InputFile, head: bytes, known: Dialect | None, otherwise: Dialect | None) -> Dialect:
    found = container(head) or (known or recognise(head))
    if isinstance(found, Foreign):
        raise source.invalid(None, "file", found.sentence)
    if found or otherwise:
        return found or otherwise or Dialect.NODE_LINK
    is_lines = source.name.lower().removesuffix(".gz").endswith(_LINE_SUFFIXES)
    return Dialect.JSON_LINES if is_lines else Dialect.NODE_LINK


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
