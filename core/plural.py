"""Numbers with their nouns."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """A number and what is counted: ``1 row``, ``2,000 rows``."""
    return plural(number, noun, f"{noun}s")


def plural(number: int, one: str, many: str) -> str:
    """A number with the words that agree with it: ``1 graph waits``, ``2 graphs wait``."""
    return f"{number:,} {one if number == 1 else many}"
