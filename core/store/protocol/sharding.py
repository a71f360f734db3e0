"""The calls of a hop that is cut into shards; see versions/0009_shards.sql."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from graph_migrator.core.decision_inputs import DeadShardState
from graph_migrator.core.store.protocol.batching import OpenBatch
from graph_migrator.core.store.protocol.call import Call
from graph_migrator.core.store.protocol.migrating import FailAttempt


@dataclass(frozen=True, kw_only=True)
class CutShards(Call[bool], function="cut_shards"):
    """Record shards, each as its last key and its rows. False where the migration has changed since it was read."""

    migration: UUID
    to: int
    status: str
    dispatch: int
    table_name: str
    key: list[str]
    rebuild: int | None
    shards: list[Any]
    digest: str | None
    deadline_seconds: float


@dataclass(frozen=True, kw_only=True)
class ShardsToSend:
    """Which shards to send now; `status` is the migration's, or `stale`."""

    status: str
    all_done: bool | None
    numbers: list[int]
    lost_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class NextShards(Call[ShardsToSend], function="next_shards"):
    """Mark as sent what the limits leave room for. `anew`: nobody works on any shard, under the graph's lock."""

    migration: UUID
    to: int
    dispatch: int
    most_of_graph: int
    most_shards: int
    anew: bool


@dataclass(frozen=True, kw_only=True)
class OpenShardBatch(OpenBatch, function="open_shard_batch"):
    """`OpenBatch` of a shard, with its fences."""


@dataclass(frozen=True, kw_only=True)
class SaveShardBatch(Call[float | None], function="save_shard_batch"):
    """Write the shard's cursor in the transaction of the batch's data; the last one ends shard and attempt.

    Returns the recent rate, in rows per second.
    """

    attempt: int
    migration: UUID
    graph: UUID
    to: int
    shard: int
    cursor: Any
    done: int
    rows: int
    ends: bool
    deadline_seconds: float


@dataclass(frozen=True, kw_only=True)
class StopShard(Call[None], function="stop_shard"):
    """Give a shard back at a batch boundary."""

    attempt: int


@dataclass(frozen=True, kw_only=True)
class FailShard(FailAttempt, function="fail_shard"):
    """`FailAttempt` of a shard."""


@dataclass(frozen=True, kw_only=True)
class TakeShardLock(Call[None], function="take_shard_lock"):
    """Wait for the locks of a shard's executor; SQLSTATE 55P03 where that takes too long."""

    graph: UUID
    migration: UUID
    to: int
    shard: int
    wait_ms: int


@dataclass(frozen=True, kw_only=True)
class BecomeShardExecutor(Call[None], function="become_shard_executor"):
    """Name this session the executor of a shard's attempt."""

    migration: UUID
    attempt: int


@dataclass(frozen=True, kw_only=True)
class ReleaseShardLock(Call[None], function="release_shard_lock"):
    """Release the locks of a shard's executor."""


@dataclass(frozen=True, kw_only=True)
class DeadShards(Call[int], function="dead_shards"):
    """The attempts of shards whose executors are dead, a row for each."""


@dataclass(frozen=True, kw_only=True)
class LockAndLoadDeadShard(Call[DeadShardState | None], function="lock_and_load_dead_shard"):
    """Take a dead shard's locks for this transaction and read what recovery decides on; None where somebody has it."""

    attempt: int


@dataclass(frozen=True, kw_only=True)
class RecordLostShard(Call[None], function="record_lost_shard"):
    """Mark the attempt of a dead executor lost."""

    attempt: int
    migration: UUID
    deadline_seconds: float
