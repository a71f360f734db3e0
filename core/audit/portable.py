"""A graph with its config and its history as one file, and that file imported elsewhere.

The file is a zip: ``graph.json`` says what it is, ``graph.jsonl`` holds nodes and edges, ``history.jsonl.gz`` the
migrations with their attempts and requests, one migration a line, as an archive has them. Where it is imported the
history becomes an archive: attempts keep their ids and hashes, the proof chain goes on from the last one, and `audit
verify --archive` checks it.
"""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, Engine, text

from graph_migrator.core.audit.archive import (
    CANONICAL,
    ArchiveFile,
    Manifest,
    counts_of,
    entries_of,
    load_manifest,
    sync_folder,
    verify_files,
    write_whole,
)
from graph_migrator.core.audit.chain import JsonNumber, archived_link
from graph_migrator.core.errors import IllegalTransition, InvalidRequest, UnknownGraph
from graph_migrator.core.interchange import ImportReport, export_graph, import_graph

_FILE = "migrations-00001.jsonl.gz"

_HOLD = """
SELECT id, slug, migration_id, partially_migrated IS NOT NULL AS partial,
       pg_advisory_xact_lock_shared(graph_migrator.lock_key(id)) IS NULL AS locked
FROM graph_migrator.graphs WHERE id = graph_migrator.graph_id_of(:graph)
"""
_GRAPH = """
SELECT id AS graph_id, slug, graph_type, version, config::text AS config, migration_id,
       partially_migrated IS NOT NULL AS partial
FROM graph_migrator.graphs WHERE id = :id
"""
_HISTORY = """
SELECT jsonb_build_object(
    'migration', to_jsonb(m),
    'attempts', (SELECT coalesce(jsonb_agg(to_jsonb(a) ORDER BY a.id), '[]')
                 FROM graph_migrator.hop_attempts a WHERE a.migration_id = m.id),
    'requests', (SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY r.task_id), '[]')
                 FROM graph_migrator.requests r WHERE r.migration_id = m.id))::text
FROM graph_migrator.migrations m WHERE m.graph_id = :id ORDER BY m.created_at, m.id
"""
_EARLIER = """
SELECT first_link, last_link, encode(previous, 'hex') AS previous, encode(hash, 'hex') AS hash
FROM graph_migrator.archived_links WHERE graph_id = :id ORDER BY last_link
"""
_ARCHIVE = """
INSERT INTO graph_migrator.archives (id, location, before, manifest, migrations, attempts, requests)
VALUES (:id, :location, :before, CAST(:manifest AS jsonb), :migrations, :attempts, :requests)
"""
_CONFIGURE = "UPDATE graph_migrator.graphs SET config = CAST(:config AS jsonb) WHERE id = :id"
_LINKS = """
INSERT INTO graph_migrator.archived_links (graph_id, first_link, last_link, previous, hash, archive_id)
VALUES (:graph, :first_link, :last_link, decode(:previous, 'hex'), decode(:hash, 'hex'), :archive)
"""


class Run(BaseModel):
    """Neighbouring links of the proof chain."""

    model_config = ConfigDict(frozen=True)

    first_link: int
    last_link: int
    previous: str | None
    hash: str


class PortableGraph(BaseModel):
    """What ``graph.json`` says."""

    model_config = ConfigDict(frozen=True)

    graph_id: UUID
    slug: str
    graph_type: str
    version: int
    config: str = Field(description="JSON, as Postgres writes it.")
    exported_at: datetime
    migrations: int
    attempts: int
    history_sha256: str = Field(description="Of `history.jsonl.gz`.")
    earlier: tuple[Run, ...] = Field(description="Links that are in archives of the database it comes from.")


def export_with_history(engine: Engine, graph: str, stream: IO[bytes]) -> PortableGraph:
    """Write a graph with config and history as one file. No migration can begin meanwhile.

    Raises:
        UnknownGraph: Nothing has this id or slug.
        IllegalTransition: A migration owns it, or it is partially migrated.
    """
    with engine.connect() as connection, connection.begin():
        held = connection.execute(text(_HOLD), {"graph": graph}).one_or_none()
        if held is None:
            raise UnknownGraph(graph)
        # Read again under the lock: a migration may have come between.
        row = connection.execute(text(_GRAPH), {"id": held.id}).one()
        if row.migration_id is not None or row.partial:
            state = "owned by a migration" if row.migration_id else "partially migrated"
            owner = str(row.migration_id) if row.migration_id else None
            raise IllegalTransition(row.slug, "export with its history", state, ["a graph at rest"], owner)
        connection.execute(text(CANONICAL))
        lines = [line for (line,) in connection.execute(text(_HISTORY), {"id": row.graph_id})]
        packed = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
        earlier = connection.execute(text(_EARLIER), {"id": row.graph_id}).mappings()
        about = PortableGraph(
            graph_id=row.graph_id,
            slug=row.slug,
            graph_type=row.graph_type,
            version=row.version,
            config=row.config,
            exported_at=datetime.now(UTC),
            migrations=len(lines),
            attempts=sum(counts_of(entry)[1] for entry in entries_of(packed)),
            history_sha256=hashlib.sha256(packed).hexdigest(),
            earlier=tuple(Run.model_validate(dict(each)) for each in earlier),
        )
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("graph.json", about.model_dump_json(indent=2))
            bundle.writestr("history.jsonl.gz", packed)
            with bundle.open("graph.jsonl", "w", force_zip64=True) as member:
                export_graph(engine, str(row.graph_id), member, format="jsonl")
    return about


def import_with_history(
    engine: Engine, path: Path, folder: Path, *, slug: str, graph_type: str, version: int
) -> ImportReport:
    """Make a new graph from such a file, with its config; its history becomes an archive in a new folder.

    Graph, config and history are there with one commit. The folder is written before it.

    Args:
        engine: The database, as the owner of the tables.
        path: The file.
        folder: New or empty: where the history is kept from now on.
        slug: What the graph is to be called.
        graph_type: Must be what the file says.
        version: Must be what the file says.

    Raises:
        InvalidRequest: The file is none of these, is damaged, or says otherwise; or the folder is in use.
        GraphExists: The slug is taken.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            about = PortableGraph.model_validate_json(bundle.read("graph.json"))
            packed = bundle.read("history.jsonl.gz")
            _require(path, about, packed, graph_type, version)
            if load_manifest(folder) is not None:
                raise InvalidRequest(str(folder), "it holds an archive already; choose a new folder")

            def keep_history(connection: Connection, graph_id: UUID) -> None:
                manifest = _write_archive(folder, about, packed, graph_id)
                connection.execute(text(_CONFIGURE), {"config": about.config, "id": graph_id})
                _register(connection, folder, manifest, about, graph_id)

            with bundle.open("graph.jsonl") as member:
                return import_graph(
                    engine,
                    member,
                    slug=slug,
                    graph_type=graph_type,
                    version=version,
                    format="jsonl",
                    before_commit=keep_history,
                )
    except (zipfile.BadZipFile, KeyError, ValidationError) as error:
        raise InvalidRequest(
            str(path), "it is no graph with its history (`export --with-history`)"
        ) from error


def _require(path: Path, about: PortableGraph, packed: bytes, graph_type: str, version: int) -> None:
    if hashlib.sha256(packed).hexdigest() != about.history_sha256:
        raise InvalidRequest(str(path), "its history is not what graph.json says")
    if (about.graph_type, about.version) != (graph_type, version):
        found = f"it holds a graph of type {about.graph_type!r} at v{about.version}"
        raise InvalidRequest(str(path), f"{found}, not of {graph_type!r} at v{version}")


def _write_archive(folder: Path, about: PortableGraph, packed: bytes, graph_id: UUID) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _FILE, packed)
    counts = [0, 0, 0]
    for entry in entries_of(packed):
        counts = [total + number for total, number in zip(counts, counts_of(entry), strict=True)]
    file = ArchiveFile(
        name=_FILE,
        sha256=about.history_sha256,
        migrations=counts[0],
        attempts=counts[1],
        requests=counts[2],
    )
    manifest = Manifest(
        id=uuid4(),
        before=about.exported_at,
        written_at=about.exported_at,
        files=(file,),
        renamed={about.graph_id: graph_id},
    )
    write_whole(folder / "manifest.json", manifest.model_dump_json(indent=2).encode())
    sync_folder(folder)
    verify_files(folder, manifest)
    return manifest


def _register(
    connection: Connection, folder: Path, manifest: Manifest, about: PortableGraph, graph_id: UUID
) -> None:
    file = manifest.files[0]
    connection.execute(
        text(_ARCHIVE),
        {
            "id": manifest.id,
            "location": str(folder.resolve()),
            "before": manifest.before,
            "manifest": manifest.model_dump_json(),
            "migrations": file.migrations,
            "attempts": file.attempts,
            "requests": file.requests,
        },
    )
    connection.execute(
        text("INSERT INTO graph_migrator.archived_graphs VALUES (:graph, :archive, :number)"),
        {"graph": graph_id, "archive": manifest.id, "number": file.migrations},
    )
    for run in (*about.earlier, *_runs(folder / _FILE)):
        connection.execute(
            text(_LINKS), {"graph": graph_id, "archive": manifest.id, **run.model_dump(mode="json")}
        )


def _runs(path: Path) -> list[Run]:
    """The links in a file as runs of neighbours."""
    attempts = [
        archived_link(attempt)
        for entry in entries_of(path.read_bytes(), number=JsonNumber)
        for attempt in entry["attempts"]
    ]
    runs: list[Run] = []
    for link in sorted(attempts, key=lambda each: each.number or 0):
        if link.number is None or link.hash is None:
            continue
        if runs and runs[-1].last_link == link.number - 1:
            runs[-1] = runs[-1].model_copy(update={"last_link": link.number, "hash": link.hash.hex()})
        else:
            previous = None if link.previous is None else link.previous.hex()
            runs.append(
                Run(first_link=link.number, last_link=link.number, previous=previous, hash=link.hash.hex())
            )
    return runs
