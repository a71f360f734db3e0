"""How long a message waits before it comes again: after a transient error, and for a graph's lock.

How long it waits for a deploy, or after its executor was lost, is decided in `core.decisions`. All waits are jittered
here.

A worker's slot is not for waiting for a lock: a message waits in short turns, between which it is back in the queue,
and in total no longer than a direct call waits. The pauses grow, so that many messages that wait leave the slots to
others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from graph_migrator.core.decisions import Later
from graph_migrator.core.settings import settings

_ONE_TURN: Final = 0.5
_PAUSES: Final = (0.7, 1.0, 1.5, 2.2, 3.0)
"""Seconds after the first turn, the second, and so on; the last is for all that follow. Writers get in meanwhile."""


def jittered(seconds: float, spread: float = 0.2) -> float:
    """`seconds`, up to the share `spread` more or less: what failed together comes back one by one."""
    return seconds * random.uniform(1 - spread, 1 + spread)  # noqa: S311 - no secret


def backoff(tries: int) -> float:
    """Seconds to wait after `tries` transient errors: exponential, with jitter on its upper half."""
    s = settings()
    # After hours of an outage 2.0**tries is no float any more.
    longest: float = min(s.retry_base_seconds * 2.0 ** min(tries, 64), s.retry_max_seconds)
    return jittered(longest * 0.75, 1 / 3)


@dataclass(frozen=True)
class Turn:
    """One wait for a lock.

    Attributes:
        seconds: How long it may last.
        pause: Seconds until the next one.
        is_last: Whether the message is refused when it ends without the lock.
    """

    seconds: float
    pause: float
    is_last: bool


def next_turn(turns: int | None) -> Turn:
    """The wait that is due after this many turns; None: a direct call, which waits in one go."""
    limit = settings().writer_drain_seconds
    if turns is None:
        return Turn(limit, 0, is_last=True)
    waited = turns * _ONE_TURN + sum(_pause_after(turn) for turn in range(turns))
    seconds = max(0.0, min(_ONE_TURN, limit - waited))
    return Turn(seconds, _pause_after(turns), is_last=waited + seconds >= limit)


def _pause_after(turn: int) -> float:
    return _PAUSES[min(turn, len(_PAUSES) - 1)]


class NotThisTurn(Exception):
    """The lock was unavailable in this turn.

    Attributes:
        later: When the message is to come again, and why.
    """

    def __init__(self, later: Later) -> None:
        super().__init__(later.why)
        self.later = later
