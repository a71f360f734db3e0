"""A migration driven step by step through the protocol's functions, and writers that attack it.

The write guard is tested against the functions themselves, so that a test can stop between any two steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import pytest

from graph_migrator.core.store import protocol
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.session import Executor

READ_COMMITTED = "READ COMMITTED"
REPEATABLE_READ = "REPEATABLE READ"
SERIALIZABLE = "SERIALIZABLE"
ISOLATIONS = (READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE)

REFUSED = "55006"
REPEAT = "40001"
FENCED = "GM001"

RENAME = "UPDATE nodes SET label = 'w' WHERE graph_id = %s"
INSERT = "INSERT INTO nodes VALUES (%s, 'late', 'v1')"
UPDATE = "UPDATE nodes SET label = 'v1' WHERE graph_id = %s"
at_every_isolation = pytest.mark.parametrize("isolation", ISOLATIONS)


class Client:
    """One session of an application, in transactions of one isolation level."""

    def __init__(self, url: str, isolation: str = READ_COMMITTED, **settings: str) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self.raw: psycopg2.extensions.connection = psycopg2.connect(
            url, options=f"-c search_path=graph_migrator,public {options}"
        )
        self.raw.set_session(isolation_level=isolation)

    @property
    def pid(self) -> int:
        return self.raw.info.backend_pid

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.raw.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *values: Any) -> Any:
        (row,) = self.run(statement, *values)
        return row[0] if len(row) == 1 else row

    def begin(self) -> None:
        """Start the transaction and take its first snapshot, so that it is as old as it looks."""
        self.run("SELECT count(*) FROM graphs")

    def commit(self) -> None:
        self.raw.commit()

    def rollback(self) -> None:
        self.raw.rollback()

    def do(self, statement: str, *values: Any) -> None:
        """One statement, committed."""
        self.run(statement, *values)
        self.commit()

    def close(self) -> None:
        self.raw.close()


class HandDriven:
    """One migration of one graph from a version to the next but `hops`, each step a call."""

    def __init__(self, url: str, graph: UUID, *, hops: int = 1) -> None:
        self._engine = make_engine(url)
        self.executor = Executor.connect(self._engine)
        self.graph = graph
        self.id = uuid4()
        with self.executor.cursor() as cursor:
            cursor.execute("SELECT version FROM graphs WHERE id = %s", (graph,))
            self.version = cursor.fetchone()[0]
        self.target = self.version + hops
        self._attempt: int | None = None

    @property
    def pid(self) -> int:
        raw: Any = self.executor.connection.connection.dbapi_connection
        return int(raw.info.backend_pid)

    def lock_and_load(self, wait_ms: int = 2_000) -> Any:
        """Take the lock, as begin does."""
        return self.executor.call(
            protocol.LockAndLoadGraph(graph=str(self.graph), request=None, wait_ms=wait_ms, session=True)
        )

    def lock_and_load_hop(self, dispatch: int, to: int | None = None) -> Any:
        """Try the lock, as the delivery of a message does."""
        return self.executor.call(
            protocol.LockAndLoadHop(migration=self.id, to=to or self.version + 1, dispatch=dispatch)
        )

    def claim(self, *, leave: bool = False) -> None:
        """Commit the claim, under the lock; `release_lock` gives the lock back with that commit."""
        plan = [
            {"from_version": v, "to_version": v + 1, "name": f"hop_{v}", "fingerprint": "f"}
            for v in range(self.version, self.target)
        ]
        self.executor.call(
            protocol.BeginMigration(
                migration=self.id, graph=self.graph, graph_type="knowledge", from_=self.version, to=self.target,
                plan=plan, release=None, request=None, target=self.target, by=None, reason=None, deadline_seconds=30.0,
                unlock=leave,
            )
        )  # fmt: skip

    def release_lock(self, *, stamp: bool = False) -> None:
        self.executor.call(protocol.ReleaseLock(graph=self.graph, stamp=stamp))

    def begin(self) -> HandDriven:
        self.lock_and_load()
        self.claim()
        self.release_lock()
        return self

    def open_hop(self) -> None:
        """Take the lock, commit a running attempt, become the executor.

        Writers that waited behind begin have the lock for a moment each, until they see the claim.
        """
        facts: Any = None

        def look() -> bool:
            nonlocal facts
            facts = self.lock_and_load_hop(1)
            return bool(facts.locked)

        wait_until(look)
        opened = self.executor.call(
            protocol.OpenHop(
                migration=self.id, graph=self.graph, status=facts.status, dispatch=1, lost=None,
                from_=self.version, to=self.version + 1, hop=f"hop_{self.version}", fingerprint="f", worker="test",
                pid=1, task=None, done=0, deadline_seconds=30.0,
            )
        )  # fmt: skip
        assert opened is not None
        self._attempt = opened.attempt_id

    @contextmanager
    def data(self, before_commit: Callable[[], object] = lambda: None) -> Iterator[Callable[..., int]]:
        """The hop's transaction; at its end the version changes and, at the target, the claim falls."""
        with self.executor.transaction(), self.executor.cursor() as cursor:

            def run(statement: str, *values: Any) -> int:
                cursor.execute(statement, values or None)
                return int(cursor.rowcount)

            yield run
            assert self._attempt is not None
            self.executor.call(
                protocol.FinishHop(
                    attempt=self._attempt, migration=self.id, graph=self.graph, from_=self.version,
                    to=self.version + 1, status="succeeded", rows=0, done=None, last=self.is_last, callers=False,
                    deadline_seconds=30.0, checkpoint=True,
                )
            )  # fmt: skip
            before_commit()
        self.version += 1

    @property
    def is_last(self) -> bool:
        return self.version + 1 >= self.target

    def execute(self, statement: str, *values: Any) -> None:
        """One statement in the executor's session."""
        with self.executor.cursor() as cursor:
            cursor.execute(statement, values or None)

    def run_hop(self, *statements: str) -> None:
        """A whole hop: open, data, commit, stamp after the last one, unlock."""
        last = self.is_last
        self.open_hop()
        with self.data() as run:
            for statement in statements or (shape_update(self.version + 1),):
                run(statement, self.graph)
        self.release_lock(stamp=last)

    def run(self) -> HandDriven:
        """The whole migration."""
        self.begin()
        while self.version < self.target:
            self.run_hop()
        return self

    def fail(self) -> None:
        self.open_hop()
        assert self._attempt is not None
        assert self.executor.call(
            protocol.FailAttempt(
                attempt=self._attempt, migration=self.id, graph=self.graph, transient=False, final=True,
                type="ValueError", message="no", args=None, traceback="", deadline_seconds=30.0,
            )
        )  # fmt: skip
        self.release_lock()

    def cancel(self) -> None:
        """Between two hops: asked for, and carried out."""
        self.executor.call(
            protocol.FollowEdge(
                migration=self.id, from_="running", to="cancelling", again=False, deadline_seconds=0
            )
        )
        assert (
            self.executor.call(protocol.StopMigration(migration=self.id, attempt_becomes="lost"))
            == "cancelled"
        )

    def close(self) -> None:
        """End the session, as a killed worker does."""
        self.executor.close()
        self._engine.dispose()


def shape_update(version: int) -> str:
    return f"UPDATE nodes SET label = 'v{version}' WHERE graph_id = %s"


def add_graph(client: Client, slug: str, *, nodes: int = 2) -> UUID:
    """A graph at version 1 whose nodes say so in their label."""
    graph = uuid4()
    client.run(
        "INSERT INTO graphs (id, slug, graph_type, version) VALUES (%s, %s, 'knowledge', 1)", graph, slug
    )
    client.run("INSERT INTO nodes SELECT %s, 'n' || i, 'v1' FROM generate_series(1, %s) i", graph, nodes)
    client.commit()
    return graph


@contextmanager
def in_background(work: Callable[..., Any], *values: Any) -> Iterator[Future[Any]]:
    """Run something that may block in a thread of its own; wait for it at the end."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool.submit(work, *values)
    except BaseException:
        pool.shutdown(wait=False)  # it may be blocked by what went wrong here; dropping the database ends it
        raise
    pool.shutdown()


def wait_until(condition: Callable[[], Any], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come true in time")
        time.sleep(0.002)


def waits(observer: Client, pid: int, event: str = "advisory") -> bool:
    """Whether a session waits for a lock of this kind."""
    observer.rollback()  # a transaction keeps seeing the activity that it saw first
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock' AND wait_event = %s"
    waiting = bool(observer.run(query, pid, event))
    observer.rollback()
    return waiting


def wait_until_waiting(observer: Client, pid: int, event: str = "advisory") -> None:
    wait_until(lambda: waits(observer, pid, event))


def sqlstate_of(work: Callable[..., Any], *values: Any) -> str | None:
    """How a database error was coded; None where there was none."""
    try:
        work(*values)
    except psycopg2.Error as error:
        return error.pgcode
    return None
