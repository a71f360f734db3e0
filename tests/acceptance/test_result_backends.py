"""Redis as broker, with each kind of result backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from graph_migrator.core.embedded import Redis
from tests.acceptance.pairs import everything_holds, stage_of


@pytest.mark.parametrize("results", [None, "db", "rpc://", "disabled://"], ids=["redis", "db", "rpc", "none"])
def test_what_must_hold_with_redis_and(
    tmp_path: Path, database_url: str, redis_server: Redis, results: str | None
) -> None:
    with stage_of(tmp_path, database_url, redis_server, broker=None, results=results) as stage:
        everything_holds(stage)
