"""One trace from the caller's `.delay()` to the last hop, also across the death of a worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from graph_migrator import migrate_graph, retry_migration
from graph_migrator.core.embedded import Redis
from tests.acceptance.cluster import Cluster
from tests.rows import rows
from tests.waiting import until

SOON = 40
SECRET = "Ada-Lovelace-1815"


@pytest.fixture
def cluster(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    with Cluster(
        tmp_path, database_url=database_url, redis=redis_server, types="tests.acceptance.traced_types:ALL"
    ) as cluster:
        cluster.start_worker()
        yield cluster


@pytest.fixture
def called() -> Iterator[InMemorySpanExporter]:
    """The spans of this process, which calls."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


def spans(cluster: Cluster) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cluster.folder / "spans").read_text().splitlines()]


def named(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [span for span in found if span["name"] == name]


def trace_of(called: InMemorySpanExporter) -> str:
    (call,) = called.get_finished_spans()
    assert call.name == "apply_async/tasks.migrate_graph"
    assert call.context is not None
    return f"0x{call.context.trace_id:032x}"


def test_a_call_its_hops_and_their_batches_are_one_trace(
    cluster: Cluster, called: InMemorySpanExporter
) -> None:
    graph = cluster.add_graph("g", "batched_trail", nodes={f"n{i:02}": {"name": SECRET} for i in range(25)})
    report = migrate_graph.delay("g").get(timeout=SOON)
    found = until(lambda: len(all_ := spans(cluster)) >= 8 and all_, "all spans written", seconds=SOON)
    assert {span["context"]["trace_id"] for span in found} == {trace_of(called)}
    by_id = {span["context"]["span_id"]: span for span in found}
    visit, arrive = named(found, "hop visit") + named(found, "hop arrive")
    assert by_id[visit["parent_id"]]["name"] == "run/tasks.run_hop"
    assert visit["attributes"] == {
        "graph_migrator.graph.id": str(graph),
        "graph_migrator.graph.slug": "g",
        "graph_migrator.graph.type": "batched_trail",
        "graph_migrator.migration.id": str(report.migration_id),
        "graph_migrator.hop.name": "visit",
        "graph_migrator.hop.from_version": 1,
        "graph_migrator.hop.to_version": 2,
        "graph_migrator.attempt.id": visit["attributes"]["graph_migrator.attempt.id"],
        "graph_migrator.attempt": 1,
        "graph_migrator.dispatch": 1,
        "graph_migrator.rows_changed": 25,
        "graph_migrator.hop.skipped": False,
    }
    batches = named(found, "batch visit")
    assert batches
    assert {span["parent_id"] for span in batches} == {visit["context"]["span_id"]}
    assert visit["end_time"] <= arrive["start_time"]
    begun = by_id[named(found, "apply_async/tasks.run_hop")[0]["parent_id"]]
    assert begun["attributes"]["graph_migrator.migration.id"] == str(report.migration_id)
    assert SECRET not in (cluster.folder / "spans").read_text()


def test_a_failure_shows_as_such_and_an_operators_retry_is_linked_to_it(
    cluster: Cluster, called: InMemorySpanExporter
) -> None:
    cluster.add_graph("g", "trail")
    cluster.steer("fail", "g", "second", "not today")
    with pytest.raises(Exception, match="not today"):
        migrate_graph.delay("g", 3).get(timeout=SOON)
    (failed,) = until(lambda: named(spans(cluster), "hop second"), "the failed hop", seconds=SOON)
    assert failed["status"] == {"status_code": "ERROR", "description": "not today"}
    assert failed["attributes"]["error.type"] == "tests.acceptance.types_for_tests.DeliberateError"
    assert failed["context"]["trace_id"] == (begun := trace_of(called))
    (cluster.folder / "fail-g-second").unlink()
    called.clear()
    retry_migration.delay("g").get(timeout=SOON)
    retried = until(
        lambda: found if len(found := named(spans(cluster), "hop second")) == 2 else [],
        "the retry",
        seconds=SOON,
    )[1]
    (verb,) = named(spans(cluster), "run/tasks.retry_migration")
    assert retried["context"]["trace_id"] == verb["context"]["trace_id"] != begun, (
        "the retry is a call of its own"
    )
    assert [link["context"]["trace_id"] for link in verb["links"]] == [begun]


def test_a_transient_retry_is_another_span_of_the_same_trace(
    cluster: Cluster, called: InMemorySpanExporter
) -> None:
    cluster.add_graph("g", "trail")
    cluster.steer("clash", "g", "second")
    assert migrate_graph.delay("g", 3).get(timeout=SOON).version == 3

    def both() -> list[dict[str, Any]]:
        found = named(spans(cluster), "hop second")
        return found if len(found) == 2 else []

    first, second = until(both, "both attempts' spans", seconds=SOON)
    assert {first["context"]["trace_id"], second["context"]["trace_id"]} == {trace_of(called)}
    assert first["status"]["status_code"] == "ERROR"
    assert first["attributes"]["graph_migrator.retry_in"] > 0
    assert second["status"]["status_code"] == "UNSET"
    assert [each["attributes"]["graph_migrator.attempt"] for each in (first, second)] == [1, 2]
    assert first["end_time"] <= second["start_time"]


def test_recovery_goes_on_in_the_same_trace_and_is_linked_to_it(
    cluster: Cluster, called: InMemorySpanExporter
) -> None:
    cluster.add_graph("g", "trail")
    hold = cluster.steer("hold", "g", "second")
    result = migrate_graph.delay("g", 3)
    cluster.pid_in("g", "second")
    # With the whole worker its message is gone for long: nobody but recovery goes on.
    cluster.kill_worker(cluster.workers[0])
    cluster.start_worker("w2")
    hold.unlink()
    assert result.get(timeout=SOON).status == "succeeded"
    assert rows(cluster.engine, "SELECT count(*) FROM hop_attempts WHERE status = 'lost'") == [(1,)]

    def all_there() -> list[dict[str, Any]]:
        found = spans(cluster)
        return found if named(found, "hop second") and named(found, "recover migration") else []

    found = until(all_there, "spans of recovery and of the hop", seconds=SOON)
    assert {span["context"]["trace_id"] for span in found} == {trace_of(called)}
    (recovery,) = named(found, "recover migration")
    (link,) = recovery["links"]
    assert link["context"]["trace_id"] == trace_of(called)
    assert recovery["attributes"]["graph_migrator.dispatch"] == 2
    (second,) = named(found, "hop second")  # the first attempt's span died with its process
    assert (
        second["attributes"]["graph_migrator.attempt"],
        second["attributes"]["graph_migrator.dispatch"],
    ) == (2, 2)
    assert recovery["end_time"] <= second["start_time"]
