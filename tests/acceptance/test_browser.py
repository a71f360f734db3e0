"""The console in a real browser, over real workers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from graph_migrator import migrate_graph
from graph_migrator.console import Identity, Role, create_app
from graph_migrator.core.access.tokens import create_token
from graph_migrator.core.embedded import Redis, free_port
from tests.acceptance.chromium import browser, faults
from tests.acceptance.cluster import Cluster
from tests.acceptance.serving import served
from tests.rows import rows
from tests.waiting import until

SECONDS = 30_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as launched:
        yield launched


@pytest.fixture
def cluster(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    fast = {"GRAPH_MIGRATOR_BATCH_TARGET_SECONDS": "0.000001"}
    with Cluster(tmp_path, database_url=database_url, redis=redis_server, env=fast) as cluster:
        yield cluster


@contextmanager
def opened(chromium: Any, base: str, **options: Any) -> Iterator[Any]:
    """A page; what its scripts log as errors fails the test, and so does what the policy has blocked."""
    context = chromium.new_context(base_url=base, **options)
    context.set_default_timeout(SECONDS)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None
    )
    try:
        yield page
        assert wrong == []
    finally:
        context.close()


def as_operator(_: object) -> Identity:
    return Identity(name="ada", role=Role.OPERATOR)


def is_live(page: Any) -> None:
    page.locator('#live[data-state="live"]').wait_for()


@pytest.mark.timeout(240)
def test_progress_moves_without_a_reload_and_a_killed_workers_attempt_is_taken_again(
    chromium: Any, cluster: Cluster
) -> None:
    cluster.add_graph("g", "batched_trail", nodes=60)
    hold = cluster.steer("hold", "g", "visit")
    first = cluster.start_worker("w1", concurrency=1)
    with served(create_app(as_operator)) as base, opened(chromium, base) as page:
        page.goto("/graphs/g")
        is_live(page)
        page.evaluate("window.neverReloaded = true")
        migrate_graph.delay("g", 3)
        page.locator("#running").wait_for()
        cluster.pid_in("g", "visit")
        cluster.kill_worker(first)
        cluster.start_worker("w2", concurrency=1)
        page.locator(".line .status.lost").wait_for()
        page.locator("#running", has_text="attempt 2").wait_for()
        hold.unlink()
        page.locator("h1 + .version", has_text="v3").wait_for()
        assert page.locator(".line li.succeeded").count() == 2
        assert page.evaluate("window.neverReloaded")


@pytest.mark.timeout(240)
def test_a_failed_graph_is_retried_from_the_page_and_a_viewer_is_refused(
    chromium: Any, cluster: Cluster
) -> None:
    cluster.add_graph("g", "trail")
    fail = cluster.steer("fail", "g", "second", "no luck")
    cluster.start_worker("w1")
    migrate_graph.delay("g", 3)
    secrets = {
        name: create_token(cluster.engine, name, role)[1]
        for name, role in (("ada", Role.OPERATOR), ("bob", Role.VIEWER))
    }
    until(lambda: rows(cluster.engine, "SELECT status FROM migrations") == [("failed",)], "it has failed")
    with served(create_app("tokens")) as base:
        with opened(chromium, base) as page:
            log_in(page, secrets["bob"])
            page.locator(".trouble.failed", has_text="no luck").wait_for()
            page.goto("/graphs/g")
            assert page.locator("details.action").count() == 0
            refused = page.evaluate(
                "fetch('/api/v1/graphs/g/retry', {method: 'POST'}).then(answer => answer.status)"
            )
            assert refused == 403
        fail.unlink()
        with opened(chromium, base) as page:
            log_in(page, secrets["ada"])
            page.locator(".trouble.failed").get_by_role("link", name="Open g").click()
            page.locator("details.action", has_text="Retry").locator("summary").click()
            page.get_by_label("Why").first.fill("mended")
            page.get_by_role("button", name="Retry now").click()
            page.locator(".said", has_text="retry of g").wait_for()
            page.locator("h1 + .version", has_text="v3").wait_for()
            page.get_by_role("button", name="Log out").click()
            page.get_by_label("Token").wait_for()
    assert ("retry", "ada") in rows(cluster.engine, "SELECT verb, requested_by FROM requests")


def log_in(page: Any, secret: str) -> None:
    page.goto("/")
    page.get_by_label("Token").fill(secret)
    page.get_by_role("button", name="Log in").click()
    page.locator("h1", has_text="Wrong now").wait_for()


@pytest.mark.timeout(240)
def test_a_rollout_is_paused_resumed_and_promoted_and_the_stream_outlives_the_server(
    chromium: Any, cluster: Cluster
) -> None:
    from tests.integration.console import spawn

    for number in range(6):
        cluster.add_graph(f"t{number}", "trail")
    cluster.start_worker("w1")
    port = free_port()
    with opened(chromium, f"http://127.0.0.1:{port}") as page:
        with served(create_app(as_operator), port):
            page.goto("/")
            is_live(page)
            started = spawn(
                "rollout", "start", "trail", "--all", "--to", 3, "--canaries", 1, "--bake-seconds", 0, "--waves", "100",
                env=cluster.environment,
            )  # fmt: skip
            assert started.exit_code == 0, started
            page.get_by_role("link", name="trail → v3").click()
            page.locator("h1 + .status.held").wait_for()
            act(page, "Pause")
            page.locator(".reason", has_text="ada").first.wait_for()
            act(page, "Resume")
            page.locator("h1 + .status", has_text="held").wait_for()
            page.locator("details.action", has_text="Promote").wait_for()
            is_live(page)
        page.locator('#live[data-state="stale"]').wait_for()
        with served(create_app(as_operator), port):
            is_live(page)
            act(page, "Promote")
            page.locator("h1 + .status.succeeded").wait_for()
    assert {v for (v,) in rows(cluster.engine, "SELECT version FROM graphs")} == {3}


def act(page: Any, label: str) -> None:
    page.locator("details.action", has=page.locator("summary", has_text=label)).locator("summary").click()
    page.get_by_role("button", name=f"{label} now").click()
    page.locator(".said").wait_for()


@pytest.mark.timeout(240)
def test_no_page_has_a_serious_fault_of_accessibility_and_none_is_wider_than_a_phone(
    chromium: Any, cluster: Cluster
) -> None:
    cluster.add_graph("broken", "trail")
    cluster.add_graph("idle", "batched_trail")
    cluster.steer("fail", "broken", "second", "no luck")
    cluster.start_worker("w1")
    migrate_graph.delay("broken", 3)
    until(lambda: rows(cluster.engine, "SELECT status FROM migrations") == [("failed",)], "it has failed")
    from tests.integration.console import spawn

    assert spawn("rollout", "start", "batched_trail", "--all", env=cluster.environment).exit_code == 0
    pages = ("/", "/graphs", "/graphs?state=failed", "/graphs/broken", "/graphs/idle", "/rollouts",
             "/rollouts/batched_trail", "/attempts/2", "/types", "/workers", "/health", "/audit", "/doctor",
             "/plan?type=batched_trail", "/graphs/nobody")  # fmt: skip
    found = []
    with served(create_app(as_operator)) as base:
        for scheme in ("light", "dark"):
            with opened(chromium, base, color_scheme=scheme, viewport={"width": 390, "height": 844}) as page:
                for path in pages:
                    page.goto(path)
                    found += [f"{scheme} {path}: {fault}" for fault in faults(page)]
                    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                        found.append(f"{scheme} {path}: wider than the screen")
    with served(create_app("tokens")) as base, opened(chromium, base) as page:
        page.goto("/login")
        found += faults(page)
    assert found == []


@pytest.mark.timeout(120)
def test_it_works_without_javascript(chromium: Any, cluster: Cluster) -> None:
    cluster.add_graph("g", "trail")
    with served(create_app(as_operator)) as base, opened(chromium, base, java_script_enabled=False) as page:
        page.goto("/graphs/g")
        page.locator("details.action", has_text="Lock").locator("summary").click()
        page.get_by_role("button", name="Lock now").click()
        assert re.search(r"read-only for its owner", page.locator(".said").inner_text())
