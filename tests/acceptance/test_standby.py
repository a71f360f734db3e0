"""A real standby that falls behind slows a rollout down, holds it, and lets it go on when it has caught up."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from graph_migrator.core.embedded import Postgres
from graph_migrator.core.embedded.server import end_with_parent
from graph_migrator.core.graph_types import registry
from graph_migrator.core.rollouts import readings
from graph_migrator.core.rollouts.health import Level, SignalState
from graph_migrator.core.rollouts.statuses import HoldReason, RolloutStatus
from graph_migrator.core.settings import settings
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors
from tests.integration.fleet_inline import QUICK, Fleet, add_tenants, tenants
from tests.waiting import until

BULK = "INSERT INTO public.bulk SELECT repeat(md5(random()::text), 30) FROM generate_series(1, 4000)"
"""About four megabytes of WAL."""


class Standby(Postgres):
    """A streaming replica of another server, made by pg_basebackup."""

    def __init__(self, primary: Postgres, folder: Path) -> None:
        super().__init__(folder, durable=False)
        self._primary, self._password = primary, primary._password

    def _prepare(self) -> None:
        user = self._user()
        self._data.mkdir(mode=0o700)
        if user is not None:
            for path in (self.folder, self._data):
                os.chown(path, user.pw_uid, user.pw_gid)
        subprocess.run(
            [
                str(self._programs / "pg_basebackup"), "--pgdata", f"{self._seen_folder()}/data",
                "--write-recovery-conf", "--dbname", self._primary.url, "--checkpoint", "fast",
            ],
            preexec_fn=end_with_parent(signal.SIGTERM, user), pass_fds=self._inherited(), cwd="/", check=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def primary() -> Iterator[Postgres]:
    with Postgres(durable=False) as server:
        upgrade(server.url)
        yield server


@pytest.fixture
def fleet(primary: Postgres) -> Iterator[Fleet]:
    engine = make_engine(primary.url)
    executors = Executors(engine)
    registry.register(tenants())
    yield Fleet(executors)
    executors.close()
    engine.dispose()
    registry.reset()


def read(engine: Engine, fleet: Fleet) -> SignalState:
    with engine.begin() as connection:
        connection.execute(text("UPDATE health_signals SET measured_at = measured_at - interval '6 s'"))
    states = fleet.do(readings.read_if_due, 0)
    return next(state for state in states if state.name == "replica_behind")


def write(engine: Engine, megabytes: int) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS public.bulk (line text)"))
        for _ in range(megabytes // 4):
            connection.execute(text(BULK))


def test_a_standby_that_falls_behind_slows_holds_and_lets_go(
    primary: Postgres, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = settings().model_copy(update={"health_limits": {"replica_behind": (4, 20)}})
    monkeypatch.setattr(readings, "settings", lambda: limits)
    engine = fleet.executors.engine
    add_tenants(engine, 12)
    fleet.start(QUICK.model_copy(update={"canaries": 0, "waves": (100,), "max_in_flight": 4}))
    with Standby(primary, tmp_path / "standby") as standby:
        replica = make_engine(standby.url)
        until(lambda: read(engine, fleet).level is Level.GOOD, "the standby has caught up", seconds=30)
        with replica.begin() as connection:
            connection.execute(text("SELECT pg_wal_replay_pause()"))
        write(engine, 8)
        until(lambda: read(engine, fleet).level is Level.SLOW, "it falls behind", seconds=20)
        assert fleet.show().pace < 4
        fleet.turn()
        write(engine, 24)
        until(lambda: read(engine, fleet).level is Level.STOP, "it falls far behind", seconds=20)
        fleet.deliver()
        fleet.turn()
        state = fleet.show()
        assert state.rollout.hold is HoldReason.HEALTH
        assert "replica_behind is" in state.why
        with replica.begin() as connection:
            connection.execute(text("SELECT pg_wal_replay_resume()"))

        def caught_up() -> bool:
            found = read(engine, fleet)
            with engine.begin() as connection:
                connection.execute(
                    text("UPDATE health_signals SET better_since = better_since - interval '31 s'")
                )
            return found.level is Level.GOOD

        until(caught_up, "the standby has caught up again", seconds=30)
        replica.dispose()
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED
