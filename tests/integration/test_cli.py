"""The command line: every command, its JSON, its exit codes, and what a person reads."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from sqlalchemy.orm import Session

from graph_migrator import GraphType, HopContext, graph_writer
from graph_migrator.core.embedded import Redis
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import Caller, begin_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.tasks import runtime
from graph_migrator.tasks.cli import main
from tests.acceptance.cluster import ROOT, Cluster
from tests.integration.console import ESCAPE, call, spawn
from tests.rows import dump, graph_row, migration_of, rows
from tests.waiting import until

NOWHERE = {
    "DATABASE_URL": "postgresql://me:hush-hush@127.0.0.1:1/graphs",
    "CELERY_BROKER_URL": "redis://:hush-hush@127.0.0.1:1/0",
    "CELERY_RESULT_BACKEND": "redis://:hush-hush@127.0.0.1:1/1",
}


@pytest.fixture
def here(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    """Services without a worker; this process is connected to them."""
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        yield cluster


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def failed(here: Cluster, slug: str = "g", hop: str = "second") -> None:
    """A graph whose migration has failed."""
    here.add_graph(slug, "trail")
    order = here.steer("fail", slug, hop, "no luck")
    assert call("migrate", slug, "--to", 3, "--inline").exit_code == 1
    order.unlink()


# ── every command ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [(), *commands()], ids=" ".join)
def test_every_command_has_help_that_explains_it(path: tuple[str, ...]) -> None:
    outcome = call(*path, "--help")
    assert outcome.exit_code == 0
    assert outcome.out.startswith("Usage: ")
    assert len(outcome.out.split("\n\n")[1].strip()) > 20, "no sentence says what it does"


def documented() -> dict[str, tuple[str, set[str]]]:
    """The JSON shapes of docs/cli.md, by command."""
    text = (ROOT / "docs" / "cli.md").read_text()
    found = re.findall(r"^\| `([^`]+)` \| (list|object|line by line) \| (.+) \|$", text, re.MULTILINE)
    return {command: (shape, set(re.findall(r"`([^`]+)`", keys))) for command, shape, keys in found}


@pytest.mark.parametrize("command", documented())
def test_json_is_what_the_documentation_says(here: Cluster, tmp_path: Path, command: str) -> None:
    failed(here)
    here.add_graph("h", "trail")
    file = tmp_path / "one.jsonl"
    file.write_text('{"kind": "node", "id": "a", "label": "N", "properties": {}}\n')
    more: dict[str, tuple[Any, ...]] = {
        "plan": ("h",), "status GRAPH": ("g",), "watch": ("g",), "history": ("g",), "migrate": ("h",),
        "migrate --inline": ("h",), "migrate --dry-run": ("h",), "lock": ("g",), "delete": ("h", "--yes"),
        "import": (file, "--slug", "i", "--type", "trail", "--version", 1),
        "baseline": ("h", "--version", 2, "--reason", "r", "--yes"),
        "console token create": ("ada",),
        "audit archive": ("--before", "2020-01-01", "--to", tmp_path / "archive"),
        "rollout plan": ("trail", "--all"), "rollout start": ("trail", "--all"),
        **{f"rollout {verb}": ("trail",) for verb in ("show", "graphs", "errors", "changes", "pause")},
    }  # fmt: skip
    if command.startswith("rollout ") and command not in {"rollout plan", "rollout start"}:
        assert call("rollout", "start", "trail", "--all").exit_code == 0
    words = [word for word in command.split() if word != "GRAPH"]
    outcome = call(*words, *more.get(command, ()), "--json")
    assert outcome.exit_code in {0, 1}
    shape, keys = documented()[command]
    value: Any = json.loads(outcome.out.splitlines()[0]) if shape == "line by line" else outcome.json()
    assert isinstance(value, list) == (shape == "list")
    for each in value if shape == "list" else [value]:
        assert set(each) == keys


def test_every_reading_command_has_its_json_documented() -> None:
    with_json = {
        " ".join(path) for path in commands()
        if any(o.name == "as_json" for o in _command(path).params)
    }  # fmt: skip
    shown = set(documented())
    same_as_lock = {
        "retry",
        "cancel",
        "pause",
        "resume",
        "release",
        "unlock",
        "guard install",
        "console token revoke",
    }
    verbs = ("resume", "promote", "cancel", "retry", "skip", "set", "hold", "unhold", "back", "watch")
    same_as_lock |= {f"rollout {verb}" for verb in verbs}
    assert with_json - same_as_lock == {name for name in shown if " --" not in name and "GRAPH" not in name}


def _command(path: tuple[str, ...]) -> click.Command:
    found: click.Command = main
    for name in path:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


# ── exit codes ─────────────────────────────────────────────────────────────────────────────────────


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


# ── pipes ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_pipe_gets_no_colours_even_where_the_environment_asks_for_them(here: Cluster) -> None:
    failed(here)
    env = {**here.environment, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    for arguments in (
        ("graphs",),
        ("status", "g"),
        ("history", "g"),
        ("types",),
        ("watch", "g"),
        ("doctor",),
    ):
        outcome = spawn(*arguments, env=env)
        assert outcome.out
        assert ESCAPE not in outcome.out


def test_a_reader_that_goes_away_is_no_traceback(here: Cluster) -> None:
    here.add_graph("g", "trail", nodes=20_000)
    piped = subprocess.run(
        f"{sys.executable} -m graph_migrator export g | head -c 10",
        shell=True, env={"PATH": "/usr/bin:/bin", **here.environment}, cwd=ROOT, capture_output=True, timeout=60,
    )  # fmt: skip
    assert b"Traceback" not in piped.stderr


def test_export_and_import_again_is_the_same_graph(here: Cluster, tmp_path: Path) -> None:
    here.add_graph("g", "trail", edges=[("e", "n0000", "n0001")])
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert call("export", "g", first).exit_code == 0
    assert call("import", first, "--slug", "h", "--type", "trail", "--version", 1).exit_code == 0
    assert call("export", "h", second).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    assert call("import", first, "--slug", "h", "--type", "trail", "--version", 1).exit_code == 2


# ── lists ──────────────────────────────────────────────────────────────────────────────────────────


def test_graphs_are_filtered_and_paged(here: Cluster) -> None:
    for n in range(5):
        here.add_graph(f"t{n}", "trail", 5 if n == 0 else 1)
    here.add_graph("b0", "batched_trail", 3)
    failed(here, "x")

    def slugs(*options: object) -> list[str]:
        return [g["slug"] for g in call("graphs", *options, "--json").json()]

    assert slugs() == ["b0", "t0", "t1", "t2", "t3", "t4", "x"]
    assert slugs("--type", "batched_trail") == ["b0"]
    assert slugs("--behind") == ["t1", "t2", "t3", "t4", "x"]
    assert slugs("--state", "failed") == ["x"]
    assert slugs("--state", "idle", "--behind") == ["t1", "t2", "t3", "t4"]
    page = call("graphs", "--limit", 4)
    assert "More may follow: --after t2" in page.err
    assert slugs("--after", "t2", "--limit", 4) == ["t3", "t4", "x"]
    assert call("graphs", "--after", "x").err == "No more graphs.\n"
    assert call("graphs", "--state", "nonsense").exit_code == 2


def test_a_slug_that_looks_like_markup_is_shown_as_it_is(here: Cluster) -> None:
    here.add_graph("g", "trail")
    call("migrate", "g", "--to", 2, "--inline", "--reason", "[red]because[/]")
    assert "[red]because[/]" in call("history", "g").out


# ── watch ──────────────────────────────────────────────────────────────────────────────────────────


def test_watch_says_that_nothing_is_being_migrated(here: Cluster) -> None:
    here.add_graph("g", "trail")
    outcome = call("watch")
    assert (outcome.exit_code, outcome.out) == (0, "Nothing is being migrated.\n")
    assert "never migrated" in call("watch", "g").out


def test_watch_ends_with_the_migrations_outcome(here: Cluster) -> None:
    failed(here)
    assert call("watch", "g").exit_code == 1
    call("release", "g", "--yes")
    assert call("watch", "g").exit_code == 0


# ── questions ──────────────────────────────────────────────────────────────────────────────────────


def test_destructive_commands_say_what_they_will_do_and_take_no_for_an_answer(here: Cluster) -> None:
    failed(here)
    before = dump(here.engine)
    outcome = call("release", "g", answer="n\n")
    assert outcome.exit_code == 1
    assert "Release g at v2? Its migration (failed) is abandoned and writers get in." in outcome.err
    assert "Nothing was changed." in outcome.err
    silent = spawn("release", "g", env=here.environment)
    assert silent.exit_code == 2
    assert "[y/N]: \nUsage: " in silent.err
    assert "--yes" in silent.err
    assert call("retry", "--all-failed", answer="n\n").exit_code == 1
    assert dump(here.engine) == before
    assert call("release", "g", answer="y\n").exit_code == 0
    assert graph_row(here.engine, "g").migration_id is None


@pytest.mark.parametrize("verb", ["cancel", "release"])
def test_a_yes_is_for_the_migration_that_was_asked_about(
    here: Cluster, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(here)

    def answer(_: str, *, yes: bool) -> None:
        """Somebody is quicker: the graph is under another migration by now."""
        assert not yes
        with runtime.executors().borrow() as executor:
            operations.release(executor, "g")
            begin_migration(executor, "g", 5)

    monkeypatch.setattr(f"graph_migrator.tasks.cli.{verb}.ask", answer)
    outcome = call(verb, "g", *(["--force"] if verb == "release" else []))
    assert outcome.exit_code == 3
    assert "that needs migration" in outcome.err
    assert migration_of(here.engine, "g").status == "queued"


def test_retry_all_failed_when_nothing_failed(here: Cluster) -> None:
    assert call("retry", "--all-failed").out == "No migration has failed.\n"
    assert call("retry", "--all-failed", "--json").json() == []


def test_retry_all_failed_retries_each(here: Cluster) -> None:
    for slug in ("a", "b"):
        failed(here, slug)
    outcome = call("retry", "--all-failed", "--yes")
    assert outcome.exit_code == 0
    assert "2 retried, 0 refused" in outcome.out
    assert {migration_of(here.engine, slug).status for slug in "ab"} == {"running"}


def test_retry_all_failed_takes_filters_and_shows_first_what_it_would_do(here: Cluster) -> None:
    failed(here, "a")
    failed(here, "b", hop="first")
    failed(here, "c")

    def chosen(*filters: str) -> list[str]:
        listed = call("retry", "--all-failed", "--dry-run", *filters, "--json").json()
        return [each["graph"] for each in listed]

    before = dump(here.engine)
    assert chosen() == ["a", "b", "c"]
    assert chosen("--hop", "second") == ["a", "c"]
    assert chosen("--type", "trail", "--error", "NO LUCK") == ["a", "b", "c"]
    assert chosen("--error", "KeyError") == chosen("--type", "batched_trail") == []
    lines = call("retry", "--all-failed", "--dry-run", "--hop", "first").out.splitlines()
    assert lines[0].startswith("b: v1→v3, first: ")
    assert lines[1] == "1 migration would be retried; nothing was changed."
    assert dump(here.engine) == before
    assert call("retry", "--all-failed", "--hop", "first", "--yes").exit_code == 0
    assert [migration_of(here.engine, slug).status for slug in "abc"] == ["failed", "running", "failed"]
    for option in (("--hop", "first"), ("--type", "trail"), ("--error", "x"), ("--dry-run",)):
        assert call("retry", "a", *option).exit_code == 2


def test_failures_are_grouped_by_hop_and_cause_with_examples(here: Cluster) -> None:
    for slug in ("a", "b", "c", "d"):
        failed(here, slug)
    failed(here, "e", hop="first")
    groups = call("failures", "--json").json()
    assert [(g["hop"], g["count"], [x["graph"] for x in g["examples"]]) for g in groups] == [
        ("second", 4, ["a", "b", "c"]),
        ("first", 1, ["e"]),
    ]
    assert groups[0]["error_message"] == "no luck"
    lines = call("failures").out.splitlines()
    assert re.search(r"^4 +trail +second +\S*DeliberateError +no luck +a, b, c, …$", lines[1].strip())
    listed = call("graphs", "--state", "failed", "--json").json()
    assert {g["slug"]: g["hop"] for g in listed} == dict.fromkeys("abcd", "second") | {"e": "first"}
    assert all(g["error"].endswith("DeliberateError: no luck") for g in listed)
    assert call("failures", "--hop", "first", "--json").json()[0]["count"] == 1


def of_a_type_that_changes(here: Cluster, slug: str | None, *, first: int) -> None:
    """A type with one hop, which fails, known to this process until `registry.reset`; and a graph that it failed."""
    kind = GraphType("changing")

    @kind.hop(first, first + 1)
    def fail(ctx: HopContext) -> None:
        raise ValueError("no luck")

    registry.register(kind)
    if slug is not None:
        here.add_graph(slug, "changing", first)
        assert call("migrate", slug, "--inline").exit_code == 1


def test_failed_graphs_of_a_type_that_is_not_known_here_are_counted_apart(here: Cluster) -> None:
    failed(here, "a")
    of_a_type_that_changes(here, "b", first=1)
    registry.reset()
    outcome = call("failures")
    assert "1 graph of a type that is not known here" in outcome.err
    outcome = call("retry", "--all-failed", "--yes")
    assert (outcome.exit_code, "1 retried, 0 refused" in outcome.out) == (0, True)
    assert "their type is not known here: b" in outcome.err


def test_watch_shows_the_hop_that_failed_its_error_and_the_next_step(here: Cluster) -> None:
    failed(here)
    outcome = call("watch", "g")
    assert outcome.exit_code == 1
    assert re.search(r"g +v2 → v3 +second +failed +.*DeliberateError: no luck", outcome.out)
    assert "`graph-migrator retry g`" in outcome.out


def test_the_history_has_a_column_for_the_error(here: Cluster) -> None:
    failed(here)
    lines = call("history", "g").out.splitlines()
    header = next(line for line in lines if "WORKER" in line)
    row = next(line for line in lines if "#" in line)
    assert row.index("#") == header.index("ERROR")


def test_an_unreachable_graph_is_called_so_everywhere_and_never_retried(here: Cluster) -> None:
    """The hops that lead from its version were dropped, or it comes from a newer release."""
    of_a_type_that_changes(here, "dropped", first=1)
    registry.reset()
    of_a_type_that_changes(here, None, first=3)
    here.add_graph("far", "trail", 7)
    here.add_graph("behind", "trail")
    fact = "far is unreachable: it is at v7, and graph type 'trail' knows versions 1 to 5 here."
    for arguments in (("migrate", "far"), ("migrate", "far", "--inline"), ("plan", "far")):
        outcome = call(*arguments)
        assert outcome.exit_code == 2
        assert fact in outcome.err
    reasons = call("status", "far", "--json").json()["reasons"]
    assert [(reason["kind"], reason["what"]) for reason in reasons] == [("unreachable", fact)]
    assert [r["kind"] for r in call("status", "dropped", "--json").json()["reasons"]] == [
        "failed",
        "unreachable",
    ]
    assert [g["slug"] for g in call("graphs", "--unreachable", "--json").json()] == ["dropped", "far"]
    assert [g["slug"] for g in call("graphs", "--behind", "--json").json()] == ["behind"]
    assert call("graphs", "--behind", "--unreachable").exit_code == 2
    before = dump(here.engine)
    outcome = call("retry", "--all-failed", "--yes")
    assert outcome.out == "None of them can be retried here.\n"
    assert "Left out as unreachable: dropped." in outcome.err
    assert dump(here.engine) == before
    found = {f["check"]: f["found"] for f in call("doctor", "--json").json()}
    assert found["unreachable"] == "2 graphs unreachable: at a version that the type does not know here"


def test_a_graph_below_the_oldest_version_of_its_type_is_unreachable_and_not_behind(here: Cluster) -> None:
    late = GraphType("late")

    @late.hop(3, 4)
    def only(ctx: HopContext) -> None:
        """The hops below were dropped."""

    registry.register(late)
    for version in (1, 3):
        here.add_graph(f"at-{version}", "late", version)
    assert [g["slug"] for g in call("graphs", "--unreachable", "--json").json()] == ["at-1"]
    assert [g["slug"] for g in call("graphs", "--behind", "--json").json()] == ["at-3"]
    assert [g["slug"] for g in call("graphs", "--behind", "--state", "idle", "--json").json()] == ["at-3"]
    assert "knows versions 3 to 4 here" in call("migrate", "at-1").err


def test_delete_asks_and_leaves_the_history(here: Cluster) -> None:
    graph = here.add_graph("g", "trail", edges=[("e", "n0000", "n0001")])
    assert call("migrate", "g", "--to", 2, "--inline").exit_code == 0
    before = dump(here.engine)
    assert call("delete", "g", answer="n\n").exit_code == 1
    assert dump(here.engine) == before
    outcome = call("delete", "g", "--yes")
    assert (outcome.exit_code, outcome.out) == (0, "g: deleted, 3 nodes and 1 edge\n")
    assert call("status", "g").exit_code == 2
    assert call("history", graph, "--json").json()[0]["report"]["status"] == "succeeded"
    assert not rows(here.engine, "SELECT * FROM nodes")


def test_a_graph_in_other_hands_is_not_deleted(here: Cluster) -> None:
    failed(here)
    here.add_graph("locked", "trail")
    call("lock", "locked")
    before = dump(here.engine)
    for slug in ("g", "locked"):
        outcome = call("delete", slug, "--yes")
        assert outcome.exit_code == 3
        assert "read-only" in outcome.err
    assert dump(here.engine) == before


def test_a_call_that_a_worker_refused_is_shown(here: Cluster) -> None:
    here.add_graph("g", "trail")
    with runtime.executors().borrow() as executor, suppress(GraphMigratorError):
        begin_migration(executor, "g", 9, caller=Caller("call-1", "night-shift"))
    said = (
        "migrate to v9 by night-shift was refused: g: graph type 'trail' knows versions 1 to 5 here, not 9."
    )
    assert said in call("status", "g").out
    assert said in call("history", "g").out
    (refusal,) = call("status", "g", "--json").json()["refusals"]
    assert (refusal["task_id"], refusal["target"]) == ("call-1", 9)
    assert refusal["error_type"] == "graph_migrator.UnknownTarget"


def test_a_call_that_would_be_refused_is_not_sent(here: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    here.add_graph("g", "trail")
    monkeypatch.setenv("GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS", "0.001")
    settings.cache_clear()
    with Session(here.engine) as session, graph_writer(session, "g"):
        outcome = call("migrate", "g")
        assert (outcome.exit_code, outcome.out) == (3, "")
        assert "open write transactions did not end" in outcome.err
        session.rollback()
    assert here.queue_length() == 0
    assert call("migrate", "g").exit_code == 0


def test_a_dry_run_of_a_failed_migration_begins_where_it_stopped(here: Cluster) -> None:
    failed(here)
    here.steer("fail", "g", "second", "no luck again")
    outcome = call("migrate", "g", "--dry-run")
    assert outcome.exit_code == 1
    assert "would fail: v2→v3 second: " in outcome.out
    assert "it is at v2 as before" in outcome.out
    here.add_graph("newest", "trail", 5)
    assert "there is nothing to try" in call("migrate", "newest", "--dry-run").out


def test_lock_and_unlock(here: Cluster) -> None:
    here.add_graph("g", "trail")
    assert "read-only for its owner" in call("lock", "g").out
    assert "`graph-migrator unlock g`" in call("status", "g").out
    assert "writable again" in call("unlock", "g").out


def test_recover_sweeps_once(here: Cluster) -> None:
    assert (
        call("recover").out == "0 sent, 0 lost, 0 redelivered, 0 settled, 0 failed_by_recovery, 0 answered\n"
    )


# ── a worker is there ──────────────────────────────────────────────────────────────────────────────


def test_a_target_is_resolved_once_and_both_sides_are_named_where_they_differ(
    here: Cluster, tmp_path: Path
) -> None:
    """The code was edited while the worker ran: it must not choose its own newest version and call that success."""
    code = tmp_path / "edited.py"
    hop = "\n@kind.hop({0}, {1})\ndef to_{1}(ctx) -> None:\n    pass\n"
    code.write_text("from graph_migrator import GraphType\n\nkind = GraphType('edited')\n" + hop.format(1, 2))
    environment = {"GRAPH_MIGRATOR_TYPES": "edited:kind", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    here.start_worker(env=environment | {"GRAPH_MIGRATOR_DEPLOY_SECONDS": "1"})
    code.write_text(code.read_text() + hop.format(2, 3))
    here.add_graph("g", "edited")
    outcome = spawn("migrate", "g", "--wait", env={**here.environment, **environment})
    assert outcome.exit_code == 2
    both = (
        r"Worker \S+ has other code for 'edited': versions 1 to 2, fingerprint \w+. "
        r"Here: versions 1 to 3, fingerprint \w+"
    )
    assert re.search(both, outcome.err)
    assert re.search(r"knows versions 1 to 2 on worker \S+@\S+, not 3", outcome.err)
    assert graph_row(here.engine, "g").version == 1
    sent = spawn("migrate", "g", env={**here.environment, **environment})
    assert sent.exit_code == 0
    assert re.search(both, sent.err)


def test_migrate_wait_prints_each_hop_and_ends_with_the_outcome(here: Cluster) -> None:
    here.start_worker(concurrency=1)
    failed(here)  # an older failure, which must not be reported again
    outcome = spawn("migrate", "g", "--to", 3, "--wait", env=here.environment)
    assert outcome.exit_code == 0
    assert re.findall(r"v\d→v\d (\w+): (\w+)", outcome.out) == [("second", "succeeded")]
    assert "g: succeeded, v1→v3" in outcome.out

    here.add_graph("h", "trail")
    here.steer("fail", "h", "second", "no luck")
    outcome = spawn("migrate", "h", "--wait", "--json", env=here.environment)
    assert outcome.exit_code == 1
    assert outcome.json()["status"] == "failed"
    assert "no luck" in outcome.err
    sent = call("migrate", "h", "--to", 1)
    assert "Follow it with `graph-migrator watch h`" in sent.out
    until(lambda: graph_row(here.engine, "h").version == 1, "h migrated back")


# ── completion, new-type, env ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(shell: str) -> None:
    outcome = call("completion", shell)
    assert outcome.exit_code == 0
    assert "_GRAPH_MIGRATOR_COMPLETE" in outcome.out


def test_bash_takes_the_completion_script() -> None:
    script = call("completion", "bash").out
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_env_without_a_dev_that_runs(tmp_path: Path) -> None:
    for left_over in (None, "export DATABASE_URL=postgresql://gone\n"):
        if left_over is not None:  # by a `dev` that was killed
            (tmp_path / "env").write_text(left_over)
        outcome = call("env", "--folder", tmp_path)
        assert outcome.exit_code == 4
        assert "no `graph-migrator dev` runs" in outcome.err
        assert not outcome.out


def test_dev_refuses_a_folder_in_use_and_types_that_cannot_be_loaded(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        outcome = spawn("dev", "--folder", tmp_path, env={})
        assert (outcome.exit_code, outcome.out) == (3, "")
        assert "runs in" in outcome.err
    finally:
        os.close(descriptor)
    outcome = spawn("dev", "--folder", tmp_path, env={"GRAPH_MIGRATOR_TYPES": "nosuch:types"})
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert "'nosuch:types' cannot be loaded" in outcome.err


def test_a_new_types_own_test_passes(tmp_path: Path) -> None:
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    assert call("new-type", "my-people", "--folder", folder).exit_code == 0
    again = call("new-type", "my-people", "--folder", folder)
    assert again.exit_code == 2
    assert "is left as it is" in again.err
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(folder)],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
