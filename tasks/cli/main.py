"""The `graph-migrator` command: which commands there are, and which module has each.

A command's module is imported when the command is run or asked for its help, so that `--help` and completion load
nothing but click. The short helps stand here; a test holds them against the commands' own.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

_EXIT_CODES = (
    "Exit codes: 0 done · 1 the migration failed · 2 wrong usage, or unknown graph, type or target · "
    "3 refused in the graph's present state · 4 database or broker out of reach."
)

GROUPS: dict[str, dict[str, str]] = {
    "Look": {
        "status": "Show what state GRAPH is in, why, and what to do next.",
        "history": "Show the migrations of GRAPH and their attempts: when, who, hop, status, rows, duration, error.",
        "watch": "Follow migrations until all of them have ended or paused: GRAPHs, or all that are being migrated.",
        "graphs": "List graphs: version, who owns them, and why they are read-only.",
        "failures": "Group failed graphs by hop and cause, with three examples each.",
        "plan": "List the hops from where GRAPH is to a version.",
        "types": "List the graph types that this process knows, and their hops.",
    },
    "Migrate": {
        "migrate": "Move GRAPH along its hops to a version.",
        "retry": "Continue a failed migration where it stopped, with the code that is there now.",
        "pause": "Stop GRAPH's migration at the next hop or batch boundary, until it is resumed.",
        "resume": "Let GRAPH's paused migration go on.",
        "cancel": "End GRAPH's migration at the next boundary.",
        "release": "End GRAPH's migration and let writers in, at the version it has.",
    },
    "Fleet": {
        "rollout": "Move many graphs of a type to one version, in stages.",
        "policy": "Let the graphs of a type move forward by themselves when they are behind its newest version.",
        "workers": "List the workers: which graph types each serves with which code, since when, and when it was seen.",
        "health": "Show the health signals as the workers read them, every 5 s while something runs.",
    },
    "Graphs": {
        "import": "Make a new graph from FILE (- for standard input): all of it, or nothing.",
        "export": "Write GRAPH to FILE (by default standard output), sorted, byte for byte the same each time.",
        "baseline": "Record that the data of GRAPH is at a version already: it was migrated by other means.",
        "delete": "Delete GRAPH with its nodes and edges.",
        "lock": "Make GRAPH read-only for its owner.",
        "unlock": "Remove the owner's lock from GRAPH.",
    },
    "Operate": {
        "doctor": "Check the deployment end to end: database, guard, broker, results, workers.",
        "validate": "Check that what the database holds fits this release, before or after a deploy.",
        "repair": "Mend one finding of `validate`; without arguments, list those that can be mended without guessing.",
        "console": "Serve the pages, the HTTP API and the live stream of changes.",
        "recover": "Run one recovery sweep, as every worker does twice a second.",
        "audit": "Prove that the audit rows are as they were written; move old ones to files.",
        "guard": "Manage the write guard, which keeps writers off the rows of a graph that is being migrated.",
        "db": "Manage the tables in the database.",
    },
    "Develop": {
        "dev": "Run Postgres, Redis and workers in the foreground, on loopback, until Ctrl-C.",
        "env": "Print the `export` lines of the `graph-migrator dev` that runs in this folder.",
        "new-type": "Write a graph type NAME with its first hop, and a test that passes.",
        "completion": 'Print the completion script for a shell: `eval "$(graph-migrator completion bash)"`.',
    },
}
"""Headings, and below each its commands with their short helps."""

_ELSEWHERE = {
    "import": "import_export",
    "export": "import_export",
    "resume": "pause",
    "unlock": "lock",
    "env": "dev",
    "new-type": "new_type",
}
"""The module of a command that is not named after it."""

_SEND_MESSAGES = {"migrate", "retry", "resume", "recover", "doctor"}


class _Commands(MutableMapping[str, click.Command]):
    """The commands by name; one is imported when it is looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            if not any(name in commands for commands in GROUPS.values()):
                raise KeyError(name)
            module = import_module(f"graph_migrator.tasks.cli.{_ELSEWHERE.get(name, name)}")
            attribute = "import_" if name == "import" else name.replace("-", "_")
            self._loaded[name] = getattr(module, attribute)
            _handle_interrupts()
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return (name for commands in GROUPS.values() for name in commands)

    def __len__(self) -> int:
        return sum(map(len, GROUPS.values()))


def _handle_interrupts() -> None:
    """From here on Ctrl-C is an exception, so that the command cleans up; see ``graph_migrator.__main__``."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Formatter(click.HelpFormatter):
    """Breaks no line at the hyphen of a name that people copy, as `graph-migrator`."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _UNBROKEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], *args: Any, **kwargs: Any) -> None:
        super().write_dl([(term, text.replace("-", _UNBROKEN)) for term, text in rows], *args, **kwargs)

    def getvalue(self) -> str:
        return super().getvalue().replace(_UNBROKEN, "-")


_UNBROKEN: Final = "\N{NON-BREAKING HYPHEN}"


class _Main(click.Group):
    """Lists its commands in groups, and turns errors into a sentence and an exit code.

    A traceback is shown with --debug only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands = _Commands()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``."""
        width = max(map(len, self.commands))
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that begin so, and the options of all; loads no command's module."""
        named = [
            CompletionItem(name, help=text)
            for commands in GROUPS.values()
            for name, text in commands.items()
            if name.startswith(incomplete)
        ]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; one that sends messages is run with little patience for the broker."""
        sends = bool(args) and args[0] in _SEND_MESSAGES and not ctx.resilient_parsing
        if sends:
            import_module("graph_migrator.tasks.celery")  # while Ctrl-C still ends the process silently
        found = super().resolve_command(ctx, args)
        if sends:
            ctx.with_resource(_in_haste())
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise click.Abort from None
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            from graph_migrator.tasks.cli.errors import report

            ctx.exit(report(error))


@contextmanager
def _in_haste() -> Iterator[None]:
    """A worker waits for an hour for its broker to come back; a person at a prompt does not."""
    from graph_migrator.tasks import patience
    from graph_migrator.tasks.celery import app

    patient: dict[str, Any] = {}
    hasty = {"result_backend_always_retry": False, **patience.settings_for(patience.COMMAND)}
    try:
        for name, value in hasty.items():
            patient[name], app.conf[name] = app.conf[name], value
        yield
    finally:
        app.conf.update(patient)


click.Context.formatter_class = _Formatter  # of every command: there is no option for it


@click.group(cls=_Main, epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="graph-migrator")
def main(debug: bool) -> None:
    """Migrate versioned graphs: nothing lost, nothing run twice, nothing unexplained.

    GRAPH is a graph's slug or its id. Services are found through DATABASE_URL, CELERY_BROKER_URL and
    CELERY_RESULT_BACKEND. Without any of your own, `graph-migrator dev` starts them all in this folder and
    `eval "$(graph-migrator env)"` points a shell at them.
    """
