"""What every request passes first: rights, forgery, and the headers of every answer.

Rights are checked here once, by the method, so that no route can forget them: a safe method needs a viewer, any other
an operator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graph_migrator.console.authentication import Authenticator
from graph_migrator.console.problems import Problem, respond
from graph_migrator.core.access.tokens import Role

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN: Final = ("/static/", "/healthz")
"""What everybody may have."""
LOGIN: Final = ("/login", "/logout")
"""What is asked for before anybody is known; forgery is checked all the same."""
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


AnswerError = Callable[[Request, Exception], Awaitable[Response]]


class Gate:
    """Middleware around all routes of the console."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, answer_error: AnswerError) -> None:
        self._app = app
        self._authenticator = authenticator
        self._answer_error = answer_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        began = False

        async def send_with_headers(message: Message) -> None:
            nonlocal began
            began = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                is_static = _path(scope).startswith("/static/")
                headers.setdefault("cache-control", "public, max-age=3600" if is_static else "no-store")
            await send(message)

        try:
            refused = await self._refuse(Request(scope))
            await (refused or self._app)(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 - it ends here, before a server logs it with all its values
            if not began:
                answer = await self._answer_error(Request(scope), error)
                await answer(scope, receive, send_with_headers)

    async def _refuse(self, request: Request) -> Response | None:
        path, is_safe = _path(request.scope), request.method in SAFE
        if path.startswith(OPEN):
            return None
        if not is_safe:
            refuse_forgery(request)
        if path in LOGIN and self._authenticator.has_login:
            return None
        who = await self._authenticator.identify(request)
        if who is None:
            return self._unknown(request, path)
        if not who.may(Role.VIEWER if is_safe else Role.OPERATOR):
            detail = f"{who.name} is a {who.role}; this needs an operator. Nothing was changed."
            raise Problem(403, "Forbidden", detail)
        request.state.who = who
        return None

    def _unknown(self, request: Request, path: str) -> Response:
        if self._authenticator.has_login and request.method == "GET" and not path.startswith("/api/"):
            to = quote(path + (f"?{request.url.query}" if request.url.query else ""))
            root = request.scope.get("root_path", "")
            return RedirectResponse(f"{root}/login?next={to}", 303)
        answer = respond(
            {"status": 401, "title": "Unauthorized", "detail": "Send a valid bearer token, or log in."}
        )
        answer.headers["www-authenticate"] = 'Bearer realm="graph-migrator"'
        return answer


def refuse_forgery(request: Request) -> None:
    """Refuse an unsafe method that a page of another site sends with this browser's cookies.

    Browsers say where a request comes from, by ``Sec-Fetch-Site`` and by ``Origin``. A client that sends neither is no
    browser, and has no cookies that were not given to it.

    Raises:
        Problem: 403.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    same = site in {None, "same-origin", "none"} and (
        origin is None or urlsplit(origin).netloc == request.headers.get("host")
    )
    if not same:
        raise Problem(403, "Forbidden", "This request comes from another site. Nothing was changed.")


def _path(scope: Scope) -> str:
    """The path below the place where the console is mounted."""
    root, path = scope.get("root_path", ""), scope["path"]
    return str(path.removeprefix(root)) if root and path.startswith(root) else str(path)
