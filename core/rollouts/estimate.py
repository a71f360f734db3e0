"""How long a rollout still takes: a range, resampled from its own settled graphs. Pure."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_FEWEST: Final = 5
_SAMPLES: Final = 200


@dataclass(frozen=True)
class Estimate:
    """Seconds of work left, without bakes and gates.

    Attributes:
        low: One in ten resampled rollouts is faster.
        high: One in ten is slower.
        graphs: On how many settled graphs it rests.
    """

    low: float
    high: float
    graphs: int


def size_class(rows: int | None) -> int:
    """Graphs of one class differ by less than a factor of ten in rows."""
    return -1 if rows is None else len(str(rows)) - (rows == 0)


def left_by_size(sizes: Mapping[int, int], pending: int, *, smallest_first: bool) -> dict[int, int]:
    """How many of the graphs that wait are of each size class, from what there was at the start.

    Args:
        sizes: All graphs by class, as they were counted at the start.
        pending: How many wait.
        smallest_first: They are moved by size, so the largest are left; else each class shrinks alike.
    """
    if not sizes:
        return {-1: pending} if pending else {}
    if not smallest_first:
        total = sum(sizes.values())
        return {each: round(count * pending / total) for each, count in sizes.items()}
    left: dict[int, int] = {}
    for each in sorted(sizes, reverse=True):
        left[each] = min(pending, sizes[each])
        pending -= left[each]
    return left


def estimate(
    settled: Sequence[tuple[int, float]], left: Mapping[int, int], in_flight: int, *, seed: int = 0
) -> Estimate | None:
    """Estimate the work left.

    Args:
        settled: Size class, and seconds from dispatch to the end, of graphs that succeeded.
        left: How many graphs are left, by size class.
        in_flight: How many are on their way at once.
        seed: Of the resampling; the same values give the same range.

    Returns:
        The range, or None before five graphs have settled. A class without any settled graph takes all of them.
    """
    if len(settled) < _FEWEST:
        return None
    by_class: dict[int, list[float]] = defaultdict(list)
    for each, seconds in settled:
        by_class[each].append(seconds)
    everything = [seconds for _, seconds in settled]
    chance = random.Random(seed)  # noqa: S311 - statistics
    totals = []
    for _ in range(_SAMPLES):
        total = 0.0
        for each, count in left.items():
            values = by_class.get(each, everything)
            drawn = chance.choices(values, k=min(count, len(values)))
            total += count * sum(drawn) / len(drawn) if drawn else 0.0
        totals.append(total / max(1, in_flight))
    totals.sort()
    return Estimate(totals[_SAMPLES // 10], totals[_SAMPLES * 9 // 10], len(settled))
