"""What a hop is given to work with."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, CursorResult, TextClause, event, text

from graph_migrator.core.graph_types.hop_session import HopSession

_log = logging.getLogger("graph_migrator.hops")
_GRAPH_ID = re.compile(r":graph_id\b")
_ENDS_TRANSACTION = re.compile(
    r"\s*(commit|end|abort|begin|start\s+transaction|prepare\s+transaction|rollback(?!\s+to\b))\b",
    re.IGNORECASE,
)
_SETS_THE_SESSION = re.compile(
    r"\s*(set\s+(?!local\b|transaction\b|constraints\b)|reset\b|discard\b|deallocate\b|listen\b|load\b)",
    re.IGNORECASE,
)
_DML = re.compile(r"\s*(insert|update|delete|merge|with|copy)\b", re.IGNORECASE)


_LONG = 10_000
"""Characters of a statement that holds data, and so is not kept."""


@dataclass(frozen=True)
class _Prepared:
    """A statement of a hop, as it is used again and again."""

    clause: TextClause
    names_graph: bool
    is_dml: bool


@lru_cache(maxsize=256)
def _prepared(statement: str) -> _Prepared:
    if _ENDS_TRANSACTION.match(statement):
        raise ValueError("a hop must neither commit nor roll back: its transaction also moves the version")
    if _SETS_THE_SESSION.match(statement):
        raise ValueError(
            "a hop must not change its session, which runs other graphs' hops afterwards; write SET LOCAL"
        )
    return _Prepared(text(statement), bool(_GRAPH_ID.search(statement)), _DML.match(statement) is not None)


@dataclass(frozen=True)
class GraphFacts:
    """The graph that a hop works on. `version` is the one the hop starts from."""

    id: UUID
    slug: str
    graph_type: str
    version: int
    config: Mapping[str, Any] = field(default_factory=dict)


class HopContext:
    """The transaction of one hop (of one batch, where the hop is batched), and what surrounds it.

    Everything done through `execute`, `session` or `connection` is in the transaction that also moves
    the graph's version; the hop neither commits nor rolls back.

    Attributes:
        graph: The graph.
        from_version: The version that the graph has now.
        to_version: The version that it has when the hop is committed.
        attempt: The number of this start of the hop, from 1.
        log: A logger that names graph and hop.
        connection: The SQLAlchemy connection of the transaction.
        rows_changed: Rows that were inserted, updated or deleted so far.
    """

    def __init__(
        self,
        connection: Connection,
        graph: GraphFacts,
        *,
        hop: str,
        from_version: int,
        to_version: int,
        attempt: int = 1,
        report_progress: Callable[[int, int | None], None] | None = None,
    ) -> None:
        self.connection = connection
        self.graph = graph
        self.hop = hop
        self.from_version = from_version
        self.to_version = to_version
        self.attempt = attempt
        self.rows_changed = 0
        self.log = logging.LoggerAdapter(_log, {"graph": graph.slug, "hop": hop})
        self._report_progress = report_progress
        self._listening = False

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> CursorResult[Any]:
        """Run one SQL statement. ``:graph_id`` is bound to this graph.

        Args:
            statement: SQL with ``:name`` parameters. Our tables can be named without their schema.
            parameters: Values for the other parameters.

        Raises:
            ValueError: The statement would end the hop's transaction, or outlast it: the session runs other
                graphs' hops afterwards.
        """
        prepared = (_prepared if len(statement) < _LONG else _prepared.__wrapped__)(statement)
        bound = dict(parameters or {})
        if prepared.names_graph:
            bound.setdefault("graph_id", self.graph.id)
        connection = self.session.connection() if "session" in self.__dict__ else self.connection
        result = connection.execute(prepared.clause, bound)
        if not self._listening and prepared.is_dml:
            self.rows_changed += max(result.rowcount, 0)
        return result

    @cached_property
    def session(self) -> HopSession:
        """A SQLAlchemy session in the hop's transaction. It is flushed for you; it refuses commit and rollback.

        `Session.begin_nested` sets a savepoint for everything that the hop does, also by `execute` or `connection`.
        """
        self._count_everything()
        return HopSession(self.connection)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what is written to the database inside of the ``with`` block, if it raises.

        Whatever way the statements take is covered: `execute`, `session`, `connection`. Python objects are not, also
        not the nodes of a batch, which are written after the hop's code. Savepoints can be nested.
        """
        with self.session.begin_nested():
            yield

    def progress(self, done: int, total: int | None = None) -> None:
        """Report how far this hop is. Seen at once from other connections, at most twice a second."""
        if self._report_progress is not None:
            self._report_progress(done, total)

    def flush(self) -> None:
        """Write what the session still holds.

        Raises:
            RuntimeError: The hop's code tried to commit or to roll back.
        """
        if "session" in self.__dict__:
            self.session.finish()

    def _count_everything(self) -> None:
        # The session's statements do not pass through `execute`; so count at the connection from now on.
        self._listening = True

        def count(_conn: Any, cursor: Any, statement: str, *_: Any) -> None:
            if _DML.match(statement):
                self.rows_changed += max(cursor.rowcount, 0)

        at_savepoints: list[int] = []

        def set_savepoint(_conn: Any, _name: str | None) -> None:
            at_savepoints.append(self.rows_changed)

        def release(*_: Any) -> None:
            if at_savepoints:
                at_savepoints.pop()

        def roll_back(*_: Any) -> None:
            if at_savepoints:
                self.rows_changed = at_savepoints.pop()

        listeners: dict[str, Callable[..., None]] = {
            "after_cursor_execute": count,
            "savepoint": set_savepoint,
            "release_savepoint": release,
            "rollback_savepoint": roll_back,
        }
        for name, listener in listeners.items():
            event.listen(self.connection, name, listener)
        remove: Any = event.remove  # SQLAlchemy leaves it untyped

        def stop() -> None:
            for name, listener in listeners.items():
                remove(self.connection, name, listener)

        self._stop_counting: Callable[[], None] = stop

    def close(self) -> None:
        """End the session and the counting; the transaction is not this object's."""
        if "session" in self.__dict__:
            self._stop_counting()
            self.session.expunge_all()
            self.session.close()
