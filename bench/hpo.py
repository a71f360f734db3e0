"""The Human Phenotype Ontology, migrated up and down again; the export must come out the same, byte for byte.

Once in this process, shard after shard, and once by two workers, which take its shards side by side.

make bench-hpo
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
from typing import Any

from sqlalchemy import Engine

from bench.database import environment, server
from bench.shards import migrated, working
from examples.hpo import SLUG, hpo, import_hpo
from graph_migrator import run_graph_migration
from graph_migrator.core.embedded import Redis
from graph_migrator.core.graph_types import registry
from graph_migrator.core.interchange import export_graph
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade


class _Digest(io.RawIOBase):
    """Takes an export and keeps its hash."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def exported(engine: Engine) -> str:
    """The SHA-256 of the graph's export."""
    digest: Any = _Digest()
    export_graph(engine, SLUG, digest, format="jsonl")
    return str(digest.hash.hexdigest())


def main(lines: int | None = None) -> None:
    registry.register(hpo)
    with server() as postgres, Redis() as redis:
        upgrade(postgres.url)
        engine = make_engine(postgres.url)
        loaded = import_hpo(engine, lines=lines)
        print(f"imported {loaded.nodes:,} nodes and {loaded.edges:,} edges in {loaded.seconds:.1f} s")
        before = exported(engine)
        for target in (4, 1):
            began = time.perf_counter()
            report = run_graph_migration(engine, SLUG, target)
            print(f"in one process to v{target} in {time.perf_counter() - began:.1f} s")
            for hop in report.hops:
                print(f"  {hop.name:28} {hop.rows_changed:>9,} rows {hop.seconds:7.1f} s")
        check(engine, before)
        with working(
            environment(postgres, redis) | {"GRAPH_MIGRATOR_TYPES": "examples.hpo:hpo"}, 2
        ) as client:
            for target in (4, 1):
                print(f"by two workers to v{target} in {migrated(client, postgres.url, SLUG, target):.1f} s")
        check(engine, before)
        engine.dispose()


def check(engine: Engine, before: str) -> None:
    """Exit where the export is not what it was."""
    if exported(engine) != before:
        sys.exit("the export differs after up and down")
    print(f"the export is identical (sha256 {before[:16]}…)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
