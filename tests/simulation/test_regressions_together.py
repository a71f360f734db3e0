"""Several migrations whose hops share their transactions, as a pack runs them; each as one story.

The main graph has number 0; its companions were made for the call, and have the numbers from 1 on.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from graph_migrator import HopContext
from graph_migrator.core.execution.model import Applied, Failed
from tests.simulation.broker import Message
from tests.simulation.story import DONE, Story

STOPPED = ["1>2 stopped", *DONE]
"""The first hop did not share its transaction, and ran by itself."""


def begin_three(story: Story, *, place: int = 0) -> Message:
    """The message that moves the main graph, in that place, and two others."""
    return story.call("migrate_together", companions=2, place=place)


def test_graphs_that_go_together_commit_each_hop_once_and_answer(plain: Story) -> None:
    call = begin_three(plain)
    together = plain.take("migrate_together")
    assert all(isinstance(outcome, Applied) and outcome.report for outcome in together.outcome)
    assert plain.all_attempts == [DONE] * 3
    assert plain.answer(call) == "SUCCESS"
    assert plain.points["hop_before_commit"] == 3
    plain.rest()


@pytest.mark.parametrize(
    ("point", "attempts"),
    [
        ("begin_before_commit", DONE),
        ("before begin_together", DONE),
        ("begin_committed", ["1>2 lost", *DONE]),
        ("hop_in_data", ["1>2 lost", *DONE]),
        ("hop_before_commit", ["1>2 lost", *DONE]),
        ("after finish_together", ["1>2 succeeded", "2>3 lost", *DONE[1:]]),
        ("hop_committed", ["1>2 succeeded", "2>3 lost", *DONE[1:]]),
        ("hop_left", ["1>2 succeeded", "2>3 lost", *DONE[1:]]),
    ],
)
def test_a_process_that_dies_costs_each_of_them_the_hop_that_is_open(
    plain: Story, point: str, attempts: list[str]
) -> None:
    call = begin_three(plain, place=1)
    plain.strike(point, "die")
    plain.script.redelivers = True
    plain.take("migrate_together")
    plain.rest()
    assert (plain.all_attempts, plain.answer(call)) == ([attempts] * 3, "SUCCESS")


@pytest.mark.parametrize(
    ("point", "attempts"),
    [
        ("before begin_together", ["1>2 lost", *DONE]),
        ("before finish_together", ["1>2 succeeded", "2>3 lost", *DONE[1:]]),
    ],
)
def test_a_commit_whose_answer_is_lost_is_believed_for_all(
    plain: Story, point: str, attempts: list[str]
) -> None:
    call = begin_three(plain)
    plain.strike(point, "in_flight")
    plain.take("migrate_together")
    plain.rest()
    assert (plain.all_attempts, plain.answer(call)) == ([attempts] * 3, "SUCCESS")


@pytest.mark.parametrize(("point", "hop"), [("hop_in_data", 0), ("hop_left", 1)])
@pytest.mark.parametrize("is_swept", [False, True])
def test_a_hop_that_ends_its_process_is_suspected_whichever_of_them_it_is(
    plain: Story, point: str, hop: int, is_swept: bool
) -> None:
    plain.script.sees_deaths = True
    begin_three(plain, place=1)
    plain.strike(point, "die")
    plain.take("migrate_together")
    if is_swept:
        plain.time_passes()
        plain.swept()
    plain.reported()
    reasons = [[a["because"] for a in plain.snapshot(graph)["attempts"]] for graph in plain.graphs]
    assert reasons == [[None] * hop + ["process"]] * 3
    plain.rest()


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(("verb", "ends"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_wish_of_an_operator_parts_them_and_concerns_nobody_else(
    plain: Story, verb: str, ends: str, number: int
) -> None:
    begin_three(plain)
    together = plain.take("migrate_together", until="hop_before_commit")
    plain.do(verb, graph=number)
    plain.goes_to_its_end(together)
    plain.rest()
    assert plain.all_statuses == [ends if each == number else "succeeded" for each in range(3)]
    assert plain.all_attempts == [["1>2 stopped"] if each == number else STOPPED for each in range(3)]


def test_a_pause_that_is_taken_back_in_the_same_hop_does_not_part_them(plain: Story) -> None:
    begin_three(plain)
    together = plain.take("migrate_together", until="hop_before_commit")
    plain.do("pause", graph=1)
    plain.do("resume", graph=1)
    plain.goes_to_its_end(together)
    assert plain.all_attempts == [DONE] * 3
    plain.rest()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hop_that_fails_fails_its_own_migration_and_no_other(plain: Story, place: int) -> None:
    call = begin_three(plain, place=place)
    raises = ["go"] * place + ["error"]  # together
    plain.script.raises += [*raises, *["go"] * 3 * place, "error"]  # and then by itself
    together = plain.take("migrate_together")
    assert isinstance(together.outcome[place], Failed)
    assert plain.answer(call) == "FAILURE"
    plain.rest()
    assert plain.all_statuses == ["failed", "succeeded", "succeeded"]
    assert plain.all_attempts == [["1>2 stopped", "1>2 failed"], STOPPED, STOPPED]


def test_a_transient_error_is_gone_when_each_runs_by_itself(plain: Story) -> None:
    begin_three(plain)
    plain.script.raises += ["go", "go", "go", "go", "serialization"]
    plain.take("migrate_together")
    apart = ["1>2 succeeded", "2>3 stopped", *DONE[1:]]
    assert plain.all_attempts == [apart] * 3
    plain.rest()


def test_a_hop_cannot_write_what_belongs_to_those_that_go_with_it(plain: Story) -> None:
    begin_three(plain)
    plain.script.raises += ["go", "stray"]
    plain.take("migrate_together")
    plain.rest()
    assert plain.all_attempts == [STOPPED] * 3


def test_a_second_delivery_begins_nothing(plain: Story) -> None:
    call = begin_three(plain)
    message = plain.find("migrate_together")
    first = plain.take(message, keep=True, until="hop_in_data")
    plain.take(message)
    plain.goes_to_its_end(first)
    plain.rest()
    assert (plain.all_attempts, plain.answer(call)) == ([DONE] * 3, "SUCCESS")


def test_a_graph_that_was_taken_since_it_was_read_does_not_keep_the_others(plain: Story) -> None:
    begin_three(plain)
    late = plain.take("migrate_together", until="begin_before_commit")
    plain.begun(2)
    plain.goes_to_its_end(late)
    plain.rest()
    assert plain.all_attempts == [["1>2 succeeded"], DONE, DONE]


def test_a_plan_with_a_batched_hop_is_carried_out_by_each_alone(batched: Story) -> None:
    batched.begun()
    batched.rest()
    batched.call("migrate_together", target=1, companions=1)
    batched.take("migrate_together")
    batched.rest()
    back = ["3>2 succeeded", "2>1 succeeded"]
    assert batched.all_attempts == [["1>2 succeeded", "2>3 succeeded", *back], back]


def test_a_session_that_lost_its_graphs_finishes_none(plain: Story) -> None:
    begin_three(plain)
    together = plain.take("migrate_together", until="hop_before_commit")
    together.process.cut()
    plain.time_passes()
    plain.swept()
    assert plain.all_attempts == [["1>2 lost"]] * 3
    plain.goes_to_its_end(together)
    plain.rest()
    assert plain.all_attempts == [["1>2 lost", *DONE]] * 3


def test_a_long_hop_leaves_the_next_one_the_full_time(plain: Story) -> None:
    begin_three(plain)
    together = plain.take("migrate_together", until="hop_before_commit")
    plain.time_passes()
    plain.go(together, until="hop_in_data")
    late = "SELECT count(*) FROM migrations WHERE finished_at IS NULL AND deadline < now() + interval '20 s'"
    assert plain.server.query(late) == [(0,)]
    plain.goes_to_its_end(together)
    plain.rest()


def _changes_its_session(ctx: HopContext) -> None:
    ctx.execute("SELECT set_config('search_path', 'pg_catalog', false)")


def test_what_a_hop_leaves_in_the_session_is_gone_in_the_next_turn(plain: Story) -> None:
    def leaves(ctx: HopContext) -> Callable[[HopContext], None]:
        return _changes_its_session

    begin_three(plain)
    plain.script.raises += [leaves, "go", leaves]
    plain.take("migrate_together")
    assert plain.all_attempts == [DONE] * 3
    plain.rest()


def test_a_session_that_ends_while_it_parts_leaves_what_recovery_finds(plain: Story) -> None:
    begin_three(plain)
    plain.script.raises += ["error"]
    plain.strike("before part_company", "lose")
    plain.take("migrate_together")
    plain.rest()
    assert plain.all_attempts == [["1>2 lost", *DONE]] * 3


def _rolls_back(ctx: HopContext) -> None:
    ctx.connection.exec_driver_sql("ROLLBACK")
    raise ValueError("the hop has a bug")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hop_that_rolls_back_costs_the_others_nothing(plain: Story, place: int) -> None:
    begin_three(plain, place=place)
    plain.script.raises += ["go"] * place + [_rolls_back]
    plain.take("migrate_together")
    plain.rest()
    assert plain.all_attempts == [STOPPED] * 3


def _begins_another(ctx: HopContext) -> Callable[[HopContext], None]:
    return lambda _: ctx.connection.exec_driver_sql("ROLLBACK; BEGIN")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hop_that_exchanges_the_transaction_takes_no_data_from_the_others(plain: Story, place: int) -> None:
    """What those before it have written is gone; without a fence their versions would move nevertheless."""
    begin_three(plain, place=place)
    plain.script.raises += ["go"] * place + [_begins_another]
    plain.take("migrate_together")
    plain.rest()
    assert plain.all_attempts == [STOPPED] * 3


def _commits(ctx: HopContext) -> None:
    ctx.connection.exec_driver_sql("COMMIT")
    raise ValueError("the hop has a bug")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hop_that_commits_commits_nothing_of_the_others(plain: Story, place: int) -> None:
    """What those before it have written would be committed without their versions, and then be done once more."""
    begin_three(plain, place=place)
    plain.script.raises += ["go"] * place + [_commits]
    plain.take("migrate_together")
    plain.rest()
    assert plain.all_attempts == [STOPPED] * 3


def _unlocks_everything(ctx: HopContext) -> None:
    ctx.execute("SELECT pg_advisory_unlock_all()")


def test_who_parts_ends_no_attempt_of_somebody_else(plain: Story) -> None:
    """A hop has released the locks, and another process has taken a graph since the rollback."""

    def unlocks_and_raises(ctx: HopContext) -> None:
        _unlocks_everything(ctx)
        raise ValueError("the hop has a bug")

    begin_three(plain)
    plain.script.raises += [unlocks_and_raises]
    together = plain.take("migrate_together", until="before part_company")
    plain.time_passes()
    plain.swept()
    assert plain.all_attempts == [["1>2 lost"]] * 3
    other = plain.take(until="hop_in_data")
    plain.goes_to_its_end(together)
    plain.goes_to_its_end(other)
    plain.rest()
    assert plain.all_attempts == [["1>2 lost", *DONE]] * 3


def test_graphs_whose_lock_a_hop_has_released_are_not_taken_before_the_commit(plain: Story) -> None:
    begin_three(plain)
    plain.script.raises += [_unlocks_everything]
    together = plain.take("migrate_together", until="hop_before_commit")
    plain.time_passes()
    plain.swept()
    plain.goes_to_its_end(together)
    plain.rest()
    assert plain.all_statuses == ["succeeded"] * 3
