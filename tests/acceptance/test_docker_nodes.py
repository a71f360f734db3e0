"""The same promises of containers as of local processes, in pytest-celery's words.

Where no container engine answers, the local nodes run every assertion.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.result import AsyncResult
from pytest_celery import CeleryTestWorker

from tests.acceptance.fleets import Fleet, fleet, kinds
from tests.rows import add_graph, one, rows
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)
PATIENT = 90
NODES = 3_000


@pytest.fixture(params=kinds())
def nodes(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> Iterator[Fleet]:
    with fleet(request.param, tmp_path, database_url) as made:
        yield made


def half_way(nodes: Fleet) -> tuple[AsyncResult, CeleryTestWorker, CeleryTestWorker]:
    """A migration that is some batches into its second hop; the node that executes it, and the other."""
    add_graph(nodes.engine, "novel", "knowledge", nodes=NODES)
    result = nodes.app.send_task("tasks.migrate_graph", args=["novel", 3], queue="migrations")
    statement = "SELECT worker FROM hop_attempts WHERE status = 'running' AND to_version = 3 AND batches > 2"
    ((executor,),) = until(lambda: rows(nodes.engine, statement), "the second hop half-way", seconds=PATIENT)
    first, second = sorted(nodes.workers, key=lambda node: node.hostname() != executor)
    assert first.hostname() == executor
    return result, first, second


def assert_each_node_was_rewritten_once(nodes: Fleet) -> None:
    graph = one(nodes.engine, "SELECT version, migration_id FROM graphs WHERE slug = 'novel'")
    assert tuple(graph) == (3, None)
    counted = one(
        nodes.engine,
        "SELECT count(*) FILTER (WHERE properties = jsonb_build_object('name', id)) AS new, count(*) AS all FROM nodes",
    )
    assert tuple(counted) == (NODES, NODES)
    changed = one(nodes.engine, "SELECT sum(rows_changed) FROM hop_attempts WHERE to_version = 3")
    assert int(changed[0]) == NODES


def test_another_service_migrates_a_graph_through_the_nodes(nodes: Fleet) -> None:
    add_graph(nodes.engine, "novel", "knowledge", nodes=NODES)
    result = nodes.app.send_task("tasks.migrate_graph", args=["novel", 3], queue="migrations")
    shown = result.get(timeout=PATIENT)
    assert (shown["graph"], shown["status"], shown["version"]) == ("novel", "succeeded", 3)
    assert_each_node_was_rewritten_once(nodes)


def test_a_killed_node_is_replaced_by_the_other(nodes: Fleet) -> None:
    result, executing, other = half_way(nodes)
    executing.kill()
    assert result.get(timeout=PATIENT)["status"] == "succeeded"
    assert_each_node_was_rewritten_once(nodes)
    attempts = rows(nodes.engine, "SELECT status FROM hop_attempts WHERE to_version = 3 ORDER BY id")
    assert attempts == [("lost",), ("succeeded",)]
    other.assert_log_exists("event=migration_recovered")


def test_nodes_and_broker_are_killed_and_one_node_comes_back(nodes: Fleet) -> None:
    result, executing, other = half_way(nodes)
    executing.kill()
    other.kill()
    nodes.broker.kill()
    nodes.broker.restart()
    other.restart()
    assert result.get(timeout=PATIENT)["status"] == "succeeded"
    assert_each_node_was_rewritten_once(nodes)


def test_a_node_that_is_asked_to_stop_loses_nothing(nodes: Fleet) -> None:
    result, executing, _ = half_way(nodes)
    executing.kill(signal="SIGTERM")
    assert result.get(timeout=PATIENT)["status"] == "succeeded"
    assert_each_node_was_rewritten_once(nodes)
