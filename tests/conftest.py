"""Real servers for the tests: one Postgres and one Redis a session, a database of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg2
import pytest
from sqlalchemy import Engine

from core import registry
from core.embedded import Postgres, Redis
from core.settings import settings
from core.store.engine import make_engine
from core.store.executor import Executors
from core.store.schema import upgrade


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A private Postgres. Without fsync: killed processes are what the tests kill, not the machine."""
    with Postgres(durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A private Redis."""
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def template_database(postgres: Postgres) -> str:
    """A database with our schema, from which each test's database is copied."""
    _administer(postgres, "CREATE DATABASE template_migrated")
    upgrade(postgres.url_of("template_migrated"))
    return "template_migrated"


@pytest.fixture
def database_url(postgres: Postgres, template_database: str) -> Iterator[str]:
    """The URL of a fresh database with our schema."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(postgres, f"CREATE DATABASE {name} TEMPLATE {template_database} STRATEGY file_copy")
    yield postgres.url_of(name)
    _administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh database without our schema."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(postgres, f"CREATE DATABASE {name}")
    yield postgres.url_of(name)
    _administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on the test's database."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def executors(engine: Engine) -> Iterator[Executors]:
    """This process's executors on the test's database."""
    executors = Executors(engine)
    yield executors
    executors.close()


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """No test inherits another's settings or graph types."""
    yield
    registry.reset()
    settings.cache_clear()


def _administer(postgres: Postgres, statement: str) -> None:
    connection = psycopg2.connect(postgres.url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()
