"""Crashes of whole nodes, in pytest-celery's terms: the same assertions hold for Docker nodes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from celery import Celery
from celery.result import AsyncResult
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
)

from tests.acceptance.crash import ledger
from tests.acceptance.crash.local_nodes import LocalRedis, LocalWorker
from tests.acceptance.crash.stage import PATIENT, Stage
from tests.rows import add_graph, rows

FIRST = ledger.HOPS[0]


@pytest.fixture
def celery_broker(stage: Stage) -> Iterator[CeleryTestBroker]:
    broker = CeleryTestBroker(LocalRedis(stage.redis, stage.broker_url))
    yield broker
    broker.teardown()


@pytest.fixture
def celery_backend(stage: Stage) -> CeleryTestBackend:
    return CeleryTestBackend(LocalRedis(stage.redis, stage.result_backend))


@pytest.fixture
def celery_backend_cluster(celery_backend: CeleryTestBackend) -> CeleryBackendCluster:
    return CeleryBackendCluster(celery_backend)


@pytest.fixture
def celery_broker_cluster(celery_broker: CeleryTestBroker) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(celery_broker)


@pytest.fixture
def celery_worker_cluster(stage: Stage, celery_setup_app: Celery) -> Iterator[CeleryWorkerCluster]:
    """Two workers."""
    stage.keep(0)
    cluster = CeleryWorkerCluster(*(CeleryTestWorker(LocalWorker(stage), celery_setup_app) for _ in range(2)))
    assert cluster.ready()
    yield cluster
    for node in cluster:
        node.teardown()


def hold_a_hop(
    stage: Stage, setup: CeleryTestSetup
) -> tuple[str, AsyncResult, CeleryTestWorker, CeleryTestWorker]:
    """A migration asked for by another service, held half-way through its first hop.

    Returns:
        The graph, the result, the node that executes, and the other one.
    """
    slug = f"g-{uuid.uuid4().hex[:12]}"
    add_graph(stage.engine, slug, "ledger", nodes=ledger.NODES)
    stage.arm("hop_in_data:2")
    result = setup.app.send_task("tasks.migrate_graph", args=[slug, 4], queue="migrations")
    stage.held()
    ((executor,),) = rows(stage.engine, "SELECT worker FROM hop_attempts WHERE status = 'running'")
    nodes = sorted(setup.worker_cluster, key=lambda node: node.hostname() != executor)
    assert nodes[0].hostname() == executor
    return slug, result, nodes[0], nodes[1]


def test_a_killed_node_is_replaced_by_the_other(stage: Stage, celery_setup: CeleryTestSetup) -> None:
    slug, result, executing, other = hold_a_hop(stage, celery_setup)

    executing.kill()
    stage.let_go()

    assert result.get(timeout=PATIENT)["status"] == "succeeded"
    stage.assert_exactly_once(slug, {FIRST: {"lost"}})
    other.assert_log_exists("sent again as dispatch 2")


def test_all_nodes_are_killed_with_their_broker_and_one_comes_back(
    stage: Stage, celery_setup: CeleryTestSetup
) -> None:
    slug, result, executing, other = hold_a_hop(stage, celery_setup)

    executing.kill()
    other.kill()
    celery_setup.broker.kill()
    celery_setup.broker.restart()
    stage.let_go()
    other.restart()

    assert result.get(timeout=PATIENT)["status"] == "succeeded"
    stage.assert_exactly_once(slug, {FIRST: {"lost"}})


def test_a_node_that_is_asked_to_end_finishes_its_hop(stage: Stage, celery_setup: CeleryTestSetup) -> None:
    slug, result, executing, _ = hold_a_hop(stage, celery_setup)

    executing.kill(signal="SIGTERM")
    executing.wait_for_log("Warm shutdown")
    stage.let_go()

    assert result.get(timeout=PATIENT)["status"] == "succeeded"
    stage.assert_exactly_once(slug)
