"""What of an error may be shown: to callers, in logs, in audit rows. Never the values of rows or parameters.

Postgres puts row data into DETAIL and, for malformed values, into the message itself; psycopg2 adds the
statement with its parameters filled in; SQLAlchemy adds both again; pydantic quotes its input; Python and its
libraries quote what they could not convert, find or open. What the author of a hop wrote into an error of their
own is shown as it is: those are the author's words.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy.exc import DBAPIError, StatementError

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.recorded_errors import json_args, name_of, rows_of
from graph_migrator.core.store import frames
from graph_migrator.core.store.errors import PostgresError, postgres_error

_QUOTED: Final = re.compile(r"\"(.*)\"|'(.*)'", re.DOTALL)
_LITERAL: Final = re.compile(r"\"[^\"]*'.*\"", re.DOTALL)
_QUOTING: Final = (ValueError, LookupError, OSError)
"""Errors in which Python repeats a value: one that it could not convert, find or open."""


def safe_message(error: BaseException) -> str:
    """The error's message without the values of rows and parameters, as a text that Postgres can store."""
    return _storable(_without_values(error))


def _without_values(error: BaseException) -> str:
    found = postgres_error(error)
    if found is not None:
        return _of_postgres(found)
    if isinstance(error, StatementError):
        inner = error.orig
        if inner is None:
            return "the statement is malformed"
        # Another database's driver may quote what it was given.
        shown = (
            _QUOTED.sub("'…'", safe_message(inner)) if isinstance(error, DBAPIError) else safe_message(inner)
        )
        return f"{name_of(inner)}: {shown}"
    errors = getattr(error, "errors", None)
    if type(error).__name__ == "ValidationError" and callable(errors):
        found = errors(include_input=False, include_url=False, include_context=False)
        # Not the messages: a validator's own, and some of pydantic's, repeat the input.
        return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'} ({each['type']})" for each in found)
    if isinstance(error, GraphMigratorError) or frames.is_raised_by_author(error.__traceback__):
        return _words(error)
    return _without_quoted_values(error) if isinstance(error, _QUOTING) else _words(error)


def _without_quoted_values(error: BaseException) -> str:
    """What Python says about a value, without the value. A word that stands in the author's code is kept.

    ``KeyError: 'email'`` names the property that the code asks for; ``KeyError: '…'`` hides one that came from
    a row.
    """
    words = frames.words_of_authors(error.__traceback__)

    def shown(found: re.Match[str]) -> str:
        return found[0] if (found[1] or found[2]) in words else "'…'"

    if isinstance(error, KeyError):  # its message is the key, which need not be a text
        key = error.args[0] if error.args else ""
        return _words(error) if isinstance(key, str) and key in words else "'…'"
    if type(error) is LookupError:  # of an encoding, which is not quoted
        return f"{_words(error).partition(':')[0]}: …"
    return _QUOTED.sub(shown, _words(error))


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
    """The arguments from which another process builds the error again, as `core.recorded_errors.json_args`.

    None where they may hold what the message must not, and the message alone does not build it.
    """
    if isinstance(error, GraphMigratorError):
        return [_storable_arguments(each) for each in json_args(error) or ()]
    message = safe_message(error)
    if message == _words(error):
        try:
            return json_args(error)
        except Exception:  # noqa: BLE001 - its __str__ raises; HopFailed speaks for it then
            return None
    if postgres_error(error) is not None:
        return None
    try:
        return json_args(type(error)("…" if isinstance(error, KeyError) else message))
    except Exception:  # noqa: BLE001 - a foreign constructor may raise anything; HopFailed speaks for it then
        return None


def safe_traceback(error: BaseException) -> str:
    """The traceback with those of its causes: files, lines and functions, and messages without values."""
    parts: list[str] = []
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        rendered = frames.render(at.__traceback__)
        rows = f"{noted}\n" if (noted := rows_of(at)) is not None else ""
        parts.append(
            f"Traceback (most recent call last):\n{rendered}{name_of(at)}: {safe_message(at)}\n{rows}"
        )
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
    if postgres_error(error) is None and message == _words(error):
        return error
    return RuntimeError(f"{name_of(error)}: {message}").with_traceback(error.__traceback__)


def _of_postgres(found: PostgresError) -> str:
    if found.sqlstate is None:  # the server never answered, or the driver itself refused
        first = next(iter(str(found.cause).strip().splitlines()), "the connection was lost")
        return _QUOTED.sub('"…"', first) if "dsn" in first else first
    message = found.message or "no reason given"
    if found.sqlstate.startswith("22"):  # data exceptions quote the value
        return _QUOTED.sub('"…"', message)
    if found.sqlstate == "42601":  # a syntax error quotes a token, which may be a parameter filled in
        return _LITERAL.sub('"…"', message)
    return message
