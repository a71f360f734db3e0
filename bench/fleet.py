"""What each call costs on a small and on a large fleet, side by side: ``make bench-fleet GRAPHS=100000``.

Both databases are filled with settled migrations, attempts and answered requests; one graph in a hundred waits, one in
a thousand has failed. Every call is made in turn on both, many times; the line of a call is the ratio of its medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine

from bench import fleet_rollout
from bench.database import connect, server
from bench.plot import line_chart, side_by_side
from bench.results import at_most, table
from bench.types import small
from graph_migrator.core.audit.validate import validate
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import recovery
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection import history, metrics
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.graphs import counts, find_graph, list_graphs
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors

SMALL, ROUNDS, WARM_UP = 1_000, 20, 3
PLOT = Path(__file__).parents[1] / "docs" / "fleet.svg"
DRAWN = (("begin, refused", "status", "list, deep page"), ("sweep", "unanswered", "metrics scrape"))

FILL = """
SET search_path = graph_migrator; SET session_replication_role = replica;  -- no look-up for each foreign key
ALTER TABLE graphs DISABLE TRIGGER USER; ALTER TABLE hop_attempts DISABLE TRIGGER USER;
UPDATE pg_index SET indisready = false WHERE indrelid = 'hop_attempts'::regclass AND NOT indisprimary;  -- built at once
INSERT INTO graphs (id, slug, graph_type, version, changed_at)
    SELECT gen_random_uuid(), 'tenant-' || lpad(n::text, 7, '0'), 'bench-small', 4, now() - interval '1 day'
    FROM generate_series(1, {graphs}) n;
INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline, created_at,
                        started_at, finished_at)
    SELECT gen_random_uuid(), g.id, g.graph_type, 1, 4, 'succeeded', '[]', now(), now() - k * interval '1 day',
           now() - k * interval '1 day', now() - k * interval '1 day'
    FROM graphs g, generate_series(1, {migrations}) k;
INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt, dispatch,
                          status, started_at, finished_at, link, hash)
    SELECT m.id, m.graph_id, h, h + 1, 'hop_' || h, 'f', 1, 1, 'succeeded', m.started_at, m.finished_at,
           3 * round(extract(epoch FROM now() - m.created_at) / 86400) - 3 + h, 'unread'
    FROM migrations m, generate_series(1, 3) h;
SET maintenance_work_mem = '1GB';
REINDEX TABLE hop_attempts;
INSERT INTO requests (task_id, verb, graph_id, target, migration_id, created_at, settled_at, answered_at)
    SELECT gen_random_uuid(), 'migrate', m.graph_id, 4, m.id, m.created_at, m.finished_at, m.finished_at
    FROM migrations m;
WITH chosen AS (
    SELECT g.id, row_number() OVER (ORDER BY g.slug) AS n FROM graphs g
), live AS (
    INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline, finished_at,
                            error_type)
    SELECT gen_random_uuid(), id, 'bench-small', 4, 3, CASE WHEN n % 1000 = 0 THEN 'failed' ELSE 'queued' END, '[]',
           now() + interval '1 hour', CASE WHEN n % 1000 = 0 THEN now() END, CASE WHEN n % 1000 = 0 THEN 'E' END
    FROM chosen WHERE n % 100 = 0 RETURNING id, graph_id, finished_at
), waiting AS (
    INSERT INTO requests (task_id, verb, graph_id, target, migration_id, settled_at, answered_at)
    SELECT gen_random_uuid(), 'migrate', graph_id, 3, id, finished_at, finished_at FROM live
)
UPDATE graphs g SET migration_id = live.id FROM live WHERE live.graph_id = g.id;
ALTER TABLE graphs ENABLE TRIGGER USER; ALTER TABLE hop_attempts ENABLE TRIGGER USER;
RESET session_replication_role;
"""


def filled(postgres: Postgres, graphs: int, migrations: int) -> Engine:
    """A database with so many graphs and so many settled migrations of each."""
    admin = connect(postgres.url)
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE fleet_{graphs}")
    admin.close()
    url = postgres.url_of(f"fleet_{graphs}")
    upgrade(url)
    connection = connect(url)
    began = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute(FILL.format(graphs=graphs, migrations=migrations))
        cursor.execute("VACUUM ANALYZE")
    connection.close()
    engine = make_engine(url)
    for _ in range(10_000):  # as the sweeps of the last months did
        with engine.begin() as each:
            before = each.exec_driver_sql("SELECT counted_up_to FROM graph_migrator.metrics_state").scalar()
            if metrics.advance(each) == before:
                break
    print(
        f"fleet: {graphs:,} graphs and {graphs * migrations * 3:,} attempts made in {time.monotonic() - began:.0f} s"
    )
    return engine


def calls(engine: Engine, executors: Executors, graphs: int) -> dict[str, Callable[[], object]]:
    """Every call by name; each may be made again and again."""

    def begin(slug: str, target: int) -> None:
        with executors.borrow() as executor, suppress(GraphMigratorError):
            begin_migration(executor, slug, target)

    def sweep() -> None:
        with recovery.sweeping(executors) as executor:
            assert executor is not None
            recovery.sweep(executor)

    def unanswered() -> None:
        with executors.borrow() as executor:
            recovery.unanswered_calls(executor)

    def scrape() -> None:
        with engine.connect() as connection:
            metrics.measure(connection)

    connection = engine.connect()
    middle, waiting = f"tenant-{graphs // 2 + 1:07}", f"tenant-{graphs // 2_000 * 1_000 + 500:07}"
    deep = f"tenant-{graphs - 100:07}"
    pages: dict[str, dict[str, Any]] = {
        "first page": {},
        "deep page": {"after": deep},
        "state failed": {"state": "failed", "limit": 1},  # as many as the small fleet has
        "state queued": {"state": "queued", "limit": 10},
        "state paused": {"state": "paused"},
        "behind": {"behind": {"bench-small": 4}},
        "one type": {"graph_type": "bench-small"},
    }
    return {
        "begin, nothing to do": partial(begin, middle, 4),
        "begin, refused": partial(begin, middle, 99),
        "begin, in flight": partial(begin, waiting, 2),
        "begin, unknown graph": lambda: begin(str(uuid4()), 2),
        "find": partial(find_graph, connection, middle),
        "status": partial(graph_state, connection, waiting, count_rows=False),
        "history": partial(history.history, connection, middle),
        **{f"list, {name}": partial(list_graphs, connection, **page) for name, page in pages.items()},
        "counts": partial(counts, connection),
        "sweep": sweep,
        "unanswered": unanswered,
        "metrics scrape": scrape,
    }


def run(graphs: int = 100_000, migrations: int = 3) -> list[dict[str, Any]]:
    """The lines of all calls."""
    registry.register(small)
    with server() as postgres:
        sizes = sorted({SMALL, round((SMALL * graphs) ** 0.5), graphs})
        engines = {size: filled(postgres, size, migrations) for size in sizes}
        executors = {size: Executors(engine) for size, engine in engines.items()}
        by_size = {size: calls(engines[size], executors[size], size) for size in engines}
        lines = []
        medians: dict[str, dict[int, float]] = {}
        for name in by_size[SMALL]:
            times: dict[int, list[float]] = {size: [] for size in engines}
            for _ in range(WARM_UP + ROUNDS):
                for size in engines:
                    began = time.perf_counter()
                    by_size[size][name]()
                    times[size].append((time.perf_counter() - began) * 1e3)
            medians[name] = {size: statistics.median(times[size][WARM_UP:]) for size in engines}
            few, many = ([t for t in times[size][WARM_UP:]] for size in (SMALL, graphs))
            print(f"fleet: {name:24} {statistics.median(few):8.2f} ms {statistics.median(many):8.2f} ms")
            ratios = [b / a for a, b in zip(few, many, strict=True)]
            lines.append(at_most(f"{name}: {graphs:,} / {SMALL:,} graphs", ratios, 1.5))
        lines += fleet_rollout.lines(engines[graphs], executors[graphs], graphs)
        began = time.monotonic()
        validate(engines[graphs], {small.name: small})
        print(f"fleet: validate, all of {graphs:,} graphs: {time.monotonic() - began:.1f} s")
        for each in executors.values():
            each.close()
        for engine in engines.values():
            engine.dispose()
    charts = [
        line_chart("ms per call, by graphs in the database", {name: medians[name] for name in drawn})
        for drawn in DRAWN
    ]
    PLOT.write_text(side_by_side(charts), "utf-8")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--graphs", type=int, default=100_000)
    parser.add_argument(
        "--migrations", type=int, default=3, help="settled migrations of each graph, 3 attempts each"
    )
    given = parser.parse_args()
    print(table(run(given.graphs, given.migrations)))
