"""How many graphs go into one pack, and which. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final
from uuid import UUID

FIRST_SIZE: Final = 20
"""Graphs of a pack while nothing is known of their duration."""
MOST: Final = 100
"""Graphs of a pack at most: one turn of the controller sends it as a whole."""
_GROWTH: Final = 4
TOGETHER_SECONDS: Final = 0.25
"""How long graphs that share their transactions may take: for so long each of them is read-only."""


def pack_size(seconds: float, graphs: int, last_size: int, pack_seconds: float) -> int:
    """How many graphs the next pack takes, so that it lasts about as long as it should.

    Args:
        seconds: How long the packs before it took together; 0 where there was none.
        graphs: How many graphs those moved.
        last_size: How many graphs the largest of those had.
        pack_seconds: How long a pack should take.

    Returns:
        One at least. A few quick graphs say little about the next ones, so packs grow step by step.
    """
    if not graphs or seconds <= 0:
        return FIRST_SIZE
    return max(1, min(MOST, _GROWTH * last_size, int(pack_seconds * graphs / seconds)))


def group_size(last_size: int, seconds: float, most: int) -> int:
    """How many graphs of a pack share their transactions next, after some of them did, and all were moved.

    Args:
        last_size: How many that were.
        seconds: How long it took.
        most: How many may.

    Returns:
        One at least. Four times as many each time, as long as they are read-only for a moment only.
    """
    in_time = int(last_size * TOGETHER_SECONDS / seconds) if seconds > 0 else most
    return max(1, min(most, 4 * last_size, in_time))


def share(size: int, waiting: int, places: int) -> int:
    """How many graphs one pack takes of those that wait, so that the last ones are small and end together.

    Args:
        size: How many it may take.
        waiting: Graphs that wait.
        places: Units that may be in flight at one time.

    Returns:
        At most its share, where that is more than a first pack.
    """
    return min(size, max(FIRST_SIZE, ceil(waiting / max(places, 1))))


def cut_units(waiting: Sequence[tuple[UUID, bool]], places: int, size: int) -> list[tuple[UUID, ...]]:
    """Cut waiting graphs into units, in their order. Few small graphs are spread over all places.

    Args:
        waiting: Graphs, and whether each is small enough for a pack.
        places: How many units may be sent.
        size: Graphs of a pack at most.

    Returns:
        `places` units at most: one graph goes as a chain of its own, several go as a pack.
    """
    small = sum(packable for _, packable in waiting)
    most = min(size, ceil(small / places)) if places else 0
    units: list[list[UUID]] = []
    pack: list[UUID] | None = None
    for graph, packable in waiting:
        if packable and pack is not None and len(pack) < most:
            pack.append(graph)
            continue
        if len(units) == places:
            break
        units.append([graph])
        if packable:
            pack = units[-1]
    return [tuple(unit) for unit in units]
