"""Measure against the alternatives, in one run: ``python -m bench [--quick] [name ...]``.

Writes bench/results.json and prints the same as a table that ends with how many are met.
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

from bench.results import table

PIECES = ("chain", "hop", "bulk", "scale", "guard", "recovery")
RESULTS = Path(__file__).with_name("results.json")


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
    if not given.quick and not given.names:
        RESULTS.write_text(json.dumps(lines, indent=1) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
