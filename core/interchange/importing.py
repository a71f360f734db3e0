"""Import: one file becomes one graph, or nothing."""

from __future__ import annotations

import json
import os
import re
import time
from typing import IO, Any, Final
from uuid import UUID, uuid4

import psycopg2
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine

from graph_migrator.core.errors import GraphExists, InvalidRequest
from graph_migrator.core.interchange.exact_json import encode
from graph_migrator.core.interchange.input_file import Format, InputFile, open_input
from graph_migrator.core.interchange.json_lines import read_json_lines
from graph_migrator.core.interchange.loading import Loader, Progress
from graph_migrator.core.interchange.node_link import NodeLinkReader

_SLUG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_GRAPH_TYPE: Final = re.compile(r"[a-z0-9_-]{1,63}")
_NEWEST: Final = 2**31 - 1

_DECLARE: Final = """
SELECT set_config('client_encoding', 'UTF8', true), set_config('graph_migrator.versions', %s, true)
"""
# changed_at is the beginning of this transaction: no writer that began earlier may touch the graph.
_CREATE: Final = """
INSERT INTO graph_migrator.graphs (id, slug, graph_type, version, changed_at) VALUES (%s, %s, %s, %s, now())
ON CONFLICT (slug) DO NOTHING
"""
_CONFIGURE: Final = "UPDATE graph_migrator.graphs SET config = %s::jsonb WHERE id = %s"


class ImportReport(BaseModel):
    """What was imported."""

    model_config = ConfigDict(frozen=True)

    graph_id: UUID
    slug: str
    nodes: int
    edges: int
    seconds: float


def import_graph(
    engine: Engine,
    path_or_stream: str | os.PathLike[str] | IO[bytes],
    *,
    slug: str,
    graph_type: str,
    version: int,
    format: str | None = None,
    on_progress: Progress | None = None,
) -> ImportReport:
    """Make a new graph from a file, in one transaction. Memory does not grow with the file.

    Args:
        engine: The database; its schema must be current.
        path_or_stream: A path, or a binary stream, which need not be seekable and is left open. Gzip is
            unpacked.
        slug: The new graph's name.
        graph_type: Its type; whether the type is known is for the caller to check.
        version: The version of the type that the data has, at least 1.
        format: ``node-link`` or ``jsonl``; None guesses from the suffix, else from the first line.
        on_progress: Called after every chunk with the nodes and edges loaded so far. What it raises ends
            the import, and nothing is kept.

    Returns:
        The new graph's id and counts.

    Raises:
        InvalidRequest: An argument is malformed, or the file cannot be read.
        GraphExists: The slug is taken.
        InvalidRecord: A record is malformed, or its id is used twice.
        DanglingEdges: Edges lead to nodes that the file does not hold.
    """
    _check_request(slug, graph_type, version)
    started = time.perf_counter()
    with open_input(path_or_stream, format) as (source, found):
        reading = engine.execution_options(isolation_level="READ COMMITTED").connect()
        with reading as connection, connection.begin():
            cursor: Any = connection.connection.cursor()
            cursor.execute(_DECLARE, (json.dumps({graph_type: version}),))
            graph_id = _create(cursor, slug, graph_type, version)
            loader = Loader(cursor, graph_id, source, on_progress)
            if found is Format.JSON_LINES:
                loader.load(read_json_lines(source))
            else:
                reader = NodeLinkReader(source)
                loader.load(reader.records())
                _configure(cursor, graph_id, source, reader.attributes)
    return ImportReport(
        graph_id=graph_id,
        slug=slug,
        nodes=loader.nodes,
        edges=loader.edges,
        seconds=time.perf_counter() - started,
    )


def _check_request(slug: str, graph_type: str, version: int) -> None:
    if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
        reason = "must be 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        raise InvalidRequest("slug", f"{reason}, not {slug!r}")
    if _UUID.fullmatch(slug):
        raise InvalidRequest("slug", f"must not look like a UUID, as {slug!r} does")
    if not isinstance(graph_type, str) or not _GRAPH_TYPE.fullmatch(graph_type):
        reason = "must be 1 to 63 lower-case letters, digits, '_' or '-'"
        raise InvalidRequest("graph_type", f"{reason}, not {graph_type!r}")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= _NEWEST:
        raise InvalidRequest("version", f"must be a whole number of at least 1, not {version!r}")


def _create(cursor: Any, slug: str, graph_type: str, version: int) -> UUID:
    graph_id = uuid4()
    cursor.execute(_CREATE, (graph_id, slug, graph_type, version))
    if not cursor.rowcount:
        raise GraphExists(slug)
    return graph_id


def _configure(cursor: Any, graph_id: UUID, source: InputFile, attributes: dict[str, Any]) -> None:
    try:
        cursor.execute(_CONFIGURE, (encode(attributes), graph_id))
    except psycopg2.DataError as error:
        reason = f"the attributes are refused by Postgres: {error.diag.message_primary}"
        raise source.invalid(None, "document", reason) from error
