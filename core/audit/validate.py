"""Whether what the database holds fits what this release knows. Nothing is changed.

Each check is one statement over the tables or their partial indexes, so that a deploy pipeline can run it against a
million graphs. What breaks the protocol's promises is `wrong`; what an operator should know is `information`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, text

from graph_migrator.core.audit.data import breaking_rows
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.inspection.doctor import Level, guards
from graph_migrator.core.inspection.graphs import UNREACHABLE
from graph_migrator.core.store.schema import require_current

EXAMPLES = 3
"""At most this many graphs are named for each finding."""


class Severity(StrEnum):
    """How a finding counts: `wrong` makes the command fail, `information` does not."""

    INFORMATION = "information"
    WRONG = "wrong"


class Discrepancy(BaseModel):
    """One way in which database and release differ."""

    model_config = ConfigDict(frozen=True)

    check: str = Field(description="For scripts.")
    severity: Severity
    found: str = Field(description="What differs, in a sentence.")
    count: int = Field(description="How many graphs, hops, rows or tables.")
    examples: tuple[str, ...] = Field((), description="The first of them by name.")
    remedy: str | None = Field(None, description="What to do.")


class Validation(BaseModel):
    """Everything that `validate` found."""

    model_config = ConfigDict(frozen=True)

    graphs: int = Field(description="How many graphs there are.")
    discrepancies: tuple[Discrepancy, ...]

    @property
    def is_valid(self) -> bool:
        """Whether nothing is wrong; information does not count."""
        return all(each.severity is Severity.INFORMATION for each in self.discrepancies)


def validate(
    engine: Engine, types: dict[str, GraphType], *, data: bool = False, sample: int | None = None
) -> Validation:
    """Compare the database with the graph types of this process.

    Args:
        engine: The database.
        types: The graph types that this process knows, by name.
        data: Also hold the properties of nodes and edges against the models of their graph's version. Reads them all.
        sample: With `data`: check at most this many graphs of each type and version, chosen at random.

    Raises:
        SchemaOutdated: The tables are not those of this release.
    """
    with engine.connect() as connection:
        require_current(connection)
        connection.rollback()
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        known = {name: [kind.oldest, kind.newest] for name, kind in types.items()}
        count = connection.execute(text("SELECT count(*) FROM graph_migrator.graphs")).scalar_one()
        found = [
            *_versions(connection, known),
            *_code(connection, types),
            *_claims(connection),
            *_partially_migrated(connection),
            *_checkpoints(connection),
            *_contradictions(connection),
            *_guards(connection, types),
            *(_data(connection, types, sample) if data else ()),
        ]
    return Validation(graphs=count, discrepancies=tuple(found))


_BY_VERSION = f"""
SELECT graph_type, version, number,
       (SELECT array_agg(slug) FROM (SELECT slug FROM graph_migrator.graphs n WHERE n.graph_type = g.graph_type
                                     AND n.version = g.version LIMIT :examples) named) AS examples
FROM (SELECT graph_type, version, count(*) AS number FROM graph_migrator.graphs GROUP BY 1, 2) g
WHERE NOT CAST(:known AS jsonb) ? graph_type OR {UNREACHABLE}
ORDER BY graph_type, version
"""  # noqa: S608 - own text


def _versions(connection: Connection, known: dict[str, list[int]]) -> Iterator[Discrepancy]:
    """Graphs of unknown types, and graphs at versions that their type does not know."""
    rows = connection.execute(text(_BY_VERSION), {"known": json.dumps(known), "examples": EXAMPLES})
    for kind, version, number, examples in rows:
        if kind not in known:
            yield Discrepancy(
                check="types",
                severity=Severity.WRONG,
                found=f"graph type {kind!r} is not known here; graphs of it are at v{version}",
                count=number,
                examples=tuple(examples),
                remedy="Name the type in GRAPH_MIGRATOR_TYPES, or install its package.",
            )
            continue
        oldest, newest = known[kind]
        yield Discrepancy(
            check="unreachable",
            severity=Severity.WRONG,
            found=f"graphs of {kind!r} are at v{version}; this release knows v{oldest} to v{newest}",
            count=number,
            examples=tuple(examples),
            remedy="Deploy a release whose type knows that version.",
        )


LATEST = 100_000
"""The latest attempts that are asked with which code their hop was applied."""

_APPLIED = """
SELECT DISTINCT m.graph_type, a.hop_name, a.from_version, a.to_version, a.fingerprint
FROM (SELECT * FROM graph_migrator.hop_attempts ORDER BY id DESC LIMIT :latest) a
JOIN graph_migrator.migrations m ON m.id = a.migration_id
WHERE a.status = 'succeeded' ORDER BY 1, 3, 4
"""


def _code(connection: Connection, types: dict[str, GraphType]) -> Iterator[Discrepancy]:
    """Hops that were applied with code other than this release's."""
    changed = []
    for kind, name, start, to, fingerprint in connection.execute(text(_APPLIED), {"latest": LATEST}):
        if kind not in types:
            continue
        try:
            hop = types[kind].directed(start, to)
        except LookupError:
            changed.append(f"{kind} v{start}→v{to} {name} (gone)")
            continue
        if hop.fingerprint != fingerprint:
            changed.append(f"{kind} v{start}→v{to} {name}")
    changed = list(dict.fromkeys(changed))
    if changed:
        yield Discrepancy(
            check="code",
            severity=Severity.INFORMATION,
            found="hops were applied with code that this release has changed since; their graphs stay as they are",
            count=len(changed),
            examples=tuple(changed[:EXAMPLES]),
        )


_ORPHANED = """
SELECT g.slug FROM graph_migrator.graphs g JOIN graph_migrator.migrations m ON m.id = g.migration_id
WHERE m.status IN ('succeeded', 'cancelled', 'released') OR m.graph_id <> g.id ORDER BY g.slug
"""
_UNCLAIMED = """
SELECT g.slug FROM graph_migrator.migrations m JOIN graph_migrator.graphs g ON g.id = m.graph_id
WHERE m.status IN ('queued', 'running', 'pausing', 'paused', 'cancelling') AND g.migration_id IS DISTINCT FROM m.id
ORDER BY g.slug
"""


def _claims(connection: Connection) -> Iterator[Discrepancy]:
    """Claims without a live or failed migration, and live migrations whose graph somebody else may write."""
    yield from _named(
        connection,
        _ORPHANED,
        "claims",
        "a graph is claimed by a migration that has ended, or by one of another graph",
        "Triggers were disabled while this was written. `graph-migrator repair` lists what can be mended safely.",
    )
    yield from _named(
        connection,
        _UNCLAIMED,
        "claims",
        "a live migration does not own its graph",
        "Triggers were disabled while this was written. `graph-migrator cancel` the migration, then migrate again.",
    )


def _partially_migrated(connection: Connection) -> Iterator[Discrepancy]:
    yield from _named(
        connection,
        "SELECT slug FROM graph_migrator.graphs WHERE partially_migrated IS NOT NULL ORDER BY slug",
        "partially-migrated",
        "a graph was released in the middle of a batched hop; its rows are of two versions",
        "`graph-migrator retry GRAPH` finishes the hop; `graph-migrator status GRAPH` says more.",
    )


def _checkpoints(connection: Connection) -> Iterator[Discrepancy]:
    yield from _named(
        connection,
        "SELECT graph FROM graph_migrator.ownerless_checkpoints() ORDER BY 1",
        "checkpoints",
        "a checkpoint belongs to a migration that will not go on",
        "It is never read again, and goes with its migration when that is archived; "
        "`graph-migrator repair checkpoints GRAPH` deletes it now.",
        Severity.INFORMATION,
    )


# Idle graphs only: a migration may stand between two of its commits at this moment. `import --replace` gives a graph a
# version of its own.
_CONTRADICTIONS = """
SELECT g.slug || ' (at v' || g.version || ', last applied to v' || a.to_version || ')'
FROM graph_migrator.graphs g CROSS JOIN LATERAL (
    SELECT to_version, finished_at FROM graph_migrator.hop_attempts
    WHERE graph_id = g.id AND shard IS NULL AND status IN ('succeeded', 'skipped') ORDER BY id DESC LIMIT 1) a
WHERE g.migration_id IS NULL AND a.to_version <> g.version AND NOT EXISTS (
    SELECT FROM graph_migrator.requests r
    WHERE r.graph_id = g.id AND r.verb = 'replace' AND r.target = g.version AND r.answered_at > a.finished_at)
ORDER BY g.slug
"""


def _contradictions(connection: Connection) -> Iterator[Discrepancy]:
    yield from _named(
        connection,
        _CONTRADICTIONS,
        "versions",
        "a graph's version is not that of the last hop that was applied to it",
        "Somebody changed the version behind the guard's back. Compare the data with `graph-migrator history GRAPH`.",
    )


def _guards(connection: Connection, types: dict[str, GraphType]) -> Iterator[Discrepancy]:
    for finding in guards(connection, types):
        if finding.level is not Level.OK:
            yield Discrepancy(
                check="guard", severity=Severity.WRONG, found=finding.found, count=1, remedy=finding.remedy
            )


def _data(connection: Connection, types: dict[str, GraphType], sample: int | None) -> Iterator[Discrepancy]:
    """Rows that the models of their graph's version do not take."""
    counted: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    for kind, row in breaking_rows(connection, types, sample):
        counted[kind] = counted.get(kind, 0) + 1
        if counted[kind] <= EXAMPLES:
            examples.setdefault(kind, []).append(row)
    for kind, number in counted.items():
        yield Discrepancy(
            check="data",
            severity=Severity.WRONG,
            found=f"rows of {kind} do not fit the models of that version",
            count=number,
            examples=tuple(examples[kind]),
            remedy="Correct them with `graph_writer`, or with a hop; the next hop that validates them fails otherwise.",
        )


def _named(
    connection: Connection,
    statement: str,
    check: str,
    found: str,
    remedy: str,
    severity: Severity = Severity.WRONG,
) -> Iterator[Discrepancy]:
    """A finding about as many rows as the statement has, the first of them named; none without rows."""
    counted: Any = connection.execute(
        text(
            f"WITH every AS MATERIALIZED ({statement}) SELECT count(*) AS number, "  # noqa: S608 - own statements
            "(SELECT array_agg(name) FROM (SELECT * FROM every LIMIT :examples) first_ones (name)) AS names FROM every"
        ),
        {"examples": EXAMPLES},
    ).one()
    if counted.number:
        yield Discrepancy(
            check=check,
            severity=severity,
            found=found,
            count=counted.number,
            examples=tuple(counted.names),
            remedy=remedy,
        )
