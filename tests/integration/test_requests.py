"""A message that is delivered again is answered again, and changes nothing."""

from __future__ import annotations

from typing import Any

import psycopg2.errors
import pytest
from sqlalchemy import Engine

from graph_migrator import HopContext, MigrationReport
from graph_migrator.core.decisions import Ignored
from graph_migrator.core.errors import (
    InvalidRequest,
    MigrationCancelled,
    MigrationInFlight,
    MigrationReleased,
    UnknownGraph,
    UnknownTarget,
)
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import follow
from graph_migrator.core.execution.model import Applied, Caller, Dispatch
from graph_migrator.core.execution.recorded import record_outcome
from graph_migrator.core.execution.recovery import outcome_of, unanswered_calls
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.statuses import Verb
from graph_migrator.core.store import protocol
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.rows import add_graph, attempts, dump, graph_row, migration_of, rows

pytestmark = pytest.mark.usefixtures("script")


def deliver(
    executors: Executors, task_id: str, slug: str = "g", target: int | None = 3
) -> Dispatch | MigrationReport | Ignored:
    """What a delivered `migrate_graph` message does, without its sending."""
    caller = Caller(task_id, "ann", "because")
    with executors.borrow() as executor:
        return begin_migration(executor, slug, target, caller=caller)


def dispatched(executors: Executors, task_id: str, slug: str = "g", target: int | None = 3) -> Dispatch:
    begun = deliver(executors, task_id, slug, target)
    assert isinstance(begun, Dispatch)
    return begun


def fail(_: HopContext) -> None:
    raise ValueError("no name")


def verb(executors: Executors, act: Any, **options: Any) -> None:
    with executors.borrow() as executor:
        act(executor, "g", **options)


def test_the_call_is_written_down_with_what_it_began(engine: Engine, executors: Executors) -> None:
    graph_id = add_graph(engine, "g", "plain")
    begun = dispatched(executors, "call-1", target=None)
    assert begun.task_id == "call-1"
    assert rows(
        engine, "SELECT task_id, verb, graph_id, target, migration_id, requested_by FROM requests"
    ) == [("call-1", "migrate", graph_id, None, begun.migration_id, "ann")]
    assert migration_of(engine, "g").task_id == "call-1"


def test_while_queued_the_same_chain_is_sent_again(engine: Engine, executors: Executors) -> None:
    """The worker may have died between the commit and the sending."""
    add_graph(engine, "g", "plain")
    first = dispatched(executors, "call-1")
    before = dump(engine)
    assert deliver(executors, "call-1") == first
    assert dump(engine) == before


def test_while_running_it_is_ignored(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    begun = dispatched(executors, "call-1")
    assert run_hop(executors, begun.messages()[0]) == Applied()
    before = dump(engine)
    assert isinstance(deliver(executors, "call-1"), Ignored)
    assert dump(engine) == before


def test_in_the_middle_of_a_hop_it_is_ignored_without_waiting(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    seen = []
    script.on["one"] = lambda _: seen.append(deliver(executors, "call-1"))
    follow(executors, dispatched(executors, "call-1"))
    assert [type(outcome) for outcome in seen] == [Ignored]


def test_while_paused_it_is_ignored_and_resumes_nothing(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    dispatched(executors, "call-1")
    verb(executors, operations.pause)
    before = dump(engine)
    assert isinstance(deliver(executors, "call-1"), Ignored)
    assert dump(engine) == before


def test_after_success_it_gets_the_report_again(engine: Engine, executors: Executors, script: Script) -> None:
    add_graph(engine, "g", "plain")
    report = follow(executors, dispatched(executors, "call-1"))
    before = dump(engine)
    assert deliver(executors, "call-1") == report
    assert dump(engine) == before
    assert script.invoked == ["one", "two"]


def test_after_success_it_does_not_undo_what_came_later(engine: Engine, executors: Executors) -> None:
    """The graph was moved on since; the late duplicate does not move it back."""
    add_graph(engine, "g", "plain")
    follow(executors, dispatched(executors, "call-1"))
    follow(executors, dispatched(executors, "call-2", target=4))
    before = dump(engine)
    again = deliver(executors, "call-1")
    assert isinstance(again, MigrationReport)
    assert (again.to_version, graph_row(engine, "g").version) == (3, 4)
    assert dump(engine) == before


def test_after_failure_it_gets_the_error_again_and_retries_nothing(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fail
    with pytest.raises(ValueError, match="no name"):
        follow(executors, dispatched(executors, "call-1"))
    script.on.clear()
    before = dump(engine)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^no name$"):
            deliver(executors, "call-1")
    assert dump(engine) == before
    assert script.invoked == ["one", "two"]


def test_a_new_call_retries_and_the_first_ones_duplicate_follows_it(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fail
    with pytest.raises(ValueError, match="no name"):
        follow(executors, dispatched(executors, "call-1"))
    script.on.clear()
    again = dispatched(executors, "call-2")
    assert (again.number, again.task_id) == (2, "call-2")
    assert isinstance(deliver(executors, "call-1"), Ignored)
    assert isinstance(deliver(executors, "call-2"), Ignored)
    report = follow(executors, again)
    assert deliver(executors, "call-1") == deliver(executors, "call-2") == report
    assert attempts(engine, "g") == [("one", "succeeded"), ("two", "failed"), ("two", "succeeded")]


def test_after_a_refusal_it_is_refused_again_although_the_reason_is_gone(
    engine: Engine, executors: Executors
) -> None:
    add_graph(engine, "g", "plain")
    with pytest.raises(UnknownTarget):
        deliver(executors, "call-3", target=9)
    begun = dispatched(executors, "call-1")
    with pytest.raises(MigrationInFlight) as first:
        deliver(executors, "call-2")
    with pytest.raises(UnknownGraph):
        deliver(executors, "call-4", slug="nobody")
    follow(executors, begun)
    add_graph(engine, "nobody", "plain")
    before = dump(engine)
    with pytest.raises(MigrationInFlight) as second:
        deliver(executors, "call-2")
    assert second.value.args == first.value.args
    assert first.value.migration_id == str(begun.migration_id)
    with pytest.raises(UnknownTarget, match="versions 1 to 5 here, not 9"):
        deliver(executors, "call-3", target=9)
    with pytest.raises(UnknownGraph):
        deliver(executors, "call-4", slug="nobody")
    assert dump(engine) == before


def test_after_nothing_to_do_it_still_has_nothing_to_do(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain", version=3)
    report = deliver(executors, "call-1")
    assert isinstance(report, MigrationReport)
    assert not report.changed
    follow(executors, dispatched(executors, "call-2", target=4))
    before = dump(engine)
    assert deliver(executors, "call-1") == report
    assert dump(engine) == before


def test_after_a_cancel_it_stays_cancelled(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    begun = dispatched(executors, "call-1")
    run_hop(executors, begun.messages()[0])
    verb(executors, operations.cancel)
    before = dump(engine)
    with pytest.raises(MigrationCancelled, match="whole at v2"):
        deliver(executors, "call-1")
    assert dump(engine) == before


def test_after_a_release_it_stays_released(engine: Engine, executors: Executors, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["one"] = fail
    with pytest.raises(ValueError, match="no name"):
        follow(executors, dispatched(executors, "call-1"))
    verb(executors, operations.release)
    before = dump(engine)
    with pytest.raises(MigrationReleased):
        deliver(executors, "call-1")
    assert dump(engine) == before


def test_the_first_answer_of_a_call_stands(engine: Engine, executors: Executors) -> None:
    graph = add_graph(engine, "g", "plain")
    begun = dispatched(executors, "call-1")
    verb(executors, operations.pause, caller=Caller("pause-1"))
    before = rows(engine, "SELECT r::text FROM requests r ORDER BY 1")
    with executors.borrow() as executor:
        executor.call(
            protocol.RecordVerb(
                task="pause-1",
                verb="pause",
                graph=graph,
                migration=begun.migration_id,
                outcome={"other": 1},
                by="bob",
            )
        )
        with pytest.raises(psycopg2.errors.SerializationFailure, match="was answered meanwhile"):
            record_outcome(executor, Caller("pause-1", "bob"), "g", None, UnknownGraph("g"), Verb.PAUSE)
    assert rows(engine, "SELECT r::text FROM requests r ORDER BY 1") == before


def test_an_id_that_was_used_for_another_verb_begins_nothing(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    begun = dispatched(executors, "call-1")
    verb(executors, operations.pause, caller=Caller("pause-1"))
    verb(executors, operations.cancel)
    assert migration_of(engine, "g").id == begun.migration_id
    before = dump(engine)
    with pytest.raises((InvalidRequest, MigrationCancelled)):
        deliver(executors, "pause-1")
    assert dump(engine) == before


def test_every_call_is_answered_in_the_end(engine: Engine, executors: Executors, script: Script) -> None:
    """The answers that recovery owes to callers whose worker died before it could."""
    add_graph(engine, "g", "plain")
    script.on["two"] = fail
    with pytest.raises(ValueError, match="no name"):
        follow(executors, dispatched(executors, "call-1"))
    with pytest.raises(UnknownTarget):
        deliver(executors, "call-2", target=9)
    verb(executors, operations.release, caller=Caller("release-1"))
    deliver(executors, "call-3", target=2)
    with executors.borrow() as executor:
        calls = unanswered_calls(executor, grace=0)
        found = {call.task_id: outcome_of(executor, call) for call in calls}
    assert {task_id: type(result) for task_id, result in found.items()} == {
        "call-1": MigrationReleased,
        "call-2": UnknownTarget,
        "release-1": dict,
        "call-3": dict,
    }
    assert all(call.succeeded != isinstance(found[call.task_id], Exception) for call in calls)
