"""When failures hold a rollout. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graph_migrator.core.plural import count
from graph_migrator.core.rollouts.strategy import Strategy

LOOK_BACK = 200
"""The share of failures is that of this many graphs, those that settled last."""
_AT_LEAST = 3


@dataclass(frozen=True)
class FailedGroup:
    """Failures with one cause since the rollout was started or resumed."""

    group: str
    count: int
    canaries: int
    crashed: int
    graphs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tripped:
    """Why the breaker stops the rollout."""

    why: str
    group: str | None
    graphs: tuple[str, ...]


def breaker(
    groups: Sequence[FailedGroup], settled: int, failed_of_settled: int, strategy: Strategy
) -> Tripped | None:
    """Decide whether failures hold the rollout.

    Args:
        groups: What failed since the start or the last resume. Graphs finally failed are counted, not tries.
        settled: How many graphs settled since then, `LOOK_BACK` at most.
        failed_of_settled: How many of those failed.
        strategy: The limits.

    Returns:
        The first limit that is passed; None where none is. Crashes come before the error group that they are all of.
    """
    for each in groups:
        if each.canaries:
            return Tripped(f"{each.canaries} of the canaries failed", each.group, each.graphs)
    crashed = [each for each in groups if each.crashed]
    if sum(each.crashed for each in crashed) >= strategy.max_crashes:
        graphs = tuple(graph for each in crashed for graph in each.graphs)
        return Tripped(
            f"hops of {count(sum(e.crashed for e in crashed), 'graph')} killed their process", None, graphs
        )
    for each in groups:
        if each.count >= strategy.max_failures:
            return Tripped(
                f"{count(each.count, 'graph')} failed with one error group", each.group, each.graphs
            )
    limit = settled * strategy.max_failure_percent / 100
    if failed_of_settled >= _AT_LEAST and failed_of_settled > limit:
        graphs = tuple(graph for each in groups for graph in each.graphs)[:5]
        return Tripped(f"{failed_of_settled} of the last {settled} settled graphs failed", None, graphs)
    return None
