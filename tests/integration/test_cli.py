"""The command line: every command, its JSON, its exit codes, and what a person reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.acceptance.cluster import ROOT, Cluster
from tests.integration.console import ESCAPE, call, failed, spawn
from tests.rows import graph_row
from tests.waiting import until

# ── pipes ─────────────────────────────────────────────────────────────────────────────────────────────


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
    here.add_graph("g", "trail", nodes=3_000)  # more than a pipe holds
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


# ── lists ─────────────────────────────────────────────────────────────────────────────────────────────


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


# ── watch ─────────────────────────────────────────────────────────────────────────────────────────────


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


# ── a worker is there ─────────────────────────────────────────────────────────────────────────────────


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
