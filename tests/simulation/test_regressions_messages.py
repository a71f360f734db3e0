"""Regressions about messages that come twice or late, each played as one story."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graph_migrator.core.decisions import Ignored, Later, Limits
from graph_migrator.core.errors import (
    MigrationCancelled,
    MigrationReleased,
)
from graph_migrator.core.execution import run_hop
from graph_migrator.core.execution.model import Applied, Failed
from tests.simulation.story import DONE, Story
from tests.simulation.world import Process

# ── a duplicated migrate_graph ────────────────────────────────────────────────────────────────────────


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
    refused = plain.take(second, until="after lock_and_load_graph", keep=True)
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
    refused = plain.take(second, until="after lock_and_load_graph", keep=True)
    plain.script.raises.append("error")
    plain.take()
    first = plain.take(second, until="before retry_migration", keep=False)
    plain.goes_to_its_end(refused)
    assert plain.answer(second) == "FAILURE"
    assert isinstance(plain.goes_to_its_end(first), Later)
    plain.rest()
    assert plain.answer(second) == "FAILURE"
    assert (plain.status, plain.dispatch, plain.attempts) == ("failed", 1, ["1>2 failed"])


# ── a late hop message ────────────────────────────────────────────────────────────────────────────────


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


# ── a look that opens the hop ─────────────────────────────────────────────────────────────────────────


def test_an_opening_whose_answer_is_lost_is_a_lost_attempt(plain: Story) -> None:
    call = plain.begun(2)
    plain.strike("after lock_and_open_hop", "lose")
    assert isinstance(plain.take().outcome, Later)
    assert plain.attempts == ["1>2 running"]
    plain.rest()
    assert plain.attempts == ["1>2 lost", "1>2 succeeded"]
    assert plain.answer(call) == "SUCCESS"


def test_an_opening_that_arrives_when_its_executor_is_gone(plain: Story) -> None:
    call = plain.begun(2)
    plain.strike("before lock_and_open_hop", "in_flight")
    plain.take()
    assert plain.attempts == []
    plain.end_lingering()
    assert plain.attempts == ["1>2 running"]
    plain.rest()
    assert plain.attempts == ["1>2 lost", "1>2 succeeded"]
    assert plain.answer(call) == "SUCCESS"


def test_an_operator_between_begin_and_look_goes_first(plain: Story) -> None:
    call = plain.begun()
    held = plain.take(until="before lock_and_open_hop")
    plain.do("pause")
    plain.goes_to_its_end(held)
    assert (plain.status, plain.attempts) == ("paused", [])
    plain.do("resume")
    plain.rest()
    assert plain.attempts == DONE
    assert plain.answer(call) == "SUCCESS"
