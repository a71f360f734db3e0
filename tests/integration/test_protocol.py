"""Every typed call of the protocol, compared with the function that the database has."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from sqlalchemy import Engine

from graph_migrator.core.store import protocol
from tests.rows import rows

CALLS: list[type[protocol.Call[Any]]] = [
    found for name in protocol.__all__ if hasattr(found := getattr(protocol, name), "function")
]

_TYPES = {
    "uuid": {"UUID"},
    "text": {"str"},
    "integer": {"int"},
    "bigint": {"int"},
    "boolean": {"bool"},
    "double precision": {"float"},
    "json": {"dict"},
    "jsonb": {"dict", "list", "Any"},
    "text[]": {"list", "tuple"},
    "uuid[]": {"tuple"},
    "integer[]": {"list", "tuple"},
    "bigint[]": {"list", "tuple"},
    "timestamp with time zone[]": {"tuple"},
    "timestamp with time zone": {"datetime"},
}

_SIGNATURE = """
SELECT p.proname, coalesce(p.proargnames, '{}'), coalesce(p.proargmodes::text[], '{}'),
       ARRAY(SELECT format_type(t, NULL) FROM unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]))
             WITH ORDINALITY AS u (t, place) ORDER BY place),
       format_type(p.prorettype, NULL)
FROM pg_proc p WHERE p.pronamespace = 'graph_migrator'::regnamespace AND p.proname = :name
"""


def _kinds(hint: Any) -> set[str]:
    """The plain names of the types that a hint allows, without None."""
    options = get_args(hint) if type(None) in get_args(hint) else (hint,)
    return {getattr(get_origin(option) or option, "__name__", str(option)) for option in options} - {
        "NoneType"
    }


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.function)
def test_a_call_is_what_the_database_has(engine: Engine, call: type[protocol.Call[Any]]) -> None:
    (signature,) = rows(engine, _SIGNATURE, name=call.function)
    _, names, modes, types, returned = signature
    modes = modes or ["i"] * len(names)
    columns = [(name, kind) for name, mode, kind in zip(names, modes, types, strict=True)]
    incoming = [column for column, mode in zip(columns, modes, strict=True) if mode == "i"]
    outgoing = [column for column, mode in zip(columns, modes, strict=True) if mode in {"o", "t"}]

    assert call.names() == [name for name, _ in incoming], "the arguments, in the database's order"
    hints = get_type_hints(call)
    for field, (name, kind) in zip(fields(call), incoming, strict=True):
        assert _kinds(hints[field.name]) <= _TYPES[kind], f"{name} is {kind}"

    (brings,) = get_args(call.__orig_bases__[0])  # type: ignore[attr-defined]
    if call.row is not None:
        assert [field.name for field in fields(call.row)] == [name for name, _ in outgoing]
        row_hints = get_type_hints(call.row)
        for name, kind in outgoing:
            assert _kinds(row_hints[name]) <= _TYPES[kind], f"{name} is {kind}"
    elif brings in {None, type(None)}:
        assert returned == "void"
    else:
        assert len(outgoing) <= 1
        assert _kinds(brings) <= _TYPES[outgoing[0][1] if outgoing else returned]


def test_every_function_that_python_calls_by_a_typed_call_is_listed_once() -> None:
    names = [call.function for call in CALLS]
    assert len(names) == len(set(names))
    assert len(names) >= 35
