"""A sweep serves everybody: neither one broken migration nor one worker that is cut off holds it up."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator import app, migrate_graph
from graph_migrator.core.embedded import Redis
from graph_migrator.core.errors import ResultsNotKept, UnreadableOutcome
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.model import Dispatch
from graph_migrator.core.execution.recovery import sweep, sweeping
from graph_migrator.core.store import protocol
from graph_migrator.core.store.session import Executors
from graph_migrator.tasks import answers, recover
from graph_migrator.tasks.cli.doctor import _of_the_results
from tests.acceptance.cluster import Cluster
from tests.rows import add_graph, migration_of, rows

_A_CALL = text(
    "INSERT INTO requests (task_id, verb, outcome, created_at) "
    "VALUES (:task, 'pause', CAST(:outcome AS jsonb), now() - make_interval(secs => :age))"
)


# Celery's Redis backend calls what redis-py has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


def begin_overdue(engine: Engine, executors: Executors, slug: str, graph_type: str = "plain") -> None:
    """A migration whose messages are lost, past its deadline."""
    add_graph(engine, slug, graph_type)
    with executors.borrow() as executor:
        begin_migration(executor, slug)
    with engine.begin() as connection:
        connection.execute(text("UPDATE migrations SET deadline = now() - interval '1 second'"))


@pytest.mark.usefixtures("script")
def test_a_migration_that_cannot_be_recovered_does_not_keep_recovery_from_others(
    engine: Engine, executors: Executors, caplog: pytest.LogCaptureFixture
) -> None:
    for slug in ("a", "broken", "c"):
        begin_overdue(engine, executors, slug)
    broken = migration_of(engine, "broken").id
    with engine.begin() as connection:
        connection.execute(text("UPDATE migrations SET plan = '{}' WHERE id = :id"), {"id": broken})
    with executors.borrow() as executor, caplog.at_level(logging.ERROR):
        done = sweep(executor)
    assert sorted(dispatch.graph for dispatch in done.to_send) == ["a", "c"]
    assert f"migration {broken} was not recovered" in caplog.text


def test_one_process_sweeps_at_a_time(engine: Engine) -> None:
    with sweeping(Executors(engine)) as first:
        assert first is not None
        with sweeping(Executors(engine)) as second:
            assert second is None
    with sweeping(Executors(engine)) as next_one:
        assert next_one is not None


def test_one_worker_has_the_lease_and_others_leave_the_sweeps_to_it(engine: Engine) -> None:
    executors = Executors(engine)

    def swept(holder: str, seconds: float = 60) -> bool:
        with sweeping(executors, holder=holder, lease_seconds=seconds) as session:
            return session is not None

    assert [swept("a"), swept("b"), swept("a"), swept("b")] == [True, False, True, False]
    with sweeping(executors) as single:  # an operator's sweep needs no lease
        assert single is not None
    assert swept("a", seconds=0)
    assert swept("b"), "the lease of a worker that died has ended"
    assert not swept("a")


@pytest.mark.usefixtures("script")
def test_no_more_is_redelivered_than_there_is_room_for_the_most_overdue_first(
    engine: Engine, executors: Executors
) -> None:
    for slug in ("a", "b", "c"):
        begin_overdue(engine, executors, slug)
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE migrations m SET deadline = now() - interval '1 hour' "
                "FROM graphs g WHERE g.id = m.graph_id AND g.slug = 'b'"
            )
        )
    with executors.borrow() as executor:
        assert [dispatch.graph for dispatch in sweep(executor, most=1).to_send] == ["b"]
        assert sweep(executor, most=0).to_send == []
        assert sorted(dispatch.graph for dispatch in sweep(executor, most=5).to_send) == ["a", "c"]


@pytest.mark.usefixtures("script")
def test_what_somebody_executes_costs_a_sweep_no_message(engine: Engine, executors: Executors) -> None:
    for slug in ("a", "b"):
        begin_overdue(engine, executors, slug)
    with engine.connect() as elsewhere, executors.borrow() as executor:
        elsewhere.execute(text("SELECT pg_advisory_lock(lock_key(id)) FROM graphs WHERE slug = 'a'"))
        found = executor.call_all(protocol.RecoveryCandidates(most_migrations=9))
        assert found == [migration_of(engine, "b").id]
        elsewhere.execute(text("SELECT pg_advisory_unlock_all()"))
        assert len(executor.call_all(protocol.RecoveryCandidates(most_migrations=9))) == 2
        assert rows(engine, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") == []


def test_a_worker_that_waits_for_its_broker_or_results_lets_others_sweep(
    here: Cluster, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_overdue(here.engine, executors, "g", "trail")
    with here.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO requests (task_id, verb, outcome, created_at) "
                "VALUES ('call-1', 'pause', '{\"graph\": \"g\"}', now() - interval '1 minute')"
            )
        )
    waited: list[Any] = []

    def wait(*what: Any) -> None:
        """Here a worker would stand for as long as its connection is away."""
        with sweeping(Executors(here.engine)) as another:
            assert another is not None, "nobody else can sweep"
            waited.append(what[0])

    monkeypatch.setattr(recover, "send", wait)
    monkeypatch.setattr(answers, "_store", wait)
    done = recover.sweep_once()
    assert (done["sent"], done["answered"]) == (1, 1)
    assert [type(what) for what in waited] == [Dispatch, str]
    assert rows(here.engine, "SELECT 1 FROM requests WHERE answered_at IS NULL") == []


def add_call(engine: Engine, task_id: str, outcome: str = '{"graph": "g"}', *, age: float = 60) -> None:
    """A call whose outcome is recorded, and whose caller has no result yet."""
    with engine.begin() as connection:
        connection.execute(_A_CALL, {"task": task_id, "outcome": outcome, "age": age})


def unanswered_calls(engine: Engine) -> list[str]:
    return [task for (task,) in rows(engine, "SELECT task_id FROM requests WHERE answered_at IS NULL")]


@pytest.mark.parametrize(
    "outcome",
    [
        '{"error": {"type": "graph_migrator.ErrorOfALaterRelease", "args": ["g", 3]}}',
        '{"error": {"type": "graph_migrator.UnknownGraph", "args": ["g", "one too many"]}}',
        '{"error": {"type": "graph_migrator.DanglingEdges", "args": ["g", "no number", 7]}}',
        '{"error": {"type": "graph_migrator.name_of", "args": ["g"]}}',
    ],
)
def test_a_recorded_error_that_this_release_cannot_build_is_answered_with_its_code(
    here: Cluster, outcome: str
) -> None:
    add_call(here.engine, "strange", outcome, age=90)
    add_call(here.engine, "behind it")
    assert recover.sweep_once()["answered"] == 2
    error = app.AsyncResult("strange").result
    recorded = json.loads(outcome)["error"]
    assert isinstance(error, UnreadableOutcome)
    assert (error.code, error.fields) == (recorded["type"], recorded["args"])
    assert app.AsyncResult("behind it").result == {"graph": "g"}
    assert unanswered_calls(here.engine) == []


def test_a_caller_that_cannot_be_answered_hinders_no_other_and_is_tried_ever_more_rarely(
    here: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_call(here.engine, "poison", age=90)
    add_call(here.engine, "behind it")
    tried: list[str] = []
    store = answers._store

    def fail(task_id: str, result: Any) -> None:
        tried.append(task_id)
        if task_id == "poison":
            raise ValueError("this one cannot be stored")
        store(task_id, result)

    monkeypatch.setattr(answers, "_store", fail)
    assert recover.sweep_once()["answered"] == 1
    assert app.AsyncResult("behind it").state == "SUCCESS"
    assert recover.sweep_once()["answered"] == 0  # it has a pause
    assert tried == ["poison", "behind it"]
    for _ in range(3):
        with here.engine.begin() as connection:
            connection.execute(text("UPDATE requests SET next_answer_at = now() WHERE task_id = 'poison'"))
        recover.sweep_once()
    shown = "answer_failures, unanswered_because, round(extract(epoch FROM next_answer_at - now())) > 4"
    assert rows(here.engine, f"SELECT {shown} FROM requests WHERE task_id = 'poison'") == [
        (4, "ValueError: this one cannot be stored", True)
    ]


def test_a_caller_is_not_tried_for_longer_than_a_result_is_kept(
    here: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_call(here.engine, "late", age=app.conf.result_expires + 60)

    def fail(task_id: str, result: Any) -> None:
        raise ValueError("this one cannot be stored")

    monkeypatch.setattr(answers, "_store", fail)
    recover.sweep_once()
    assert unanswered_calls(here.engine) == []
    assert rows(here.engine, "SELECT unanswered_because FROM requests") == [
        ("ValueError: this one cannot be stored",)
    ]


def test_a_backend_that_is_away_is_not_asked_for_each_caller(
    here: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        add_call(here.engine, f"call-{number}")
    tried: list[str] = []

    def fail(task_id: str, result: Any) -> None:
        tried.append(task_id)
        raise OSError("away")

    monkeypatch.setattr(answers, "_store", fail)
    recover.sweep_once()
    assert len(tried) == 10
    untouched = "SELECT 1 FROM requests WHERE answer_failures = 0 AND answered_at IS NULL"
    assert len(rows(here.engine, untouched)) == 20


@pytest.mark.parametrize("backend", ["rpc://", "disabled://"])
def test_a_backend_that_keeps_no_results_hinders_no_sweep(
    tmp_path: Path, database_url: str, redis_server: Redis, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    env = {"CELERY_RESULT_BACKEND": backend}
    with Cluster(tmp_path, database_url=database_url, redis=redis_server, env=env) as here:
        add_call(here.engine, "call")
        with caplog.at_level(logging.WARNING):
            assert recover.sweep_once()["answered"] == 0
        assert unanswered_calls(here.engine) == []
        assert rows(here.engine, "SELECT unanswered_because FROM requests") == [
            (f"{backend} keeps no results",)
        ]
        assert caplog.text == ""
        with pytest.raises(ResultsNotKept, match="wait_for"):
            migrate_graph.AsyncResult("call").get(timeout=30)
        finding = _of_the_results()
        assert (finding.level, "wait_for" in str(finding.remedy)) == ("warning", True)
