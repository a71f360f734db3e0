"""The driver's connection of an executor: in autocommit mode, so psycopg2 sends what it is given and nothing else.

The executor writes BEGIN and COMMIT itself, in the messages of other statements. What psycopg2's documentation says of
autocommit would then mislead the author of a hop: `commit` and `rollback` would silently do nothing, and a cursor of
the server would need WITH HOLD. So they are refused, and such cursors are declared in the hop's transaction.
"""

from __future__ import annotations

import threading
from typing import Any, Final, NoReturn
from weakref import WeakSet

from psycopg2.extensions import STATUS_READY, connection, cursor, quote_ident
from psycopg2.sql import Composable
from sqlalchemy import Connection, Dialect, Engine, event

from graph_migrator.core.errors import InvalidRequest
from graph_migrator.core.graph_types.hop_session import OWN_TRANSACTION

_connecting = threading.local()
_SENDING: Final = frozenset({"isolation_level", "readonly", "deferrable"})
"""Attributes of a connection: to set one sends a statement."""


class ExecutorConnection(connection):
    """A connection that can be lent to a hop. While it is, it refuses to end the transaction."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_lent = False
        self._refused = False
        self._first: str | None = None
        self._has_others = False  # cursors that send by themselves; a hop may have kept one
        self._encoding = self.encoding
        self._types = dict(self.string_types), dict(self.binary_types)

    def lend(self) -> None:
        """From now on, and until `take_back`, a hop's code has it."""
        self._is_lent = True
        self._refused = False

    def take_back(self) -> bool:
        """Set everything on this side as it was; False where the connection is not to be used again."""
        self._is_lent = False
        self._first = None
        if self.closed:
            return True
        if not self.is_intact:
            super().rollback()
            self.autocommit = True
        self._refused = False
        self.cursor_factory = None  # type: ignore[assignment] # the stubs do not know the default
        self.notices.clear()
        self.notifies.clear()
        for types, before in zip((self.string_types, self.binary_types), self._types, strict=True):
            types.clear()
            types.update(before)
        return bool(self.encoding == self._encoding)

    def send_first(self, statement: str) -> None:
        """Send a statement before whatever is sent next, and in the same message where that is one of the usual cursor.

        Args:
            statement: Its values are in it. What it brings is not read; where it fails, so does what is sent next.
        """
        self.send_what_comes_first()
        self._first = statement
        if self._has_others:
            self.send_what_comes_first()

    def send_what_comes_first(self) -> None:
        """Send it by itself: what follows is nothing that it could precede."""
        if self._first is not None:
            statement, self._first = self._first, None
            with super().cursor() as plain:
                plain.execute(statement)

    def preceded(self, query: str, *, has_values: bool) -> str:
        """A statement, and before it what is to be sent first."""
        if self._first is None:
            return query
        statement, self._first = self._first, None
        return f"{statement.replace('%', '%%') if has_values else statement}; {query}"

    @property
    def is_intact(self) -> bool:
        """Whether nobody has tried to end the transaction by means of the driver, or made it begin one."""
        return not self._refused and self.autocommit and self.status == STATUS_READY

    def commit(self) -> None:
        """Refused while a hop has the connection; otherwise there is nothing to commit."""
        if self._is_lent:
            self._refuse()
        super().commit()

    def rollback(self) -> None:
        """Refused while a hop has the connection; otherwise there is nothing to roll back."""
        if self._is_lent:
            self._refuse()
        super().rollback()

    def reset(self) -> None:
        """Refused while a hop has the connection: it would roll back and undo the session's settings."""
        if self._is_lent:
            self._refuse()
        super().reset()

    def set_client_encoding(self, encoding: Any) -> None:
        """As of the driver, after what is to be sent first."""
        self.send_what_comes_first()
        super().set_client_encoding(encoding)

    def set_session(self, *args: Any, **kwargs: Any) -> None:
        """As of the driver, after what is to be sent first."""
        self.send_what_comes_first()
        super().set_session(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SENDING:
            self.send_what_comes_first()
        super().__setattr__(name, value)

    def _refuse(self) -> NoReturn:
        self._refused = True
        raise RuntimeError(OWN_TRANSACTION)

    def cursor(
        self, name: Any = None, cursor_factory: Any = None, withhold: bool = False, scrollable: Any = None
    ) -> Any:
        """A cursor; one with a name lives in the server, for as long as the transaction."""
        own: Any = self.cursor_factory
        kind = cursor_factory or own or cursor
        if name is None and kind is cursor:
            return super().cursor(cursor_factory=_Statements)
        self._has_others = True
        self.send_what_comes_first()
        if name is not None and not withhold:
            kind = type(kind.__name__, (_InTransaction, kind), {})
        hold = name is not None
        return super().cursor(name, cursor_factory=kind, withhold=hold, scrollable=scrollable)


class _Statements(cursor):
    """The usual cursor: its next statement takes along what is to be sent first."""

    connection: ExecutorConnection

    def execute(self, query: Any, vars: Any = None) -> None:
        if isinstance(query, str):
            query = self.connection.preceded(query, has_values=vars is not None)
        else:
            self.connection.send_what_comes_first()
        super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        self.connection.send_what_comes_first()
        super().executemany(query, vars_list)

    def callproc(self, procname: Any, parameters: Any = None) -> None:
        self.connection.send_what_comes_first()
        super().callproc(procname, parameters)

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        self.connection.send_what_comes_first()
        super().copy_expert(sql, file, size)

    def copy_from(self, *args: Any, **kwargs: Any) -> None:
        self.connection.send_what_comes_first()
        super().copy_from(*args, **kwargs)

    def copy_to(self, *args: Any, **kwargs: Any) -> None:
        self.connection.send_what_comes_first()
        super().copy_to(*args, **kwargs)


class _InTransaction:
    """A cursor of the server WITHOUT HOLD: psycopg2 has them outside of autocommit mode only.

    WITH HOLD would read all rows at the commit, and allows no FOR UPDATE.
    """

    connection: ExecutorConnection
    name: str
    scrollable: bool | None

    def execute(self, query: Any, vars: Any = None) -> None:
        if isinstance(query, Composable):
            query = query.as_string(self.connection)
        elif isinstance(query, bytes):
            query = query.decode()
        name = quote_ident(self.name, self.connection)
        if vars is not None:
            name = name.replace("%", "%%")
        scroll = {True: "SCROLL ", False: "NO SCROLL ", None: ""}[self.scrollable]
        # psycopg2 writes DECLARE … CURSOR WITH HOLD FOR in front of it.
        declared = f"SELECT 1; CLOSE {name}; DECLARE {name} {scroll}CURSOR FOR {query}"
        super().execute(declared, vars)  # type: ignore[misc] # of the cursor class beside this one


def connect_executor(engine: Engine) -> Connection:
    """A new connection as the engine makes them, outside of its pool, with an `ExecutorConnection`.

    Raises:
        InvalidRequest: The engine makes its connections by a function of the application's that makes others.
    """
    # Not event.contains: it goes by id, and takes a new engine for a dead one whose dialect is still there.
    if engine not in _listening:
        event.listen(engine, "do_connect", _connect)
        _listening.add(engine)
    _connecting.executor = True
    try:
        fresh = Connection(engine, engine.pool.recreate().connect())
    finally:
        _connecting.executor = False
    fresh.execution_options(isolation_level="AUTOCOMMIT")  # once detached it can no longer be changed
    fresh.detach()
    if not hasattr(fresh.connection.dbapi_connection, "lend"):
        fresh.close()
        raise InvalidRequest("session_factory", _FOREIGN)
    return fresh


def _connect(dialect: Dialect, _record: Any, args: tuple[Any, ...], parameters: dict[str, Any]) -> Any:
    if not getattr(_connecting, "executor", False):
        return None
    return dialect.connect(*args, **{**parameters, "connection_factory": ExecutorConnection})


_listening: Final[WeakSet[Engine]] = WeakSet()

_FOREIGN: Final = (
    "its engine was made with creator=, and what that returns is no connection of ours. Let it pass "
    "connection_factory=graph_migrator.core.store.driver.ExecutorConnection to psycopg2.connect, or leave creator= out"
)
