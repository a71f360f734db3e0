"""`graph-migrator rollout`: moving many graphs of a type, and stopping when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ValidationError

from graph_migrator.core.errors import InvalidRequest
from graph_migrator.core.inspection.quantities import duration, plural
from graph_migrator.core.rollouts import inspection, operations
from graph_migrator.core.rollouts.back import back as make_back
from graph_migrator.core.rollouts.inspection import Counts, RolloutState
from graph_migrator.core.rollouts.operations import Operator, RolloutVerbReport
from graph_migrator.core.rollouts.request import RolloutPlan, RolloutRequest
from graph_migrator.core.rollouts.start import plan as make_plan
from graph_migrator.core.rollouts.start import start as start_rollout
from graph_migrator.core.rollouts.statuses import MemberStatus
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.tasks.cli.group import Group
from graph_migrator.tasks.cli.output import console, json_option, moment, print_json, table, user
from graph_migrator.tasks.cli.rollout_watch import pace_line, watch
from graph_migrator.tasks.runtime import executors


@click.group(cls=Group)
def rollout() -> None:
    """Move many graphs of a type to one version, in stages.

    ROLLOUT is a rollout's id, the beginning of one, or a graph type for that type's latest rollout.
    """


def knob_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for every knob."""
    for name, field in reversed(Strategy.model_fields.items()):
        says = f"{field.description} Default: {_shown(field.default)}."
        command = click.option(f"--{name.replace('_', '-')}", name, metavar="VALUE", help=says)(command)
    return command


def _selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `plan` and `start`: which graphs, and every knob."""
    options: list[Callable[..., Any]] = [
        click.argument("graph_type", metavar="TYPE"),
        click.option(
            "--to", "to_version", type=int, help="The target; the newest version of the type by default."
        ),
        click.option("--all", "everything", is_flag=True, help="All graphs of the type below the target."),
        click.option(
            "--graphs",
            "file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A file with one slug or id a line.",
        ),
        click.option("--slug", help="Only graphs whose slug fits this pattern; `*` stands for any text."),
        click.option("--from", "from_version", type=int, help="Only graphs at this version."),
        click.option(
            "--where",
            metavar="PATH",
            help='Only graphs whose config fulfils this JSON path predicate, like `$.tier == "gold"`.',
        ),
        click.option("--canary-graphs", help="Slugs, comma-separated; chosen by shape where none is named."),
        knob_options,
        json_option,
    ]
    decorate: Callable[..., Any]
    for decorate in reversed(options):
        command = decorate(command)
    return command


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{each:g}" for each in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _request(values: dict[str, Any], **more: Any) -> RolloutRequest:
    """What was asked for.

    Raises:
        click.UsageError: No graphs are selected; all of them need --all.
        InvalidRequest: A knob cannot have that value.
    """
    file: Path | None = values["file"]
    if not (values["everything"] or file or any(values[name] for name in ("slug", "from_version", "where"))):
        raise click.UsageError(
            "select graphs: --all, --graphs FILE, --slug PATTERN, --from VERSION or --where PATH"
        )
    if values["everything"] and file:
        raise click.UsageError("--all and --graphs exclude each other")
    graphs = None
    if file is not None:
        graphs = tuple(
            dict.fromkeys(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
        )
        if not graphs:
            raise InvalidRequest(str(file), "it names no graph")
    strategy = strategy_of(values)
    try:
        return RolloutRequest(
            graph_type=values["graph_type"],
            to_version=values["to_version"],
            graphs=graphs,
            slug=values["slug"],
            from_version=values["from_version"],
            where=values["where"],
            canary_graphs=tuple(
                each.strip() for each in (values["canary_graphs"] or "").split(",") if each.strip()
            ),
            strategy=strategy,
            **more,
        )
    except ValidationError as error:
        raise _invalid(error) from None


def strategy_of(values: dict[str, Any], before: Strategy | None = None) -> Strategy:
    """The knobs that were given, the others as they were before.

    Raises:
        InvalidRequest: A knob cannot have that value.
    """
    knobs: dict[str, Any] = (before or Strategy()).model_dump()
    for name in Strategy.model_fields:
        if values.get(name) is not None:
            knobs[name] = None if values[name].lower() == "none" else values[name]
    if isinstance(knobs["waves"], str):
        knobs["waves"] = [each.strip(" %") for each in knobs["waves"].split(",")]
    try:
        return Strategy.model_validate(knobs)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    return InvalidRequest(
        str(first["loc"][0]).replace("_", "-"), str(first["msg"]).removeprefix("Value error, ")
    )


@rollout.command()
@_selection
def plan(as_json: bool, **values: Any) -> None:
    """Show what a rollout would do: which graphs, canaries, stages and hops. Nothing is written."""
    request = _request(values)
    with executors().borrow() as executor:
        found = make_plan(executor, request)
    _print(found, as_json, _show_plan)


@rollout.command()
@_selection
@click.option("--reason", help="Why; it is recorded.")
@click.option("--hold", "held", is_flag=True, help="Start it held, until `rollout resume`.")
def start(as_json: bool, reason: str | None, held: bool, **values: Any) -> None:
    """Start a rollout. Workers move it on; `rollout show` says how far it is."""
    request = _request(values, reason=reason, held=held, requested_by=user())
    with executors().borrow() as executor:
        found = start_rollout(executor, request)
    _print(found, as_json, _show_plan)


def _print(found: BaseModel, as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        print_json(found)
    else:
        show(found)


def _show_plan(found: RolloutPlan) -> None:
    out = console()
    what = f"rollout {found.rollout_id} started" if found.rollout_id else "plan; nothing was written"
    versions = ", ".join(f"{count:,} from v{version}" for version, count in found.by_version.items())
    out.print(f"{found.graph_type} → v{found.to_version}: {what}")
    out.print(f"{plural(found.graphs, 'graph', 'graphs')}: {versions}")
    out.print(f"hops: {', '.join(found.hops)}")
    if found.without_reverse:
        out.print(f"without a reverse: {', '.join(found.without_reverse)}")
    if found.expected_seconds is not None:
        out.print(
            f"work: about {duration(found.expected_seconds)} by the audit of these hops, without bakes and gates"
        )
    for worker, has in found.lacking.items():
        out.print(f"worker {worker} {has}; what it receives waits for another worker")
    for why, count in found.skipped.items():
        out.print(f"skipped: {count:,} {why}")
    out.print(
        table(None, ("stage", "kind", "graphs"), [(s.number, s.kind, f"{s.size:,}") for s in found.stages])
    )
    if found.canaries:
        out.print(table(None, ("canary", "because it"), [(c.graph, c.why) for c in found.canaries]))


@rollout.command()
@click.argument("which", metavar="ROLLOUT")
@click.option(
    "--to", "to_version", type=int, help="The version to go back to, where the graphs came from several."
)
@click.option("--dry-run", is_flag=True, help="Say what it would do, and write nothing.")
@knob_options
@click.option("--reason", help="Why; it is recorded.")
@json_option
def back(
    which: str, to_version: int | None, dry_run: bool, reason: str | None, as_json: bool, **knobs: Any
) -> None:
    """Start the rollout that moves back what ROLLOUT has moved, with canaries and stages of its own."""
    strategy = strategy_of(knobs)
    with executors().borrow() as executor:
        request = make_back(
            executor, which, Operator(user(), reason), to_version=to_version, strategy=strategy
        )
        found = make_plan(executor, request) if dry_run else start_rollout(executor, request)
    _print(found, as_json, _show_plan)


@rollout.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """List rollouts, the latest first."""
    with executors().borrow() as executor:
        found = inspection.list_rollouts(executor)
    if as_json:
        print_json(found)
        return
    rows = [
        (str(r.id)[:8], r.graph_type, f"v{r.to_version}", r.status, f"{r.stage}/{r.stages}", _done(r.counts),
         r.counts.failed, moment(r.started_at), r.requested_by)
        for r in found
    ]  # fmt: skip
    columns = ("rollout", "type", "to", "status", "stage", "done", "failed", "started", "by")
    console().print(table(None, columns, rows))


def _done(counts: Counts) -> str:
    return f"{counts.succeeded + counts.skipped:,} of {counts.total:,}"


@rollout.command()
@click.argument("which", metavar="ROLLOUT")
@json_option
def show(which: str, as_json: bool) -> None:
    """Show how far a rollout is, and first why it does not move and what to do next."""
    with executors().borrow() as executor:
        found = inspection.show(executor, which)
    _print(found, as_json, _show_state)


def _show_state(found: RolloutState) -> None:
    out, r = console(), found.rollout
    out.print(f"{r.status}: {found.why}")
    out.print(f"to do: {found.what_to_do}")
    by = f", by {r.requested_by}" if r.requested_by else ""
    out.print(f"rollout {r.id}: {r.graph_type} → v{r.to_version}, started {moment(r.started_at)}{by}")
    if r.reason:
        out.print(f"reason: {r.reason}")
    rows = [
        (s.number, s.kind, s.counts.pending, s.counts.dispatched, s.counts.succeeded, s.counts.failed, s.counts.skipped,
         moment(s.ended_at))
        for s in found.stages
    ]  # fmt: skip
    columns = ("stage", "kind", "pending", "dispatched", "succeeded", "failed", "skipped", "ended")
    out.print(table(None, columns, rows))
    out.print(pace_line(found))
    if found.paused_graphs:
        out.print(f"paused by an operator: {', '.join(found.paused_graphs)}")


rollout.add_command(watch)


@rollout.command()
@click.argument("which", metavar="ROLLOUT")
@click.option(
    "--status", type=click.Choice([each.value for each in MemberStatus]), help="Only graphs with this status."
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--after", metavar="PLACE", help="The place of the last graph of the page before.")
@json_option
def graphs(which: str, status: str | None, limit: int, after: str | None, as_json: bool) -> None:
    """List the graphs of a rollout in the order in which they are moved."""
    with executors().borrow() as executor:
        found = inspection.members(
            executor, which, status=MemberStatus(status) if status else None, after=after, limit=limit
        )
    if as_json:
        print_json(found)
        return
    rows = [(m.graph, m.stage, m.status, f"v{m.from_version}", m.tries, m.note) for m in found]
    console().print(table(None, ("graph", "stage", "status", "from", "tries", "note"), rows))
    if len(found) == limit:
        click.echo(f"More may follow: --after {found[-1].place}", err=True)


@rollout.command()
@click.argument("which", metavar="ROLLOUT")
@json_option
def errors(which: str, as_json: bool) -> None:
    """Group a rollout's failures by cause, with example graphs and what to do next."""
    with executors().borrow() as executor:
        found = inspection.errors(executor, which)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No graph of it has failed.")
    for group in found:
        click.echo(f"{group.error_group}: {plural(group.graphs, 'graph', 'graphs')}: {group.title}")
        click.echo(f"  for example {', '.join(group.examples)}")
        click.echo(f"  to do: {group.what_to_do}")


@rollout.command()
@click.argument("which", metavar="ROLLOUT")
@json_option
def changes(which: str, as_json: bool) -> None:
    """List what was changed in a rollout: by whom, when and why."""
    with executors().borrow() as executor:
        found = inspection.changes(executor, which)
    if as_json:
        print_json(found)
        return
    rows = [(moment(c.at), c.what, c.who or "the controller", c.why) for c in found]
    console().print(table(None, ("when", "what", "who", "why"), rows))


# ── verbs ───────────────────────────────────────────────────────────────────────────────────────────

_reason = click.option("--reason", help="Why; it is recorded.")
_which = click.argument("which", metavar="ROLLOUT")


def _carry_out(
    verb: Callable[..., RolloutVerbReport], as_json: bool, reason: str | None, *arguments: Any, **options: Any
) -> None:
    with executors().borrow() as executor:
        report = verb(executor, *arguments, Operator(user(), reason), **options)
    if as_json:
        print_json(report)
        return
    name = f"rollout {str(report.rollout_id)[:8]}: " if report.rollout_id else ""
    click.echo(f"{name}{report.message}" + (f" ({report.status})" if report.status else ""))


@rollout.command()
@_which
@_reason
@json_option
def pause(which: str, reason: str | None, as_json: bool) -> None:
    """Hold a rollout until `resume`; graphs in flight end their migration."""
    _carry_out(operations.pause, as_json, reason, which)


@rollout.command()
@_which
@click.option(
    "--accept-new-code", is_flag=True, help="Go on with the hops that this process has, not those planned."
)
@_reason
@json_option
def resume(which: str, accept_new_code: bool, reason: str | None, as_json: bool) -> None:
    """Let a held rollout go on; failures are counted anew."""
    _carry_out(operations.resume, as_json, reason, which, accept_new_code=accept_new_code)


@rollout.command()
@_which
@_reason
@json_option
def promote(which: str, reason: str | None, as_json: bool) -> None:
    """Open the gate that a rollout waits at."""
    _carry_out(operations.promote, as_json, reason, which)


@rollout.command()
@_which
@_reason
@json_option
def cancel(which: str, reason: str | None, as_json: bool) -> None:
    """End a rollout; waiting graphs stay as they are."""
    _carry_out(operations.cancel, as_json, reason, which)


@rollout.command()
@_which
@click.option("--error", "group", help="Only failures of this error group.")
@_reason
@json_option
def retry(which: str, group: str | None, reason: str | None, as_json: bool) -> None:
    """Queue failed graphs for another try; reopens a rollout that has finished."""
    _carry_out(operations.retry, as_json, reason, which, error_group=group)


@rollout.command()
@_which
@click.argument("names", metavar="GRAPH...", nargs=-1, required=True)
@_reason
@json_option
def skip(which: str, names: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """Take waiting or failed graphs out of a rollout."""
    _carry_out(operations.skip, as_json, reason, which, names)


@rollout.command(name="set")
@_which
@click.argument("knob")
@click.argument("value")
@_reason
@json_option
def set_(which: str, knob: str, value: str, reason: str | None, as_json: bool) -> None:
    """Change a setting of a live rollout, for example `max-in-flight 4`; `none` removes a window."""
    _carry_out(operations.set_knob, as_json, reason, which, knob, value)


@rollout.command()
@click.option(
    "--all", "everything", is_flag=True, required=True, help="All rollouts, also those that start later."
)
@_reason
@json_option
def hold(everything: bool, reason: str | None, as_json: bool) -> None:
    """Hold all rollouts until `unhold`."""
    _carry_out(operations.hold_all, as_json, reason)


@rollout.command()
@_reason
@json_option
def unhold(reason: str | None, as_json: bool) -> None:
    """End the hold of all rollouts; those held for another reason stay held."""
    _carry_out(operations.unhold_all, as_json, reason)
