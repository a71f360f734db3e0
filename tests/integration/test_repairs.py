"""`repair` mends what `validate` finds, one finding at a time, and only where that is no guess."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext, Nodes
from graph_migrator.core.audit.repairs import Mending, find_repairs, mend
from graph_migrator.core.audit.validate import validate
from graph_migrator.core.errors import NothingToRepair
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from tests.integration.test_validate import behind_the_guard
from tests.rows import add_graph, graph_row, one, rows

kind = GraphType("kind")
broken = [False]


@kind.hop(1, 2, over=Nodes(), batch_size=2)
def first(ctx: HopContext, nodes: list[object]) -> None:
    if broken[0] and len(nodes) == 1:
        raise ValueError("stop")


other = GraphType("kind")


@other.hop(1, 2, over=Nodes(), batch_size=2)
def first_(ctx: HopContext, nodes: list[object]) -> None:
    ctx.log.info("other code")


TYPES = {"kind": kind}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GRAPH_MIGRATOR_BATCH_TARGET_SECONDS", "0.000001")
    settings.cache_clear()
    registry.register(kind)
    broken[0] = False
    yield
    broken[0] = False


@pytest.fixture
def migrated(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "kind")
    run_graph_migration(executors, "g")


def released_half_way(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "half", "kind", nodes=3)
    broken[0] = True
    with pytest.raises(ValueError, match="stop"):
        run_graph_migration(executors, "half")
    with executors.borrow() as executor:
        operations.release(executor, "half", force=True)
    broken[0] = False


def kinds(engine: Engine) -> list[tuple[str, str]]:
    return [(each.check, each.subject) for each in find_repairs(engine, TYPES)]


def record(engine: Engine) -> object:
    return one(engine, "SELECT * FROM requests WHERE verb = 'repair'")


def test_a_sound_database_has_nothing_to_repair(engine: Engine, migrated: None) -> None:
    assert find_repairs(engine, TYPES) == []
    for check in ("claims", "checkpoints", "guard"):
        with pytest.raises(NothingToRepair):
            mend(engine, Mending(check=check, subject="g", does=""), "ada")
    assert rows(engine, "SELECT * FROM requests") == []


def test_an_orphaned_claim_is_cleared(engine: Engine, migrated: None) -> None:
    behind_the_guard(engine, "UPDATE graphs SET migration_id = (SELECT id FROM migrations)")
    (found,) = find_repairs(engine, TYPES)
    assert (found.check, found.subject) == ("claims", "g")
    assert "which is succeeded" in found.does
    mend(engine, found, "ada")
    assert graph_row(engine, "g").migration_id is None
    assert validate(engine, TYPES).is_valid
    recorded = record(engine)
    assert (recorded.requested_by, recorded.outcome["check"]) == ("ada", "claims")  # type: ignore[attr-defined]
    with pytest.raises(NothingToRepair):
        mend(engine, found, "ada")


def test_a_claim_whose_graph_may_be_of_two_versions_is_left(engine: Engine, migrated: None) -> None:
    behind_the_guard(
        engine,
        "UPDATE graphs SET migration_id = (SELECT id FROM migrations)",
        "INSERT INTO checkpoints (migration_id, to_version, cursor) SELECT id, 2, '[]' FROM migrations",
    )
    assert ("claims", "g") not in kinds(engine)


def test_ownerless_checkpoints_are_deleted_and_recorded(engine: Engine, migrated: None) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO checkpoints (migration_id, to_version, cursor) SELECT id, 2, '[7]' FROM migrations"
            )
        )
    (found,) = find_repairs(engine, TYPES, "checkpoints", "g")
    mend(engine, found, "ada")
    assert rows(engine, "SELECT * FROM checkpoints") == []
    assert record(engine).outcome["deleted"][0]["cursor"] == [7]  # type: ignore[attr-defined]


def test_the_checkpoint_of_a_graph_that_can_go_on_is_left(engine: Engine, executors: Executors) -> None:
    released_half_way(engine, executors)
    with pytest.raises(NothingToRepair):
        mend(engine, Mending(check="checkpoints", subject="half", does=""), "ada")


def test_a_partially_migrated_graph_is_mended_where_its_code_is_unchanged(
    engine: Engine, executors: Executors
) -> None:
    released_half_way(engine, executors)
    assert kinds(engine) == [("partially-migrated", "half")]
    assert "after 2 rows" in find_repairs(engine, TYPES)[0].does
    assert find_repairs(engine, {"kind": other}) == []
    assert find_repairs(engine, {}) == []


@pytest.mark.parametrize("table", ["nodes", "edges", "graphs"])
@pytest.mark.parametrize("how", ["DROP TRIGGER {} ON", "DISABLE"])
def test_triggers_of_the_guard_are_restored(engine: Engine, table: str, how: str) -> None:
    (trigger,) = rows(
        engine,
        "SELECT tgname FROM pg_trigger WHERE tgrelid = CAST(:t AS regclass) AND tgname LIKE 'graph_migrator_guard%' "
        "ORDER BY 1 LIMIT 1",
        t=table,
    )[0]
    statement = (
        f"DROP TRIGGER {trigger} ON {table}"
        if how.startswith("DROP")
        else f"ALTER TABLE {table} DISABLE TRIGGER {trigger}"
    )
    with engine.begin() as connection:
        connection.execute(text(statement))
    assert not validate(engine, {}).is_valid
    (found,) = find_repairs(engine, {})
    assert (found.check, found.subject) == ("guard", f"graph_migrator.{table}")
    mend(engine, found, "ada")
    assert validate(engine, {}).is_valid
    assert record(engine).outcome["subject"] == f"graph_migrator.{table}"  # type: ignore[attr-defined]


def test_the_command(engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch) -> None:
    from graph_migrator.tasks import runtime
    from graph_migrator.tasks.cli import verbs
    from tests.integration.console import call

    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    for cached in (runtime.engine, runtime.executors, settings):
        cached.cache_clear()
    sent: list[object] = []
    monkeypatch.setattr(verbs, "send_chain", sent.append)
    assert "Nothing can be mended here" in call("repair").out
    released_half_way(engine, executors)
    assert "graph-migrator repair partially-migrated half\n" in call("repair").out
    assert call("repair", "claims", "half").exit_code == 3
    asked = call("repair", "partially-migrated", "half", answer="n\n")
    assert (asked.exit_code, "finishes hop 'first'" in asked.err, sent) == (1, True, [])
    done = call("repair", "partially-migrated", "half", "--yes")
    assert (done.exit_code, done.out, len(sent)) == (0, "half: mended (partially-migrated)\n", 1)
    assert graph_row(engine, "half").migration_id is not None
    assert record(engine).outcome["check"] == "partially-migrated"  # type: ignore[attr-defined]
    runtime.engine.cache_clear()
