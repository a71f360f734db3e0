"""How a hop in shards would scale to more workers than this machine has cores: a simulation of what they share.

    python -m bench.scaling

A batch takes, one after the other: a core for the worker's Python, a core of the server for its statements, the log for
its WAL, and from its last statement to its commit the one row that counts the hop's progress. Cores, log and row are
queues, first come, first served. The costs are those of one worker, as `bench.shards` and `bench.bulk` measure them;
with two workers on two cores the simulation must come to what is measured.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What workers share, and what a row costs.

    Attributes:
        worker_cores: Cores that run workers.
        server_cores: Cores of Postgres's machine; 0 where workers and Postgres share `worker_cores`.
        python: Seconds of a worker's core for a row.
        server: Seconds of a server's core for a row.
        wal: Bytes of the log for a row.
        log: Bytes a second that the log's disk takes.
        flush: Seconds of a commit that waits for the disk.
        batch: Rows of a batch.
    """

    worker_cores: int = 16
    server_cores: int = 16
    python: float = 5.7e-6
    server: float = 9.0e-6
    wal: float = 985.0
    log: float = 500e6
    flush: float = 1.5e-3
    batch: int = 10_000


Need = tuple[str, float]
"""A shared thing, and the seconds for which it is needed."""


def simulate(machine: Machine, workers: int, *, seconds: float = 20.0) -> tuple[float, dict[str, float]]:
    """Let workers run for so many simulated seconds.

    Returns:
        Rows a second, and of each shared thing the part of its time that it was busy.
    """
    places = {"worker cores": machine.worker_cores, "log": 1, "row": 1}
    if machine.server_cores:
        places["server cores"] = machine.server_cores
    free = {name: [0.0] * count for name, count in places.items()}
    for heap in free.values():
        heapq.heapify(heap)
    busy = dict.fromkeys(places, 0.0)
    done = 0
    events = [(0.0, number, _batch(machine)) for number in range(workers)]
    heapq.heapify(events)
    while events[0][0] < seconds:
        now, number, batch = heapq.heappop(events)
        need = next(batch, None)
        if need is None:
            done += machine.batch
            heapq.heappush(events, (now, number, _batch(machine)))
            continue
        name, took = need
        starts = max(now, heapq.heappop(free[name]))
        heapq.heappush(free[name], starts + took)
        busy[name] += took
        heapq.heappush(events, (starts + took, number, batch))
    return done / seconds, {name: busy[name] / seconds / places[name] for name in places}


def _batch(machine: Machine) -> Generator[Need]:
    server = "server cores" if machine.server_cores else "worker cores"
    for _ in range(8):  # they alternate: a core is free while the other side works
        yield "worker cores", machine.python * machine.batch / 8
        yield server, machine.server * machine.batch / 8
    yield "log", machine.wal * machine.batch / machine.log
    yield "row", machine.flush


def main() -> None:
    here = Machine(worker_cores=2, server_cores=0)
    one, two = (simulate(here, workers)[0] for workers in (1, 2))
    print(f"two workers on two cores that Postgres shares: {two / one:.2f} of one worker\n")
    print("16 cores for workers, 16 for Postgres")
    for workers in (1, 2, 4, 8, 16, 32):
        rate, busy = simulate(Machine(), workers)
        shown = ", ".join(f"{name} {part:.0%}" for name, part in busy.items())
        print(f"  {workers:2} workers: {rate:>11,.0f} rows/s; busy: {shown}")
    for name, machine in {
        "a log of 200 MB/s": Machine(log=200e6),
        "a log of 2 GB/s": Machine(log=2e9),
        "8 cores for Postgres": Machine(server_cores=8),
        "batches of 500 rows, 5 ms a flush": Machine(batch=500, flush=5e-3),
    }.items():
        rate, busy = simulate(machine, 16)
        first = max(busy, key=lambda each: busy[each])
        print(f"16 workers, {name}: {rate:,.0f} rows/s; busiest: {first} ({busy[first]:.0%})")


if __name__ == "__main__":
    main()
