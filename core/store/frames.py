"""What the frames of a traceback say about an author's code, without anything that can hold data.

Python's own rendering is not used. From 3.13 on it prints whole statements, values on their later lines among
them, and it prints the text of code that was generated, which may be made of data.
"""

from __future__ import annotations

import ast
import sysconfig
import traceback as tracebacks
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Final

_LIBRARIES: Final = tuple(
    {sysconfig.get_path(each) for each in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_HERE: Final = Path(__file__).parents[1]
_OURS: Final = tuple(
    {
        f"{folder}/"
        for folder in (
            _HERE,
            _HERE.resolve(),
            *((each.parent / "tasks") for each in (_HERE, _HERE.resolve())),
        )
    }
)
"""The folders of this project's own code: as it was imported, and without links."""
_LONGEST_LINE: Final = 200
_MOST_FRAMES: Final = 50
"""Frames that are kept from either end of a traceback; a recursion without end has a thousand."""

Position = tuple[int | None, int | None, int | None, int | None]
"""Where an expression or a statement stands: line, last line, column, last column."""


def render(trace: TracebackType | None) -> str:
    """Each frame's file, line and function; for code that is in a file and in no library, that line of the file."""
    frames = [_rendered(frame) for frame in _frames(trace)]
    hidden = len(frames) - 2 * _MOST_FRAMES
    if hidden > 0:
        frames[_MOST_FRAMES:-_MOST_FRAMES] = [f"  [{hidden} more frames]\n"]
    return "".join(frames)


def is_raised_by_author(trace: TracebackType | None) -> bool:
    """Whether a ``raise`` statement of an author's own code raised the error.

    The words of such an error are the author's. All other errors were raised by Python or by a library, about
    a value that they were given. Code whose file is missing or has changed counts as theirs.
    """
    frames = _frames(trace)
    if not frames:
        return True  # it was never raised, so whoever made it chose its words
    last = frames[-1]
    if _is_of_a_library(last.filename):
        return False
    raises = _parsed(last.filename).raises
    if last.colno is None:  # Python runs with -X no_debug_ranges and knows lines only
        return any(line == last.lineno for line, *_ in raises)
    return (last.lineno, last.end_lineno, last.colno, last.end_colno) in raises


def last_of_author(trace: TracebackType | None) -> str | None:
    """The last line of the author's own code that the error passed: ``types.py:31 in split_names: code``.

    Returns:
        None where no frame is of an author: the error was raised by this project or by Postgres.
    """
    for frame in reversed(_frames(trace)):
        if not _is_of_a_library(frame.filename) and not frame.filename.startswith(_OURS):
            lines = _parsed(frame.filename).lines
            code = lines[frame.lineno - 1].strip() if frame.lineno and frame.lineno <= len(lines) else ""
            where = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
            return f"{where}: {code[:_LONGEST_LINE]}" if code else where
    return None


def of_files(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without code that was generated, whose text Python would print, and which may hold data."""
    kept: list[TracebackType] = []
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).suffix == ".py":
            kept.append(trace)
        trace = trace.tb_next
    built: TracebackType | None = None
    for each in reversed(kept[-2 * _MOST_FRAMES :]):
        built = TracebackType(built, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return built


def words_of_authors(trace: TracebackType | None) -> frozenset[str]:
    """Every text constant in the files of the author's frames: it is no secret that an error repeats one."""
    files = {frame.filename for frame in _frames(trace) if not _is_of_a_library(frame.filename)}
    return frozenset().union(*(_parsed(file).words for file in files))


def _frames(trace: TracebackType | None) -> list[tracebacks.FrameSummary]:
    return list(tracebacks.extract_tb(trace))


def _rendered(frame: tracebacks.FrameSummary) -> str:
    where = f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n'
    lines = () if _is_of_a_library(frame.filename) else _parsed(frame.filename).lines
    if frame.lineno is None or not 0 < frame.lineno <= len(lines):
        return where
    return f"{where}    {lines[frame.lineno - 1].strip()[:_LONGEST_LINE]}\n"


def _is_of_a_library(file: str) -> bool:
    return file.startswith(_LIBRARIES)


class _File:
    """The lines of a Python file, its text constants, and where its `raise` statements are."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        nodes = list(_nodes(text))
        self.raises = frozenset(_position(node) for node in nodes if isinstance(node, ast.Raise))
        self.words = frozenset(
            node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )


def _nodes(text: str) -> Iterator[ast.AST]:
    try:
        yield from ast.walk(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError):  # it has changed since it was loaded
        return


def _position(node: ast.Raise) -> Position:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _parsed(file: str) -> _File:
    path = Path(file)
    try:
        return _parsed_at(file, path.stat().st_mtime_ns) if path.suffix == ".py" else _File("")
    except (OSError, ValueError):  # no such file: the code was generated, or is in an archive
        return _File("")


@lru_cache(maxsize=64)
def _parsed_at(file: str, _changed: int) -> _File:
    return _File(Path(file).read_text("utf-8", "replace"))
