"""What the proof chain costs, and what content digests cost a batched hop: with and without, in interleaved pairs.

    python -m bench.proof

Run inline, so that Celery's share does not hide it; without it means without triggers, index and constraint. What is
compared is CPU time, ours and the server's: a shared machine's pauses are in neither.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

from bench.database import PEOPLE, connect, make_graphs, server
from bench.results import at_most, table
from bench.types import BATCH, TYPES, rename
from graph_migrator import GraphType, Nodes
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors

PAIRS = 20
A_TURN = 40
_WITHOUT = """
DROP TRIGGER hop_attempts_link ON hop_attempts;
DROP TRIGGER hop_attempts_link_finished ON hop_attempts;
ALTER TABLE hop_attempts DROP CONSTRAINT hop_attempts_finished_is_linked;
DROP INDEX hop_attempts_chain;
"""


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure on a private server with fsync on.

    Returns:
        One line for the chain (migrations of three small hops) and one for digests (a batched Python hop): with /
        without, the median over all pairs.
    """
    for each in TYPES:
        registry.register(each)
    pairs = 5 if quick else PAIRS
    with server() as postgres, ExitStack() as stack:
        ratios = in_pairs(
            side(postgres, "without_proof", pairs, stack, change=_WITHOUT),
            side(postgres, "with_proof", pairs, stack),
            pairs,
        )
        digests = _digests(postgres, 2 if quick else 8, stack)
    return [
        at_most("proof: an inline migration of three small hops, with the chain", ratios, 1.03),
        at_most("proof: a batched Python hop of 20,000 rows, with digests", digests, 1.5),
    ]


def _digests(postgres: Postgres, pairs: int, stack: ExitStack) -> list[float]:
    """The same hop of a type with digests and of one without."""
    kinds = {}
    for on in (False, True):
        kind = GraphType(f"bench-digest-{on}".lower(), digest=on)
        kind.hop(1, 2, over=Nodes(), batch_size=BATCH)(rename)
        registry.register(kind)
        kinds[on] = kind.name
    url = postgres.url_of("with_proof")
    executors = Executors(make_engine(url))
    stack.callback(executors.close)
    ratios = []
    for number in range(pairs + 1):
        took = {}
        for on in (False, True) if number % 2 else (True, False):
            with connect(url).cursor() as cursor:
                graphs = make_graphs(cursor, kinds[on], 1, nodes=0)
                cursor.execute(PEOPLE, {"graph": str(graphs[0]), "rows": 20_000})
            took[on] = _timed(executors, graphs)
        if number:
            ratios.append(took[True] / took[False])
    return ratios


Side = tuple[Executors, Iterator[UUID]]


def side(postgres: Postgres, name: str, pairs: int, stack: ExitStack, *, change: str = "") -> Side:
    """A database with graphs to migrate, its schema changed by a statement; and sessions on it."""
    with connect(postgres.url).cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    url = postgres.url_of(name)
    upgrade(url)
    with connect(url).cursor() as cursor:
        if change:
            cursor.execute(f"SET search_path = graph_migrator; {change}")
        graphs = make_graphs(cursor, "bench-small", (pairs + 1) * A_TURN)
    executors = Executors(make_engine(url))
    stack.callback(executors.close)
    return executors, iter(graphs)


def in_pairs(without: Side, with_: Side, pairs: int) -> list[float]:
    """The CPU time of inline migrations on the second side by that on the first, in turns."""
    ratios = []
    for number in range(pairs + 1):
        took = {}
        for place in (0, 1) if number % 2 else (1, 0):
            executors, graphs = (without, with_)[place]
            took[place] = _timed(executors, [next(graphs) for _ in range(A_TURN)])
        if number:  # the first turn warms the caches
            ratios.append(took[1] / took[0])
    return ratios


def _timed(executors: Executors, graphs: list[UUID]) -> float:
    gc.disable()
    start = _cpu(executors)
    for graph in graphs:
        run_graph_migration(executors, str(graph))
    took = _cpu(executors) - start
    gc.enable()
    return took


def _cpu(executors: Executors) -> float:
    """Seconds of CPU of this process and of the executor's backend."""
    with executors.borrow() as executor:
        backend = executor.backend_pid
    return time.process_time() + int(Path(f"/proc/{backend}/schedstat").read_text().split()[0]) / 1e9


if __name__ == "__main__":
    print(table(run()))
