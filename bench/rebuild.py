"""A rebuild hop beside other ways to show a large hop in one commit: what that commit takes, and what others pay.

    python -m bench.rebuild

A million nodes in one graph. Each design starts on a fresh copy of one database. The rebuild hop is the real one; the
others are bare SQL on tables of the same shape, without guard, audit and checkpoints.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg2

from bench.bulk import GRAPH, _set_based, make_template
from bench.database import connect, server
from bench.results import at_least, at_most
from bench.types import BATCH, rename
from graph_migrator import GraphType, Nodes, run_graph_migration
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.execution import failpoints
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.connections import make_engine

Figures = dict[str, float]

TRANSFORMED = """(properties - 'name') || jsonb_build_object(
    'full_name', properties -> 'name', 'initial', left(properties ->> 'name', 1))"""
LIKE_NODES = "graph_id uuid NOT NULL, id text NOT NULL, label text NOT NULL, properties jsonb NOT NULL"
KEYS = "PRIMARY KEY (graph_id, id)"
LOOKUPS = 5_000


def run(quick: bool = False) -> list[dict[str, Any]]:
    """All designs in turn, round by round."""
    rows, rounds = (100_000, 1) if quick else (1_000_000, 3)
    found: defaultdict[str, list[Figures]] = defaultdict(list)
    with server() as postgres:
        make_template(postgres, "large", rows)
        for turn in range(rounds):
            for name in DESIGNS if turn % 2 == 0 else reversed(DESIGNS):
                with _race(postgres) as url:
                    figures = DESIGNS[name](url)
                found[name].append(figures)
                shown = ", ".join(f"{what} {value:,.4g}" for what, value in figures.items())
                print(f"rebuild: {name}: {shown}", flush=True)

    def ratios(what: str, one: str, other: str, of: str | None = None) -> list[float]:
        return [a[what] / b[of or what] for a, b in zip(found[one], found[other], strict=True)]

    many = f"{rows:,} rows"
    return [
        at_most(f"Rebuild hop / batched hop, {many}: time", ratios("seconds", "rebuild", "batched"), 2.0),
        at_most("Rebuild hop / batched hop: WAL", ratios("wal", "rebuild", "batched"), 2.5),
        at_most("Swap / set-based UPDATE: time", ratios("swap", "rebuild", "set", "seconds"), 1.5),
        at_most("Undo / set-based UPDATE: time", ratios("undo", "rebuild", "set", "seconds"), 1.5),
        at_most(f"Swap of {many}: seconds", [each["swap"] for each in found["rebuild"]], 0.2),
        at_most(
            "Swap: longest of a reader's lookups, ms", [each["reader ms"] for each in found["rebuild"]], 200
        ),
        # Why there are no generations: docs/decisions/0017-rebuild-hops.md.
        at_least(
            "Export through generations / of plain rows: time",
            ratios("export", "generations", "generations", "plain export"),
            1.1,
        ),
        at_least(
            "Lookups through generations / of plain rows: time",
            ratios("lookups", "generations", "generations", "plain lookups"),
            1.1,
        ),
    ]  # fmt: skip


# ── what is built ───────────────────────────────────────────────────────────────────────────────────


def _hop(*, rebuild: bool) -> GraphType:
    kind = GraphType("bench-large")
    hop = kind.hop(1, 2, over=Nodes(), batch_size=BATCH, rebuild=rebuild)(rename)
    hop.reverse(_no_way_back)
    return kind


def _no_way_back(ctx: Any, nodes: Any) -> None:
    raise AssertionError("the old values are there")


def batched(url: str) -> Figures:
    """The same hop, seen batch by batch."""
    registry.register(_hop(rebuild=False))
    engine = make_engine(url)
    with _counting(url) as figures:
        run_graph_migration(engine, GRAPH)
    engine.dispose()
    return figures


def rebuilt(url: str) -> Figures:
    """The hop, its swap, and its undo; and what a reader meets during the swap."""
    registry.register(_hop(rebuild=True))
    engine = make_engine(url)
    at: dict[str, float] = {}
    reader = _Reader(url)

    def note(point: str) -> None:
        at[point] = time.perf_counter()
        if point == "rebuild_before_swap":
            reader.start()

    failpoints.hook = note
    try:
        with _counting(url) as figures:
            run_graph_migration(engine, GRAPH)
            reader.stop()
        figures |= {
            "swap": at["hop_committed"] - at["rebuild_before_swap"],
            "commit": at["hop_committed"] - at["hop_before_commit"],
            "reader ms": reader.longest * 1_000,
            "staged MB": _size(url, "graph_migrator.rebuilt_rows"),
            "table MB": _size(url, "graph_migrator.nodes"),
        }
        run_graph_migration(engine, GRAPH, 1)
        figures["undo"] = at["hop_committed"] - at["undo_before_data"]
    finally:
        failpoints.hook = None
        engine.dispose()
    return figures


def one_update(url: str) -> Figures:
    """One statement in one transaction: the least that a swap of changed rows can take."""
    with _counting(url) as figures:
        _set_based(url)
    return figures


# ── what is not ─────────────────────────────────────────────────────────────────────────────────────


def generations(url: str) -> Figures:
    """A generation in the key; the graph's row names the one that a view shows."""
    with _cursor(url) as cursor:
        cursor.execute(
            "CREATE TABLE heads (id uuid PRIMARY KEY, generation integer NOT NULL); "
            f"CREATE TABLE plain ({LIKE_NODES}, {KEYS}); "
            "CREATE INDEX ON plain (graph_id, label, id); "
            f"CREATE TABLE versions ({LIKE_NODES}, generation integer NOT NULL, "
            "    PRIMARY KEY (graph_id, generation, id)); "
            "CREATE INDEX ON versions (graph_id, generation, label, id); "
            "CREATE VIEW seen AS SELECT v.* FROM heads h "
            "    JOIN versions v ON v.graph_id = h.id AND v.generation = h.generation; "
            f"INSERT INTO heads VALUES ('{GRAPH}', 1); "
            "INSERT INTO plain SELECT graph_id, id, label, properties FROM graph_migrator.nodes; "
            "INSERT INTO versions SELECT graph_id, id, label, properties, 1 FROM graph_migrator.nodes; ANALYZE"
        )
        cursor.execute("VACUUM plain")
        cursor.execute("VACUUM versions")
        figures: Figures = {}
        for _ in range(3):  # the best of three: others may use the machine
            for name, table in (("plain ", "plain"), ("", "seen")):
                for what, do in (("export", _export), ("lookups", _look_up)):
                    took = _took(partial(do, cursor, table))
                    figures[name + what] = min(took, figures.get(name + what, took))
        with _counting(url) as staged:
            cursor.execute(
                f"INSERT INTO versions SELECT graph_id, id, label, {TRANSFORMED}, 2 FROM versions WHERE generation = 1"
            )
        figures |= staged
        figures["swap"] = _took(lambda: cursor.execute("UPDATE heads SET generation = 2"))
        figures["copy MB"] = _size(url, "versions") / 2
        figures["removal"] = _took(lambda: cursor.execute("DELETE FROM versions WHERE generation = 1"))
        return figures


def replaced(url: str) -> Figures:
    """A whole copy beside the graph; the swap deletes all rows and inserts the copy's."""
    with _cursor(url) as cursor:
        cursor.execute(f"CREATE TABLE copy ({LIKE_NODES}, {KEYS})")
        cursor.execute("ALTER TABLE graph_migrator.nodes DISABLE TRIGGER USER")
        with _counting(url) as figures:
            cursor.execute(
                f"INSERT INTO copy SELECT graph_id, id, label, {TRANSFORMED} FROM graph_migrator.nodes"
            )
            figures["swap"] = _took(
                lambda: cursor.execute(
                    f"BEGIN; DELETE FROM graph_migrator.nodes WHERE graph_id = '{GRAPH}'; "
                    "INSERT INTO graph_migrator.nodes SELECT * FROM copy; COMMIT"
                )
            )
        return figures


def partitions(url: str) -> Figures:
    """A partition for each graph; the swap detaches one and attaches another."""
    with _cursor(url) as cursor:
        cursor.execute(
            f"CREATE TABLE parts ({LIKE_NODES}) PARTITION BY LIST (graph_id); "
            f"CREATE TABLE part_1 ({LIKE_NODES}, {KEYS}); CREATE INDEX ON part_1 (graph_id, label, id); "
            f"CREATE TABLE part_2 ({LIKE_NODES}, {KEYS}); CREATE INDEX ON part_2 (graph_id, label, id); "
            "INSERT INTO part_1 SELECT graph_id, id, label, properties FROM graph_migrator.nodes; "
            f"ALTER TABLE parts ATTACH PARTITION part_1 FOR VALUES IN ('{GRAPH}')"
        )
        with _counting(url) as figures:
            cursor.execute(
                f"INSERT INTO part_2 SELECT graph_id, id, label, {TRANSFORMED} FROM parts; "
                f"ALTER TABLE part_2 ADD CHECK (graph_id = '{GRAPH}')"  # so that the rows are not read again
            )
        swap = (
            "BEGIN; SET LOCAL lock_timeout = '1s'; ALTER TABLE parts DETACH PARTITION part_{}; "
            f"ALTER TABLE parts ATTACH PARTITION part_{{}} FOR VALUES IN ('{GRAPH}'); COMMIT"
        )
        figures["swap"] = _took(lambda: cursor.execute(swap.format(1, 2)))
        with _cursor(url) as reader:
            reader.execute("BEGIN; SELECT FROM parts LIMIT 1")
            try:
                cursor.execute(swap.format(2, 1))
            except psycopg2.errors.LockNotAvailable:
                figures["waits for readers"] = 1
                cursor.execute("ROLLBACK")
            reader.execute("ROLLBACK")
        return figures


DESIGNS: dict[str, Callable[[str], Figures]] = {
    "set": one_update,
    "batched": batched,
    "rebuild": rebuilt,
    "generations": generations,
    "delete and insert": replaced,
    "partitions": partitions,
}


# ── measuring ───────────────────────────────────────────────────────────────────────────────────────


class _Reader:
    """Looks one node up again and again; remembers the longest time that took."""

    def __init__(self, url: str) -> None:
        self.longest = 0.0
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        with _cursor(self._url) as cursor:
            while not self._ended.wait(0.002):
                self.longest = max(self.longest, _took(lambda: _look_up(cursor, "graph_migrator.nodes", 1)))


def _export(cursor: Any, table: str) -> None:
    with open("/dev/null", "wb") as nowhere:
        cursor.copy_expert(
            f"COPY (SELECT id, label, properties FROM {table} WHERE graph_id = '{GRAPH}' ORDER BY id) TO STDOUT",
            nowhere,
        )


def _look_up(cursor: Any, table: str, times: int = LOOKUPS) -> None:
    for number in range(times):
        cursor.execute(
            f"SELECT properties FROM {table} WHERE graph_id = %s AND id = %s",
            (str(GRAPH), f"n{number * 17 % 90_000 + 1:08}"),
        )
        cursor.fetchall()


def _took(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


@contextmanager
def _counting(url: str) -> Iterator[Figures]:
    """Seconds, and MB of WAL."""
    figures: Figures = {}
    with _cursor(url) as cursor:
        cursor.execute("SELECT pg_current_wal_insert_lsn()")
        start = cursor.fetchone()[0]
        began = time.perf_counter()
        yield figures
        figures["seconds"] = time.perf_counter() - began
        cursor.execute("SELECT (pg_current_wal_insert_lsn() - %s) / 1e6", (start,))
        figures["wal"] = float(cursor.fetchone()[0])


def _size(url: str, table: str) -> float:
    """MB, with indexes."""
    with _cursor(url) as cursor:
        cursor.execute("SELECT pg_total_relation_size(%s) / 1e6", (table,))
        return float(cursor.fetchone()[0])


@contextmanager
def _cursor(url: str) -> Iterator[Any]:
    connection = connect(url)
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


@contextmanager
def _race(postgres: Postgres) -> Iterator[str]:
    with _cursor(postgres.url) as cursor:
        cursor.execute("CREATE DATABASE race TEMPLATE large STRATEGY file_copy")
        url = postgres.url_of("race")
        with _cursor(url) as prepare:
            prepare.execute("SELECT count(*), sum(length(properties::text)) FROM graph_migrator.nodes")
        try:
            yield url
        finally:
            cursor.execute("DROP DATABASE race WITH (FORCE)")


if __name__ == "__main__":
    from bench.results import table

    print(table(run("--quick" in sys.argv)))
