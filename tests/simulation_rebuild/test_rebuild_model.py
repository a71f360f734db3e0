"""The protocol of rebuild hops, before its tables: every state is visited; each draft that broke has its name here."""

from __future__ import annotations

import pytest

from tests.simulation_rebuild.model import explore, variant
from tests.states import Violated

ENDS = {"cancelled", "failed", "paused", "released", "succeeded"}


@pytest.mark.parametrize("is_reversible", [True, False], ids=["reversible", "irreversible"])
@pytest.mark.parametrize("size", [{"faults": 3, "verbs": 3}, {"faults": 1, "verbs": 4}], ids=str)
def test_a_reader_sees_one_version_whole_and_each_state_leads_to_an_end(
    size: dict[str, int], is_reversible: bool
) -> None:
    explored = explore(variant(is_reversible=is_reversible, **size))
    assert explored.ends == ENDS
    assert explored.states > 10_000
    assert {
        "stage batch",
        "swap",
        "undo",
        "sweep: expire",
        "sweep: remove",
        "repair",
        "write",
    } <= explored.steps
    assert ("back" in explored.steps) == is_reversible


def test_without_a_fault_nobody_waits_for_recovery() -> None:
    assert explore(variant(faults=0, verbs=0, recovers=False)).ends == {"succeeded"}


@pytest.mark.parametrize(
    ("draft", "what"),
    [
        # The hop's code wrote the graph itself, batch by batch.
        ({"guards_staging": False}, "a reader sees a mix"),
        # The swap came although rows were not staged yet.
        ({"swaps_when_staged": False}, "a reader sees a mix"),
        # Rows were staged, a repair corrected the graph, and the swap wrote over the correction.
        ({"repair_discards": False}, "a change was lost"),
        # A retry with other code went on with the rows that the old code had staged.
        ({"new_code_discards": False}, "rows of two codes"),
        # What a writer changed after the swap was undone with it.
        ({"writers_mark": False}, "a change was lost"),
        # Kept rows were removed in batches while they still counted as kept.
        ({"marks_before_removal": False}, "a reader sees a mix"),
        # They were discarded between the call that went back because of them and its hop.
        ({"keeps_while_claimed": False, "is_reversible": False}, "a way back that was promised is gone"),
        # Nobody looked for what died.
        ({"recovers": False}, "nobody goes on"),
    ],
)
def test_a_draft_that_broke_is_found(draft: dict[str, object], what: str) -> None:
    with pytest.raises(Violated, match=what):
        explore(variant(**{"verbs": 3, **draft}))
