"""Fixtures: a private Postgres, a database for each test, and graphs in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Protocol

import pytest
from sqlalchemy import Engine, text

from graph_migrator.core.embedded import Postgres
from graph_migrator.core.graph_types import registry
from graph_migrator.core.graph_types.data import Edge, Node
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.store import schema
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.testing.sample import SampleGraph


class MakeGraph(Protocol):
    """What the fixture `make_graph` gives."""

    def __call__(
        self,
        graph_type: GraphType,
        *,
        version: int | None = None,
        nodes: Sequence[Node] = (),
        edges: Sequence[Edge] = (),
    ) -> SampleGraph:
        """Make a graph from literals; at its type's oldest version where none is named."""


@pytest.fixture(scope="session")
def graph_server() -> Iterator[Postgres]:
    """A private Postgres for the whole run, gone with it. Without fsync: it need not survive a power cut."""
    with Postgres(durable=False) as server:
        yield server


@pytest.fixture
def graph_database(graph_server: Postgres) -> Iterator[Engine]:
    """An engine on a fresh database with our schema."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    server = make_engine(graph_server.url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = make_engine(graph_server.url_of(name))
    schema.upgrade(engine)
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def make_graph(graph_database: Engine) -> Iterator[MakeGraph]:
    """Makes graphs from literals; their types are known to this process until the test ends."""

    def make(
        graph_type: GraphType,
        *,
        version: int | None = None,
        nodes: Sequence[Node] = (),
        edges: Sequence[Edge] = (),
    ) -> SampleGraph:
        registry.register(graph_type)
        first = graph_type.oldest if version is None else version
        return SampleGraph(graph_database, graph_type, first, nodes, edges).insert()

    yield make
    registry.reset()
