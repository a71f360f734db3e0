"""`validate` finds each way in which the database can differ from the release, and nothing where it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext
from graph_migrator.core.audit.validate import Severity, Validation, validate
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.session import Executors
from tests.rows import add_graph

kind = GraphType("kind")


@kind.hop(1, 2)
def first(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = 'A' WHERE graph_id = :graph_id")


@kind.hop(2, 3)
def second(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = 'B' WHERE graph_id = :graph_id")


other = GraphType("kind")


@other.hop(1, 2)
def first_(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = 'C' WHERE graph_id = :graph_id")


@pytest.fixture
def found(engine: Engine, executors: Executors) -> Callable[[], Validation]:
    """Validates a database with three graphs, of which two were migrated."""
    registry.register(kind)
    for slug in ("a", "b", "c"):
        add_graph(engine, slug, "kind")
    for slug in ("a", "b"):
        run_graph_migration(executors, slug)
    return lambda: validate(engine, {"kind": kind})


def behind_the_guard(engine: Engine, *statements: str) -> None:
    """As somebody who may disable triggers."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL search_path = graph_migrator"))
        for table in ("graphs", "migrations"):
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        for statement in statements:
            connection.execute(text(statement))
        connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        for table in ("graphs", "migrations"):
            connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))
            for row in connection.execute(
                text(
                    "SELECT tgname FROM pg_trigger WHERE tgrelid = CAST(:table AS regclass) "
                    "AND tgname LIKE 'graph\\_migrator\\_guard%'"
                ),
                {"table": f"graph_migrator.{table}"},
            ).all():
                connection.execute(text(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {row.tgname}"))


def test_a_sound_database_is_valid(found: Callable[[], Validation]) -> None:
    assert found() == Validation(graphs=3, discrepancies=())


@pytest.mark.parametrize(
    ("statements", "check", "says", "names"),
    [
        (
            ["UPDATE graphs SET version = 9 WHERE slug = 'c'"],
            "unreachable",
            "at v9; this release knows v1 to v3",
            "c",
        ),
        (
            ["UPDATE graphs SET graph_type = 'gone' WHERE slug = 'c'"],
            "types",
            "'gone' is not known here",
            "c",
        ),
        (
            ["UPDATE graphs SET version = 2 WHERE slug = 'b'"],
            "versions",
            "not that of the last hop",
            "b (at v2, last",
        ),
        (
            ["UPDATE graphs SET migration_id = (SELECT id FROM migrations LIMIT 1) WHERE slug = 'c'"],
            "claims",
            "claimed by a migration that has ended",
            "c",
        ),
        (
            [
                "INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline) "
                "SELECT gen_random_uuid(), id, 'kind', 1, 2, 'queued', '[]', now() FROM graphs WHERE slug = 'c'"
            ],
            "claims",
            "does not own its graph",
            "c",
        ),
        (
            ["UPDATE graphs SET partially_migrated = '{}' WHERE slug = 'c'"],
            "partially-migrated",
            "rows are of two versions",
            "c",
        ),
    ],
)
def test_what_is_wrong_is_named(
    engine: Engine, found: Callable[[], Validation], statements: list[str], check: str, says: str, names: str
) -> None:
    behind_the_guard(engine, *statements)
    (one,) = found().discrepancies
    assert (one.check, one.severity, one.count) == (check, Severity.WRONG, 1)
    assert says in one.found
    assert one.examples[0].startswith(names)
    assert one.remedy
    assert not found().is_valid


def test_a_missing_guard_is_wrong(engine: Engine, found: Callable[[], Validation]) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE graph_migrator.nodes DISABLE TRIGGER USER"))
    assert {each.check for each in found().discrepancies} == {"guard"}


def test_changed_code_and_an_old_checkpoint_are_information(
    engine: Engine, found: Callable[[], Validation]
) -> None:
    behind_the_guard(
        engine,
        "INSERT INTO checkpoints (migration_id, to_version, cursor) SELECT id, 2, '[]' FROM migrations LIMIT 1",
    )
    (one,) = found().discrepancies
    assert (one.check, one.severity) == ("checkpoints", Severity.INFORMATION)
    with_other_code = validate(engine, {"kind": other})
    (code,) = (each for each in with_other_code.discrepancies if each.check == "code")
    assert (code.severity, code.count) == (Severity.INFORMATION, 2)
    assert code.examples == ("kind v1→v2 first", "kind v2→v3 second (gone)")
    assert found().is_valid
