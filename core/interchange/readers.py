"""The reader of each dialect."""

from __future__ import annotations

from graph_migrator.core.errors import InvalidRequest
from graph_migrator.core.interchange.csv_tables import CsvReader
from graph_migrator.core.interchange.cytoscape import CytoscapeReader
from graph_migrator.core.interchange.dialect import Dialect
from graph_migrator.core.interchange.input_file import InputFile
from graph_migrator.core.interchange.json_graph import JsonGraphReader
from graph_migrator.core.interchange.json_lines import LinesReader, apoc_record, own_record
from graph_migrator.core.interchange.node_link import NodeLinkReader
from graph_migrator.core.interchange.records import Choices, Reader
from graph_migrator.core.interchange.xml_graphs import XmlReader


def reader_of(dialect: Dialect, source: InputFile, edges: InputFile | None, choices: Choices) -> Reader:
    """The reader of a file.

    Args:
        dialect: What the file is written in.
        source: The file.
        edges: The second file, which only CSV has.
        choices: What the caller decides.

    Raises:
        InvalidRequest: There is a second file, or columns are named, and the dialect has no such thing.
    """
    if dialect is Dialect.CSV:
        return CsvReader(source, edges, choices)
    if edges is not None:
        raise InvalidRequest(
            "edges", f"a file of edges belongs to a CSV file of nodes; {source.name} is {dialect}"
        )
    if choices.columns:
        raise InvalidRequest("columns", f"only CSV has columns; {source.name} is {dialect}")
    match dialect:
        case Dialect.NODE_LINK:
            return NodeLinkReader(source, choices)
        case Dialect.JSON_LINES:
            return LinesReader(source, choices, own_record)
        case Dialect.APOC:
            return LinesReader(source, choices, apoc_record)
        case Dialect.JSON_GRAPH:
            return JsonGraphReader(source, choices)
        case Dialect.CYTOSCAPE:
            return CytoscapeReader(source, choices)
        case Dialect.GRAPHML | Dialect.GEXF:
            return XmlReader(source, dialect, choices)
