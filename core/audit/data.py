"""Holding the data of graphs against the models of the version that they are at. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, text

from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.directed_hop import Models
from graph_migrator.core.store.validation import describe

_PIECE = 1_000

# Graphs that a migration owns are between two versions. Chosen at random, but the same ones each time.
_GRAPHS = """
SELECT id, slug FROM graph_migrator.graphs
WHERE graph_type = :kind AND version = :version AND migration_id IS NULL AND partially_migrated IS NULL
"""
_ROWS = """
SELECT g.slug, r.id, r.{column} AS kind, r.properties::text AS properties
FROM ({graphs}) g JOIN graph_migrator.{table} r ON r.graph_id = g.id WHERE r.{column} = ANY (:kinds)
"""


def breaking_rows(
    connection: Connection, types: dict[str, GraphType], sample: int | None
) -> Iterator[tuple[str, str]]:
    """The rows that do not fit the models of their graph's version.

    Args:
        connection: In a transaction; rows are streamed.
        types: The graph types by name.
        sample: At most this many graphs of each type and version, chosen at random; None for all.

    Yields:
        For each row its graph type with the version, and the graph, row and fields that do not fit; never their values.
    """
    for name, kind in types.items():
        for version in sorted(kind.nodes.keys() | kind.edges.keys()):
            for table, models in (("nodes", kind.nodes), ("edges", kind.edges)):
                found = _breaking(connection, name, version, table, models.get(version, {}), sample)
                yield from ((f"{name} v{version}", row) for row in found)


def _breaking(
    connection: Connection, kind: str, version: int, table: str, models: Models, sample: int | None
) -> Iterator[str]:
    if not models:
        return
    graphs = _GRAPHS + ("" if sample is None else "ORDER BY md5(id::text) LIMIT :sample")
    column = "label" if table == "nodes" else "type"
    values: dict[str, Any] = {"kind": kind, "version": version, "sample": sample, "kinds": list(models)}
    rows = connection.execute(
        text(_ROWS.format(graphs=graphs, column=column, table=table)),
        values,
        execution_options={"yield_per": _PIECE},
    )
    for row in rows:
        try:
            models[row.kind].__pydantic_validator__.validate_json(row.properties)
        except ValidationError as error:
            yield f"{row.slug}: {describe(table[:-1], row.id, error)}"
