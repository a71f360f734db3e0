"""The live workers as Postgres knows them: one row each, renewed by the worker's sweep."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg2.extras import Json
from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.rollouts.rows import query
from graph_migrator.core.store.session import Executor

RENEW_SECONDS: Final = 5.0
LIVE_SECONDS: Final = 20.0
"""A worker that has not renewed its row for so long is not counted any more; it misses three times."""
KEPT_SECONDS: Final = 86_400.0


class ServedType(BaseModel):
    """A graph type as one worker serves it."""

    model_config = ConfigDict(frozen=True)

    oldest: int
    newest: int
    code: str = Field(description="A digest of the code of all hops.")


class WorkerState(BaseModel):
    """One worker."""

    model_config = ConfigDict(frozen=True)

    name: str
    instance: UUID = Field(UUID(int=0), description="One start of it.")
    queue: str
    types: dict[str, ServedType]
    error: str | None = Field(None, description="Why its graph types cannot be loaded.")
    pool: str
    processes: int
    started_at: datetime | None = None
    types_since: datetime | None = Field(None, description="Since when it serves these types with this code.")
    seen_at: datetime | None = None
    live: bool = True


def served(kind: GraphType) -> ServedType:
    """A graph type as this process has it."""
    ways = "".join(way.fingerprint for hop in kind.hops for way in hop.directions.values())
    return ServedType(
        oldest=kind.oldest, newest=kind.newest, code=hashlib.sha256(ways.encode()).hexdigest()[:12]
    )


def announce(executor: Executor, worker: WorkerState) -> None:
    """Renew a worker's row. Rows of workers that have been gone for a day are removed, and those of its earlier starts.

    Args:
        executor: A session without an open transaction.
        worker: What it is and serves; its times are set by Postgres.
    """
    types = Json({name: each.model_dump() for name, each in sorted(worker.types.items())})
    with executor.transaction(), executor.cursor() as cursor:
        # A row that is lost in a crash of Postgres is written again some seconds later.
        cursor.execute("SET LOCAL synchronous_commit = off")
        cursor.execute(
            "INSERT INTO workers AS w (name, instance, queue, types, error, pool, processes, types_since) "
            "SELECT n.*, coalesce((SELECT max(o.types_since) FROM workers o WHERE o.name = n.name "
            "AND o.types = n.types AND o.seen_at > clock_timestamp() - make_interval(secs => %(live)s)), "
            "clock_timestamp()) "
            "FROM (VALUES (%(name)s, %(instance)s::uuid, %(queue)s, %(types)s::jsonb, %(error)s, %(pool)s, "
            "%(processes)s::int)) n (name, instance, queue, types, error, pool, processes) "
            "ON CONFLICT (name, instance) DO UPDATE SET queue = excluded.queue, types = excluded.types, "
            "error = excluded.error, pool = excluded.pool, processes = excluded.processes, "
            "types_since = excluded.types_since, seen_at = clock_timestamp()",
            {**worker.model_dump(include={"name", "instance", "queue", "error", "pool", "processes"}),
             "types": types, "live": LIVE_SECONDS},
        )  # fmt: skip
        cursor.execute(
            "DELETE FROM workers WHERE seen_at < clock_timestamp() - make_interval(secs => %s) "
            "OR name = %s AND seen_at < clock_timestamp() - make_interval(secs => %s)",
            (KEPT_SECONDS, worker.name, LIVE_SECONDS),
        )


def retire(executor: Executor, worker: WorkerState) -> None:
    """Remove the row of a worker that ends in order."""
    with executor.transaction(), executor.cursor() as cursor:
        cursor.execute(
            "DELETE FROM workers WHERE name = %s AND instance = %s", (worker.name, worker.instance)
        )


def workers(executor: Executor) -> list[WorkerState]:
    """Workers that have been seen within a day, by name."""
    with executor.cursor() as cursor:
        rows = query(
            cursor,
            "SELECT *, seen_at > clock_timestamp() - make_interval(secs => %s) AS live FROM workers "
            "ORDER BY name, started_at",
            LIVE_SECONDS,
        )
    return [WorkerState.model_validate(vars(row)) for row in rows]


def live_workers(cursor: Any, queue: str) -> list[WorkerState]:
    """Workers that live and take messages from a queue, by name."""
    rows = query(
        cursor,
        "SELECT *, true AS live FROM workers WHERE queue = %s "
        "AND seen_at > clock_timestamp() - make_interval(secs => %s) ORDER BY name, started_at",
        queue, LIVE_SECONDS,
    )  # fmt: skip
    return [WorkerState.model_validate(vars(row)) for row in rows]


def lacking(found: list[WorkerState], name: str, code: ServedType) -> dict[str, str]:
    """The live workers that do not serve a type with this code, and what they have instead."""
    lack: dict[str, str] = {}
    for worker in found:
        has = worker.types.get(name)
        if not worker.live or has == code:
            continue
        if has is None:
            lack[worker.name] = worker.error or "does not serve the type"
        else:
            lack[worker.name] = (
                f"serves v{has.newest}" if has.newest != code.newest else "has other code for its hops"
            )
    return lack
