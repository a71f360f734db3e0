"""The calls that record a graph's content digests with an attempt; see versions/0007_proof.sql."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class GraphDigest(Call[str], function="graph_digest"):
    """The digest of a graph's nodes and edges, as this transaction sees them."""

    graph: UUID


@dataclass(frozen=True, kw_only=True)
class DigestBefore(Call[str | None], function="digest_before"):
    """The digest before a hop; of a resumed one, what its first attempt recorded."""

    attempt: int
    graph: UUID
    to: int
    resumed: bool


@dataclass(frozen=True, kw_only=True)
class RecordDigests(Call[None], function="record_digests"):
    """Record digests with the running attempt; None leaves what is there."""

    attempt: int
    before: str | None = None
    after: str | None = None
