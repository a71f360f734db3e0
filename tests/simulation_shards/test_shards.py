"""The protocol of sharded hops, before its tables: every state is visited; each draft that broke has its name here."""

from __future__ import annotations

import pytest

from tests.simulation_shards.model import explore, variant
from tests.states import Violated

ENDS = {"cancelled", "failed", "paused", "released", "succeeded"}


@pytest.mark.parametrize(
    "size",
    [
        {"faults": 2, "verbs": 1},
        {"faults": 1, "verbs": 2},
        {"shards": 3, "batches": 1, "faults": 1, "verbs": 1, "executors": 4},
    ],
    ids=str,
)
def test_no_state_breaks_an_invariant_and_each_leads_to_an_end(size: dict[str, int]) -> None:
    explored = explore(variant(**size))
    assert explored.ends == ENDS
    assert explored.states > 5_000
    assert {"recover: send shards", "close", "cut", "death", "message lost", "hop raises"} <= explored.steps
    assert ("recover: poison" in explored.steps) == (size["faults"] > 1)


def test_without_a_fault_nobody_waits_for_recovery() -> None:
    assert explore(variant(faults=0, verbs=0, recovers=False)).ends == {"succeeded"}


@pytest.mark.parametrize(
    ("draft", "what"),
    [
        # A shard held its own lock alone: the graph was released, or closed, beside an executor that still wrote.
        ({"holds_graph_shared": False}, "while a shard's executor works"),
        # The last shard counted in its own transaction: two that ended together each saw the other one running.
        ({"looks_after_commit": False, "faults": 0, "verbs": 0, "recovers": False}, "nobody goes on"),
        # The first shard that stopped carried out the pause for all.
        ({"settles_under_exclusive": False}, "while a shard's executor works"),
        # A message that came twice ran a shard that was done.
        ({"looks_at_status_of_shard": False}, "processed again"),
        # The coordinator closed the hop whenever it held the lock.
        ({"closes_when_all_done": False}, "before every shard was done"),
        # Nobody looked for what died.
        ({"recovers": False}, "nobody goes on"),
    ],
)
def test_a_draft_that_broke_is_found(draft: dict[str, object], what: str) -> None:
    with pytest.raises(Violated, match=what):
        explore(variant(**draft))
