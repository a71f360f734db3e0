"""The ASGI application: alone, or mounted in a FastAPI, Starlette or Django project."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from graph_migrator.console import api, forms, pages
from graph_migrator.console.authentication import Auth, Authenticator, LoginLimit
from graph_migrator.console.gate import Gate
from graph_migrator.console.problems import Problem, as_problem, respond
from graph_migrator.console.rendering import show_problem
from graph_migrator.console.services import Services
from graph_migrator.console.stream import Stream
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.store.errors import DRIVER_ERRORS

_HERE = Path(__file__).parent


def create_app(
    auth: Auth = "tokens", *, services: Services | None = None, local_name: str = "local"
) -> FastAPI:
    """The console as an ASGI application.

    Args:
        auth: ``"tokens"``: bearer tokens, and a login with one for browsers. ``"none"``: whoever is on this machine;
            others are refused. A `ProxyHeader`. Or a callable that gets the request and returns an `Identity`, or
            None for nobody; it may be async.
        services: Postgres and the broker; by default those of this process's settings.
        local_name: Who asks, where there is no authentication.

    Returns:
        The application. It connects when the first request comes. Its lifespan, where it runs, closes what it has
        opened; mounted in an application that does not run it, everything ends with the process.
    """
    mine = services or Services()
    stream = Stream(mine.engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        mine.fleet.look()
        yield
        stream.close()
        mine.close()

    app = FastAPI(
        title="graph-migrator",
        version=version("graph-migrator"),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    authenticator = Authenticator(auth, mine.engine, local_name)
    app.state.services, app.state.stream = mine, stream
    app.state.authenticator, app.state.login_limit = authenticator, LoginLimit()
    app.include_router(api.router)
    app.include_router(pages.router, include_in_schema=False)
    app.include_router(forms.router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    app.add_api_route("/healthz", _healthz, include_in_schema=False)
    kinds: tuple[Any, ...] = (
        Problem, GraphMigratorError, HTTPException, RequestValidationError, *DRIVER_ERRORS,
    )  # fmt: skip
    for kind in kinds:
        app.add_exception_handler(kind, _answer_error)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign] # FastAPI's documented way
    app.add_middleware(Gate, authenticator=authenticator, answer_error=_answer_error)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document. A malformed request is a 400 here, as `PROBLEMS` says, and never FastAPI's 422."""
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for operations in app.openapi_schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
    return app.openapi_schema


async def _healthz() -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        # Not what was sent: it may be a secret in the wrong place.
        reasons = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        detail = f"{reasons}. Nothing was changed."
        problem: dict[str, Any] = {"status": 400, "title": "InvalidRequest", "detail": detail}
    else:
        problem = as_problem(error)
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    is_known = "who" in request.scope.get("state", {})
    if path.startswith("/api/") or not (is_known or "text/html" in request.headers.get("accept", "")):
        return respond(problem)
    return show_problem(request, problem)
