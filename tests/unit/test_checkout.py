"""In a checkout `core` and `tasks` lie at the top; imports load what they need, once, and under one name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

NO_CELERY = "import sys; loaded = {name.partition('.')[0] for name in sys.modules}; "
NO_CELERY += "assert not loaded & {'celery', 'kombu', 'billiard', 'redis'}, loaded"


def python(code: str, *, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "code",
    [
        "import core, graph_migrator; assert core.GraphType is graph_migrator.GraphType",
        "import graph_migrator.core, core; assert core is graph_migrator.core",
        "import core, graph_migrator.core; assert core is graph_migrator.core",
        "from core import Node; import graph_migrator; assert Node is graph_migrator.Node",
        "from tasks import migrate_graph; import graph_migrator; assert migrate_graph is graph_migrator.migrate_graph",
        "import tasks, graph_migrator.tasks; assert tasks is graph_migrator.tasks",
        "import celeryconfig, graph_migrator.celeryconfig as ours; assert celeryconfig.broker_url == ours.broker_url",
    ],
)
def test_short_names_lead_to_the_one_package(code: str) -> None:
    ran = python(code)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("import core.errors", "core.errors"),
        ("from core.store import errors", "core.store"),
        ("import graph_migrator.core.errors, core.errors", "core.errors"),
        ("import tasks.celery", "tasks.celery"),
        ("import core; from core.graph_types.definition import GraphType", "core.graph_types"),
    ],
)
def test_a_submodule_under_its_short_name_is_refused(code: str, module: str) -> None:
    refused = python(code).stderr.splitlines()[-1]
    assert refused.startswith(f"ImportError: import graph_migrator.{module}, not {module}: ")


def test_celery_finds_the_app_in_tasks() -> None:
    report = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", "report"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert report.returncode == 0, report.stderr
    assert "task_acks_late: True" in report.stdout


@pytest.mark.parametrize(
    "code",
    [
        "from graph_migrator import GraphType, HopContext, Node, Edge, Nodes, Edges, Rows",
        "from graph_migrator import graph_writer",
        "from graph_migrator import run_graph_migration, execute_migration, MigrationReport, HopReport",
        "from core import GraphType, graph_writer",
        "import graph_migrator.testing",
    ],
)
def test_authors_and_writers_load_no_celery(code: str) -> None:
    ran = python(f"{code}; {NO_CELERY}")
    assert ran.returncode == 0, ran.stderr


def test_settings_in_the_working_directory_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "celeryconfig.py").write_text("task_acks_late = False\naccept_content = ['json', 'pickle']\n")
    (tmp_path / "core.py").write_text("raise SystemExit('their core was imported')\n")
    (tmp_path / "tasks.py").write_text("raise SystemExit('their tasks were imported')\n")
    code = "from graph_migrator import app; app.loader.import_default_modules(); "
    code += "assert app.conf.task_acks_late and app.conf.accept_content == ['json'], app.conf.accept_content"
    ran = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_a_programs_own_app_stays_the_current_one() -> None:
    ran = python(
        "from celery import Celery, current_app, shared_task\n"
        "app = Celery('shop', set_as_current=True)\n"
        "from graph_migrator import migrate_graph\n"
        "@shared_task\n"
        "def task(): pass\n"
        "assert current_app.main == 'shop' and task.app.main == 'shop' and migrate_graph.app.main == 'graph_migrator'"
    )
    assert ran.returncode == 0, ran.stderr


def test_tasks_are_registered_in_no_other_app() -> None:
    ran = python(
        "from celery import Celery\n"
        "from graph_migrator import app, migrate_graph, release_graph\n"
        "theirs = Celery('shop')\n"
        "@theirs.task(name='tasks.release_graph')\n"
        "def release(): return 'theirs'\n"
        "ours = {name for name in app.tasks if name.startswith('tasks.')}\n"
        "assert ours & set(theirs.tasks) == {'tasks.release_graph'}\n"
        "assert theirs.tasks['tasks.release_graph']() == 'theirs' and app.tasks['tasks.release_graph'] == release_graph"
    )
    assert ran.returncode == 0, ran.stderr


def test_every_public_name_is_there_and_listed_once() -> None:
    ran = python(
        "import graph_migrator as gm\n"
        "assert sorted(gm.__all__) == sorted(set(gm.__all__)) == sorted(gm._HOMES)\n"
        "assert all(getattr(gm, name) is not None for name in gm.__all__)\n"
        "assert set(gm.__all__) <= set(dir(gm))"
    )
    assert ran.returncode == 0, ran.stderr
