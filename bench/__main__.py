"""Measure against the alternatives, in one run: ``python -m bench [--quick] [name ...]``.

Writes bench/results.json and docs/benchmarks.md, the lines of each piece as soon as they are known, and prints
the same as a table that ends with how many are met.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import time
from pathlib import Path
from typing import Any

from bench.results import markdown, table

PIECES = (
    "chain", "hop", "rollout", "bulk", "imports", "scale", "guard", "proof", "recovery", "rebuild", "shards",
)  # fmt: skip
RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MARKS = ("<!-- results: written by `make bench` -->\n", "<!-- end of results -->\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: for development, not for publishing"
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of: {', '.join(PIECES)}")
    given = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for piece in given.names or PIECES:
        if importlib.util.find_spec(f"bench.{piece}") is None:
            continue
        began = time.monotonic()
        run = importlib.import_module(f"bench.{piece}").run
        takes_quick = "quick" in inspect.signature(run).parameters
        lines += run(quick=given.quick) if takes_quick else run()
        print(f"({piece}: {time.monotonic() - began:.0f} s)\n", flush=True)
        if not given.quick:
            _keep(lines)
    print(table(lines))


def _keep(lines: list[dict[str, Any]]) -> None:
    """Write what was measured, in place of what was known of the same lines."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    measured = {line["name"] for line in lines}
    kept = [line for line in known if line["name"] not in measured]
    RESULTS.write_text(json.dumps([*lines, *kept], indent=1) + "\n")
    page = PAGE.read_text()
    before, after = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}{markdown([*lines, *kept])}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
