"""What broke an earlier draft of the design, each as a script: who does what, in which order."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest

from graph_migrator.core.decisions import Later
from graph_migrator.core.errors import (
    GraphPartiallyMigrated,
    MigrationReleased,
)
from graph_migrator.core.execution.model import Applied, Failed
from graph_migrator.core.settings import settings
from graph_migrator.core.store import locks
from graph_migrator.core.store.locks import Wait
from tests.simulation.story import DONE, Story


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
    monkeypatch.setattr(locks, "Wait", Wait)  # which ends at a time
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


def _until_done(story: Story, actor: Any) -> None:
    """Its lock timeout runs out in the server."""
    while not actor.done:
        story.stage.settle_one()
        story.resume(next(each for each in story.stage.actors if each is actor))
