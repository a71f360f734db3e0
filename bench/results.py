"""The form of a result: a ratio against a contender, and the reach it is meant to have."""

from __future__ import annotations

import statistics
from typing import Any


def at_least(name: str, ratios: list[float], reach: float) -> dict[str, Any]:
    """A ratio that should not fall below `reach`."""
    return _line(name, ratios, reach, most=False)


def at_most(name: str, ratios: list[float], reach: float) -> dict[str, Any]:
    """A ratio that should not rise above `reach`."""
    return _line(name, ratios, reach, most=True)


def _line(name: str, ratios: list[float], reach: float, *, most: bool) -> dict[str, Any]:
    low, high = min(ratios), max(ratios)
    if len(ratios) >= 8:  # quartiles say more than the extremes of many rounds
        low, _, high = statistics.quantiles(ratios, n=4)
    middle = statistics.median(ratios)
    return {
        "name": name, "ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3),
        "reach": reach, "met": middle <= reach if most else middle >= reach, "at_most": most,
    }  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    """All lines, and how many are met."""
    width = max([len(line["name"]) for line in lines], default=0)
    rows = [f"{'':{width}}    ratio      low     high    reach"]
    for line in lines:
        numbers = "".join(f" {line[key]:8.3f}" for key in ("ratio", "low", "high", "reach"))
        rows.append(f"{line['name']:{width}} {numbers}  {'met' if line['met'] else 'NOT MET'}")
    rows.append(f"{sum(line['met'] for line in lines)} of {len(lines)} are met")
    return "\n".join(rows)


def markdown(lines: list[dict[str, Any]]) -> str:
    """The same as a table for docs/benchmarks.md."""
    rows = ["| line | ratio | low | high | reach | |", "|---|---|---|---|---|---|"]
    for line in lines:
        sign = "<=" if line["at_most"] else ">="
        numbers = " | ".join(f"{line[key]:.2f}" for key in ("ratio", "low", "high"))
        met = "met" if line["met"] else "**not met**"
        rows.append(f"| {line['name'].strip()} | {numbers} | {sign} {line['reach']:g} | {met} |")
    rows.append(f"\n{sum(line['met'] for line in lines)} of {len(lines)} are met.")
    return "\n".join(rows)
