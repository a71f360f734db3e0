"""The form of a result: a ratio against a contender, and the reach it is meant to have."""

from __future__ import annotations

import statistics
from typing import Any


def at_least(name: str, ratios: list[float], reach: float, *, lower: float | None = None) -> dict[str, Any]:
    """A ratio that should not fall below `reach`, nor its lower quartile below `lower`."""
    line = _line(name, ratios, reach, most=False)
    if lower is not None:
        worst = line.get("quartiles", [line["low"]])[0]
        line |= {"lower_reach": lower, "met": line["met"] and worst >= lower}
    return line


def at_most(name: str, ratios: list[float], reach: float) -> dict[str, Any]:
    """A ratio that should not rise above `reach`."""
    return _line(name, ratios, reach, most=True)


def _line(name: str, ratios: list[float], reach: float, *, most: bool) -> dict[str, Any]:
    middle = statistics.median(ratios)
    line = {
        "name": name, "ratio": round(middle, 3), "low": round(min(ratios), 3), "high": round(max(ratios), 3),
        "reach": reach, "met": middle <= reach if most else middle >= reach, "at_most": most,
    }  # fmt: skip
    if len(ratios) >= 8:  # quartiles say more than the extremes of many rounds
        lower, _, upper = statistics.quantiles(ratios, n=4)
        line |= {"rounds": len(ratios), "quartiles": [round(lower, 3), round(upper, 3)]}
    return line


def table(lines: list[dict[str, Any]]) -> str:
    """All lines, and how many are met."""
    width = max([len(line["name"]) for line in lines], default=0)
    rows = [f"{'':{width}}    ratio        quartiles      low     high    reach"]
    for line in lines:
        numbers = f" {line['ratio']:8.3f} {_quartiles(line, 3):>16}"
        numbers += "".join(f" {line[key]:8.3f}" for key in ("low", "high", "reach"))
        rows.append(f"{line['name']:{width}} {numbers}  {'met' if line['met'] else 'NOT MET'}")
    rows.append(f"{sum(line['met'] for line in lines)} of {len(lines)} are met")
    return "\n".join(rows)


def markdown(lines: list[dict[str, Any]]) -> str:
    """The same as a table for docs/benchmarks.md."""
    rows = ["| line | ratio | quartiles | low | high | reach | |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        reach = f"{'<=' if line['at_most'] else '>='} {line['reach']:g}"
        if "lower_reach" in line:
            reach += f", lower quartile >= {line['lower_reach']:g}"
        met = "met" if line["met"] else "**not met**"
        numbers = f"{line['ratio']:.2f} | {_quartiles(line, 2)} | {line['low']:.2f} | {line['high']:.2f}"
        rows.append(f"| {line['name'].strip()} | {numbers} | {reach} | {met} |")
    rows.append(f"\n{sum(line['met'] for line in lines)} of {len(lines)} are met.")
    return "\n".join(rows)


def _quartiles(line: dict[str, Any], digits: int) -> str:
    """Lower to upper; empty where there were few rounds."""
    return " to ".join(f"{each:.{digits}f}" for each in line.get("quartiles", ()))
