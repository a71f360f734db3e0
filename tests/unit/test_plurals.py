"""No message says "1 rows": a number before a noun goes through `core.plural`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from graph_migrator.core.plural import count, plural

ROOT = Path(__file__).resolve().parents[2]
NOUNS = (
    "attempts|batches|calls|edges|errors|faults|graphs|hops|members|messages|migrations|nodes|requests|rows|stages|"
    "times|types|workers"
)
AT_LEAST_TWO = {"core/graph_types/checks.py", "core/interchange/xml_graphs.py", "core/rollouts/strategy.py"}
"""Files whose numbers are never 1."""


def numbers_before_nouns(source: str) -> Iterator[tuple[int, str]]:
    """The f-strings with a value directly before a noun in the plural."""
    for found in ast.walk(ast.parse(source)):
        if not isinstance(found, ast.JoinedStr):
            continue
        for value, text in zip(found.values, found.values[1:], strict=False):
            is_value = isinstance(value, ast.FormattedValue) and "plural" not in ast.unparse(value)
            if (
                is_value
                and isinstance(text, ast.Constant)
                and re.match(rf" (?:{NOUNS})\b(?!/)", str(text.value))
            ):
                yield found.lineno, str(text.value)


def test_every_number_agrees_with_its_noun() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}": text
        for folder in ("core", "tasks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in AT_LEAST_TWO
        for line, text in numbers_before_nouns(path.read_text())
    }
    assert found == {}


def test_the_search_finds_what_it_looks_for() -> None:
    assert [text for _, text in numbers_before_nouns('f"{done:,} rows of {total} rows"')] == [
        " rows of ",
        " rows",
    ]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(0, "row"), "0 rows"),
        (count(1, "row"), "1 row"),
        (count(2_000, "row"), "2,000 rows"),
        (plural(1, "graph waits", "graphs wait"), "1 graph waits"),
        (plural(2, "graph waits", "graphs wait"), "2 graphs wait"),
    ],
)
def test_a_number_with_its_noun(shown: str, expected: str) -> None:
    assert shown == expected
