"""A line chart as SVG: the abscissa logarithmic, the ordinate from zero, so that flat looks flat."""

from __future__ import annotations

import math

_LEFT, _TOP, _WIDTH, _HEIGHT = 60, 40, 370, 190
_COLOURS = ("#1f6feb", "#d1551f", "#2a9d4a")


def line_chart(title: str, series: dict[str, dict[int, float]]) -> str:
    """The elements of one chart, 460 by 280.

    Args:
        title: Stands above it.
        series: By name, the value at each count.
    """
    counts = sorted({count for points in series.values() for count in points})
    top = 1.25 * max(value for points in series.values() for value in points.values())
    low, high = math.log10(counts[0]), math.log10(counts[-1])

    def x(count: int) -> float:
        return _LEFT + _WIDTH * (math.log10(count) - low) / (high - low)

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (1 - value / top)

    parts = [f'<text x="{_LEFT}" y="24" font-weight="bold">{title}</text>']
    for step in range(5):
        value = top * step / 4
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    parts += [
        f'<text x="{x(count):.1f}" y="{_TOP + _HEIGHT + 20}" text-anchor="middle">{count:,}</text>'
        for count in counts
    ]
    for place, (name, points) in enumerate(series.items()):
        colour = _COLOURS[place]
        path = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in sorted(points.items()))
        dots = "".join(
            f'<circle cx="{x(c):.1f}" cy="{y(v):.1f}" r="3.5" fill="{colour}"/>' for c, v in points.items()
        )
        last = max(points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'
            f'<text x="{x(last):.1f}" y="{y(points[last]) - 9:.1f}" text-anchor="end" fill="{colour}">{name}</text>'
        )
    return "".join(parts)


def side_by_side(charts: list[str]) -> str:
    """Two charts as a whole SVG file."""
    moved = "".join(
        f'<g transform="translate({place * 460} 0)">{chart}</g>' for place, chart in enumerate(charts)
    )
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 280" font-family="sans-serif" font-size="12">'
    return f'{head}<rect width="920" height="280" fill="white"/>{moved}</svg>\n'
