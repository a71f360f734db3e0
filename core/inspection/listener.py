"""A Postgres session that the end of a hop or of a migration wakes."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Engine

from graph_migrator.core.store.errors import DRIVER_ERRORS

_SHORT_POLL_SECONDS: Final = 0.2
"""While nothing announces a change: the call has not arrived yet, or its hop is being committed just now."""

# Who holds the key is notified (`notify_waiters` in the schema). While a hop is being committed the key is taken, and
# the state is read again soon.
_TAKE_KEY: Final = "SELECT pg_try_advisory_lock_shared(graph_migrator.wait_key(%s))"


class Listener:
    """Waits for the migrations that it follows, whatever their number.

    Follow before you read a state: what changes after that is announced.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._raw: Any = None
        self._followed: set[UUID] = set()
        self._announced = False

    def connection(self) -> Any:
        """The driver's connection, in autocommit; a new one where there is none or it has died."""
        if self._raw is not None and self._raw.closed:
            self.close()
        if self._raw is None:
            connection = self._engine.raw_connection()
            connection.detach()
            self._raw = connection.dbapi_connection
            self._raw.autocommit = True
            with self._raw.cursor() as cursor:
                cursor.execute("LISTEN graph_migrator")
        return self._raw

    def follow(self, migrations: Iterable[UUID]) -> bool:
        """Have the changes of these migrations announced, beside those followed before; whether one is new."""
        asked = set(migrations)
        connection: Any = self.connection() if asked else None
        missing = asked - self._followed
        for migration in missing:
            with connection.cursor() as cursor:
                cursor.execute(_TAKE_KEY, (migration,))
                if cursor.fetchone()[0]:
                    self._followed.add(migration)
        self._announced = asked <= self._followed
        return not missing.isdisjoint(self._followed)

    def wait(self, seconds: float) -> None:
        """Wait for a change, at most `seconds`."""
        if not self._announced or self._raw is None:
            time.sleep(min(seconds, _SHORT_POLL_SECONDS))
            return
        ends_at = time.monotonic() + seconds
        with suppress(*DRIVER_ERRORS):  # the session has ended: the next look connects again
            while not self._was_notified() and (left := ends_at - time.monotonic()) > 0:
                if select.select([self._raw], [], [], left)[0]:
                    self._raw.poll()

    def close(self) -> None:
        """End the session, and with it the keys' hold."""
        raw, self._raw, self._announced = self._raw, None, False
        self._followed.clear()
        if raw is not None:
            raw.close()

    def _was_notified(self) -> bool:
        heard = {each.payload for each in self._raw.notifies}
        self._raw.notifies.clear()
        return any(str(migration) in heard for migration in self._followed)
