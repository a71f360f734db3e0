"""Graphs in and out: node-link JSON as NetworkX writes it, and JSON Lines (docs/formats.md)."""

from graph_migrator.core.interchange.exporting import ExportReport, export_graph
from graph_migrator.core.interchange.importing import ImportReport, import_graph
from graph_migrator.core.interchange.input_file import Format

__all__ = ["ExportReport", "Format", "ImportReport", "export_graph", "import_graph"]
