"""Secrets go in everywhere; none may come out where a caller, a log or an audit row shows them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel, field_validator
from sqlalchemy import create_engine, text

from graph_migrator import GraphType, HopContext, run_graph_migration
from graph_migrator.core.embedded import Redis
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.redaction import redacted, safe_message, safe_traceback
from graph_migrator.tasks import runtime
from graph_migrator.tasks.cli.output import without_password
from tests.acceptance.cluster import Cluster
from tests.integration.console import call
from tests.rows import TABLES, add_graph, rows

SECRET = "-".join(["hunter2", "hush"])  # a word that stands in a hop's module is no secret


class Strict(BaseModel):
    """Its own words repeat the input, as validators' do."""

    pin: int = 0
    code: str = ""

    @field_validator("code")
    @classmethod
    def _speak(cls, value: str) -> str:
        if value:
            raise ValueError(f"{value} is not a code")
        return value


class Authored(Exception):
    """An error of an author's own."""


leaky = GraphType("leaky", nodes={2: {"Model": Strict}})
HOPS: dict[str, Any] = {}


@leaky.hop(1, 2)
def leak(ctx: HopContext) -> None:
    """Do what the test says."""
    HOPS[ctx.graph.slug](ctx)


def of(name: str) -> Any:
    def keep(function: Any) -> Any:
        HOPS[name] = function
        return function

    return keep


def _property(ctx: HopContext) -> str:
    return str(ctx.execute("SELECT properties->>'v' FROM nodes WHERE graph_id = :graph_id LIMIT 1").scalar())


@of("constraint")
def _constraint(ctx: HopContext) -> None:
    """Postgres shows the whole failing row in its DETAIL."""
    ctx.execute(
        "INSERT INTO nodes (graph_id, label, properties) SELECT graph_id, label, properties FROM nodes "
        "WHERE graph_id = :graph_id"
    )


@of("check")
def _check(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET properties = to_jsonb(properties->>'v') WHERE graph_id = :graph_id")


@of("cast")
def _cast(ctx: HopContext) -> None:
    ctx.execute("SELECT (properties->>'v')::integer FROM nodes WHERE graph_id = :graph_id")


@of("date")
def _date(ctx: HopContext) -> None:
    ctx.execute("SELECT CAST(:v AS date)", {"v": f"{SECRET}\"'"})


@of("parameter")
def _parameter(ctx: HopContext) -> None:
    ctx.execute("SELECT * FROM no_such_table WHERE a = :v", {"v": SECRET})


@of("syntax")
def _syntax(ctx: HopContext) -> None:
    ctx.execute("SELECT 1 FORM :v :v", {"v": SECRET})


@of("driver")
def _driver(ctx: HopContext) -> None:
    ctx.execute("SELECT :v", {"v": {SECRET: object()}})


@of("missing_parameter")
def _missing_parameter(ctx: HopContext) -> None:
    ctx.execute("SELECT :v, :w", {"v": SECRET})


@of("python_int")
def _python_int(ctx: HopContext) -> None:
    int(_property(ctx))


@of("python_date")
def _python_date(ctx: HopContext) -> None:
    datetime.strptime(_property(ctx), "%Y")  # noqa: DTZ007


@of("python_key")
def _python_key(ctx: HopContext) -> None:
    {}[_property(ctx)]


@of("python_file")
def _python_file(ctx: HopContext) -> None:
    Path(_property(ctx)).read_text()


@of("pydantic")
def _pydantic(ctx: HopContext) -> None:
    Strict.model_validate({"pin": _property(ctx), "code": _property(ctx)})


@of("models")
def _models(ctx: HopContext) -> None:
    ctx.execute(
        "UPDATE nodes SET label = 'Model', properties = jsonb_build_object('code', properties->'v', 'pin', "
        "properties->'v') WHERE graph_id = :graph_id"
    )


@of("cause")
def _cause(ctx: HopContext) -> None:
    try:
        _constraint(ctx)
    except Exception as error:
        raise Authored("the rows were not as they should be") from error


@of("context")
def _context(ctx: HopContext) -> None:
    try:
        int(_property(ctx))
    except ValueError:
        raise Authored("the rows were not as they should be")  # noqa: B904


@of("own_session")
def _own_session(ctx: HopContext) -> None:
    """An engine of the author's, which does not hide parameters."""
    engine = create_engine(ctx.connection.engine.url)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT * FROM no_such_table WHERE a = :v"), {"v": SECRET})
    finally:
        engine.dispose()


@of("psycopg_3")
def _psycopg_3(ctx: HopContext) -> None:
    """An engine of the author's, on another driver."""
    engine = create_engine(ctx.connection.engine.url.set(drivername="postgresql+psycopg"))
    try:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL search_path = graph_migrator"))
            connection.execute(
                text("INSERT INTO nodes (graph_id, label, properties) VALUES (:graph_id, :v, '{}')"),
                {"graph_id": ctx.graph.id, "v": SECRET},
            )
    finally:
        engine.dispose()


NAMES = sorted(HOPS)


@pytest.fixture
def here(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    types = "tests.integration.test_secrets:leaky"
    with Cluster(tmp_path, database_url=database_url, redis=redis_server, types=types) as cluster:
        yield cluster


def everything_recorded(here: Cluster) -> str:
    """Every row about migrations, tracebacks among them."""
    tables = [table for table in TABLES if table not in {"nodes", "edges", "graphs"}]
    return "\n".join(
        row for table in tables for (row,) in rows(here.engine, f"SELECT t::text FROM {table} t")
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_failing_hop_shows_no_values(here: Cluster, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    add_graph(here.engine, name, "leaky", nodes={"a": {"v": SECRET}, "b": {"v": SECRET}})
    dry = call("migrate", name, "--dry-run")
    assert dry.exit_code == 1
    ran = call("migrate", name, "--inline")
    assert ran.exit_code == 1
    (number,) = rows(here.engine, "SELECT max(id) FROM hop_attempts")[0]
    shown = [call(*arguments) for arguments in (
        ("history", name), ("history", name, "--json"), ("history", name, "--traceback", number),
        ("status", name), ("status", name, "--json"), ("watch", name, "--json"), ("migrate", name, "--inline"),
    )]  # fmt: skip
    for outcome in (dry, ran, *shown):
        assert SECRET not in outcome.out
        assert SECRET not in outcome.err
    recorded = everything_recorded(here)
    assert "leak" in recorded
    assert SECRET not in recorded
    assert SECRET not in caplog.text


def test_results_and_requests_of_a_worker_show_no_values(here: Cluster) -> None:
    from graph_migrator import migrate_graph

    worker = here.start_worker(concurrency=1)
    results = []
    for name in NAMES:
        add_graph(here.engine, name, "leaky", nodes={"a": {"v": SECRET}, "b": {"v": SECRET}})
        results.append(migrate_graph.delay(name, 2))
    for result in results:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each its own
            result.get(timeout=60)
        assert SECRET not in str(caught.value)
    with here.client(1) as backend:
        stored = [backend.get(key) or b"" for key in backend.keys("celery-task-meta-*")]
    assert len(stored) >= len(NAMES)
    assert SECRET not in b"".join(stored).decode()
    assert SECRET not in everything_recorded(here)
    assert "leak" in worker.text()
    assert SECRET not in worker.text()


def test_what_hinders_a_hop_from_opening_is_recorded_without_the_row(here: Cluster) -> None:
    from graph_migrator.tasks.migrate import run_hop

    add_graph(here.engine, "g", "leaky", nodes={})
    with runtime.executors().borrow() as executor:
        (message,) = begin_migration(executor, "g").messages()
    with here.engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE hop_attempts ADD CONSTRAINT no_leaks CHECK (hop_name <> 'leak')")
        )
    arguments = [str(message.migration_id), message.from_version, message.to_version, message.dispatch]
    shown = run_hop.apply(args=arguments)
    assert "no_leaks" in str(shown.result)
    assert "DETAIL" not in f"{shown.result} {shown.traceback}"


def test_an_authors_own_words_are_recorded(here: Cluster) -> None:
    add_graph(here.engine, "cause", "leaky", nodes={"a": {"v": SECRET}})
    registry.register(leaky)
    with pytest.raises(Authored, match="the rows were not as they should be"):
        run_graph_migration(here.engine, "cause")


def test_a_value_error_keeps_its_type(here: Cluster) -> None:
    add_graph(here.engine, "python_int", "leaky", nodes={"a": {"v": SECRET}})
    with pytest.raises(ValueError, match=r"invalid literal for int\(\) with base 10: '…'"):
        run_graph_migration(here.engine, "python_int")


def test_words_of_an_author_that_quote_are_not_taken_for_pythons() -> None:
    with pytest.raises(ValueError, match="kept") as caught:
        raise ValueError("'this' is kept")
    assert safe_message(caught.value) == "'this' is kept"
    assert redacted(caught.value) is caught.value
    assert "ValueError: 'this' is kept" in safe_traceback(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://me:{SECRET}@db:5432/g", "postgresql://me:***@db:5432/g"),
        (f"postgresql://me:{SECRET}@x@db/g?sslmode=require", "postgresql://me:***@db/g"),
        (f"postgresql://db/g?user=me&password={SECRET}", "postgresql://db/g"),
        (f"postgresql://u:{SECRET}/a:b@host:port/db", "postgresql://u:***@host:port/db"),
        (f"redis://:{SECRET}@r:6379/0", "redis://:***@r:6379/0"),
        (f"sentinel://:{SECRET}@a:1;sentinel://:{SECRET}@b:2", "sentinel://:***@a:1; sentinel://:***@b:2"),
        (SECRET, "a malformed URL"),
    ],
)
def test_urls_are_shown_without_their_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_bad_requests_do_not_echo_their_values(here: Cluster) -> None:
    from graph_migrator import migrate_graph, retry_migration
    from graph_migrator.core.errors import InvalidRequest

    for arguments in (
        {"graph_id": SECRET + "!"}, {"graph_id": "g", "target": SECRET}, {"graph_id": {SECRET: 1}},
        {"graph_id": "g", "reason": SECRET + "\0"}, {"graph_id": "g", "requested_by": [SECRET]},
    ):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            migrate_graph.delay(**arguments)
        assert SECRET not in str(caught.value)
    with pytest.raises(InvalidRequest) as caught:
        retry_migration.delay("g", str(uuid4()), SECRET, SECRET)
    assert SECRET not in json.dumps(caught.value.args)
