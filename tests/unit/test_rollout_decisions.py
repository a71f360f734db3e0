"""What a rollout does next, as values in and a decision out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_migrator.core.rollouts.breaker import FailedGroup, Tripped, breaker
from graph_migrator.core.rollouts.decisions import (
    CloseStage,
    DispatchMembers,
    End,
    Hold,
    KeepWaiting,
    MemberFacts,
    MemberInFlight,
    OpenStage,
    PendingGraph,
    Resume,
    RolloutFacts,
    Settled,
    Unsent,
    decide_member,
    decide_rollout,
    hindered,
)
from graph_migrator.core.rollouts.statuses import ENDS_BY_ITSELF, HoldReason, MemberStatus, RolloutStatus
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.statuses import SETTLED, MigrationStatus

RUNNING = RolloutFacts(RolloutStatus.RUNNING, stage=1, stages=3, pending=5, max_in_flight=4)
ENDED = replace(RUNNING, pending=0, stage_closed=True, baked=True)
TRIPPED = Tripped("3 graphs failed with one error group", "ab12", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("facts", "decision"),
    [
        (replace(RUNNING, stage=0, pending=0), OpenStage(1)),
        (RUNNING, DispatchMembers(4)),
        (replace(RUNNING, in_flight=3), DispatchMembers(1)),
        (replace(RUNNING, in_flight=4), KeepWaiting("graphs are in flight")),
        (
            replace(RUNNING, in_flight=9),
            KeepWaiting("graphs are in flight"),
        ),  # the limit was lowered meanwhile
        (replace(RUNNING, pending=2), DispatchMembers(2)),
        (replace(ENDED, stage_closed=False), CloseStage(1)),
        (replace(ENDED, baked=False), KeepWaiting("the stage bakes")),
        (replace(ENDED, gate_open=False), Hold(HoldReason.GATE)),
        (ENDED, OpenStage(2)),
        (replace(ENDED, stage=3), End(RolloutStatus.SUCCEEDED)),
        (replace(ENDED, stage=3, failed=1), End(RolloutStatus.FINISHED_WITH_FAILURES)),
        (replace(ENDED, stage=3, window_open=False, fleet_held=True), End(RolloutStatus.SUCCEEDED)),
        (replace(ENDED, paused=1), KeepWaiting("a paused graph keeps the stage open")),
        (replace(RUNNING, breaker=TRIPPED), Hold(HoldReason.BREAKER)),
        (replace(ENDED, stage=3, breaker=TRIPPED), Hold(HoldReason.BREAKER)),
        (replace(RUNNING, fleet_held=True), Hold(HoldReason.FLEET)),
        (replace(RUNNING, window_open=False), Hold(HoldReason.WINDOW)),
        (replace(ENDED, window_open=False), Hold(HoldReason.WINDOW)),
        (replace(RUNNING, changed_hops=("v1→v2 h",)), Hold(HoldReason.CODE_CHANGED)),
        (replace(RUNNING, in_flight=4, stalled_seconds=1801), Hold(HoldReason.STALL)),
        (
            replace(RUNNING, pending=0, paused=1, stalled_seconds=1801),
            KeepWaiting("a paused graph keeps the stage open"),
        ),
        (replace(RUNNING, status=RolloutStatus.CANCELLING, in_flight=1), KeepWaiting("graphs are in flight")),
        (replace(RUNNING, status=RolloutStatus.CANCELLING), End(RolloutStatus.CANCELLED)),
        (replace(RUNNING, status=RolloutStatus.SUCCEEDED), KeepWaiting("it has ended")),
    ],
)
def test_each_situation_has_its_decision(facts: RolloutFacts, decision: object) -> None:
    found = decide_rollout(facts)
    if isinstance(decision, Hold):
        assert isinstance(found, Hold)
        assert found.reason is decision.reason
    else:
        assert found == decision


@pytest.mark.parametrize("reason", list(HoldReason))
def test_only_the_window_the_signals_and_the_fleets_hold_end_by_themselves(reason: HoldReason) -> None:
    held = replace(RUNNING, status=RolloutStatus.HELD, held_for=reason)
    expected = Resume() if reason in ENDS_BY_ITSELF else KeepWaiting("it is held")
    assert decide_rollout(held) == expected
    bad = replace(held, window_open=False, fleet_held=True, stop_signal={"signal": "replica_lag"})
    assert decide_rollout(bad) == KeepWaiting("it is held")


def test_a_breaker_names_its_evidence() -> None:
    found = decide_rollout(replace(RUNNING, breaker=TRIPPED))
    assert isinstance(found, Hold)
    assert found.evidence == {"why": TRIPPED.why, "error_group": "ab12", "graphs": ["a", "b", "c"]}


@given(
    st.builds(
        RolloutFacts,
        status=st.sampled_from(list(RolloutStatus)),
        held_for=st.sampled_from([None, *HoldReason]),
        fleet_held=st.booleans(),
        window_open=st.booleans(),
        stage=st.integers(0, 3),
        stages=st.just(3),
        stage_closed=st.booleans(),
        baked=st.booleans(),
        gate_open=st.booleans(),
        pending=st.integers(0, 20),
        in_flight=st.integers(0, 20),
        paused=st.integers(0, 3),
        failed=st.integers(0, 3),
        max_in_flight=st.integers(1, 10),
    )
)
def test_no_decision_breaks_what_a_rollout_promises(facts: RolloutFacts) -> None:
    decision = decide_rollout(facts)
    if isinstance(decision, DispatchMembers):
        assert facts.status is RolloutStatus.RUNNING
        assert facts.stage > 0
        assert not facts.fleet_held
        assert facts.window_open
        assert 0 < decision.count <= facts.pending
        assert facts.in_flight + decision.count <= facts.max_in_flight
    if isinstance(decision, OpenStage) and facts.stage:
        assert facts.pending + facts.in_flight + facts.paused == 0
        assert facts.stage_closed
        assert facts.baked
        assert facts.gate_open
        assert decision.number == facts.stage + 1 <= facts.stages
    if isinstance(decision, End):
        assert facts.in_flight + facts.paused == 0


# ── members ─────────────────────────────────────────────────────────────────────────────────────────


def member(**values: Any) -> MemberFacts:
    return MemberFacts("acme", MemberStatus.DISPATCHED, 3, **values)


@pytest.mark.parametrize(
    ("facts", "status", "note"),
    [
        (member(request_known=True, migration=MigrationStatus.SUCCEEDED), "succeeded", None),
        (
            member(request_known=True, outcome={"report": {}}),
            "succeeded",
            "was at the target already",
        ),
        (
            member(
                request_known=True, outcome={"error": {"type": "graph_migrator.UnknownGraph", "args": ["a"]}}
            ),
            "skipped",
            "deleted",
        ),
        (
            member(
                request_known=True,
                outcome={"error": {"type": "graph_migrator.MigrationInFlight", "args": []}},
            ),
            "skipped",
            "owned by another migration",
        ),
        (
            member(
                request_known=True,
                outcome={"error": {"type": "graph_migrator.OpenWriteTransactions", "args": []}},
                error_message="writers",
            ),
            "failed",
            "OpenWriteTransactions: writers",
        ),
        (
            member(migration=MigrationStatus.CANCELLED, ended_by="ada"),
            "skipped",
            "its migration was cancelled by ada",
        ),
        (member(migration=MigrationStatus.RELEASED), "skipped", "its migration was released by an operator"),
        (
            member(migration=MigrationStatus.FAILED, error_type="ValueError", error_message="no"),
            "failed",
            "ValueError: no",
        ),
    ],
)
def test_each_outcome_settles_a_member_with_its_reason(
    facts: MemberFacts, status: str, note: str | None
) -> None:
    found = decide_member(facts)
    assert isinstance(found, Settled)
    assert (found.status, found.note) == (status, note)
    assert (found.group is not None) == (status == "failed")


def test_a_member_without_an_outcome_waits() -> None:
    assert decide_member(member()) == Unsent()
    assert decide_member(member(request_known=True)) == Unsent()
    assert decide_member(member(migration=MigrationStatus.PAUSED)) == MemberInFlight(paused=True)
    for status in ("queued", "running", "pausing", "cancelling"):
        assert decide_member(member(migration=MigrationStatus(status))) == MemberInFlight(paused=False)


@pytest.mark.parametrize("status", MigrationStatus)
def test_a_member_is_settled_exactly_when_its_migration_is(status: MigrationStatus) -> None:
    """A turn asks Postgres for so many of those (core/rollouts/turn_rows.py), and decides when there are no more."""
    found = decide_member(member(request_known=True, migration=status))
    assert isinstance(found, Settled) is (status in SETTLED)


def test_a_hop_that_kills_its_worker_is_counted_as_a_crash() -> None:
    found = decide_member(
        member(migration=MigrationStatus.FAILED, error_type="graph_migrator.HopCrashedRepeatedly")
    )
    assert isinstance(found, Settled)
    assert found.crashed


@pytest.mark.parametrize(
    ("facts", "status", "note"),
    [
        (PendingGraph(None, 3, 1), "skipped", "deleted"),
        (PendingGraph(3, 3, 1), "succeeded", "was at the target already"),
        (PendingGraph(4, 3, 1), "skipped", "beyond the target"),
        (PendingGraph(2, 3, -1), "skipped", "beyond the target"),
        (PendingGraph(2, 3, 1, partially_migrated=True), "skipped", "partially migrated"),
        (
            PendingGraph(1, 3, 1, known_versions=(2, 3)),
            "skipped",
            "unreachable: its type does not know its version",
        ),
    ],
)
def test_a_graph_that_must_not_be_sent_is_settled(facts: PendingGraph, status: str, note: str) -> None:
    found = hindered(facts)
    assert found is not None
    assert (found.status, found.note) == (status, note)


def test_a_graph_on_its_way_is_sent() -> None:
    assert hindered(PendingGraph(2, 3, 1, known_versions=(1, 3))) is None
    assert hindered(PendingGraph(4, 3, -1)) is None


# ── the breaker ─────────────────────────────────────────────────────────────────────────────────────

STRATEGY = Strategy()


@pytest.mark.parametrize(
    ("groups", "settled", "why"),
    [
        ([FailedGroup("a", 1, 1, 0, ("x",))], 1, "1 of the canaries failed"),
        ([FailedGroup("a", 3, 0, 0)], 1_000, "3 graphs failed with one error group"),
        (
            [FailedGroup("a", 1, 0, 1), FailedGroup("b", 1, 0, 1)],
            200,
            "hops of 2 graphs killed their process",
        ),
        ([FailedGroup("a", 3, 0, 3)], 200, "hops of 3 graphs killed their process"),
        ([FailedGroup(g, 1, 0, 0) for g in "abc"], 200, "3 of the last 200 settled graphs failed"),
        ([FailedGroup(g, 1, 0, 0) for g in "abc"], 300, None),
        ([FailedGroup("a", 2, 0, 0)], 10, None),
        ([], 200, None),
    ],
)
def test_each_limit_of_the_breaker(groups: list[FailedGroup], settled: int, why: str | None) -> None:
    found = breaker(groups, settled, sum(g.count for g in groups), STRATEGY)
    assert (found and found.why) == why
