"""Applications, and a migration that is driven by hand, on one graph."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.integration.hand_driven import Client, HandDriven, add_graph


@pytest.fixture
def app(database_url: str) -> Iterator[Client]:
    """A session of an application."""
    client = Client(database_url)
    yield client
    client.close()


@pytest.fixture
def writer(database_url: str, isolation: str) -> Iterator[Client]:
    """A session of an application, in transactions of the isolation level that the test is given."""
    client = Client(database_url, isolation)
    yield client
    client.close()


@pytest.fixture
def graph(app: Client) -> UUID:
    """The graph `people`, at v1."""
    return add_graph(app, "people")


@pytest.fixture
def hops() -> int:
    """How many hops `migration` has; a module may say otherwise."""
    return 1


@pytest.fixture
def migration(database_url: str, graph: UUID, hops: int) -> Iterator[HandDriven]:
    """A migration of the graph that has not begun."""
    migration = HandDriven(database_url, graph, hops=hops)
    yield migration
    migration.close()
