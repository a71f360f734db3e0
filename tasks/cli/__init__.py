"""The command line, `graph-migrator`. Commands are thin: what they do is in `core`."""

from __future__ import annotations

from graph_migrator.tasks.cli.main import main

__all__ = ["main"]
