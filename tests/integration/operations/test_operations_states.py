"""Every verb in every state: it follows its edge, or it is refused with the present state."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from sqlalchemy import Engine, text

from graph_migrator import HopContext
from graph_migrator.core.decisions import Limits
from graph_migrator.core.errors import (
    GraphBusy,
    HopCodeChanged,
    IllegalTransition,
    InvalidRequest,
    UnknownGraph,
)
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.execution.model import Caller, Failed
from graph_migrator.core.execution.operations import VerbReport
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.graph_types import registry
from graph_migrator.core.statuses import edge_pairs
from graph_migrator.core.store import protocol
from graph_migrator.core.store.errors import FENCE
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.integration.verbs import LEGAL, VERBS, begin, do, fail, half_way, in_state
from tests.rows import add_graph, dump, graph_row, migration_of, rows

STATES = [
    "free",
    "queued",
    "running",
    "pausing",
    "paused",
    "cancelling",
    "failed",
    "succeeded",
    "cancelled",
    "released",
]


# Where a verb leads: the status afterwards, where nobody executes the migration.


# A lock that is held has to be released first; see test_a_forced_release_waits_for_the_lock.
BUSY = {("release --force", "pausing"), ("release --force", "cancelling")}


@pytest.mark.parametrize("state", STATES)
def test_each_verb_follows_its_edge_or_is_refused_with_the_present_state(
    engine: Engine, executors: Executors, script: Script, state: str
) -> None:
    for number, verb in enumerate(VERBS):
        slug = f"g{number}"
        with in_state(engine, executors, script, state, slug):
            before = dump(engine)
            if (verb, state) in LEGAL:
                report = do(executors, verb, slug, task_id=f"{verb} {state}")
                assert isinstance(report, VerbReport)
                assert (report.graph, migration_of(engine, slug).status) == (slug, LEGAL[verb, state])
                assert report.migration_id == migration_of(engine, slug).id
                continue
            if (verb, state) in BUSY:
                with pytest.raises(GraphBusy, match=f"{slug}: its lock is held by pid"):
                    do(executors, verb, slug)
            else:
                with pytest.raises(IllegalTransition) as refusal:
                    do(executors, verb, slug)
                owned = state in {"queued", "running", "pausing", "paused", "cancelling", "failed"}
                shown = state if owned else "not migrating"
                assert refusal.value.graph == slug
                assert refusal.value.status == shown
                assert f"is {shown}; that needs " in str(refusal.value)
                assert "Nothing was changed" in str(refusal.value)
                assert state not in refusal.value.allowed
            assert dump(engine) == before, verb
    executors.close()


@pytest.mark.parametrize("state", [state for state in STATES if state not in {"free", "queued", "running"}])
def test_recovery_neither_fails_nor_sends_again_what_is_no_longer_under_way(
    engine: Engine, executors: Executors, script: Script, state: str
) -> None:
    """The limit of crashes never overrides an operator's request, nor an end."""
    with in_state(engine, executors, script, state):
        found, before = migration_of(engine, "g"), dump(engine)
        with executors.borrow() as executor:
            assert not executor.call(
                protocol.FailBetweenHops(
                    migration=found.id, dispatch=found.dispatch, lost=None, type="E", message="", args=None
                )
            )
            executor.call(protocol.RecordRedispatch(migration=found.id, running=None, deadline_seconds=30.0))
        assert dump(engine) == before


def test_recovery_of_an_older_dispatch_or_of_a_finished_attempt_changes_nothing_of_it(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "running"):
        found, before = migration_of(engine, "g"), dump(engine)
        with executors.borrow() as executor:
            assert not executor.call(
                protocol.FailBetweenHops(
                    migration=found.id,
                    dispatch=found.dispatch - 1,
                    lost=None,
                    type="E",
                    message="",
                    args=None,
                )
            )
            assert dump(engine) == before
            (finished,) = rows(engine, "SELECT id FROM hop_attempts")
            executor.call(
                protocol.RecordRedispatch(migration=found.id, running=finished[0], deadline_seconds=30.0)
            )
        assert dump(engine)["hop_attempts"] == before["hop_attempts"]
        assert migration_of(engine, "g").dispatch == found.dispatch + 1


@pytest.mark.parametrize("state", ["queued", "paused"])
def test_an_edge_is_followed_from_the_status_that_was_looked_at_only(
    engine: Engine, executors: Executors, script: Script, state: str
) -> None:
    with in_state(engine, executors, script, state):
        found, version, before = migration_of(engine, "g"), graph_row(engine, "g").version, dump(engine)
        calls = [
            protocol.FollowEdge(
                migration=found.id, from_="pausing", to="cancelling", again=False, deadline_seconds=0.0
            ),
            protocol.RetryMigration(
                migration=found.id,
                plan=found.plan,
                request=None,
                verb="retry",
                target=None,
                by=None,
                deadline_seconds=30.0,
            ),
            protocol.BeginMigration(
                migration=uuid4(),
                graph=found.graph_id,
                graph_type="plain",
                from_=version,
                to=4,
                plan=[],
                release=found.id,
                request=None,
                target=4,
                by=None,
                reason=None,
                deadline_seconds=30.0,
                unlock=False,
            ),
        ]
        for call in calls:
            with executors.borrow() as executor:
                with pytest.raises(psycopg2.Error) as refusal:
                    executor.call(call)
                assert refusal.value.pgcode == FENCE
            assert dump(engine) == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_on_an_unknown_graph_is_refused(engine: Engine, executors: Executors, verb: str) -> None:
    with pytest.raises(UnknownGraph, match="nobody"):
        do(executors, verb, "nobody")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_names_another_migration_is_refused(
    engine: Engine, executors: Executors, script: Script, verb: str
) -> None:
    """A message that comes late does not hit the graph's next migration."""
    state = next(state for named, state in LEGAL if named == verb)
    with in_state(engine, executors, script, state):
        mine = migration_of(engine, "g").id
        before = dump(engine)
        other = graph_row(engine, "g").id
        with pytest.raises(IllegalTransition, match=f"under migration {mine}"):
            do(executors, verb, "g", migration_id=other)
        assert dump(engine) == before
        do(executors, verb, "g", migration_id=mine)


def test_finishing_or_declaring_whole_names_the_migration_that_left_the_graph_partially_migrated(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        mine = migration_of(engine, "g").id
        do(executors, "release --force", "g")
    for verb in ("retry", "release --whole"):
        with pytest.raises(IllegalTransition, match=f"under migration {mine}"):
            do(executors, verb, "g", migration_id=graph_row(engine, "g").id)
    do(executors, "release --whole", "g", migration_id=mine)


@pytest.mark.parametrize("verb", VERBS)
def test_an_id_that_a_call_of_migrate_graph_bears_is_refused(
    engine: Engine, executors: Executors, script: Script, verb: str
) -> None:
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        begin_migration(executor, "g", caller=Caller("call-1"))
    with pytest.raises(InvalidRequest, match="used for another verb"):
        do(executors, verb, "g", task_id="call-1")


def test_every_edge_of_the_table_is_taken(engine: Engine, executors: Executors, script: Script) -> None:
    """No edge is there for nothing: each one is followed by a verb, a hop, or a sweep."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE public.taken (old text, new text)"))
        connection.execute(
            text(
                "CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN INSERT INTO public.taken VALUES (OLD.status, NEW.status); RETURN NULL; END'"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER note AFTER UPDATE OF status ON migrations FOR EACH ROW "
                "WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION public.note()"
            )
        )
    slugs = iter(f"s{number}" for number in range(100))
    with in_state(engine, executors, script, "succeeded", next(slugs)):
        pass
    for verb, state in LEGAL:
        slug = next(slugs)
        with in_state(engine, executors, script, state, slug):
            do(executors, verb, slug)
    for state in ("pausing", "cancelling"):  # their executor ends, and gives the lock back
        slug = next(slugs)
        with in_state(engine, executors, script, state, slug), engine.connect() as connection:
            connection.execute(text("SELECT terminate_holders(:id)"), {"id": graph_row(engine, slug).id})
            do(executors, "release --force", slug)
    for verb in ("pause", "cancel"):  # asked for in the last hop, which succeeds or fails
        for outcome in (lambda _: None, fail):
            slug = next(slugs)
            add_graph(engine, slug, "plain")

            def ask(ctx: HopContext, verb: str = verb, outcome: Any = outcome) -> None:
                do(executors, verb, ctx.graph.slug)
                outcome(ctx)

            script.on["one"] = ask
            if outcome is fail:
                with pytest.raises(ValueError, match="half-way"):
                    run_graph_migration(executors, slug, 2)
            else:
                run_graph_migration(executors, slug, 2)
            script.on.clear()
    slug = next(slugs)
    add_graph(engine, slug, "plain")
    dispatch = begin(executors, slug)
    registry.reset()
    outcome = run_hop(executors, dispatch.messages()[0], limits=Limits(deploy_seconds=0))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, HopCodeChanged)
    taken = {(old, new) for old, new in rows(engine, "SELECT * FROM public.taken")}
    assert taken == {(str(old), str(new)) for old, new in edge_pairs()}
