"""Flat cost: a migration among 10 to 10,000 graphs, and a row among 10,000 to 1,000,000.

python -m bench.scale          draws docs/scale.svg as well
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.bulk import make_template, measure
from bench.database import connect, make_graphs, server
from bench.plot import line_chart
from bench.results import at_most
from bench.types import small
from core import registry, run_graph_migration
from core.store.engine import make_engine
from core.store.executor import Executors
from core.store.schema import upgrade

PLOT = Path(__file__).parents[1] / "docs" / "scale.svg"
KINDS = {"bench-sql": "SQL hop", "bench-python": "Python hop"}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Both curves; each point is a median."""
    graphs = (10, 100, 1_000) if quick else (10, 100, 1_000, 10_000)
    rows = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    with server() as postgres:
        by_graphs = _per_migration(postgres.url, graphs)
        by_rows: dict[str, dict[int, float]] = {kind: {} for kind in KINDS}
        for count in rows:
            make_template(postgres, f"rows_{count}", count)
            for kind in KINDS:
                times = [
                    measure(postgres, f"rows_{count}", kind)["seconds"]
                    for _ in range(3 if count < 10**6 else 1)
                ]
                by_rows[kind][count] = statistics.median(times) / count * 1e6
    for count, seconds in by_graphs.items():
        print(f"scale: {count:>9,} graphs: {seconds:6.2f} ms a migration")
    for kind, name in KINDS.items():
        for count, micros in by_rows[kind].items():
            print(f"scale: {count:>9,} rows: {micros:6.2f} us a row, {name}")
    if not quick:
        charts = [
            line_chart("ms per migration of 3 hops, by graphs in the database", {"inline": by_graphs}),
            line_chart(
                "µs per row, by rows in the graph", {name: by_rows[kind] for kind, name in KINDS.items()}
            ),
        ]
        PLOT.write_text(_side_by_side(charts))
    return [
        at_most(
            f"Cost per migration at {graphs[-1]:,} / {graphs[0]:,} graphs",
            [by_graphs[graphs[-1]] / by_graphs[graphs[0]]],
            1.15,
        ),
        *(
            at_most(
                f"Cost per row at {rows[-1]:,} / {rows[0]:,} rows, {name}",
                [by_rows[kind][rows[-1]] / by_rows[kind][rows[0]]],
                1.15,
            )
            for kind, name in KINDS.items()
        ),
    ]


def _per_migration(url: str, sizes: tuple[int, ...]) -> dict[int, float]:
    registry.register(small)
    upgrade(url)
    admin, engine = connect(url), make_engine(url)
    executors = Executors(engine)
    found: dict[int, float] = {}
    with admin.cursor() as cursor:
        there = 0
        for size in sizes:
            make_graphs(cursor, "bench-other", size - there)
            there = size
            cursor.execute("VACUUM ANALYZE")
            times = []
            for graph in make_graphs(cursor, "bench-small", 60):
                began = time.perf_counter()
                run_graph_migration(executors, graph)
                times.append(time.perf_counter() - began)
            found[size] = statistics.median(times) * 1e3
            there += 60
    executors.close()
    engine.dispose()
    admin.close()
    return found


def _side_by_side(charts: list[str]) -> str:
    moved = "".join(
        f'<g transform="translate({place * 460} 0)">{chart}</g>' for place, chart in enumerate(charts)
    )
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 280" font-family="sans-serif" font-size="12">'
    return f'{head}<rect width="920" height="280" fill="white"/>{moved}</svg>\n'


if __name__ == "__main__":
    from bench.results import table

    print(table(run("--quick" in sys.argv)))
