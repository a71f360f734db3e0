"""`make demo` and `graph-migrator dev`, as a person runs them: to the end, and interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from redis import Redis

from tests.acceptance.cluster import ROOT
from tests.integration.console import spawn
from tests.waiting import until


def start(command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own, so that a signal can reach the group as Ctrl-C does."""
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | environment,
            # A shell that runs the tests in the background has SIGINT ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def family(process: subprocess.Popen[bytes]) -> set[psutil.Process]:
    """The process and everything that it has started."""
    mine = psutil.Process(process.pid)
    return {mine, *mine.children(recursive=True)}


def nobody_is_left(processes: set[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.timeout(180)
def test_the_demo_survives_its_kill_and_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = start([sys.executable, "-m", "examples.demo"], tmp_path / "log")
    seen: set[psutil.Process] = set()

    def ended() -> bool:
        with suppress(psutil.NoSuchProcess):
            seen.update(family(demo))
        return demo.poll() is not None

    until(ended, "the demo's end", seconds=150, pause=0.2)  # it looks at every process of the machine
    shown = (tmp_path / "log").read_text()
    assert demo.returncode == 0, shown
    assert re.search(r"kill -9 \d+", shown)
    assert "name_characters, attempt 1: worker-" in shown
    assert "succeeded, v1→v4, dispatch 2" in shown
    assert '"title": "Mme"' in shown
    until(lambda: nobody_is_left(seen), "every process of the demo to end")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("when", ["Two Celery workers", "is imported"])
def test_ctrl_c_on_the_demo_leaves_no_process_behind(tmp_path: Path, when: str) -> None:
    demo = start([sys.executable, "-m", "examples.demo"], tmp_path / "log", PYTHONUNBUFFERED="1")
    until(lambda: when in (tmp_path / "log").read_text(), when, seconds=60)
    processes = family(demo)
    assert len(processes) > 2
    os.killpg(demo.pid, signal.SIGINT)
    demo.wait(60)
    assert "Interrupted. Everything is stopped." in (tmp_path / "log").read_text()
    until(lambda: nobody_is_left(processes), "every process of the demo to end")


@pytest.mark.timeout(120)
def test_a_dev_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    folder = tmp_path / "dev"
    dev = start([sys.executable, "-m", "graph_migrator", "dev", "--folder", str(folder)], tmp_path / "log")
    until(lambda: "Ready." in (tmp_path / "log").read_text(), "dev to be ready", seconds=60)
    processes = family(dev)
    dev.kill()
    dev.wait(10)
    until(lambda: nobody_is_left(processes), "every process of dev to end", seconds=20)
    again = subprocess.run(
        [sys.executable, "-m", "graph_migrator", "env", "--folder", str(folder)],
        cwd=ROOT,
        capture_output=True,
    )
    assert (again.returncode, again.stdout) == (4, b"")


@pytest.mark.timeout(120)
def test_a_worker_of_dev_that_is_killed_is_replaced_and_changed_code_is_loaded(tmp_path: Path) -> None:
    types = tmp_path / "kinds.py"
    hop = "\n@kind.hop({0}, {1})\ndef to_{1}(ctx) -> None:\n    pass\n"
    types.write_text("from graph_migrator import GraphType\n\nkind = GraphType('kind')\n" + hop.format(1, 2))
    log = tmp_path / "log"
    environment = {"GRAPH_MIGRATOR_TYPES": "kinds:kind", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "graph_migrator", "dev", "--reload", "--folder", str(tmp_path / "dev")]
    dev = start(command, log, **environment)
    try:
        until(lambda: "Ready." in log.read_text(), "dev to be ready", seconds=60)
        worker = int(re.search(r"dev-1 is ready \(pid (\d+)", log.read_text())[1])  # type: ignore[index] # asserted by what follows
        os.kill(worker, signal.SIGKILL)
        until(lambda: log.read_text().count("dev-1 is ready") == 2, "another worker", seconds=60)
        assert "dev-1 died (SIGKILL); starting another ..." in log.read_text()
        assert not psutil.pid_exists(worker), "a zombie is left"
        types.write_text(types.read_text() + hop.format(2, 3))
        until(lambda: log.read_text().count("dev-1 is ready") == 3, "a worker with the new code", seconds=60)
        assert "kinds.py changed; restarting" in log.read_text()
    finally:
        dev.send_signal(signal.SIGINT)
        assert dev.wait(60) == 0, log.read_text()


HOP = """
from graph_migrator import GraphType

kind = GraphType("kind")

@kind.hop(1, 2)
def relabel(ctx) -> None:
    ctx.execute("UPDATE nodes SET label = '{0}' WHERE graph_id = :graph_id")
"""


@pytest.mark.timeout(180)
def test_of_two_workers_the_killed_one_is_replaced_and_the_other_keeps_the_code_it_began_with(
    tmp_path: Path,
) -> None:
    """The file is edited meanwhile: a child that replaces another runs its parent's code, as `doctor` shows it."""
    types, log, folder = tmp_path / "kinds.py", tmp_path / "log", tmp_path / "dev"
    types.write_text(HOP.format("old"))
    environment = {"GRAPH_MIGRATOR_TYPES": "kinds:kind", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "graph_migrator", "dev", "--workers", "2", "--folder", str(folder)]
    dev = start(command, log, **environment)
    try:
        until(lambda: "Ready." in log.read_text(), "dev to be ready", seconds=60)
        first, second = (
            psutil.Process(int(pid)) for pid in re.findall(r"is ready \(pid (\d+)", log.read_text())
        )
        variables = environment | dict(re.findall(r"export (\w+)=(\S+)", (folder / "env").read_text()))
        for slug in ("g", "h"):
            (tmp_path / "one.jsonl").write_text('{"kind": "node", "id": "a", "label": "N", "properties": {}}')
            made = ("--slug", slug, "--type", "kind", "--version", 1)
            assert spawn("import", tmp_path / "one.jsonl", *made, env=variables).exit_code == 0

        types.write_text(HOP.format("new"))
        second.suspend()  # so that the first one takes the call
        until(
            lambda: not waits_for_a_message(second, variables),
            "its request at the broker to run out",
            seconds=30,
        )
        children = first.children()
        for child in children:
            child.kill()
        until(lambda: len(set(first.children()) - set(children)) == 2, "another pool", seconds=30)
        outcome = spawn("migrate", "g", "--wait", env=variables)
        assert (outcome.exit_code, label(variables, "g")) == (0, "old"), outcome.err
        assert "Worker dev-1@" in outcome.err, "the code here is another one"

        second.kill()
        until(lambda: log.read_text().count("dev-2 is ready") == 2, "another worker", seconds=60)
        assert "dev-2 died (SIGKILL); starting another ..." in log.read_text()
        assert first.is_running()
        assert not second.is_running()
        found = spawn("doctor", env=variables).out
        assert re.search(r"'kind' differs: dev-1@\S+ \w+, dev-2@\S+ \w+", found), found
        first.kill()
        until(lambda: log.read_text().count("dev-1 is ready") == 2, "another worker", seconds=60)
        outcome = spawn("migrate", "h", "--wait", env=variables)
        assert (outcome.exit_code, label(variables, "h")) == (0, "new"), outcome.err
        assert "has other code" not in outcome.err
    finally:
        dev.send_signal(signal.SIGINT)
        assert dev.wait(60) == 0, log.read_text()


def waits_for_a_message(worker: psutil.Process, variables: dict[str, str]) -> bool:
    """Whether the broker would give the next message to this worker, even if it is suspended."""
    ours = {f"{each.laddr.ip}:{each.laddr.port}" for each in worker.net_connections("tcp")}
    with Redis.from_url(variables["CELERY_BROKER_URL"]) as client:
        return any(each["addr"] in ours and "b" in each["flags"] for each in client.client_list())


def label(variables: dict[str, str], slug: str) -> str:
    """The label of a graph's only node."""
    found: str = json.loads(spawn("export", slug, env=variables).out)["nodes"][0]["label"]
    return found


def fetched(url: str, data: bytes | None = None) -> str:
    """A page of the console; after a form, the page that it leads to."""
    with urllib.request.urlopen(url, data=data, timeout=30) as answer:
        page: bytes = answer.read()
        return page.decode()


def test_dev_serves_the_console_and_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "graph_migrator", "dev", "--console", "--folder", str(tmp_path / "dev")]
    dev = start(
        command, tmp_path / "log", PYTHONUNBUFFERED="1", GRAPH_MIGRATOR_TYPES="examples.knowledge:knowledge"
    )
    until(lambda: "Ready." in (tmp_path / "log").read_text(), "dev to be ready", seconds=60)
    processes = family(dev)
    names = {p.name() for p in processes}
    assert {"postgres", "redis-server"} <= names
    printed = subprocess.run(
        [sys.executable, "-m", "graph_migrator", "env", "--folder", str(tmp_path / "dev")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "export DATABASE_URL=" in printed.stdout
    console = re.search(r"Console: (http://127\.0\.0\.1:\d+)", (tmp_path / "log").read_text())
    assert console
    assert "dev-1@" in fetched(f"{console[1]}/workers")
    assert "name_characters" in fetched(f"{console[1]}/types")
    held = fetched(f"{console[1]}/hold", data=b"reason=a+test")
    assert re.search(r"All rollouts are held by .+: a test", held)
    os.killpg(dev.pid, signal.SIGINT)
    assert dev.wait(60) == 0, (tmp_path / "log").read_text()
    until(lambda: nobody_is_left(processes), "every process of dev to end")
    assert not (tmp_path / "dev" / "env").exists()
