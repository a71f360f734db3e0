"""The connection that takes a graph's lock and does all the writing while it is held.

Lock, token and transaction live and die with one Postgres session. So an executor's connection never
comes from a pool, is given to one graph at a time, and is closed after any error. Between two graphs a
process keeps it open, empty-handed, because connecting costs more than a hop.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self
from uuid import UUID

from psycopg2.extensions import STATUS_BEGIN, TRANSACTION_STATUS_IDLE
from psycopg2.extras import Json, register_uuid
from sqlalchemy import Connection, Engine

register_uuid()  # type: ignore[no-untyped-call] # psycopg2's stubs leave it bare

_SESSION = """
SELECT set_config('search_path', 'graph_migrator,public', false),
       set_config('client_connection_check_interval', '500ms', false),
       set_config('timezone', 'UTC', false)
"""

_OVERRIDDEN = ("search_path", "synchronous_commit", "statement_timeout")
"""What a migration in a caller's transaction sets otherwise, and puts back."""


class Executor:
    """A Postgres session that can be a migration's executor.

    `call` runs one function of the protocol, which is one round trip and one transaction;
    `transaction` opens a transaction for a hop's data on the very same session.
    """

    def __init__(self, connection: Connection, *, owned: bool) -> None:
        self.connection = connection
        self._raw: Any = connection.connection.dbapi_connection
        self._owned = owned
        self._after_commit: list[Callable[[], None]] | None = None  # a list while a transaction is open

    @classmethod
    def connect(cls, engine: Engine) -> Self:
        """Open a session of its own, outside of the engine's pool."""
        connection = engine.connect()
        connection.detach()
        executor = cls(connection, owned=True)
        executor._raw.autocommit = True
        with executor._raw.cursor() as cursor:
            cursor.execute(_SESSION)
        return executor

    @classmethod
    def within(cls, connection: Connection) -> Self:
        """Work in the transaction that the caller has open on `connection`; lock and rows share its fate."""
        return cls(connection, owned=False)

    @property
    def in_callers_transaction(self) -> bool:
        """Whether the caller decides about commit and rollback."""
        return not self._owned

    def call(self, function: str, *arguments: Any) -> SimpleNamespace:
        """Call a function of the schema; its OUT parameters are the attributes of what is returned.

        Args:
            function: Its name, from our own code, never from input.
            arguments: Positional; dicts and lists are passed as jsonb.
        """
        marks = ", ".join(["%s"] * len(arguments))
        values = [Json(a) if isinstance(a, dict | list) else a for a in arguments]
        with self._raw.cursor() as cursor:
            cursor.execute(f"SELECT * FROM graph_migrator.{function}({marks})", values)  # noqa: S608 - own names
            row = cursor.fetchone()
            return SimpleNamespace(**{d.name: v for d, v in zip(cursor.description, row, strict=True)})

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction on this session: committed at the end, rolled back on any error."""
        if not self._owned:
            yield self.connection
            return
        self._raw.autocommit = False
        then: list[Callable[[], None]] = []
        self._after_commit = then
        try:
            with self.connection.begin():
                yield self.connection
        finally:
            self._after_commit = None
            if not self._raw.closed:
                self._raw.autocommit = True
        for do in then:
            do()

    def after_commit(self, do: Callable[[], None]) -> None:
        """Do something once what was written is committed: now, or at the end of the open transaction.

        Never where that is rolled back, nor in a transaction of the caller's.
        """
        if self._after_commit is not None:
            self._after_commit.append(do)
        elif self._owned:
            do()

    @property
    def transaction_was_ended(self) -> bool:
        """Whether somebody ended the open transaction behind the driver's back, by a COMMIT of their own."""
        begun = self._raw.status == STATUS_BEGIN
        return bool(begun and self._raw.info.transaction_status == TRANSACTION_STATUS_IDLE)

    def leave(
        self, graph_id: UUID, *, stamp: bool = False, migration_id: UUID | None = None
    ) -> dict[str, Any] | None:
        """Give the graph's lock back and forget the token.

        Args:
            graph_id: The graph.
            stamp: Date the change just committed.
            migration_id: Bring back the report of this migration.

        Returns:
            The report, as `MigrationReport` reads it.
        """
        if not self._owned:
            return None
        report: dict[str, Any] | None = self.call("leave", graph_id, stamp, migration_id).report
        return report

    def cursor(self) -> Any:
        """A driver's cursor, for statements that are not a function of the protocol."""
        return self._raw.cursor()

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
            cursor.execute("SELECT set_config('search_path', %s, true)", (f"graph_migrator,{theirs[0]}",))
        yield
        with self._raw.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('graph_migrator.executor', '', false), "
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
        self._mutex = threading.Lock()

    @contextmanager
    def borrow(self) -> Iterator[Executor]:
        """Lend an executor. After any error its connection is closed: nobody inherits its lock or token."""
        with self._mutex:
            executor = self._idle.pop() if self._idle else None
        if executor is None:
            executor = Executor.connect(self.engine)
        elif not _answers(executor):
            executor.close()
            executor = Executor.connect(self.engine)
        try:
            yield executor
        except BaseException:
            executor.close()
            raise
        if not executor.is_closed:
            with self._mutex:
                self._idle.append(executor)

    def close(self) -> None:
        """Close the idle sessions."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for executor in idle:
            executor.close()


def _answers(executor: Executor) -> bool:
    """Whether an idle session is still there. Costs no round trip: an idle server says only goodbye."""
    raw = executor._raw
    if raw.closed:
        return False
    readable, _, _ = select.select([raw.fileno()], [], [], 0)
    return not readable
