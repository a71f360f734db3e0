"""One small Python hop with all its fences, against the bare UPDATE in a transaction on the same guarded table.

python -m bench.hop
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench.database import connect, make_graphs, server
from bench.results import at_most
from bench.types import SMALL, small
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.model import Dispatch
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors


def run(quick: bool = False) -> list[dict[str, Any]]:
    """The ratio of the two medians, round by round, interleaved graph by graph."""
    registry.register(small)
    with server() as postgres:
        upgrade(postgres.url)
        rounds = [_round(postgres.url, 40 if quick else 120) for _ in range(3 if quick else 10)]
        ratios = [hop / bare for bare, hop in rounds]
        bare, hop = (statistics.median(times) * 1e3 for times in zip(*rounds, strict=True))
        print(f"hop: bare UPDATE transaction {bare:.2f} ms, hop with all fences {hop:.2f} ms")
        return [at_most("Hop with all fences / guarded bare UPDATE transaction", ratios, 2.7)]


def _round(url: str, graphs: int) -> tuple[float, float]:
    admin = connect(url)
    engine = make_engine(url)
    executors = Executors(engine)
    writer: Any = engine.connect().connection
    bare, hops = [], []
    with admin.cursor() as cursor:
        ids = make_graphs(cursor, "bench-small", 2 * graphs)
    for mine, other in zip(ids[::2], ids[1::2], strict=True):
        with executors.borrow() as executor:
            begun = begin_migration(executor, mine)
        assert isinstance(begun, Dispatch)
        for message in begun.messages():
            began = time.perf_counter()
            with writer.cursor() as cursor:
                cursor.execute(SMALL.replace(":graph_id", "%%s") % 1, (other,))
            writer.commit()
            between = time.perf_counter()
            run_hop(executors, message)
            hops.append(time.perf_counter() - between)
            bare.append(between - began)
    executors.close()
    writer.close()
    admin.close()
    engine.dispose()
    return statistics.median(bare), statistics.median(hops)


if __name__ == "__main__":
    print(run())
