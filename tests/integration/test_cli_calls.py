"""What the command line says of calls that no worker has carried out yet, and what it refuses to send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError
from sqlalchemy import text

from graph_migrator.core.embedded import Redis
from graph_migrator.tasks import runtime
from graph_migrator.tasks.calls import forget_calls
from graph_migrator.tasks.migrate import migrate_graph
from tests.acceptance.cluster import Cluster
from tests.integration.console import call
from tests.rows import mark_partially_migrated, rows


@pytest.fixture
def here(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    """Services without a worker; this process is connected to them."""
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        yield cluster


def age(here: Cluster, seconds: int) -> None:
    """Let the calls on their way be so old."""
    with here.engine.begin() as connection:
        connection.execute(
            text("UPDATE graph_migrator.waiting_calls SET sent_at = sent_at - make_interval(secs => :s)"),
            {"s": seconds},
        )


def test_a_call_that_was_sent_is_seen_everywhere_until_it_is_begun(here: Cluster) -> None:
    here.add_graph("g", "trail")
    task = call("migrate", "g", "--to", 3, "--by", "ada", "--json").json()["task_id"]
    said = f"call to v3 by ada (task {task}) was sent "
    for command in (("status", "g"), ("history", "g"), ("watch", "g", "--once"), ("watch", "--once")):
        assert said in call(*command).out, command
    (waiting,) = call("status", "g", "--json").json()["waiting_calls"]
    assert (waiting["task_id"], waiting["target"], waiting["tries"]) == (task, 3, 0)
    assert "call-waits" in [each["kind"] for each in call("status", "g", "--json").json()["reasons"]]
    assert "calls" not in [each["check"] for each in call("doctor", "--json").json()]

    age(here, 3_600)
    assert "If the broker has lost its messages, send it again" in call("status", "g").out
    (finding,) = [each for each in call("doctor", "--json").json() if each["check"] == "calls"]
    assert finding["found"].startswith("1 call not begun yet. A call to v3 by ada")

    with here.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO graph_migrator.requests (task_id, verb) VALUES (:task, 'migrate')"),
            {"task": task},
        )
    for command in (("status", "g"), ("history", "g"), ("watch", "g", "--once"), ("watch", "--once")):
        assert said not in call(*command).out, command
    forget_calls(runtime.executors())
    assert not rows(here.engine, "SELECT * FROM waiting_calls")


def test_a_call_that_the_broker_lost_is_forgotten_after_a_week(here: Cluster) -> None:
    for slug in ("g", "h"):
        here.add_graph(slug, "trail")
    call("migrate", "g")
    age(here, 7 * 24 * 3_600 + 60)
    call("migrate", "h")
    forget_calls(runtime.executors())
    assert [
        slug
        for (slug,) in rows(here.engine, "SELECT g.slug FROM waiting_calls JOIN graphs g ON g.id = graph_id")
    ] == ["h"]


@pytest.mark.parametrize("wait", [(), ("--wait",)], ids=["sent", "waited for"])
def test_a_mistyped_target_is_not_sent(here: Cluster, wait: tuple[str, ...]) -> None:
    here.add_graph("g", "trail")
    outcome = call("migrate", "g", "--to", 99, *wait)
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert "graph type 'trail' knows versions 1 to 5 here, not 99" in outcome.err
    assert "--wait-for-deploy" in outcome.err
    assert here.queue_length() == 0
    assert not rows(here.engine, "SELECT * FROM waiting_calls")


def test_a_target_that_only_a_newer_worker_knows_is_sent_on_request(here: Cluster) -> None:
    here.add_graph("g", "trail")
    assert call("migrate", "g", "--to", 99, "--wait-for-deploy").exit_code == 0
    assert here.queue_length() == 1
    assert call("migrate", "g", "--to", 99, "--wait-for-deploy", "--inline").exit_code == 2


def test_a_call_that_the_broker_did_not_take_is_not_recorded(
    here: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OperationalError("the connection was refused")

    here.add_graph("g", "trail")
    monkeypatch.setattr(migrate_graph, "apply_async", refuse)
    assert call("migrate", "g").exit_code == 4
    assert not rows(here.engine, "SELECT * FROM waiting_calls")


def test_what_a_worker_would_refuse_is_not_sent(here: Cluster) -> None:
    here.add_graph("half", "trail")
    hop = '{"hop": "first", "from_version": 1, "to_version": 2, "done": 7}'
    mark_partially_migrated(here.engine, "half", hop)
    refused = call("migrate", "half")
    assert refused.exit_code == 3
    assert "partially migrated" in refused.err
    assert "7" in refused.err
    assert not rows(here.engine, "SELECT * FROM waiting_calls")
