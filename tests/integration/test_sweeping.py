"""A sweep serves everybody: neither one broken migration nor one worker that is cut off holds it up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator.core.embedded import Redis
from graph_migrator.core.execution.begin import Dispatch, begin_migration
from graph_migrator.core.execution.recovery import sweep, sweeping
from graph_migrator.core.store.session import Executors
from graph_migrator.tasks import recover
from tests.acceptance.cluster import Cluster
from tests.rows import add_graph, migration_of, rows


@pytest.fixture
def here(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    """Services without a worker; this process is connected to them."""
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        yield cluster


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
    monkeypatch.setattr(recover, "_store", wait)
    done = recover.sweep_once()
    assert (done["sent"], done["answered"]) == (1, 1)
    assert [type(what) for what in waited] == [Dispatch, str]
    assert rows(here.engine, "SELECT 1 FROM requests WHERE answered_at IS NULL") == []
