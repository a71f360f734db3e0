"""Rendering a page: the templates, how times and commands are set in them, and what every page has."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, Response

from graph_migrator.console import api
from graph_migrator.console.authentication import Authenticator
from graph_migrator.core.access.repeated import find_answer
from graph_migrator.core.access.tokens import Identity, Role
from graph_migrator.core.inspection.quantities import count, duration, pace, quantity, time_range
from graph_migrator.core.inspection.requests import find_request


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
