"""Cutting a rollout's graphs into stages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graph_migrator.core.rollouts.statuses import StageKind


@dataclass(frozen=True)
class Stage:
    """One stage: its number (from 1), what it is for, and how many graphs it has."""

    number: int
    kind: StageKind
    size: int


def cut_stages(canaries: int, others: int, waves: Sequence[float]) -> tuple[Stage, ...]:
    """Cut the graphs into a canary stage and waves.

    Args:
        canaries: How many graphs were chosen as canaries.
        others: How many graphs are left for the waves.
        waves: Cumulative percentages of the others, the last of them 100.

    Returns:
        Stages with at least one graph each; their sizes add up to all graphs.
    """
    sizes = [(StageKind.CANARY, canaries)] if canaries else []
    done = 0
    for percent in waves:
        upto = others if percent == 100 else min(others, max(done + 1, int(others * percent / 100)))
        if upto > done:
            sizes.append((StageKind.WAVE, upto - done))
            done = upto
    return tuple(Stage(number, kind, size) for number, (kind, size) in enumerate(sizes, 1))
