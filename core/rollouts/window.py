"""When a rollout may dispatch: ``Mon-Fri 01:00-05:00 Europe/Berlin``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM: Final = re.compile(r"(?:(\w{3})(?:-(\w{3}))?\s+)?(\d\d:\d\d)-(\d\d:\d\d)\s+([\w/+-]+)")


@dataclass(frozen=True)
class Window:
    """Days of the week and a time of day in a time zone. It may cross midnight; the day is that of its start."""

    days: frozenset[int]
    opens: time
    shuts: time
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read a window.

        Args:
            text: ``[DAY[-DAY]] HH:MM-HH:MM ZONE``; every day where none is named.

        Raises:
            ValueError: It is no window, or one that never opens.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"a window is written like 'Mon-Fri 01:00-05:00 Europe/Berlin', not {text!r}")
        first, last, opens, shuts, zone = found.groups()
        try:
            window = cls(
                _days(first, last), time.fromisoformat(opens), time.fromisoformat(shuts), ZoneInfo(zone)
            )
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"no such window: {text!r} ({error})") from None
        if window.opens == window.shuts:
            raise ValueError(f"the window {text!r} never opens")
        return window

    def is_open(self, now: datetime) -> bool:
        """Whether the moment (with a time zone) lies in the window."""
        there = now.astimezone(self.zone)
        clock = there.time()
        if self.opens < self.shuts:
            return there.weekday() in self.days and self.opens <= clock < self.shuts
        if clock >= self.opens:
            return there.weekday() in self.days
        yesterday = (there - timedelta(days=1)).weekday()
        return clock < self.shuts and yesterday in self.days


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    start = _DAYS.index(first.lower())
    end = start if last is None else _DAYS.index(last.lower())
    return frozenset((start + step) % 7 for step in range((end - start) % 7 + 1))
