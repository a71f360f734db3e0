"""A worker's channels keep their Redis client, and no longer than the pool that it takes connections from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES

from graph_migrator.core.embedded import Redis
from graph_migrator.tasks import redis_transport
from graph_migrator.tasks.celery import app


@pytest.fixture
def channel(redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("redis", "rediss"):
        monkeypatch.setitem(TRANSPORT_ALIASES, name, redis_transport.NAME)
    with Connection(redis_server.url, transport=redis_transport.NAME) as connection:
        yield connection.default_channel


def client_of(channel: Any) -> Any:
    with channel.conn_or_acquire() as client:
        return client


def test_a_channel_keeps_one_client_of_its_pool(channel: Any) -> None:
    client = client_of(channel)
    assert client_of(channel) is client
    assert client.ping()
    assert client.connection is None  # it takes one from the pool for each command


def test_what_waits_for_messages_has_clients_of_its_own(channel: Any) -> None:
    assert len({id(client_of(channel)), id(channel.client), id(channel.subclient)}) == 3


def test_another_pool_brings_another_client(channel: Any) -> None:
    before = client_of(channel)
    channel._disconnect_pools()
    after = client_of(channel)
    assert after is not before
    assert after.ping()
    assert after.connection_pool is channel.pool


def test_the_transport_is_that_of_our_workers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"redis": "kombu's own", "rediss": "kombu's own", "sentinel": "kombu's own"}
    monkeypatch.setattr(redis_transport, "TRANSPORT_ALIASES", theirs)
    redis_transport._use(instance=type("Worker", (), {"app": object()})())
    assert set(theirs.values()) == {"kombu's own"}
    redis_transport._use(instance=type("Worker", (), {"app": app})())
    assert theirs["redis"] == theirs["rediss"] == redis_transport.NAME
