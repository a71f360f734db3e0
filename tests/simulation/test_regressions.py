"""What broke an earlier draft of the design, each as a script: who does what, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg2
import pytest

from graph_migrator.core.decisions import Ignored, Later, Limits
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.errors import (
    GraphPartiallyMigrated,
    HopCrashedRepeatedly,
    IllegalTransition,
    MigrationCancelled,
    MigrationReleased,
    PartiallyMigrated,
)
from graph_migrator.core.execution import run_hop
from graph_migrator.core.execution.model import Applied, Failed
from graph_migrator.core.execution.recovery import Sweep
from graph_migrator.core.settings import settings
from tests.simulation.runs import make_database, make_platform
from tests.simulation.story import Story
from tests.simulation.world import Platform, Process


@pytest.fixture(scope="module")
def platform(postgres: Postgres) -> Iterator[Platform]:
    platform = make_platform(make_database(postgres, "regressions"))
    yield platform
    platform.close()


@pytest.fixture
def stories(platform: Platform) -> Iterator[list[Story]]:
    shown: list[Story] = []
    with platform.running():
        platform.clean()
        yield shown
        for story in shown:
            print("\n".join(story.trace))
            story.tear_down()


@pytest.fixture
def plain(platform: Platform, stories: list[Story]) -> Story:
    """A graph whose hops are one transaction each, v1 to v4."""
    stories.append(Story(platform, "plain"))
    return stories[-1]


@pytest.fixture
def batched(platform: Platform, stories: list[Story]) -> Story:
    """A graph whose first hop has three batches and whose second is one transaction, v1 to v3."""
    stories.append(Story(platform, "batched"))
    return stories[-1]


DONE = ["1>2 succeeded", "2>3 succeeded", "3>4 succeeded"]

# ── a duplicated migrate_graph ──────────────────────────────────────────────────────────────────────


def test_duplicated_migrate_graph_after_the_crash_between_begin_and_sending(plain: Story) -> None:
    call = plain.call("migrate_graph")
    plain.script.redelivers = True
    plain.strike("begin_committed", "die")
    plain.take("migrate_graph")
    assert plain.status == "queued"
    plain.take("migrate_graph")
    assert [message.task for message in plain.queue] == ["run_hop"]
    plain.rest()
    assert plain.attempts == DONE
    assert len(plain.snapshot()["migrations"]) == 1
    assert plain.answer(call) == "SUCCESS"


def test_duplicated_migrate_graph_after_success(plain: Story) -> None:
    call = plain.begun()
    plain.rest()
    again = plain.take(call)
    assert again.outcome.status == "succeeded"
    plain.rest()
    assert plain.attempts == DONE
    assert len(plain.snapshot()["migrations"]) == 1


def test_duplicated_migrate_graph_after_cancel(plain: Story) -> None:
    call = plain.begun()
    plain.take()
    plain.do("cancel")
    assert plain.status == "cancelled"
    again = plain.take(call)
    assert isinstance(again.outcome, MigrationCancelled)
    plain.rest()
    assert plain.version == 2
    assert len(plain.snapshot()["migrations"]) == 1
    assert plain.answer(call) == "FAILURE"


def test_duplicated_migrate_graph_after_failure(plain: Story) -> None:
    call = plain.failed()
    again = plain.take(call)
    assert isinstance(again.outcome, ValueError)
    plain.rest()
    assert (plain.status, plain.dispatch, plain.attempts) == ("failed", 1, ["1>2 failed"])


def test_duplicate_that_is_refused_while_the_first_one_begins(plain: Story) -> None:
    """Begins on a graph that was in flight when the duplicate was refused: one of the two is the answer."""
    plain.begun(2)
    second = plain.call("migrate_graph")
    refused = plain.take(second, until="after lock_and_load", keep=True)
    plain.take()
    first = plain.take(second, until="before begin_migration", keep=False)
    plain.goes_to_its_end(refused)
    assert plain.answer(second) == "FAILURE"
    assert isinstance(plain.goes_to_its_end(first), Later)
    plain.rest()
    assert plain.answer(second) == "FAILURE"
    assert plain.version == 2


def test_duplicate_that_is_refused_while_the_first_one_retries(plain: Story) -> None:
    plain.begun()
    second = plain.call("migrate_graph")
    refused = plain.take(second, until="after lock_and_load", keep=True)
    plain.script.raises.append("error")
    plain.take()
    first = plain.take(second, until="before retry_migration", keep=False)
    plain.goes_to_its_end(refused)
    assert plain.answer(second) == "FAILURE"
    assert isinstance(plain.goes_to_its_end(first), Later)
    plain.rest()
    assert plain.answer(second) == "FAILURE"
    assert (plain.status, plain.dispatch, plain.attempts) == ("failed", 1, ["1>2 failed"])


# ── a late hop message ──────────────────────────────────────────────────────────────────────────────


def test_late_hop_message_on_a_paused_migration(plain: Story) -> None:
    call = plain.begun()
    late = plain.find()
    plain.do("pause")
    assert plain.status == "paused"
    assert isinstance(plain.take(late).outcome, Ignored)
    assert (plain.status, plain.attempts) == ("paused", [])
    plain.do("resume")
    assert isinstance(plain.take(late).outcome, Ignored), (
        "resumed under a new dispatch; the old message is over"
    )
    plain.rest()
    assert plain.attempts == DONE
    assert plain.answer(call) == "SUCCESS"


def test_late_hop_message_on_a_failed_migration(plain: Story) -> None:
    call = plain.begun()
    late = plain.find()
    plain.script.raises.append("error")
    plain.take()
    assert isinstance(plain.take(late).outcome, Failed)
    assert (plain.status, plain.attempts) == ("failed", ["1>2 failed"])
    plain.rest()
    assert plain.answer(call) == "FAILURE"


def test_late_hop_message_on_a_released_migration(plain: Story) -> None:
    call = plain.begun()
    late = plain.find()
    plain.script.raises.append("error")
    plain.take()
    plain.do("release")
    shown = plain.take(late).outcome
    assert isinstance(shown, Failed)
    assert isinstance(shown.error, MigrationReleased)
    second = plain.begun()
    assert isinstance(plain.take(late).outcome, Failed), "another migration owns the graph"
    plain.rest()
    assert plain.attempts == ["1>2 failed", *DONE]
    assert (plain.answer(call), plain.answer(second)) == ("FAILURE", "SUCCESS")


def test_later_hop_of_an_older_dispatch_does_not_make_a_hop_look_superseded(plain: Story) -> None:
    plain.begun()
    plain.take()
    whole = plain.find()
    plain.strike("hop_in_data", "die")
    plain.take()  # 2→3 begins in dispatch 1 and is lost
    plain.swept()
    assert plain.dispatch == 2
    plain.queue.clear()
    first = replace(plain.migration_step(1, whole), dispatch=2)
    assert isinstance(plain.take(first).outcome, Applied), (
        "it must hand the chain on: nobody else of dispatch 2 will"
    )
    assert [str(message.chain[0].to_version) for message in plain.queue] == ["3"]
    plain.rest()
    assert plain.attempts == ["1>2 succeeded", "2>3 lost", "2>3 succeeded", "3>4 succeeded"]


def test_a_later_hop_of_the_same_dispatch_supersedes_a_duplicate(plain: Story) -> None:
    plain.begun()
    late = plain.find()
    plain.take()
    second = plain.take(until="hop_in_data")
    assert isinstance(plain.take(late).outcome, Ignored)
    plain.goes_to_its_end(second)
    assert isinstance(plain.take(late).outcome, Ignored), "else the tail would be published twice"
    assert len(plain.queue) == 1
    plain.rest()
    assert plain.attempts == DONE


def test_code_changed_under_a_duplicate_of_an_applied_hop(plain: Story) -> None:
    call = plain.begun()
    plain.script.redelivers = True
    plain.strike("hop_left", "die")
    plain.take()
    assert plain.attempts == ["1>2 succeeded"]
    assert isinstance(plain.take(code="B").outcome, Applied), (
        "it is applied: whose code is whose does not matter"
    )
    for process in plain.workers:
        process.code = "A"
    plain.rest()
    assert plain.attempts == DONE
    assert plain.answer(call) == "SUCCESS"


def test_code_that_differs_is_requeued_and_then_fails(plain: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    call = plain.begun()
    for process in plain.workers:
        process.code = "B"
    monkeypatch.setattr(run_hop, "limits_of_settings", lambda: Limits(deploy_seconds=900))
    for _ in range(9):
        assert isinstance(plain.take().outcome, Later)
    monkeypatch.setattr(run_hop, "limits_of_settings", lambda: Limits(deploy_seconds=0))  # the time is over
    assert isinstance(plain.take().outcome, Failed)
    plain.rest()
    assert (plain.status, plain.attempts, plain.answer(call)) == ("failed", [], "FAILURE")
    operator = Process(plain, "operator", "B")
    plain.goes_to_its_end(plain.command("retry", operator))
    plain.rest()
    assert plain.attempts == DONE
    assert plain.answer(call) == "SUCCESS"


# ── fences ──────────────────────────────────────────────────────────────────────────────────────────


def test_stale_executor_of_the_same_dispatch_does_not_fail_its_successors_hop(plain: Story) -> None:
    plain.begun()
    message = plain.find()
    stale = plain.take(until="hop_in_data", keep=True)
    stale.process.cut()
    successor = plain.take(message, until="hop_in_data", keep=False)
    assert plain.attempts == ["1>2 lost", "1>2 running"]
    plain.script.raises.append("error")
    # It raises, finds its session gone, and waits for the lock to see what became of its attempt.
    plain.go(stale)
    assert plain.attempts == ["1>2 lost", "1>2 running"]
    plain.goes_to_its_end(successor)
    plain.rest()
    assert plain.attempts == ["1>2 lost", *DONE]


def test_commit_applied_and_its_answer_lost(plain: Story) -> None:
    call = plain.begun(2)
    plain.strike("after finish_hop", "lose")
    assert isinstance(plain.take().outcome, Applied)
    assert plain.attempts == ["1>2 succeeded"]
    assert plain.answer(call) == "SUCCESS"
    plain.rest()


def test_commit_in_flight_when_the_connection_is_lost(plain: Story) -> None:
    call = plain.begun(2)
    plain.strike("before finish_hop", "in_flight")
    executor = plain.take()
    assert executor.blocked, "the row is believed only once the lock is free: the commit may still arrive"
    plain.end_lingering()
    assert isinstance(plain.goes_to_its_end(executor), Applied)
    assert plain.attempts == ["1>2 succeeded"]
    assert plain.answer(call) == "SUCCESS"
    plain.rest()


def test_commit_lost_with_its_connection_is_tried_again(plain: Story) -> None:
    plain.begun(2)
    plain.strike("before finish_hop", "lose")
    assert isinstance(plain.take().outcome, Later)
    assert plain.attempts == ["1>2 failed"]
    plain.rest()
    assert plain.attempts == ["1>2 failed", "1>2 succeeded"]


@pytest.mark.parametrize("names_the_migration", [False, True])
@pytest.mark.parametrize("kind", ["plain", "batched"])
def test_silent_reconnect_without_the_lock_writes_nothing(
    request: pytest.FixtureRequest, kind: str, names_the_migration: bool
) -> None:
    story: Story = request.getfixturevalue(kind)
    story.begun(2)
    message = story.find()
    stale = story.take(until="hop_opened" if kind == "plain" else "batch_committed", keep=True)
    (link,) = stale.process.links
    story.server.release_claim(link.real)
    link.real = story.server.take()
    if names_the_migration:
        with link.real.cursor() as cursor:
            cursor.execute("SELECT graph_migrator.become_executor(%s)", (story.migration["id"],))
    successor = story.take(message, until="before finish_hop", keep=False)
    story.go(stale)
    assert story.version == 1
    assert story.attempts == ["1>2 lost", "1>2 running"]
    story.goes_to_its_end(successor)
    story.rest()
    assert story.attempts == ["1>2 lost", "1>2 succeeded"]


def test_release_force_between_two_batches(batched: Story) -> None:
    call = batched.begun()
    stale = batched.take(until="batch_committed")
    stale.process.cut()
    batched.do("release", force=True)
    assert (batched.status, batched.attempts) == ("released", ["1>2 lost"])
    assert batched.partially_migrated["done"] == 2
    shown = batched.goes_to_its_end(stale)
    assert isinstance(shown, Failed)
    assert isinstance(shown.error, MigrationReleased)
    assert isinstance(batched.begun().arguments, dict)
    assert isinstance(batched.results.value(batched.last_call.id), GraphPartiallyMigrated)
    batched.do("retry")
    batched.rest()
    assert batched.version == 3
    assert batched.answer(call) == "FAILURE"


def test_release_force_ends_a_holder_that_hangs_only_when_asked_to(
    batched: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS", "0.05")
    settings.cache_clear()
    batched.begun()
    hung = batched.take(until="batch_committed")
    busy = batched.command("release", force=True)
    batched.go(busy)
    _until_done(batched, busy)
    assert type(busy.outcome).__name__ == "GraphBusy"
    done = batched.command("release", force=True, terminate=True)
    batched.go(done)
    _until_done(batched, done)
    assert batched.status == "released"
    shown = batched.goes_to_its_end(hung)
    assert isinstance(shown, Failed)
    assert batched.partially_migrated["done"] == 2
    batched.rest()


def _writes(story: Story) -> dict[str, tuple[Any, ...]]:
    """Every function that an executor writes with, as the running attempt would call it."""
    now = story.snapshot()
    attempt, migration, graph = now["attempts"][-1]["id"], now["graph"]["claim"], str(story.graph_id)
    return {
        "finish_hop": (attempt, migration, graph, 1, 2, "succeeded", 0, None, False, False),
        "fail_attempt": (attempt, migration, graph, False, True, "builtins.ValueError", "", None, "", 30),
        "open_batch": (attempt, migration, graph),
        "save_batch": (attempt, migration, 2, '["n2"]', 2, 2, 30),
    }


def _call(session: Any, function: str, arguments: tuple[Any, ...], *, schema: str = "graph_migrator") -> Any:
    """What the function returns, or the error that it refuses with."""
    marks = ", ".join(["%s"] * len(arguments))
    try:
        with session.cursor() as cursor:
            cursor.execute(f"SELECT {schema}.{function}({marks})", arguments)
            return cursor.fetchone()[0]
    except psycopg2.Error as refusal:
        return f"{refusal.pgcode}: {refusal}"


@pytest.mark.parametrize("function", ["finish_hop", "fail_attempt", "open_batch"])
def test_each_write_proves_the_lock_however_well_the_session_knows_the_names(
    batched: Story, function: str
) -> None:
    batched.begun()
    executor = batched.take(until="hop_opened")
    other = batched.server.take()
    _call(other, "become_executor", (batched.migration["id"],))
    refusal = _call(other, function, _writes(batched)[function])
    assert refusal.startswith("GM001")
    assert "is not the executor" in refusal
    batched.server.release_claim(other)
    batched.goes_to_its_end(executor)
    batched.rest()
    assert batched.version == 3


@pytest.mark.parametrize("function", ["finish_hop", "fail_attempt", "open_batch"])
def test_each_write_proves_the_name_although_the_lock_is_held(batched: Story, function: str) -> None:
    batched.begun()
    executor = batched.take(until="hop_opened")
    (link,) = executor.process.links
    for name in ("", str(batched.graph_id)):
        _call(link.real, "set_config", ("graph_migrator.executor", name, False), schema="pg_catalog")
        refusal = _call(link.real, function, _writes(batched)[function])
        assert refusal.startswith("GM001")
        assert "is not the executor" in refusal
    _call(link.real, "become_executor", (batched.migration["id"],))
    batched.goes_to_its_end(executor)
    batched.rest()
    assert batched.version == 3


@pytest.mark.parametrize("function", ["finish_hop", "fail_attempt", "open_batch", "save_batch"])
def test_each_write_proves_its_attempt_although_the_lock_is_held(batched: Story, function: str) -> None:
    batched.begun()
    executor = batched.take(until="hop_opened")
    arguments = _writes(batched)[function]
    (link,) = executor.process.links
    batched.server.query(
        "UPDATE hop_attempts SET status = 'lost', finished_at = now() WHERE id = %s", arguments[0]
    )
    refusal = _call(link.real, function, arguments)
    assert refusal is False if function == "fail_attempt" else "no longer running" in refusal
    batched.goes_to_its_end(executor)
    batched.rest()
    assert (batched.version, batched.attempts[0]) == (3, "1>2 lost")


# ── recovery ────────────────────────────────────────────────────────────────────────────────────────


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
    for _ in range(settings().max_lost_attempts):
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
    for _ in range(settings().max_lost_attempts):
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
    for _ in range(settings().max_lost_attempts):
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


# ── operators ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_asked_during_the_last_batch_of_the_last_hop(batched: Story, verb: str) -> None:
    call = batched.begun(2)
    executor = batched.take(until="before finish_hop")
    batched.do(verb)
    batched.goes_to_its_end(executor)
    assert (batched.status, batched.version, batched.answer(call)) == ("succeeded", 2, "SUCCESS")
    batched.rest()


@pytest.mark.parametrize(("verb", "becomes"), [("pause", "paused"), ("cancel", "cancelled")])
def test_asked_during_the_last_batch_of_a_hop(batched: Story, verb: str, becomes: str) -> None:
    call = batched.begun()
    executor = batched.take(until="before finish_hop")
    batched.do(verb)
    batched.goes_to_its_end(executor)
    assert batched.version == 2
    batched.rest()
    assert (batched.status, batched.version) == (becomes, 2)
    assert batched.answer(call) == ("PENDING" if verb == "pause" else "FAILURE")
    if verb == "pause":
        batched.do("resume")
        batched.rest()
        assert batched.answer(call) == "SUCCESS"


@pytest.mark.parametrize(("verb", "becomes"), [("pause", "paused"), ("cancel", "cancelled")])
@pytest.mark.parametrize("crashed", [False, True])
def test_asked_with_no_executor_alive(plain: Story, verb: str, becomes: str, crashed: bool) -> None:
    plain.begun()
    if crashed:
        plain.strike("hop_in_data", "die")
        plain.take()
    plain.queue.clear()
    plain.do(verb)
    assert plain.status == becomes
    assert plain.attempts == (["1>2 lost"] if crashed else [])
    plain.rest()


def test_asked_and_then_the_executor_dies(plain: Story) -> None:
    call = plain.begun()
    executor = plain.take(until="hop_in_data")
    plain.do("cancel")
    assert plain.status == "cancelling"
    plain.kill(executor)
    plain.swept()
    assert (plain.status, plain.attempts) == ("cancelled", ["1>2 lost"])
    plain.rest()
    assert plain.answer(call) == "FAILURE"


def test_cancel_half_way_through_a_batched_hop(batched: Story) -> None:
    call = batched.begun()
    executor = batched.take(until="batch_committed")
    batched.do("cancel")
    shown = batched.goes_to_its_end(executor)
    assert isinstance(shown, Failed)
    assert isinstance(shown.error, PartiallyMigrated)
    assert (batched.status, batched.attempts) == ("failed", ["1>2 stopped"])
    assert batched.snapshot()["graph"]["claim"] is not None
    assert isinstance(batched.do("release"), GraphPartiallyMigrated)
    batched.begun(1)
    assert isinstance(batched.results.value(batched.last_call.id), GraphPartiallyMigrated)
    batched.do("retry")
    batched.rest()
    assert (batched.version, batched.answer(call)) == (3, "SUCCESS")


def test_release_force_half_way_through_a_batched_hop(batched: Story) -> None:
    call = batched.begun()
    batched.strike("batch_committed", "die")
    batched.take()
    batched.do("release", force=True)
    assert (batched.status, batched.attempts) == ("released", ["1>2 lost"])
    assert batched.partially_migrated is not None
    batched.begun()
    assert isinstance(batched.results.value(batched.last_call.id), GraphPartiallyMigrated)
    batched.do("release", whole=True)
    assert batched.partially_migrated is None
    batched.begun()
    batched.rest()
    assert (batched.version, batched.answer(call)) == (3, "FAILURE")


def test_retry_to_another_target(plain: Story) -> None:
    call = plain.begun()
    plain.take()
    plain.script.raises.append("error")
    plain.take()
    second = plain.begun(1)
    plain.rest()
    assert [m["status"] for m in plain.snapshot()["migrations"]] == ["released", "succeeded"]
    assert plain.version == 1
    assert (plain.answer(call), plain.answer(second)) == ("FAILURE", "SUCCESS")


def test_retry_to_another_target_half_way_through_a_batched_hop_is_refused(batched: Story) -> None:
    batched.begun()
    batched.script.raises = ["go", "error"]
    batched.take()
    assert batched.status == "failed"
    batched.begun(2)
    assert isinstance(batched.results.value(batched.last_call.id), GraphPartiallyMigrated)
    batched.rest()


@pytest.mark.parametrize("verb", ["resume", "release"])
def test_a_verb_that_another_worker_carries_out_meanwhile_is_answered_alike(plain: Story, verb: str) -> None:
    plain.begun()
    plain.do("pause")
    asked = plain.call(verb)
    late = plain.take(asked, until="before take_lock", keep=True)
    plain.take(asked)
    shown, state = plain.results.value(asked.id), plain.snapshot()
    assert plain.answer(asked) == "SUCCESS"
    plain.goes_to_its_end(late)
    assert (plain.answer(asked), plain.results.value(asked.id)) == ("SUCCESS", shown)
    assert late.outcome == shown
    assert plain.snapshot() == state
    plain.rest()


def test_a_refused_verb_that_comes_again_acts_no_more(plain: Story) -> None:
    refused = plain.call("pause")
    plain.take(refused)
    assert isinstance(plain.results.value(refused.id), IllegalTransition)
    plain.begun()
    plain.take(refused)
    assert plain.status == "queued"
    assert isinstance(plain.results.value(refused.id), IllegalTransition)
    plain.rest()


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────


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
    stale = plain.take(late, until="before lock_and_load_hop")
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
    sweep = plain.swept(until="before report")
    stale = plain.take(late, until="before report")
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


def _until_done(story: Story, actor: Any) -> None:
    """Its lock timeout runs out in the server."""
    while not actor.done:
        story.stage.settle_one()
        story.resume(next(each for each in story.stage.actors if each is actor))
