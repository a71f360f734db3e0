"""How long a rollout still takes: a range, from its own settled graphs. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, pvariance
from typing import Final

_FEWEST: Final = 5
_ONE_IN_TEN: Final = NormalDist().inv_cdf(0.9)


@dataclass(frozen=True)
class Estimate:
    """Seconds of work left, without bakes and gates.

    Attributes:
        low: One in ten rollouts whose graphs are like the settled ones is faster.
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
    settled: Sequence[tuple[int, float]], left: Mapping[int, int], in_flight: int
) -> Estimate | None:
    """Estimate the work left.

    Its graphs are thought of as drawn from the settled ones of their class, as many as those at most: few settled
    graphs say little about many that are left. The sum of the draws has the mean and the variance of resampling, and
    is taken for normal.

    Args:
        settled: Size class, and seconds for which a place was taken, of graphs that succeeded.
        left: How many graphs are left, by size class.
        in_flight: How many places there are.

    Returns:
        The range, or None before five graphs have settled. A class without any settled graph takes all of them.
    """
    if len(settled) < _FEWEST:
        return None
    by_class: dict[int, list[float]] = defaultdict(list)
    for each, seconds in settled:
        by_class[each].append(seconds)
    everything = [seconds for _, seconds in settled]
    mean = variance = shortest = longest = 0.0
    for each, count in left.items():
        values = by_class.get(each, everything)
        mean += count * fmean(values)
        variance += count**2 * pvariance(values) / max(1, min(count, len(values)))
        shortest += count * min(values)
        longest += count * max(values)
    reach = _ONE_IN_TEN * variance**0.5
    places = max(1, in_flight)
    low, high = max(mean - reach, shortest), min(mean + reach, longest)
    return Estimate(low / places, max(low, high) / places, len(settled))
