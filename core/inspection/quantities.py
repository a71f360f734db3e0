"""Numbers as people read them."""

from __future__ import annotations

from graph_migrator.core.plural import count, plural

__all__ = ["count", "duration", "pace", "plural", "quantity", "time_range"]


def duration(seconds: float | None) -> str:
    """A duration; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def time_range(low: float, high: float) -> str:
    """From one duration to another; one of them where both read alike."""
    first, last = duration(low), duration(high)
    return f"{first} to {last}" if first != last else f"about {first}"


def pace(rows_per_second: float | None, seconds_left: float | None) -> str:
    """How fast a running hop is, and how long it will take; empty where that is not known."""
    parts = []
    if rows_per_second:
        parts.append(f"{rows_per_second:,.0f} rows/s")
    if seconds_left is not None:
        parts.append(f"about {duration(seconds_left)} left")
    return ", ".join(parts)


def quantity(value: float | None, unit: str) -> str:
    """A measured value with its unit; nothing for None."""
    if value is None:
        return ""
    number = f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"
    one = unit[:-1] if value == 1 and unit.endswith("s") and len(unit) > 2 else unit
    return f"{number} {one}".strip()
