"""``python -m tasks.cli`` is `graph-migrator`."""

from tasks.cli.main import main

main()
