"""The SQLAlchemy session of a hop: its savepoints are real, and it never ends the hop's transaction."""

from __future__ import annotations

from typing import NoReturn

from sqlalchemy import Connection
from sqlalchemy.orm import Session, SessionTransaction

OWN_TRANSACTION = (
    "a hop must neither commit nor roll back: its transaction also moves the version. "
    "To undo a part of what it does, write it in `with ctx.savepoint():`"
)


class HopSession(Session):
    """A session in the transaction that also moves the graph's version."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(bind=connection, join_transaction_mode="rollback_only")
        self.refused: RuntimeError | None = None
        """What was refused. The hop fails with it, also where its code caught it."""
        self.connection()  # it takes part in the transaction from now on, not from its first statement on

    def begin_nested(self) -> SessionTransaction:
        """Set a savepoint now, for all statements of the hop, whichever way they take.

        A session of SQLAlchemy sets it with the session's next statement; what went past the session before that
        would not be undone.
        """
        nested = super().begin_nested()
        self.connection()
        return nested

    def commit(self) -> NoReturn:
        """Refused: nothing would be committed."""
        self._refuse()

    def rollback(self) -> NoReturn:
        """Refused: it would undo the whole hop, which goes on."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        self.refused = RuntimeError(OWN_TRANSACTION)
        raise self.refused

    def finish(self) -> None:
        """Write what the session still holds, and release savepoints that are still open.

        Raises:
            RuntimeError: The hop's code tried to commit or to roll back.
        """
        if self.refused is not None:
            raise self.refused
        self.flush()
        while (nested := self.get_nested_transaction()) is not None:
            nested.commit()
