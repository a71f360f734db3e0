"""The exit code of each kind of outcome, and what is said with it."""

from __future__ import annotations

from typing import Any

import pytest

from graph_migrator import GraphType, HopContext
from graph_migrator.core.graph_types import registry
from tests.acceptance.cluster import Cluster
from tests.integration.console import call, failed, spawn
from tests.rows import dump, migration_of, rows

NOWHERE = {
    "DATABASE_URL": "postgresql://me:hush-hush@127.0.0.1:1/graphs",
    "CELERY_BROKER_URL": "redis://:hush-hush@127.0.0.1:1/0",
    "CELERY_RESULT_BACKEND": "redis://:hush-hush@127.0.0.1:1/1",
}


def test_0_a_migration_and_its_way_back(here: Cluster) -> None:
    here.add_graph("g", "trail")
    outcome = call("migrate", "g", "--to", 3, "--inline")
    assert outcome.exit_code == 0
    assert "v1→v2 first: applied" in outcome.out
    assert "g: succeeded, v1→v3" in outcome.out
    assert call("migrate", "g", "--to", 1, "--inline").exit_code == 0
    again = call("migrate", "g", "--to", 1, "--inline")
    assert (again.exit_code, again.out) == (0, "g is at v1 already; nothing to do.\n")


def test_1_a_hop_that_raises_is_named_with_its_error(here: Cluster) -> None:
    here.add_graph("g", "trail")
    here.steer("fail", "g", "second", "no luck")
    outcome = call("migrate", "g", "--inline", "--json")
    assert outcome.exit_code == 1
    assert "hop 'second' failed" in outcome.err
    assert "no luck" in outcome.err
    assert outcome.json()["status"] == "failed"
    assert "DeliberateError: no luck" in call("history", "g").out
    (attempt,) = rows(here.engine, "SELECT id FROM hop_attempts WHERE status = 'failed'")[0]
    assert "in second" in call("history", "g", "--traceback", attempt).out


def test_1_a_connection_error_of_a_hop_is_not_taken_for_the_brokers(here: Cluster) -> None:
    flaky = GraphType("flaky")

    @flaky.hop(1, 2)
    def call_home(ctx: HopContext) -> None:
        raise ConnectionError("nobody at home")

    registry.register(flaky)
    here.add_graph("g", "flaky")
    outcome = call("migrate", "g", "--inline")
    assert outcome.exit_code == 1
    assert "hop 'call_home' failed: ConnectionError: nobody at home" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("status", "nobody"), "there is no graph 'nobody'"),
        (("history", "nobody"), "there is no graph 'nobody'"),
        (("migrate", "nobody", "--wait"), "there is no graph 'nobody'"),
        (("pause", "nobody"), "there is no graph 'nobody'"),
        (("cancel", "nobody"), "there is no graph 'nobody'"),
        (("release", "nobody", "--yes"), "there is no graph 'nobody'"),
        (("lock", "nobody"), "there is no graph 'nobody'"),
        (("export", "nobody"), "there is no graph 'nobody'"),
        (("migrate", "g", "--to", 9, "--inline"), "knows versions 1 to 5 here, not 9"),
        (("migrate", "g", "--to", 9), "knows versions 1 to 5 here, not 9"),
        (("migrate", "last", "--to", 1), "has no reverse"),
        (("plan", "g", "--to", 9), "knows versions 1 to 5 here, not 9"),
        (("migrate", "last", "--to", 1, "--inline"), "has no reverse"),
        (("migrate", "stranger", "--inline"), "'unheard-of' is not known here"),
        (("import", __file__, "--slug", "x", "--type", "unheard-of", "--version", 1), "is not known here"),
        (("import", __file__, "--slug", "x", "--type", "trail", "--version", 7), "knows versions 1 to 5"),
        (("import", __file__, "--slug", "x", "--type", "trail", "--version", 1), "Nothing was imported"),
        (("import", "/no/such/file", "--slug", "x", "--type", "trail", "--version", 1), "does not exist"),
        (("export", "g", "/no/such/folder/file"), "/no/such/folder/file: No such file or directory"),
        (("history", "g", "--traceback", 9), "attempt 9 has none"),
        (("migrate", "g", "--wait", "--inline"), "exclude each other"),
        (("retry",), "name a GRAPH, or say --all-failed"),
        (("release", "g", "--terminate"), "--terminate goes with --force"),
        (("guard", "install", "no_such_table"), "there is no table"),
        (("guard", "remove", "graph_migrator.nodes", "--yes"), "is never without its guard"),
        (("new-type", "Not A Name"), "must be lower-case letters"),
        (("nonsense",), "No such command"),
        (("migrate",), "Missing argument"),
    ],
)
def test_2_wrong_usage_is_explained_and_changes_nothing(
    here: Cluster, arguments: tuple[Any, ...], says: str
) -> None:
    here.add_graph("g", "trail")
    here.add_graph("last", "trail", 5)
    here.add_graph("stranger", "unheard-of")
    before = dump(here.engine)
    outcome = call(*arguments)
    assert outcome.exit_code == 2
    assert says in " ".join(outcome.err.split())
    assert not outcome.out
    assert dump(here.engine) == before


def test_3_what_the_graphs_state_forbids(here: Cluster) -> None:
    failed(here)
    before = dump(here.engine)
    for verb in ("pause", "resume", "cancel"):
        outcome = call(verb, "g", *(["--yes"] if verb == "cancel" else []))
        assert outcome.exit_code == 3
        assert f"cannot {verb}" in outcome.err
        assert "`graph-migrator status g`" in outcome.err
    assert dump(here.engine) == before
    assert call("retry", "g").exit_code == 0  # no worker: it waits
    for how in ((), ("--inline",)):
        outcome = call("migrate", "g", *how)
        assert outcome.exit_code == 3
        assert "owns the graph" in outcome.err
    assert call("release", "g", "--yes").exit_code == 3


def test_4_a_database_out_of_reach_and_its_password_is_not_shown() -> None:
    for arguments in (
        ("graphs",),
        ("status", "g"),
        ("migrate", "g"),
        ("watch",),
        ("db", "upgrade"),
        ("recover",),
    ):
        outcome = spawn(*arguments, env=NOWHERE)
        assert outcome.exit_code == 4
        assert "Postgres at postgresql+psycopg2://me:***@127.0.0.1:1/graphs does not answer" in outcome.err
        assert "Check DATABASE_URL" in outcome.err
        assert "hush-hush" not in outcome.out + outcome.err
        assert "Traceback" not in outcome.err


def test_4_a_broker_out_of_reach_is_reported_soon(here: Cluster) -> None:
    here.add_graph("g", "trail")
    env = {**here.environment, "CELERY_BROKER_URL": NOWHERE["CELERY_BROKER_URL"]}
    outcome = spawn("migrate", "g", env=env)
    assert outcome.exit_code == 4
    assert "the broker at redis://:***@127.0.0.1:1/0 does not answer" in outcome.err
    assert "hush-hush" not in outcome.err
    assert not rows(here.engine, "SELECT * FROM migrations")


def test_4_a_result_backend_out_of_reach(here: Cluster) -> None:
    here.add_graph("g", "trail")
    env = {**here.environment, "CELERY_RESULT_BACKEND": NOWHERE["CELERY_RESULT_BACKEND"]}
    outcome = spawn("migrate", "g", env=env)
    assert outcome.exit_code == 4
    assert "the result backend at redis://:***@127.0.0.1:1/1 does not answer" in outcome.err
    assert here.queue_length() == 0


def test_0_a_retry_is_recorded_although_the_broker_is_away(here: Cluster) -> None:
    failed(here)
    outcome = spawn("retry", "g", env={**here.environment, "CELERY_BROKER_URL": NOWHERE["CELERY_BROKER_URL"]})
    assert outcome.exit_code == 0
    assert "recovery sends it within 30 s" in outcome.err
    assert migration_of(here.engine, "g").status == "running"


def test_4_tables_of_another_release(empty_database_url: str) -> None:
    env = {"DATABASE_URL": empty_database_url}
    outcome = spawn("graphs", env=env)
    assert outcome.exit_code == 4
    assert "our tables are missing" in outcome.err
    assert "graph-migrator db upgrade" in outcome.err
    first = spawn("db", "upgrade", env=env)
    assert (first.exit_code, first.out.startswith("The schema went from nothing to")) == (0, True)
    assert spawn("db", "upgrade", env=env).out.endswith("already.\n")
    assert spawn("graphs", env=env).exit_code == 0


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"DATABASE_URL": "not a url"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://u:hush-hush@host:port/db"}, "DATABASE_URL"),
        ({"DATABASE_URL": "mysql://u:hush-hush@host/db"}, "DATABASE_URL"),
        ({"GRAPH_MIGRATOR_DEADLINE_SECONDS": "hush-hush"}, "GRAPH_MIGRATOR_DEADLINE_SECONDS"),
    ],
)
def test_2_a_malformed_setting_is_named_and_not_shown(env: dict[str, str], says: str) -> None:
    outcome = spawn("graphs", env=env)
    assert outcome.exit_code == 2
    assert says in outcome.err
    assert "hush-hush" not in outcome.err
    assert "Traceback" not in outcome.err


def test_2_a_type_that_cannot_be_loaded_is_named(here: Cluster) -> None:
    outcome = spawn("types", env={**here.environment, "GRAPH_MIGRATOR_TYPES": "no.such:thing"})
    assert outcome.exit_code == 2
    assert "no.such:thing" in outcome.err


def test_debug_shows_the_traceback() -> None:
    outcome = spawn("--debug", "graphs", env=NOWHERE)
    assert outcome.exit_code == 1
    assert "Traceback" in outcome.err
