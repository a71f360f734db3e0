"""`graph-migrator rollout`: what it prints and how it exits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine

from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from graph_migrator.tasks import runtime
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
    assert outcome.err
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
