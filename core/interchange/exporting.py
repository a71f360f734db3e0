"""Export: one graph becomes one file, always the same bytes for the same rows.

Postgres writes the records itself, so numbers and texts are those of its jsonb, down to the last digit.
"""

from __future__ import annotations

import time
from typing import IO, Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine

from graph_migrator.core.errors import InvalidRequest, UnknownGraph
from graph_migrator.core.interchange.dialect import Format
from graph_migrator.core.interchange.loading import Progress

_EVERY: Final = 10_000

_UTF8: Final = "SELECT set_config('client_encoding', 'UTF8', true)"
_GRAPH: Final = """
SELECT id, slug, version FROM graph_migrator.graphs
WHERE id = graph_migrator.graph_id_of(%(graph)s)
"""
# What NetworkX would otherwise assume: every edge has a direction, and edges may be parallel.
_ATTRIBUTES: Final = """
SELECT to_json(key)::text, value::text
FROM jsonb_each((SELECT '{"directed": true, "multigraph": true, "graph": {}}'::jsonb || config
                 FROM graph_migrator.graphs WHERE id = %s))
ORDER BY key COLLATE "C"
"""
_CLASHES: Final = """
SELECT 'node', id, key FROM graph_migrator.nodes, unnest(ARRAY['id', 'label']) key
    WHERE graph_id = %(id)s AND jsonb_exists(properties, key)
UNION ALL
SELECT 'edge', id, key FROM graph_migrator.edges, unnest(ARRAY['id', 'source', 'target', 'type']) key
    WHERE graph_id = %(id)s AND jsonb_exists(properties, key)
UNION ALL
SELECT 'graph', slug, key FROM graph_migrator.graphs, unnest(ARRAY['nodes', 'edges', 'links']) key
    WHERE id = %(id)s AND jsonb_exists(config, key)
LIMIT 1
"""

_ROWS: Final = """
COPY (SELECT '{%(opening)s"id": ' || to_json(id) || %(fields)s || %(properties)s
      FROM graph_migrator.%(table)s WHERE graph_id = '%(id)s' ORDER BY id COLLATE "C") TO STDOUT
"""
_FIELDS: Final = {
    "nodes": """', "label": ' || to_json(label)""",
    "edges": """', "source": ' || to_json(source) || ', "target": ' || to_json(target)
                || ', "type": ' || to_json(type)""",
}
_NESTED: Final = """', "properties": ' || properties::text || '}'"""
_SPREAD: Final = """CASE WHEN properties = '{}' THEN '}' ELSE ', ' || substr(properties::text, 2) END"""


class ExportReport(BaseModel):
    """What was exported."""

    model_config = ConfigDict(frozen=True)

    graph_id: UUID
    slug: str
    version: int
    format: Format
    nodes: int
    edges: int
    seconds: float


def export_graph(
    engine: Engine,
    graph: str | UUID,
    stream: IO[bytes],
    *,
    format: str = Format.NODE_LINK,
    on_progress: Progress | None = None,
) -> ExportReport:
    """Write a graph as one transaction sees it: sorted by id, by code point. Memory does not grow with it.

    Args:
        engine: The database; its schema must be current.
        graph: Id or slug.
        stream: Open for bytes; neither closed nor flushed here.
        format: ``node-link`` or ``jsonl``.
        on_progress: Called now and then, and at the end, with the nodes and edges written so far.

    Returns:
        The graph's version at that moment, and the counts.

    Raises:
        InvalidRequest: There is no such format, or node-link JSON cannot hold this graph (a property is
            named like one of its own fields). Nothing was written then.
        UnknownGraph: No graph has this id or slug.
    """
    chosen = Format.named(format)
    started = time.perf_counter()
    options = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with options.connect() as connection, connection.begin():
        cursor: Any = connection.connection.cursor()
        cursor.execute(_UTF8)
        cursor.execute(_GRAPH, {"graph": str(graph)})
        found = cursor.fetchone()
        if found is None:
            raise UnknownGraph(str(graph))
        graph_id, slug, version = found
        writer = _Writer(stream, on_progress)
        try:
            if chosen is Format.JSON_LINES:
                _write_json_lines(cursor, graph_id, writer)
            else:
                _write_node_link(cursor, graph_id, slug, writer)
            writer.report_progress()
        except BaseException:
            # A rollback would first read the rest of a COPY that was broken off.
            connection.invalidate()
            raise
    return ExportReport(
        graph_id=graph_id,
        slug=slug,
        version=version,
        format=chosen,
        nodes=writer.written["nodes"],
        edges=writer.written["edges"],
        seconds=time.perf_counter() - started,
    )


def _write_json_lines(cursor: Any, graph_id: UUID, writer: _Writer) -> None:
    for table in ("nodes", "edges"):
        writer.begin(table, separator=b"")
        cursor.copy_expert(_copy(table, graph_id, f'"kind": "{table[:-1]}", ', _NESTED), writer)


def _write_node_link(cursor: Any, graph_id: UUID, slug: str, writer: _Writer) -> None:
    cursor.execute(_CLASHES, {"id": graph_id})
    if clash := cursor.fetchone():
        what, id_, key = clash
        reason = f"cannot be 'node-link': {what} {id_!r} has a property named {key!r}. Use 'jsonl' for {slug}"
        raise InvalidRequest("format", reason)
    cursor.execute(_ATTRIBUTES, (graph_id,))
    attributes = "".join(f"{key}: {value},\n" for key, value in cursor)
    writer.stream.write(f'{{{attributes}"nodes": ['.encode())
    for table in ("nodes", "edges"):
        writer.begin(table, separator=b",")
        cursor.copy_expert(_copy(table, graph_id, "", _SPREAD), writer)
        writer.stream.write(b'\n],\n"edges": [' if table == "nodes" else b"\n]}\n")


def _copy(table: str, graph_id: UUID, opening: str, properties: str) -> str:
    names = {
        "opening": opening,
        "fields": _FIELDS[table],
        "properties": properties,
        "table": table,
        "id": graph_id,
    }
    return _ROWS % names


class _Writer:
    """Takes COPY's rows, one call each, and writes them as records."""

    def __init__(self, stream: IO[bytes], on_progress: Progress | None) -> None:
        self.stream = stream
        self.written = {"nodes": 0, "edges": 0}
        self._on_progress = on_progress
        self._table = "nodes"
        self._separator = b""

    def begin(self, table: str, *, separator: bytes) -> None:
        """The rows that follow are of this table."""
        self._table = table
        self._separator = separator

    def write(self, row: bytes) -> int:
        """One row of COPY's text format. In JSON the only character that it escapes is the backslash."""
        record = row.replace(b"\\\\", b"\\")
        if self._separator:
            record = b"\n" + record[:-1]
            if self.written[self._table]:
                record = self._separator + record
        self.stream.write(record)
        self.written[self._table] += 1
        if self.written[self._table] % _EVERY == 0:
            self.report_progress()
        return len(row)

    def report_progress(self) -> None:
        """Report how many records are written."""
        if self._on_progress is not None:
            self._on_progress(self.written["nodes"], self.written["edges"])
