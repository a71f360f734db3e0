"""What of an error may be shown: to callers, in logs, in audit rows. Never the values of rows or parameters.

Postgres puts row data into DETAIL and, for malformed values, into the message itself; psycopg2 adds the
statement with its parameters filled in; SQLAlchemy adds both again; pydantic quotes its input; Python and its
libraries quote what they could not convert. What the author of a hop wrote into an error of their own is
told as it is: those are the author's words.
"""

from __future__ import annotations

import dis
import re
import sysconfig
import traceback as tracebacks
from typing import Any, Final

import psycopg2
from sqlalchemy.exc import StatementError

from graph_migrator.core.errors import GraphMigratorError, json_args, name_of
from graph_migrator.core.store.errors import driver_error

_QUOTED: Final = re.compile(r"\"(.*)\"|'(.*)'", re.DOTALL)
_LITERAL: Final = re.compile(r"\"[^\"]*'.*\"", re.DOTALL)
_LIBRARIES: Final = tuple(
    {sysconfig.get_path(each) for each in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def safe_message(error: BaseException) -> str:
    """The error's message without the values of rows and parameters, as a text that Postgres can store."""
    return _storable(_without_values(error))


def _without_values(error: BaseException) -> str:
    cause = driver_error(error)
    if cause is not None:
        return _of_postgres(cause)
    if isinstance(error, StatementError):
        inner = error.orig
        return (
            f"{name_of(inner)}: {safe_message(inner)}" if inner is not None else "the statement is malformed"
        )
    errors = getattr(error, "errors", None)
    if type(error).__name__ == "ValidationError" and callable(errors):
        found = errors(include_input=False, include_url=False, include_context=False)
        # Not the messages: a validator's own, and some of pydantic's, repeat the input.
        return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'} ({each['type']})" for each in found)
    if (
        isinstance(error, ValueError)
        and not isinstance(error, GraphMigratorError)
        and _is_not_authored(error)
    ):
        return _QUOTED.sub("'…'", _words(error))
    return _words(error)


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything; the type is known still
        return "it has no message that can be shown"


def _storable(text: str) -> str:
    """A text without what Postgres has no place for: NUL, and halves of surrogate pairs."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def _storable_arguments(value: Any) -> Any:
    if isinstance(value, str):
        return _storable(value)
    return [_storable_arguments(each) for each in value] if isinstance(value, list) else value


def safe_args(error: BaseException) -> list[Any] | None:
    """The arguments from which another process builds the error again, as `core.errors.json_args`.

    None where they may hold what the message must not, and the message alone does not build it.
    """
    if isinstance(error, GraphMigratorError):
        return [_storable_arguments(each) for each in error.args]
    message = safe_message(error)
    if message == _words(error):
        try:
            return json_args(error)
        except Exception:  # noqa: BLE001 - its __str__ raises; HopFailed speaks for it then
            return None
    if driver_error(error) is not None:
        return None
    try:
        return json_args(type(error)(message))
    except Exception:  # noqa: BLE001 - a foreign constructor may raise anything; HopFailed speaks for it then
        return None


def safe_traceback(error: BaseException) -> str:
    """The traceback with those of its causes: files, lines and code, and messages without values."""
    parts: list[str] = []
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        frames = "".join(tracebacks.format_tb(at.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{name_of(at)}: {safe_message(at)}\n")
        if at.__cause__ is not None:
            parts.append("\nThe above exception was the direct cause of the following exception:\n\n")
            at = at.__cause__
        elif at.__context__ is not None and not at.__suppress_context__:
            parts.append("\nDuring handling of the above exception, another exception occurred:\n\n")
            at = at.__context__
        else:
            break
    return "".join(reversed(parts))


def redacted(error: Exception) -> Exception:
    """The error as it may be raised through Celery, which logs and stores what it sees.

    Raise it ``from None``: what caused it would be printed with it.
    """
    message = safe_message(error)
    if driver_error(error) is None and message == _words(error):
        return error
    return RuntimeError(f"{name_of(error)}: {message}").with_traceback(error.__traceback__)


def _of_postgres(cause: psycopg2.Error) -> str:
    state = cause.pgcode
    if state is None:  # the server never answered, or the driver itself refused
        first = next(iter(str(cause).strip().splitlines()), "the connection was lost")
        return _QUOTED.sub('"…"', first) if "dsn" in first else first
    message = cause.diag.message_primary or "no reason given"
    if state.startswith("22"):  # data exceptions quote the value
        return _QUOTED.sub('"…"', message)
    if state == "42601":  # a syntax error quotes a token, which may be a parameter filled in
        return _LITERAL.sub('"…"', message)
    return message


def _is_not_authored(error: BaseException) -> bool:
    """Whether Python itself or a library raised it, about a value that it was given."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    if code.co_filename.startswith(_LIBRARIES):
        return True
    return dis.opname[code.co_code[trace.tb_lasti]] not in {"RAISE_VARARGS", "RERAISE"}
