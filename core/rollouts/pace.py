"""How many units a rollout may have in flight under the load of this moment. Pure."""

from __future__ import annotations

from graph_migrator.core.rollouts.health import Level

_STEPS = 10


def next_pace(pace: int, max_in_flight: int, level: Level) -> int:
    """The pace after one more reading of the health signals.

    It halves while a signal says slow, and comes back by a tenth of the limit at a time: load that returns at once
    would bring the signal back with it. A stop holds the rollout, and leaves it to start again slowly.

    Args:
        pace: Units in flight at most, until now.
        max_in_flight: The rollout's own limit.
        level: Of the worst signal.

    Returns:
        One at least, `max_in_flight` at most.
    """
    if level in {Level.SLOW, Level.STOP}:
        pace //= 2
    elif level is Level.GOOD:
        pace += max(1, max_in_flight // _STEPS)
    return max(1, min(pace, max_in_flight))
