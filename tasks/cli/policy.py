"""`graph-migrator policy`: graphs that are behind move forward by themselves."""

from __future__ import annotations

from typing import Any

import click

from graph_migrator.core.rollouts import policy as policies
from graph_migrator.core.rollouts.operations import Operator
from graph_migrator.core.rollouts.policy import Mode
from graph_migrator.tasks.cli.group import Group
from graph_migrator.tasks.cli.output import console, json_option, moment, print_json, table, user
from graph_migrator.tasks.cli.rollout import knob_options, strategy_of
from graph_migrator.tasks.runtime import executors


@click.group(cls=Group)
def policy() -> None:
    """Let the graphs of a type move forward by themselves when they are behind its newest version."""


@policy.command()
@click.argument("graph_type", metavar="[TYPE]", required=False)
@json_option
def show(graph_type: str | None, as_json: bool) -> None:
    """Show each type's policy, who set it, and what it waits for."""
    with executors().borrow() as executor:
        found = policies.policies(executor, graph_type)
    if as_json:
        print_json(found)
        return
    rows = [
        (p.policy.graph_type, p.policy.mode, f"{p.policy.settle_seconds:g} s", p.state, p.policy.changed_by,
         moment(p.policy.changed_at))
        for p in found
    ]  # fmt: skip
    console().print(table(None, ("type", "mode", "settles in", "now", "set by", "at"), rows))


@policy.command(name="set")
@click.argument("graph_type", metavar="TYPE")
@click.argument("mode", type=click.Choice([each.value for each in Mode]))
@click.option(
    "--settle-seconds",
    type=float,
    help="How long all live workers must have served the same code. Default: 60.",
)
@knob_options
@click.option("--reason", help="Why; it is recorded.")
@json_option
def set_(
    graph_type: str, mode: str, settle_seconds: float | None, reason: str | None, as_json: bool, **knobs: Any
) -> None:
    """Set a type's policy. Settings that are not given stay as they are; the gate is `auto` by default."""
    with executors().borrow() as executor:
        (before,) = policies.policies(executor, graph_type)
        given = strategy_of(knobs, before.policy.strategy)
        found = policies.set_policy(
            executor,
            graph_type,
            Mode(mode),
            Operator(user(), reason),
            strategy=given,
            settle_seconds=settle_seconds,
        )
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found.graph_type}: {found.mode}; `graph-migrator policy show {found.graph_type}` says what it waits for"
    )
