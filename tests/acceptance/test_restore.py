"""Point-in-time restore while migrations were in flight: a base backup, and the WAL up to a moment in the middle."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from graph_migrator import migrate_graph
from graph_migrator.core.audit.validate import validate
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.embedded import Postgres, Redis
from graph_migrator.core.embedded.server import unprivileged_user
from graph_migrator.core.store.schema import upgrade
from tests.acceptance.cluster import Cluster
from tests.acceptance.types_for_tests import batched_trail, trail
from tests.rows import attempts, graph_row, properties, rows
from tests.waiting import until

SOON = 60
SMALL_BATCHES = {"GRAPH_MIGRATOR_BATCH_TARGET_SECONDS": "0.000001"}
TYPES = {"trail": trail, "batched_trail": batched_trail}


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in which Postgres' own user may write; not below pytest's, which nobody else may enter."""
    folder = Path(tempfile.mkdtemp(prefix="gm-restore-"))
    folder.chmod(0o755)
    for name in ("wal", "restored"):
        (folder / name).mkdir()
        _give_to_postgres(folder / name)
    yield folder
    shutil.rmtree(folder)


def _give_to_postgres(path: Path) -> None:
    user = unprivileged_user()
    if user is not None:
        for each in (path, *path.rglob("*")):
            os.chown(each, user.pw_uid, user.pw_gid)


def base_backup(server: Postgres, to: Path) -> None:
    """A copy of the running server's files, as a base backup is made without `pg_basebackup`."""
    with closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backup_start('base', true)")
        shutil.copytree(
            server.folder / "data",
            to / "data",
            ignore=shutil.ignore_patterns("postmaster.pid", "postmaster.opts", "pg_wal"),
        )
        (to / "data" / "pg_wal").mkdir()
        cursor.execute("SELECT labelfile FROM pg_backup_stop(false)")
        (to / "data" / "backup_label").write_text(cursor.fetchone()[0])
    (to / "data" / "recovery.signal").touch()
    (to / "data").chmod(0o700)
    for name in ("password", "made"):
        shutil.copy(server.folder / name, to / name)
    _give_to_postgres(to)


@pytest.mark.timeout(240)
def test_a_database_restored_to_the_middle_of_migrations_is_live_settled_or_recovered(
    place: Path, tmp_path: Path, redis_server: Redis
) -> None:
    archiving = {"archive_mode": "on", "archive_command": f"cp %p {place}/wal/%f", "wal_level": "replica"}
    with Postgres(settings=archiving) as before:
        upgrade(before.url)
        with Cluster(
            tmp_path / "before", database_url=before.url, redis=redis_server, env=SMALL_BATCHES
        ) as cluster:
            for slug in ("done", "held", "failed", "waiting", "after"):
                cluster.add_graph(slug, "trail")
            cluster.add_graph("half", "batched_trail", nodes=3_000)
            base_backup(before, place / "restored")
            cluster.start_worker(concurrency=2)
            migrate_graph.delay("done", 3).get(timeout=SOON)
            cluster.steer("fail", "failed", "second", "not today")
            with pytest.raises(Exception, match="not today"):
                migrate_graph.delay("failed", 3).get(timeout=SOON)
            held = cluster.steer("hold", "held", "second")
            results = [migrate_graph.delay("held", 4)]
            cluster.pid_in("held", "second")
            _stop_half_way(cluster)
            results.append(migrate_graph.delay("waiting", 2))  # both processes of the pool are busy
            with closing(psycopg2.connect(before.url)) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT pg_create_restore_point('in the middle')")
            held.unlink()
            (cluster.folder / "hold-half-visit").unlink()
            for result in [*results, migrate_graph.delay("after", 2)]:
                result.get(timeout=SOON)
            with closing(psycopg2.connect(before.url)) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT pg_walfile_name(pg_switch_wal())")
                last = cursor.fetchone()[0]
            until(lambda: (place / "wal" / last).exists(), "the WAL archived", seconds=SOON)

    to_the_middle = {
        "restore_command": f"cp {place}/wal/%f %p",
        "recovery_target_name": "in the middle",
        "recovery_target_action": "promote",
    }
    with (
        Postgres(place / "restored", settings=to_the_middle) as restored,
        Cluster(tmp_path / "restored", database_url=restored.url, redis=redis_server) as cluster,
    ):
        until(
            lambda: rows(cluster.engine, "SELECT pg_is_in_recovery()") == [(False,)], "promoted", seconds=SOON
        )
        assert graph_row(cluster.engine, "after").version == 1, "what came after that moment is not there"
        assert ("second", "running") in attempts(cluster.engine, "held")
        assert rows(cluster.engine, "SELECT count(*) > 0 FROM checkpoints") == [(True,)]
        assert validate(cluster.engine, TYPES).is_valid
        assert verify_chains(cluster.engine).count == 0

        cluster.start_worker(concurrency=2)  # the broker is empty
        live = "SELECT count(*) FROM graphs WHERE migration_id IS NOT NULL AND slug <> 'failed'"
        until(lambda: rows(cluster.engine, live) == [(0,)], "all recovered", seconds=SOON)
        versions = {
            slug: graph_row(cluster.engine, slug).version for slug in ("done", "held", "half", "failed")
        }
        assert versions == {"done": 3, "held": 4, "half": 3, "failed": 2}
        trails = {tuple(values["trail"]) for values in properties(cluster.engine, "held").values()}
        assert trails == {("first", "second", "third")}, "each hop took effect once"
        trails = {tuple(values["trail"]) for values in properties(cluster.engine, "half").values()}
        assert trails == {("visit", "arrive")}
        assert attempts(cluster.engine, "held")[1:3] == [("second", "lost"), ("second", "succeeded")]
        assert validate(cluster.engine, TYPES).is_valid
        assert verify_chains(cluster.engine).count == 0


def _stop_half_way(cluster: Cluster) -> None:
    """A batched hop with some batches committed, whose code then holds."""
    migrate_graph.delay("half", 3)
    saved = "SELECT count(*) FROM checkpoints c JOIN migrations m ON m.id = c.migration_id"
    until(lambda: rows(cluster.engine, saved) == [(1,)], "a batch committed", seconds=SOON, pause=0.001)
    cluster.steer("hold", "half", "visit")
