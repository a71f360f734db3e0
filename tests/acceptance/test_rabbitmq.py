"""RabbitMQ as broker: each kind of result backend, the crash matrix's main points, and its consumer_timeout.

Run where `rabbitmq-server` is; see tests/conftest.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from graph_migrator import app, migrate_graph, wait_for
from graph_migrator.core.embedded import Redis
from tests.acceptance.cluster import QUEUE
from tests.acceptance.crash.matrix import FIRST, LAST, WALK, Case, Death, Place
from tests.acceptance.crash.stage import PATIENT, Stage
from tests.acceptance.crash.test_matrix import stumbles_of, workers_for
from tests.acceptance.pairs import everything_holds, stage_of
from tests.acceptance.rabbitmq import RabbitMQ, waiting_messages
from tests.rows import attempts, rows
from tests.waiting import until

# py-amqp leaves the socket of a connection that was cut to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ() as server:
        yield server


@pytest.fixture(autouse=True)
def _empty_queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test inherits another's messages."""
    yield
    if "rabbitmq" in request.fixturenames:
        url = request.getfixturevalue("rabbitmq").url
        with app.connection_for_write(url) as connection:
            connection.default_channel.queue_delete(QUEUE)


@pytest.mark.parametrize("results", ["rpc://", "db", None, "disabled://"], ids=["rpc", "db", "redis", "none"])
def test_what_must_hold_with_rabbitmq_and(
    tmp_path: Path, database_url: str, redis_server: Redis, rabbitmq: RabbitMQ, results: str | None
) -> None:
    with stage_of(tmp_path, database_url, redis_server, broker=rabbitmq.url, results=results) as stage:
        everything_holds(stage)


MAIN_POINTS: list[Case] = [
    (Place("begin_before_commit"), Death.GROUP),
    (Place("begin_committed"), Death.ONLY),
    (Place("hop_after_data", 1, FIRST), Death.CHILD),
    (Place("hop_committed"), Death.GROUP),
    (Place("batch_committed", 1, WALK), Death.GROUP),
    (Place("hop_published", 2), Death.CHILD),
    (Place("hop_before_commit", 3, LAST), Death.ONLY),
    (Place("hop_committed", 3), Death.GROUP),
]


def test_a_migration_survives_any_death_on_rabbitmq(
    tmp_path: Path, database_url: str, redis_server: Redis, rabbitmq: RabbitMQ
) -> None:
    env = {"CELERY_BROKER_URL": rabbitmq.url}
    with Stage(tmp_path, database_url=database_url, redis=redis_server, env=env) as stage:
        for place, death in MAIN_POINTS:
            stage.keep(workers_for(death))
            slug = f"g-{uuid.uuid4().hex[:12]}"
            stage.arm(str(place))
            result = stage.migrate(slug)

            pid = stage.held()
            (stage.kill_process if death is Death.CHILD else stage.kill_group)(pid)
            if death is Death.ONLY:
                stage.start_another()

            # Also a call that nobody had begun: RabbitMQ delivers again what a dead worker had in hand.
            assert result.get(timeout=PATIENT).version == 4, (place, death)
            stage.assert_exactly_once(slug, stumbles_of(place, death))
        stage.keep(1)
        with app.connection_for_write() as connection:
            until(lambda: waiting_messages(connection, QUEUE) == 0, "no message left", seconds=PATIENT)
        left = "SELECT task_id FROM requests WHERE answered_at IS NULL"
        until(lambda: not rows(stage.engine, left), "every call dealt with", seconds=PATIENT)


def test_consumer_timeout_does_not_end_a_hop(tmp_path: Path, database_url: str, redis_server: Redis) -> None:
    """RabbitMQ closes the worker's channel while the hop runs; the hop ends, once, and the worker goes on."""
    settings = {"consumer_timeout": "500", "channel_tick_interval": "250"}
    with (
        RabbitMQ(settings=settings) as rabbitmq,
        stage_of(tmp_path, database_url, redis_server, broker=rabbitmq.url, results=None) as stage,
    ):
        stage.keep(1)
        (worker,) = stage.alive
        stage.add_graph("long", "trail")
        held = stage.steer("hold", "long", "second")
        result = migrate_graph.delay("long", 4)
        stage.pid_in("long", "second")
        until(lambda: "PRECONDITION_FAILED" in worker.text(), "the channel closed", seconds=PATIENT)
        held.unlink()
        assert result.get(timeout=PATIENT).version == 4
        assert worker.is_alive
        assert attempts(stage.engine, "long") == [(hop, "succeeded") for hop in ("first", "second", "third")]
        assert stage.started("long") == {"first": 1, "second": 1, "third": 1}
        stage.add_graph("next", "trail")
        assert wait_for(migrate_graph.delay("next", 2), PATIENT).version == 2
