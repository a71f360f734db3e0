"""Whatever is thrown at the tasks, the command line and the importers: an error of ours, and not one row changed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine

import graph_migrator
from graph_migrator import app
from graph_migrator.core.embedded import Redis
from graph_migrator.core.errors import GraphMigratorError, InvalidRequest, WrongUsage
from graph_migrator.core.interchange import import_graph
from graph_migrator.tasks.results import (
    GraphArguments,
    LockArguments,
    MigrateArguments,
    ReleaseArguments,
    RetryArguments,
    checked,
)
from tests.acceptance.cluster import Cluster
from tests.integration.console import call
from tests.rows import dump

VERBS = {
    "migrate_graph": MigrateArguments,
    "retry_migration": RetryArguments,
    "cancel_migration": GraphArguments,
    "pause_migration": GraphArguments,
    "resume_migration": GraphArguments,
    "release_graph": ReleaseArguments,
    "lock_graph": LockArguments,
    "unlock_graph": LockArguments,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [
        "graph_id",
        "target",
        "migration_id",
        "requested_by",
        "reason",
        "force",
        "whole",
        "terminate",
        "accept_new_code",
    ]
)
# The fixtures are not made anew for each example, which is meant: no example may leave anything behind.
FUZZ = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def here(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        cluster.add_graph("g", "trail")
        yield cluster


# ── tasks ──────────────────────────────────────────────────────────────────────────────────────────


@hypothesis_settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(sorted(VERBS)),
    st.lists(JSON, max_size=5),
    st.dictionaries(NAMES | st.text(), JSON, max_size=4),
)
@example("migrate_graph", ["g", True], {})
@example("migrate_graph", ["g", 2**63], {})
@example("migrate_graph", ["g"], {"requested_by": "\ud800"})
@example("migrate_graph", ["g\n"], {})
@example("cancel_migration", ["g", "no uuid"], {})
@example("cancel_migration", ["g"], {"requested_by": "a\0b"})
def test_arguments_are_fit_to_be_stored_or_refused(
    verb: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    try:
        given = checked(VERBS[verb], args, kwargs)
    except InvalidRequest as error:
        json.dumps(error.args)
        return
    text = json.dumps(given)
    assert "\\u0000" not in text
    assert "\\ud800" not in text
    assert "\n" not in given["graph_id"]


@FUZZ
@given(st.sampled_from(sorted(VERBS)), st.lists(JSON, max_size=4), st.dictionaries(NAMES, JSON, max_size=3))
def test_nothing_malformed_is_sent(here: Cluster, verb: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    try:
        checked(VERBS[verb], args, kwargs)
    except InvalidRequest:
        with pytest.raises(InvalidRequest):
            getattr(graph_migrator, verb).apply_async(args, kwargs)
        assert here.queue_length() == 0


def test_a_worker_refuses_what_another_service_sends(here: Cluster) -> None:
    """`app.send_task` checks nothing, so the worker does."""
    worker = here.start_worker(concurrency=1)
    before = dump(here.engine)
    sent = [
        app.send_task(f"tasks.{verb}", args=args, kwargs=kwargs, queue="migrations")
        for verb in VERBS
        for args, kwargs in [
            ([], {}), ([None], {}), (["g"] * 9, {}), ([{"a": 1}], {}),
            (["g; DROP TABLE graphs"], {}), (["g\x00"], {}),
            (["g"], {"graph_id": "g"}), (["g"], {"nonsense": 1}), (["x" * 10_000], {}),
            (["g"], {"requested_by": "\x00"}),
        ]
    ]  # fmt: skip
    for result in sent:
        with pytest.raises(InvalidRequest):
            result.get(timeout=60)
    assert dump(here.engine) == before
    assert worker.is_alive
    assert graph_migrator.migrate_graph.delay("g", 2).get(timeout=60).version == 2


def test_internal_tasks_survive_malformed_messages(here: Cluster) -> None:
    worker = here.start_worker(concurrency=1)
    before = dump(here.engine)
    for args in ([], ["no uuid", 1, 2, 1], ["0" * 32, "x", None, {}], [None] * 4, ["g", 1, 2, 3, 4]):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - any, as long as it arrives
            app.send_task("tasks.run_hop", args=args, queue="migrations").get(timeout=60)
        assert "psycopg2" not in repr(caught.value)
    assert dump(here.engine) == before
    assert worker.is_alive


# ── the command line ───────────────────────────────────────────────────────────────────────────────

WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
) | st.sampled_from(
    [
        "g",
        "nobody",
        "--to",
        "-1",
        "0",
        "99",
        "--yes",
        "--json",
        "--state",
        "--limit",
        "--after",
        "--type",
        "--",
        "-",
        "--traceback",
    ]
)


COMMANDS = [
    *[
        "graphs",
        "plan",
        "status",
        "history",
        "retry",
        "cancel",
        "pause",
        "resume",
        "release",
        "types",
        "lock",
    ],
    *["guard install", "guard remove", "migrate --inline --to"],
]


@FUZZ
@given(
    st.sampled_from(COMMANDS),
    st.lists(WORDS, max_size=4),
)  # fmt: skip
@example("status", ["\x1b[31m"])
@example("graphs", ["--after", "'; DROP TABLE graphs; --"])
@example("guard install", ["a.b.c.d"])
@example("history", ["g", "--traceback", str(2**70)])
@example("history", ["g", "--limit", str(2**70)])
@example("plan", ["g", "--to", str(2**70)])
@example("status", ["\udcff"])
def test_the_command_line_answers_anything_with_an_exit_code(
    here: Cluster, command: str, words: list[str]
) -> None:
    before = dump(here.engine)
    outcome = call(*command.split(), *words, answer="n\n")
    assert outcome.exit_code in {0, 1, 2, 3}
    assert "--debug shows where" not in outcome.err
    if outcome.exit_code in {2, 3}:
        assert dump(here.engine) == before


# ── importers ──────────────────────────────────────────────────────────────────────────────────────

RECORDS = st.fixed_dictionaries(
    {},
    optional={
        name: JSON for name in ("kind", "id", "label", "source", "target", "type", "properties", "key")
    },
)
LISTS = st.lists(RECORDS, max_size=3) | JSON
FILES = st.one_of(
    st.binary(max_size=200),
    st.lists(RECORDS | JSON, max_size=4).map(lambda records: "\n".join(map(json.dumps, records)).encode()),
    st.fixed_dictionaries(
        {"nodes": st.lists(RECORDS, max_size=3) | JSON, "links": st.lists(RECORDS, max_size=3) | JSON}
    ).map(lambda document: json.dumps(document).encode()),
    st.binary(max_size=60).map(lambda rest: b"\x1f\x8b\x08" + rest),
)


@hypothesis_settings(parent=FUZZ, max_examples=150)
@given(FILES, st.sampled_from([None, "node-link", "jsonl"]))
@example(b'{"kind": "node", "id": "a\\u0000", "label": "N"}', "jsonl")
@example(b'{"kind": "node", "id": "\\ud800", "label": "N"}', "jsonl")
@example(b'{"kind": "node", "id": "a", "label": "N", "properties": ' + b"[" * 5_000, "jsonl")
@example(b'{"kind": "node", "id": "a", "label": "N", "properties": {"n": 1e999999}}', "jsonl")
def test_any_file_is_imported_whole_or_refused(engine: Engine, data: bytes, form: str | None) -> None:
    before = dump(engine)
    try:
        import_graph(engine, io.BytesIO(data), slug="i", graph_type="trail", version=1, format=form)
    except WrongUsage:
        assert dump(engine) == before
    except GraphMigratorError as error:
        raise AssertionError(f"another error than wrong usage: {error!r}") from error
    else:
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM graphs WHERE slug = 'i'")
