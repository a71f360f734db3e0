"""Graphs in and out: what is read and written stands in docs/formats.md."""

from graph_migrator.core.interchange.dialect import Dialect, Format
from graph_migrator.core.interchange.exporting import ExportReport, export_graph
from graph_migrator.core.interchange.importing import (
    CheckReport,
    ImportReport,
    check_graph_file,
    import_graph,
)

__all__ = [
    "CheckReport",
    "Dialect",
    "ExportReport",
    "Format",
    "ImportReport",
    "check_graph_file",
    "export_graph",
    "import_graph",
]
