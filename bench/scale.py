"""Flat cost: a migration among 10 to 10,000 graphs, and a row among 10,000 to 1,000,000.

python -m bench.scale          draws docs/scale.svg as well
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from bench import bulk
from bench.bulk import make_template, measure
from bench.database import connect, make_graphs, server
from bench.plot import line_chart, side_by_side
from bench.results import at_most
from bench.types import small
from graph_migrator import run_graph_migration
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors

PLOT = Path(__file__).parents[1] / "docs" / "scale.svg"
KINDS = {"bench-sql": "SQL hop", "bench-python": "Python hop"}
_WARM_UP, _ROUNDS, _EACH = 10, 5, 20


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Both curves; each point is a median."""
    graphs = (10, 100, 1_000) if quick else (10, 100, 1_000, 10_000)
    rows = (1_000, 10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    with server() as postgres:
        by_graphs, ratios = _per_migration(postgres, graphs)
        for count in rows:
            if any((kind, count) not in bulk.SECONDS for kind in KINDS):
                make_template(postgres, f"rows_{count}", count)
                for kind in KINDS:
                    times = [measure(postgres, f"rows_{count}", kind)["seconds"] for _ in range(3)]
                    bulk.SECONDS[kind, count] = times
    by_rows = {
        kind: {count: statistics.median(bulk.SECONDS[kind, count]) / count * 1e6 for count in rows}
        for kind in KINDS
    }
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
        PLOT.write_text(side_by_side(charts))
    return [
        at_most(
            f"Cost per migration at {graphs[-1]:,} / {graphs[0]:,} graphs",
            ratios,
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


def _per_migration(postgres: Postgres, sizes: tuple[int, ...]) -> tuple[dict[int, float], list[float]]:
    """Milliseconds by size, and the ratio of the two ends in each of five rounds.

    A database for each size, and their migrations in turn: so they share whatever else the machine does.
    """
    registry.register(small)
    admin = connect(postgres.url)
    waiting: dict[int, list[UUID]] = {}
    executors: dict[int, Executors] = {}
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes:
        with admin.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE graphs_{size}")
        url = postgres.url_of(f"graphs_{size}")
        upgrade(url)
        connection = connect(url)
        with connection.cursor() as cursor:
            make_graphs(cursor, "bench-other", size)
            waiting[size] = make_graphs(cursor, "bench-small", _WARM_UP + _ROUNDS * _EACH)
            cursor.execute("VACUUM ANALYZE")
        connection.close()
        executors[size] = Executors(make_engine(url))
    for graphs in zip(*waiting.values(), strict=True):
        for size, graph in zip(sizes, graphs, strict=True):
            began = time.perf_counter()
            run_graph_migration(executors[size], graph)
            times[size].append((time.perf_counter() - began) * 1e3)
    for each in executors.values():
        each.close()
    admin.close()

    def median(size: int, turn: int) -> float:
        start = _WARM_UP + turn * _EACH
        return statistics.median(times[size][start : start + _EACH])

    ratios = [median(sizes[-1], turn) / median(sizes[0], turn) for turn in range(_ROUNDS)]
    return {size: statistics.median(times[size][_WARM_UP:]) for size in sizes}, ratios


if __name__ == "__main__":
    from bench.results import table

    print(table(run("--quick" in sys.argv)))
