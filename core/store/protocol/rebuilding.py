"""The calls of a rebuild hop; see versions/0010_rebuilds.sql."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from graph_migrator.core.store.protocol.batching import OpenBatch
from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class RebuildOpened:
    """The rows that an attempt goes on with, and how far they have come."""

    id: int
    cursor: Any
    done: int
    is_staged: bool


@dataclass(frozen=True, kw_only=True)
class OpenRebuild(Call[RebuildOpened], function="open_rebuild"):
    """Find what earlier attempts have staged with this code, or begin anew."""

    attempt: int
    migration: UUID
    graph: UUID
    from_: int
    to: int
    table_name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class RebuildPrepared:
    """Where shards that are cut now stage; whether it stages without shards already; how many shards are left."""

    rebuild_id: int | None
    is_begun: bool
    shards: int


@dataclass(frozen=True, kw_only=True)
class PrepareRebuild(Call[RebuildPrepared], function="prepare_rebuild"):
    """Discard what other code has staged, with its shards; `table_name` None: this code rebuilds nothing."""

    migration: UUID
    graph: UUID
    from_: int
    to: int
    table_name: str | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class OpenRebuildShardBatch(OpenBatch, function="open_rebuild_shard_batch"):
    """`OpenRebuildBatch` of a shard."""


@dataclass(frozen=True, kw_only=True)
class OpenRebuildBatch(OpenBatch, function="open_rebuild_batch"):
    """`OpenBatch` of a rebuild hop: its transaction writes the graph by nothing but the swap."""


@dataclass(frozen=True, kw_only=True)
class SaveRebuildBatch(Call[float | None], function="save_rebuild_batch"):
    """Write the cursor in the transaction of the staged rows. Returns the recent rate, in rows per second."""

    attempt: int
    migration: UUID
    rebuild: int
    cursor: Any
    done: int
    rows: int
    ends: bool
    deadline_seconds: float


@dataclass(frozen=True, kw_only=True)
class SwapRebuild(Call[int], function="swap_rebuild"):
    """Write the staged values into the graph, and keep the old ones so long. Returns how many rows that were."""

    attempt: int
    migration: UUID
    graph: UUID
    rebuild: int
    undo_seconds: float


@dataclass(frozen=True, kw_only=True)
class UndoRebuild(Call[int | None], function="undo_rebuild"):
    """Write the old values of a swap into the graph. Returns how many rows; None where that swap cannot be undone."""

    attempt: int
    migration: UUID
    graph: UUID
    rebuild: int


@dataclass(frozen=True, kw_only=True)
class SweepRebuilds(Call[int], function="sweep_rebuilds"):
    """Discard staged and kept rows whose time is over, and remove some. Returns how many were removed."""

    most_rows: int
