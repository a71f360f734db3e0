"""An import against COPY of the same rows into the same tables, in pairs.

    python -m bench.imports

COPY gets the rows ready made, in two statements and one transaction, and its commit checks the foreign keys row by
row. The import reads them from a JSON Lines file. Each starts in a copy of the same empty database. Beside the time
that passes, the CPU seconds of Postgres's backend and of this process are compared: they hold on a busy machine, too.
"""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from sqlalchemy import Engine, event
from sqlalchemy.engine import make_url

from bench.database import connect, server
from bench.results import at_most
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.interchange import import_graph
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade

ROLE = "loader"
COPIES = {
    "node": "COPY graph_migrator.nodes (graph_id, id, label, properties) FROM STDIN",
    "edge": "COPY graph_migrator.edges (graph_id, id, source, target, type, properties) FROM STDIN",
}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Pairs with a superuser, and fewer rows with a role that may not suspend foreign keys in its session."""
    with tempfile.TemporaryDirectory() as folder, server() as postgres:
        _make_template(postgres)
        nodes, pairs = (2_000, 2) if quick else (200_000, 5)
        at_once = _race(postgres, Path(folder), "at once", nodes, pairs)
        few, pairs = (2_000, 2) if quick else (20_000, 10)
        by_row = _race(postgres, Path(folder), "row by row", few, pairs)
    names = [f"Import / COPY of the same rows, {nodes * 4:,} records",
             f"Import by a role that may not set session_replication_role / COPY, {few * 4:,} records"]  # fmt: skip
    return [
        at_most(names[0], at_once[0], 0.7),
        at_most(f"{names[0]}: CPU seconds of Postgres and of the client", at_once[1], 0.9),
        at_most(names[1], by_row[0], 1.3),
        at_most(f"{names[1]}: CPU seconds", by_row[1], 1.4),
    ]


def _race(
    postgres: Postgres, folder: Path, regime: str, nodes: int, pairs: int
) -> tuple[list[float], list[float]]:
    """The ratios of the seconds that pass, and of the CPU seconds."""
    file = folder / "graph.jsonl"
    rows = _write(file, nodes)
    passed, cpu = [], []
    for turn in range(pairs):
        order = ("copy", "import") if turn % 2 else ("import", "copy")
        taken = {kind: _measure(postgres, kind, regime, file, rows) for kind in order}
        passed.append(taken["import"][0] / taken["copy"][0])
        cpu.append(taken["import"][1] / taken["copy"][1])
        print(f"imports: {regime}: {taken['import'][0]:.2f} s / {taken['copy'][0]:.2f} s", flush=True)
    return passed, cpu


def _write(file: Path, nodes: int) -> dict[str, list[tuple[str, ...]]]:
    """A graph with ids in no order, and three edges a node; gives its rows as well."""
    chance = random.Random(7)
    ids = [f"n{chance.getrandbits(48):012x}" for _ in range(nodes)]
    about = json.dumps(
        {"name": "Ada Lovelace", "born": 1815, "tags": ["mathematics", "poetry"], "score": 7.25}
    )
    since = json.dumps({"since": 1843})
    rows: dict[str, list[tuple[str, ...]]] = {
        "node": [(id_, "Person", about) for id_ in ids],
        "edge": [
            (f"e{chance.getrandbits(48):012x}", chance.choice(ids), chance.choice(ids), "KNOWS", since)
            for _ in range(3 * nodes)
        ],
    }
    with file.open("w") as stream:
        for id_, label, properties in rows["node"]:
            stream.write(
                f'{{"kind": "node", "id": "{id_}", "label": "{label}", "properties": {properties}}}\n'
            )
        for id_, source, target, type_, properties in rows["edge"]:
            stream.write(
                f'{{"kind": "edge", "id": "{id_}", "source": "{source}", "target": "{target}", '
                f'"type": "{type_}", "properties": {properties}}}\n'
            )
    return rows


def _make_template(postgres: Postgres) -> None:
    admin = connect(postgres.url)
    with admin.cursor() as cursor:
        cursor.execute("CREATE DATABASE empty")
        cursor.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{ROLE}'")
    admin.close()
    upgrade(postgres.url_of("empty"))
    connection = connect(postgres.url_of("empty"))
    with cast("Any", connection).cursor() as cursor:
        cursor.execute(f"GRANT USAGE ON SCHEMA graph_migrator TO {ROLE}")
        cursor.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA graph_migrator TO {ROLE}")
    connection.close()


def _measure(
    postgres: Postgres, kind: str, regime: str, file: Path, rows: dict[str, Any]
) -> tuple[float, float]:
    """The seconds that pass, and those of CPU."""
    admin = connect(postgres.url)
    with admin.cursor() as cursor:
        cursor.execute("CREATE DATABASE race TEMPLATE empty STRATEGY file_copy")
    url = make_url(postgres.url_of("race"))
    if regime == "row by row":
        url = url.set(username=ROLE, password=ROLE)
    engine = make_engine(url.render_as_string(hide_password=False))
    with engine.connect():
        pass  # the connection is there before the clock starts
    backend: list[float] = []
    event.listen(engine.pool, "checkin", lambda connection, _: backend.append(_cpu_of_backend(connection)))
    began, own = time.perf_counter(), time.process_time()
    if kind == "import":
        import_graph(engine, file, slug="g", graph_type="bench", version=1)
    else:
        _copy(engine, rows)
    seconds, own = time.perf_counter() - began, time.process_time() - own
    engine.dispose()
    with admin.cursor() as cursor:
        cursor.execute("DROP DATABASE race WITH (FORCE)")
    admin.close()
    return seconds, own + max(backend)


def _cpu_of_backend(connection: Any) -> float:
    """The CPU seconds of a session's backend on this machine (Linux)."""
    fields = Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _copy(engine: Engine, rows: dict[str, list[tuple[str, ...]]]) -> None:
    connection = engine.raw_connection()
    graph = uuid4()
    with cast("Any", connection).cursor() as cursor:
        cursor.execute(
            "INSERT INTO graph_migrator.graphs (id, slug, graph_type, version, changed_at) "
            "VALUES (%s, 'g', 'bench', 1, now())",
            (str(graph),),
        )
        for kind, statement in COPIES.items():
            text = "".join(f"{graph}\t" + "\t".join(row) + "\n" for row in rows[kind])
            cursor.copy_expert(statement, io.BytesIO(text.encode()))
    connection.commit()
    connection.close()


if __name__ == "__main__":
    from bench.results import table

    print(table(run()))
