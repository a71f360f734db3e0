"""``python -m graph_migrator`` is the command `graph-migrator`."""

from graph_migrator.tasks.cli import main

main()
