"""What a hop that fails leaves behind: its story, a read-only graph, and a way on."""

from __future__ import annotations

import re
from typing import NoReturn

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker

from graph_migrator import HopContext, MigrationReport, graph_writer
from graph_migrator.core.errors import CheckFailed, GraphReadOnly, HopFailed
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.execution.recorded import load_report
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script, fails, trails
from tests.rows import add_graph, advisory_locks, attempts, graph_row, migration_of, one, properties, rows

pytestmark = pytest.mark.usefixtures("script")


def report_of(engine: Engine, slug: str) -> MigrationReport:
    """The report of a graph's latest migration."""
    executors = Executors(engine)
    with executors.borrow() as executor:
        report = load_report(executor, migration_of(engine, slug).id)
    executors.close()
    return report


def test_a_failing_hop_leaves_its_story_and_none_of_its_data(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("name of n0001 is empty"))
    with pytest.raises(ValueError, match=r"^name of n0001 is empty$"):
        run_graph_migration(engine, "g", 4)
    assert trails(engine, "g") == {"one"}
    assert graph_row(engine, "g").version == 2
    failed = one(engine, "SELECT * FROM hop_attempts WHERE status = 'failed'")
    assert (failed.hop_name, failed.error_type, failed.error_message) == (
        "two",
        "ValueError",
        "name of n0001 is empty",
    )
    assert failed.traceback.startswith("Traceback (most recent call last)")
    assert "in fail" in failed.traceback
    assert failed.traceback.rstrip().endswith("ValueError: name of n0001 is empty")
    report = report_of(engine, "g")
    assert (report.status, report.version, report.last_applied) == ("failed", 2, "one")
    assert (report.error_type, report.error_message) == ("ValueError", "name of n0001 is empty")
    assert advisory_locks(engine) == []


def test_a_failed_graph_is_read_only_for_error(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 3)
    with pytest.raises(GraphReadOnly) as refusal, sessionmaker(engine).begin() as session:  # noqa: SIM117
        with graph_writer(session, "g"):
            pass
    assert (refusal.value.reason, refusal.value.migration_id) == ("error", str(migration_of(engine, "g").id))


def test_an_error_that_cannot_be_rebuilt_is_recorded_by_type_and_message(
    engine: Engine, script: Script
) -> None:
    class Local(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(f"code {code}")

    add_graph(engine, "g", "plain")
    script.on["one"] = fails(Local(7))
    with pytest.raises(HopFailed, match=r"hop 'one' failed: .*Local: code 7$"):
        run_graph_migration(engine, "g")


def test_calling_again_resumes_at_the_failed_hop(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 4)
    del script.on["two"]
    report = run_graph_migration(engine, "g", 4)
    assert script.invoked == ["one", "two", "two", "three"]
    assert trails(engine, "g") == {"one two three"}
    assert (report.status, report.version, report.dispatch) == ("succeeded", 4, 2)
    assert [(h.name, h.attempts) for h in report.hops] == [("one", 1), ("two", 2), ("three", 1)]
    assert len(rows(engine, "SELECT * FROM migrations")) == 1
    assert attempts(engine, "g") == [
        ("one", "succeeded"),
        ("two", "failed"),
        ("two", "succeeded"),
        ("three", "succeeded"),
    ]


def test_another_target_replaces_a_failed_migration(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 4)
    del script.on["two"]
    assert run_graph_migration(engine, "g", 3).version == 3
    assert [s for (s,) in rows(engine, "SELECT status FROM migrations ORDER BY created_at")] == [
        "released",
        "succeeded",
    ]


def test_back_to_where_it_stands_releases_a_failed_migration(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["two"] = fails(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        run_graph_migration(engine, "g", 4)
    report = run_graph_migration(engine, "g", 2)
    assert (report.changed, report.version) == (False, 2)
    assert migration_of(engine, "g").status == "released"
    assert graph_row(engine, "g").migration_id is None


def test_a_constraint_that_fails_at_commit_fails_the_hop(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain", edges=[("e", "n0000", "n0001")])
    script.on["two"] = lambda ctx: ctx.execute(
        "DELETE FROM nodes WHERE graph_id = :graph_id AND id = 'n0000'"
    )
    with pytest.raises(Exception, match="edges_source_is_a_node"):
        run_graph_migration(engine, "g", 3)
    assert attempts(engine, "g") == [("one", "succeeded"), ("two", "failed")]
    assert (graph_row(engine, "g").version, len(properties(engine, "g"))) == (2, 3)
    assert advisory_locks(engine) == []


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("raises", "says"),
    [
        (ValueError("a\x00b"), r"a\x00b"),
        (OSError("no file bad-\udcff.csv"), r"no file bad-\udcff.csv"),  # as Python names what is not UTF-8
        (CheckFailed("g", "one", "a\x00b \ud800"), r"a\x00b \ud800"),
        (Mute("x"), "no message that can be shown"),
    ],
    ids=["NUL", "surrogate", "own error", "no message"],
)
def test_an_error_whose_words_cannot_be_stored_as_they_are_fails_the_hop_like_any_other(
    engine: Engine, script: Script, raises: Exception, says: str
) -> None:
    add_graph(engine, "g", "plain")

    def fail(_: HopContext) -> NoReturn:
        raise raises

    script.on["one"] = fail
    with pytest.raises(Exception, match=re.escape(says)):
        run_graph_migration(engine, "g", 2)
    assert attempts(engine, "g") == [("one", "failed")]
    assert migration_of(engine, "g").status == "failed"
    assert says in one(engine, "SELECT error_message FROM hop_attempts").error_message


def test_a_database_error_is_recorded_without_row_data(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    script.on["one"] = lambda ctx: ctx.execute(
        "INSERT INTO nodes (graph_id, id, label) VALUES (:graph_id, 'n0000', 'secret')"
    )
    with pytest.raises(HopFailed, match="duplicate key value violates unique constraint"):
        run_graph_migration(engine, "g")
    failed = one(engine, "SELECT error_message, traceback FROM hop_attempts")
    assert "n0000" not in failed.error_message + failed.traceback


def test_without_any_worker_this_process_recovers_its_own_migration(engine: Engine, script: Script) -> None:
    add_graph(engine, "alone", "plain")

    def lose_the_attempt(_: HopContext) -> None:
        script.on.clear()
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE hop_attempts SET status = 'lost', finished_at = now() WHERE status = 'running'")
            )
            connection.execute(text("UPDATE migrations SET deadline = clock_timestamp()"))

    script.on["two"] = lose_the_attempt
    assert run_graph_migration(engine, "alone", 4).version == 4
    assert attempts(engine, "alone") == [
        ("one", "succeeded"), ("two", "lost"), ("two", "succeeded"), ("three", "succeeded"),
    ]  # fmt: skip
    assert all(node["trail"] == ["one", "two", "three"] for node in properties(engine, "alone").values())
