"""What is done with what is found: the design's tables, row by row, with literals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from graph_migrator.core.decisions import (
    AlreadyThere,
    Answer,
    Begin,
    BeginDecision,
    CodeDiffers,
    HopDecision,
    HopMessage,
    Ignored,
    IsInFlight,
    IsPartiallyMigrated,
    KnownRequest,
    Later,
    LeaveAlone,
    Limits,
    Losses,
    LossLimitReached,
    NoSuchGraph,
    PassOn,
    Postpone,
    RecoveryDecision,
    Redeliver,
    Redispatch,
    Requeue,
    ResumeFailed,
    Run,
    StopAtBoundary,
    decide_begin,
    decide_hop,
    decide_recovery,
    deploy_pause,
    deploy_waited,
    loss_pause,
)

GRAPH, MINE, OTHER = UUID(int=1), UUID(int=2), UUID(int=3)
HALF = {"to_version": 2, "cursor": ["n5"], "done": 5}
LIMITS = Limits(crashes=3, interruptions=6, deploy_seconds=900, transient_tries=8)

# ── migrate_graph ───────────────────────────────────────────────────────────────────────────────────


def begin(target: int = 3, *, finish: bool = False, **found: Any) -> BeginDecision:
    facts: dict[str, Any] = {
        "graph_id": GRAPH,
        "version": 1,
        "claim": None,
        "partially_migrated": None,
        "status": None,
        "to_version": None,
        "checkpoint": None,
        "request_known": False,
        "request_migration": None,
    }
    return decide_begin(SimpleNamespace(**facts | found), target, finish_partially_migrated=finish)


LIVE = ["queued", "running", "pausing", "paused", "cancelling"]


def test_a_free_graph_begins() -> None:
    assert begin() == Begin()


def test_a_graph_at_its_target_has_nothing_to_do() -> None:
    assert begin(target=1) == AlreadyThere()


def test_an_unknown_graph_is_no_graph() -> None:
    assert begin(graph_id=None, version=None) == NoSuchGraph()


@pytest.mark.parametrize("status", LIVE)
@pytest.mark.parametrize("target", [1, 3, 4])
def test_a_live_migration_is_in_flight_whatever_the_target(status: str, target: int) -> None:
    assert begin(target, claim=OTHER, status=status, to_version=3) == IsInFlight()


def test_a_failed_migration_to_the_same_target_is_resumed() -> None:
    assert begin(3, claim=OTHER, status="failed", to_version=3) == ResumeFailed()
    assert begin(3, claim=OTHER, status="failed", to_version=3, checkpoint=HALF) == ResumeFailed()


def test_a_failed_migration_to_another_target_is_replaced() -> None:
    assert begin(2, claim=OTHER, status="failed", to_version=3) == Begin(releases=OTHER)
    assert begin(1, claim=OTHER, status="failed", to_version=3) == Begin(releases=OTHER)


def test_a_failed_migration_half_way_through_a_batched_hop_goes_nowhere_else() -> None:
    assert begin(4, claim=OTHER, status="failed", to_version=3, checkpoint=HALF) == IsPartiallyMigrated()


def test_a_force_released_partially_migrated_graph_is_refused_until_somebody_means_to_finish_it() -> None:
    assert begin(partially_migrated=HALF) == IsPartiallyMigrated()
    assert begin(target=1, partially_migrated=HALF) == IsPartiallyMigrated()
    assert begin(partially_migrated=HALF, finish=True) == Begin()
    assert begin(target=1, partially_migrated=HALF, finish=True) == Begin()


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"graph_id": None, "version": None},
        {"partially_migrated": HALF},
        *({"claim": OTHER, "status": status, "to_version": 3} for status in [*LIVE, "failed"]),
    ],
)
def test_a_known_request_is_answered_before_anything_else(found: dict[str, Any]) -> None:
    assert begin(request_known=True, **found) == KnownRequest()


# ── run_hop: the message table ──────────────────────────────────────────────────────────────────────

MESSAGE = HopMessage(MINE, from_version=2, to_version=3, dispatch=7)


def hop(
    message: HopMessage = MESSAGE, fingerprint: str | None = "planned", limits: Limits = LIMITS, **found: Any
) -> HopDecision:
    """The decision about a hop v2→v3 of a migration v1→v4, where nothing is unusual but `found`."""
    facts: dict[str, Any] = {
        "graph_id": GRAPH,
        "version": 2,
        "claim": MINE,
        "status": "running",
        "dispatch": 7,
        "from_version": 1,
        "to_version": 4,
        "hop": {"name": "second", "fingerprint": "planned"},
        "locked": True,
        "running_id": None,
        "running_to": None,
        "running_dispatch": None,
        "running_batches": None,
        "running_crashed": False,
        "next_hop_started": False,
        "interruptions": 0,
        "crashes": 0,
        "how_crashed": None,
        "mismatches": 0,
        "mismatch_seconds": 0.0,
        "shards": 0,
        "shard": None,
        "undo": None,
    }
    return decide_hop(SimpleNamespace(**facts | found), message, fingerprint, limits)


SHARD = HopMessage(MINE, from_version=2, to_version=3, dispatch=7, shard=4)


def test_a_message_of_a_shard_is_decided_like_a_hops_but_for_shards_that_are_done_or_gone() -> None:
    assert hop(SHARD, shards=9, shard={"is_done": False}) == Run(None)
    assert hop(SHARD, shards=9, shard={"is_done": False}, status="pausing") == StopAtBoundary()
    assert hop(SHARD, shards=9, shard={"is_done": True}, status="pausing") == PassOn()
    assert isinstance(hop(SHARD), Ignored)
    assert hop(SHARD, version=3) == PassOn()
    assert hop(locked=False, shards=9) == Later(5.0, "the graph's lock is held")


RUNNING = {"running_id": 11, "running_to": 3, "running_dispatch": 7, "running_batches": 0}
NOT_LOCKED = {"locked": False}

# Each row of the table: what is found, and what is done with it.
ROW: dict[int, tuple[dict[str, Any], type]] = {
    1: ({"status": "failed", "locked": False}, Answer),
    2: ({"dispatch": 8, "locked": False}, Ignored),
    3: (NOT_LOCKED | RUNNING, Ignored),
    4: (NOT_LOCKED, Later),
    5: ({"version": 3, "next_hop_started": True}, Ignored),
    6: ({"version": 3}, PassOn),
    7: ({"version": 1}, Ignored),
    8: (RUNNING, Run),
    9: ({"status": "cancelling"}, StopAtBoundary),
    10: ({"crashes": 3}, LossLimitReached),
    11: ({"hop": {"name": "second", "fingerprint": "other"}}, Requeue),
    12: ({}, Run),
}


@pytest.mark.parametrize("number", ROW)
def test_each_row_of_the_message_table(number: int) -> None:
    found, done = ROW[number]
    assert isinstance(hop(**found), done)


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled", "released"])
@pytest.mark.parametrize("dispatch", [1, 7, 8])
def test_1_a_settled_migration_is_answered_to_a_message_of_any_dispatch(status: str, dispatch: int) -> None:
    claim = MINE if status == "failed" else None
    message = HopMessage(MINE, 2, 3, dispatch)
    assert hop(message, status=status, claim=claim, version=4, locked=False) == Answer()


def test_1_it_is_answered_even_where_the_graph_was_deleted_since() -> None:
    assert hop(status="succeeded", claim=None, version=None, locked=False) == Answer()


@pytest.mark.parametrize(
    "found", [{"claim": OTHER}, {"claim": None}, {"dispatch": 8}, {"dispatch": 6}, {"status": "paused"}]
)
@pytest.mark.parametrize("locked", [True, False])
def test_2_other_claim_other_dispatch_or_paused_is_ignored(found: dict[str, Any], locked: bool) -> None:
    decision = hop(**found, locked=locked)
    assert isinstance(decision, Ignored)
    assert not decision.must_not_occur


def test_3_a_duplicate_of_the_hop_that_runs_is_ignored() -> None:
    decision = hop(**NOT_LOCKED | RUNNING)
    assert isinstance(decision, Ignored)
    assert not decision.must_not_occur


@pytest.mark.parametrize("found", [{}, RUNNING | {"running_dispatch": 6}])
def test_4_a_lock_held_for_another_reason_is_tried_again_in_a_second(found: dict[str, Any]) -> None:
    decision = hop(**NOT_LOCKED | found)
    assert isinstance(decision, Later)
    assert decision.seconds == 1


def test_5_an_applied_hop_is_ignored_once_a_later_one_has_begun_in_this_dispatch() -> None:
    assert isinstance(hop(version=3, next_hop_started=True), Ignored)
    assert isinstance(hop(version=3, next_hop_started=True, **RUNNING | {"running_to": 4}), Ignored)


def test_6_an_applied_hop_lets_the_chain_go_on() -> None:
    assert hop(version=3) == PassOn()
    assert hop(version=4) == PassOn()


def test_6_and_7_count_backwards_on_the_way_back() -> None:
    back = HopMessage(MINE, from_version=3, to_version=2, dispatch=7)
    way = {"from_version": 4, "to_version": 1}
    assert hop(back, version=2, **way) == PassOn()
    assert hop(back, version=1, **way) == PassOn()
    assert hop(back, version=3, **way) == Run(None)
    assert hop(back, version=4, **way) == Ignored("the graph is at v4", must_not_occur=True)


def test_7_a_version_before_the_hop_must_not_occur() -> None:
    assert hop(version=1) == Ignored("the graph is at v1", must_not_occur=True)


def test_8_a_running_row_under_a_free_lock_is_marked_lost_and_the_hop_runs() -> None:
    assert hop(**RUNNING) == Run(lost_id=11)


@pytest.mark.parametrize("status", ["pausing", "cancelling"])
@pytest.mark.parametrize("found", [{}, RUNNING, {"interruptions": 9}, {"crashes": 9}, {"hop": None}])
def test_9_pausing_and_cancelling_are_settled_before_poison_and_other_code(
    status: str, found: dict[str, Any]
) -> None:
    assert hop(status=status, **found) == StopAtBoundary()


def crashed(crashes: int, interruptions: int, running_id: int | None = None) -> LossLimitReached:
    return LossLimitReached(Losses(crashes, interruptions), running_id, by_crashes=True)


def test_10_a_hop_whose_process_died_too_often_is_poison() -> None:
    assert hop(crashes=2) == Run(None)
    assert hop(crashes=3) == crashed(3, 0)
    dead = RUNNING | {"running_crashed": True}  # counted among those that crashed
    assert hop(crashes=1, **dead) == hop(crashes=2, **dead) == Run(lost_id=11)
    assert hop(crashes=3, **dead) == crashed(3, 0, 11)


def test_10_a_hop_that_lost_its_worker_has_a_higher_limit() -> None:
    assert hop(interruptions=5, crashes=2) == Run(None)
    assert hop(interruptions=6) == LossLimitReached(Losses(0, 6), None, by_crashes=False)
    assert hop(interruptions=5, **RUNNING) == LossLimitReached(Losses(0, 6), 11, by_crashes=False)
    assert hop(interruptions=9, crashes=3) == crashed(3, 9), "what the hop does itself is the stronger reason"


@pytest.mark.parametrize(
    ("crashes", "interruptions", "seconds"),
    [
        (0, 0, 0.0),
        (0, 1, 0.0),
        (1, 1, 0.0),
        (2, 0, 0.0),
        (2, 1, 2.0),
        (0, 2, 5.0),
        (0, 3, 10.0),
        (0, 60, 300.0),
    ],
)
def test_the_pauses_between_interruptions_grow(crashes: int, interruptions: int, seconds: float) -> None:
    assert loss_pause(Losses(crashes, interruptions), LIMITS) == seconds


def test_10_a_message_that_comes_again_waits_as_recovery_would() -> None:
    assert hop(interruptions=0, **RUNNING) == Run(lost_id=11)
    assert hop(interruptions=1, **RUNNING) == Postpone(11, 5.0)
    assert hop(interruptions=0, crashes=2, **RUNNING) == Postpone(11, 2.0)
    assert hop(interruptions=4) == Run(None), "recovery sent it when the pause was over"


def test_10_an_attempt_that_committed_a_batch_does_not_count_as_lost() -> None:
    assert hop(interruptions=5, crashes=2, **RUNNING | {"running_batches": 1}) == Run(lost_id=11)


@pytest.mark.parametrize("found", [{"hop": {"name": "second", "fingerprint": "other"}}, {"hop": None}])
def test_11_other_code_is_requeued_for_some_time_then_fails(found: dict[str, Any]) -> None:
    assert hop(**found, mismatches=0) == Requeue(0.5)
    assert hop(**found, mismatches=90, mismatch_seconds=899.0) == Requeue(10.0)
    assert hop(**found, mismatches=2, mismatch_seconds=900.0) == CodeDiffers()


def test_the_pauses_of_a_deploy_grow_and_add_up() -> None:
    assert [deploy_pause(tries) for tries in (0, 1, 2, 8, 1_000_000)] == [0.5, 0.75, 1.125, 10.0, 10.0]
    assert deploy_waited(3) == 2.375
    assert deploy_waited(100) > 900


def test_11_a_worker_without_the_hop_puts_it_back() -> None:
    assert hop(fingerprint=None) == Requeue(0.5)


@pytest.mark.parametrize("status", ["queued", "running"])
def test_12_else_the_hop_runs(status: str) -> None:
    assert hop(status=status) == Run(None)


# What two rows have in common is decided by the one that stands first.
PRECEDENCE: list[tuple[dict[str, Any], type]] = [
    ({"status": "failed", "claim": OTHER, "dispatch": 8}, Answer),  # 1 before 2
    ({"dispatch": 8} | NOT_LOCKED | RUNNING, Ignored),  # 2 before 3
    ({"status": "paused"} | NOT_LOCKED, Ignored),  # 2 before 4
    ({"version": 3} | NOT_LOCKED, Later),  # 4 before 6
    ({"version": 3, "next_hop_started": True} | NOT_LOCKED | RUNNING, Ignored),  # 3 before 5
    ({"version": 3, "status": "cancelling"}, PassOn),  # 6 before 9: the next hop settles it
    ({"version": 3, "crashes": 3}, PassOn),  # 6 before 10
    ({"version": 3, "hop": None}, PassOn),  # 6 before 11
    ({"version": 1, "status": "cancelling"}, Ignored),  # 7 before 9
    ({"status": "pausing", "crashes": 3, "hop": None}, StopAtBoundary),  # 9 before 10 and 11
    ({"crashes": 3, "hop": None, "mismatch_seconds": 900.0}, LossLimitReached),  # 10 before 11
]


@pytest.mark.parametrize(("found", "done"), PRECEDENCE)
def test_the_first_row_that_fits_decides(found: dict[str, Any], done: type) -> None:
    assert isinstance(hop(**found), done)


# ── recovery ────────────────────────────────────────────────────────────────────────────────────────


def recovery(status: str, *, overdue: bool = False, running: bool = False, **found: Any) -> RecoveryDecision:
    facts: dict[str, Any] = {
        "status": status,
        "overdue": overdue,
        "running_id": 11 if running else None,
        "running_batches": 0 if running else None,
        "running_crashed": False,
        "interruptions": 0,
        "crashes": 0,
        "how_crashed": None,
    }
    return decide_recovery(SimpleNamespace(**facts | found), LIMITS)


@pytest.mark.parametrize("status", ["pausing", "cancelling"])
@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("lost", [0, 9])
def test_recovery_settles_what_nobody_executes(status: str, running: bool, lost: int) -> None:
    assert recovery(status, running=running, interruptions=lost) == StopAtBoundary()


@pytest.mark.parametrize("status", ["queued", "running"])
def test_recovery_sends_a_crashed_migration_again_under_a_new_dispatch(status: str) -> None:
    assert recovery(status, running=True) == Redispatch()
    assert recovery(status, running=True, overdue=True, interruptions=1) == Redispatch(pause=5.0)


@pytest.mark.parametrize("status", ["queued", "running"])
def test_recovery_gives_a_poison_hop_up(status: str) -> None:
    assert recovery(status, running=True, running_crashed=True, crashes=3) == crashed(3, 0, 11)
    assert recovery(status, running=True, running_batches=1, crashes=2, interruptions=9) == Redispatch()
    assert recovery(status, running=True, interruptions=5) == LossLimitReached(
        Losses(0, 6), 11, by_crashes=False
    )


@pytest.mark.parametrize("status", ["queued", "running"])
def test_recovery_redelivers_a_waiting_migration_past_its_deadline_only(status: str) -> None:
    assert recovery(status) == LeaveAlone()
    assert recovery(status, overdue=True) == Redeliver()


@pytest.mark.parametrize("status", ["paused", "succeeded", "failed", "cancelled", "released"])
def test_recovery_leaves_everything_else_alone(status: str) -> None:
    assert recovery(status, overdue=True) == LeaveAlone()
