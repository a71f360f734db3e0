"""What monitoring counts is what the audit rows say."""

from __future__ import annotations

import json
import re
import runpy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from graph_migrator.core.inspection.metrics import (
    HOP_BOUNDS,
    RECOVERY_BOUNDS,
    Histogram,
    Measures,
    advance,
    measure,
)
from graph_migrator.tasks.metrics import METRICS, families
from tests.rows import add_graph, rows

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def _in_this_moment() -> None:
    """A test may run long after it was collected."""
    global NOW
    NOW = datetime.now(UTC)


def add_migration(
    engine: Engine, status: str, *, kind: str = "k", age: float = 60, overdue: bool = False
) -> UUID:
    id_ = uuid4()
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline, "
                "created_at, finished_at, error_type) VALUES (:id, gen_random_uuid(), :kind, 1, 3, :status, '[]', "
                ":deadline, :created, :finished, :error)"
            ),
            {
                "id": id_,
                "kind": kind,
                "status": status,
                "deadline": NOW + timedelta(hours=-1 if overdue else 1),
                "created": NOW - timedelta(seconds=age),
                "finished": NOW if status in {"succeeded", "failed"} else None,
                "error": "E" if status == "failed" else None,
            },
        )
    return id_


def add_attempt(
    engine: Engine,
    migration: UUID,
    status: str,
    *,
    start: float,
    took: float | None,
    hop: str = "h",
    number: int = 1,
    rows: int = 0,
    batches: int = 0,
) -> None:
    """An attempt that started `start` seconds before now, and took so many seconds."""
    began = NOW - timedelta(seconds=start)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, "
                "attempt, dispatch, status, rows_changed, batches, started_at, finished_at, error_type) VALUES (:m, "
                "gen_random_uuid(), 1, 2, :hop, 'f', :number, 1, :status, :rows, :batches, :began, :ended, "
                ":error)"
            ),
            {
                "m": migration,
                "hop": hop,
                "number": number,
                "status": status,
                "rows": rows,
                "batches": batches,
                "began": began,
                "error": "E" if status == "failed" else None,
                "ended": None if took is None else began + timedelta(seconds=took),
            },
        )


def look(engine: Engine) -> Measures:
    with engine.connect() as connection:
        return measure(connection)


def test_an_empty_database_counts_nothing(engine: Engine) -> None:
    found = look(engine)
    assert (found.migrations, found.hop_seconds, found.rows, found.graphs) == ({}, {}, {}, {})
    assert (found.running_hops, found.waiting, found.queue_age, found.overdue) == (0, 0, 0, 0)
    assert sum(found.recovery.counts) == 0


def test_attempts_are_counted_by_type_hop_and_outcome(engine: Engine) -> None:
    migration = add_migration(engine, "succeeded")
    add_attempt(engine, migration, "lost", start=100, took=2, rows=40, batches=2, number=1)
    add_attempt(engine, migration, "failed", start=90, took=0.05, rows=7, number=2)
    add_attempt(engine, migration, "succeeded", start=80, took=0.1, rows=5, number=3)
    found = look(engine)
    assert found.migrations == {("k", "succeeded"): 1}
    assert set(found.hop_seconds) == {("k", "h", "lost"), ("k", "h", "failed"), ("k", "h", "succeeded")}
    assert found.lost_attempts == {("k", "h"): 1}
    # What was rolled back with its attempt changed nothing; what batches committed stays.
    assert found.rows == {("k", "h"): 45}
    assert found.hop_seconds["k", "h", "lost"].total == pytest.approx(2)


def test_what_is_settled_is_counted_once_and_never_lost(engine: Engine) -> None:
    def counted() -> tuple[int, int, dict[str, int]]:
        before = look(engine)
        with engine.begin() as connection:
            up_to = advance(connection)
        found = look(engine)
        assert (found.hop_seconds, found.rows, found.recovery) == (
            before.hop_seconds,
            before.rows,
            before.recovery,
        )
        return up_to, found.rows["k", "h"], {key[2]: sum(h.counts) for key, h in found.hop_seconds.items()}

    old = add_migration(engine, "succeeded")
    add_attempt(engine, old, "lost", start=5_000, took=1, rows=4, batches=1, number=1)
    add_attempt(engine, old, "succeeded", start=4_990, took=1, rows=3, number=2)
    long = add_migration(engine, "running")
    add_attempt(engine, long, "running", start=3_000, took=None)
    add_attempt(engine, add_migration(engine, "succeeded"), "succeeded", start=2_000, took=1, rows=10)
    add_attempt(engine, add_migration(engine, "succeeded"), "succeeded", start=10, took=1, rows=20)
    for _ in range(3):  # an attempt still runs: what is newer stays open
        assert counted() == (2, 37, {"lost": 1, "succeeded": 3})
    assert sum(look(engine).recovery.counts) == 1
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE hop_attempts SET status = 'succeeded', rows_changed = 100, finished_at = now() "
                "WHERE status = 'running'"
            )
        )
    for _ in range(3):  # the latest is too young to be settled
        assert counted() == (4, 137, {"lost": 1, "succeeded": 4})


def test_a_long_history_is_counted_piece_by_piece(engine: Engine) -> None:
    for number in range(1, 8):
        add_attempt(engine, add_migration(engine, "succeeded"), "succeeded", start=2_000, took=number)
    counted = []
    for _ in range(5):
        with engine.begin() as connection:
            counted.append(advance(connection, most=3))
    assert counted == [3, 6, 7, 7, 7]
    assert look(engine).hop_seconds["k", "h", "succeeded"].total == pytest.approx(28)
    assert rows(engine, "SELECT status, seconds FROM hop_totals") == [("succeeded", 28.0)]


def test_a_count_that_takes_long_is_the_sweeps_and_a_scrape_reads_it(engine: Engine) -> None:
    add_migration(engine, "failed")
    with engine.begin() as connection:
        advance(connection)
        connection.execute(text("UPDATE metrics_state SET count_took = 3"))
    add_migration(engine, "failed")
    assert look(engine).migrations == {("k", "failed"): 1}
    with engine.begin() as connection:  # 50 times 3 seconds later
        connection.execute(text("UPDATE metrics_state SET counted_at = now() - interval '149 s'"))
        advance(connection)
    assert look(engine).migrations == {("k", "failed"): 1}
    with engine.begin() as connection:
        connection.execute(text("UPDATE metrics_state SET counted_at = now() - interval '151 s'"))
        advance(connection)
    assert look(engine).migrations == {("k", "failed"): 2}


@pytest.mark.parametrize("bound", [0.005, 0.1, 60.0, 3600.0])
def test_a_bucket_holds_its_upper_bound(engine: Engine, bound: float) -> None:
    migration = add_migration(engine, "succeeded")
    add_attempt(engine, migration, "failed", start=9_000, took=bound, number=1)
    add_attempt(engine, migration, "failed", start=9_000, took=bound + 0.000001, number=2)
    counts = look(engine).hop_seconds["k", "h", "failed"].counts
    place = HOP_BOUNDS.index(bound)
    assert (counts[place], counts[place + 1], sum(counts)) == (1, 1, 2)


def test_recovery_is_timed_from_the_loss_to_the_next_start(engine: Engine) -> None:
    migration = add_migration(engine, "running")
    add_attempt(engine, migration, "lost", start=100, took=10, number=1)
    add_attempt(engine, migration, "lost", start=89.6, took=9.6, number=2)  # 0.4 s after the first
    # Retried an hour after it had failed: that is an operator's time, not recovery's.
    other = add_migration(engine, "succeeded")
    add_attempt(engine, other, "lost", start=8_000, took=1, number=1)
    add_attempt(engine, other, "succeeded", start=4_000, took=1, number=2)
    found = look(engine).recovery
    assert sum(found.counts) == 1
    assert found.counts[RECOVERY_BOUNDS.index(0.5)] == 1
    assert found.total == pytest.approx(0.4)


def test_the_queue_is_what_could_go_on_and_nobody_executes(engine: Engine) -> None:
    add_migration(engine, "queued", age=50, overdue=True)
    between = add_migration(engine, "running", age=500)
    add_attempt(engine, between, "succeeded", start=25, took=5)  # waits for its next hop for 20 s
    running = add_migration(engine, "running", age=900)
    add_attempt(engine, running, "running", start=800, took=None)
    for idle in ("paused", "failed", "succeeded"):
        add_migration(engine, idle, age=5_000)
    found = look(engine)
    assert (found.running_hops, found.waiting, found.overdue) == (1, 2, 1)
    assert 50 <= found.queue_age < 120


def test_graphs_behind_their_type_are_counted_by_type(engine: Engine) -> None:
    for slug, kind, version in (("a", "k", 1), ("b", "k", 2), ("c", "k", 3), ("d", "unknown", 1)):
        add_graph(engine, slug, kind, version, nodes=0)
    found = look(engine)
    assert found.graphs == {("k", 1): 1, ("k", 2): 1, ("k", 3): 1, ("unknown", 1): 1}
    shown = exposed(found, {"k": 3, "empty": 9})
    assert shown["graph_migrator_graphs_behind"] == {(("graph_type", "k"),): 2, (("graph_type", "empty"),): 0}


def exposed(found: Measures, newest: dict[str, int]) -> dict[str, dict[Any, float]]:
    """The samples as Prometheus reads them, by name and labels."""

    class Fixed:
        def describe(self) -> list[Any]:
            return []

        def collect(self) -> Any:
            return families(found, newest)

    registry = CollectorRegistry()
    registry.register(Fixed())
    samples: dict[str, dict[Any, float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sample.labels.items())] = sample.value
    return samples


def test_a_histogram_is_exposed_cumulated() -> None:
    found = Measures()
    found.hop_seconds["k", "h", "succeeded"] = Histogram((0.1, 1.0), [2, 1, 4], 9.5)
    shown = exposed(found, {})
    buckets = {
        dict(labels)["le"]: value for labels, value in shown["graph_migrator_hop_seconds_bucket"].items()
    }
    assert buckets == {"0.1": 2, "1.0": 3, "+Inf": 7}
    assert list(shown["graph_migrator_hop_seconds_count"].values()) == [7]
    assert list(shown["graph_migrator_hop_seconds_sum"].values()) == [9.5]


def test_every_metric_is_described_and_documented_and_no_other() -> None:
    exposed_names = {"graph_migrator_up"} | {
        name + ("_total" if kind == "counter" else "")
        for name, kind in ((f.name, f.type) for f in families(Measures(), {}))
    }
    assert exposed_names == set(METRICS)
    page = (DOCS / "monitoring.md").read_text("utf-8")
    assert dict(re.findall(r"^\| `(graph_migrator_\w+)` \| (.+) \|$", page, re.MULTILINE)) == METRICS


def test_the_dashboard_is_generated_and_asks_for_metrics_there_are() -> None:
    build = runpy.run_path(str(DOCS / "build_dashboard.py"))
    written = (DOCS / "grafana-dashboard.json").read_text("utf-8")
    assert written == build["page"](), "stale: python docs/build_dashboard.py"
    dashboard = json.loads(written)
    asked = {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"graph_migrator_\w+", target["expr"])
    }
    assert asked == set(METRICS)
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")"), target["expr"]
            # Each instance exports the numbers of the whole fleet.
            assert re.search(r"\b(max|min)\b", target["expr"]), target["expr"]
    # No two panels overlap, and a row is full.
    cells = [
        (x, y)
        for p in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len(cells) % 24 == 0
