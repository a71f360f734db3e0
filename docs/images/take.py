"""``make screenshots``: pictures of Flower and of the console while graphs migrate, taken by headless Chromium.

Everything in them is real: private servers, two workers, graphs of which one cannot be migrated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import networkx
from playwright.sync_api import sync_playwright

from graph_migrator.core.embedded import Postgres, Redis
from graph_migrator.core.interchange import import_graph
from graph_migrator.core.store import schema
from graph_migrator.core.store.connections import make_engine
from graph_migrator.tasks.serving import Console, Flower, Worker, environment

HERE = Path(__file__).parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def main() -> None:
    """Set everything up, migrate, and take the pictures."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        sys.exit("No Chromium on PATH, so there are no new screenshots. On Debian: apt-get install chromium")
    os.environ["GRAPH_MIGRATOR_TYPES"] = "examples.knowledge:knowledge"
    # Small batches, so that the long hop is still under way when its picture is taken.
    os.environ["GRAPH_MIGRATOR_BATCH_TARGET_SECONDS"] = "0.000001"
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="gm-pictures-")))
        postgres = running.enter_context(Postgres(durable=False))
        redis = running.enter_context(Redis())
        schema.upgrade(postgres.url)
        variables = environment(postgres, redis)
        os.environ.update(variables)
        flower = running.enter_context(Flower(folder / "flower", variables))
        workers = [
            running.enter_context(Worker(folder / name, name, variables)) for name in ("worker-1", "worker-2")
        ]
        until(lambda: len(ask(flower, "/api/workers?refresh=1")) == 2)
        until(lambda: all("Events of group" in worker.log.read_text() for worker in workers))

        from graph_migrator import migrate_graph, pause_migration

        novel = networkx.les_miserables_graph()
        engine = make_engine(postgres.url)
        for slug, graph in (
            ("les-miserables", novel),
            ("karate-club", networkx.path_graph(30)),  # nobody stands out in it: its last hop fails
            ("family-tree", networkx.star_graph(24)),
            ("encyclopedia", networkx.empty_graph(60_000)),
        ):
            text = json.dumps(networkx.node_link_data(graph)).encode()
            import_graph(engine, BytesIO(text), slug=slug, graph_type="knowledge", version=1)

        done = migrate_graph.delay("les-miserables", 4, requested_by="release-7")
        fails = migrate_graph.delay("karate-club", 4, requested_by="release-7")
        migrate_graph.delay("family-tree", 3, requested_by="ada").get(timeout=60)
        done.get(timeout=60)
        until(fails.ready)
        migrate_graph.delay("encyclopedia", 3, requested_by="release-7")
        until(lambda: "PROGRESS" in {row["state"] for row in ask(flower, "/api/tasks").values()})
        shoot(browser, folder, flower, "/tasks", "flower-tasks.png", 2000, 780)
        pause_migration.delay("encyclopedia", requested_by="operator").get(timeout=60)
        shoot(browser, folder, flower, f"/task/{fails.id}", "flower-failed.png", 1280, 930)
        console = running.enter_context(Console(folder / "console", variables))
        shoot_console(browser, console.url)


def shoot_console(browser: str, base: str) -> None:
    """The first page and a failed graph, light and dark, wide and as on a phone."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for name, path, scheme, width, height in (
            ("console", "/", "light", 1180, 720),
            ("console-graph", "/graphs/karate-club", "dark", 1180, 1000),
            ("console-phone", "/", "dark", 390, 760),
        ):
            size = {"width": width, "height": height}
            context = launched.new_context(base_url=base, viewport=size, color_scheme=scheme)
            page = context.new_page()
            page.goto(path)
            page.locator('#live[data-state="live"]').wait_for()
            page.screenshot(path=HERE / f"{name}.png")
            context.close()
            print((HERE / f"{name}.png").relative_to(Path.cwd()))  # noqa: T201 - what `make screenshots` prints
        launched.close()


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("It did not come to the moment for the picture in time.")
        time.sleep(0.1)


def ask(flower: Flower, path: str) -> dict[str, Any]:
    """Flower's API."""
    request = urllib.request.Request(flower.url + path)  # noqa: S310 - our own server on loopback
    token = b64encode(f"{flower.user}:{flower.password}".encode()).decode()
    request.add_header("Authorization", f"Basic {token}")
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - likewise
        found: dict[str, Any] = json.loads(answer.read())
        return found


def shoot(browser: str, folder: Path, flower: Flower, path: str, name: str, width: int, height: int) -> None:
    """Take one picture. The password in the address is this run's, and ends with it."""
    picture = HERE / name
    address = flower.url.replace("://", f"://{flower.user}:{flower.password}@") + path
    subprocess.run(  # noqa: S603 - the browser that was found on PATH
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={tempfile.mkdtemp(dir=folder)}", f"--window-size={width},{height}",
            "--virtual-time-budget=6000", f"--screenshot={picture}", address,
        ],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    print(picture.relative_to(Path.cwd()))  # noqa: T201 - what `make screenshots` prints


if __name__ == "__main__":
    main()
