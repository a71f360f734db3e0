"""Slowing a batched hop down between two of its batches, while a health signal asks for it."""

from __future__ import annotations

import time
from typing import Final

from graph_migrator.core.store.protocol import HealthLevel
from graph_migrator.core.store.session import Executor

_READ_EVERY: Final = 5.0
"""Seconds between two looks at the signals."""
_LONGEST: Final = 10.0
"""Seconds at most between two batches: an operator's pause takes effect there."""
_FACTORS: Final = {"slow": 1.0, "stop": 5.0}
"""How many times as long as the batch took. *slow* halves the pace; a hop that has begun is never stopped by load."""


class Brake:
    """The brake of one attempt."""

    def __init__(self) -> None:
        self._level = "good"
        self._next_look = 0.0

    def pause(self, executor: Executor, batch_seconds: float) -> float:
        """Wait as the worst signal asks for.

        Args:
            executor: The hop's session, between two transactions.
            batch_seconds: How long the batch before took.

        Returns:
            Seconds waited; 0 where all is well.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._level, self._next_look = executor.call(HealthLevel()), now + _READ_EVERY
        seconds = min(_LONGEST, batch_seconds * _FACTORS.get(self._level, 0.0))
        if seconds:
            time.sleep(seconds)
        return seconds
