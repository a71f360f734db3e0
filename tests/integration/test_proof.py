"""The proof chain: every finished attempt is linked, and what is done to a row behind the triggers is named."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from graph_migrator import GraphType, HopContext
from graph_migrator.core.audit.archive import archive
from graph_migrator.core.audit.verify import Verification, heads, verify_chains
from graph_migrator.core.errors import ArchiveDamaged, InvalidRequest
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from tests.integration.test_archive import settled
from tests.rows import add_graph, rows

kind = GraphType("kind")
broken = [False]


@kind.hop(1, 2)
def first(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = 'A' WHERE graph_id = :graph_id")


@kind.hop(2, 3)
def second(ctx: HopContext) -> None:
    if broken[0]:
        raise ValueError('an ä, a \t tab, a \x7f and a "quote" \\')


@kind.hop(3, 4)
def third(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = 'B' WHERE graph_id = :graph_id")


@pytest.fixture
def migrated(engine: Engine, executors: Executors) -> Callable[[], Verification]:
    """Two graphs with four links each, the second of them a failure; returns the check."""
    registry.register(kind)
    for slug in ("a", "b"):
        add_graph(engine, slug, "kind")
        broken[0] = True
        with pytest.raises(ValueError, match="quote"):
            run_graph_migration(executors, slug)
        broken[0] = False
        run_graph_migration(executors, slug)
    return lambda: verify_chains(engine)


def tamper(engine: Engine, *statements: str, constraints: str = "") -> None:
    """As somebody who may disable triggers and drop constraints."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL search_path = graph_migrator"))
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in (constraints, *statements):
            if statement:
                connection.execute(text(statement))


def ids(engine: Engine, slug: str) -> list[int]:
    return [
        id_
        for (id_,) in rows(
            engine,
            "SELECT a.id FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id WHERE g.slug = :slug "
            "ORDER BY link",
            slug=slug,
        )
    ]


def named(found: Verification) -> list[tuple[str, int, int, int | None]]:
    return [(each.kind, each.first_link, each.last_link, each.attempt_id) for each in found.suspicions]


REHASH = """
UPDATE hop_attempts a SET hash = sha256(convert_to(jsonb_strip_nulls(to_jsonb(a) - 'hash')::text, 'UTF8'))
WHERE id = {id}
"""


def test_every_way_to_finish_links_an_attempt_in_its_graphs_chain(
    engine: Engine, migrated: Callable[[], Verification]
) -> None:
    statuses = rows(
        engine,
        "SELECT link, status, previous IS NULL FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id "
        "WHERE g.slug = 'a' ORDER BY link",
    )
    assert statuses == [
        (1, "succeeded", True),
        (2, "failed", False),
        (3, "succeeded", False),
        (4, "succeeded", False),
    ]
    found = migrated()
    assert (found.graphs, found.attempts, found.archived, found.count) == (2, 8, 0, 0)
    assert heads(engine).digest == found.digest


def test_sessions_of_any_settings_make_the_same_hash(
    engine: Engine, migrated: Callable[[], Verification]
) -> None:
    settled_rows = (
        "INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt, "
        "dispatch, status, rows_per_second, finished_at) SELECT migration_id, graph_id, 7, 8, 'h', 'f', 1, 1, 'lost', "
        "1e22 / 3, now() FROM hop_attempts LIMIT 1"
    )
    with engine.begin() as connection:
        for setting in ("timezone = 'Asia/Kathmandu'", "extra_float_digits = -5", "bytea_output = 'escape'"):
            connection.execute(text(f"SET LOCAL {setting}"))
        connection.execute(text(settled_rows))
    found = migrated()
    assert (found.attempts, found.count) == (9, 0)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_changed_row_is_named(engine: Engine, migrated: Callable[[], Verification], place: int) -> None:
    id_ = ids(engine, "b")[place]
    tamper(engine, f"UPDATE hop_attempts SET worker = 'nobody' WHERE id = {id_}")
    assert named(migrated()) == [("changed", place + 1, place + 1, id_)]


def test_a_changed_row_with_its_hash_made_anew_is_named_by_the_one_after_it(
    engine: Engine, migrated: Callable[[], Verification]
) -> None:
    id_ = ids(engine, "a")[1]
    tamper(
        engine,
        "SET LOCAL timezone = 'UTC'",
        f"UPDATE hop_attempts SET worker = 'x' WHERE id = {id_}",
        REHASH.format(id=id_),
    )
    assert named(migrated()) == [("changed", 2, 2, id_)]


def test_removed_rows_are_named(engine: Engine, migrated: Callable[[], Verification]) -> None:
    second, third = ids(engine, "a")[1:3]
    tamper(engine, f"DELETE FROM hop_attempts WHERE id IN ({second}, {third})")
    assert named(migrated()) == [("removed", 2, 3, None)]


def test_an_inserted_row_is_named(engine: Engine, migrated: Callable[[], Verification]) -> None:
    columns = (
        "migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt, dispatch, status, "
        "finished_at, link, hash"
    )
    values = (
        "SELECT migration_id, graph_id, from_version, to_version, hop_name, fingerprint, 9, dispatch, 'lost', "
        "now(), {link}, {hash} FROM hop_attempts WHERE id = {id}"
    )
    id_ = ids(engine, "a")[1]
    with pytest.raises(IntegrityError, match="hop_attempts_chain"):
        tamper(engine, f"INSERT INTO hop_attempts ({columns}) {values.format(link=2, hash='hash', id=id_)}")
    with pytest.raises(IntegrityError, match="finished_is_linked"):
        tamper(
            engine, f"INSERT INTO hop_attempts ({columns}) {values.format(link='NULL', hash='NULL', id=id_)}"
        )
    tamper(
        engine,
        f"INSERT INTO hop_attempts ({columns}) {values.format(link=2, hash='hash', id=id_)}",
        f"INSERT INTO hop_attempts ({columns}) {values.format(link='NULL', hash='NULL', id=ids(engine, 'b')[0])}",
        constraints="DROP INDEX hop_attempts_chain; "
        "ALTER TABLE hop_attempts DROP CONSTRAINT hop_attempts_finished_is_linked",
    )
    found = named(migrated())
    assert [each[:3] for each in found] == [("inserted", 2, 2), ("inserted", 0, 0)]


def test_what_is_cut_off_at_the_end_is_named(
    engine: Engine, migrated: Callable[[], Verification], tmp_path: Path
) -> None:
    kept: list[str] = []
    heads(engine, kept.append)
    assert verify_chains(engine, kept=kept).count == 0
    tamper(engine, f"DELETE FROM hop_attempts WHERE id = {ids(engine, 'a')[-1]}")
    (without,) = migrated().suspicions
    assert without.kind == "removed"
    assert "succeeded, and no attempt" in without.found
    found = named(verify_chains(engine, kept=kept))
    assert ("removed", 4, 4, None) in found


def test_a_chain_made_anew_or_gone_altogether_is_found_by_what_was_kept(
    engine: Engine, migrated: Callable[[], Verification]
) -> None:
    kept: list[str] = []
    heads(engine, kept.append)
    last = ids(engine, "a")[-1]
    tamper(
        engine,
        "SET LOCAL timezone = 'UTC'",
        f"UPDATE hop_attempts SET worker = 'x' WHERE id = {last}",
        REHASH.format(id=last),
    )
    assert migrated().count == 0
    assert named(verify_chains(engine, kept=kept)) == [("changed", 4, 4, last)]
    tamper(
        engine, "DELETE FROM hop_attempts", "DELETE FROM requests", "UPDATE graphs SET migration_id = NULL"
    )
    tamper(engine, "DELETE FROM migrations")
    assert migrated().count == 0
    assert [each[:3] for each in named(verify_chains(engine, kept=kept))] == [("removed", 1, 4)] * 2


def test_malformed_heads_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="line 1 of the heads"):
        verify_chains(engine, kept=["dear reader\n"])


# ── with archives ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def archived(engine: Engine, tmp_path: Path) -> Path:
    """A graph with ten links: 1-2 and 5-6 archived, 3-4 kept by a call without an answer. And one archived whole."""
    graph, gone = add_graph(engine, "g", "k"), add_graph(engine, "gone", "k")
    settled(engine, graph, days=90)
    settled(engine, graph, days=80, answered=False)
    settled(engine, graph, days=70)
    settled(engine, gone, days=70)
    for _ in range(2):
        settled(engine, graph, days=1)
    archive(engine, datetime.now(UTC) - timedelta(days=30), tmp_path / "old")
    return tmp_path / "old"


def test_archived_links_are_known_by_their_hashes_and_read_where_the_folder_is_given(
    engine: Engine, archived: Path
) -> None:
    without = verify_chains(engine)
    assert (without.graphs, without.attempts, without.archived, without.archived_unread) == (2, 6, 6, 6)
    assert without.count == 0
    assert verify_chains(engine, archives=[archived]) == without.model_copy(update={"archived_unread": 0})
    gone = rows(engine, "SELECT id FROM graphs WHERE slug = 'gone'")[0][0]
    settled(engine, gone, days=1)
    assert rows(engine, "SELECT link FROM hop_attempts WHERE graph_id = :g ORDER BY 1", g=gone) == [
        (3,),
        (4,),
    ]
    assert verify_chains(engine).count == 0


def test_a_record_of_archived_links_that_was_removed_or_changed_is_named(
    engine: Engine, archived: Path
) -> None:
    tamper(engine, "UPDATE archived_links SET hash = 'x' WHERE last_link = 6")
    (found,) = verify_chains(engine).suspicions
    assert (found.kind, found.first_link) == ("changed", 6)
    tamper(engine, "DELETE FROM archived_links WHERE last_link = 6")
    assert named(verify_chains(engine)) == [("removed", 5, 6, None)]


def rewrite(folder: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    """Change a file of an archive, and its manifest with it."""
    path, manifest = next(folder.glob("*.gz")), json.loads((folder / "manifest.json").read_text())
    entries = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(entries)
    path.write_bytes(gzip.compress("".join(f"{json.dumps(e)}\n" for e in entries).encode()))
    manifest["files"][0]["attempts"] = sum(len(e["attempts"]) for e in entries)  # type: ignore[arg-type]
    manifest["files"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_changed_archive_is_named(engine: Engine, archived: Path) -> None:
    def change(entries: list[dict[str, object]]) -> None:
        attempt = entries[0]["attempts"][0]  # type: ignore[index]
        attempt["worker"] = "nobody"

    rewrite(archived, change)
    with pytest.raises(ArchiveDamaged, match="manifest"):
        verify_chains(engine, archives=[archived])
    manifest = (archived / "manifest.json").read_text()
    tamper(engine, f"UPDATE archives SET manifest = '{manifest}'")
    (found,) = verify_chains(engine, archives=[archived]).suspicions
    assert found.kind == "changed"


@pytest.mark.parametrize("left", [0, 1])
def test_rows_removed_from_an_archive_are_named(engine: Engine, archived: Path, left: int) -> None:
    def change(entries: list[dict[str, object]]) -> None:
        entries[0]["attempts"] = entries[0]["attempts"][:left]  # type: ignore[index]

    rewrite(archived, change)
    tamper(engine, f"UPDATE archives SET manifest = '{(archived / 'manifest.json').read_text()}'")
    (found,) = verify_chains(engine, archives=[archived]).suspicions
    assert (found.kind, found.last_link - found.first_link) == ("removed", 1 - left)


def test_an_archive_of_nothing_is_no_fault(engine: Engine, tmp_path: Path) -> None:
    archive(engine, datetime.now(UTC) - timedelta(days=30), tmp_path / "empty")
    assert verify_chains(engine, archives=[tmp_path / "empty"]).count == 0


def test_a_folder_that_is_no_archive_of_this_database_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no archive of this database"):
        verify_chains(engine, archives=[tmp_path])


# ── the commands ────────────────────────────────────────────────────────────────────────────────────


def test_the_commands_keep_heads_and_verify(
    engine: Engine, migrated: Callable[[], Verification], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from graph_migrator.tasks import runtime
    from tests.integration.console import call

    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    runtime.engine.cache_clear()
    settings.cache_clear()
    kept = tmp_path / "heads"
    printed = call("audit", "head", "--to", kept)
    digest = hashlib.sha256(kept.read_bytes()).hexdigest()
    assert printed.out == f"{digest}  2 graphs, 8 finished attempts\n"
    assert call("audit", "head", "--json").json() == {"graphs": 2, "attempts": 8, "digest": digest}
    assert call("audit", "head", "--to", "-").out == kept.read_text()
    done = call("audit", "verify", "--head", kept)
    assert (done.exit_code, "8 attempts of 2 graphs checked: as they were written" in done.out) == (0, True)
    id_ = ids(engine, "a")[2]
    tamper(engine, f"UPDATE hop_attempts SET hop_name = 'other' WHERE id = {id_}")
    done = call("audit", "verify", "--head", kept)
    assert done.exit_code == 1
    assert f"link 3, attempt {id_}: changed: its content does not have the hash" in done.out
    assert call("audit", "verify", "--json").json()["count"] == 1
    (tmp_path / "wrong").write_text("x")
    assert call("audit", "verify", "--head", tmp_path / "wrong").exit_code == 2
    runtime.engine.cache_clear()


def test_nobody_may_set_a_hash(engine: Engine, migrated: Callable[[], Verification]) -> None:
    with pytest.raises(DBAPIError, match="never changed once finished"), engine.begin() as connection:
        connection.execute(text("UPDATE hop_attempts SET hash = 'x' WHERE link = 1"))
