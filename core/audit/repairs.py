"""Mending what `validate` found, one finding at a time, where it can be done without guessing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, text

from graph_migrator.core.errors import NothingToRepair
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.plural import count
from graph_migrator.core.store.guard import install_guard, list_guards
from graph_migrator.core.store.schema import require_current

LISTED: Final = 100
"""At most this many findings of each kind are listed."""

CHECKS: Final = ("claims", "checkpoints", "partially-migrated", "guard")
"""The checks of `validate` whose findings can be mended here."""


class Mending(BaseModel):
    """A finding that can be mended, and what that does."""

    model_config = ConfigDict(frozen=True)

    check: str = Field(description="The check of `validate` that found it.")
    subject: str = Field(description="The graph or the table.")
    does: str = Field(description="What mending it will do, in a sentence.")


_CLAIMS = """
SELECT g.slug, m.id, m.status, m.graph_id <> g.id AS foreign_claim FROM graph_migrator.graphs g
JOIN graph_migrator.migrations m ON m.id = g.migration_id
WHERE g.migration_id IS NOT NULL AND graph_migrator.is_orphaned(g, m) AND (:subject IS NULL OR g.slug = :subject)
ORDER BY g.slug LIMIT :most
"""
_CHECKPOINTS = """
SELECT graph, count(*) AS number FROM graph_migrator.ownerless_checkpoints()
WHERE :subject IS NULL OR graph = :subject GROUP BY 1 ORDER BY 1 LIMIT :most
"""
_PARTIAL = """
SELECT slug, graph_type, partially_migrated AS half FROM graph_migrator.graphs
WHERE partially_migrated IS NOT NULL AND (:subject IS NULL OR slug = :subject) ORDER BY slug LIMIT :most
"""


def find_repairs(
    engine: Engine, types: dict[str, GraphType], check: str | None = None, subject: str | None = None
) -> list[Mending]:
    """What can be mended, at most `LISTED` findings of a kind.

    Args:
        engine: The database.
        types: The graph types that this process knows, by name.
        check: Only findings of this check; one of `CHECKS`.
        subject: Only those about this graph (its slug) or table.

    Raises:
        SchemaOutdated: The tables are not those of this release.
    """
    with engine.connect() as connection:
        require_current(connection)
        finders = {
            "claims": lambda: _claims(connection, subject),
            "checkpoints": lambda: _checkpoints(connection, subject),
            "partially-migrated": lambda: _partially_migrated(connection, types, subject),
            "guard": lambda: _guards(connection, subject),
        }
        return [repair for name in CHECKS if check in (None, name) for repair in finders[name]()]


def mend(engine: Engine, repair: Mending, by: str) -> None:
    """Mend one finding and record that, in one transaction. Partially migrated graphs are not mended here but retried.

    Raises:
        NothingToRepair: It is not there any more. Nothing was changed.
        sqlalchemy.exc.OperationalError: SQLSTATE 55P03: somebody holds the graph's lock just now.
    """
    with engine.begin() as connection:
        if repair.check == "guard":
            _mend_guard(connection, repair.subject, by)
            return
        function = {"claims": "mend_claim", "checkpoints": "mend_checkpoints"}[repair.check]
        mended = connection.execute(
            text(f"SELECT graph_migrator.{function}({_ID}, :by)"),
            {"graph": repair.subject, "by": by},
        ).scalar()
        if not mended:
            raise NothingToRepair(repair.check, repair.subject)


def record_retry(engine: Engine, repair: Mending, by: str) -> None:
    """Record that a partially migrated graph was mended by a retry."""
    with engine.begin() as connection:
        _record(connection, repair.subject, repair, by)


# Of a deleted graph nothing but its id is left.
_ID = (
    "coalesce(graph_migrator.graph_id_of(:graph), (SELECT graph_id "
    "FROM graph_migrator.ownerless_checkpoints() "
    "WHERE graph = :graph LIMIT 1))"
)


def _claims(connection: Connection, subject: str | None) -> Iterator[Mending]:
    for row in connection.execute(text(_CLAIMS), {"subject": subject, "most": LISTED}):
        whose = "is of another graph" if row.foreign_claim else f"is {row.status}"
        yield Mending(
            check="claims",
            subject=row.slug,
            does=f"clears the claim of migration {row.id}, which {whose}: writers and migrations get in. No row of the "
            "graph's data is changed.",
        )


def _checkpoints(connection: Connection, subject: str | None) -> Iterator[Mending]:
    for row in connection.execute(text(_CHECKPOINTS), {"subject": subject, "most": LISTED}):
        yield Mending(
            check="checkpoints",
            subject=row.graph,
            does=f"deletes {row.number} checkpoint{'s' if row.number > 1 else ''} of migrations that will not go on; "
            "their cursors are kept in the record of this repair.",
        )


def _partially_migrated(
    connection: Connection, types: dict[str, GraphType], subject: str | None
) -> Iterator[Mending]:
    for row in connection.execute(text(_PARTIAL), {"subject": subject, "most": LISTED}):
        half = row.half
        try:
            hop = types[row.graph_type].directed(half["from_version"], half["to_version"])
        except LookupError:
            continue
        if hop.fingerprint == half["fingerprint"]:
            yield Mending(
                check="partially-migrated",
                subject=row.slug,
                does=f"finishes hop {half['hop']!r} (v{half['from_version']}→v{half['to_version']}), whose code is "
                f"the one that began it, from its checkpoint after {count(half['done'], 'row')}: "
                "`graph-migrator retry`.",
            )


def _guards(connection: Connection, subject: str | None) -> Iterator[Mending]:
    for each in list_guards(connection):
        if each.complete or subject not in (None, each.table):
            continue
        gaps = [
            *(f"none on {name}" for name in each.unguarded),
            *(f"{name} is off" for name in each.disabled),
        ]
        yield Mending(
            check="guard",
            subject=each.table,
            does=f"restores the write guard's triggers ({'; '.join(gaps)}). What was written meanwhile is "
            "not checked: `graph-migrator validate --data` and `graph-migrator audit verify --data` do that.",
        )


def _mend_guard(connection: Connection, table: str, by: str) -> None:
    found = {each.table: each for each in list_guards(connection)}
    if table not in found or found[table].complete:
        raise NothingToRepair("guard", table)
    if table == "graph_migrator.graphs":
        connection.execute(text("SELECT graph_migrator.guard_graphs_table()"))
    else:
        install_guard(connection, table, found[table].column)
    _record(connection, None, Mending(check="guard", subject=table, does="triggers restored"), by)


def _record(connection: Connection, graph: str | None, repair: Mending, by: str) -> None:
    connection.execute(
        text(
            "SELECT graph_migrator.record_done('repair', graph_migrator.graph_id_of(:graph), NULL, NULL, "
            "CAST(:outcome AS jsonb), :by)"
        ),
        {"graph": graph, "outcome": repair.model_dump_json(), "by": by},
    )
