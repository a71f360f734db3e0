"""The console in tests: on a real Postgres, with a broker that notes what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Engine, text
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient

from graph_migrator.console import Identity, Role, create_app
from graph_migrator.console.authentication import Auth
from graph_migrator.console.services import Services
from graph_migrator.core.access.tokens import create_token
from graph_migrator.core.execution.model import Caller, Dispatch
from graph_migrator.core.inspection.diagnosis import Fleet
from graph_migrator.core.inspection.doctor import Finding, Level
from graph_migrator.core.inspection.graphs import GraphSummary
from graph_migrator.core.store.session import Executors


@dataclass
class Notes:
    """A broker that notes what it is given, and sends nothing."""

    sent: list[Dispatch] = field(default_factory=list)
    called: list[tuple[str, int | None, Caller]] = field(default_factory=list)
    """Graph, target and who asks, of each `migrate_graph` call."""
    is_away: bool = False

    def send(self, dispatch: Dispatch) -> None:
        if self.is_away:
            raise ConnectionError("away")
        self.sent.append(dispatch)

    def migrate(self, executors: Executors, found: GraphSummary, target: int | None, caller: Caller) -> None:
        if self.is_away:
            raise ConnectionError("away")
        self.called.append((found.slug, target, caller))

    def ask_workers(self) -> Fleet:
        return Fleet(workers={"w1": {"plain": "0" * 12}}, queued=0)

    def examine(self) -> list[Finding]:
        return [Finding(check="database", level=Level.OK, found="answers")]


def by_header(request: HTTPConnection) -> Identity | None:
    """An application's own rule: the role stands in a header."""
    role = request.headers.get("x-role")
    return Identity(name=f"{role}-1", role=Role(role)) if role else None


@dataclass
class Console:
    """An application under test."""

    app: FastAPI
    client: TestClient
    broker: Notes
    engine: Engine

    def get(self, path: str, role: str = "viewer", **options: Any) -> Any:
        return self._ask("GET", path, role, **options)

    def post(self, path: str, role: str = "operator", **options: Any) -> Any:
        return self._ask("POST", path, role, **options)

    def _ask(
        self, method: str, path: str, role: str, headers: dict[str, str] | None = None, **options: Any
    ) -> Any:
        return self.client.request(method, path, headers={"x-role": role, **(headers or {})}, **options)

    def token(self, name: str = "ada", role: Role = Role.VIEWER) -> str:
        return create_token(self.engine, name, role)[1]


@contextmanager
def console(engine: Engine, auth: Auth = by_header, **options: Any) -> Iterator[Console]:
    broker = Notes()
    services = Services(broker=broker, engine=engine, executors=Executors(engine))
    app = create_app(auth, services=services)
    with TestClient(app, follow_redirects=False, raise_server_exceptions=True, **options) as client:
        yield Console(app, client, broker, engine)


def everything(engine: Engine) -> dict[str, str]:
    """All rows of all tables, as one text for each; but what only says that somebody was there."""
    with engine.connect() as connection:
        tables = connection.execute(
            text(
                "SELECT relname FROM pg_class WHERE relnamespace = 'graph_migrator'::regnamespace AND relkind = 'r'"
            )
        ).scalars()
        return {
            table: str(
                connection.execute(
                    text(f"SELECT string_agg(t::text, '|' ORDER BY t::text) FROM graph_migrator.{table} t")
                ).scalar()
            )
            for table in tables
            if table != "change_followers"
        }
