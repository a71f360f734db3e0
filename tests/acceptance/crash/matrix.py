"""The crash matrix: every place at which something can die, times every way of dying."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random

from tests.acceptance.crash import ledger

FIRST, WALK, LAST = ledger.HOPS


class Death(StrEnum):
    """What dies while a process is held at its place."""

    CHILD = "child"  # that process alone; the worker's main process where recovery is held
    GROUP = "group"  # the whole worker; another one is alive
    ONLY = "only"  # the whole worker, the only one; a new one is started
    BACKEND = "backend"  # the process's session in Postgres; the process lives
    WIPED = "wiped"  # the broker, and the only worker with it


@dataclass(frozen=True)
class Place:
    """A failpoint, for the nth time; and the hop that has a running row there."""

    point: str
    nth: int = 1
    running: str | None = None

    def __str__(self) -> str:
        return self.point if self.nth == 1 else f"{self.point}:{self.nth}"


BEGIN = (
    Place("begin_locked"),
    Place("begin_before_commit"),
    Place("begin_committed"),
    Place("begin_dispatched"),
)
FIRST_HOP = (
    Place("hop_opened", 1, FIRST),
    Place("hop_before_data", 1, FIRST),
    Place("hop_in_data", 2, FIRST),  # the first time is before the hop's code
    Place("hop_after_data", 1, FIRST),
    Place("hop_before_commit", 1, FIRST),
    Place("hop_committed"),
    Place("hop_left"),
    Place("hop_published"),
    Place("hop_result_stored"),
)
BATCHES = (
    Place("hop_locked"),  # a small hop is locked and opened at once
    Place("hop_opened", 2, WALK),
    Place("batch_before_data", 1, WALK),
    Place("batch_before_commit", 1, WALK),
    Place("batch_committed", 1, WALK),
    Place("batch_before_data", 2, WALK),
    Place("batch_before_commit", 2, WALK),
    Place("batch_committed", 2, WALK),
    Place("batch_before_data", 3, WALK),
    Place("hop_before_commit", 2, WALK),
    Place("hop_committed", 2),
    Place("hop_published", 2),
)
LAST_HOP = (
    Place("hop_opened", 3, LAST),
    Place("hop_in_data", 4, LAST),
    Place("hop_after_data", 2, LAST),
    Place("hop_before_commit", 3, LAST),
    Place("hop_committed", 3),
    Place("hop_left", 3),
    Place("hop_result_stored", 3),
)
FAILING = (Place("fail_before_commit"), Place("fail_committed"))
RECOVERY = (Place("recovery_decided"), Place("recovery_committed"))

# Of a hop in shards: the cut, each shard, and what closes the hop.
SHARDS = (
    Place("shards_cut"),
    Place("shards_chosen"),
    Place("shards_sent"),
    Place("shard_locked"),
    Place("shard_locked", 2),
    Place("shard_opened"),
    Place("shard_opened", 2),
    Place("batch_before_data"),
    Place("batch_before_commit"),
    Place("batch_committed"),
    Place("shard_before_commit"),
    Place("shard_committed"),
    Place("shard_left"),
    Place("shards_sent", 2),
    Place("shard_before_commit", 2),
    Place("shard_committed", 2),
    Place("shard_left", 2),
    Place("hop_opened"),
    Place("hop_before_commit"),
    Place("hop_committed"),
    Place("hop_left"),
)

# Of a rebuild hop: each batch, the swap, and the way back by the rows that it has kept.
REBUILD = (
    Place("hop_opened"),
    Place("batch_before_data"),
    Place("batch_before_commit"),
    Place("batch_committed"),
    Place("batch_before_commit", 2),
    Place("batch_committed", 3),
    Place("rebuild_before_swap"),
    Place("rebuild_swapped"),
    Place("hop_before_commit"),
    Place("hop_committed"),
    Place("hop_left"),
)
UNDO = (
    Place("hop_opened"),
    Place("undo_before_data"),
    Place("hop_before_commit"),
    Place("hop_committed"),
    Place("hop_left"),
)

# Of a pack of twenty graphs with three hops each: the first one goes alone, then four share transactions, then more.
PACKED = (
    Place("pack_taken"),
    Place("begin_before_commit", 2),
    Place("begin_committed", 2),
    Place("hop_opened", 4),
    Place("hop_opened", 8),
    Place("hop_before_data", 6),
    Place("hop_before_data", 30),
    Place("hop_in_data", 16),
    Place("hop_after_data", 7),
    Place("hop_before_commit", 4),
    Place("hop_before_commit", 6),
    Place("hop_before_commit", 8),
    Place("hop_committed", 4),
    Place("hop_committed", 6),
    Place("hop_committed", 8),
    Place("hop_left", 5),
    Place("hop_left", 14),
    Place("pack_begun", 3),
    Place("pack_left"),
)

SUCCEEDING = BEGIN + FIRST_HOP + BATCHES + LAST_HOP
PLACES = SUCCEEDING + FAILING + RECOVERY + SHARDS + REBUILD + UNDO

Case = tuple[Place, Death]


def whole(places: tuple[Place, ...]) -> list[Case]:
    """Every case, ordered so that workers that survive one case serve the next."""
    return [(place, death) for death in Death for place in places]


def few(places: tuple[Place, ...], seed: int, number: int) -> list[Case]:
    """So many of the cases of `sample`, drawn by the seed."""
    cases = sample(places, seed)
    return [cases[i] for i in sorted(Random(seed).sample(range(len(cases)), number))]


def sample(places: tuple[Place, ...], seed: int) -> list[Case]:
    """Every place once, with a death that the seed deals to it; all deaths about equally often."""
    random = Random(seed)
    deaths = [
        death for _ in range(0, len(places), len(Death)) for death in random.sample(list(Death), len(Death))
    ]
    return sorted(zip(places, deaths, strict=False), key=lambda case: list(Death).index(case[1]))
