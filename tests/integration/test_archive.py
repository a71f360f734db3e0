"""Old audit rows go to files that were checked first, and there is no other way to remove them."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from graph_migrator.core.audit import archive as archiving
from graph_migrator.core.audit.archive import Manifest, archive, archived_parts
from graph_migrator.core.errors import ArchiveDamaged, InvalidRequest
from graph_migrator.core.inspection.metrics import measure
from tests.rows import add_graph, rows

BEFORE = datetime.now(UTC) - timedelta(days=30)


def settled(
    engine: Engine, graph: UUID, *, days: int, status: str = "succeeded", answered: bool = True
) -> UUID:
    """A migration that ended so many days ago, with two attempts and a request."""
    id_, ended = uuid4(), datetime.now(UTC) - timedelta(days=days)
    with engine.begin() as connection:
        values = {"id": id_, "graph": graph, "status": status, "ended": ended, "task": str(uuid4())}
        values["answered"] = ended if answered else None
        values["error"] = "E" if status == "failed" else None
        connection.execute(
            text(
                "INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline, "
                "created_at, started_at, finished_at, error_type) VALUES (:id, :graph, 'k', 1, 2, :status, '[]', "
                ":ended, :ended, :ended, :ended, :error)"
            ),
            values,
        )
        for number, outcome in ((1, "lost"), (2, "succeeded")):
            connection.execute(
                text(
                    "INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, "
                    "fingerprint, attempt, dispatch, status, started_at, finished_at) VALUES (:id, :graph, 1, 2, 'h', "
                    "'f', :number, 1, :outcome, :ended, :ended)"
                ),
                {**values, "number": number, "outcome": outcome},
            )
        connection.execute(
            text(
                "INSERT INTO requests (task_id, verb, graph_id, migration_id, created_at, answered_at) "
                "VALUES (:task, 'migrate', :graph, :id, :ended, :answered)"
            ),
            values,
        )
    return id_


def migrations(engine: Engine) -> set[UUID]:
    return {row[0] for row in rows(engine, "SELECT id FROM migrations")}


def test_what_is_old_goes_to_files_and_the_rest_stays(engine: Engine, tmp_path: Path) -> None:
    graph = add_graph(engine, "g", "k")
    old, other = settled(engine, graph, days=90), settled(engine, graph, days=60, status="cancelled")
    young = settled(engine, graph, days=5)
    failed = settled(engine, graph, days=90, status="failed")
    waited_for = settled(engine, graph, days=90, answered=False)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO requests (task_id, verb, outcome, created_at, answered_at) "
                "VALUES ('refused', 'migrate', '{}', now() - interval '40 d', now())"
            )
        )
    with engine.connect() as connection:
        before = measure(connection)
    report = archive(engine, BEFORE, tmp_path / "a")
    assert (report.migrations, report.attempts, report.requests) == (2, 4, 3)
    assert migrations(engine) == {young, failed, waited_for}
    manifest = Manifest.model_validate_json((tmp_path / "a" / "manifest.json").read_text())
    held = [
        json.loads(line)
        for file in manifest.files
        for line in gzip.decompress((tmp_path / "a" / file.name).read_bytes()).splitlines()
    ]
    assert {UUID(e["migration"]["id"]) for e in held if "migration" in e} == {old, other}
    assert [a["status"] for a in held[0]["attempts"]] == ["lost", "succeeded"]
    assert [e["request"]["task_id"] for e in held if "request" in e] == ["refused"]
    with engine.connect() as connection:
        (part,) = archived_parts(connection, graph)
    assert (part.location, part.migrations, part.before) == (str(tmp_path / "a"), 2, BEFORE)
    with engine.connect() as connection:
        after = measure(connection)
    assert (after.hop_seconds, after.rows, after.recovery) == (
        before.hop_seconds,
        before.rows,
        before.recovery,
    )
    assert rows(engine, "SELECT removing_xid FROM archives") == [(None,)]


def test_an_interrupted_archive_is_finished_by_the_same_call(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = add_graph(engine, "g", "k")
    for _ in range(7):
        settled(engine, graph, days=90)
    monkeypatch.setattr(archiving, "_A_FILE", 3)
    folder = tmp_path / "a"

    def stop(what: str, number: int) -> None:
        if (what, number) == ("removed", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive(engine, BEFORE, folder, on_progress=stop)
    assert len(migrations(engine)) == 4
    report = archive(engine, BEFORE, folder)
    assert (report.files, report.migrations) == (3, 4)
    assert migrations(engine) == set()
    assert rows(engine, "SELECT migrations, attempts, requests FROM archives") == [(7, 14, 7)]
    assert rows(engine, "SELECT migrations FROM archived_graphs") == [(7,)]


def test_a_crash_while_writing_leaves_the_tables_as_they_were(engine: Engine, tmp_path: Path) -> None:
    settled(engine, add_graph(engine, "g", "k"), days=90)
    folder = tmp_path / "a"

    def stop(what: str, _number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive(engine, BEFORE, folder, on_progress=stop)
    assert len(migrations(engine)) == 1
    assert archive(engine, BEFORE, folder).migrations == 1


@pytest.mark.parametrize("damage", ["changed", "missing", "cut"])
def test_a_damaged_file_removes_nothing(engine: Engine, tmp_path: Path, damage: str) -> None:
    settled(engine, add_graph(engine, "g", "k"), days=90)
    folder = tmp_path / "a"

    def spoil(what: str, _number: int) -> None:
        if what == "written":
            return
        raise AssertionError("nothing may be removed")

    real = archiving.verify_files

    def damaged(at: Path, manifest: Manifest) -> None:
        path = at / manifest.files[0].name
        match damage:
            case "changed":
                path.write_bytes(gzip.compress(b'{"migration": {}, "attempts": [], "requests": []}\n'))
            case "missing":
                path.unlink()
            case "cut":
                path.write_bytes(path.read_bytes()[:-9])
        real(at, manifest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(archiving, "verify_files", damaged)
        with pytest.raises(ArchiveDamaged, match=r"migrations-00001\.jsonl\.gz"):
            archive(engine, BEFORE, folder, on_progress=spoil)
    assert len(migrations(engine)) == 1


def test_nothing_else_can_delete(engine: Engine, tmp_path: Path) -> None:
    graph = add_graph(engine, "g", "k")
    id_ = settled(engine, graph, days=90)
    archive(engine, BEFORE, tmp_path / "a")
    kept = settled(engine, graph, days=90)
    for statement in ("DELETE FROM hop_attempts", "DELETE FROM migrations"):
        with pytest.raises(DBAPIError, match="never deleted"), engine.begin() as connection:
            connection.execute(text(statement))
    young = settled(engine, graph, days=1)
    for each in (young, settled(engine, graph, days=90, status="failed")):
        with pytest.raises(DBAPIError, match="cannot be archived"), engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT remove_archived(gen_random_uuid(), '/', now() - interval '30 d', '{}', "
                    "ARRAY[CAST(:id AS uuid)], '{}')"
                ),
                {"id": each},
            )
    assert id_ not in migrations(engine)
    assert {kept, young} < migrations(engine)


def test_bad_input_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    settled(engine, add_graph(engine, "g", "k"), days=90)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters.txt").write_text("dear")
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "manifest.json").write_text("{}")
    day = timedelta(days=1)
    for before, folder, reason in (
        (datetime.now(UTC) - 0.9 * day, "a", "a day ago"),
        (datetime.now(), "a", "time zone"),  # noqa: DTZ005 - that is what is wrong with it
        (BEFORE, "full", "not empty"),
        (BEFORE, "wrong", "no manifest"),
    ):
        with pytest.raises(InvalidRequest, match=reason):
            archive(engine, before, tmp_path / folder)
    assert not (tmp_path / "a").exists()
    assert len(migrations(engine)) == 1


def test_the_command_archives_and_says_what_it_did(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graph_migrator.tasks import runtime
    from tests.integration.console import call

    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    runtime.engine.cache_clear()
    settled(engine, add_graph(engine, "g", "k"), days=90)
    day = f"{BEFORE:%Y-%m-%d}"
    done = call("audit", "archive", "--before", day, "--to", tmp_path / "a")
    assert (done.exit_code, done.err) == (0, "")
    assert "1 migration, 2 attempts and 1 request are" in done.out
    shown = call("history", "g")
    assert f"1 migration that ended before {day}" in shown.out
    assert f"{tmp_path / 'a'}" in shown.out
    assert "never been migrated" not in shown.out
    assert f"{tmp_path / 'a'}" in call("history", "g", "--json").err
    other_day = f"{BEFORE - timedelta(days=1):%Y-%m-%d}"
    assert call("audit", "archive", "--before", other_day, "--to", tmp_path / "a").exit_code == 2
    (tmp_path / "a" / "migrations-00001.jsonl.gz").write_bytes(b"")
    assert call("audit", "archive", "--before", day, "--to", tmp_path / "a").exit_code == 3
    runtime.engine.cache_clear()
