"""Checking the proof chains of all graphs, and printing their heads.

One snapshot, streamed in the order of graph and link: memory does not grow with the audit.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, Row, text

from graph_migrator.core.audit.archive import CANONICAL, Manifest, entries_of, load_manifest, verify_files
from graph_migrator.core.audit.chain import (
    ArchivedRun,
    Chain,
    JsonNumber,
    Link,
    Suspicion,
    Tampering,
    archived_link,
    check_run,
    suspicion,
)
from graph_migrator.core.audit.digests import DataVerification
from graph_migrator.core.errors import ArchiveDamaged, InvalidRequest
from graph_migrator.core.store.schema import require_current

MAX_NAMED = 1_000
"""At most this many places are named; the others are counted."""

_CHUNK = 1_000

# Only functions of PostgreSQL's own: one of ours may have been replaced.
_LINKS = """
SELECT graph_id, link, id, previous, hash, (jsonb_strip_nulls(to_jsonb(a) - 'hash'))::text AS content,
       NULL::integer AS first_link, NULL::uuid AS archive_id
FROM graph_migrator.hop_attempts a WHERE link IS NOT NULL
UNION ALL
SELECT graph_id, last_link, NULL, previous, hash, NULL, first_link, archive_id FROM graph_migrator.archived_links
ORDER BY 1, 2
"""
_UNLINKED = """
SELECT graph_id, link, id, previous, hash, '' AS content FROM graph_migrator.hop_attempts
WHERE link IS NULL AND status <> 'running' ORDER BY id
"""
# A chain's end can be cut off without a trace in the chain; the migration that it belonged to is still there.
_UNPROVEN = """
SELECT m.id, m.graph_id, m.to_version FROM graph_migrator.migrations m
WHERE m.status = 'succeeded' AND NOT EXISTS (
    SELECT FROM graph_migrator.hop_attempts a WHERE a.migration_id = m.id AND a.to_version = m.to_version
    AND a.shard IS NULL AND a.status IN ('succeeded', 'skipped'))
"""
_HEADS = """
SELECT DISTINCT ON (graph_id) graph_id, link, hash FROM (
    SELECT graph_id, link, hash FROM graph_migrator.hop_attempts WHERE link IS NOT NULL
    UNION ALL SELECT graph_id, last_link, hash FROM graph_migrator.archived_links) links
ORDER BY graph_id, link DESC
"""
_RUNS = """
SELECT graph_id, first_link, last_link, previous, hash FROM graph_migrator.archived_links WHERE archive_id = :archive
"""


class Heads(BaseModel):
    """The ends of all chains, as one digest."""

    model_config = ConfigDict(frozen=True)

    graphs: int = Field(description="Graphs with finished attempts, deleted ones among them.")
    attempts: int = Field(description="Finished attempts, archived ones among them.")
    digest: str = Field(description="SHA-256 of the lines that `audit head --to` writes.")


class Verification(BaseModel):
    """What `verify_chains` found."""

    model_config = ConfigDict(frozen=True)

    graphs: int = Field(description="Chains that were checked.")
    attempts: int = Field(description="Finished attempts in the tables.")
    archived: int = Field(description="Finished attempts in archives.")
    archived_unread: int = Field(description="Of those: in archives whose files were not given.")
    digest: str = Field(description="Of the heads, as `audit head` prints it.")
    count: int = Field(description="How many places are not as they were written.")
    suspicions: tuple[Suspicion, ...] = Field(description=f"The first {MAX_NAMED:,} of them.")
    data: DataVerification | None = Field(None, description="Whether graphs are what their last hop left.")


def heads(engine: Engine, write: Callable[[str], object] | None = None) -> Heads:
    """The last link of every chain.

    Args:
        engine: The database.
        write: Called with each line: graph id, number of the link and hash, in the order of the ids.

    Raises:
        SchemaOutdated: The tables are not those of this release.
    """
    digest = hashlib.sha256()
    graphs = attempts = 0
    with _snapshot(engine) as connection:
        for row in _stream(connection, _HEADS):
            line = _line(row.graph_id, row.link, bytes(row.hash))
            digest.update(line.encode())
            graphs, attempts = graphs + 1, attempts + row.link
            if write is not None:
                write(line)
    return Heads(graphs=graphs, attempts=attempts, digest=digest.hexdigest())


def verify_chains(
    engine: Engine, *, kept: Iterable[str] | None = None, archives: Sequence[Path] = ()
) -> Verification:
    """Check that every finished attempt is as it was written.

    Args:
        engine: The database.
        kept: Lines that `heads` wrote earlier. Without them, rows missing at the end of a chain are found only where
            their migration is still there.
        archives: Folders of archives whose rows are to be checked, too.

    Raises:
        SchemaOutdated: The tables are not those of this release.
        InvalidRequest: A line is malformed, or a folder holds no archive of this database.
        ArchiveDamaged: A file of an archive is not what its manifest says.
    """
    found = _Found()
    with _snapshot(engine) as connection:
        totals = _chains(connection, _Kept(kept), found)
        for row in connection.execute(text(_UNLINKED)):
            found.extend(Chain(row.graph_id).add(_link(row)))
        found.extend(map(_unproven, connection.execute(text(_UNPROVEN))))
        read = sum(_verify_archive(connection, folder, found) for folder in archives)
    return Verification(
        graphs=totals.graphs,
        attempts=totals.attempts,
        archived=totals.archived,
        archived_unread=totals.archived - read,
        digest=totals.digest.hexdigest(),
        count=found.count,
        suspicions=tuple(found.named),
    )


class _Found:
    def __init__(self) -> None:
        self.count = 0
        self.named: list[Suspicion] = []

    def extend(self, suspicions: Iterable[Suspicion]) -> None:
        for each in suspicions:
            self.count += 1
            if len(self.named) < MAX_NAMED:
                self.named.append(each)


class _Totals:
    def __init__(self) -> None:
        self.graphs = self.attempts = self.archived = 0
        self.digest = hashlib.sha256()


class _Kept:
    """The lines of earlier heads, read beside the chains: both are in the order of the graphs' ids."""

    def __init__(self, lines: Iterable[str] | None) -> None:
        self._lines = enumerate(lines or (), start=1)
        self._next = self._read()

    def up_to(self, graph: UUID | None) -> Iterator[Chain]:
        """Chains of graphs before this one that were kept; all that are left where it is None."""
        while self._next is not None and (graph is None or self._next[0] < graph):
            yield Chain(self._next[0], self._next[1:])
            self._next = self._read()

    def of(self, graph: UUID) -> tuple[int, bytes] | None:
        """What was kept of this graph; asked once for each."""
        if self._next is None or self._next[0] != graph:
            return None
        found, self._next = self._next[1:], self._read()
        return found

    def _read(self) -> tuple[UUID, int, bytes] | None:
        for number, line in self._lines:
            try:
                graph, link, hash_ = line.split()
                return UUID(graph), int(link), bytes.fromhex(hash_)
            except ValueError as error:
                reason = "it is no line of `graph-migrator audit head --to FILE`"
                raise InvalidRequest(f"line {number} of the heads", reason) from error
        return None


def _chains(connection: Connection, kept: _Kept, found: _Found) -> _Totals:
    totals = _Totals()
    for graph, rows in itertools.groupby(_stream(connection, _LINKS), key=lambda row: row.graph_id):
        for missing in kept.up_to(graph):
            found.extend(missing.end())
        chain = Chain(graph, kept.of(graph))
        for row in rows:
            if row.archive_id is not None:
                found.extend(chain.add_archived(_run(row, row.link, row.archive_id)))
                totals.archived += row.link - row.first_link + 1
            else:
                found.extend(chain.add(_link(row)))
                totals.attempts += 1
        found.extend(chain.end())
        totals.graphs += 1
        totals.digest.update(_line(graph, chain.last, chain.hash or b"").encode())
    for missing in kept.up_to(None):
        found.extend(missing.end())
    return totals


def _verify_archive(connection: Connection, folder: Path, found: _Found) -> int:
    """Check the rows in the files of an archive; returns how many there are."""
    manifest = load_manifest(folder)
    if manifest is not None and not manifest.files:  # nothing was old enough: such an archive is not recorded
        return 0
    recorded = (
        manifest
        and connection.execute(
            text("SELECT manifest FROM graph_migrator.archives WHERE id = :id"), {"id": manifest.id}
        ).scalar_one_or_none()
    )
    if manifest is None or recorded is None:
        raise InvalidRequest(str(folder), "it holds no archive of this database")
    if Manifest.model_validate(recorded) != manifest:
        raise ArchiveDamaged(str(folder / "manifest.json"), "is not the manifest that the database has of it")
    verify_files(folder, manifest)
    runs: dict[UUID, list[ArchivedRun]] = {}
    for row in connection.execute(text(_RUNS), {"archive": manifest.id}):
        runs.setdefault(row.graph_id, []).append(_run(row, row.last_link, manifest.id))
    read = 0
    for file in manifest.files:
        for there, links in _links_of(folder / file.name).items():
            graph = manifest.renamed.get(there, there)
            read += len(links)
            _verify_runs(graph, links, runs.get(graph, []), found)
    if not manifest.renamed:  # a history from elsewhere may have left its older part there
        found.extend(_absent(graph, run) for graph, left in runs.items() for run in left)
    return read


def _verify_runs(graph: UUID, links: dict[int, Link], runs: list[ArchivedRun], found: _Found) -> None:
    """A run is what one file holds of neighbouring links; those that are found leave the list."""
    for run in list(runs):
        held = [links.pop(number) for number in range(run.first, run.last + 1) if number in links]
        if held:
            runs.remove(run)
            found.extend(check_run(graph, run, held))
    for link in links.values():
        strange = "it is in the archive's files, and the database does not know it as archived"
        found.extend([suspicion(Tampering.INSERTED, graph, link, strange)])


def _links_of(path: Path) -> dict[UUID, dict[int, Link]]:
    links: dict[UUID, dict[int, Link]] = {}
    for entry in entries_of(path.read_bytes(), number=JsonNumber):
        for attempt in entry.get("attempts", ()):
            link = archived_link(attempt)
            links.setdefault(UUID(attempt["graph_id"]), {})[link.number or 0] = link
    return links


def _link(row: Row[Any]) -> Link:
    return Link(
        attempt_id=row.id,
        number=row.link,
        previous=None if row.previous is None else bytes(row.previous),
        hash=None if row.hash is None else bytes(row.hash),
        content=row.content,
    )


def _run(row: Row[Any], last: int, archive: UUID) -> ArchivedRun:
    previous = None if row.previous is None else bytes(row.previous)
    return ArchivedRun(
        first=row.first_link, last=last, previous=previous, hash=bytes(row.hash), archive_id=archive
    )


def _absent(graph: UUID, run: ArchivedRun) -> Suspicion:
    return Suspicion(
        kind=Tampering.REMOVED,
        graph_id=graph,
        first_link=run.first,
        last_link=run.last,
        found="archived, and the archive's files do not hold them",
    )


def _unproven(row: Row[Any]) -> Suspicion:
    return Suspicion(
        kind=Tampering.REMOVED,
        graph_id=row.graph_id,
        first_link=0,
        last_link=0,
        found=f"migration {row.id} succeeded, and no attempt of its last hop (to v{row.to_version}) is there",
    )


def _line(graph: UUID, number: int, hash_: bytes) -> str:
    return f"{graph} {number} {hash_.hex()}\n"


def _stream(connection: Connection, statement: str) -> Iterator[Row[Any]]:
    return iter(connection.execute(text(statement), execution_options={"yield_per": _CHUNK}))


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        require_current(connection)
        connection.rollback()
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        connection.execute(text(CANONICAL))
        yield connection
