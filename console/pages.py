"""The pages: HTML that works without JavaScript, rendered from the same models as the API's JSON."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Path, Query, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from graph_migrator.console import api, reads, verbs
from graph_migrator.console.api import STATES, Deps, Name, State, Text, Version, Who, place, place_of
from graph_migrator.console.authentication import COOKIE, Authenticator, LoginLimit
from graph_migrator.console.problems import Problem
from graph_migrator.console.verbs import BulkRetry, GraphVerb, PolicyRequest, RolloutBack, RolloutVerb
from graph_migrator.core.access import tokens
from graph_migrator.core.access.repeated import find_answer
from graph_migrator.core.access.tokens import SESSION_HOURS, Identity, Role
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection import history as reading
from graph_migrator.core.inspection.attempts import attempt_story
from graph_migrator.core.inspection.quantities import count, duration, pace, quantity, time_range
from graph_migrator.core.inspection.requests import find_request, list_requests
from graph_migrator.core.rollouts import inspection as rollouts
from graph_migrator.core.rollouts.back import ways_back, why_not_back
from graph_migrator.core.rollouts.start import RolloutRequest
from graph_migrator.core.rollouts.statuses import MemberStatus
from graph_migrator.core.rollouts.strategy import FROZEN, Strategy
from graph_migrator.core.rollouts.troubles import is_fleet_held

PAGE_SIZE: Final = 50
STORIES: Final = 20
"""Migrations of a graph on one page."""
_LONGEST_FORM: Final = 65_536
_MOST_IN_CSV: Final = 100_000

router = APIRouter()


def _moment(value: datetime | None) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if value is not None else ""


def _ago(value: datetime | None) -> str:
    if value is None:
        return ""
    seconds = int((datetime.now(UTC) - value).total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{max(seconds, 0)} s ago"


def _with_code(text: str) -> Markup:
    """A sentence whose commands, in backticks, are set as code."""
    parts = text.split("`")
    return Markup().join(
        Markup('<code class="command">{}</code>').format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


_templates = Environment(
    loader=FileSystemLoader(FilePath(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(
    moment=_moment,
    ago=_ago,
    duration=duration,
    with_code=_with_code,
    quote=lambda text: quote(str(text), safe=""),
)
_templates.globals.update(
    count=count, pace=pace, quantity=quantity, time_range=time_range, new_id=lambda: str(uuid4())
)


def show(request: Request, template: str, code: int = 200, **values: Any) -> HTMLResponse:
    """A page."""
    root = request.scope.get("root_path", "")
    authenticator: Authenticator = request.app.state.authenticator
    who: Identity | None = getattr(request.state, "who", None)
    text = _templates.get_template(template).render(
        root=root,
        path=request.url.path.removeprefix(root),
        query=dict(request.query_params),
        now=datetime.now(UTC),
        who=who,
        may_act=who is not None and who.may(Role.OPERATOR),
        has_login=authenticator.has_login,
        said=_said(request) if who is not None and "request" in request.query_params else None,
        **values,
    )
    return HTMLResponse(text, code)


def show_problem(request: Request, problem: Mapping[str, Any]) -> Response:
    """An error as a page."""
    return show(request, "problem.html", problem["status"], problem=problem)


def _said(request: Request) -> str | None:
    """What became of the request whose id stands in the address."""
    try:
        request_id = UUID(request.query_params["request"])
    except ValueError:
        return None
    services = api.services_of(request)
    found = find_request(services.engine, str(request_id))
    if found is not None:
        return f"{found.verb} of {found.subject}: {found.outcome}"
    answer = find_answer(services.engine, request_id)
    if answer is None:
        return "It was sent. No worker has begun it yet."
    return str(answer.get("message") or ", ".join(f"{k}: {v}" for k, v in answer.items() if v))


# ── reads ───────────────────────────────────────────────────────────────────────────────────────────


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
        slug = reading.find_graph(services.engine, find.strip()).slug
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
    plan = verbs.plan_rollout(services, _options(RolloutRequest, fields)) if graph_type else None
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


# ── verbs ───────────────────────────────────────────────────────────────────────────────────────────


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        Problem: It is too long, or no form.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_FORM:
            raise Problem(413, "Too long", "This form is longer than any of ours. Nothing was changed.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=False, max_num_fields=100))
    except ValueError:
        raise Problem(400, "InvalidRequest", "This is not a form. Nothing was changed.") from None


Form = Annotated[dict[str, str], Depends(_form)]


def _id_of(form: dict[str, str]) -> UUID:
    """The form's own id: sent twice, it acts once."""
    try:
        return UUID(form.pop("request_id", "")) if "request_id" in form else uuid4()
    except ValueError:
        raise Problem(400, "InvalidRequest", "request_id is no UUID. Nothing was changed.") from None


def _back(request: Request, path: str, request_id: UUID) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}{path}?request={request_id}", 303)


def _options(model: Any, form: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate(form)
    except ValueError as error:
        raise Problem(400, "InvalidRequest", f"{_first_reason(error)}. Nothing was changed.") from None


def _first_reason(error: Any) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


@router.post("/graphs/{graph}/{verb}")
def post_graph_verb(
    request: Request, services: Deps, who: Who, form: Form, graph: Name, verb: Annotated[str, Path()]
) -> Response:
    """Carry out a verb on a graph."""
    if verb not in verbs.GRAPH_VERBS:
        raise Problem(404, "Not found", f"There is no verb {verb!r} on graphs.")
    request_id = _id_of(form)
    verbs.graph_verb(services, who, request_id, graph, verb, _options(GraphVerb, form))
    return _back(request, f"/graphs/{quote(graph)}", request_id)


@router.post("/plan")
def post_plan(request: Request, services: Deps, who: Who, form: Form) -> Response:
    """Start the rollout that was planned."""
    request_id = _id_of(form)
    started = verbs.start_rollout(services, who, request_id, _options(RolloutRequest, form))
    return RedirectResponse(f"{request.scope.get('root_path', '')}/rollouts/{started.rollout_id}", 303)


@router.post("/rollouts/{rollout}/back")
def post_back(request: Request, services: Deps, who: Who, form: Form, rollout: Name) -> Response:
    """Start the rollout that moves back what this one has moved."""
    request_id = _id_of(form)
    started = verbs.back_rollout(services, who, request_id, rollout, _options(RolloutBack, form))
    return RedirectResponse(f"{request.scope.get('root_path', '')}/rollouts/{started.rollout_id}", 303)


@router.post("/rollouts/{rollout}/{verb}")
def post_rollout_verb(
    request: Request, services: Deps, who: Who, form: Form, rollout: Name, verb: Annotated[str, Path()]
) -> Response:
    """Carry out a verb on a rollout."""
    if verb not in verbs.ROLLOUT_VERBS:
        raise Problem(404, "Not found", f"There is no verb {verb!r} on rollouts.")
    request_id = _id_of(form)
    fields: dict[str, Any] = {**form, **({"graphs": form["graphs"].split()} if "graphs" in form else {})}
    verbs.rollout_verb(services, who, request_id, rollout, verb, _options(RolloutVerb, fields))
    return _back(request, f"/rollouts/{quote(rollout)}", request_id)


@router.post("/types/{graph_type}/policy")
def post_policy(request: Request, services: Deps, who: Who, form: Form, graph_type: Name) -> Response:
    """Let the graphs of a type move by themselves, or not."""
    request_id = _id_of(form)
    verbs.change_policy(services, who, request_id, graph_type, _options(PolicyRequest, form))
    return _back(request, "/types", request_id)


@router.post("/hold")
def post_hold(request: Request, services: Deps, who: Who, form: Form) -> Response:
    """Hold all rollouts."""
    request_id = _id_of(form)
    verbs.hold_all(services, who, request_id, form.get("reason"), on=True)
    return _back(request, "/", request_id)


@router.post("/unhold")
def post_unhold(request: Request, services: Deps, who: Who, form: Form) -> Response:
    """End the hold of all rollouts."""
    request_id = _id_of(form)
    verbs.hold_all(services, who, request_id, form.get("reason"), on=False)
    return _back(request, "/", request_id)


@router.post("/failures/retry")
def post_retry_many(request: Request, services: Deps, who: Who, form: Form) -> Response:
    """Retry the failed graphs that a filter selects."""
    request_id = _id_of(form)
    verbs.retry_many(services, who, request_id, _options(BulkRetry, form))
    return _back(request, "/graphs", request_id)


@router.post("/doctor")
def post_doctor(request: Request, services: Deps) -> Response:
    """Check again."""
    services.findings.forget()
    services.findings.look(wait_seconds=10)
    return RedirectResponse(f"{request.scope.get('root_path', '')}/doctor", 303)


# ── login ───────────────────────────────────────────────────────────────────────────────────────────


@router.get("/login")
def get_login(request: Request) -> Response:
    """The form to log in."""
    return show(request, "login.html", wrong=False, to=_next(request.query_params.get("next", "/")))


@router.post("/login")
def post_login(request: Request, services: Deps, form: Form) -> Response:
    """Log in with a token."""
    limit: LoginLimit = request.app.state.login_limit
    address = request.client.host if request.client else "?"
    to = _next(form.get("next", "/"))
    limit.check(address)
    opened = tokens.open_session(services.engine, form.get("token", "").strip())
    if opened is None:
        limit.failed(address)
        return show(request, "login.html", 401, wrong=True, to=to)
    root = request.scope.get("root_path", "")
    answer = RedirectResponse(root + to, 303)
    is_local = request.url.hostname in {"localhost", "127.0.0.1", "::1"}
    answer.set_cookie(
        COOKIE, opened[1], max_age=SESSION_HOURS * 3600, path=root or "/", httponly=True, samesite="strict",
        secure=request.url.scheme == "https" or not is_local,
    )  # fmt: skip
    return answer


@router.post("/logout")
def post_logout(request: Request, services: Deps) -> Response:
    """Log out."""
    if session := request.cookies.get(COOKIE):
        tokens.end_session(services.engine, session)
    root = request.scope.get("root_path", "")
    answer = RedirectResponse(f"{root}/login", 303)
    answer.delete_cookie(COOKIE, path=root or "/")
    return answer


def _next(to: str) -> str:
    """Where to go after the login; never to another site."""
    parts = urlsplit(to)
    is_ours = to.startswith("/") and not to.startswith("//") and "\\" not in to and not parts.netloc
    return to if is_ours and to.isprintable() else "/"
