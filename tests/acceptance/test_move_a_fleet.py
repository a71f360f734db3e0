"""docs/move-a-fleet.md from top to bottom: its commands in order, with the deploys and deaths that it speaks of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from graph_migrator.core.embedded import Redis
from tests.acceptance.cluster import ROOT, Cluster
from tests.integration.console import spawn
from tests.rows import rows
from tests.waiting import until

PAGE = ROOT / "docs" / "move-a-fleet.md"
TYPES = "tests.acceptance.fleet_types:tenant"
MENDED = {"GRAPH_MIGRATOR_TEST_MENDED": "1"}
TENANTS = 120


def sections() -> dict[str, list[str]]:
    """The commands of the page, by the first words of their headings."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        heading = part.partition("\n")[0].partition(": ")[0]
        found[heading] = re.findall(r"^\$ (.+)$", part, re.MULTILINE)
    return found


@pytest.fixture
def cluster(tmp_path: Path, database_url: str, redis_server: Redis) -> Any:
    with Cluster(tmp_path, database_url=database_url, redis=redis_server, types=TYPES) as cluster:
        yield cluster


@pytest.mark.timeout(300)
def test_the_commands_of_the_page_move_a_fleet(cluster: Cluster) -> None:
    page = sections()
    assert sum(map(len, page.values())) == 17
    for number in range(TENANTS):
        cluster.add_graph(f"t{number:03}", "tenant", nodes=2, label="Odd" if number == 77 else "Person")

    def run(heading: str, extra: dict[str, str] | None = None) -> list[str]:
        outputs = []
        for line in page.pop(heading):
            command, may_fail, _ = line.partition(" || true")
            program, *words = shlex.split(command)
            assert program == "graph-migrator"
            done = spawn(*words, env=cluster.environment | (extra or {}), cwd=cluster.folder, seconds=120)
            assert done.exit_code == 0 or may_fail, f"{command}\n{done.out}\n{done.err}"
            outputs.append(done.out)
        return outputs

    old = [cluster.start_worker(name, wait=False) for name in ("w1", "w2")]
    for worker in old:
        worker.wait_until_ready()
    until(lambda: len(rows(cluster.engine, "SELECT 1 FROM workers")) == 2, "both workers have a row")
    seen, planned = run("Monday")
    assert "tenant v3" in seen
    assert f"{TENANTS} graphs: {TENANTS} from v1" in planned
    started, watched = run("Tuesday, 09:00")
    assert "started" in started
    assert watched.splitlines()[-1].startswith("held: ")
    shown, errors = run("09:01")
    assert "of the canaries failed (t077" in shown
    assert "ValueError" in errors
    assert rows(cluster.engine, "SELECT count(*) FROM graphs WHERE version = 1")[0][0] >= TENANTS - 5

    for worker in old:
        cluster.kill_worker(worker)
    doomed = cluster.start_worker("w3", env=MENDED)
    cluster.start_worker("w4", env=MENDED)
    *_, watched = run("10:30", MENDED)
    assert "its gate is manual" in watched.splitlines()[-1]
    cluster.kill_worker(doomed)
    *_, watched = run("10:45", MENDED)
    assert watched.splitlines()[-1].startswith(f"succeeded: {TENANTS} of {TENANTS} moved, 0 failed")
    shown, _, changes = run("12:00", MENDED)
    assert shown.startswith("succeeded: every graph is at the target")
    assert [
        word for word in ("start", "hold", "retry", "resume", "promote", "set", "end") if word not in changes
    ] == []
    assert rows(cluster.engine, "SELECT DISTINCT version FROM graphs") == [(3,)]

    _, policy = run("From now on", MENDED)
    assert "automatic" in policy
    assert page == {}
    # The page waits for two minutes; here the workers that were killed have to be forgotten first.
    outcome = spawn(
        "policy", "set", "tenant", "automatic", "--settle-seconds", 0, env=cluster.environment | MENDED
    )
    assert outcome.exit_code == 0, outcome
    cluster.add_graph("restored", "tenant", nodes=1)
    moved = "SELECT 1 FROM graphs WHERE slug = 'restored' AND version = 3"
    until(lambda: rows(cluster.engine, moved) != [], "a restored tenant moves by itself", seconds=90)
    by = rows(cluster.engine, "SELECT automatic, requested_by FROM rollouts ORDER BY started_at")
    assert by[-1] == (True, "policy")
