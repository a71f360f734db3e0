"""The pages: HTML that works without JavaScript, rendered from the same models as the API's JSON."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlencode
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from graph_migrator.console import reads, verbs
from graph_migrator.console.api import STATES, Deps, Name, State, Text, Version, Who, place, place_of
from graph_migrator.console.forms import model_of
from graph_migrator.console.rendering import show
from graph_migrator.core.access.tokens import Role
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection.attempts import attempt_story
from graph_migrator.core.inspection.graphs import find_graph
from graph_migrator.core.inspection.requests import list_requests
from graph_migrator.core.rollouts import inspection as rollouts
from graph_migrator.core.rollouts.back import ways_back, why_not_back
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.statuses import MemberStatus
from graph_migrator.core.rollouts.strategy import FROZEN, Strategy
from graph_migrator.core.rollouts.troubles import is_fleet_held

PAGE_SIZE: Final = 50
STORIES: Final = 20
"""Migrations of a graph on one page."""
_MOST_IN_CSV: Final = 100_000

router = APIRouter()


@router.get("/")
def get_home(request: Request, services: Deps) -> Response:
    """What is wrong now, and what moves."""
    return show(request, "home.html", found=reads.first_page(services))


@router.get("/graphs")
def get_graphs(
    request: Request,
    services: Deps,
    graph_type: Annotated[Text | None, Query(alias="type")] = None,
    version: Annotated[str, Query(pattern=r"^\d{0,9}$")] = "",
    state: State | Literal[""] = "",
    only: Annotated[str, Query(pattern="^(|behind|unreachable)$")] = "",
    after: Text | None = None,
    find: Text | None = None,
) -> Response:
    """Graphs by filter."""
    if find:
        slug = find_graph(services.engine, find.strip()).slug
        return RedirectResponse(f"{request.scope.get('root_path', '')}/graphs/{quote(slug)}", 303)
    found = reads.graphs(
        services, graph_type=graph_type or None, version=int(version) if version else None, state=state or None,
        behind=only == "behind",
        unreachable=only == "unreachable", after=after, limit=PAGE_SIZE,
    )  # fmt: skip
    filters = {"type": graph_type or "", "version": version, "state": state, "only": only}
    kept = {name: value for name, value in filters.items() if value}
    following = urlencode({**kept, "after": found[-1].slug}) if len(found) == PAGE_SIZE else None
    failures = reads.failures(services, graph_type=graph_type or None) if state == "failed" else []
    return show(
        request, "graphs.html", graphs=found, following=following, filters=filters, states=STATES,
        types=sorted(graph_types()), newest={kind.name: kind.newest for kind in graph_types().values()},
        failures=failures, most=reads.MOST_AT_ONCE, command=_graphs_command(kept),
    )  # fmt: skip


def _graphs_command(kept: Mapping[str, str]) -> str:
    options = [f"--{kept['only']}"] if "only" in kept else []
    options += [f"--{name} {kept[name]}" for name in ("type", "version", "state") if name in kept]
    return " ".join(["graph-migrator graphs", *options])


@router.get("/graphs/{graph}")
def get_graph(request: Request, services: Deps, graph: Name, after: UUID | None = None) -> Response:
    """One graph."""
    found = reads.graph(services, graph)
    stories = reading.history(services.engine, graph, before=after, limit=STORIES)
    earlier = stories[0].report.migration_id if len(stories) == STORIES else None
    return show(
        request, "graph.html", found=found, state=found.state, stories=stories[::-1], earlier=earlier,
        ahead=reads.plan_ahead(found.state),
    )  # fmt: skip


@router.get("/rollouts")
def get_rollouts(request: Request, services: Deps, after: UUID | None = None) -> Response:
    """Rollouts, the latest first."""
    with services.executors.borrow() as executor:
        found = rollouts.list_rollouts(executor, after=after, limit=PAGE_SIZE)
        held = is_fleet_held(executor)
    following = urlencode({"after": found[-1].id}) if len(found) == PAGE_SIZE else None
    return show(request, "rollouts.html", rollouts=found, fleet_held=held, following=following)


@router.get("/plan")
def get_plan(
    request: Request,
    services: Deps,
    graph_type: Annotated[Text, Query(alias="type")] = "",
    to: Annotated[str, Query(pattern=r"^\d{0,9}$")] = "",
    version: Annotated[str, Query(pattern=r"^\d{0,9}$")] = "",
    slug: Text = "",
    where: Annotated[str, Query(max_length=1_000)] = "",
) -> Response:
    """What a rollout of the selected graphs would do. Nothing is written."""
    chosen = {
        "graph_type": graph_type,
        "to_version": to,
        "from_version": version,
        "slug": slug,
        "where": where,
    }
    fields = {name: value for name, value in chosen.items() if value}
    plan = verbs.plan_rollout(services, model_of(RolloutRequest, fields)) if graph_type else None
    return show(
        request, "plan.html", plan=plan, fields=fields, chosen=chosen, types=sorted(graph_types()),
        command=_rollout_command(fields),
    )  # fmt: skip


def _rollout_command(fields: Mapping[str, str]) -> str:
    options = {"to_version": "--to", "from_version": "--from", "slug": "--slug", "where": "--where"}
    given = [f"{option} {shlex.quote(fields[name])}" for name, option in options.items() if name in fields]
    everything = [] if fields.keys() & {"from_version", "slug", "where"} else ["--all"]
    return " ".join(["graph-migrator rollout start", fields.get("graph_type", "TYPE"), *everything, *given])


@router.get("/rollouts/{rollout}")
def get_rollout(
    request: Request,
    services: Deps,
    rollout: Name,
    status: MemberStatus | None = None,
    after: Text | None = None,
) -> Response:
    """One rollout."""
    found = reads.rollout(services, rollout)
    with services.executors.borrow() as executor:
        members = rollouts.members(executor, rollout, status=status, after=after or None, limit=PAGE_SIZE)
    kept = {"status": status.value} if status else {}
    following = urlencode({**kept, "after": members[-1].place}) if len(members) == PAGE_SIZE else None
    return show(
        request, "rollout.html", found=found, state=found.state, members=members, status=status,
        statuses=list(MemberStatus), following=following, is_first=not after, knobs=_knobs(found.state.strategy),
    )  # fmt: skip


def _knobs(strategy: Strategy) -> list[dict[str, Any]]:
    """What can be changed while a rollout is live, each with its value."""
    return [
        {"name": name.replace("_", "-"), "value": "none" if value is None else value}
        for name, value in strategy
        if name not in FROZEN
    ]


@router.get("/rollouts/{rollout}/changes")
def get_changes(
    request: Request,
    services: Deps,
    rollout: Name,
    after: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
) -> Response:
    """What was changed in a rollout, the latest first."""
    with services.executors.borrow() as executor:
        state = rollouts.show(executor, rollout)
        found = rollouts.changes(executor, rollout, before=after, limit=PAGE_SIZE)
    following = urlencode({"after": found[0].id}) if len(found) == PAGE_SIZE else None
    return show(request, "changes.html", state=state, changes=found, following=following)


@router.get("/rollouts/{rollout}/back")
def get_back(
    request: Request, services: Deps, who: Who, rollout: Name, to: Version | None = None
) -> Response:
    """What moving back would do. The graphs are looked at only where a version is named."""
    with services.executors.borrow() as executor:
        state = rollouts.show(executor, rollout)
    plan = verbs.plan_back(services, who, rollout, to) if to is not None else None
    return show(
        request, "back.html", state=state, ways=ways_back(state), why_not=why_not_back(state), plan=plan
    )


@router.get("/health")
def get_health(request: Request, services: Deps) -> Response:
    """The health signals."""
    with services.executors.borrow() as executor:
        found = rollouts.health(executor)
        live = rollouts.list_rollouts(executor, live=True)
    return show(request, "health.html", signals=found, rollouts=live)


@router.get("/attempts/{attempt}")
def get_attempt(
    request: Request, services: Deps, who: Who, attempt: Annotated[int, Path(ge=1, le=2**63 - 1)]
) -> Response:
    """One attempt."""
    story = attempt_story(services.engine, attempt)
    shown = reads.without_traceback(story, may_see=who.may(Role.OPERATOR))
    return show(request, "attempt.html", found=shown, has_traceback=story.traceback is not None)


@router.get("/types")
def get_types(request: Request, services: Deps) -> Response:
    """The graph types."""
    return show(request, "types.html", types=reads.types(services))


@router.get("/workers")
def get_workers(request: Request, services: Deps) -> Response:
    """The workers."""
    return show(request, "workers.html", found=reads.workers(services))


@router.get("/doctor")
def get_doctor(request: Request, services: Deps) -> Response:
    """The checks of `doctor`."""
    seen = services.findings.look(wait_seconds=0.05)
    return show(request, "doctor.html", seen=seen)


@router.get("/audit")
def get_audit(request: Request, services: Deps, after: Text | None = None) -> Response:
    """Every request."""
    found = list_requests(services.engine, before=place_of(after), limit=PAGE_SIZE)
    following = urlencode({"after": place(found[-1])}) if len(found) == PAGE_SIZE else None
    return show(request, "audit.html", requests=found, following=following)


@router.get("/audit.csv")
def get_audit_csv(services: Deps) -> Response:
    """Every request, the latest first, as CSV."""
    headers = {"content-disposition": 'attachment; filename="requests.csv"'}
    return StreamingResponse(_audit_lines(services), media_type="text/csv; charset=utf-8", headers=headers)


def _audit_lines(services: Any) -> Iterator[str]:
    columns = ("at", "who", "verb", "subject", "target", "outcome", "migration_id", "id")
    yield _csv_line(columns)
    before, sent = None, 0
    while sent < _MOST_IN_CSV:
        found = list_requests(services.engine, before=before, limit=1_000)
        for each in found:
            yield _csv_line([_plain(getattr(each, name)) for name in columns])
        if len(found) < 1_000:
            return
        sent += len(found)
        before = (found[-1].at, found[-1].id)


def _plain(value: object) -> str:
    """A cell that no spreadsheet takes for a formula."""
    text = value.isoformat() if isinstance(value, datetime) else "" if value is None else str(value)
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def _csv_line(cells: Any) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()
