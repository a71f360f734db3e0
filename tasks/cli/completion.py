"""`graph-migrator completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell: `eval "$(graph-migrator completion bash)"`."""
    from graph_migrator.tasks.cli.main import main

    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click ships all three
    complete = found(main, {}, "graph-migrator", "_GRAPH_MIGRATOR_COMPLETE")
    # Not .source(): for bash it runs whatever bash is there to ask its version.
    click.echo(complete.source_template % complete.source_vars())
