"""Regressions about operators' verbs, each played as one story."""

from __future__ import annotations

import pytest

from graph_migrator.core.errors import (
    GraphPartiallyMigrated,
    IllegalTransition,
    PartiallyMigrated,
)
from graph_migrator.core.execution.model import Failed
from tests.simulation.story import Story


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
