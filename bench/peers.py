"""What the chain is measured against: the same three commits a migration, carried by others.

The peers write to tables without our guard and without our audit rows. Each is run as its own documentation
says, in two worker processes, on the same servers.

    python -m bench.peers dbos|procrastinate|loop     one worker process
"""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from typing import Any

import psycopg2

HOPS = (1, 2, 3)
_UPDATE = "UPDATE public.plain_nodes SET properties = properties || '{\"seen\": %s}' WHERE graph_id = %s"
_VERSION = "UPDATE public.plain_graphs SET version = %s WHERE id = %s AND version = %s"


@cache
def _connection() -> Any:
    return psycopg2.connect(os.environ["BENCH_DATABASE"])


def commit_hop(graph: str, hop: int) -> None:
    """One hop: the data and the version, in one transaction."""
    connection = _connection()
    with connection.cursor() as cursor:
        cursor.execute(_UPDATE, (hop, graph))
        cursor.execute(_VERSION, (hop + 1, graph, hop))
    connection.commit()


# ── Celery without durability ───────────────────────────────────────────────────────────────────────


def bare_app() -> Any:
    """Celery as it comes, JSON on Redis: `begin` is replaced by a chain of three hops."""
    from celery import Celery, chain

    app = Celery("bare", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
    app.conf.task_default_queue = "bare"

    @app.task(name="bare.hop")
    def hop(graph: str, number: int) -> None:
        commit_hop(graph, number)

    @app.task(name="bare.begin", bind=True)
    def begin(self: Any, graph: str) -> Any:
        return self.replace(chain(*(hop.si(graph, number) for number in HOPS)))

    return app


if "BENCH_BARE" in os.environ:
    app = bare_app()


# ── DBOS ────────────────────────────────────────────────────────────────────────────────────────────


def dbos_config() -> Any:
    return {
        "name": "bench",
        "system_database_url": os.environ["BENCH_DBOS"],
        "log_level": "ERROR",
        "sys_db_pool_size": 20,
        "application_version": "bench",
    }


def serve_dbos(variant: str) -> None:
    """A workflow of three steps from a queue; each step commits its hop."""
    from dbos import DBOS

    DBOS(config={**dbos_config(), "executor_id": f"worker-{os.getpid()}"})
    concurrency = int(variant.rpartition("-")[2])

    from threading import local

    own = local()

    @DBOS.step()
    def hop(graph: str, number: int) -> None:
        if not hasattr(own, "connection"):
            own.connection = psycopg2.connect(os.environ["BENCH_DATABASE"])
        with own.connection.cursor() as cursor:
            cursor.execute(_UPDATE, (number, graph))
            cursor.execute(_VERSION, (number + 1, graph, number))
        own.connection.commit()

    @DBOS.workflow(name="migrate")
    def migrate(graph: str) -> None:
        for number in HOPS:
            hop(graph, number)

    DBOS.launch()
    DBOS.register_queue("bench", worker_concurrency=concurrency, polling_interval_sec=0.02)
    print("ready", flush=True)
    while True:
        time.sleep(60)


def dbos_client() -> Any:
    from dbos import DBOSClient

    return DBOSClient(system_database_url=os.environ["BENCH_DBOS"])


# ── Procrastinate ───────────────────────────────────────────────────────────────────────────────────


def procrastinate_app() -> Any:
    """One job a hop, each of which defers the next."""
    import procrastinate

    conninfo = os.environ["BENCH_DATABASE"]
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo))

    @app.task(name="hop", queue="bench")
    async def hop(graph: str, number: int) -> None:
        commit_hop(graph, number)
        if number < HOPS[-1]:
            await hop.defer_async(graph=graph, number=number + 1)

    app.hop = hop
    return app


def serve_procrastinate() -> None:
    import asyncio

    async def work() -> None:
        app = procrastinate_app()
        async with app.open_async():
            print("ready", flush=True)
            await app.run_worker_async(queues=["bench"], concurrency=1, delete_jobs="never")

    asyncio.run(work())


def loop() -> None:
    """The commits alone, of each graph that a line names."""
    for line in sys.stdin.read().split():
        for hop in HOPS:
            commit_hop(line, hop)


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        loop()
    elif sys.argv[1].startswith("dbos"):
        serve_dbos(sys.argv[1])
    else:
        serve_procrastinate()
