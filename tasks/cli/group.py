"""Groups of commands."""

from __future__ import annotations

import click


class Group(click.Group):
    """A group whose list of commands in ``--help`` shows whole sentences: click cuts them at the line's end."""

    group_class = type  # a group in it is one, too

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``."""
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in commands])
