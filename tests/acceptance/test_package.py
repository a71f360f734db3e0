"""What is installed: one package, beside anybody's own `core`, `tasks` and `celeryconfig`.

The distributions are built from a copy of the repository's files. The wheel is installed into an environment of its
own, which finds the dependencies, and nothing of ours, in the environment that runs the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from graph_migrator.core.embedded import Redis
from graph_migrator.core.embedded.server import end_with_parent
from tests.acceptance.cluster import ROOT, Cluster
from tests.waiting import until

MADE_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg"}
LINKS = {"graph_migrator/core", "graph_migrator/tasks", "graph_migrator/console"}


def files_of_git() -> list[str]:
    """Every file of the repository, those not yet added among them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def installed_as(name: str) -> str:
    """Where a file of the repository is in a distribution."""
    inside = name.startswith(("core/", "tasks/", "console/")) or name == "celeryconfig.py"
    return f"graph_migrator/{name}" if inside else name


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sdist and wheel; the wheel is built from the sdist."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in files_of_git():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.fixture(scope="module")
def python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with our wheel."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--root-user-action=ignore"]
    subprocess.run([*install, *options, str(wheel)], check=True)
    # A folder that a .pth file names is searched for modules; the .pth files in it are not read, among them the
    # one of our editable installation.
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    celery = folder / "bin" / "celery"
    celery.write_text(f"#!{python}\nimport sys\nfrom celery.__main__ import main\nsys.exit(main())\n")
    celery.chmod(0o755)
    return python


@contextmanager
def running(
    command: list[str], folder: Path, log: Path, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which is ended with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=end_with_parent(signal.SIGTERM, None),
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def wait_for(text: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a process has written something."""

    def seen() -> bool:
        assert process.poll() is None, log.read_text()
        return text in log.read_text()

    until(seen, f"{text!r} in {log.name}", seconds=90)


def clean_environment(**more: str) -> dict[str, str]:
    """An environment that knows nothing of this repository."""
    kept = {"HOME", "LANG", "LC_ALL", "TMPDIR", "USER"}
    return {name: value for name, value in os.environ.items() if name in kept} | more


def test_the_source_distribution_holds_every_file(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {member.name.partition("/")[2] for member in opened.getmembers() if not member.isdir()}
    made = {
        name for name in held if name in MADE_BY_SETUPTOOLS or name.startswith("graph_migrator.egg-info/")
    }
    assert held - made == {installed_as(name) for name in files_of_git()} - LINKS
    assert made >= MADE_BY_SETUPTOOLS


def test_the_wheel_holds_every_file_of_one_package_and_nothing_else(dist: Path) -> None:
    (archive,) = dist.glob("*.whl")
    with zipfile.ZipFile(archive) as opened:
        held = set(opened.namelist())
    described = {name for name in held if name.startswith("graph_migrator-0.1.0.dist-info/")}
    of_the_package = {installed_as(name) for name in files_of_git()} - LINKS
    assert held - described == {name for name in of_the_package if name.startswith("graph_migrator/")}
    assert {"graph_migrator/py.typed", "graph_migrator/celeryconfig.py"} <= held


@pytest.mark.timeout(240)
def test_a_project_with_a_core_tasks_and_celeryconfig_of_its_own(
    python: Path, tmp_path: Path, database_url: str, redis_server: Redis
) -> None:
    project = tmp_path / "project"
    shutil.copytree(
        ROOT / "tests/acceptance/foreign_project", project, ignore=shutil.ignore_patterns("__pycache__")
    )
    celery = str(python.parent / "celery")
    with Cluster(tmp_path / "cluster", database_url=database_url, redis=redis_server) as cluster:
        for slug in ("society", "club"):
            cluster.add_graph(slug, "people", edges=[("e", "n0000", "n0001")])
        env = clean_environment(
            DATABASE_URL=cluster.database_url.replace("postgresql://", "postgresql+psycopg2://"),
            CELERY_BROKER_URL=cluster.broker_url,
            CELERY_RESULT_BACKEND=cluster.result_backend,
            GRAPH_MIGRATOR_TYPES="core.graph_types:people",
        )
        report = subprocess.run(
            [celery, "-A", "graph_migrator", "report"],
            cwd=project,
            env=env,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        # Their settings, in the folder where our worker runs, are not ours.
        assert "task_acks_late: True" in report
        assert "yaml" not in report
        worker = ["worker", "--concurrency", "1", "--loglevel", "INFO"]
        ours, theirs = tmp_path / "ours.log", tmp_path / "theirs.log"
        with (
            running([celery, "-A", "graph_migrator", *worker, "-n", "ours@%h"], project, ours, env) as first,
            running([celery, "-A", "tasks", *worker, "-n", "theirs@%h"], project, theirs, env) as second,
        ):
            wait_for(" ready.", first, ours)
            wait_for(" ready.", second, theirs)
            program = subprocess.run(
                [str(python), "main.py"],
                cwd=project,
                env=env,
                check=False,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert program.returncode == 0, program.stderr + ours.read_text() + theirs.read_text()
    saw = json.loads(program.stdout)
    assert Path(saw.pop("package")).is_relative_to(python.parent.parent)
    assert Path(saw.pop("core")) == project / "core/__init__.py"
    assert saw == {
        "written": 3,
        "version": 2,
        "from their worker": 2,
        "shared task": ["shop", "shop"],
        "settings": [False, True],
    }
    assert "tasks.where_am_i" not in ours.read_text()
    assert "tasks.run_hop" not in theirs.read_text()


@pytest.mark.timeout(240)
def test_dev_runs_in_an_empty_folder(python: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "empty", tmp_path / "dev.log"
    folder.mkdir()
    command = str(python.parent / "graph-migrator")
    env = clean_environment(PATH=f"{python.parent}:/usr/bin:/bin")

    def shell(line: str) -> str:
        ran = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=env, check=False, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    shell("graph-migrator new-type people")
    env["GRAPH_MIGRATOR_TYPES"] = "people:people"
    ada = {"kind": "node", "id": "ada", "label": "Person", "properties": {"name": "Ada Lovelace"}}
    (folder / "people.jsonl").write_text(json.dumps(ada) + "\n")
    with running([command, "dev", "--concurrency", "1"], folder, log, env) as dev:
        wait_for("Ready.", dev, log)
        started = psutil.Process(dev.pid).children(recursive=True)
        shell(
            'eval "$(graph-migrator env)" && graph-migrator import people.jsonl --slug g --type people --version 1 '
            "&& graph-migrator migrate g --wait"
        )
        history = shell('eval "$(graph-migrator env)" && graph-migrator history g --json')
        dev.send_signal(signal.SIGINT)
        assert dev.wait(60) == 0
    assert '"succeeded"' in history
    assert not [each for each in started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
