"""Rows into Postgres by COPY, in chunks, within one transaction.

While Postgres takes a chunk, the next one is read: the two take about as long as each other. There is one COPY at a
time, in the order of the file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg2

from graph_migrator.core.errors import DanglingEdges, InvalidRecord
from graph_migrator.core.interchange.edge_ends import EdgeEnds
from graph_migrator.core.interchange.edge_spool import EdgesAside
from graph_migrator.core.interchange.exact_json import negative_zeros
from graph_migrator.core.interchange.input_file import Faults, InputFile
from graph_migrator.core.interchange.records import EdgeRecord, NodeRecord, Place
from graph_migrator.core.store.copy_text import escape, escape_json, unescape

Progress = Callable[[int, int], None]
"""Called with how many nodes and how many edges have been loaded."""

_CHUNK_ROWS: Final = 10_000
_CHUNK_CHARACTERS: Final = 8 * 1024 * 1024
_EXAMPLES: Final = 5

_NODES: Final = "COPY graph_migrator.nodes (graph_id, id, label, properties) FROM STDIN"
_EDGES: Final = "COPY graph_migrator.edges (graph_id, id, source, target, type, properties) FROM STDIN"
_TAKEN: Final = "SELECT id FROM graph_migrator.edges WHERE graph_id = %s AND id = ANY(%s)"
_UNIQUE_VIOLATION: Final = "23505"
_BAD_DATA: Final = ("22", "54", _UNIQUE_VIOLATION)
"""SQLSTATEs, or their classes, that speak of one row: a data exception, a limit exceeded, a duplicate."""


class _Row(NamedTuple):
    place: Place
    text: str


class _Chunk:
    """Rows on their way into one table."""

    def __init__(self, kind: str, copy: str, source: InputFile) -> None:
        self.kind = kind
        self.copy = copy
        self.source = source
        self.rows: list[_Row] = []
        self._characters = 0

    def add(self, place: Place, text: str) -> bool:
        """Add a row. Returns whether the chunk is full."""
        self.rows.append(_Row(place, text))
        self._characters += len(text)
        return len(self.rows) >= _CHUNK_ROWS or self._characters >= _CHUNK_CHARACTERS

    def take(self) -> list[_Row]:
        """Empty the chunk."""
        rows, self.rows, self._characters = self.rows, [], 0
        return rows


class _Sending(NamedTuple):
    """A chunk on its way, and the thread's answer."""

    chunk: _Chunk
    rows: list[_Row]
    outcome: Future[None]


class Loader:
    """Loads one graph's records, in the caller's transaction.

    Attributes:
        nodes: How many nodes are in Postgres.
        edges: How many edges are.
        negative_zeros: How many numbers lose their sign, being ``-0``.
    """

    def __init__(
        self,
        cursor: Any,
        graph_id: UUID,
        source: InputFile,
        edge_source: InputFile,
        on_progress: Progress | None,
    ) -> None:
        self.nodes = 0
        self.edges = 0
        self.negative_zeros = 0
        self._cursor = cursor
        self._graph_id = graph_id
        self._on_progress = on_progress
        self._ends = EdgeEnds(cursor, graph_id)
        self._node_chunk = _Chunk("node", _NODES, source)
        self._edge_chunk = _Chunk("edge", _EDGES, edge_source)
        self._sending: _Sending | None = None

    def load(self, records: Iterable[NodeRecord | EdgeRecord]) -> None:
        """Load all records.

        Raises:
            InvalidRecord: Postgres refuses a record, or two have the same id.
            DanglingEdges: An edge leads to a node that is not there.
        """
        self._ends.begin()
        # A number for an edge without an id is free only when every id of the file is known.
        with ThreadPoolExecutor(1) as self._pool, EdgesAside() as keyed, EdgesAside() as nameless:
            try:
                self._load_all(records, keyed, nameless)
            finally:
                self._settle()  # an error in a chunk before comes first
            if not self._load_by_key(keyed):
                self._load_by_number(keyed)
            self._load_by_number(nameless)
            self._settle()
        self._check_ends()

    def _load_all(
        self, records: Iterable[NodeRecord | EdgeRecord], keyed: EdgesAside, nameless: EdgesAside
    ) -> None:
        """Load what has an id, and lay the other edges aside."""
        for record in records:
            self.negative_zeros += negative_zeros(record.properties)
            if isinstance(record, NodeRecord):
                self._add_node(record)
            elif record.id is not None:
                self._add_edge(record, record.id)
            else:
                (nameless if record.key is None else keyed).put(record)
        self._flush(self._node_chunk)
        self._flush(self._edge_chunk)

    def _add_node(self, node: NodeRecord) -> None:
        row = f"{self._graph_id}\t{escape(node.id)}\t{escape(node.label)}\t{escape_json(node.properties)}\n"
        if self._node_chunk.add(node.place, row):
            self._flush(self._node_chunk)

    def _add_edge(self, edge: EdgeRecord, id_: str) -> None:
        ends = f"{escape(edge.source)}\t{escape(edge.target)}"
        row = (
            f"{self._graph_id}\t{escape(id_)}\t{ends}\t{escape(edge.type)}\t{escape_json(edge.properties)}\n"
        )
        if self._edge_chunk.add(edge.place, row):
            self._flush(self._edge_chunk)

    def _load_by_key(self, keyed: EdgesAside) -> bool:
        """Take keys for ids, if no two edges share one.

        In a NetworkX multigraph they do: there a key only distinguishes parallel edges, it names none.

        Returns:
            Whether the edges are loaded. If not, nothing of them is.
        """
        before = self.edges
        self._cursor.execute("SAVEPOINT before_keys")
        for edges in keyed.chunks(_CHUNK_ROWS):
            rows = [
                _Row(e.place, f"{self._graph_id}\t{e.key}\t{e.ends_and_type}\t{e.properties}\n")
                for e in edges
            ]
            try:
                self._send(self._edge_chunk, rows)
            except psycopg2.Error as error:
                if error.pgcode != _UNIQUE_VIOLATION:
                    self._refuse(self._edge_chunk, rows, error)
                    continue
                self._cursor.execute("ROLLBACK TO SAVEPOINT before_keys")
                self.edges = before
                return False
            self._report()
        return True

    def _load_by_number(self, aside: EdgesAside) -> None:
        number = 0
        for edges in aside.chunks(_CHUNK_ROWS):
            numbers: list[int] = []
            while len(numbers) < len(edges):
                candidates = range(number, number + len(edges) - len(numbers))
                number = candidates.stop
                numbers += self._free(candidates)
            for edge, id_ in zip(edges, numbers, strict=True):
                row = f"{self._graph_id}\t{id_}\t{edge.ends_and_type}\t{edge.properties_with_key}\n"
                self.negative_zeros += negative_zeros(edge.key_json)
                self._edge_chunk.add(edge.place, row)
            self._flush(self._edge_chunk)

    def _free(self, candidates: range) -> list[int]:
        self._settle()
        if not self.edges:
            return list(candidates)
        self._cursor.execute(_TAKEN, (self._graph_id, [str(number) for number in candidates]))
        taken = {id_ for (id_,) in self._cursor}
        return [number for number in candidates if str(number) not in taken]

    def _flush(self, chunk: _Chunk) -> None:
        """Send a chunk, when the one before it is through."""
        rows = chunk.take()
        self._settle()
        if not rows:
            return
        self._sending = _Sending(chunk, rows, self._pool.submit(self._send, chunk, rows))

    def _settle(self) -> None:
        """Wait for the chunk on its way."""
        sending, self._sending = self._sending, None
        if sending is None:
            return
        try:
            sending.outcome.result()
        except psycopg2.Error as error:
            self._refuse(sending.chunk, sending.rows, error)
        self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.nodes, self.edges)

    def _refuse(self, chunk: _Chunk, rows: list[_Row], error: psycopg2.Error) -> None:
        """Some of these rows are faulty: name the first one, or in a check report all and load the others."""
        faults = chunk.source.faults
        if faults is None or not _is_about_a_row(error):
            raise self._explained(chunk, rows, error) from error
        if len(rows) == 1:
            faults.add(self._refused(chunk, rows[0], error))
            return
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            try:
                self._send(chunk, half)
            except psycopg2.Error as narrower:
                self._refuse(chunk, half, narrower)

    def _send(self, chunk: _Chunk, rows: list[_Row]) -> None:
        """COPY some rows; after an error the transaction is as it was before."""
        if not rows:
            return
        # Sorted, so that neighbours in the indexes come one after the other.
        data = io.BytesIO("".join(sorted([row.text for row in rows])).encode())
        self._cursor.execute("SAVEPOINT before_rows")
        try:
            self._cursor.copy_expert(chunk.copy, data)
        except psycopg2.Error as error:
            if _is_about_a_row(error):
                self._cursor.execute("ROLLBACK TO SAVEPOINT before_rows")
            raise
        self._cursor.execute("RELEASE SAVEPOINT before_rows")
        if chunk.kind == "node":
            self.nodes += len(rows)
        else:
            self.edges += len(rows)

    def _explained(self, chunk: _Chunk, rows: list[_Row], error: psycopg2.Error) -> Exception:
        """The error that names the first row which Postgres refuses, found by halving the chunk."""
        if not _is_about_a_row(error):
            return error
        while len(rows) > 1:
            half = rows[: len(rows) // 2]
            try:
                self._send(chunk, half)
            except psycopg2.Error as narrower:
                error, rows = narrower, half
            else:
                rows = rows[len(half) :]
        try:
            self._send(chunk, rows)
        except psycopg2.Error as last:
            return self._refused(chunk, rows[0], last)
        return error

    def _refused(self, chunk: _Chunk, row: _Row, error: psycopg2.Error) -> InvalidRecord:
        id_ = unescape(row.text.split("\t")[1])
        if error.pgcode == _UNIQUE_VIOLATION:
            reason = f"{id_!r} is already the id of another {chunk.kind}"
            return chunk.source.invalid(row.place.line, row.place.field("id"), reason)
        said = error.diag.message_primary or "no reason given"
        return chunk.source.invalid(
            row.place.line, row.place.field(""), f"{chunk.kind} {id_[:100]!r} is refused by Postgres: {said}"
        )

    def _check_ends(self) -> None:
        faults = self._edge_chunk.source.faults
        found = self._ends.dangling(_EXAMPLES if faults is None else Faults.MOST)
        if not found:
            return
        if faults is None:
            sentences = [edge.sentence for edge in found]
            raise DanglingEdges(self._edge_chunk.source.name, found[0].all, sentences)
        for edge in found:
            faults.add(self._edge_chunk.source.invalid(None, "edge", edge.sentence))
        faults.count += found[0].all - len(found)


def _is_about_a_row(error: psycopg2.Error) -> bool:
    return (error.pgcode or "").startswith(_BAD_DATA)
