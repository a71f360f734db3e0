"""The forms of the pages: each does what the API does, and leads to a page that says what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, quote, urlsplit
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import RedirectResponse, Response

from graph_migrator.console import verbs
from graph_migrator.console.api import Deps, Name, Who
from graph_migrator.console.authentication import COOKIE, LoginLimit
from graph_migrator.console.problems import Problem
from graph_migrator.console.rendering import show
from graph_migrator.console.verbs import BulkRetry, GraphVerb, PolicyRequest, RolloutBack, RolloutVerb
from graph_migrator.core.access import tokens
from graph_migrator.core.access.tokens import SESSION_HOURS
from graph_migrator.core.rollouts.request import RolloutRequest

_LONGEST_FORM: Final = 65_536

router = APIRouter()


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
    return _redirect(request, f"{path}?request={request_id}")


def _redirect(request: Request, path: str) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}{path}", 303)


def model_of(model: Any, form: Mapping[str, Any]) -> Any:
    """What a form asks for, as the model that the API takes.

    Raises:
        Problem: 400, with the first field that cannot be so.
    """
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
    verbs.graph_verb(services, who, request_id, graph, verb, model_of(GraphVerb, form))
    return _back(request, f"/graphs/{quote(graph)}", request_id)


@router.post("/plan")
def post_plan(request: Request, services: Deps, who: Who, form: Form) -> Response:
    """Start the rollout that was planned."""
    request_id = _id_of(form)
    started = verbs.start_rollout(services, who, request_id, model_of(RolloutRequest, form))
    return _redirect(request, f"/rollouts/{started.rollout_id}")


@router.post("/rollouts/{rollout}/back")
def post_back(request: Request, services: Deps, who: Who, form: Form, rollout: Name) -> Response:
    """Start the rollout that moves back what this one has moved."""
    request_id = _id_of(form)
    started = verbs.back_rollout(services, who, request_id, rollout, model_of(RolloutBack, form))
    return _redirect(request, f"/rollouts/{started.rollout_id}")


@router.post("/rollouts/{rollout}/{verb}")
def post_rollout_verb(
    request: Request, services: Deps, who: Who, form: Form, rollout: Name, verb: Annotated[str, Path()]
) -> Response:
    """Carry out a verb on a rollout."""
    if verb not in verbs.ROLLOUT_VERBS:
        raise Problem(404, "Not found", f"There is no verb {verb!r} on rollouts.")
    request_id = _id_of(form)
    fields: dict[str, Any] = {**form, **({"graphs": form["graphs"].split()} if "graphs" in form else {})}
    verbs.rollout_verb(services, who, request_id, rollout, verb, model_of(RolloutVerb, fields))
    return _back(request, f"/rollouts/{quote(rollout)}", request_id)


@router.post("/types/{graph_type}/policy")
def post_policy(request: Request, services: Deps, who: Who, form: Form, graph_type: Name) -> Response:
    """Let the graphs of a type move by themselves, or not."""
    request_id = _id_of(form)
    verbs.change_policy(services, who, request_id, graph_type, model_of(PolicyRequest, form))
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
    verbs.retry_many(services, who, request_id, model_of(BulkRetry, form))
    return _back(request, "/graphs", request_id)


@router.post("/doctor")
def post_doctor(request: Request, services: Deps) -> Response:
    """Check again."""
    services.findings.forget()
    services.findings.look(wait_seconds=10)
    return _redirect(request, "/doctor")


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
