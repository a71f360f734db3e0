"""What the write guard costs: a guarded table against the same table without it, in interleaved rounds.

    python -m bench.guard

Both tables have the shape of `graph_migrator.nodes`: its keys, its second index and its foreign key. The
one-row updates come once more with 5,000 advisory locks held elsewhere in the server. At the end the guard of a shard,
which looks at the range of the rows, against that of a whole hop, both on `graph_migrator.nodes`.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import psycopg2

from bench.results import at_most, table
from graph_migrator import GraphType, Nodes
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.model import Dispatch, Worker
from graph_migrator.core.execution.run_hop import open_call
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store import protocol
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.guard import install_guard
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executor, Executors

ROWS = 10_000
_TABLE = """
CREATE TABLE {name} (LIKE graph_migrator.nodes INCLUDING ALL) WITH (autovacuum_enabled = false);
ALTER TABLE {name} ADD FOREIGN KEY (graph_id) REFERENCES graph_migrator.graphs (id) ON DELETE CASCADE
"""
_INSERT = """
INSERT INTO {name} SELECT %s, 'n' || i, 'Person', jsonb_build_object('name', 'Ada Lovelace ' || i,
    'born', 1815, 'place', 'London', 'notes', repeat('x', 80)) FROM generate_series(1, %s) i
"""

_TOUCH = (
    "UPDATE graph_migrator.nodes SET properties = properties || '{\"seen\": true}' WHERE graph_id = :graph_id"
)

Run = Callable[[str], float]


def run() -> list[dict[str, Any]]:
    """Measure on a private server with fsync on.

    Returns:
        One entry for each line: the median over all rounds of guarded / unguarded, its quartiles as `low`
        and `high`, the `reach` it is meant to stay under, and whether it does.
    """
    with Postgres(
        settings={"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "1h"}
    ) as server:
        upgrade(server.url)
        return _measure(server.url)


def _measure(url: str) -> list[dict[str, Any]]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    graph = str(uuid.uuid4())
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO graph_migrator.graphs (id, slug, graph_type, version) VALUES (%s, 'g', 'bench', 1)",
            (graph,),
        )
        for name in ("plain", "guarded"):
            cursor.execute(_TABLE.format(name=name))
    engine = make_engine(url)
    with engine.begin() as owner:
        install_guard(owner, "guarded")
    engine.dispose()

    def insert(name: str) -> float:
        with connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {name}")
            cursor.execute(f"VACUUM {name}")
            return _timed(lambda: cursor.execute(_INSERT.format(name=name), (graph, ROWS)))

    def bulk(name: str) -> float:
        update = f"UPDATE {name} SET properties = properties || '{{\"seen\": true}}' WHERE graph_id = %s"
        with connection.cursor() as cursor:
            cursor.execute(f"VACUUM {name}")
            return _timed(lambda: cursor.execute(update, (graph,)))

    def single(name: str) -> float:
        update = f"UPDATE {name} SET label = 'Person' WHERE graph_id = %s AND id = %s"
        with connection.cursor() as cursor:
            return _timed(lambda: cursor.execute(update, (graph, f"n{random.randint(1, ROWS)}")))

    def durable(on: bool) -> None:
        with connection.cursor() as cursor:  # the disk's moods are no part of a bulk statement's cost
            cursor.execute(f"SET synchronous_commit = {on}")

    durable(False)
    lines = [
        _line("guard: insert of 10,000 rows", 1.06, 40, 1, insert),
        _line("guard: update of 10,000 rows", 1.10, 40, 1, bulk),
    ]
    durable(True)
    lines.append(_line("guard: update of one row, with its commit", 1.2, 40, 50, single))
    with _advisory_locks(url, 5_000):
        lines.append(_line("guard: update of one row, 5,000 advisory locks held", 1.2, 40, 50, single))
    connection.close()
    lines.append(_of_a_shard(url))
    return lines


def _of_a_shard(url: str) -> dict[str, Any]:
    """What it costs to look whether all rows of a statement are of the shard's range."""
    engine = make_engine(url)
    executors = Executors(engine)
    kind = GraphType("bench-guard")
    kind.sql_hop(
        1, 2, name="hop", forward=f"{_TOUCH} AND id BETWEEN :first AND :last", over=Nodes(), shards=2
    )
    registry.register(kind)
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        stack.callback(executors.close)
        sessions = {each: stack.enter_context(executors.borrow()) for each in ("whole", "shard")}
        graphs = {each: _executing(executor, each) for each, executor in sessions.items()}

        def bulk(name: str) -> float:
            with sessions[name].cursor() as cursor:
                cursor.execute("VACUUM graph_migrator.nodes")
                cursor.execute("BEGIN")
                took = _timed(lambda: cursor.execute(_TOUCH.replace(":graph_id", "%s"), (graphs[name],)))
                cursor.execute("ROLLBACK")
            return took

        return _line(
            "guard: update of 10,000 rows, of a shard / of a whole hop", 1.1, 40, 1, bulk, ("whole", "shard")
        )


def _executing(executor: Executor, slug: str) -> str:
    """A graph of 10,000 nodes, by its id, whose hop or whose first shard this session is about to run."""
    graph = str(uuid.uuid4())
    with executor.cursor() as cursor:
        cursor.execute(
            "INSERT INTO graph_migrator.graphs (id, slug, graph_type, version, changed_at) "
            "VALUES (%s, %s, 'bench-guard', 1, now() - interval '1 h')",
            (graph, slug),
        )
        cursor.execute(_INSERT.format(name="graph_migrator.nodes"), (graph, ROWS))
    begun = begin_migration(executor, slug, 2)
    assert isinstance(begun, Dispatch)
    (message,) = begun.messages()
    if slug == "shard":
        executor.call(
            protocol.CutShards(
                migration=begun.migration_id, to=2, status="queued", dispatch=1, table_name="graph_migrator.nodes",
                key=["id"], rebuild=None, shards=[[["n99999"], ROWS], [None, 0]], digest=None,
                deadline_seconds=3_600,
            )
        )  # fmt: skip
        message = replace(message, shard=1)
    state = executor.call(
        protocol.LockAndLoadHop(migration=begun.migration_id, to=2, dispatch=1, shard=message.shard)
    )
    assert state is not None
    opened = executor.call(
        open_call(message, state, registry.graph_type("bench-guard").directed(1, 2), None, Worker())
    )
    assert opened is not None
    return graph


def _line(
    name: str,
    reach: float,
    rounds: int,
    repeat: int,
    measure: Run,
    pair: tuple[str, str] = ("plain", "guarded"),
) -> dict[str, Any]:
    """Each round takes turns `repeat` times; its ratio is that of the two medians."""
    for each in pair:
        measure(each)
    ratios = []
    for number in range(rounds):
        took: dict[str, list[float]] = {each: [] for each in pair}
        for _ in range(repeat):
            for each in pair if number % 2 else pair[::-1]:
                took[each].append(measure(each))
        ratios.append(statistics.median(took[pair[1]]) / statistics.median(took[pair[0]]))
    return at_most(name, ratios, reach)


def _timed(work: Callable[[], Any]) -> float:
    gc.disable()
    start = time.perf_counter()
    work()
    took = time.perf_counter() - start
    gc.enable()
    return took


@contextmanager
def _advisory_locks(url: str, count: int) -> Iterator[None]:
    other = psycopg2.connect(url)
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT count(pg_advisory_lock(i)) FROM generate_series(1, %s) i", (count,))
        yield
    finally:
        other.close()


if __name__ == "__main__":
    print(table(run()))
