"""How often a hop may go wrong, by the settings."""

from __future__ import annotations

from graph_migrator.core.decisions import Limits, LossLimitReached
from graph_migrator.core.errors import HopCrashedRepeatedly, HopInterruptedRepeatedly
from graph_migrator.core.settings import settings


def limits_of_settings() -> Limits:
    """How often a hop may go wrong, by the settings."""
    s = settings()
    return Limits(s.max_crashes, s.max_interruptions, s.deploy_seconds, s.max_transient_tries)


def lost_too_often(graph: str, hop: str, reached: LossLimitReached) -> Exception:
    """The error of a migration whose hop lost its executor too often; it says which way."""
    losses = reached.losses
    if reached.by_crashes:
        return HopCrashedRepeatedly(graph, hop, losses.crashes, losses.how or "")
    return HopInterruptedRepeatedly(graph, hop, losses.interruptions)
