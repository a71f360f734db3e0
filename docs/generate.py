"""Writes the pages that the code knows best, named in `PAGES`: ``python docs/generate.py``.

A test runs it with ``--check`` and fails where a page is not what the code says.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from graph_migrator.core import errors
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.rollouts import statuses as rollout_statuses
from graph_migrator.core.rollouts.strategy import FROZEN, Strategy
from graph_migrator.core.settings import Settings
from graph_migrator.core.statuses import LIVE, MIGRATION_EDGES, SETTLED, AttemptStatus, MigrationStatus
from graph_migrator.core.store.tables import metadata
from graph_migrator.tasks.cli import main

_HERE = Path(__file__).parent


def reference() -> Iterator[str]:
    """The lines of docs/reference.md."""
    yield "# Reference\n\nGenerated from the code by `docs/generate.py`.\n"
    yield "## Commands\n\n`graph-migrator COMMAND --help` shows the options. Reading commands take `--json`.\n"
    yield "| command | what it does |\n|---|---|"
    for name, command in _commands(main):
        yield f"| `{name}` | {command.get_short_help_str(200)} |"
    yield (
        "\nExit codes: 0 done · 1 the migration failed · 2 wrong usage, or unknown graph, type or target · "
        "3 refused in the graph's present state · 4 database or broker out of reach.\n"
    )
    yield "## Tasks\n\nJSON arguments only, queue `migrations`. From another service, without our code:"
    yield '`app.send_task("tasks.migrate_graph", args=[graph_id, 3], queue="migrations")`.\n'
    yield "| task | arguments |\n|---|---|"
    for name, fields in _tasks():
        yield f"| `{name}` | {fields} |"
    yield "\n## Settings\n\nEnvironment variables; times are seconds.\n"
    yield "| variable | default | what it is |\n|---|---|---|"
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        variable = str(alias.choices[-1]) if alias is not None else f"GRAPH_MIGRATOR_{name.upper()}"  # type: ignore[union-attr] # all are AliasChoices
        yield f"| `{variable}` | `{field.default}` | {field.description} |"
    yield "\n## Errors\n\n| error | exit code | fields | when |\n|---|---|---|---|"
    for cls in _errors():
        fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(cls))
        yield f"| `{cls.__name__}` | {cls.exit_code} | {fields} | {(cls.__doc__ or '').splitlines()[0]} |"
    yield "\n## Tables\n\nIn the schema `graph_migrator`.\n"
    for table in metadata.sorted_tables:
        yield f"- `{table.name}`: {', '.join(f'`{c.name}`' for c in table.columns)}"


def state_machine() -> Iterator[str]:
    """The lines of docs/state_machine.md."""
    yield "# The state machine\n\nGenerated from `core/statuses.py` by `docs/generate.py`. A trigger in Postgres holds"
    yield "the same edges.\n\n## A migration\n\n| status | what it means |\n|---|---|"
    for status in MigrationStatus:
        yield f"| `{status}` | {status.phrase} |"
    yield "\n| edge | from | to | because |\n|---|---|---|---|"
    for edge in MIGRATION_EDGES:
        yield f"| {edge.name} | {_listed(edge.sources)} | `{edge.target}` | {edge.reason} |"
    yield "\nWhatever is not in the table is refused, by Python with the state it met and by Postgres.\n"
    yield f"- *Live* (owns its graph and will go on): {_listed(LIVE)}."
    yield f"- *Settled* (has an outcome): {_listed(SETTLED)}. `failed` keeps its claim.\n"
    yield "## A hop attempt\n\n| status | what it means |\n|---|---|"
    for attempt in AttemptStatus:
        yield f"| `{attempt}` | {attempt.phrase} |"
    yield "\nAn attempt leaves `running` once. Its row never changes afterwards and is never deleted."


def rollout_reference() -> Iterator[str]:
    """The lines of docs/rollout-reference.md."""
    yield "# Rollouts: states and knobs\n\nGenerated from `core/rollouts` by `docs/generate.py`."
    yield "Triggers in Postgres hold the same edges. How to use them: [Rollouts](rollouts.md).\n"
    yield "## A rollout\n\n| status | what it means |\n|---|---|"
    for status in rollout_statuses.RolloutStatus:
        yield f"| `{status}` | {status.phrase} |"
    yield from _edge_table(rollout_statuses.ROLLOUT_EDGES)
    yield "\n## A member\n\n| status | what it means |\n|---|---|"
    for member in rollout_statuses.MemberStatus:
        yield f"| `{member}` | {member.phrase} |"
    yield from _edge_table(rollout_statuses.MEMBER_EDGES)
    yield "\n## Why a rollout is held\n\n| reason | what it means | ends by itself | what to do |\n|---|---|---|---|"
    for reason in rollout_statuses.HoldReason:
        itself = "yes" if reason in rollout_statuses.ENDS_BY_ITSELF else "no"
        yield f"| `{reason}` | {reason.phrase} | {itself} | {reason.remedy.replace('{rollout}', 'ROLLOUT')} |"
    yield "\n## Knobs\n\nOptions of `rollout plan` and `rollout start`; `rollout set` changes the others while it runs."
    yield "\n| knob | default | while it runs | what it is for |\n|---|---|---|---|"
    for name, field in Strategy.model_fields.items():
        default = ",".join(f"{each:g}" for each in field.default) if name == "waves" else field.default
        changes = "frozen" if name in FROZEN else "can be changed"
        yield f"| `{name.replace('_', '-')}` | `{default}` | {changes} | {field.description} |"


def _edge_table(edges: tuple[rollout_statuses.Edge[Any], ...]) -> Iterator[str]:
    yield "\n| edge | from | to | because |\n|---|---|---|---|"
    for edge in edges:
        sources = ", ".join(f"`{status}`" for status in sorted(edge.sources))
        yield f"| {edge.name} | {sources} | `{edge.target}` | {edge.reason} |"


def _listed(statuses: frozenset[MigrationStatus]) -> str:
    return ", ".join(f"`{status}`" for status in MigrationStatus if status in statuses)


def _commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def _tasks() -> Iterator[tuple[str, str]]:
    from graph_migrator.tasks.celery import app

    app.loader.import_default_modules()
    from graph_migrator.tasks.results import CheckedTask

    for name, task in sorted(app.tasks.items()):
        if name in {"tasks.migrate_member", "tasks.migrate_pack"}:
            continue  # internal, like run_hop
        if isinstance(task, CheckedTask):
            yield name, ", ".join(f"`{field}`" for field in task.arguments.model_fields)
        elif name.startswith("tasks.") and name != "tasks.run_hop":
            yield name, ""


def _errors() -> Iterator[type[GraphMigratorError]]:
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, GraphMigratorError) and not cls.__subclasses__():
            yield cls


PAGES = {
    "reference.md": reference,
    "state_machine.md": state_machine,
    "rollout-reference.md": rollout_reference,
}


def run(check: bool) -> int:
    """Write the pages, or compare them; the number of pages that were not what the code says."""
    stale = 0
    for name, lines in PAGES.items():
        page, text = _HERE / name, "\n".join(lines()) + "\n"
        if not page.exists() or page.read_text("utf-8") != text:
            stale += 1
            if not check:
                page.write_text(text, "utf-8")
    return stale


if __name__ == "__main__":
    only_check = "--check" in sys.argv
    found = run(check=only_check)
    sys.exit(found if only_check else 0)
