"""Moving settled migrations, their attempts and requests, out of the tables into compressed files.

An archive is a folder: ``migrations-00001.jsonl.gz`` and so on, one migration a line, and ``manifest.json`` with counts
and digests. Everything is written, read back and compared before one row is removed. The rows are removed a file at a
time, by the tables' owner, through the one function that can; `archive` on the same folder goes on where it was
interrupted.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, Engine, text

from graph_migrator.core.errors import ArchiveDamaged, InvalidRequest
from graph_migrator.core.inspection import metrics

YOUNGEST: Final = timedelta(days=1)
"""A call whose request is gone is not known any more: a message of it that is delivered again would act twice. So
requests stay for longer than any message can."""

_A_FILE = 5_000

_MIGRATIONS = """
SELECT m.id, m.graph_id, jsonb_build_object(
    'migration', to_jsonb(m),
    'attempts', (SELECT coalesce(jsonb_agg(to_jsonb(a) ORDER BY a.id), '[]')
                 FROM graph_migrator.hop_attempts a WHERE a.migration_id = m.id),
    'losses', (SELECT coalesce(jsonb_agg(to_jsonb(l) ORDER BY l.attempt_id), '[]') FROM graph_migrator.losses l
               JOIN graph_migrator.hop_attempts a ON a.id = l.attempt_id WHERE a.migration_id = m.id),
    'requests', (SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY r.task_id), '[]')
                 FROM graph_migrator.requests r WHERE r.migration_id = m.id))::text AS line
FROM graph_migrator.migrations m
WHERE m.id > :after AND graph_migrator.is_archivable(m, :before) ORDER BY m.id LIMIT :most
"""

# Calls that began nothing: refusals, and those that found nothing to do.
_REQUESTS = """
SELECT r.task_id, jsonb_build_object('request', to_jsonb(r))::text AS line FROM graph_migrator.requests r
WHERE r.task_id > :after AND r.migration_id IS NULL AND r.answered_at IS NOT NULL AND r.created_at < :before
ORDER BY r.task_id LIMIT :most
"""

CANONICAL = "SET LOCAL timezone = 'UTC'; SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'"
"""For a transaction: rows have the same text as JSON in every session, that of their hashes."""

Progress = Callable[[str, int], None]
"""Called with ``written`` or ``removed`` and the number of migrations so far."""


class ArchiveFile(BaseModel):
    """One file of an archive."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str = Field(description="Of the compressed file.")
    migrations: int
    attempts: int
    requests: int


class Manifest(BaseModel):
    """What an archive holds; ``manifest.json`` in its folder."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    before: datetime = Field(description="Everything in it ended before this moment.")
    written_at: datetime
    files: tuple[ArchiveFile, ...]
    renamed: dict[UUID, UUID] = Field(
        {}, description="Of a history that came with its graph from elsewhere: its id there, and here."
    )

    @property
    def migrations(self) -> int:
        """How many there are in all files."""
        return sum(file.migrations for file in self.files)


class ArchiveReport(BaseModel):
    """What `archive` did."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    folder: str
    files: int
    migrations: int = Field(description="Removed from the tables by this call; likewise below.")
    attempts: int
    requests: int


def archive(
    engine: Engine, before: datetime, folder: Path, *, on_progress: Progress | None = None
) -> ArchiveReport:
    """Write what ended before a moment to files, check them, and remove it from the tables.

    A folder that holds an archive already is finished: its files are checked and what they hold is removed.

    Args:
        engine: The database, as the owner of the tables.
        before: With a time zone; at least `YOUNGEST` ago.
        folder: New, empty, or that of an archive that was interrupted.
        on_progress: Called after each file.

    Raises:
        InvalidRequest: `before` is too young or the folder is in use. Nothing was changed.
        ArchiveDamaged: A file is not what its manifest says. Nothing (more) was removed.
    """
    say = on_progress or (lambda _what, _number: None)
    manifest = load_manifest(folder)
    if manifest is None:
        _require_old(before)
        manifest = _write(engine, before, folder, say)
    elif manifest.before != before:
        raise InvalidRequest(
            str(folder), f"it holds an archive of what ended before {manifest.before:%Y-%m-%d %H:%M:%S}Z"
        )
    verify_files(folder, manifest)
    return _remove(engine, folder, manifest, say)


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Read every file of an archive and compare digest and counts with the manifest.

    Raises:
        ArchiveDamaged: One differs or is missing.
    """
    for file in manifest.files:
        path = folder / file.name
        if not path.exists():
            raise ArchiveDamaged(str(path), "is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
            raise ArchiveDamaged(str(path), "has another digest than its manifest says")
        counts = [0, 0, 0]
        for entry in entries_of(path.read_bytes()):
            for place, number in enumerate(counts_of(entry)):
                counts[place] += number
        if counts != [file.migrations, file.attempts, file.requests]:
            raise ArchiveDamaged(str(path), "has other rows than its manifest says")


class ArchivedPart(BaseModel):
    """An archive that holds a part of a graph's history."""

    model_config = ConfigDict(frozen=True)

    archive_id: UUID
    location: str = Field(description="The folder, as it was named when it was written.")
    before: datetime
    migrations: int = Field(description="Of this graph.")


def archived_parts(connection: Connection, graph_id: UUID) -> list[ArchivedPart]:
    """Where the older part of a graph's history is, oldest first."""
    rows = connection.execute(
        text(
            "SELECT a.id AS archive_id, a.location, a.before, g.migrations FROM graph_migrator.archived_graphs g "
            "JOIN graph_migrator.archives a ON a.id = g.archive_id WHERE g.graph_id = :graph ORDER BY a.before"
        ),
        {"graph": graph_id},
    ).mappings()
    return [ArchivedPart.model_validate(dict(row)) for row in rows]


def _require_old(before: datetime) -> None:
    if before.tzinfo is None:
        raise InvalidRequest("before", "it needs a time zone")
    if before > datetime.now(UTC) - YOUNGEST:
        raise InvalidRequest("before", "it must be a day ago at least: younger calls may still be delivered")


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of the archive in a folder; None where there is none yet.

    Raises:
        InvalidRequest: The folder holds something else.
    """
    path = folder / "manifest.json"
    if path.exists():
        try:
            return Manifest.model_validate_json(path.read_text("utf-8"))
        except ValidationError as error:
            raise InvalidRequest(str(path), "it is no manifest of an archive") from error
    if folder.exists() and any(not each.name.endswith(".partial") for each in folder.iterdir()):
        raise InvalidRequest(
            str(folder), "it is not empty and holds no finished archive; choose a new folder"
        )
    return None


def _write(engine: Engine, before: datetime, folder: Path, say: Progress) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    _count_all(engine)
    files: list[ArchiveFile] = []
    partial: list[tuple[Path, Path]] = []
    written = 0
    with engine.connect() as connection:
        connection.execute(text(CANONICAL))
        for lines in _pieces(connection, before):
            name = f"migrations-{len(files) + 1:05}.jsonl.gz"
            path = folder / f"{name}.partial"
            _write_file(path, lines)
            counts = [
                sum(column) for column in zip(*(counts_of(json.loads(line)) for line in lines), strict=True)
            ]
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            files.append(
                ArchiveFile(
                    name=name, sha256=digest, migrations=counts[0], attempts=counts[1], requests=counts[2]
                )
            )
            partial.append((path, folder / name))
            written += counts[0]
            say("written", written)
    manifest = Manifest(id=uuid4(), before=before, written_at=datetime.now(UTC), files=tuple(files))
    unfinished = folder / "manifest.json.partial"
    write_whole(unfinished, manifest.model_dump_json(indent=2).encode())
    for path, final in partial:
        path.rename(final)
    unfinished.rename(folder / "manifest.json")  # last: with it, the archive is finished
    sync_folder(folder)
    return manifest


def _count_all(engine: Engine) -> None:
    """Have monitoring count what will be removed."""
    up_to = None
    while True:
        with engine.begin() as connection:
            now = metrics.advance(connection)
        if now == up_to:
            return
        up_to = now


def _pieces(connection: Connection, before: datetime) -> Iterator[list[str]]:
    """The lines of one file after another."""
    last: Any = UUID(int=0)
    while rows := _read(connection, _MIGRATIONS, last, before):
        yield [row.line for row in rows]
        last = rows[-1].id
    last = ""
    while rows := _read(connection, _REQUESTS, last, before):
        yield [row.line for row in rows]
        last = rows[-1].task_id


def _read(connection: Connection, statement: str, after: Any, before: datetime) -> list[Any]:
    found = connection.execute(text(statement), {"after": after, "before": before, "most": _A_FILE})
    return list(found.all())


def _write_file(path: Path, lines: list[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    write_whole(path, gzip.compress(content, mtime=0))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is on disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def entries_of(packed: bytes, *, number: Callable[[str], Any] | None = None) -> Iterator[dict[str, Any]]:
    """What a file of an archive holds, a migration or a request each; `number` reads its numbers."""
    with gzip.open(io.BytesIO(packed), "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line, parse_int=number, parse_float=number)


def counts_of(entry: dict[str, Any]) -> tuple[int, int, int]:
    """Migrations, attempts and requests in one entry."""
    if "request" in entry:
        return 0, 0, 1
    return 1, len(entry["attempts"]), len(entry["requests"])


def _remove(engine: Engine, folder: Path, manifest: Manifest, say: Progress) -> ArchiveReport:
    removed = [0, 0, 0]
    for file in manifest.files:
        entries = list(entries_of((folder / file.name).read_bytes()))
        with engine.begin() as connection:
            row = connection.execute(
                text(
                    "SELECT * FROM graph_migrator.remove_archived(:archive, :location, :before, "
                    "CAST(:manifest AS jsonb), CAST(:migrations AS uuid[]), CAST(:requests AS text[]))"
                ),
                {
                    "archive": manifest.id,
                    "location": str(folder.resolve()),
                    "before": manifest.before,
                    "manifest": manifest.model_dump_json(),
                    "migrations": [e["migration"]["id"] for e in entries if "migration" in e],
                    "requests": [e["request"]["task_id"] for e in entries if "request" in e],
                },
            ).one()
        for place, number in enumerate(row):
            removed[place] += number
        say("removed", removed[0])
    return ArchiveReport(
        id=manifest.id,
        folder=str(folder),
        files=len(manifest.files),
        migrations=removed[0],
        attempts=removed[1],
        requests=removed[2],
    )
