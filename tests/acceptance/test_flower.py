"""What an operator sees in Flower: a real Flower, a real worker, through Flower's HTTP API."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from graph_migrator import cancel_migration, migrate_graph, pause_migration, resume_migration
from graph_migrator.core.embedded import Redis
from graph_migrator.core.errors import MigrationCancelled
from graph_migrator.tasks.serving import Flower
from tests.acceptance.cluster import Cluster
from tests.databases import Databases
from tests.rows import migration_of
from tests.waiting import until

SOON = 40


class Api:
    """Flower's HTTP API as its operator uses it."""

    def __init__(self, flower: Flower) -> None:
        self.flower = flower

    def status(self, path: str, user: str | None = None, password: str | None = None) -> int:
        return self._ask(path, user, password)[0]

    def get(self, path: str) -> Any:
        status, text = self._ask(path, self.flower.user, self.flower.password)
        assert status == 200, f"{path}: {status}"
        return json.loads(text)

    def row(self, task_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until a task's row is as expected, and return it."""

        def found() -> dict[str, Any] | None:
            status, text = self._ask(f"/api/task/info/{task_id}", self.flower.user, self.flower.password)
            row: dict[str, Any] = json.loads(text) if status == 200 else {}
            return row if row and condition(row) else None

        try:
            return until(found, f"row of {task_id}", seconds=SOON)
        except AssertionError:
            raise AssertionError(f"rows: {json.dumps(self.get('/api/tasks'), indent=1)[:6_000]}") from None

    def row_of(self, args: str, state: str) -> dict[str, Any]:
        """Wait until the row with these arguments has this state, and return it."""

        def found() -> list[dict[str, Any]]:
            return [row for row in self.rows() if row["args"] == args and row["state"] == state]

        try:
            return until(found, f"{args}: {state}", seconds=SOON)[0]
        except AssertionError:
            raise AssertionError(f"rows: {json.dumps(self.rows(), indent=1)[:6_000]}") from None

    def rows(self) -> list[dict[str, Any]]:
        return list(self.get("/api/tasks").values())

    def _ask(self, path: str, user: str | None, password: str | None) -> tuple[int, str]:
        request = urllib.request.Request(self.flower.url + path)
        if user is not None:
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, redis_server: Redis
) -> Iterator[Cluster]:
    env = {"GRAPH_MIGRATOR_BATCH_TARGET_SECONDS": "0.000001"}  # batches stay small
    folder = tmp_path_factory.mktemp("flower")
    with (
        databases.borrow() as url,
        Cluster(folder, database_url=url, redis=redis_server, env=env) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[Api]:
    """One Flower and one worker for all tests: each looks at a graph of its own."""
    with Flower(cluster.folder / "flower", cluster.environment) as flower:
        api = Api(flower)
        # It records what it hears from now on; a worker that it knows shows that it hears.
        cluster.start_worker()
        until(lambda: api.get("/api/workers?refresh=1"), "Flower knows the worker", seconds=SOON)
        # Flower asks new workers for their events every five seconds.
        until(lambda: "Events of group {task} enabled" in cluster.workers[0].text(), "events", seconds=SOON)
        yield api


@pytest.fixture
def novel(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """A graph of the test's own, of type `trail`."""
    slug = f"novel-{abs(hash(request.node.name)):x}"
    cluster.add_graph(slug, "trail")
    return slug


def test_without_its_password_flower_shows_nothing(api: Api) -> None:
    paths = ("/", "/workers", "/tasks", "/broker", "/api/tasks", "/api/workers", "/api/task/types")
    assert {path: api.status(path) for path in paths} == dict.fromkeys(paths, 401)
    assert api.status("/api/tasks", api.flower.user, "wrong") == 401
    assert api.status("/tasks", api.flower.user, api.flower.password) == 200


def test_the_password_is_not_in_the_process_list(api: Api) -> None:
    assert api.flower.pid is not None
    assert len(api.flower.password) >= 16
    for process in psutil.process_iter(["cmdline"]):
        assert api.flower.password not in " ".join(process.info["cmdline"] or [])


def test_rows_explain_themselves_and_are_linked(cluster: Cluster, api: Api, novel: str) -> None:
    result = migrate_graph.delay(novel, 4, requested_by="release-7")
    result.get(timeout=SOON)
    call = api.row(result.id, lambda row: row["state"] == "SUCCESS")
    assert call["name"] == "tasks.migrate_graph"
    assert call["args"] == f"{novel} → v4: third"
    assert "'status': 'succeeded'" in call["result"]
    first, second = (api.row_of(f"{novel} {hop}", "SUCCESS") for hop in ("v1→v2 first", "v2→v3 second"))
    assert {row["name"] for row in (first, second)} == {"tasks.run_hop"}
    assert {row["root_id"] for row in (first, second)} == {result.id}
    assert (first["parent_id"], second["parent_id"]) == (result.id, first["uuid"])
    assert sum(row["root_id"] == result.id for row in api.rows()) == 3
    assert {row["worker"] for row in api.rows()} == {"w1@localhost"}  # no event came under another name


def test_a_failed_migration_is_failed_on_the_row_of_its_call(cluster: Cluster, api: Api, novel: str) -> None:
    fail = cluster.steer("fail", novel, "second", "no second today")
    result = migrate_graph.delay(novel, 4)
    with pytest.raises(Exception, match="no second today"):
        result.get(timeout=SOON)
    call = api.row(result.id, lambda row: row["state"] == "FAILURE")
    assert (call["name"], call["args"]) == ("tasks.migrate_graph", f"{novel} → v4")
    assert "no second today" in call["exception"]
    assert "in _append" in call["traceback"]  # the frames of the hop's own code
    assert call["worker"] == "w1@localhost"
    hop = api.row_of(f"{novel} v2→v3 second", "FAILURE")
    assert hop["root_id"] == result.id
    assert "in _append" in hop["traceback"]

    fail.unlink()
    again = migrate_graph.delay(novel, 4, requested_by="operator")
    assert again.get(timeout=SOON).version == 4
    assert api.row(again.id, lambda row: row["state"] == "SUCCESS")["name"] == "tasks.migrate_graph"


def test_a_hop_that_kills_its_workers_is_failed_on_the_row_of_its_call(
    cluster: Cluster, api: Api, novel: str
) -> None:
    """No process is left to report it: recovery does."""
    cluster.steer("kill", novel, "second")
    result = migrate_graph.delay(novel, 4)
    with pytest.raises(Exception, match="second"):
        result.get(timeout=SOON)
    call = api.row(result.id, lambda row: row["state"] == "FAILURE")
    assert "HopCrashedRepeatedly" in call["exception"]


def test_a_migration_that_ends_with_nobody_at_work_is_failed_on_the_row_of_its_call(
    cluster: Cluster, api: Api, novel: str
) -> None:
    """Recovery answers its caller, and Flower."""
    hold = cluster.steer("hold", novel, "first")
    result = migrate_graph.delay(novel, 4)
    cluster.pid_in(novel, "first")
    pause_migration.delay(novel).get(timeout=SOON)
    hold.unlink()
    until(lambda: migration_of(cluster.engine, novel).status == "paused", "paused")
    cancel_migration.delay(novel).get(timeout=SOON)
    with pytest.raises(MigrationCancelled):
        result.get(timeout=SOON)
    call = api.row(result.id, lambda row: row["state"] == "FAILURE")
    assert "MigrationCancelled" in call["exception"]
    assert {row["worker"] for row in api.rows()} == {"w1@localhost"}


def test_a_batched_hop_shows_how_far_it_is(cluster: Cluster, api: Api) -> None:
    cluster.add_graph("big", "batched_trail", nodes=5_000)
    result = migrate_graph.delay("big", 3)
    until(lambda: cluster.started("big")["visit"] > 2, "a few batches", seconds=SOON)
    hold = cluster.steer("hold", "big", "visit")
    row = api.row_of("big v1→v2 visit", "PROGRESS")
    assert re.fullmatch(r"[\d,]+ of 5,000 rows \(\d+%\)(, [\d,]+ rows/s.*)?", row["result"])
    hold.unlink()
    result.get(timeout=SOON)
    assert api.row_of("big v1→v2 visit", "SUCCESS")["uuid"] == row["uuid"]


def test_operators_verbs_and_paused_hops_explain_themselves(cluster: Cluster, api: Api, novel: str) -> None:
    hold = cluster.steer("hold", novel, "first")
    result = migrate_graph.delay(novel, 3)
    cluster.pid_in(novel, "first")
    verb = pause_migration.delay(novel, requested_by="op")
    assert verb.get(timeout=SOON)["status"] == "pausing"
    assert api.row(verb.id, lambda row: row["state"] == "SUCCESS")["args"] == f"{novel}, by op"
    hold.unlink()
    until(lambda: migration_of(cluster.engine, novel).status == "paused", "paused")
    verb = resume_migration.delay(novel)
    assert verb.get(timeout=SOON)["dispatch"] == 2
    assert api.row_of(novel, "SUCCESS")["uuid"] == verb.id
    result.get(timeout=SOON)
    assert api.row(result.id, lambda row: row["state"] == "SUCCESS")["name"] == "tasks.migrate_graph"
