"""Connections that can be cut at any moment, over real ones that are used again.

A simulated process gets `Link`s. When it ends a link, or dies, the real session behind it is rolled back,
stripped of its locks and settings, and kept for the next link: to the core, and to everybody else in the
server, that is the end of a session, and it costs a tenth of a new one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_UNKNOWN

from graph_migrator.core.store.driver import ExecutorConnection, _Statements
from tests.simulation.actors import Killed, current

if TYPE_CHECKING:
    from tests.simulation.world import Process, World

_FUNCTION = re.compile(r'graph_migrator\.(\w+)"?\(')
_READING = frozenset(
    {
        "load_attempt_status", "become_executor", "recovery_candidates", "lock_and_load_graph", "lock_key",
        "lock_and_load_hop", "lock_and_load_stalled", "remaining_chain", "migration_report",
        "save_progress", "explain_loss", "set_timeout", "take_lock", "try_sweep", "end_sweep",
        "unanswered_calls", "turn_to",
    }
)  # fmt: skip
"""They commit nothing that an invariant speaks of."""
_RESET = "SELECT pg_advisory_unlock_all(); RESET ALL; DISCARD TEMP; DEALLOCATE ALL"

_UNKNOWN = SimpleNamespace(transaction_status=TRANSACTION_STATUS_UNKNOWN)
_CLOSED_FD, _writer = os.pipe()
os.close(_writer)  # reading from it gives the end of the file, as from a socket that the server has closed


class Server:
    """The real sessions, and one to look at everything with."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.control = self._connect()
        self._watch = self._connect()
        self._free: list[Any] = []

    def _connect(self) -> Any:
        options = "-c search_path=graph_migrator,public -c timezone=UTC"
        real = psycopg2.connect(self.url, options=options, connection_factory=ExecutorConnection)
        real.autocommit = True
        return real

    def take(self) -> Any:
        """A session without a past."""
        return self._free.pop() if self._free else self._connect()

    def release_claim(self, real: Any) -> None:
        """End what the session did."""
        try:
            real.take_back()
            with real.cursor() as cursor:
                if real.info.transaction_status != TRANSACTION_STATUS_IDLE:
                    cursor.execute("ROLLBACK")
                cursor.execute(_RESET)
        except psycopg2.Error:  # it was terminated in earnest
            with suppress(psycopg2.Error):
                real.close()
        else:
            self._free.append(real)

    def terminate(self, real: Any) -> None:
        """End a session in earnest, from outside, and wait until it is gone."""
        self.terminate_pid(real.info.backend_pid)

    def terminate_pid(self, pid: int) -> None:
        """The same, by the server's process. (The server's own waiting looks every 100 ms only.)"""
        self.query("SELECT pg_terminate_backend(%s)", pid)
        while self.query("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid):
            pass

    def is_blocked(self, pid: int) -> bool:
        """Whether a server process waits for a lock."""
        with self._watch.cursor() as cursor:
            cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,))
            return bool(cursor.fetchone()[0])

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query on the session that looks at everything."""
        with self.control.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def close(self) -> None:
        for real in (self.control, self._watch, *self._free):
            real.close()


class _Cursor(_Statements):
    link: Link

    def execute(self, query: Any, parameters: Any = None) -> None:
        real = self.connection
        query = real.preceded(query, has_values=parameters is not None)
        # Outside of a transaction every message commits; inside, one that says so.
        idle = real.info.transaction_status == TRANSACTION_STATUS_IDLE
        commits = "COMMIT" in str(query) or (idle and not str(query).startswith("BEGIN"))

        def arrives() -> None:
            """In the server, after this cursor's process is gone."""
            with real.cursor() as another:
                another.execute(query, parameters)

        self.link.run(
            _name_of(query),
            lambda: super(_Cursor, self).execute(query, parameters),
            arrives if commits else None,
        )

    def copy_expert(self, query: Any, file: Any, size: int = 8192) -> None:
        self.link.run("copy", lambda: super(_Cursor, self).copy_expert(query, file, size), None)


class Link:
    """What a simulated process takes for a psycopg2 connection."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.real: Any = world.server.take()
        self.born = process.generation
        self.gone = False  # the server has ended the session, the client has not noticed
        self.shut = False  # the client knows
        process.links.append(self)

    @property
    def dead(self) -> bool:
        """Whether its process is."""
        return self.born != self.process.generation

    # ── what the core and SQLAlchemy use ────────────────────────────────────────────────────────────

    @property
    def closed(self) -> int:
        return 2 if self.shut or self.dead else 0

    @property
    def autocommit(self) -> bool:
        self._require()
        return bool(self.real.autocommit)

    @autocommit.setter
    def autocommit(self, on: bool) -> None:
        if self.gone:
            return
        self._require()
        self.real.autocommit = on

    def fileno(self) -> int:
        return _CLOSED_FD if self.real is None else int(self.real.fileno())

    def cursor(self, *_: Any, **__: Any) -> _Cursor:
        self._require()
        # As of the driver's own cursors, not as of others: its first statement takes along what is to be sent first.
        cursor: _Cursor = psycopg2.extensions.connection.cursor(self.real, cursor_factory=_Cursor)
        cursor.link = self
        return cursor

    def run(self, name: str, do: Callable[[], Any], arrives: Callable[[], Any] | None) -> None:
        """A message, with all that can happen before and after it.

        Args:
            name: What it does.
            do: Send it and wait for the answer.
            arrives: What it does in the server if nobody waits any more; None where it commits nothing.
        """
        self._require()
        if name == "connect":  # a session that nobody has yet
            do()
            return
        self.world.at(f"before {name}", self, arrives)
        self._require()
        self._do(do)
        if arrives is not None:
            self._committed(name)

    @property
    def info(self) -> Any:
        """Of a session that is gone, psycopg2 still says that it does not know."""
        return self.real.info if self.real is not None else _UNKNOWN

    def lend(self) -> None:
        if self.real is not None:
            self.real.lend()

    def send_first(self, statement: str) -> None:
        self._require()
        self.real.send_first(statement)

    def send_what_comes_first(self) -> None:
        self._require()
        self.real.send_what_comes_first()

    def take_back(self) -> bool:
        return True if self.real is None else bool(self.real.take_back())

    def commit(self) -> None:
        self._require()
        if self.real.autocommit:  # the driver sends nothing
            self.real.commit()
            return
        self.world.at("before commit", self, self.real.commit)
        self._require()
        self._do(self.real.commit)
        self._committed("commit")

    def rollback(self) -> None:
        if self.dead:
            return
        self._require()
        self.real.rollback()

    def close(self) -> None:
        self.shut = True
        self._end()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    # ── what the simulation does to it ──────────────────────────────────────────────────────────────

    def cut(self, *, lingers: bool = False, last: Callable[[], Any] | None = None) -> None:
        """The client's side is gone; the server's too, or it lingers, with a last statement in hand."""
        self.gone = True
        if self.real is not None:
            if lingers:
                self.world.lingering.append((self.real, last))
                self.real = None
            else:
                self._end()

    def terminate(self) -> None:
        """End the session in earnest; the client hears of it in the server's own words."""
        self.world.server.terminate(self.real)

    def _end(self) -> None:
        real, self.real = self.real, None
        if real is not None:
            self.world.server.release_claim(real)
        if self in self.process.links:
            self.process.links.remove(self)

    def _do(self, do: Callable[[], Any]) -> None:
        actor = current()
        if actor is None:
            do()
            return
        try:
            actor.in_statement(self.real.info.backend_pid, do)
        except psycopg2.Error:
            if self.dead:
                raise Killed from None
            if self.real is not None and self.real.closed:
                self.shut = True
            raise

    def _committed(self, name: str) -> None:
        if name not in _READING:
            self.world.observe()
        self.world.at(f"after {name}", self, None)
        self._require()

    def _require(self) -> None:
        if self.dead:
            raise Killed
        if self.shut:
            raise psycopg2.InterfaceError("connection already closed")
        if self.gone:
            self.shut = True
            raise psycopg2.OperationalError("server closed the connection unexpectedly")


def _name_of(query: Any) -> str:
    text = query if isinstance(query, str) else query.decode() if isinstance(query, bytes) else "composed"
    if text.startswith(("SELECT graph_migrator.reset_session", "PREPARE")):
        return "connect"
    found = [name for name in _FUNCTION.findall(text) if name != "reset_session"]
    return found[0] if found else "commit" if text == "COMMIT" else "statement"
