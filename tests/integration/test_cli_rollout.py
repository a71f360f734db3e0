"""`graph-migrator rollout`: what it prints and how it exits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from rich.console import Console
from sqlalchemy import Engine

from graph_migrator.core.graph_types import registry
from graph_migrator.core.rollouts import workers as fleet_workers
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from graph_migrator.tasks import runtime
from graph_migrator.tasks.cli import rollout_watch
from tests.integration.console import call
from tests.integration.fleet_inline import Fleet, add_tenants, tenants
from tests.rows import rows


@pytest.fixture
def fleet(engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Commands of this process work on the test's database."""
    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    settings.cache_clear()
    runtime.engine.cache_clear()
    runtime.executors.cache_clear()
    registry.register(tenants({"t001"}.__contains__))
    yield Fleet(executors)
    runtime.executors().close()
    runtime.engine.cache_clear()
    runtime.executors.cache_clear()


def test_from_plan_to_done_with_a_failure_on_the_way(engine: Engine, fleet: Fleet, tmp_path: Path) -> None:
    add_tenants(engine, 12)
    planned = call(
        "rollout", "plan", "tenant", "--all", "--canaries", 2, "--gate", "auto", "--bake-seconds", 0
    )
    assert planned.exit_code == 0
    assert "plan; nothing was written" in planned.out
    assert "12 graphs: 12 from v1" in planned.out
    assert rows(engine, "SELECT * FROM rollouts") == []

    file = tmp_path / "names"
    file.write_text("".join(f"t{number:03}\n" for number in range(10)))
    options = ("--canary-graphs", "t001,t002", "--bake-seconds", 0, "--gate", "auto", "--reason", "release 7")
    started = call("rollout", "start", "tenant", "--graphs", file, *options, "--json")
    assert started.exit_code == 0
    rollout = str(UUID(started.json()["rollout_id"]))
    fleet.run()

    shown = call("rollout", "show", rollout[:8])
    first, second, *_ = shown.out.splitlines()
    assert first.startswith("held: since ")
    assert "canaries failed (t001" in first
    assert second.startswith(f"to do: `graph-migrator rollout errors {rollout[:8]}`")
    (group,) = call("rollout", "errors", "tenant", "--json").json()
    assert (group["graphs"], group["examples"]) == (1, ["t001"])
    assert "for example t001" in call("rollout", "errors", "tenant").out
    listed = call("rollout", "graphs", "tenant", "--status", "failed").out
    assert "t001" in listed
    assert "t002" not in listed

    assert call("rollout", "skip", "tenant", "t001", "--reason", "odd").exit_code == 0
    assert call("rollout", "set", "tenant", "max-in-flight", 2).exit_code == 0
    assert call("rollout", "resume", "tenant").exit_code == 0
    fleet.run()
    assert call("rollout", "show", "tenant").out.startswith("succeeded: every graph is at the target")
    assert "succeeded" in call("rollout", "list").out
    changes = [change["what"] for change in call("rollout", "changes", "tenant", "--json").json()]
    assert changes == ["start", "hold", "skip", "set", "resume", "end"]


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "tenant"),
        ("plan", "nobody", "--all"),
        ("plan", "tenant", "--all", "--to", 9),
        ("start", "tenant", "--slug", "nothing*"),
        ("start", "tenant", "--all", "--waves", "50,10,100"),
        ("start", "tenant", "--all", "--waves", "some"),
        ("start", "tenant", "--all", "--window", "never"),
        ("start", "tenant", "--all", "--max-in-flight", 0),
        ("start", "tenant", "--all", "--graphs", "/dev/null"),
        ("start", "tenant", "--all", "--window", "Mon-Fri 01:00-01:00 Europe/Berlin"),
        ("start", "tenant", "--all", "--window", "Mon-Fri 01:00-05:00 Europe/Nowhere"),
        ("start", "tenant", "--all", "--window", "Mon-Fri 25:00-26:00 UTC"),
        ("start", "tenant", "--all", "--rate", "fast"),
        ("start", "tenant", "--all", "--rate", "0/min"),
        ("start", "tenant", "--all", "--rate", "100000/s"),
        ("start", "tenant", "--all", "--order", "colour"),
        ("start", "tenant", "--all", "--order", "config:$..["),
        ("start", "tenant", "--where", "$.tier"),
        ("start", "tenant", "--where", "tier is gold"),
        ("start", "tenant", "--from", 3),
        ("start", "tenant", "--all", "--canary-graphs", "nobody"),
        ("back", "tenant"),
        ("watch", "nothing"),
        ("show", "nothing"),
        ("errors", "ffffffff"),
        ("set", "tenant", "speed", 9),
        ("hold",),
    ],
)
def test_2_wrong_usage_changes_nothing(engine: Engine, fleet: Fleet, words: tuple[object, ...]) -> None:
    add_tenants(engine, 2)
    outcome = call("rollout", *words)
    assert outcome.exit_code == 2, outcome
    last = outcome.err.strip().splitlines()[-1]
    assert len(last) > 20, "it says what is wrong"
    assert rows(engine, "SELECT * FROM rollouts") == []
    assert rows(engine, "SELECT held_at FROM rollout_fleet") == [(None,)]


def test_3_refused_in_its_present_state(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 2)
    assert call("rollout", "start", "tenant", "--all", "--hold").exit_code == 0
    for words in (
        ("start", "tenant", "--all"),
        ("promote", "tenant"),
        ("retry", "tenant"),
        ("skip", "tenant", "x"),
        ("back", "tenant"),
    ):
        outcome = call("rollout", *words)
        assert outcome.exit_code == 3, outcome
        assert "Nothing was changed" in outcome.err


def test_the_switch_for_all_rollouts(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 2)
    assert call("rollout", "hold", "--all", "--reason", "the database is slow").exit_code == 0
    call("rollout", "start", "tenant", "--all")
    fleet.run()
    assert "the database is slow" in call("rollout", "show", "tenant").out.splitlines()[0]
    assert call("rollout", "unhold").exit_code == 0
    assert fleet.turn()


def test_the_way_back_from_the_command_line(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 1)
    call("rollout", "start", "tenant", "--all", "--gate", "auto")
    fleet.run()
    refused = call("rollout", "back", "tenant", "--dry-run")
    assert refused.exit_code == 3
    assert "these hops have no reverse: v2→v3 divide, v1→v2 rename" in refused.err


def test_a_rollout_is_watched_until_it_has_ended_or_needs_somebody(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    call(
        "rollout",
        "start",
        "tenant",
        "--all",
        "--canary-graphs",
        "t001",
        "--gate",
        "auto",
        "--bake-seconds",
        0,
    )
    fleet.run()
    held = call("rollout", "watch", "tenant", "--until-held")
    assert held.exit_code == 3
    assert held.out.startswith("held: 0 of 3 moved, 1 failed for 1 cause,")
    call("rollout", "skip", "tenant", "t001")
    call("rollout", "resume", "tenant")
    fleet.run()
    ended = call("rollout", "watch", "tenant")
    assert (ended.exit_code, ended.out.count("\n")) == (0, 1)
    assert call("rollout", "watch", "tenant", "--json").json()["rollout"]["status"] == "succeeded"


def test_the_screen_of_a_watched_rollout(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    call("rollout", "start", "tenant", "--all", "--canary-graphs", "t001", "--rate", "2/s")
    fleet.run()
    shown, errors = rollout_watch._look("tenant")
    out = Console(width=120, record=True, file=io.StringIO())
    out.print(rollout_watch.screen(shown, errors))
    lines = out.export_text().splitlines()
    assert lines[0].startswith("held: since ")
    assert lines[1].startswith("to do: ")
    assert [line.split()[:2] for line in lines if line[:1].isdigit()][:3] == [
        ["1", "canary"],
        ["2", "wave"],
        ["3", "wave"],
    ]
    assert any("1 of 1, 1 failed" in line for line in lines)
    assert any("in flight: 0 of 8, at most 2/s; time left: unknown" in line for line in lines)
    assert lines[-1].startswith("1 × ValueError")


def test_policies_and_workers_from_the_command_line(engine: Engine, fleet: Fleet) -> None:
    assert "No worker has been seen" in call("workers").out
    state = fleet_workers.WorkerState(name="w1@host", queue="q", types={}, pool="prefork", processes=4)
    fleet.do(fleet_workers.announce, state)
    assert call("workers", "--json").json()[0]["name"] == "w1@host"
    assert "w1@host" in call("workers").out
    done = call(
        "policy", "set", "tenant", "automatic", "--settle-seconds", 5, "--max-in-flight", 3, "--reason", "r"
    )
    assert (done.exit_code, "tenant: automatic" in done.out) == (0, True)
    (shown,) = call("policy", "show", "tenant", "--json").json()
    policy = shown["policy"]
    assert (policy["mode"], policy["settle_seconds"], policy["why"]) == ("automatic", 5, "r")
    assert (policy["strategy"]["max_in_flight"], policy["strategy"]["gate"]) == (3, "auto")
    assert "no worker lives" in call("policy", "show").out
    call("policy", "set", "tenant", "automatic", "--canaries", 1)
    (shown,) = call("policy", "show", "tenant", "--json").json()
    assert shown["policy"]["strategy"]["max_in_flight"] == 3, "what is not given is as it was"
    for words in (
        ("set", "nobody", "automatic"),
        ("set", "tenant", "sometimes"),
        ("set", "tenant", "automatic", "--settle-seconds", -1),
        ("set", "tenant", "automatic", "--rate", "soon"),
        ("show", "nobody"),
    ):
        refused = call("policy", *words)
        assert refused.exit_code == 2, refused
    assert len(rows(engine, "SELECT 1 FROM policies")) == 2
