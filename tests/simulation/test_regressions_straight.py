"""A migration on one session that keeps the lock from begin to end, as a pack runs it; each as one story."""

from __future__ import annotations

import pytest

from graph_migrator.core.decisions import Ignored
from graph_migrator.core.execution.model import Applied, Failed
from tests.simulation.story import DONE, Story


def test_a_straight_migration_commits_each_hop_and_answers(plain: Story) -> None:
    call = plain.call("migrate_straight")
    outcome = plain.take("migrate_straight").outcome
    assert isinstance(outcome, Applied)
    assert outcome.report is not None
    assert [hop.rows_changed for hop in outcome.report.hops] == [5, 5, 5]
    assert (plain.attempts, plain.answer(call)) == (DONE, "SUCCESS")
    plain.rest()


@pytest.mark.parametrize(
    ("point", "attempts"),
    [
        ("begin_before_commit", DONE),
        ("begin_committed", ["1>2 lost", *DONE]),
        ("hop_before_commit", ["1>2 lost", *DONE]),
        ("hop_committed", ["1>2 succeeded", "2>3 lost", *DONE[1:]]),
    ],
)
def test_a_process_that_dies_costs_the_hop_that_is_open(
    plain: Story, point: str, attempts: list[str]
) -> None:
    call = plain.call("migrate_straight")
    plain.strike(point, "die")
    plain.script.redelivers = True
    plain.take("migrate_straight")
    plain.rest()
    assert (plain.attempts, plain.answer(call)) == (attempts, "SUCCESS")


@pytest.mark.parametrize(
    ("point", "attempts"),
    [
        ("before begin_and_open", ["1>2 lost", *DONE]),
        ("before finish_and_open", ["1>2 succeeded", "2>3 lost", *DONE[1:]]),
    ],
)
def test_a_commit_whose_answer_is_lost_is_believed(plain: Story, point: str, attempts: list[str]) -> None:
    call = plain.call("migrate_straight")
    plain.strike(point, "in_flight")
    plain.take("migrate_straight")
    plain.rest()
    assert (plain.attempts, plain.answer(call)) == (attempts, "SUCCESS")


@pytest.mark.parametrize(("verb", "ends"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_wish_of_an_operator_ends_it_at_the_next_boundary(plain: Story, verb: str, ends: str) -> None:
    plain.call("migrate_straight")
    straight = plain.take("migrate_straight", until="hop_in_data")
    plain.do(verb)
    plain.goes_to_its_end(straight)
    assert plain.attempts == ["1>2 succeeded"]
    plain.rest()
    assert (plain.status, plain.attempts, plain.version) == (ends, ["1>2 succeeded"], 2)


def test_a_pause_that_is_taken_back_in_the_same_hop_changes_nothing(plain: Story) -> None:
    plain.call("migrate_straight")
    straight = plain.take("migrate_straight", until="hop_in_data")
    plain.do("pause")
    plain.do("resume")
    assert isinstance(plain.goes_to_its_end(straight), Applied)
    assert plain.attempts == DONE


def test_a_hop_that_fails_is_recorded_as_in_a_chain_and_retried(plain: Story) -> None:
    call = plain.call("migrate_straight")
    plain.script.raises += ["go", "error"]
    assert isinstance(plain.take("migrate_straight").outcome, Failed)
    assert (plain.status, plain.attempts) == ("failed", ["1>2 succeeded", "2>3 failed"])
    assert plain.answer(call) == "FAILURE"
    plain.do("retry")
    plain.rest()
    assert plain.attempts == ["1>2 succeeded", "2>3 failed", *DONE[1:]]


def test_a_transient_error_leaves_the_rest_to_a_chain(plain: Story) -> None:
    plain.call("migrate_straight")
    plain.script.raises += ["go", "shaky"]
    plain.take("migrate_straight")
    assert plain.attempts == ["1>2 succeeded", "2>3 failed"]
    plain.rest()
    assert plain.attempts == ["1>2 succeeded", "2>3 failed", *DONE[1:]]


def test_a_second_delivery_begins_nothing(plain: Story) -> None:
    plain.call("migrate_straight")
    message = plain.find("migrate_straight")
    first = plain.take(message, keep=True, until="hop_in_data")
    assert isinstance(plain.take(message).outcome, Ignored)
    plain.goes_to_its_end(first)
    plain.rest()
    assert plain.attempts == DONE


def test_a_graph_that_was_taken_since_it_was_read_is_begun_by_nobody_else(plain: Story) -> None:
    plain.call("migrate_straight", target=3)
    late = plain.take("migrate_straight", until="begin_before_commit")
    plain.begun()
    plain.goes_to_its_end(late)
    plain.rest()
    assert plain.attempts == DONE


def test_a_session_that_lost_its_graph_opens_nothing(plain: Story) -> None:
    plain.call("migrate_straight")
    straight = plain.take("migrate_straight", until="hop_before_commit")
    straight.process.cut()
    plain.time_passes()
    plain.swept()
    assert plain.attempts == ["1>2 lost"]
    plain.goes_to_its_end(straight)
    plain.rest()
    assert plain.attempts == ["1>2 lost", *DONE]
