"""The main job with a real worker: a call, a chain of hops, and the caller's answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from celery.result import AsyncResult

from graph_migrator import (
    MigrationReport,
    app,
    cancel_migration,
    migrate_graph,
    pause_migration,
    resume_migration,
    retry_migration,
    unlock_graph,
)
from graph_migrator.core.errors import (
    HopCrashedRepeatedly,
    InvalidRequest,
    IrreversibleHop,
    MigrationInFlight,
    UnknownGraph,
)
from tests.acceptance.cluster import Cluster
from tests.acceptance.types_for_tests import DeliberateError
from tests.rows import attempts, dump, graph_row, migration_of, properties, rows
from tests.waiting import until

SOON = 30


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("chain")) as cluster:
        cluster.start_worker(concurrency=3)
        yield cluster


def trails(cluster: Cluster, slug: str) -> set[str]:
    return {" ".join(values.get("trail", [])) for values in properties(cluster.engine, slug).values()}


def test_a_chain_of_hops_ends_in_a_report(cluster: Cluster) -> None:
    graph_id = cluster.add_graph("chain", "trail")
    result = migrate_graph.delay("chain", 4, requested_by="ann", reason="release 4")
    report = result.get(timeout=SOON)
    assert isinstance(report, MigrationReport)
    assert (report.graph_id, report.graph, report.status, report.version) == (
        graph_id,
        "chain",
        "succeeded",
        4,
    )
    assert (report.last_applied, report.requested_by, report.reason) == ("third", "ann", "release 4")
    assert [(hop.name, hop.status, hop.rows_changed) for hop in report.hops] == [
        ("first", "succeeded", 3),
        ("second", "succeeded", 3),
        ("third", "succeeded", 3),
    ]
    assert trails(cluster, "chain") == {"first second third"}
    assert migration_of(cluster.engine, "chain").task_id == result.id
    # n hops cost n + 1 tasks: the call, and one for each hop, the last of which bears the call's id.
    shown = rows(
        cluster.engine, "SELECT task_id, worker FROM hop_attempts WHERE graph_id = :g ORDER BY id", g=graph_id
    )
    assert shown[-1] == (result.id, "w1@localhost")
    assert len({task for task, _ in shown}) == 3


def test_the_log_has_two_lines_a_hop(cluster: Cluster) -> None:
    """The events', and not Celery's besides: they would cost as much again."""
    before = len(cluster.workers[0].text())
    cluster.add_graph("logged", "trail")
    migrate_graph.delay("logged", 4).get(timeout=SOON)
    lines = until(lambda: _since(cluster, before, "event=migration_finished"), "its end in the log")
    events = [re.search(r"event=(\w+)|$", line)[1] for line in lines]  # type: ignore[index]
    assert events == ["migration_begun", *["hop_started", "hop_succeeded"] * 3, "migration_finished"], lines


def _since(cluster: Cluster, before: int, last: str) -> list[str] | None:
    lines = [
        line for line in cluster.workers[0].text()[before:].splitlines() if re.search(r"event=|Task ", line)
    ]
    return lines if any(last in line for line in lines) else None


def test_a_batched_hop_runs_in_a_chain(cluster: Cluster) -> None:
    cluster.add_graph("batches", "batched_trail", nodes=25)
    report = migrate_graph.delay("batches").get(timeout=SOON)
    assert (report.version, [hop.rows_changed for hop in report.hops]) == (3, [25, 25])
    assert trails(cluster, "batches") == {"visit arrive"}


def test_a_second_connection_sees_finished_hops_while_the_chain_runs(cluster: Cluster) -> None:
    cluster.add_graph("watched", "trail")
    hold = cluster.steer("hold", "watched", "third")
    result = migrate_graph.delay("watched", 4)
    cluster.pid_in("watched", "third")
    try:
        assert attempts(cluster.engine, "watched") == [
            ("first", "succeeded"),
            ("second", "succeeded"),
            ("third", "running"),
        ]
        graph = graph_row(cluster.engine, "watched")
        assert (graph.version, graph.migration_id) == (3, migration_of(cluster.engine, "watched").id)
        assert trails(cluster, "watched") == {"first second"}
        assert not result.ready()
    finally:
        hold.unlink()
    assert result.get(timeout=SOON).version == 4


def test_a_failing_hop_raises_its_own_error_and_calling_again_resumes(cluster: Cluster) -> None:
    cluster.add_graph("broken", "trail")
    order = cluster.steer("fail", "broken", "second", "n0001 has no name — 名前")
    with pytest.raises(DeliberateError) as error:
        migrate_graph.delay("broken", 4).get(timeout=SOON)
    assert str(error.value) == "n0001 has no name — 名前"
    assert trails(cluster, "broken") == {"first"}
    failed = migration_of(cluster.engine, "broken")
    assert (failed.status, failed.error_type) == (
        "failed",
        "tests.acceptance.types_for_tests.DeliberateError",
    )
    order.unlink()
    report = migrate_graph.delay("broken", 4).get(timeout=SOON)
    assert (report.version, report.dispatch, report.migration_id) == (4, 2, failed.id)
    assert cluster.started("broken") == {"first": 1, "second": 2, "third": 1}
    assert trails(cluster, "broken") == {"first second third"}


def test_a_first_caller_sees_the_retry_succeed(cluster: Cluster) -> None:
    cluster.add_graph("mended", "trail")
    order = cluster.steer("fail", "mended", "second", "not yet")
    first = migrate_graph.delay("mended", 3)
    with pytest.raises(DeliberateError, match="not yet"):
        first.get(timeout=SOON)
    order.unlink()
    assert retry_migration.delay("mended").get(timeout=SOON)["status"] == "running"
    until(lambda: migration_of(cluster.engine, "mended").status == "succeeded", "the retry ends")
    until(lambda: migrate_graph.AsyncResult(first.id).successful(), "the first caller is answered anew")
    assert migrate_graph.AsyncResult(first.id).get(timeout=SOON).version == 3


def test_refusals_reach_the_caller_with_type_and_fields(cluster: Cluster) -> None:
    cluster.add_graph("high", "trail", version=5)
    for slug, target, refusal, args in [
        ("nobody", 2, UnknownGraph, ["nobody"]),
        ("high", 4, IrreversibleHop, ["high", "fourth", 4, 5]),
    ]:
        with pytest.raises(refusal) as error:
            migrate_graph.delay(slug, target).get(timeout=SOON)
        assert list(error.value.args) == args
        assert "Nothing was changed" in str(error.value) or slug == "nobody"
    assert graph_row(cluster.engine, "high").migration_id is None


def test_already_at_the_target_is_a_report(cluster: Cluster) -> None:
    cluster.add_graph("there", "trail", version=3)
    report = migrate_graph.delay("there", 3).get(timeout=SOON)
    assert (report.status, report.changed, report.version) == ("succeeded", False, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "field"),
    [
        ((), {}, "graph_id"),
        (("no spaces",), {}, "graph_id"),
        (("g", "3"), {}, "target"),
        (("g", 0), {}, "target"),
        (("g", True), {}, "target"),
        (("g", 2.5), {}, "target"),
        (("g", 3), {"target": 3}, "target"),
        (("g", 3, "me", "why", "what"), {}, "arguments"),
        (("g",), {"reason": "a\x00b"}, "reason"),
        (("g",), {"colour": "red"}, "colour"),
    ],
)
def test_bad_arguments_are_refused_at_the_caller_before_anything_is_sent(
    cluster: Cluster, args: tuple[object, ...], kwargs: dict[str, object], field: str
) -> None:
    # Recovery notes in `requests` which callers have their result, a moment after the tests before this one.
    unanswered = "SELECT 1 FROM requests WHERE answered_at IS NULL"
    until(lambda: not rows(cluster.engine, unanswered), "every caller answered")
    before, queued = dump(cluster.engine), cluster.queue_length()
    with pytest.raises(InvalidRequest) as error:
        migrate_graph.delay(*args, **kwargs)
    assert error.value.field == field
    assert (cluster.queue_length(), dump(cluster.engine)) == (queued, before)


def test_bad_arguments_of_an_operators_verb_are_refused_at_the_caller(cluster: Cluster) -> None:
    with pytest.raises(InvalidRequest, match="migration_id"):
        pause_migration.delay("g", migration_id="not one")


def test_another_service_needs_a_wire_name_only(cluster: Cluster) -> None:
    """Without our code: a name, a queue, JSON in and a plain dict out."""
    graph_id = cluster.add_graph("foreign", "trail")
    result = app.send_task("tasks.migrate_graph", args=[str(graph_id), 3], queue="migrations")
    shown = AsyncResult(result.id, app=app).get(timeout=SOON)
    assert type(shown) is dict
    assert (shown["graph"], shown["status"], shown["version"]) == ("foreign", "succeeded", 3)


def test_bad_arguments_from_another_service_are_refused_by_the_worker(cluster: Cluster) -> None:
    result = app.send_task("tasks.migrate_graph", args=["foreign", "three"], queue="migrations")
    with pytest.raises(InvalidRequest, match="target"):
        AsyncResult(result.id, app=app).get(timeout=SOON)


def test_wire_names_and_the_queue_are_those_of_the_contract() -> None:
    app.loader.import_default_modules()
    ours = {name for name in app.tasks if name.startswith("tasks.")}
    assert ours == {
        "tasks.migrate_graph",
        "tasks.run_hop",
        "tasks.run_shard",
        "tasks.migrate_member",
        "tasks.migrate_pack",
        "tasks.retry_migration",
        "tasks.cancel_migration",
        "tasks.pause_migration",
        "tasks.resume_migration",
        "tasks.release_graph",
        "tasks.lock_graph",
        "tasks.unlock_graph",
        "tasks.recover_migrations",
        "tasks.policy_set",
        "tasks.policy_show",
        "tasks.workers",
        *(
            f"tasks.rollout_{verb}"
            for verb in (
                "back",
                "cancel",
                "changes",
                "errors",
                "graphs",
                "hold",
                "list",
                "pause",
                "plan",
                "promote",
                "resume",
                "retry",
                "set",
                "show",
                "skip",
                "start",
                "unhold",
            )
        ),
    }
    for name in ours:
        assert app.amqp.router.route({}, name)["queue"].name == "migrations"


def test_an_owner_locks_and_unlocks_a_graph_by_message(cluster: Cluster) -> None:
    cluster.add_graph("owned", "trail")
    shown = app.send_task("tasks.lock_graph", args=["owned"], queue="migrations").get(timeout=SOON)
    assert (shown["verb"], graph_row(cluster.engine, "owned").owner_read_only) == ("lock", True)
    unlock_graph.delay("owned").get(timeout=SOON)
    assert graph_row(cluster.engine, "owned").owner_read_only is False


def test_a_uuid_is_taken_as_it_is(cluster: Cluster) -> None:
    graph_id = cluster.add_graph("by-id", "trail")
    assert isinstance(graph_id, UUID)
    assert migrate_graph.delay(graph_id, 2).get(timeout=SOON).graph == "by-id"


def test_ten_calls_at_once_make_one_migration(cluster: Cluster) -> None:
    cluster.add_graph("crowded", "trail")
    hold = cluster.steer("hold", "crowded", "first")
    with ThreadPoolExecutor(10) as pool:
        calls = list(pool.map(lambda _: migrate_graph.delay("crowded", 3), range(10)))
    graph_id = graph_row(cluster.engine, "crowded").id
    answered = "SELECT task_id FROM requests WHERE graph_id = :g AND outcome IS NOT NULL"
    until(lambda: len(rows(cluster.engine, answered, g=graph_id)) == 9, "nine calls are refused")
    hold.unlink()
    refused, reports = [], []
    for call in calls:
        try:
            reports.append(call.get(timeout=SOON))
        except MigrationInFlight as refusal:
            refused.append(refusal)
    assert [report.version for report in reports] == [3]
    assert len(refused) == 9
    assert {refusal.migration_id for refusal in refused} == {str(reports[0].migration_id)}
    assert cluster.started("crowded") == {"first": 1, "second": 1}


def test_the_same_message_twice_makes_one_migration(cluster: Cluster) -> None:
    cluster.add_graph("doubled", "trail")
    first = migrate_graph.apply_async(("doubled", 3), task_id="doubled-call")
    second = migrate_graph.apply_async(("doubled", 3), task_id="doubled-call")
    assert first.get(timeout=SOON).version == second.get(timeout=SOON).version == 3
    until(lambda: cluster.queue_length() == 0, "the queue is empty")
    assert cluster.started("doubled") == {"first": 1, "second": 1}
    assert trails(cluster, "doubled") == {"first second"}


def test_pause_resume_and_cancel_reach_a_running_chain(cluster: Cluster) -> None:
    cluster.add_graph("steered", "trail")
    hold = cluster.steer("hold", "steered", "first")
    result = migrate_graph.delay("steered", 4)
    cluster.pid_in("steered", "first")
    assert pause_migration.delay("steered").get(timeout=SOON)["status"] == "pausing"
    hold.unlink()
    until(lambda: migration_of(cluster.engine, "steered").status == "paused", "it pauses")
    assert graph_row(cluster.engine, "steered").version == 2
    hold = cluster.steer("hold", "steered", "second")
    assert resume_migration.delay("steered").get(timeout=SOON)["dispatch"] == 2
    cluster.pid_in("steered", "second")
    assert cancel_migration.delay("steered").get(timeout=SOON)["status"] == "cancelling"
    hold.unlink()
    with pytest.raises(Exception, match="cancelled; the graph is whole at v3"):
        result.get(timeout=SOON)
    assert cluster.started("steered") == {"first": 1, "second": 1}


def test_a_hop_that_kills_its_process_fails_and_the_worker_serves_others(cluster: Cluster) -> None:
    cluster.add_graph("poison", "trail")
    cluster.add_graph("healthy", "trail")
    cluster.steer("kill", "poison", "second")
    result = migrate_graph.delay("poison", 4)
    with pytest.raises(HopCrashedRepeatedly) as error:
        result.get(timeout=60)
    # On a busy machine the worker may report a death only after recovery's pause for it; then the hop was begun again.
    begun, begun_too_late = rows(
        cluster.engine,
        "WITH a AS (SELECT a.started_at, l.reported_at FROM hop_attempts a LEFT JOIN losses l ON l.attempt_id = a.id "
        "WHERE a.graph_id = :g AND a.hop_name = 'second') SELECT count(*), count(*) FILTER (WHERE a.started_at > "
        "(SELECT reported_at FROM a ORDER BY reported_at OFFSET 2 LIMIT 1)) FROM a",
        g=graph_row(cluster.engine, "poison").id,
    )[0]
    assert (begun >= 3, begun_too_late) == (True, 0)
    assert error.value.args == ("poison", "second", error.value.args[2], "signal 9 (SIGKILL)")
    assert 3 <= error.value.args[2] <= begun
    assert attempts(cluster.engine, "poison") == [("first", "succeeded"), *[("second", "lost")] * begun]
    assert cluster.started("poison") == {"first": 1, "second": begun}
    assert (graph_row(cluster.engine, "poison").version, trails(cluster, "poison")) == (2, {"first"})
    assert migrate_graph.delay("healthy", 4).get(timeout=SOON).version == 4
    assert cluster.workers[0].is_alive
