"""Which failures have one cause. Pure.

Two failures are of one group where error class, hop, the innermost line of the hop's own code, and the message
without ids, numbers and quoted text are the same.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

_FRAME: Final = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)', re.M)
_FOREIGN: Final = re.compile(
    r"site-packages|dist-packages|/lib(64)?/python3|<frozen |<string>|graph_migrator/(core|tasks)/"
)
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.I)
_QUOTED: Final = re.compile(r"\"[^\"]*\"|'[^']*'|`[^`]*`")
_NUMBER: Final = re.compile(r"\b0x[0-9a-f]+\b|\d+(\.\d+)?", re.I)


@dataclass(frozen=True)
class ErrorGroup:
    """One cause of failures.

    Attributes:
        key: Short and stable; operators name the group by it.
        title: What a person reads.
    """

    key: str
    title: str


def error_group(
    error_type: str,
    message: str | None,
    hop: str | None = None,
    traceback: str | None = None,
    graph: str = "",
) -> ErrorGroup:
    """The group of a failure.

    Args:
        error_type: The error's recorded type.
        message: The recorded message.
        hop: The hop that raised it; None where none did.
        traceback: The recorded traceback.
        graph: The graph's slug, which messages quote.
    """
    line = innermost_line(traceback)
    said = normalised(message or "", graph)
    digest = hashlib.sha256("\0".join((error_type, hop or "", line or "", said)).encode()).hexdigest()[:8]
    name = error_type.rpartition(".")[2]
    where = f" in {hop}" if hop else ""
    at = f" ({line})" if line else ""
    return ErrorGroup(digest, f"{name}{where}{at}: {said}"[:300])


def innermost_line(traceback: str | None) -> str | None:
    """``file:line`` of the last frame that is neither ours nor a library's; None where there is none."""
    own = [f for f in _FRAME.finditer(traceback or "") if not _FOREIGN.search(f["file"])]
    return f"{own[-1]['file'].rpartition('/')[2]}:{own[-1]['line']}" if own else None


def normalised(message: str, graph: str = "") -> str:
    """A message without what differs from graph to graph."""
    first = message.partition("\n")[0]
    if graph:
        first = first.replace(graph, "…")
    for what in (_UUID, _QUOTED, _NUMBER):
        first = what.sub("…", first)
    return first.strip()
