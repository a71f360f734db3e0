"""What Postgres's part of a migration costs in this checkout beside another one: CPU time of the session, in pairs.

    python -m bench.server_cpu OTHER_CHECKOUT [--pairs 96] [--graphs 4] [--sql STATEMENT]

The messages of a migration as a chain and of one in a pack are recorded in each checkout, and then sent for many graphs
by a plain connection; each checkout has a database of one server. Pairs are short, in alternating order, with new
sessions now and then, since two sessions differ by 5 %. With this checkout as the other one, and `--sql` to leave
something out of one database, it says what that costs. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from psycopg2.extensions import cursor as PlainCursor  # noqa: N812 - it is a class
from sqlalchemy import event

from bench import pack as packs
from bench.database import connect, make_graphs, server
from bench.types import small
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.model import Caller, Dispatch, Worker
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.graph_types import registry
from graph_migrator.core.rollouts.controller import move_rollouts_on
from graph_migrator.core.rollouts.packs import Surroundings, run_pack
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.turn import SendingPack
from graph_migrator.core.store import session
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors

SESSIONS, WARM = 8, 15
_ATTEMPT = re.compile(r'("graph_migrator\.(?:finish_hop|finish_and_open)"\()\d+')
_MEMBERS = """
SELECT m.graph_id::text, m.request_id::text, m.rollout_id::text, m.pack_id::text,
    to_char(r.failures_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US+00:00')
FROM graph_migrator.rollout_members m JOIN graph_migrator.rollouts r ON r.id = m.rollout_id
WHERE m.pack_id = %s ORDER BY m.position
"""
# All members in one pack that is running, whatever the bounds of a rollout are.
_ALL_IN = """
SET session_replication_role = replica;
UPDATE graph_migrator.rollout_members m SET pack_id = p.id, status = 'dispatched', request_id = gen_random_uuid(),
    resend_at = now() FROM graph_migrator.packs p WHERE p.id = %(pack)s AND m.rollout_id = p.rollout_id;
UPDATE graph_migrator.packs SET status = 'running', worker = 'bench', started_at = now() WHERE id = %(pack)s
"""
Marks = dict[str, str]
"""What stands for a graph in a message."""


# ── in each checkout ────────────────────────────────────────────────────────────────────────────────


class Recorder:
    """A database whose migrations are recorded."""

    def __init__(self, url: str) -> None:
        self.sent: list[str] = []
        self.prepared: list[str] = []
        sent = self.sent

        class Recording(PlainCursor):
            def execute(self, query: Any, vars: Any = None) -> None:
                try:
                    super().execute(query, vars)
                finally:
                    sent.append((self.query or b"").decode())

        setattr(session, "PlainCursor", Recording)  # noqa: B010 - it is not exported
        engine = make_engine(url)
        event.listen(engine, "after_cursor_execute", lambda *given: sent.append(given[1].query.decode()))
        self.cursor = connect(url).cursor()
        self.executors = Executors(engine)

    def chain(self) -> list[str]:
        """The messages of a chain, with marks."""
        self._run_chain()
        self.prepared.append(self.sent[0])  # the session's own
        self.sent.clear()
        return self._marked(self._run_chain())

    def _run_chain(self) -> Marks:
        (graph,) = make_graphs(self.cursor, "bench-small", 1)
        request = str(uuid4())
        with self.executors.borrow() as executor:
            begun = begin_migration(executor, graph, caller=Caller(task_id=request))
        assert isinstance(begun, Dispatch)
        for message in begun.messages():
            run_hop(self.executors, message)
        return marks(str(graph), request) | {"migration": str(begun.migration_id)}

    def pack(self) -> list[str]:
        """The messages of the second graph of a pack, with marks."""
        pack = self._rollout(2)
        self.sent.clear()
        run_pack(self.executors, UUID(pack), Worker("bench"), Surroundings(lambda *_: None))
        mine = self.members(pack)[1]
        self.cursor.execute("SELECT id FROM graph_migrator.migrations WHERE graph_id = %s", (mine["graph"],))
        mine["migration"] = str(self.cursor.fetchone()[0])
        self._marked({})
        del self.sent[: next(i for i, text in enumerate(self.sent) if mine["migration"] in text)]
        while mine["migration"] not in self.sent[-1] and mine["graph"] not in self.sent[-1]:
            self.sent.pop()
        for _ in range(3):  # the rollout takes in what became of its graphs, and ends: the next one may start
            self._turn()
        return self._marked(mine)

    def many(self, count: int) -> str:
        """A running pack of so many graphs."""
        pack = self._rollout(count)
        self.cursor.execute(_ALL_IN, {"pack": pack})
        return pack

    def _rollout(self, count: int) -> str:
        graphs = tuple(map(str, make_graphs(self.cursor, "bench-small", count)))
        alone = packs.STRATEGY
        if "pack_together" in Strategy.model_fields:  # an older checkout has none
            alone = alone.model_copy(update={"pack_together": 1})
        with self.executors.borrow() as executor:
            start(executor, RolloutRequest(graph_type="bench-small", graphs=graphs, strategy=alone))
        while not (sent := self._turn()):
            pass
        return str(sent[0].pack_id)

    def _turn(self) -> list[SendingPack]:
        with self.executors.borrow() as executor:
            return [each for each in move_rollouts_on(executor) if isinstance(each, SendingPack)]

    def members(self, pack: str) -> list[Marks]:
        self.cursor.execute(_MEMBERS, (pack,))
        return [
            marks(graph, request) | {"rollout": rollout, "pack": pack_id, "since": since}
            for graph, request, rollout, pack_id, since in self.cursor.fetchall()
        ]

    def _marked(self, mine: Marks) -> list[str]:
        """What was sent, with the name of a mark for what differs from graph to graph."""
        marked = []
        for text in self.sent:
            if text.startswith("PREPARE"):
                self.prepared.append(text)
                continue
            text = text.replace("%", "%%")
            for name, value in mine.items():
                text = text.replace(value, f"%({name})s")
            marked.append(_ATTEMPT.sub(r"\g<1>%(attempt)s", text))
        return marked


def marks(graph: str, request: str) -> Marks:
    """Those of every graph."""
    return {"graph": graph, "slug": "g" + graph.replace("-", ""), "request": request}


def record(url: str, count: int, sql: str | None) -> dict[str, Any]:
    """Make the database of this checkout; what is sent to it, and so many graphs of each kind."""
    upgrade(url)
    registry.register(small)
    recorder = Recorder(url)
    if sql is not None:
        recorder.cursor.execute(f"SET search_path = graph_migrator; {sql}; RESET search_path")
    messages = {"chain": recorder.chain(), "pack": recorder.pack()}
    graphs = {
        "pack": recorder.members(recorder.many(count)),
        "chain": [
            marks(str(graph), str(uuid4())) for graph in make_graphs(recorder.cursor, "bench-small", count)
        ],
    }
    recorder.cursor.execute("VACUUM ANALYZE")
    return {
        "messages": messages,
        "graphs": graphs,
        "prepare": recorder.prepared,
    }


# ── side by side ────────────────────────────────────────────────────────────────────────────────────


class Side:
    """One checkout's database and a session in it."""

    def __init__(self, url: str, checkout: Path, count: int, sql: str | None = None) -> None:
        command = [sys.executable, __file__, str(checkout), "--record", url, "--count", str(count)]
        done = subprocess.run(
            [*command, *(["--sql", sql] if sql else [])],
            cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, check=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        found = json.loads(done.stdout)
        self.url, self.messages, self.graphs = url, found["messages"], found["graphs"]
        self._prepare = ";".join(found["prepare"])
        self._connection: Any = None

    def connect(self) -> None:
        """A new session."""
        if self._connection is not None:
            self._connection.close()
        self._connection = connect(self.url)
        self._cursor = self._connection.cursor()
        self._cursor.execute(self._prepare)
        self._clock = Path(f"/proc/{self._connection.info.backend_pid}/schedstat")

    def migrate(self, kind: str, count: int) -> float:
        """The session's CPU time in µs for each of so many graphs."""
        began = self._cpu()
        for _ in range(count):
            mine = self.graphs[kind].pop() | {"migration": str(uuid4()), "attempt": ""}
            for text in self.messages[kind]:
                self._cursor.execute(text % mine)
                row = self._cursor.fetchone() if self._cursor.description else None
                if row and self._cursor.description[-1].name == "answer" and row[-1]:
                    mine["attempt"] = str(json.loads(row[-1])["attempt_id"])
        return (self._cpu() - began) / count

    def _cpu(self) -> float:
        return int(self._clock.read_text().split()[0]) / 1e3


def compare(other: Path, pairs: int, graphs: int, sql: str | None) -> None:
    """Print what this checkout takes of the other's CPU time."""
    count = pairs * graphs + SESSIONS * WARM
    with server() as postgres:
        admin = connect(postgres.url).cursor()
        for name in ("theirs", "mine"):
            admin.execute(f"CREATE DATABASE {name}")
        theirs = Side(postgres.url_of("theirs"), other, count)
        mine = Side(postgres.url_of("mine"), Path(__file__).parents[1], count, sql)
        for kind in ("pack", "chain"):
            took: dict[Side, list[float]] = {theirs: [], mine: []}
            for turn in range(pairs):
                if turn % (pairs // SESSIONS) == 0 and turn // (pairs // SESSIONS) < SESSIONS:
                    for side in took:
                        side.connect()
                        side.migrate(kind, WARM)
                for side in (theirs, mine) if turn % 2 else (mine, theirs):
                    took[side].append(side.migrate(kind, graphs))
            low, ratio, high = statistics.quantiles(
                [ours / before for before, ours in zip(took[theirs], took[mine], strict=True)], n=4
            )
            was, now = (statistics.median(took[side]) for side in (theirs, mine))
            print(
                f"{kind}: {now:.0f} µs a migration, {was:.0f} in the other: {ratio:.3f} ({low:.3f} to {high:.3f})"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.server_cpu", description=__doc__)
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--graphs", type=int, default=4, help="of one side of a pair")
    parser.add_argument("--sql", help="a statement for this side's schema: to leave something out")
    parser.add_argument("--record", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.record:
        json.dump(record(given.record, given.count, given.sql), sys.stdout)
    else:
        compare(given.other.resolve(), given.pairs, given.graphs, given.sql)
