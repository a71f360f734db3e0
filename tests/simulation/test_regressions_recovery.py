"""Regressions about recovery and the answers to callers, each played as one story."""

from __future__ import annotations

from graph_migrator.core.decisions import Ignored, Later
from graph_migrator.core.errors import (
    HopCrashedRepeatedly,
)
from graph_migrator.core.execution.model import Applied, Failed
from graph_migrator.core.execution.recovery import Sweep
from graph_migrator.core.settings import settings
from tests.simulation.story import DONE, Story

# ── recovery ──────────────────────────────────────────────────────────────────────────────────────────


def test_recovery_decides_on_a_lock_that_is_gone_when_it_acts(plain: Story) -> None:
    plain.begun()
    plain.script.redelivers = True
    plain.strike("hop_in_data", "die")
    plain.take()
    sweep = plain.swept(until="recovery_decided")
    sweep.process.cut()
    successor = plain.take(until="hop_in_data")
    assert plain.attempts == ["1>2 lost", "1>2 running"]
    assert isinstance(plain.goes_to_its_end(sweep), Exception)
    assert (plain.dispatch, plain.attempts) == (1, ["1>2 lost", "1>2 running"])
    plain.goes_to_its_end(successor)
    plain.rest()
    assert plain.attempts == ["1>2 lost", *DONE]


def test_recovery_holds_the_lock_from_deciding_to_writing(plain: Story) -> None:
    plain.begun()
    plain.script.redelivers = True
    plain.strike("hop_in_data", "die")
    plain.take()
    sweep = plain.swept(until="recovery_decided")
    assert isinstance(plain.take(keep=True).outcome, Ignored | Later), "the lock is recovery's"
    plain.goes_to_its_end(sweep)
    assert plain.dispatch == 2
    plain.rest()
    assert plain.attempts == ["1>2 lost", *DONE]


def test_recovery_does_not_renumber_what_merely_waits(plain: Story) -> None:
    plain.begun()
    waiting = plain.find()
    for _ in range(5):
        plain.time_passes()
        assert plain.swept().outcome[0].redelivered == 1
        assert plain.swept().outcome[0].is_empty, "the deadline backs off"
    assert plain.dispatch == 1
    assert isinstance(plain.take(waiting).outcome, Applied), "the first message is good still"
    plain.rest()
    assert plain.attempts == DONE


def test_recovery_of_a_crash_does_not_kill_its_own_message(plain: Story) -> None:
    plain.begun()
    plain.strike("hop_in_data", "die")
    plain.take()
    plain.swept()
    waiting = plain.find()
    assert (plain.dispatch, waiting.dispatch) == (2, 2)
    for _ in range(3):
        plain.time_passes()
        plain.swept()
    assert plain.dispatch == 2
    assert isinstance(plain.take(waiting).outcome, Applied)
    plain.rest()
    assert plain.attempts == ["1>2 lost", *DONE]


def test_queue_slower_than_the_deadline(plain: Story) -> None:
    call = plain.begun()
    for _ in range(4):
        plain.time_passes()
        plain.swept()
    assert len(plain.queue) == 5
    while plain.queue:
        plain.take()
    plain.rest()
    assert plain.attempts == DONE
    assert (plain.dispatch, plain.answer(call)) == (1, "SUCCESS")


def test_deadline_that_is_stale_after_a_one_hour_hop(plain: Story) -> None:
    plain.begun()
    slow = plain.take(until="hop_in_data")
    plain.time_passes()
    assert plain.swept().outcome[0].is_empty, "its lock is held: somebody is on it"
    plain.go(slow, until="hop_left")
    plain.swept()
    assert plain.dispatch == 1
    plain.goes_to_its_end(slow)
    following = plain.queue[-1]
    assert isinstance(plain.take(following).outcome, Applied), "its own chain goes on"
    plain.rest()
    assert plain.attempts == DONE


def test_poison_that_redelivery_hides_from_recovery(plain: Story) -> None:
    call = plain.begun()
    plain.script.redelivers = plain.script.sees_deaths = True
    for _ in range(settings().max_crashes):
        plain.strike("hop_in_data", "die")
        plain.take()
        plain.reported()
    shown = plain.take().outcome
    assert isinstance(shown, Failed)
    assert shown.error.args == (plain.slug, "step_1", 3, "signal 9")
    assert isinstance(shown.error, HopCrashedRepeatedly)
    assert plain.attempts == ["1>2 lost"] * 3
    assert plain.answer(call) == "FAILURE"
    plain.rest()


def test_poison_is_failed_by_recovery_too(plain: Story) -> None:
    call = plain.begun()
    plain.script.sees_deaths = True
    for _ in range(settings().max_crashes):
        plain.strike("hop_in_data", "die")
        plain.take()
        plain.reported()
        swept: Sweep = plain.swept().outcome[0]
    assert swept.failed_by_recovery == 1
    assert plain.attempts == ["1>2 lost"] * 3
    plain.rest()
    assert (plain.status, plain.answer(call)) == ("failed", "FAILURE")


def test_a_death_that_is_reported_after_recovery_has_found_it_is_counted(plain: Story) -> None:
    """The sweep of another worker is often quicker than the worker that saw the process die."""
    plain.begun()
    plain.script.sees_deaths = True
    for _ in range(settings().max_crashes):
        plain.strike("hop_in_data", "die")
        plain.take()
        plain.swept()
        plain.reported()
        assert plain.snapshot()["attempts"][-1]["because"] == "process"
    assert not plain.queue, "the third one may be one too many: it waits for the report"
    plain.rest()
    assert plain.attempts == ["1>2 lost"] * 3
    assert plain.migration["error"] == "graph_migrator.HopCrashedRepeatedly"


def test_three_machines_that_go_are_no_fault_of_the_hop(plain: Story) -> None:
    call = plain.begun()
    for lost in range(settings().max_interruptions - 1):
        plain.strike("hop_in_data", "die")
        plain.take()
        plain.swept()
        assert bool(plain.queue) == (lost == 0), "after the first one it pauses"
        if not plain.queue:
            plain.time_passes()
            plain.swept()
    plain.rest()
    assert plain.attempts == ["1>2 lost"] * 5 + DONE
    assert plain.answer(call) == "SUCCESS"


def test_machines_that_go_for_ever_fail_the_migration_and_the_error_says_so(plain: Story) -> None:
    plain.begun()
    for _ in range(settings().max_interruptions):
        plain.strike("hop_in_data", "die")
        plain.take()
        plain.swept()
        if not plain.queue:
            plain.time_passes()
            plain.swept()
    plain.rest()
    assert plain.attempts == ["1>2 lost"] * 6
    assert (plain.status, plain.migration["error"]) == ("failed", "graph_migrator.HopInterruptedRepeatedly")


def test_a_message_that_comes_again_does_not_get_round_the_pause(plain: Story) -> None:
    plain.begun()
    plain.script.redelivers = True
    for _ in range(2):
        plain.strike("hop_in_data", "die")
        plain.take()
    postponed = plain.take().outcome
    assert isinstance(postponed, Ignored)
    assert plain.attempts == ["1>2 lost"] * 2
    assert not plain.queue
    plain.rest()
    assert plain.attempts == ["1>2 lost"] * 2 + DONE


def test_a_session_that_was_ended_is_no_crash(plain: Story) -> None:
    plain.begun()
    spinning = plain.take(until="hop_in_data")
    spinning.process.links[0].terminate()
    plain.swept()
    assert plain.snapshot()["attempts"][-1]["because"] is None
    plain.goes_to_its_end(spinning)
    assert plain.snapshot()["attempts"][0]["because"] == "session"
    plain.rest()
    assert plain.attempts == ["1>2 lost", *DONE]


def test_transient_tries_are_not_counted_in_messages(plain: Story) -> None:
    call = plain.begun()
    plain.script.raises = ["shaky", "serialization", "shaky", "serialization"]
    for _ in range(3):
        assert isinstance(plain.take().outcome, Later)
        plain.queue.clear()  # and all that a message could have remembered
        plain.time_passes()
        plain.swept()
    assert isinstance(plain.take().outcome, Failed)
    assert plain.attempts == ["1>2 failed"] * settings().max_transient_tries
    assert plain.dispatch == 1
    plain.rest()
    assert plain.answer(call) == "FAILURE"


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────


def test_last_hop_committed_and_worker_dead_before_the_result_is_stored(plain: Story) -> None:
    call = plain.begun(2)
    plain.strike("hop_committed", "die")
    plain.take()
    assert (plain.status, plain.answer(call)) == ("succeeded", "PENDING")
    plain.swept()
    assert plain.answer(call) == "SUCCESS"
    plain.rest()


def test_stale_message_does_not_overwrite_failure_with_started(plain: Story) -> None:
    from graph_migrator.tasks.migrate import run_hop

    assert run_hop.track_started is False or not run_hop.app.conf.task_track_started
    assert not run_hop.track_started
    call = plain.begun(2)
    late = plain.find()
    assert late.id == call.id, "the last task bears the caller's id"
    plain.script.raises.append("error")
    plain.take()
    stale = plain.take(late, until="before lock_and_open_hop")
    assert plain.answer(call) == "FAILURE"
    plain.goes_to_its_end(stale)
    assert plain.answer(call) == "FAILURE"
    plain.rest()


def test_two_callers_waiting_on_one_migration(plain: Story) -> None:
    first = plain.begun()
    plain.script.raises.append("error")
    plain.strike("fail_committed", "die")
    plain.take()
    assert (plain.status, plain.answer(first)) == ("failed", "PENDING")
    second = plain.begun()
    assert len(plain.snapshot()["migrations"]) == 1, "retried"
    plain.rest()
    assert (plain.answer(first), plain.answer(second)) == ("SUCCESS", "SUCCESS")


def test_a_retry_between_finding_a_failure_and_answering_it(plain: Story) -> None:
    call = plain.begun(2)
    late = plain.find()
    plain.script.raises.append("error")
    plain.strike("fail_committed", "die")
    plain.take()
    sweep = plain.swept(until="before migration_report")
    stale = plain.take(late, until="before migration_report")
    plain.do("retry")
    plain.goes_to_its_end(sweep)
    assert isinstance(plain.goes_to_its_end(stale), Ignored)
    assert plain.answer(call) == "PENDING"
    plain.rest()
    assert plain.answer(call) == "SUCCESS"


def test_dating_the_last_change_never_meets_the_next_migrations_claim(plain: Story) -> None:
    plain.begun(2)
    plain.take()
    # As if Postgres had ended the session between the commit and the dating, which are one message.
    plain.server.query("ALTER TABLE graphs DISABLE TRIGGER graph_migrator_guard")
    plain.server.query("UPDATE graphs SET changed_at = NULL WHERE id = %s", str(plain.graph_id))
    plain.server.query("ALTER TABLE graphs ENABLE ALWAYS TRIGGER graph_migrator_guard")
    plain.begun(3)
    assert not plain.snapshot()["graph"]["dated"]
    assert isinstance(plain.swept().outcome, tuple), "one graph's date must not stop all recovery"
    plain.rest()
