"""Import: one file becomes one graph, or nothing."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import IO, Any, Final, NamedTuple
from uuid import UUID, uuid4

import psycopg2
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Engine

from graph_migrator.core.errors import (
    DanglingEdges,
    GraphExists,
    GraphMigratorError,
    InvalidRecord,
    InvalidRequest,
)
from graph_migrator.core.interchange.dialect import Dialect
from graph_migrator.core.interchange.exact_json import encode, negative_zeros
from graph_migrator.core.interchange.input_file import Faults, InputFile, open_input
from graph_migrator.core.interchange.loading import Loader, Progress
from graph_migrator.core.interchange.node_link import NodeLinkReader
from graph_migrator.core.interchange.readers import reader_of
from graph_migrator.core.interchange.records import Choices
from graph_migrator.core.interchange.replacing import let_writers_in, open_replacement

Source = str | os.PathLike[str] | IO[bytes]

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
    """What was imported.

    Attributes:
        dialect: What the file was written in.
        negative_zeros: How many numbers were ``-0.0`` and are stored as ``0.0``.
    """

    model_config = ConfigDict(frozen=True)

    graph_id: UUID
    slug: str
    dialect: Dialect
    nodes: int
    edges: int
    negative_zeros: int
    seconds: float


class CheckReport(BaseModel):
    """What a check has found. Nothing was imported.

    Attributes:
        dialect: What the file is written in; None where that is the fault.
        nodes: How many nodes could be imported.
        edges: How many edges could be.
        count: How many faults there are.
        faults: The first of them, 100 at most.
    """

    model_config = ConfigDict(frozen=True)

    dialect: Dialect | None
    nodes: int
    edges: int
    negative_zeros: int
    count: int
    faults: list[str]


class _Target(NamedTuple):
    slug: str
    graph_type: str
    version: int
    replace: bool = False
    requested_by: str | None = None


class _Outcome(NamedTuple):
    graph_id: UUID
    dialect: Dialect
    loader: Loader


def import_graph(
    engine: Engine,
    path_or_stream: Source,
    *,
    slug: str,
    graph_type: str,
    version: int,
    format: str | None = None,
    edges: Source | None = None,
    labels_property: str | None = None,
    columns: Mapping[str, str] | None = None,
    replace: bool = False,
    requested_by: str | None = None,
    on_progress: Progress | None = None,
    before_commit: Callable[[Connection, UUID], None] | None = None,
) -> ImportReport:
    """Make a new graph from a file, in one transaction. Memory does not grow with the file.

    Args:
        engine: The database; its schema must be current.
        path_or_stream: A path, or a binary stream, which need not be seekable and is left open. Gzip is
            unpacked.
        slug: The new graph's name.
        graph_type: Its type; whether the type is known is for the caller to check.
        version: The version of the type that the data has, at least 1.
        format: The name of a `Dialect`; None recognises it by the file's content.
        edges: For CSV, the file with the edges.
        labels_property: The property that keeps a node's labels after the first. None refuses nodes with
            several.
        columns: For CSV, which header holds a field: ``{"source": "from_user"}``.
        replace: Give the data of the graph that has this slug a new content and version instead. Id, slug, type and
            history stay; nodes, edges and attributes are the file's alone. Readers see the old graph until the end.
        requested_by: Who replaces it; recorded.
        on_progress: Called after every chunk with the nodes and edges loaded so far. What it raises ends
            the import, and nothing is kept.
        before_commit: Called in the import's transaction with its connection and the graph's id, when all is loaded.
            What it raises ends the import likewise.

    Returns:
        The new graph's id and counts.

    Raises:
        InvalidRequest: An argument is malformed, or the file cannot be read.
        GraphExists: The slug is taken.
        UnknownGraph, GraphReadOnly, OpenWriteTransactions: There is nothing to replace, or it cannot be now.
        InvalidRecord: A record is malformed, its id is used twice, or the file's dialect is not read.
        DanglingEdges: Edges lead to nodes that the file does not hold.
    """
    target = _Target(slug, graph_type, version, replace, requested_by)
    _check_request(target)
    started = time.perf_counter()
    choices = Choices(labels_property, columns or {})
    graph_id, dialect, loader = _run(
        engine, path_or_stream, edges, format, target, choices, on_progress, before_commit=before_commit
    )
    if replace:
        let_writers_in(engine)
    return ImportReport(
        graph_id=graph_id,
        slug=slug,
        dialect=dialect,
        nodes=loader.nodes,
        edges=loader.edges,
        negative_zeros=loader.negative_zeros,
        seconds=time.perf_counter() - started,
    )


def check_graph_file(
    engine: Engine,
    path_or_stream: Source,
    *,
    slug: str,
    graph_type: str,
    version: int,
    format: str | None = None,
    edges: Source | None = None,
    labels_property: str | None = None,
    columns: Mapping[str, str] | None = None,
    replace: bool = False,
    on_progress: Progress | None = None,
) -> CheckReport:
    """Find all faulty records of a file, not only the first. Nothing is imported.

    It is an import that is rolled back, so it finds what an import would. An edge to a node that is itself
    faulty counts as a fault. JSON whose syntax is broken is read up to there.

    Args:
        engine: As for `import_graph`, like all other arguments.
        path_or_stream: The file.
        slug: The graph's name, which must be free without `replace`.
        graph_type: Its type.
        version: The version that the data has.
        format: The name of a `Dialect`; None recognises it by the file's content.
        edges: For CSV, the file with the edges.
        labels_property: The property that keeps a node's labels after the first.
        columns: For CSV, which header holds a field.
        replace: The graph is there, and its data would be replaced.
        on_progress: Called after every chunk with the nodes and edges that are sound so far.

    Returns:
        The faults, and the counts of what is sound.

    Raises:
        InvalidRequest: An argument is malformed, or the file cannot be read.
        GraphExists: The slug is taken.
        UnknownGraph, GraphReadOnly, OpenWriteTransactions: There is nothing to replace, or it cannot be now.
    """
    target = _Target(slug, graph_type, version, replace)
    _check_request(target)
    faults = Faults()
    choices = Choices(labels_property, columns or {})
    outcome: _Outcome | None = None
    try:
        outcome = _run(engine, path_or_stream, edges, format, target, choices, on_progress, faults)
    except (InvalidRecord, DanglingEdges) as error:  # beyond it the file cannot be read
        faults.add(error)
    return CheckReport(
        dialect=outcome.dialect if outcome else None,
        nodes=outcome.loader.nodes if outcome else 0,
        edges=outcome.loader.edges if outcome else 0,
        negative_zeros=outcome.loader.negative_zeros if outcome else 0,
        count=faults.count,
        faults=[_without_outcome(error) for error in faults.first],
    )


def _run(
    engine: Engine,
    path_or_stream: Source,
    edges: Source | None,
    format: str | None,
    target: _Target,
    choices: Choices,
    on_progress: Progress | None,
    faults: Faults | None = None,
    before_commit: Callable[[Connection, UUID], None] | None = None,
) -> _Outcome:
    with ExitStack() as stack:
        otherwise = Dialect.CSV if edges is not None or choices.columns else None
        source, dialect = stack.enter_context(open_input(path_or_stream, format, faults, otherwise))
        second = None
        if edges is not None:
            second, _ = stack.enter_context(open_input(edges, Dialect.CSV, faults))
        reader = reader_of(dialect, source, second, choices)
        connection = stack.enter_context(engine.execution_options(isolation_level="READ COMMITTED").connect())
        transaction = stack.enter_context(connection.begin())
        cursor: Any = connection.connection.cursor()
        graph_id = _create(engine, cursor, target)
        loader = Loader(cursor, graph_id, source, second or source, on_progress)
        try:
            loader.load(reader.records())
        except DanglingEdges:
            if isinstance(reader, NodeLinkReader) and (hint := reader.explain_missing_nodes()):
                raise source.invalid(None, "links", f"lead to nodes that are missing; {hint}") from None
            raise
        if reader.attributes:
            loader.negative_zeros += _configure(cursor, graph_id, source, reader.attributes)
        if before_commit is not None:
            before_commit(connection, graph_id)
        if faults is not None:
            transaction.rollback()
    return _Outcome(graph_id, dialect, loader)


def _without_outcome(error: GraphMigratorError) -> str:
    """The error's message without what it says of an import."""
    return str(error).removesuffix(" Nothing was imported.")


def _check_request(target: _Target) -> None:
    slug, graph_type, version, *_ = target
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


def _create(engine: Engine, cursor: Any, target: _Target) -> UUID:
    """Make the graph's own row, and declare what this transaction writes."""
    slug, graph_type, version, replace, requested_by = target
    graph_id = (
        open_replacement(engine, cursor, slug, graph_type, version, requested_by) if replace else uuid4()
    )
    cursor.execute(_DECLARE, (json.dumps({graph_type: version}),))
    if not replace:
        cursor.execute(_CREATE, (graph_id, slug, graph_type, version))
        if not cursor.rowcount:
            raise GraphExists(slug)
    return graph_id


def _configure(cursor: Any, graph_id: UUID, source: InputFile, attributes: dict[str, Any]) -> int:
    """Store what stands beside nodes and edges. Returns how many negative zeros are among it."""
    written = encode(attributes)
    try:
        cursor.execute(_CONFIGURE, (written, graph_id))
    except psycopg2.DataError as error:
        reason = f"the attributes are refused by Postgres: {error.diag.message_primary}"
        raise source.invalid(None, "document", reason) from error
    return negative_zeros(written)
