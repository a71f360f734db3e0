"""The connection that takes a graph's lock and does all the writing while it is held.

Lock, token and transaction live and die with one Postgres session. So an executor's connection never
comes from a pool, is given to one graph at a time, and is closed after any error. Between two graphs a
process keeps it open without a lock, because connecting costs more than a hop.
"""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar
from weakref import WeakSet

from psycopg2.extensions import STATUS_BEGIN, TRANSACTION_STATUS_IDLE
from psycopg2.extensions import cursor as PlainCursor  # noqa: N812 - it is a class
from psycopg2.extras import register_uuid
from sqlalchemy import Connection, Engine, RootTransaction

from graph_migrator.core.store import protocol
from graph_migrator.core.store.driver import connect_executor
from graph_migrator.core.store.errors import DRIVER_ERRORS
from graph_migrator.core.store.protocol import Call

register_uuid()  # type: ignore[no-untyped-call] # psycopg2's stubs leave it bare

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_SESSION = "SELECT graph_migrator.reset_session()"
"""Removes what a hop has left in its session, and sets what is ours."""
# What follows runs in a transaction of its own, whatever the hop made the default.
_RESET_AND = f"{_BEGIN}; {_SESSION}"
_RESET = f"{_RESET_AND}; COMMIT"
_UNLOCK_ALL = "SELECT pg_advisory_unlock_all()"
"""Where `release_lock`, which does it too, does not follow."""
_OPEN = "SELECT set_config('graph_migrator.transaction', 'open', true)"
"""The setting ends with the transaction: by it `finish_hop` knows that nobody has ended it in between."""
_ANSWER = f"{_OPEN}, current_setting('graph_migrator.answer') AS answer"

_OVERRIDDEN = ("search_path", "synchronous_commit", "statement_timeout")
"""What a migration in a caller's transaction sets otherwise, and restores."""

_PREPARED: tuple[type[Call[Any]], ...] = (
    protocol.LockAndLoadGraph,
    protocol.BeginMigration,
    protocol.LockAndOpenHop,
    protocol.FinishHop,
    protocol.ReleaseLock,
)
"""In every session; each costs a little after every hop, when what a hop has prepared is looked for."""

R = TypeVar("R")
S = TypeVar("S")


class Executor:
    """A Postgres session that can be a migration's executor.

    `call` runs one function of the protocol, which is one round trip and one transaction;
    `transaction` opens a transaction for a hop's data on the very same session.

    BEGIN and COMMIT travel with other statements, because a message costs more than what most of them do.
    psycopg2 would send each in a message of its own, so it is in autocommit mode; see `core.store.driver`.
    """

    def __init__(self, connection: Connection, *, owned: bool) -> None:
        raw: Any = connection.connection.dbapi_connection
        self.connection = connection
        self.backend_pid = int(raw.info.backend_pid)
        self._raw = raw
        self._owned = owned
        self._whole: RootTransaction | None = None  # what SQLAlchemy has open while a hop has the session
        self._after_commit: list[Callable[[], None]] | None = None  # a list while a transaction is open
        self._is_used = False  # a hop's code had the session since it was last reset
        self._next_is_open = False  # the open transaction is the next hop's
        self._prepared: set[type[Call[Any]]] = set()

    @classmethod
    def connect(cls, engine: Engine) -> Self:
        """Open a session of its own, outside of the engine's pool."""
        executor = cls(connect_executor(engine), owned=True)
        executor._send(";".join((_SESSION, *(call.prepare() for call in _PREPARED))))
        executor._prepared.update(_PREPARED)
        return executor

    @classmethod
    def within(cls, connection: Connection) -> Self:
        """Work in the transaction that the caller has open on `connection`; lock and rows share its fate."""
        return cls(connection, owned=False)

    @property
    def in_callers_transaction(self) -> bool:
        """Whether the caller decides about commit and rollback."""
        return not self._owned

    def prepare(self, *calls: type[Call[Any]]) -> None:
        """Prepare what is called often from now on, where the session has not got it yet."""
        missing = [call for call in calls if call not in self._prepared]
        if missing and self._owned:
            self._send(";".join(call.prepare() for call in missing))
            self._prepared.update(missing)

    # ── messages ────────────────────────────────────────────────────────────────────────────────────

    def call(self, call: Call[R]) -> R:
        """Call a function of the protocol.

        Returns:
            What the call says that it brings; see `core.store.protocol`.
        """
        return call.read(self._send(self._statement(call), call.arguments()))

    def call_all(self, call: Call[R]) -> list[R]:
        """Call a function that returns a row for each thing that it finds."""
        with self._raw.cursor() as cursor:
            cursor.execute(self._statement(call), call.arguments())
            names = [column.name for column in cursor.description]
            return [call.read(dict(zip(names, row, strict=True))) for row in cursor.fetchall()]

    def call_and_begin(self, call: Call[R]) -> R:
        """Call a function in a transaction of its own, and open the next one: one message.

        Of the answers to several statements only the last one comes back. So the function leaves its own in the
        setting ``graph_migrator.answer``, as `open_hop` does.
        """
        if not self._owned:
            return self.call(call)
        row = self._send(
            f"{_BEGIN}; {self._statement(call)}; COMMIT AND CHAIN; {_ANSWER}",
            call.arguments(),
        )
        return call.read(json.loads(row["answer"]))

    def call_and_commit(self, call: Call[None], then: Call[S]) -> S | None:
        """Call a function as the last one in the open transaction, commit, and call another: one message.

        Args:
            call: An error of its, or of the commit, rolls everything back.
            then: Called after the commit, in a transaction of its own.

        Returns:
            What `then` brought; None in a transaction of the caller's, where it is not called.
        """
        if not self._owned:
            self.call(call)
            return None
        statement = f"{self._statement(call)}; COMMIT; {_RESET}; {self._statement(then)}"
        brought = then.read(self._send(statement, (*call.arguments(), *then.arguments())))
        self._was_reset()
        return brought

    def commit_and_open(self, call: Call[None], then: Call[R]) -> R:
        """Call a function as the last one in the open transaction, commit, and open the next transaction: one message.

        Args:
            call: An error of its, or of the commit, rolls everything back.
            then: Called after the commit, in a transaction of its own, on the session as it was before the hop. It
                leaves its answer in the setting, as that of `call_and_begin` does.

        Returns:
            What `then` brought.
        """
        reset = f"{_RESET_AND}; {self._statement(then)}; COMMIT AND CHAIN"
        statement = f"{self._statement(call)}; COMMIT; {reset}; {_ANSWER}"
        row = self._send(statement, (*call.arguments(), *then.arguments()))
        self._was_reset()
        self._next_is_open = True
        return then.read(json.loads(row["answer"]))

    def commit_with(self, call: Call[Any]) -> None:
        """Call a function as the last one in the open transaction, and commit: one message."""
        if not self._owned:
            self.call(call)
            return
        self._send(f"{self._statement(call)}; COMMIT; {_RESET}; {_UNLOCK_ALL}", call.arguments())
        self._was_reset()

    def call_and_reset(self, call: Call[R]) -> R:
        """Call a function as the last one of a piece of work; what a hop left in the session goes with it."""
        if not self._is_used:
            return self.call(call)
        brought = call.read(self._send(f"{_RESET}; {self._statement(call)}", call.arguments()))
        self._was_reset()
        return brought

    def _was_reset(self) -> None:
        self._is_used = False
        self._restore_driver()

    def _statement(self, call: Call[Any]) -> str:
        return call.statement(prepared=type(call) in self._prepared)

    def _send(self, statement: str, arguments: tuple[Any, ...] = ()) -> dict[str, Any]:
        with self._raw.cursor(cursor_factory=PlainCursor) as cursor:  # whatever a hop made the default
            cursor.execute(statement, arguments or None)
            if cursor.description is None:
                return {}
            row = cursor.fetchone()
            return {column.name: value for column, value in zip(cursor.description, row, strict=True)}

    # ── the transaction ─────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction on this session, perhaps begun by `call_and_begin`; rolled back on any error.

        Committed at the end, if `call_and_commit` or `commit_and_open` has not done that.
        """
        if not self._owned:
            yield self.connection
            return
        self._is_used = True
        self._next_is_open = False
        if self._is_idle:
            self._send(f"{_BEGIN}; {_OPEN}")
        self._whole = self.connection.get_transaction() or self.connection.begin()
        self._raw.lend()
        then: list[Callable[[], None]] = []
        self._after_commit = then
        try:
            yield self.connection
            if not (self._is_idle or self._next_is_open):
                self._send("COMMIT")
        except BaseException:
            self.roll_back()
            raise
        finally:
            self._after_commit = None
            self._take_back()
        for do in then:
            do()

    def turn_to(self, call: Call[None]) -> None:
        """Give the open transaction to the next hop in it; what the one before left on this side goes.

        The call itself goes with the hop's first statement, in one message.
        """
        self._raw.send_what_comes_first()
        self._restore_driver()
        with self._raw.cursor() as cursor:
            statement = cursor.mogrify(self._statement(call), call.arguments())
        self._raw.send_first(statement.decode())
        self._raw.lend()

    def roll_back(self) -> None:
        """Roll back what is open."""
        # First the driver: with an isolation level of the hop's own it would send a BEGIN before anything else.
        self._restore_driver()
        # Where the session is gone, that is a rollback too, and the next call says so.
        with suppress(*DRIVER_ERRORS):
            if not self._raw.closed and not self._is_idle:
                self._send("ROLLBACK")

    def _take_back(self) -> None:
        """End what a hop has left open on the side of SQLAlchemy and of the driver. Sends nothing."""
        self._whole = None
        self._restore_driver()
        if not self._raw.closed:
            with suppress(*DRIVER_ERRORS):
                self.connection.rollback()

    def _restore_driver(self) -> None:
        with suppress(*DRIVER_ERRORS):
            if not self._raw.take_back():
                self.close()

    @property
    def _is_idle(self) -> bool:
        return bool(self._raw.info.transaction_status == TRANSACTION_STATUS_IDLE)

    @property
    def transaction_was_ended(self) -> bool:
        """Whether the hop's code ended the open transaction, as far as this side knows; see `finish_hop`."""
        if self._owned:
            known = self.connection.get_transaction()
            return self._is_idle or not self._raw.is_intact or known is None or known is not self._whole
        theirs = self.connection.get_transaction()
        return theirs is None or not theirs.is_active or (self._is_idle and self._raw.status == STATUS_BEGIN)

    @property
    def ending_was_refused(self) -> bool:
        """Whether the hop's code tried to end the transaction by means of the driver, or to begin one."""
        return self._owned and not self._raw.closed and not self._raw.is_intact

    def after_commit(self, do: Callable[[], None]) -> None:
        """Do something once what was written is committed: now, or at the end of the open transaction.

        Never where that is rolled back, nor in a transaction of the caller's.
        """
        if self._after_commit is not None:
            self._after_commit.append(do)
        elif self._owned:
            do()

    def cursor(self) -> Any:
        """A driver's cursor, for statements that are not a function of the protocol."""
        return self._raw.cursor()

    def is_lost(self) -> bool:
        """Whether the session has ended: asks the server, where this side does not know."""
        if self._raw.closed:
            return True
        try:
            self._send("SELECT 1")
        except DRIVER_ERRORS:
            return True
        return False

    @property
    def is_closed(self) -> bool:
        """Whether the session has ended, as far as this side knows."""
        return bool(self._raw.closed)

    @contextmanager
    def callers_settings(self) -> Iterator[None]:
        """In a caller's transaction: find our tables, and leave its settings as they were."""
        with self._raw.cursor() as cursor:
            cursor.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in _OVERRIDDEN))
            theirs = cursor.fetchone()
            cursor.execute(
                "SELECT set_config('search_path', %s, true), set_config('graph_migrator.transaction', 'open', true)",
                (f"graph_migrator,{theirs[0]}",),
            )
        yield
        with self._raw.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('graph_migrator.executor', '', false), "
                "set_config('graph_migrator.transaction', '', true), "
                + ", ".join(f"set_config('{name}', %s, true)" for name in _OVERRIDDEN),
                theirs,
            )

    def close(self) -> None:
        """End the session; whatever it held is free at once."""
        if self._owned and not self.connection.closed:
            self._raw.close()
            self.connection.invalidate()
            self.connection.close()


class Executors:
    """This process's executors: lends one at a time to each thread, keeps idle ones open."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._idle: list[Executor] = []
        self._open: WeakSet[Executor] = WeakSet()
        self._mutex = threading.Lock()

    @contextmanager
    def borrow(self) -> Iterator[Executor]:
        """Lend an executor. After any error its connection is closed: nobody inherits its lock or token."""
        with self._mutex:
            executor = self._idle.pop() if self._idle else None
        if executor is not None and not _answers(executor):
            executor.close()
            executor = None
        if executor is None:
            executor = Executor.connect(self.engine)
            self._open.add(executor)
        try:
            yield executor
        except BaseException:
            executor.close()
            raise
        if not executor.is_closed:
            with self._mutex:
                self._idle.append(executor)

    def disown(self) -> None:
        """In a forked child: close the parent's sockets; nothing is sent to the server.

        Two processes on one session read each other's results; and while one of them holds the socket, the
        server does not hear that the other one, whose session it is, has died.
        """
        for executor in self._open:
            if not executor.is_closed:
                os.close(executor._raw.fileno())

    def close(self) -> None:
        """Close the idle sessions."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for executor in idle:
            executor.close()


def _answers(executor: Executor) -> bool:
    """Whether an idle session is still there.

    Costs no round trip: on an idle connection, readable data means that the server closed it.
    """
    raw = executor._raw
    if raw.closed:
        return False
    readable, _, _ = select.select([raw.fileno()], [], [], 0)
    return not readable
