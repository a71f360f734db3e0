"""A large graph in shards: a million nodes, one worker and two, against the same hop without shards and a bare UPDATE.

    python -m bench.shards

Real workers with the solo pool, one process each. Every run gets a database of its own, copied from one template.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Literal

from celery import Celery

from bench.bulk import GRAPH, _set_based, make_template
from bench.chain import Contender, _start, _stop
from bench.database import connect, environment, server
from bench.results import at_least, at_most
from bench.types import BATCH, RENAME, rename
from graph_migrator import GraphType, Nodes
from graph_migrator.core.embedded import Postgres, Redis

SQL = RENAME + " AND id BETWEEN :first AND :last"


def _by_python(shards: Literal["auto"] | None = None) -> GraphType:
    kind = GraphType("bench-large")
    kind.hop(1, 2, over=Nodes(), batch_size=BATCH, shards=shards)(rename)
    return kind


def _by_sql(shards: Literal["auto"] | None = None) -> GraphType:
    kind = GraphType("bench-large")
    kind.sql_hop(1, 2, name="rename", forward=SQL, over=Nodes(), batch_size=BATCH, shards=shards)
    return kind


python, python_shards, sql, sql_shards = _by_python(), _by_python("auto"), _by_sql(), _by_sql("auto")
CONTENDERS = (
    ("set", 0),
    ("python", 1),
    ("python_shards", 1),
    ("python_shards", 2),
    ("sql", 1),
    ("sql_shards", 2),
)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """All contenders in turn, there and back."""
    rows, rounds = (200_000, 2) if quick else (1_000_000, 3)
    found: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    with server() as postgres, Redis() as redis:
        make_template(postgres, "large", rows)
        for turn in range(rounds):
            for kind, workers in CONTENDERS if turn % 2 == 0 else CONTENDERS[::-1]:
                seconds = measure(postgres, redis, kind, workers)
                found[kind, workers].append(seconds)
                print(
                    f"shards: {kind}, {workers} workers: {rows / seconds:,.0f} rows/s ({seconds:.1f} s)",
                    flush=True,
                )

    def speed(kind: tuple[str, int], against: tuple[str, int]) -> list[float]:
        return [b / a for a, b in zip(found[kind], found[against], strict=True)]

    many = f"{rows:,} rows"
    return [
        at_least(
            f"Python hop in shards, two workers / unsharded, {many}",
            speed(("python_shards", 2), ("python", 1)),
            1.7,
        ),
        at_least(
            "Python hop in shards, two workers / set-based UPDATE",
            speed(("python_shards", 2), ("set", 0)),
            0.8,
        ),
        at_least(
            "SQL hop in shards, two workers / set-based UPDATE", speed(("sql_shards", 2), ("set", 0)), 1.0
        ),
        at_least("SQL hop in shards, two workers / unsharded", speed(("sql_shards", 2), ("sql", 1)), 1.0),
        at_most(
            "Time of a Python hop in shards, one worker / unsharded",
            [a / b for a, b in zip(found["python_shards", 1], found["python", 1], strict=True)],
            1.05,
        ),
    ]


def measure(postgres: Postgres, redis: Redis, kind: str, workers: int) -> float:
    """Seconds from the call to the end, with workers that are up."""
    with _race(postgres) as url:
        if not workers:
            began = time.perf_counter()
            _set_based(url)
            return time.perf_counter() - began
        return _migrate(url, {**environment(postgres, redis), "DATABASE_URL": url}, kind, workers)


@contextmanager
def _race(postgres: Postgres) -> Iterator[str]:
    admin = connect(postgres.url)
    with admin.cursor() as cursor:
        cursor.execute("CREATE DATABASE race TEMPLATE large STRATEGY file_copy")
        url = postgres.url_of("race")
        race = connect(url)
        with race.cursor() as prepare:
            prepare.execute("SELECT count(*), sum(length(properties::text)) FROM graph_migrator.nodes")
        race.close()
        try:
            yield url
        finally:
            cursor.execute("DROP DATABASE race WITH (FORCE)")
            admin.close()


def _migrate(url: str, env: dict[str, str], kind: str, workers: int) -> float:
    with working(env | {"GRAPH_MIGRATOR_TYPES": f"bench.shards:{kind}"}, workers) as client:
        return migrated(client, url, str(GRAPH), 2)


@contextmanager
def working(env: dict[str, str], workers: int) -> Iterator[Celery]:
    """Workers with the solo pool that have announced themselves, and a client that calls them."""
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "graph_migrator",
        "worker",
        "-P",
        "solo",
        "--loglevel",
        "INFO",
    ]
    worker = Contender(
        "shards", lambda _: None, [*command, "-Q", "migrations"], workers, env, ready=" ready."
    )
    with ExitStack() as stack:
        stack.callback(_stop, worker)
        _start(worker)
        _wait_until_announced(env["DATABASE_URL"], workers)
        yield Celery(broker=env["CELERY_BROKER_URL"])


def _wait_until_announced(url: str, workers: int) -> None:
    """No more shards are in flight than the workers that are known have processes."""
    with closing(connect(url)) as watching, watching.cursor() as cursor:
        known = 0
        while known < workers:
            time.sleep(0.1)
            cursor.execute(
                "SELECT count(*) FROM graph_migrator.workers WHERE seen_at > now() - interval '20 s'"
            )
            (known,) = cursor.fetchone()


def migrated(client: Celery, url: str, graph: str, target: int) -> float:
    """Call for the migration of the only graph, and wait until it is at its target. Returns the seconds."""
    watching = connect(url)
    with closing(watching), watching.cursor() as cursor:
        began = time.perf_counter()
        client.send_task("tasks.migrate_graph", args=[graph, target], queue="migrations")
        while True:
            cursor.execute("SELECT version, migration_id FROM graph_migrator.graphs")
            if cursor.fetchone() == (target, None):
                return time.perf_counter() - began
            if time.perf_counter() - began > 600:
                cursor.execute("SELECT status, error_type, error_message FROM graph_migrator.migrations")
                raise TimeoutError(f"{graph} did not come to v{target}: {cursor.fetchall()}")
            time.sleep(0.02)


if __name__ == "__main__":
    from bench.results import table

    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    print(table(run("--quick" in sys.argv)))
