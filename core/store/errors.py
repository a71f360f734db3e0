"""What an error from Postgres means for a migration. Classified here, once; `core.store.redaction` shows it.

Executors use psycopg2. Applications that write to graphs, and hops that connect to other databases, may use another
driver; so an error is known by its SQLSTATE, not by its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import psycopg2
from sqlalchemy.exc import DBAPIError


class Failure(StrEnum):
    """The four kinds of error that an executor distinguishes."""

    TRANSIENT = "transient"
    LOST_CONNECTION = "lost connection"
    LOST_FENCE = "lost fence"
    PERMANENT = "permanent"


_TRANSIENT: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available: a lock timeout
        "53300",  # too_many_connections
        "57P03",  # cannot_connect_now: starting up or shutting down
    }
)
_LOST_CONNECTION: Final = frozenset({"57P01", "57P02", "57P05", "08000", "08003", "08006", "08001", "08004"})
DRIVER_ERRORS: Final = (psycopg2.Error, DBAPIError)
"""Whatever Postgres or its driver raises."""

FENCE: Final = "GM001"
"""Raised by our own functions when a session is not, or no longer, the executor."""
ENDED: Final = "GM002"
"""Raised by our own functions when somebody ended the transaction that they were to finish."""


@dataclass(frozen=True, slots=True)
class PostgresError:
    """What Postgres said, whichever driver passed it on.

    Attributes:
        cause: The driver's own error.
        sqlstate: None where the server never answered, or the driver itself refused.
        message: The primary message.
        detail: DETAIL, which may hold the values of rows.
    """

    cause: BaseException
    sqlstate: str | None
    message: str | None
    detail: str | None


def postgres_error(error: BaseException) -> PostgresError | None:
    """Read an error of Postgres or of a driver for it.

    Args:
        error: What SQLAlchemy raised, or a driver: psycopg2, psycopg 3, asyncpg or pg8000.

    Returns:
        None where it is another error.
    """
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    if cause is None:
        return None
    fields = cause.args[0] if cause.args and isinstance(cause.args[0], dict) else {}
    if {"C", "M"} <= fields.keys():  # pg8000 passes on the protocol's own fields
        return PostgresError(cause, fields["C"], fields["M"], fields.get("D"))
    if not isinstance(cause, psycopg2.Error) and not hasattr(cause, "sqlstate"):
        return None
    state = getattr(cause, "pgcode", None) or getattr(cause, "sqlstate", None)
    said = getattr(cause, "diag", None)
    if said is not None:
        return PostgresError(cause, state, said.message_primary, said.message_detail)
    # asyncpg; SQLAlchemy wraps its error in one of its own.
    original = cause.__cause__ if hasattr(cause.__cause__, "sqlstate") else cause
    return PostgresError(cause, state, getattr(original, "message", None), getattr(original, "detail", None))


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of a Postgres error; None for anything else, and where the server never answered."""
    found = postgres_error(error)
    return found.sqlstate if found is not None else None


def _is_of_a_stale_plan(found: PostgresError) -> bool:
    """Whether a prepared statement does not fit the schema any more, or is gone; a fresh session has new ones.

    A schema upgrade under live workers changes what a function returns: "cached plan must not change result type".
    Other errors have the same SQLSTATE; the message may be translated, the name of the server's function is not.
    """
    if found.sqlstate == "0A000":
        said = getattr(found.cause, "diag", None)
        return getattr(said, "source_function", None) == "RevalidateCachedQuery"
    return found.sqlstate == "26000"  # invalid_sql_statement_name


def classify(error: BaseException) -> Failure:
    """What an error means for the migration in which it was raised.

    A connection that died silently has no SQLSTATE: psycopg2 then raises `OperationalError`, or
    `InterfaceError` on its next use.
    """
    found = postgres_error(error)
    if found is None:
        return Failure.PERMANENT
    if found.sqlstate == FENCE:
        return Failure.LOST_FENCE
    if found.sqlstate in _TRANSIENT or _is_of_a_stale_plan(found):
        return Failure.TRANSIENT
    # Only psycopg2: an executor's connection is one of psycopg2.
    unanswered = found.sqlstate is None and isinstance(
        found.cause, psycopg2.OperationalError | psycopg2.InterfaceError
    )
    if unanswered or found.sqlstate in _LOST_CONNECTION:
        return Failure.LOST_CONNECTION
    return Failure.PERMANENT
