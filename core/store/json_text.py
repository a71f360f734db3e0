"""JSON between Postgres and Python: fast, and without losing a digit.

A jsonb number is exact: ``1.10`` is not ``1.1``, and an integer has no end. A float would round them. So
rows whose text holds a number that a float or a 64-bit integer may not preserve are read with
`ExactFloat` and whole integers; all others, nearly all, go through orjson at full speed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, Self

import orjson

# 15 digits survive a float, and so does a fraction without a zero at its end. An exponent is never found in
# jsonb's own text, but in a json column's.
_RISKY: Final = re.compile(r"[0-9.]{17}|\.[0-9]+0(?![0-9])|[0-9][eE][+\-0-9]")

# The same for jsonb's text, at a third of the price: with 0 for each digit and point, a long number is a substring;
# and a pattern that begins with a literal is searched fast.
_ZEROS: Final = bytes.maketrans(b"123456789.", b"0000000000")
_LONG: Final = b"0" * 17
_ENDS_IN_ZERO: Final = re.compile(r"\.[0-9]+0(?=[],}\n]|\Z)")

_INT64: Final = range(-(2**63), 2**64)
_LONGEST_INT: Final = 4_000  # Python refuses to convert longer ones by default


class ExactFloat(float):
    """A float that remembers the text it was read from, and is written as that text again."""

    __slots__ = ("text",)

    text: str

    def __new__(cls, text: str) -> Self:
        """Read a JSON number."""
        self = super().__new__(cls, text)
        self.text = str(text)
        return self


def loads(text: str) -> Any:
    """Read one JSON value, every number so that `dumps` writes it unchanged."""
    return _read_exactly(text) if _RISKY.search(text) else orjson.loads(text)


def loads_many(texts: Sequence[str]) -> list[Any]:
    """Read what ``jsonb::text`` gave for many rows."""
    together = "\n".join(texts)
    if _LONG in together.encode().translate(_ZEROS):
        return [loads(text) for text in texts]
    if _ENDS_IN_ZERO.search(together):
        return [_read_exactly(text) if _ENDS_IN_ZERO.search(text) else orjson.loads(text) for text in texts]
    return [orjson.loads(text) for text in texts]


def dumps(value: Any) -> str:
    """Write a value for a json or jsonb column.

    Raises:
        TypeError: It has no JSON form.
        ValueError: It holds NaN or an infinity.
    """
    try:
        written = orjson.dumps(value, default=_fragment)
    except TypeError:
        written = orjson.dumps(_with_long_integers(value), default=_fragment)
    # orjson writes null for NaN, which would lose a value silently.
    if b"null" in written and _has_nan(value):
        raise ValueError("NaN and infinities have no JSON form")
    # As text, which is a copy of the right size: orjson's own bytes hold on to some 4 kB each.
    return written.decode()


def _read_exactly(text: str) -> Any:
    return _DECODER.decode(text)


def _integer(text: str) -> int | ExactFloat:
    return int(text) if len(text) < _LONGEST_INT else ExactFloat(text)


_DECODER: Final = json.JSONDecoder(parse_float=ExactFloat, parse_int=_integer)


def _fragment(value: Any) -> orjson.Fragment:
    if isinstance(value, ExactFloat):
        return orjson.Fragment(value.text)
    if isinstance(value, float):  # another subclass; orjson knows plain floats only
        return orjson.Fragment(orjson.dumps(float(value)))
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(format(value, "f"))
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _with_long_integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_long_integers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_long_integers(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        return orjson.Fragment(str(value))
    return value


def _has_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_nan, value))
    return isinstance(value, float) and not isinstance(value, ExactFloat) and not math.isfinite(value)
