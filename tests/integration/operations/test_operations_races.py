"""A verb that comes twice, and one that meets another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator.core.errors import IllegalTransition
from graph_migrator.core.execution import operations
from graph_migrator.core.settings import settings
from graph_migrator.core.store import protocol
from graph_migrator.core.store.session import Executor, Executors
from tests.integration.hand_driven import Client, in_background, wait_until_waiting
from tests.integration.scripted import Script
from tests.integration.verbs import LEGAL, begin, do, in_state
from tests.rows import add_graph, dump, migration_of, rows

# Where a verb leads: the status afterwards, where nobody executes the migration.


@contextmanager
def while_the_status_becomes(
    engine: Engine, executor: Executor, after: str, work: Callable[..., Any], *values: Any
) -> Iterator[Future[Any]]:
    """`work` runs on `executor` beside an operator's word that is written, and committed once it waits for it."""
    observer = Client(engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    pid = executor.cursor().connection.info.backend_pid
    found = migration_of(engine, "g")
    with ExitStack() as stack:
        with engine.begin() as operator:
            operator.execute(
                text("SELECT follow_edge(:id, :before, :after, false, 0)"),
                {"id": found.id, "before": found.status, "after": after},
            )
            working = stack.enter_context(in_background(work, *values))
            wait_until_waiting(observer, pid, "transactionid")
        yield working
    observer.close()


# ── a verb that is just being given ───────────────────────────────────────────────────────────────────


def test_a_pause_that_is_just_being_taken_back_is_not_settled(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "pausing"), executors.borrow() as executor:
        settle = (
            executor.call,
            protocol.StopMigration(migration=migration_of(engine, "g").id, attempt_becomes="lost"),
        )
        with while_the_status_becomes(engine, executor, "running", *settle) as settling:
            assert settling.result() is None
        assert migration_of(engine, "g").status == "running"


def test_recovery_sees_a_cancel_that_is_just_being_asked_for(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "queued"), executors.borrow() as executor:
        look = (executor.call, protocol.LockAndLoadStalled(migration=migration_of(engine, "g").id))
        with while_the_status_becomes(engine, executor, "cancelling", *look) as looking:
            assert looking.result().status == "cancelling"


def test_a_verb_acts_on_what_another_one_is_just_writing(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "running"), executors.borrow() as executor:
        cancel = (operations.cancel, executor, "g")
        with while_the_status_becomes(engine, executor, "pausing", *cancel) as cancelling:
            assert cancelling.result().verb == "cancel"
        assert migration_of(engine, "g").status == "cancelled"


# ── a verb that comes twice ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("verb", "state"), LEGAL)
def test_a_verb_delivered_twice_acts_once(
    engine: Engine, executors: Executors, script: Script, verb: str, state: str
) -> None:
    with in_state(engine, executors, script, state):
        first = do(executors, verb, "g", task_id="call-1")
        after = dump(engine)
        assert do(executors, verb, "g", task_id="call-1") == first
        assert dump(engine) == after
        request = rows(engine, "SELECT verb, requested_by FROM requests WHERE task_id = 'call-1'")
        assert request == [(verb.split()[0], "ann")]


def test_a_verb_delivered_again_after_its_state_has_passed_does_not_act_again(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    begin(executors, "g", 4)
    do(executors, "pause", "g", task_id="pause-1")
    do(executors, "resume", "g", task_id="resume-1")
    do(executors, "pause", "g", task_id="pause-1")
    assert migration_of(engine, "g").status == "running"
    do(executors, "pause", "g", task_id="pause-2")
    do(executors, "resume", "g", task_id="resume-1")
    assert migration_of(engine, "g").status == "paused"


def test_a_verb_that_was_refused_does_not_act_when_its_message_comes_again(
    engine: Engine, executors: Executors, script: Script, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graph_migrator import pause_migration
    from graph_migrator.tasks import runtime

    monkeypatch.setenv("DATABASE_URL", database_url)
    settings.cache_clear()
    runtime.engine.cache_clear()
    runtime.executors.cache_clear()
    add_graph(engine, "g", "plain")
    try:
        for _ in range(2):
            result = pause_migration.apply(("g",), task_id="pause-1")
            with pytest.raises(IllegalTransition, match="not migrating"):
                result.get()
            if not rows(engine, "SELECT * FROM migrations"):
                begin(executors, "g", 4)
        assert migration_of(engine, "g").status == "queued"
    finally:
        runtime.executors().close()
        runtime.engine.cache_clear()
        runtime.executors.cache_clear()
