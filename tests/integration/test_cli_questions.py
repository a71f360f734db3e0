"""Commands that ask before they act, act on many graphs, or refuse."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from sqlalchemy.orm import Session

from graph_migrator import GraphType, HopContext, graph_writer
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import Caller, begin_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.tasks import runtime
from tests.acceptance.cluster import Cluster
from tests.integration.console import call, failed, spawn
from tests.rows import dump, graph_row, migration_of, rows


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
        call("recover").out
        == "0 sent, 0 dispatched, 0 lost, 0 redelivered, 0 settled, 0 failed_by_recovery, 0 answered\n"
    )
