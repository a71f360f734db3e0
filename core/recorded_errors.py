"""How an error is recorded in Postgres, and how another process builds it again.

Three things are stored: the type's name (`name_of`), the message, and the arguments where they are JSON (`json_args`).
`own_error` and `revive` build the error from them. An error can also carry the ids of the rows that it is about.
"""

from __future__ import annotations

import builtins
import sys
from contextlib import suppress
from typing import Any, Final

from graph_migrator.core import errors
from graph_migrator.core.errors import GraphMigratorError, HopFailed, UnreadableOutcome

CODE_PREFIX: Final = "graph_migrator."
LONGEST_MESSAGE: Final = 10_000
LONGEST_TRACEBACK: Final = 100_000
"""Characters that are stored of an error. A message can hold a whole document."""
_LONGEST_FIELD: Final = 2_000
_MOST_ITEMS: Final = 100


def bounded(text: str, most: int) -> str:
    """The beginning and the end of a text that is too long; the end of a traceback says what was raised."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _bounded_field(value: Any) -> Any:
    if isinstance(value, str):
        return bounded(value, _LONGEST_FIELD)
    is_list = isinstance(value, list | tuple)
    return [_bounded_field(each) for each in value[:_MOST_ITEMS]] if is_list else value


def name_of(error: BaseException) -> str:
    """The error's type as it is stored.

    Our own errors have a code, ``graph_migrator.Name``, that outlives any move of a module; others are stored as
    ``module.QualifiedName``, built-in types by their bare name.
    """
    cls = type(error)
    if cls.__module__ == errors.__name__:
        return f"{CODE_PREFIX}{cls.__name__}"
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def json_args(error: BaseException) -> list[Any] | None:
    """The error's arguments, where they are JSON values of a bounded length and build the error again; else None.

    Long fields of our own errors are cut; their message follows from them.
    """
    if isinstance(error, GraphMigratorError):
        return [_bounded_field(each) for each in error.args]
    if (
        len(error.args) == 1
        and isinstance(error.args[0], str)
        and len(error.args[0]) <= LONGEST_MESSAGE
        and _rebuilt(type(error), error.args, str(error))
    ):
        return list(error.args)
    return None


def revive(error_type: str, message: str, args: list[Any] | None, *, graph: str, hop: str) -> Exception:
    """Build the error that Postgres recorded.

    Args:
        error_type: As `name_of` gave it.
        message: The recorded message.
        args: As `json_args` gave them.
        graph: The graph's slug, for `HopFailed`.
        hop: The hop's name, for `HopFailed`.

    Returns:
        An error of the recorded type with the same message, or `HopFailed` naming both where the type
        is not loaded in this process or cannot be built from its message.
    """
    module, _, name = error_type.rpartition(".")
    if error_type.startswith(CODE_PREFIX):
        module = errors.__name__
    cls = getattr(sys.modules.get(module) if module else builtins, name, None)
    if args is not None and isinstance(cls, type) and issubclass(cls, Exception):
        rebuilt = _rebuilt(cls, tuple(args), message)
        if rebuilt is not None:
            return rebuilt
    return HopFailed(graph, hop, error_type, message)


def own_error(code: str, args: object) -> GraphMigratorError:
    """One of this project's errors, from its recorded code and fields.

    Args:
        code: As `name_of` gave it.
        args: As `json_args` gave them.

    Returns:
        That error; or `UnreadableOutcome` with code and fields where this release has no such error or builds it from
        other fields. It never raises: one outcome that another release recorded must not block the callers behind it.
    """
    cls = getattr(errors, code.removeprefix(CODE_PREFIX), None) if isinstance(code, str) else None
    fields = args if isinstance(args, list) else [args]
    if isinstance(cls, type) and issubclass(cls, GraphMigratorError):
        try:
            error = cls(*fields)
            str(error)  # fields of another type may build it, and fail when its message is read
        except Exception:  # noqa: BLE001 - whatever the message does with fields that are not its own
            return UnreadableOutcome(code, fields)
        return error
    return UnreadableOutcome(str(code), fields)


def _rebuilt(cls: type[BaseException], args: tuple[Any, ...], message: str) -> Exception | None:
    try:
        error = cls(*args)
    except Exception:  # noqa: BLE001 - a foreign constructor may raise anything; then HopFailed speaks for it
        return None
    return error if isinstance(error, Exception) and str(error) == message else None


# ── the rows that an error is about ─────────────────────────────────────────────────────────────────


def note_rows(error: BaseException, where: str) -> None:
    """Note on an error which rows it is about, by their ids alone. Python prints it with the traceback."""
    with suppress(AttributeError):  # a foreign class may refuse attributes
        error._graph_migrator_rows = where  # type: ignore[attr-defined] # any exception can carry one
        error.add_note(where)


def rows_of(error: BaseException) -> str | None:
    """Which rows an error is about, as `note_rows` noted it on the error or on its cause."""
    found = getattr(error, "_graph_migrator_rows", None)
    if found is None and error.__cause__ is not None:
        found = getattr(error.__cause__, "_graph_migrator_rows", None)
    return found if isinstance(found, str) else None
