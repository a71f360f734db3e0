"""What the tests against a real Postgres have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from graph_migrator.core.embedded import Redis
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from tests.acceptance.cluster import Cluster
from tests.integration.scripted import SCRIPT, TYPES, Script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """The scripted graph types, known to this process; batches of ten, short pauses between two tries."""
    monkeypatch.setenv("GRAPH_MIGRATOR_BATCH_TARGET_SECONDS", "0.000001")
    monkeypatch.setenv("GRAPH_MIGRATOR_RETRY_BASE_SECONDS", "0.001")
    monkeypatch.setenv("GRAPH_MIGRATOR_RETRY_MAX_SECONDS", "0.01")
    monkeypatch.delenv("GRAPH_MIGRATOR_TYPES", raising=False)
    settings.cache_clear()
    for each in TYPES:
        registry.register(each)
    SCRIPT.clear()
    yield SCRIPT
    SCRIPT.clear()


@pytest.fixture
def here(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    """Services without a worker; this process is connected to them."""
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        yield cluster
