"""Operators' verbs follow the edges of the state machine, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from hand_driven import Client, in_background, wait_until_waiting
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext
from graph_migrator.core.decisions import Ignored, Limits
from graph_migrator.core.errors import (
    GraphBusy,
    GraphPartiallyMigrated,
    HopCodeChanged,
    IllegalTransition,
    InvalidRequest,
    MigrationCancelled,
    MigrationReleased,
    UnknownGraph,
)
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import follow, run_graph_migration
from graph_migrator.core.execution.model import Applied, Caller, Dispatch, Failed
from graph_migrator.core.execution.operations import VerbReport
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import edge_pairs
from graph_migrator.core.store import protocol
from graph_migrator.core.store.errors import FENCE
from graph_migrator.core.store.locks import taken
from graph_migrator.core.store.session import Executor, Executors
from tests.integration.scripted import Script
from tests.rows import add_graph, advisory_locks, attempts, dump, graph_row, migration_of, properties, rows

Verb = Callable[..., Any]

VERBS: dict[str, Verb] = {
    "pause": operations.pause,
    "cancel": operations.cancel,
    "resume": operations.resume,
    "retry": operations.retry,
    "release": operations.release,
    "release --force": partial(operations.release, force=True),
    "release --whole": partial(operations.release, whole=True),
}
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
LEGAL: dict[tuple[str, str], str] = {
    ("pause", "queued"): "paused",
    ("pause", "running"): "paused",
    ("cancel", "queued"): "cancelled",
    ("cancel", "running"): "cancelled",
    ("cancel", "pausing"): "cancelling",  # its executor is still there
    ("cancel", "paused"): "cancelled",
    ("resume", "pausing"): "running",
    ("resume", "paused"): "running",
    ("retry", "failed"): "running",
    ("release", "failed"): "released",
    ("release", "paused"): "released",
    ("release --whole", "failed"): "released",
    ("release --whole", "paused"): "released",
    ("release --force", "queued"): "released",
    ("release --force", "running"): "released",
    ("release --force", "failed"): "released",
    ("release --force", "paused"): "released",
}
# A lock that is held has to be released first; see test_a_forced_release_waits_for_the_lock.
BUSY = {("release --force", "pausing"), ("release --force", "cancelling")}


def begin(executors: Executors, slug: str, target: int | None = None) -> Dispatch:
    with executors.borrow() as executor:
        begun = begin_migration(executor, slug, target)
    assert isinstance(begun, Dispatch)
    return begun


def do(executors: Executors, verb: str, slug: str, task_id: str | None = None, **options: Any) -> Any:
    """Carry a verb out, on a session of its own; of a verb that may send a chain, the report alone."""
    with executors.borrow() as executor:
        done = VERBS[verb](executor, slug, Caller(task_id, requested_by="ann"), **options)
    return done[0] if isinstance(done, tuple) else done


@contextmanager
def lock_held(engine: Engine, slug: str) -> Iterator[Executor]:
    """Somebody holds a graph's lock, as an executor does in the middle of a hop."""
    holder = Executor.connect(engine)
    with taken(holder, graph_row(engine, slug).id, seconds=5) as lock:
        assert lock is not None
        try:
            yield holder
        finally:
            holder.close()


def fail(_: HopContext) -> None:
    raise ValueError("half-way")


@contextmanager
def in_state(
    engine: Engine, executors: Executors, script: Script, state: str, slug: str = "g"
) -> Iterator[None]:
    """A graph v2 of four, one hop of its migration applied, in a state that was reached by the code itself."""
    add_graph(engine, slug, "plain", version=1 if state == "queued" else 2)
    with ExitStack() as stack:
        if state == "free":
            pass
        elif state == "succeeded":
            run_graph_migration(executors, slug, 3)
        elif state == "failed":
            script.on["three"] = fail
            with pytest.raises(ValueError, match="half-way"):
                run_graph_migration(executors, slug, 4)
            script.on.clear()
        else:
            dispatch = begin(executors, slug, 4)
            if state != "queued":
                assert run_hop(executors, dispatch.messages()[0]) == Applied()
            if state in {"pausing", "cancelling"}:
                stack.enter_context(lock_held(engine, slug))
            verb = {"pausing": "pause", "paused": "pause", "cancelling": "cancel", "cancelled": "cancel"}.get(
                state
            )
            if state == "released":
                verb = "release --force"
            if verb:
                do(executors, verb, slug)
        assert state == "free" or migration_of(engine, slug).status == state
        yield


@pytest.fixture(autouse=True)
def _short_patience(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS", "0.05")
    settings.cache_clear()


# ── every pair of a verb and a state ────────────────────────────────────────────────────────────────


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
            executor.call(protocol.RecordRedispatch(migration=found.id, running=None, deadline=30.0))
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
            executor.call(protocol.RecordRedispatch(migration=found.id, running=finished[0], deadline=30.0))
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
                migration=found.id, from_="pausing", to="cancelling", again=False, deadline=0.0
            ),
            protocol.RetryMigration(
                migration=found.id,
                plan=found.plan,
                request=None,
                verb="retry",
                target=None,
                by=None,
                deadline=30.0,
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
                deadline=30.0,
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


# ── what comes of it ────────────────────────────────────────────────────────────────────────────────


def test_a_paused_migration_ignores_the_messages_it_had_sent_and_goes_on_under_a_new_dispatch(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    old = begin(executors, "g", 4)
    run_hop(executors, old.messages()[0])
    do(executors, "pause", "g")
    for message in old.messages():
        assert isinstance(run_hop(executors, message), Ignored)
    with executors.borrow() as executor:
        report, new = operations.resume(executor, "g")
    assert (report.dispatch, migration_of(engine, "g").dispatch) == (2, 2)
    assert new is not None
    assert [(step.from_version, step.to_version) for step in new.steps] == [(2, 3), (3, 4)]
    for message in old.messages():
        assert isinstance(run_hop(executors, message), Ignored)
    assert follow(executors, new).version == 4
    assert script.invoked == ["one", "two", "three"]


def test_resume_of_a_migration_that_has_not_stopped_yet_needs_no_lock_and_no_new_chain(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "pausing"), executors.borrow() as executor:
        report, dispatch = operations.resume(executor, "g")
    assert (report.status, report.dispatch, dispatch) == ("running", 1, None)


def test_pause_and_cancel_of_a_running_hop_take_effect_at_its_end(
    engine: Engine, executors: Executors, script: Script
) -> None:
    for verb, status in (("pause", "paused"), ("cancel", "cancelled")):
        add_graph(engine, verb, "plain")
        script.on["one"] = lambda ctx: do(executors, ctx.graph.slug, ctx.graph.slug)
        dispatch = begin(executors, verb, 4)
        assert run_hop(executors, dispatch.messages()[0]) == Applied()
        assert migration_of(engine, verb).status in {"pausing", "cancelling"}
        run_hop(executors, dispatch.messages()[1])
        assert (migration_of(engine, verb).status, graph_row(engine, verb).version) == (status, 2)
        assert attempts(engine, verb) == [("one", "succeeded")]


def test_a_cancelled_call_is_answered_with_where_the_graph_stands(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 4)
    run_hop(executors, dispatch.messages()[0])
    do(executors, "cancel", "g")
    outcome = run_hop(executors, dispatch.messages()[1])
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, MigrationCancelled)
    assert outcome.error.args == ("g", 2)
    assert graph_row(engine, "g").migration_id is None


def test_a_released_graph_is_writable_at_its_version_and_late_messages_do_nothing(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "failed"):
        old = rows(engine, "SELECT id FROM migrations")[0][0]
        do(executors, "release", "g")
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'Written'"))
    from graph_migrator.core.decisions import HopMessage

    outcome = run_hop(executors, HopMessage(old, 3, 4, 1))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, MigrationReleased)
    assert graph_row(engine, "g").version == 3


def test_a_retry_plans_anew_with_the_code_that_is_there_now(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "failed"):
        with engine.begin() as connection:  # as if it had been planned with other code
            connection.execute(
                text("UPDATE migrations SET plan = replace(plan::text, 'three', 'old')::jsonb")
            )
        with executors.borrow() as executor:
            _, dispatch = operations.retry(executor, "g")
    assert dispatch is not None
    assert [step.name for step in dispatch.steps] == ["three"]
    assert follow(executors, dispatch).version == 4


# ── force, whole, partial ───────────────────────────────────────────────────────────────────────────


@contextmanager
def half_way(engine: Engine, executors: Executors, script: Script) -> Iterator[None]:
    """A failed migration that stands half-way through a batched hop of 25 rows."""
    add_graph(engine, "g", "batched", nodes=25)
    script.on["visit"] = lambda ctx: len(script.batches) == 2 and fail(ctx)
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(executors, "g")
    script.clear()
    yield


def test_a_partially_migrated_graph_is_released_by_force_only_and_remembers_it(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        before = dump(engine)
        with pytest.raises(GraphPartiallyMigrated) as refusal:
            do(executors, "release", "g")
        assert refusal.value.args == ("g", "visit", 1, 2, 10, False, False, False)
        assert "release g --force" in refusal.value.message
        assert dump(engine) == before
        report = do(executors, "release --force", "g")
    assert "partially migrated" in report.message
    half = graph_row(engine, "g").partially_migrated
    assert (half["hop"], half["cursor"], half["done"], half["target"]) == ("visit", ["n0009"], 10, 3)
    assert (migration_of(engine, "g").status, graph_row(engine, "g").migration_id) == ("released", None)


def test_a_force_released_partially_migrated_graph_is_finished_by_a_retry(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        do(executors, "release --force", "g")
        with executors.borrow() as executor:
            report, dispatch = operations.retry(executor, "g", Caller("retry-1"))
            again, nothing = operations.retry(executor, "g", Caller("retry-1"))
    assert (again, nothing) == (report, None)
    assert dispatch is not None
    assert dispatch.task_id is None  # the verb's own answer is its report, not the migration's
    assert follow(executors, dispatch).version == 3
    assert [values["trail"] for values in properties(engine, "g").values()] == [["visit", "arrive"]] * 25
    assert graph_row(engine, "g").partially_migrated is None
    assert len(rows(engine, "SELECT * FROM migrations")) == 2


def test_a_force_released_partially_migrated_graph_is_declared_whole_by_an_operator(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        do(executors, "release --force", "g")
    for verb in ("release", "release --force"):
        with pytest.raises(GraphPartiallyMigrated, match="release g --whole"):
            do(executors, verb, "g")
    do(executors, "release --whole", "g")
    assert graph_row(engine, "g").partially_migrated is None
    assert run_graph_migration(executors, "g", 2).version == 2


def test_a_partially_migrated_hop_whose_code_changed_goes_on_only_where_the_operator_says_so(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE migrations SET plan = jsonb_set(plan, '{0,fingerprint}', '\"other code\"')")
            )
        before = dump(engine)
        with pytest.raises(GraphPartiallyMigrated, match="retry g --accept-new-code"):
            do(executors, "retry", "g")
        with pytest.raises(GraphPartiallyMigrated, match="retry g --accept-new-code"):
            run_graph_migration(executors, "g")  # calling again resumes, but not with other code
        assert dump(engine) == before
        with executors.borrow() as executor:
            _, dispatch = operations.retry(executor, "g", accept_new_code=True)
    assert dispatch is not None
    assert follow(executors, dispatch).version == 3


def test_a_partially_migrated_hop_that_is_batched_no_more_leaves_no_checkpoint(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        mended = GraphType("batched")
        mended.sql_hop(1, 2, name="visit", forward="SELECT :graph_id")
        mended.sql_hop(2, 3, name="arrive", forward="SELECT :graph_id")
        registry.register(mended)
        with executors.borrow() as executor:
            _, dispatch = operations.retry(executor, "g", accept_new_code=True)
    assert dispatch is not None
    assert follow(executors, dispatch).version == 3
    assert rows(engine, "SELECT 1 FROM checkpoints") == []


def test_a_force_released_partially_migrated_graph_goes_on_with_other_code_only_where_the_operator_says_so(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with half_way(engine, executors, script):
        do(executors, "release --force", "g")
        with engine.begin() as connection:
            connection.execute(text("SELECT become_executor(:id)"), {"id": migration_of(engine, "g").id})
            connection.execute(
                text(
                    "UPDATE graphs SET partially_migrated = "
                    "jsonb_set(partially_migrated, '{fingerprint}', '\"other code\"')"
                )
            )
            connection.execute(text("SELECT set_config('graph_migrator.executor', '', false)"))
        before = dump(engine)
        with pytest.raises(GraphPartiallyMigrated):
            do(executors, "retry", "g")
        assert dump(engine) == before
        with executors.borrow() as executor:
            _, dispatch = operations.retry(executor, "g", accept_new_code=True)
    assert dispatch is not None
    assert follow(executors, dispatch).version == 3


def test_a_forced_release_waits_for_the_lock_and_ends_its_holder_only_when_asked_to(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    dispatch = begin(executors, "g", 4)
    with lock_held(engine, "g") as holder:
        before = dump(engine)
        with pytest.raises(GraphBusy, match="its lock is held by pid"):
            do(executors, "release --force", "g")
        assert dump(engine) == before
        with executors.borrow() as executor:
            operations.release(executor, "g", force=True, terminate=True)
        with pytest.raises(Exception, match=r"terminating connection|closed"):
            holder.call(protocol.TrySweep())
    assert migration_of(engine, "g").status == "released"
    assert isinstance(run_hop(executors, dispatch.messages()[0]), Failed)
    assert script.invoked == []
    assert advisory_locks(engine) == []


def test_an_executor_that_was_forced_off_its_graph_settles_nothing(
    engine: Engine, executors: Executors, script: Script
) -> None:
    """Its hop is in the middle of its data when an operator ends its session and releases the graph."""
    add_graph(engine, "g", "plain")

    def lose(ctx: HopContext) -> None:
        with executors.borrow() as executor:
            operations.release(executor, "g", force=True, terminate=True)

    script.on["two"] = lose
    with pytest.raises(MigrationReleased):
        run_graph_migration(executors, "g", 4)
    assert attempts(engine, "g") == [("one", "succeeded"), ("two", "lost")]
    assert (graph_row(engine, "g").version, migration_of(engine, "g").status) == (2, "released")
    assert {tuple(values["trail"]) for values in properties(engine, "g").values()} == {("one",)}


# ── a verb that is just being given ─────────────────────────────────────────────────────────────────


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


def test_a_pause_that_is_just_being_taken_back_is_not_settled(
    engine: Engine, executors: Executors, script: Script
) -> None:
    with in_state(engine, executors, script, "pausing"), executors.borrow() as executor:
        settle = (
            executor.call,
            protocol.Settle(migration=migration_of(engine, "g").id, attempt_becomes="lost"),
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


# ── a verb that comes twice ─────────────────────────────────────────────────────────────────────────


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


# ── the owner's lock ────────────────────────────────────────────────────────────────────────────────


def test_an_owners_lock_keeps_writers_off_and_migrations_not(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        assert operations.set_read_only(executor, "g", on=True).message == "read-only for its owner"
        assert operations.set_read_only(executor, "g", on=True).message == "read-only for its owner already"
    with pytest.raises(Exception, match="its owner locked it"), engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'x'"))
    assert run_graph_migration(executors, "g", 2).version == 2
    with executors.borrow() as executor:
        assert operations.set_read_only(executor, "g", on=False).message == "writable again"
        with pytest.raises(UnknownGraph):
            operations.set_read_only(executor, "nobody", on=True)
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'x'"))


def test_a_lock_that_comes_again_does_not_lock_a_graph_that_was_unlocked_since(
    engine: Engine, executors: Executors
) -> None:
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        locked = operations.set_read_only(executor, "g", Caller("lock-1", "ann"), on=True)
        operations.set_read_only(executor, "g", Caller("unlock-1"), on=False)
        assert operations.set_read_only(executor, "g", Caller("lock-1", "ann"), on=True) == locked
    assert graph_row(engine, "g").owner_read_only is False
    asked = rows(engine, "SELECT task_id, verb, requested_by FROM requests ORDER BY task_id")
    assert asked == [("lock-1", "lock", "ann"), ("unlock-1", "unlock", None)]
