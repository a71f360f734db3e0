"""Many small migrations: 100 graphs x 3 small hops through two worker processes, against the alternatives.

    python -m bench.chain

All contenders commit the same three hops a migration. Each round has them all, in the order of the round before
reversed, and gives one ratio. Workers stay up between their rounds, stopped: idle, they would take from the two
cores that the one measured has.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psutil

from bench.database import connect, environment, make_graphs, server
from bench.results import at_least, at_most
from graph_migrator.core.embedded import Redis
from graph_migrator.core.store.schema import upgrade

DBOS = "DBOS (4 at a time)"
"""In each of its two processes; one at a time it was half as quick."""
SOLO = "graph-migrator, solo pool"
"""As many processes as the peers have: a prefork worker with two pool processes is three."""
THREADS = "graph-migrator, four threads"
"""Of one worker."""
_PLAIN = """
CREATE TABLE public.plain_graphs (id uuid PRIMARY KEY, version integer NOT NULL);
CREATE TABLE public.plain_nodes (LIKE graph_migrator.nodes INCLUDING ALL)
"""
_MAKE_PLAIN = """
INSERT INTO public.plain_graphs SELECT id, 1 FROM unnest(%(ids)s::uuid[]) id;
INSERT INTO public.plain_nodes SELECT id, 'n' || i, 'Person', '{"name": "Ada Lovelace", "born": 1815}'
    FROM unnest(%(ids)s::uuid[]) id, generate_series(1, 10) i
"""


@dataclass
class Contender:
    """One way to carry migrations: how to send one, and its processes."""

    name: str
    send: Callable[[str], None]
    command: list[str] | None = None
    processes: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    ready: str = "ready"
    ours: bool = False
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    transactions: list[float] = field(default_factory=list)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Rates, CPU and unloaded latency of all contenders."""
    graphs, rounds, singly = (30, 2, 8) if quick else (100, 10, 12)
    with ExitStack() as stack:
        postgres, redis = stack.enter_context(server()), stack.enter_context(Redis())
        upgrade(postgres.url)
        os.environ |= environment(postgres, redis)
        race = _Race(connect(postgres.url))
        contenders = _contenders(postgres.url)
        for contender in contenders:
            stack.callback(_stop, contender)
        for contender in contenders:
            _start(contender)
            race.run(contender, 40, record=False)
            _signal(contender, signal.SIGSTOP)
        for turn in range(rounds):
            for contender in contenders if turn % 2 == 0 else contenders[::-1]:
                _signal(contender, signal.SIGCONT)
                race.run(contender, 10, record=False)
                race.run(contender, graphs)
                race.latency(contender, singly)
                _signal(contender, signal.SIGSTOP)
        for c in contenders:
            print(
                f"chain: {c.name:28} {statistics.median(c.rates):6.1f} migrations/s "
                f"({min(c.rates):.0f} to {max(c.rates):.0f}), unloaded p50 {_ms(c.latencies):5.1f} ms, "
                f"{statistics.median(c.cpu):5.1f} ms CPU, "
                f"{statistics.median(c.transactions):4.1f} writing transactions a migration",
                flush=True,
            )
        return _lines({c.name: c for c in contenders})


def _lines(by_name: dict[str, Contender]) -> list[dict[str, Any]]:
    ours, bare = by_name["graph-migrator"], by_name["bare Celery chain"]

    def rate(against: Contender, which: Contender = ours) -> list[float]:
        return [a / b for a, b in zip(which.rates, against.rates, strict=True)]

    return [
        at_least("Chain: migrations/s / bare Celery chain of 4 tasks", rate(bare), 0.95, lower=0.85),
        at_least("  as one worker with four threads", rate(bare, by_name[THREADS]), 0.95),
        at_least(
            "Chain, two solo workers: migrations/s / bare Celery chain",
            rate(bare, by_name[SOLO]),
            0.95,
            lower=0.85,
        ),
        at_least("Chain: migrations/s / Procrastinate", rate(by_name["Procrastinate"]), 1.0),
        at_least("  as two workers with the solo pool", rate(by_name["Procrastinate"], by_name[SOLO]), 0.9),
        at_least(f"Chain: migrations/s / best {DBOS}", rate(by_name[DBOS]), 1.9),
        at_most(
            "Chain: CPU of the workers / bare Celery chain",
            [a / b for a, b in zip(ours.cpu, bare.cpu, strict=True)],
            1.15,
        ),
        at_most(
            "Chain: unloaded p50 / bare Celery chain",
            [a / b for a, b in zip(_medians(ours), _medians(bare), strict=True)],
            1.2,
        ),
    ]


def _ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3


def _medians(contender: Contender) -> list[float]:
    each = len(contender.latencies) // len(contender.rates)
    return [
        statistics.median(contender.latencies[i : i + each]) for i in range(0, len(contender.latencies), each)
    ]


# ── contenders ──────────────────────────────────────────────────────────────────────────────────────


def _contenders(url: str) -> list[Contender]:
    from bench import peers
    from graph_migrator import migrate_graph

    admin = connect(url)
    with admin.cursor() as cursor:
        cursor.execute("CREATE DATABASE dbos")
        cursor.execute(_PLAIN)
    admin.close()
    bare, jobs = peers.bare_app(), peers.procrastinate_app()
    _install_procrastinate(jobs)
    sync_jobs = _sync_procrastinate(url)
    celery = [sys.executable, "-m", "celery"]
    options = ["worker", "-c", "2", "--loglevel", "INFO"]

    def loop(graph: str) -> None:
        for hop in peers.HOPS:
            peers.commit_hop(graph, hop)

    client: list[Any] = []

    def dbos(graph: str) -> None:
        if not client:
            client.append(peers.dbos_client())
        client[0].enqueue({"queue_name": "bench", "workflow_name": "migrate", "app_version": "bench"}, graph)

    return [
        Contender("plain loop", loop),
        Contender(
            "bare Celery chain", lambda graph: bare.send_task("bare.begin", [graph], queue="bare"),
            [*celery, "-A", "bench.peers:app", *options, "-Q", "bare"], 1, {"BENCH_BARE": "1"}, ready=" ready.",
        ),
        Contender(
            "graph-migrator", lambda graph: migrate_graph.delay(graph, 4),
            [*celery, "-A", "graph_migrator", *options, "-Q", "migrations"], ready=" ready.", ours=True,
        ),
        *(
            Contender(
                # A queue of its own: a stopped worker has asked for the next message of its queue, and would get it.
                name, lambda graph, queue=queue: migrate_graph.apply_async((graph, 4), queue=queue),  # type: ignore[misc]
                [*celery, "-A", "graph_migrator", "worker", *pool, "--loglevel", "INFO", "-Q", queue], processes,
                {"GRAPH_MIGRATOR_QUEUE": queue}, ready=" ready.", ours=True,
            )
            for name, queue, pool, processes in (
                (SOLO, "solo", ("-P", "solo"), 2),
                (THREADS, "threads", ("-P", "threads", "-c", "4"), 1),
            )
        ),
        Contender(DBOS, dbos, [sys.executable, "-m", "bench.peers", "dbos-4"], 2),
        Contender("Procrastinate", sync_jobs, [sys.executable, "-m", "bench.peers", "procrastinate"], 2),
    ]  # fmt: skip


def _install_procrastinate(app: Any) -> None:
    import asyncio

    async def install() -> None:
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    asyncio.run(install())


def _sync_procrastinate(url: str) -> Callable[[str], None]:
    import procrastinate

    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
    app.open()
    deferrer = app.configure_task("hop", queue="bench", allow_unknown=True)
    return lambda graph: deferrer.defer(graph=graph, number=1)


def _start(contender: Contender) -> None:
    if contender.command is None:
        return
    for number in range(contender.processes):
        # Workers of one node name would be counted as one.
        command = [*contender.command, *(["-n", f"{number}@%h"] if "celery" in contender.command else [])]
        process = subprocess.Popen(
            command, env=os.environ | contender.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        contender.running.append(process)
        seen = []
        for line in process.stdout or ():
            seen.append(line)
            if contender.ready in line:
                break
        else:
            raise RuntimeError(f"{contender.name} did not start:\n{''.join(seen)}")
        # Nobody reads a worker's log; but the pipe must not fill up.
        subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)


def _signal(contender: Contender, number: signal.Signals) -> None:
    """Stop the processes of a contender, or let them run again."""
    for process in contender.running:
        os.killpg(process.pid, number)


def _stop(contender: Contender) -> None:
    _signal(contender, signal.SIGCONT)
    for process in contender.running:
        process.terminate()
    for process in contender.running:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
    contender.running.clear()


# ── the race ────────────────────────────────────────────────────────────────────────────────────────


_BLOCK = 25
"""Graphs that are looked at in one poll: to count all of 2,000 took 8 % of the machine."""


class _Race:
    def __init__(self, connection: Any) -> None:
        self.cursor = connection.cursor()

    def run(self, contender: Contender, count: int, *, record: bool = True) -> None:
        """Send so many migrations at once and wait for the last one."""
        ids = self._graphs(contender, count)
        cpu, transactions = _cpu_of(contender), self._transactions()
        began = time.perf_counter()
        for graph in ids:
            contender.send(graph)
        self._wait(contender, ids, 0.01)
        seconds = time.perf_counter() - began
        if record:
            contender.rates.append(count / seconds)
            contender.cpu.append((_cpu_of(contender) - cpu) / count * 1e3)
            contender.transactions.append((self._transactions() - transactions) / count)

    def latency(self, contender: Contender, count: int) -> None:
        """One migration at a time, in an idle system."""
        for graph in self._graphs(contender, count):
            time.sleep(0.05)
            began = time.perf_counter()
            contender.send(graph)
            self._wait(contender, [graph], 0.001)
            contender.latencies.append(time.perf_counter() - began)

    def _graphs(self, contender: Contender, count: int) -> list[str]:
        if contender.ours:
            return [str(i) for i in make_graphs(self.cursor, "bench-small", count)]
        ids = [str(uuid4()) for _ in range(count)]
        self.cursor.execute(_MAKE_PLAIN, {"ids": ids})
        return ids

    def _wait(self, contender: Contender, ids: list[str], pause: float) -> None:
        """Wait until all have arrived: block by block, in the order in which they were sent."""
        table = "graph_migrator.graphs" if contender.ours else "public.plain_graphs"
        query = f"SELECT count(*) FROM {table} WHERE id = ANY(%s::uuid[]) AND version = 4"
        deadline = time.monotonic() + 120
        for start in range(0, len(ids), _BLOCK):
            block = ids[start : start + _BLOCK]
            while True:
                self.cursor.execute(query, (block,))
                if self.cursor.fetchone()[0] == len(block):
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{contender.name} did not finish {len(ids)} migrations")
                time.sleep(pause)

    def _transactions(self) -> int:
        """The number of the next transaction that writes; of all databases."""
        self.cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
        return int(self.cursor.fetchone()[0])


def _cpu_of(contender: Contender) -> float:
    """User and system seconds of the worker processes; of this one, where it does the work itself."""
    roots = [psutil.Process(p.pid) for p in contender.running] or [psutil.Process()]
    everyone = [
        p for root in roots for p in (root, *(root.children(recursive=True) if contender.running else ()))
    ]
    return sum(sum(p.cpu_times()[:2]) for p in everyone)


if __name__ == "__main__":
    from bench.results import table

    print(table(run("--quick" in sys.argv)))
