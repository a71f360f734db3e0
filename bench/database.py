"""A private server for the measurements, and the rows that are migrated in them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg2

from graph_migrator.core.embedded import Postgres, Redis

SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",  # none falls into a measurement
    "autovacuum": "off",
}

PEOPLE = """
INSERT INTO graph_migrator.nodes
SELECT %(graph)s, 'n' || lpad(i::text, 8, '0'), 'Person', jsonb_build_object(
    'name', 'Ada Lovelace ' || i, 'email', 'ada.' || i || '@example.org', 'born', 1800 + i %% 200,
    'tags', jsonb_build_array('mathematics', 'poetry'), 'score', ((i %% 1000) / 8.0)::float8,
    'about', 'first programmer')
FROM generate_series(1, %(rows)s) i
"""


def server(**settings: str) -> Postgres:
    """Postgres with fsync on."""
    return Postgres(settings=SETTINGS | settings)


def environment(postgres: Postgres, redis: Redis) -> dict[str, str]:
    """The variables that let all contenders use these servers."""
    return {
        "DATABASE_URL": postgres.url,
        "CELERY_BROKER_URL": redis.url,
        "CELERY_RESULT_BACKEND": redis.url.removesuffix("/0") + "/1",
        "GRAPH_MIGRATOR_TYPES": "bench.types:TYPES",
        "BENCH_DATABASE": postgres.url,
        "BENCH_DBOS": postgres.url_of("dbos"),
    }


def connect(url: str) -> Any:
    """A plain connection, in autocommit mode."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def make_graphs(cursor: Any, kind: str, count: int, nodes: int = 10) -> list[UUID]:
    """Small graphs at version 1, with so many nodes each."""
    ids = [uuid4() for _ in range(count)]
    for start in range(0, count, 1_000):  # the guard takes no more graphs in one statement
        some = [str(i) for i in ids[start : start + 1_000]]
        cursor.execute(
            "INSERT INTO graph_migrator.graphs (id, slug, graph_type, version, changed_at) "
            "SELECT id, 'g' || replace(id::text, '-', ''), %s, 1, now() - interval '1 hour' "
            "FROM unnest(%s::uuid[]) id",
            (kind, some),
        )
        cursor.execute(
            "INSERT INTO graph_migrator.nodes "
            "SELECT id, 'n' || i, 'Person', '{\"name\": \"Ada Lovelace\", \"born\": 1815}' "
            "FROM unnest(%s::uuid[]) id, generate_series(1, %s) i",
            (some, nodes),
        )
    return ids
