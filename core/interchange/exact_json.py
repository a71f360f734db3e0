"""JSON that loses nothing on its way into a jsonb column.

A float would round ``0.30000000000000004000`` and a 64-bit integer has an end, so a number that Python
could change is carried as its own text. What Postgres cannot store (NUL, half a surrogate pair, NaN) is
refused with the path to it, never replaced. Only the sign of a negative zero is lost in jsonb; it is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal, DecimalException
from typing import Any, Final

import orjson

from graph_migrator.core.store.json_text import ExactFloat

_SAFE_DIGITS: Final = 15
_PERHAPS_INEXACT: Final = re.compile(rb"[0-9][.eE]|-0|[0-9]{%d}" % (_SAFE_DIGITS + 1))
"""Some number may have a fraction, an exponent, many digits or be -0 (or some text looks like that)."""
_ESCAPED_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

# The limits of Postgres's numeric, digits before and after the point:
# https://www.postgresql.org/docs/current/datatype-numeric.html
_DIGITS_BEFORE: Final = 131_072
_DIGITS_AFTER: Final = 16_383
_SURELY_FITS: Final = 300
_LONGEST_SHOWN: Final = 40

_TEXT_OR_ZERO: Final = re.compile(r'"(?:[^"\\]|\\.)*"|(?<![eE])(-0(?:\.0*)?(?:[eE][+-]?[0-9]+)?)(?![0-9.])')


class Unstorable(ValueError):
    """A JSON value that cannot be read, or that jsonb cannot hold.

    Attributes:
        path: Where in the value, such as ``.tags[2]``; empty for the value itself.
        reason: What is wrong.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(path, reason)
        self.reason = reason
        self.path = path


def decode_line(line: bytes) -> Any:
    """Read one JSON value.

    Raises:
        Unstorable: It is not UTF-8 or not JSON.
    """
    if not _PERHAPS_INEXACT.search(line):
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError:
            pass  # the reader below says what is wrong, and reads NaN
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unstorable(f"is not UTF-8: byte {line[error.start]:#04x} at offset {error.start}") from error
    text = text.strip(" \t\r\n")
    try:
        value, end = scan(text, 0)
    except StopIteration as stopped:
        raise Unstorable(f"is not JSON: a value is missing at column {stopped.value + 1}") from stopped
    except json.JSONDecodeError as error:
        raise Unstorable(f"is not JSON: {error.msg} at column {error.pos + 1}") from error
    except RecursionError as error:
        raise Unstorable("is nested too deeply") from error
    if end != len(text):
        raise Unstorable(f"is not JSON: something follows the value at column {end + 1}")
    return value


def encode(value: Any) -> str:
    """Write a value for a jsonb column, every number as it was read.

    Raises:
        Unstorable: Postgres cannot hold it; the path says what.
    """
    try:
        written = orjson.dumps(value, default=_fragment).decode()
    except (TypeError, UnicodeDecodeError) as error:  # orjson's JSONEncodeError is a TypeError
        raise _fault(value) from error
    if "\\u0000" in written and _ESCAPED_NUL.search(written):
        raise _fault(value)
    return written


def text_fault(text: str) -> str | None:
    """Why Postgres cannot store this text; None where it can."""
    if "\0" in text:
        return "contains \\u0000, which Postgres cannot store"
    if found := _SURROGATE.search(text):
        return f"contains half of a surrogate pair (\\u{ord(found[0]):04x}), which is no character"
    return None


def negative_zeros(written: str) -> int:
    """How many numbers of a written value are zero with a minus sign, which `numeric` does not keep."""
    if "-0" not in written:
        return 0
    return sum(1 for found in _TEXT_OR_ZERO.finditer(written) if found[1])


def number_fault(number: ExactFloat) -> str | None:
    """Why Postgres's numeric cannot hold this number; None where it can."""
    text = number.text
    if text[-1] in "Ny":  # NaN, Infinity, -Infinity
        return f"{text} is no JSON number"
    return None if _fits(text) else f"{text[:_LONGEST_SHOWN]} is a number beyond what Postgres can hold"


def _fits(text: str) -> bool:
    if len(text) <= _SURELY_FITS and "e" not in text and "E" not in text:
        return True
    try:
        value = Decimal(text)
    except DecimalException:
        return False
    exponent = value.as_tuple().exponent
    return (
        isinstance(exponent, int)
        and -exponent <= _DIGITS_AFTER
        and (not value or value.adjusted() < _DIGITS_BEFORE)
    )


def _integer(text: str) -> int | ExactFloat:
    return int(text) if len(text) <= _SAFE_DIGITS and text != "-0" else ExactFloat(text)


# Python's own reader takes NaN and Infinity for numbers; they are refused when they are written, where the
# path to them is known.
_DECODER: Final = json.JSONDecoder(parse_float=ExactFloat, parse_int=_integer, parse_constant=ExactFloat)
scan: Final[Callable[[str, int], tuple[Any, int]]] = _DECODER.scan_once  # type: ignore[attr-defined] # typeshed lacks it
"""``scan(text, start)`` reads the one value that begins at `start` and gives it with its end."""


def _fragment(value: Any) -> orjson.Fragment:
    if not isinstance(value, ExactFloat) or number_fault(value):
        raise TypeError
    return orjson.Fragment(value.text)


def _fault(value: Any) -> Unstorable:
    try:
        for path, reason in _faults(value, ""):
            return Unstorable(reason, path)
    except RecursionError:
        pass
    return Unstorable("is nested too deeply")


def _faults(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        if reason := text_fault(value):
            yield path, reason
    elif isinstance(value, ExactFloat):
        if reason := number_fault(value):
            yield path, reason
    elif isinstance(value, dict):
        for key, item in value.items():
            if reason := text_fault(key):
                yield path, f"has a key that {reason}"
            yield from _faults(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _faults(item, f"{path}[{index}]")
