"""The console on a large fleet, and its stream to many clients: ``make bench-console GRAPHS=1000000``.

Pages: the time between request and answer on one connection, with a rollout over all graphs of which a third are moved;
beside it the CPU time of the server's process, which is the same on a busy machine. Stream: clients on sockets of
another process than the server; from the commit of a change to the moment when a client has it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from sqlalchemy import Engine, text

from bench.database import server
from bench.fleet import filled
from bench.types import small
from graph_migrator.core.embedded import free_port
from graph_migrator.core.graph_types import registry
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.store.session import Executors

ROUNDS = 15
PAGES = (
    "/", "/graphs", "/graphs?state=failed", "/graphs?only=behind", "/graphs?after=tenant-0500000",
    "/graphs/tenant-0000500", "/rollouts", "/rollouts/bench-small", "/rollouts/bench-small?status=pending", "/types",
    "/workers", "/audit", "/doctor", "/attempts/1000",
)  # fmt: skip

MOVE = """
SET search_path = graph_migrator;
SET session_replication_role = replica;
CREATE TEMP TABLE moved AS
    SELECT rollout_id, graph_id, md5(((row_number() OVER (ORDER BY stage, position) - 1) / 100)::text)::uuid AS pack_id
    FROM rollout_members WHERE status = 'pending' ORDER BY stage, position
    LIMIT (SELECT count(*) / 3 FROM rollout_members);
INSERT INTO packs (id, rollout_id, status, size, done, first_graph, last_graph, worker, sent_at, resend_at, started_at,
                   ended_at)
    SELECT pack_id, rollout_id, 'closed', 100, 100, 'a', 'b', 'w', now() - interval '8 s', now(),
           now() - interval '4 s', now() FROM moved GROUP BY pack_id, rollout_id;
UPDATE rollout_members m SET status = 'succeeded', request_id = gen_random_uuid(), pack_id = v.pack_id,
       sent_at = now() - interval '8 s', settled_at = now() + interval '1 s' * random()
    FROM moved v WHERE v.rollout_id = m.rollout_id AND v.graph_id = m.graph_id;
UPDATE rollout_stages s SET pending = c.pending, succeeded = c.succeeded
    FROM (SELECT m.stage, count(*) FILTER (WHERE m.status = 'pending') AS pending,
                 count(*) FILTER (WHERE m.status = 'succeeded') AS succeeded FROM rollout_members m GROUP BY m.stage) c
    WHERE c.stage = s.number;
RESET session_replication_role;
"""
"""A third of the rollout's graphs, as packs would have left them."""


def serve(url: str, port: int) -> None:
    """The process of the server."""
    import os

    import uvicorn

    os.environ["DATABASE_URL"] = url
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    registry.register(small)
    from graph_migrator.console import create_app

    uvicorn.run(
        create_app("none"), host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=1
    )


@contextmanager
def served(url: str) -> Iterator[tuple[int, psutil.Process]]:
    """Its port and its process."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(url, port), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                asyncio.run(ask(port, "/healthz"))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join(20)


async def ask(port: int, path: str) -> int:
    """The status of one answer, read to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


def pages(port: int, process: psutil.Process) -> None:
    """Print what each page takes."""
    print(f"{'page':40} median ms  worst but one ms  CPU ms")
    for path in PAGES:
        took = []
        for number in range(ROUNDS + 2):
            if number == 2:  # the first ones open sessions
                cpu = sum(process.cpu_times()[:2])
            began = time.perf_counter()
            status = asyncio.run(ask(port, path))
            took.append(1000 * (time.perf_counter() - began))
            assert status == 200, (path, status)
        cpu = 1000 * (sum(process.cpu_times()[:2]) - cpu) / ROUNDS
        print(f"{path:40} {statistics.median(took[2:]):9.0f} {sorted(took[2:])[-2]:17.0f} {cpu:7.0f}")


async def follow(port: int, clients: int, lazy: int, changes: int, engine: Engine) -> list[float]:
    """Open the streams, make changes, and return every client's delays in seconds."""
    delays: list[float] = []
    ready = asyncio.Semaphore(0)

    async def client(reads: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b"event: snapshot")
        ready.release()
        if not reads:
            writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket has it
            await asyncio.sleep(3600)
        while True:
            line = await reader.readline()
            if line.startswith(b"data: ") and b'"sent"' in line:
                delays.append(time.time() - json.loads(line[6:])["change"]["sent"])

    tasks = []
    for n in range(clients):
        tasks.append(asyncio.create_task(client(n >= lazy)))
        if n % 50 == 49:
            await asyncio.sleep(0.2)
    for _ in range(clients):
        await ready.acquire()
    statement = text(
        "INSERT INTO graph_migrator.change_events (kind, change) VALUES ('rollout', "
        "jsonb_build_object('sent', CAST(:sent AS float8)))"
    )

    def change() -> None:
        with engine.begin() as connection:
            connection.execute(statement, {"sent": time.time()})

    for _ in range(changes):
        await asyncio.to_thread(change)
        await asyncio.sleep(0.5)
    await asyncio.sleep(3)
    for task in tasks:
        task.cancel()
    return delays


def streams(port: int, process: psutil.Process, engine: Engine, clients: int, lazy: int) -> None:
    """Print the delays and the memory."""
    before = process.memory_info().rss
    delays = sorted(asyncio.run(follow(port, clients, lazy, 30, engine)))
    expected = 30 * (clients - lazy)
    print(
        f"{clients:,} clients, of which {lazy} do not read: {len(delays):,} of {expected:,} heard, "
        f"p50 {1000 * statistics.median(delays):.0f} ms, p95 {1000 * delays[int(0.95 * len(delays))]:.0f} ms, "
        f"{(process.memory_info().rss - before) / 2**20:.0f} MiB more memory"
    )


def main() -> None:
    """Fill a database, start a rollout over all of it, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--lazy", type=int, default=100)
    arguments = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    registry.register(small)
    with server() as postgres:
        engine = filled(postgres, arguments.graphs, 1)
        with engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            connection.exec_driver_sql(
                "UPDATE graph_migrator.graphs SET version = 1 WHERE migration_id IS NULL"
            )
        with Executors(engine).borrow() as executor:
            start(executor, RolloutRequest(graph_type=small.name, strategy=Strategy(shapes=False), held=True))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(MOVE)
            connection.exec_driver_sql("VACUUM ANALYZE")
        with served(engine.url.render_as_string(hide_password=False)) as (port, process):
            pages(port, process)
            streams(port, process, engine, arguments.clients, arguments.lazy)


if __name__ == "__main__":
    main()
