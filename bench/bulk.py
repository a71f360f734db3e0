"""A large graph: rename a key and derive one, a million nodes of about 170 bytes of jsonb.

    python -m bench.bulk

Every contender gets a database of its own, copied from one template, so all start from the same pages. Each
runs in a process of its own, which reports its peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bench.database import PEOPLE, connect, server
from bench.results import at_least, at_most
from bench.types import BATCH, RENAME, TYPES
from graph_migrator import run_graph_migration
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade

GRAPH = UUID("5b0d5c1e-0000-4000-8000-000000000001")
OURS = ("bench-sql", "bench-python", "bench-validated")
CONTENDERS = ("set", "hand", *OURS)
SECONDS: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
"""What was measured by the way, by contender and rows, for `bench.scale`."""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """All contenders in turn, round by round."""
    rows = 100_000 if quick else 1_000_000
    found: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    peaks: defaultdict[str, dict[int, float]] = defaultdict(dict)
    with server() as postgres:
        make_template(postgres, "small", rows // 10)
        make_template(postgres, "large", rows)
        make_template(postgres, "tiny", rows // 100)
        # One round on the large graph, eight on one of a tenth: where a row costs the same, so do their ratios.
        for turn, size in enumerate(("large", *["small"] * 8)):
            for kind in CONTENDERS if turn % 2 == 0 else CONTENDERS[::-1]:
                result = measure(postgres, size, kind)
                found[kind].append(result)
                count = rows if size == "large" else rows // 10
                peaks[kind][count] = max(peaks[kind].get(count, 0), result["rss"])
                SECONDS[kind, count].append(result["seconds"])
                if (
                    size == "large" and kind in OURS[:2]
                ):  # the two ends of the curve, one right after the other
                    SECONDS[kind, rows // 100] += [
                        measure(postgres, "tiny", kind)["seconds"] for _ in range(3)
                    ]
                print(f"bulk: {kind}, {count:,} rows: {count / result['seconds']:,.0f} rows/s, "
                      f"{result['rss']:.0f} MB, {result['wal'] / 1e6:,.0f} MB of WAL", flush=True)  # fmt: skip
        for turn in range(3):
            for kind in OURS[:2]:
                order = (True, False) if turn % 2 == 0 else (False, True)
                seconds = {on: measure(postgres, "small", kind, guard=on)["seconds"] for on in order}
                found[kind + " guard"].append({"ratio": seconds[True] / seconds[False]})

    def speed(kind: str, against: str) -> list[float]:
        return [b["seconds"] / a["seconds"] for a, b in zip(found[kind], found[against], strict=True)]

    def wal(kind: str) -> list[float]:
        return [a["wal"] / b["wal"] for a, b in zip(found[kind], found["set"], strict=True)]

    million = f"{rows:,} and {rows // 10:,} rows"
    return [
        at_least(f"Batched SQL hop / hand-written SQL batches, {million}", speed("bench-sql", "hand"), 0.95),
        at_least(f"Batched Python hop / set-based UPDATE, {million}", speed("bench-python", "set"), 0.55),
        at_least("  with every row validated", speed("bench-validated", "set"), 0.5),
        at_most("Guard on / off, batched SQL hop", [f["ratio"] for f in found["bench-sql guard"]], 1.12),
        at_most(
            "Guard on / off, batched Python hop", [f["ratio"] for f in found["bench-python guard"]], 1.12
        ),
        at_most("Peak RSS in MB, worst batched hop", [max(peaks[kind][rows] for kind in OURS)], 130),
        at_most(
            f"Peak RSS at {rows:,} / {rows // 10:,} rows",
            [peaks[kind][rows] / peaks[kind][rows // 10] for kind in OURS],
            1.05,
        ),
        at_most("WAL, batched SQL hop / set-based UPDATE", wal("bench-sql"), 1.02),
        at_most("WAL, batched Python hop / set-based UPDATE", wal("bench-python"), 1.02),
    ]


def make_template(postgres: Postgres, name: str, rows: int) -> None:
    """A database with one graph of so many nodes."""
    admin = connect(postgres.url)
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    admin.close()
    upgrade(postgres.url_of(name))
    connection = connect(postgres.url_of(name))
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO graph_migrator.graphs (id, slug, graph_type, version, changed_at) "
            "VALUES (%s, 'people', 'bench-large', 1, now() - interval '1 hour')",
            (str(GRAPH),),
        )
        cursor.execute(PEOPLE, {"graph": str(GRAPH), "rows": rows})
        cursor.execute("VACUUM ANALYZE")
    connection.close()


def measure(postgres: Postgres, template: str, kind: str, *, guard: bool = True) -> dict[str, float]:
    """One contender on a fresh copy: seconds, WAL in bytes, peak RSS in MB."""
    admin = connect(postgres.url)
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE race TEMPLATE {template} STRATEGY file_copy")
        race = connect(postgres.url_of("race"))
        with race.cursor() as prepare:
            if not guard:
                prepare.execute("ALTER TABLE graph_migrator.nodes DISABLE TRIGGER USER")
            prepare.execute("SELECT count(*), sum(length(properties::text)) FROM graph_migrator.nodes")
        race.close()
        done = subprocess.run(
            [sys.executable, "-m", "bench.bulk", postgres.url_of("race"), kind],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{kind} failed:\n{done.stderr}")
        cursor.execute("DROP DATABASE race WITH (FORCE)")
    admin.close()
    found: dict[str, float] = json.loads(done.stdout)
    return found


def contend(url: str, kind: str) -> dict[str, float]:
    """Inside the contender's own process."""
    wal = connect(url)
    with wal.cursor() as cursor:
        cursor.execute("SELECT pg_current_wal_insert_lsn()")
        start = cursor.fetchone()[0]
        began = time.perf_counter()
        {"set": _set_based, "hand": _by_hand}.get(kind, partial(_ours, kind=kind))(url)
        seconds = time.perf_counter() - began
        cursor.execute("SELECT pg_current_wal_insert_lsn() - %s", (start,))
        written = float(cursor.fetchone()[0])
    wal.close()
    return {
        "seconds": seconds, "wal": written,
        "rss": _peak(),
    }  # fmt: skip


def _peak() -> float:
    """This process's peak memory in MB; `ru_maxrss` would remember the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def _ours(url: str, kind: str) -> None:
    chosen = next(each for each in TYPES if each.name == kind)
    chosen.name = "bench-large"  # the template's graph bears one name for all of them
    registry.register(chosen)
    engine = make_engine(url)
    run_graph_migration(engine, GRAPH)
    engine.dispose()


def _set_based(url: str) -> None:
    connection = make_engine(url).connect()
    connection.execute(text(RENAME), {"graph_id": GRAPH})
    connection.commit()


def _by_hand(url: str) -> None:
    """What one writes without us: keyset batches, each with its checkpoint in the same transaction."""
    connection = make_engine(url).connect()
    connection.execute(
        text("CREATE TABLE public.progress (graph_id uuid PRIMARY KEY, last text, done bigint)")
    )
    connection.execute(text("INSERT INTO public.progress VALUES (:g, '', 0)"), {"g": GRAPH})
    connection.commit()
    last = ""
    while True:
        page = "SELECT id FROM nodes WHERE graph_id = :g AND id > :last ORDER BY id LIMIT :size"
        upper, found = connection.execute(
            text(f"SELECT max(id), count(*) FROM ({page}) p"), {"g": GRAPH, "last": last, "size": BATCH}
        ).one()
        if not found:
            break
        connection.execute(
            text(RENAME + " AND id > :last AND id <= :upper"),
            {"graph_id": GRAPH, "last": last, "upper": upper},
        )
        connection.execute(
            text("UPDATE public.progress SET last = :upper, done = done + :found WHERE graph_id = :g"),
            {"g": GRAPH, "upper": upper, "found": found},
        )
        connection.commit()
        last = upper


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url", nargs="?")
    parser.add_argument("kind", nargs="?")
    given = parser.parse_args()
    if given.url:
        print(json.dumps(contend(given.url, given.kind)))
    else:
        from bench.results import table

        print(table(run()))
