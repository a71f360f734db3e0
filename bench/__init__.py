"""Measurements against the alternatives: ``make bench``. What was found stands in docs/benchmarks.md."""
