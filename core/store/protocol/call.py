"""What a call of a function of the protocol is: named arguments going in, one typed value coming back."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, ClassVar, Generic, TypeVar, get_args

from psycopg2.extras import Json

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Call(Generic[R]):
    """One function of the schema with its arguments; `Executor.call` returns an `R`.

    A subclass is one function. Its fields are the function's arguments without their `p_`, in the database's order:
    a dict or list is JSON, a tuple an array.
    `R` is what comes back: None for `void`, a plain type for a scalar, a dataclass whose fields are the OUT columns.
    `Row | None` says that there may be nothing: then the first column is NULL.
    """

    function: ClassVar[str]
    prepared: ClassVar[bool]
    """Whether every migration calls it. Parsing is a tenth of what Postgres does for such a call."""
    row: ClassVar[type | None]
    """The dataclass that the OUT columns fill; None for a scalar or void."""
    _is_void: ClassVar[bool]
    _may_be_absent: ClassVar[bool]

    def __init_subclass__(cls, *, function: str, prepared: bool = False) -> None:
        cls.function, cls.prepared = function, prepared
        (returned,) = get_args(cls.__orig_bases__[0])  # type: ignore[attr-defined] # typing documents it from 3.12 on
        rows = [kind for kind in (returned, *get_args(returned)) if is_dataclass(kind)]
        cls.row = rows[0] if rows else None  # type: ignore[assignment] # `is_dataclass` is true of instances, too
        cls._is_void = returned in {None, NoneType}
        cls._may_be_absent = bool(rows) and NoneType in get_args(returned)

    @classmethod
    def names(cls) -> list[str]:
        """The arguments, as the database names them; a Python keyword has an underscore at its end."""
        return [f"p_{field.name.rstrip('_')}" for field in fields(cls)]

    @classmethod
    def select(cls, marks: list[str]) -> str:
        """The statement that calls the function by the names of its arguments."""
        named = ", ".join(f"{name} => {mark}" for name, mark in zip(cls.names(), marks, strict=True))
        return f"SELECT * FROM graph_migrator.{cls.function}({named})"  # noqa: S608 - own names

    @classmethod
    def prepare(cls) -> str:
        """The statement that prepares `execute` for a session."""
        marks = [f"${place}" for place, _ in enumerate(fields(cls), start=1)]
        return f'PREPARE "graph_migrator.{cls.function}" AS {cls.select(marks)}'

    @classmethod
    @cache  # every message asks for it
    def statement(cls, *, prepared: bool) -> str:
        """The call, with a mark for each argument, where the session has it prepared or not."""
        marks = ["%s"] * len(fields(cls))
        if prepared and cls.prepared:
            return f'EXECUTE "graph_migrator.{cls.function}"({", ".join(marks)})'
        return cls.select(marks)

    def arguments(self) -> tuple[Any, ...]:
        """The arguments' values for psycopg2, in the order of the marks."""
        return tuple(map(_adapted, vars(self).values()))

    def read(self, columns: dict[str, Any]) -> R:
        """What comes back, from the columns of the function's row."""
        value: Any
        if self._is_void:
            value = None
        elif self.row is None:
            (value,) = columns.values()
        elif self._may_be_absent and next(iter(columns.values())) is None:
            value = None
        else:
            # After an upgrade of the schema under live workers there may be columns that this release does not know.
            value = self.row(**{name: columns[name] for name in _names(self.row)})
        return value  # type: ignore[no-any-return] # `R` says it; a test compares it with the database


@cache
def _names(row: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(row))


def _adapted(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return Json(value) if isinstance(value, dict | list) else value
