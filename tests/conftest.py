"""Real servers for the tests: one Postgres and one Redis for each process, and a fresh database for each test."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import sys
import threading
import uuid
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import Engine

from graph_migrator.core.embedded import Postgres, Redis
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors
from tests.acceptance.chromium import chromium_program
from tests.acceptance.rabbitmq import rabbitmq_program
from tests.databases import FAST, Databases, administer, connect, copy_instead_of_initdb
from tests.integration.pgbouncer import pgbouncer_program
from tests.temporary import use_memory

use_memory()

gc.disable()  # until the tests are collected: what imports make stays

# An example's time says how busy the machine is, nothing about the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

collect_ignore = [
    *([] if rabbitmq_program() else ["acceptance/test_rabbitmq.py"]),
    *([] if pgbouncer_program() else ["integration/test_pgbouncer.py"]),
    *([] if chromium_program() else ["acceptance/test_browser.py"]),
]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests are not there, where a program of the system is missing."""
    if not rabbitmq_program():
        how = "apt-get install rabbitmq-server, then `pytest tests/acceptance/test_rabbitmq.py`"
        terminalreporter.write_line(
            f"The tests of RabbitMQ were not run: there is no rabbitmq-server. {how}."
        )
    if not pgbouncer_program():
        how = "apt-get install pgbouncer, then `pytest tests/integration/test_pgbouncer.py`"
        terminalreporter.write_line(f"The tests of PgBouncer were not run: there is no pgbouncer. {how}.")
    if not chromium_program():
        how = "apt-get install chromium, then `pytest tests/acceptance/test_browser.py`"
        terminalreporter.write_line(
            f"The tests in a browser were not run: there is no Chromium on PATH. {how}."
        )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Let each worker compile a part of the tests: they would all compile all of them, at the same time."""
    worker = getattr(session.config, "workerinput", None)
    if worker is not None and not sys.dont_write_bytecode:
        files = sorted(file for each in session.config.args for file in Path(each).rglob("test_*.py"))
        first = len(files) * int(worker["workerid"][2:]) // worker["workercount"]
        for file in files[first:] + files[:first]:
            if (folder := str(file.parent.absolute())) not in sys.path:
                sys.path.insert(0, folder)  # as pytest does
            with suppress(Exception):  # it is imported again, and then reported
                importlib.import_module(file.stem)


_LONGEST = (
    "test_demo", "test_simulation", "test_compose", "test_interchange", "test_recovery_queue", "test_matrix",
    "test_package", "test_sharded_hops", "test_deploys", "test_documents", "test_outages", "test_flat_calls",
    "test_losses", "test_checkout", "test_rebuild_hops", "test_move_a_fleet", "test_cli_help", "test_cli_exit_codes",
    "test_browser", "test_rabbitmq", "test_result_backends", "test_storm", "test_celery_chain", "test_flower",
    "test_rollout_trouble", "test_signing", "test_docker_nodes", "test_console", "test_rollouts", "test_embedded",
)  # fmt: skip
"""The modules that take longest, in this order. All others are short, so the workers end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest modules; spread those that mostly wait for processes evenly among those that compute.

    The workers take them in this order, so there is always somebody who computes.
    """
    modules = list(dict.fromkeys(item.path for item in items))
    modules.sort(key=lambda path: _LONGEST.index(path.stem) if path.stem in _LONGEST else len(_LONGEST))
    waiting = [path for path in modules if "acceptance" in path.parts]
    computing = [path for path in modules if "acceptance" not in path.parts]
    place = {
        path: (number + 0.5) / len(all_) for all_ in (waiting, computing) for number, path in enumerate(all_)
    }
    items.sort(key=lambda item: (place[item.path], str(item.path)))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what lives to the end: the tests, and all that they import."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the process of a test whose time limit could not end it.

    The limit's alarm comes once, and is handled between two lines of Python: neither in a statement that waits
    in the server for ever, nor while what the test has made is taken down.
    """
    marker = item.get_closest_marker("timeout")
    limit = float(marker.args[0] if marker else item.config.getini("timeout"))
    watchdog = threading.Timer(2 * limit, _end_this_process, [item.nodeid])
    watchdog.daemon = True
    watchdog.start()
    try:
        return (yield)
    finally:
        watchdog.cancel()


def _end_this_process(test: str) -> None:
    print(f"\n{test} does not end; this is where it waits:", file=sys.__stderr__, flush=True)
    faulthandler.dump_traceback(file=sys.__stderr__ or 2)
    os._exit(70)


@pytest.fixture(scope="session", autouse=True)
def _one_initdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All temporary servers of a run are copies of one."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Postgres, "_prepare", copy_instead_of_initdb(shared / "postgres"))
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A private Postgres. Without fsync: killed processes are what the tests kill, not the machine."""
    with Postgres(durable=False, settings=FAST) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A private Redis."""
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def template_database(postgres: Postgres) -> str:
    """A database with our schema, from which each test's database is copied."""
    administer(postgres, "CREATE DATABASE template_migrated")
    upgrade(postgres.url_of("template_migrated"))
    return "template_migrated"


@pytest.fixture(scope="session")
def databases(postgres: Postgres, template_database: str) -> Databases:
    """Databases with our schema."""
    return Databases(postgres, template_database)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """The URL of a fresh database with our schema."""
    with databases.borrow() as url:
        yield url


@pytest.fixture
def empty_database_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh database without our schema."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    administer(postgres, f"CREATE DATABASE {name}")
    yield postgres.url_of(name)
    administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on the test's database."""
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def executors(engine: Engine) -> Iterator[Executors]:
    """This process's executors on the test's database."""
    executors = Executors(engine)
    yield executors
    executors.close()


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """No test inherits another's settings or graph types."""
    yield
    registry.reset()
    settings.cache_clear()
