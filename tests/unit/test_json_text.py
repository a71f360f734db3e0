"""JSON on its way from jsonb to Python and back."""

from __future__ import annotations

import copy
import json
import math
import pickle
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_migrator.core.store.json_text import ExactFloat, dumps, loads, loads_many

RISKY = [
    "1.10",
    "0.100",
    "1.00",
    "10000000000000000000000",
    "18446744073709551616",
    "-9223372036854775809",
    "0.12345678901234567890",
    "9007199254740.993",
    "12345678901234567890.5",
    "1" + "0" * 400,
    "9" * 5_000,
    "0." + "0" * 400 + "1",
]
PLAIN = [
    "1",
    "0",
    "-3",
    "1.5",
    "1.0",
    "0.1",
    "123456789012345",
    "9007199254740993",
    "-0.25",
    "1234567890.12345",
]


@pytest.mark.parametrize("number", RISKY + PLAIN)
def test_every_number_is_written_as_it_was_read(number: str) -> None:
    text = f'{{"a":[{number},{{"b":{number}}}]}}'
    assert dumps(loads(text)) == text
    assert dumps(loads_many(["{}", text])[1]) == text


def test_a_hop_sees_ordinary_numbers() -> None:
    value = loads('{"price": 1.10, "large": 18446744073709551617, "n": 3}')
    assert value == {"price": 1.1, "large": 2**64 + 1, "n": 3}
    assert isinstance(value["price"], float)
    assert isinstance(value["large"], int)
    assert value["price"] * 2 == 2.2
    assert type(value["price"] + 1) is float
    assert json.loads(json.dumps(value)) == value


def test_an_exact_float_survives_copies() -> None:
    value = ExactFloat("1.10")
    for twin in (copy.copy(value), copy.deepcopy([value])[0], pickle.loads(pickle.dumps(value))):
        assert dumps(twin) == "1.10"


def test_a_changed_number_is_written_as_it_is_now() -> None:
    value = loads('{"price": 1.10}')
    value["price"] += 1
    assert dumps(value) == '{"price":2.1}'


def test_digits_in_texts_do_no_harm() -> None:
    text = '{"id":"00001234567890123456789.10"}'
    assert dumps(loads_many([text])[0]) == text


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": {"b": -math.inf}}])
def test_what_is_no_json_number_is_refused_instead_of_becoming_null(value: Any) -> None:
    with pytest.raises(ValueError, match="no JSON form"):
        dumps(value)


def test_null_is_null() -> None:
    assert dumps({"a": None, "b": "null"}) == '{"a":null,"b":"null"}'


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": {1, 2}}])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        dumps(value)


def test_decimals_keep_their_digits() -> None:
    assert dumps({"a": Decimal("1.10"), "b": Decimal("1E+3")}) == '{"a":1.10,"b":1000}'


numbers = st.one_of(
    st.integers(),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(lambda d: format(d, "f")),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda f: format(Decimal(f), "f")),
).map(str)


@given(st.lists(numbers, min_size=1))
def test_any_numbers_survive(texts: list[str]) -> None:
    kept = [t.removeprefix("-") if Decimal(t) == 0 else t for t in texts]  # jsonb has no negative zero
    text = "[" + ",".join(kept) + "]"
    assert dumps(loads_many([text])[0]) == text
