"""Health signals: what load on Postgres and the broker slows rollouts down, or stops them. Pure, but for the reading.

A signal is bad at once and good after `GOOD_AFTER` seconds, so that what swings around a limit does not swing rollouts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

EVERY: Final = 5.0
"""Seconds between two readings."""
GOOD_AFTER: Final = 30.0
"""Seconds that a signal must be better before it counts as better."""
STALE_AFTER: Final = 60.0
"""Seconds after which a reading says nothing any more."""


class Level(StrEnum):
    """What a signal says."""

    GOOD = "good"
    UNKNOWN = "unknown"
    SLOW = "slow"
    STOP = "stop"

    @property
    def severity(self) -> int:
        """Greater is worse. What is unknown warns, and neither slows nor stops."""
        return list(Level).index(self)

    @property
    def effect(self) -> str:
        """What it does to rollouts and batched hops."""
        return _EFFECTS[self]


_EFFECTS: Final = {
    Level.GOOD: "",
    Level.UNKNOWN: "warns only",
    Level.SLOW: "halves the pace of rollouts; batched hops pause between batches",
    Level.STOP: "holds rollouts; batched hops take long pauses",
}


@dataclass(frozen=True)
class Signal:
    """A thing that is measured, and its default limits.

    Attributes:
        name: As `health` and `GRAPH_MIGRATOR_HEALTH_LIMITS` name it.
        meaning: For people.
        unit: Of its value and limits.
        slow: From this value on it slows rollouts and batched hops; None for never.
        stop: From this value on it holds rollouts; None for never.
        reason: Why these limits.
        remedy: What to look at where it is over a limit.
    """

    name: str
    meaning: str
    unit: str
    slow: float | None
    stop: float | None
    reason: str
    remedy: str


SIGNALS: Final = (
    Signal(
        "replica_lag", "replay lag of the slowest replica", "s", 10, 60,
        "readers of a replica see versions that old; a failover would wait for it",
        "Look at the replica's disk and at long queries on it: `SELECT * FROM pg_stat_replication`.",
    ),
    Signal(
        "replica_behind", "WAL that the slowest replica has not replayed", "MB", 256, 4_096,
        "a replica whose replay stands still reports no growing lag, but falls behind",
        "Find what its replay waits for: a conflicting query, or a replica that is gone.",
    ),
    Signal(
        "wal_kept", "WAL that a replication slot keeps on disk", "MB", 4_096, 16_384,
        "a full disk stops Postgres",
        "Start the slot's reader, or drop the slot: `SELECT * FROM pg_replication_slots`.",
    ),
    Signal(
        "archive_waiting", "WAL files that wait for the archive", "files", 64, 1_024,
        "a gigabyte of WAL outside of the backup; 16 of them fill disks",
        "See why `archive_command` fails: `SELECT * FROM pg_stat_archiver`.",
    ),
    Signal(
        "lock_waiters", "sessions that have waited for a lock for more than a second", "sessions", 10, 50,
        "ten are more than our own; fifty are an application that stands still",
        "Find who blocks: `SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity`.",
    ),
    Signal(
        "wraparound_vacuum", "vacuums to prevent wraparound", "vacuums", 1, None,
        "it must finish, and new dead rows are more work for it",
        "Let it finish: `SELECT * FROM pg_stat_progress_vacuum`.",
    ),
    Signal(
        "broker_queue", "messages in the queue", "messages", 1_000, 10_000,
        "calls of applications wait behind those of a rollout",
        "Start more workers, or lower `max-in-flight`.",
    ),
    Signal(
        "commit_p95", "p95 of a small commit of our own", "ms", 250, 2_000,
        "a commit takes some milliseconds where the disk keeps up",
        "Look at the load of the database's disk: checkpoints, a backup, a neighbour.",
    ),
    Signal(
        "custom", "the operator's own query", "", None, None,
        "GRAPH_MIGRATOR_HEALTH_SQL gives one number; its limits are yours",
        "What it measures is yours to know.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One measured value; None with the reason where it could not be measured."""

    value: float | None
    detail: str | None = None


@dataclass(frozen=True)
class SignalState:
    """What a signal says now, as it is stored."""

    name: str
    level: Level
    value: float | None
    slow: float | None
    stop: float | None
    since: datetime
    better_since: datetime | None = None
    detail: str | None = None

    @property
    def limit(self) -> float | None:
        """The limit that was passed last."""
        return self.stop if self.level is Level.STOP else self.slow

    def in_words(self) -> str:
        """Value and limit of a bad signal, for people."""
        if self.value is None:
            return f"{self.name} was over its limit and cannot be read now"
        if self.limit is None or self.value < self.limit:
            return f"{self.name} was over its limit less than {GOOD_AFTER:g} s ago, and is {self.value:g} now"
        return f"{self.name} is {self.value:g}, the limit is {self.limit:g}"


def level_of(value: float | None, slow: float | None, stop: float | None) -> Level:
    """What a value says by itself."""
    if value is None:
        return Level.UNKNOWN
    if stop is not None and value >= stop:
        return Level.STOP
    return Level.SLOW if slow is not None and value >= slow else Level.GOOD


def follow(
    before: SignalState | None,
    name: str,
    reading: Reading,
    limits: tuple[float | None, float | None],
    now: datetime,
) -> SignalState:
    """What a signal says after a reading: worse at once, better only when it has been better for `GOOD_AFTER`.

    Args:
        before: What it said; None before its first reading.
        name: Of the signal.
        reading: What was measured now.
        limits: Slow and stop.
        now: The time of the reading.
    """
    slow, stop = limits
    found = level_of(reading.value, slow, stop)
    level, since, better_since = found, now, None
    if before is not None:
        if before.level in {Level.SLOW, Level.STOP} and found.severity < before.level.severity:
            better_since = before.better_since or now
            if (now - better_since).total_seconds() < GOOD_AFTER:
                level = before.level
            else:
                better_since = None
        if level is before.level:
            since = before.since
    return SignalState(name, level, reading.value, slow, stop, since, better_since, reading.detail)


def worst(signals: Iterable[SignalState]) -> SignalState | None:
    """The signal that slows or stops; of several the worst, then the one that has said so for longest."""
    bad = [each for each in signals if each.level in {Level.SLOW, Level.STOP}]
    return min(bad, key=lambda each: (-each.level.severity, each.since), default=None)


def limits_of(
    signal: Signal, own: Mapping[str, tuple[float | None, float | None]]
) -> tuple[float | None, float | None]:
    """A signal's limits: the operator's, where there are some."""
    return own.get(signal.name, (signal.slow, signal.stop))


def p95(values: Iterable[float]) -> float | None:
    """The 95th percentile, by nearest rank; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] if ordered else None
