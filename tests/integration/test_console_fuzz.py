"""Whatever is sent: no 500, no traceback, no secret comes back, and no row changes where nothing was to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from httpx2 import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.core import NotSet
from sqlalchemy import Engine

from graph_migrator import run_graph_migration
from graph_migrator.console import Role
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.integration.web import Console, console, everything
from tests.rows import add_graph

SECRET = "sk-live-0a1b2c3d4e5f"
OFTEN = settings(
    max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def here(engine: Engine, executors: Executors, script: Script) -> Iterator[Console]:
    for slug in ("g", "h"):
        add_graph(engine, slug, "plain", nodes={"n": {"name": SECRET}})
    run_graph_migration(engine, "g", 2)
    add_graph(engine, "member", "batched", nodes={"n": {"name": SECRET}})
    with executors.borrow() as executor:
        start(executor, RolloutRequest(graph_type="batched", held=True))
    with console(engine) as made:
        yield made


@pytest.mark.timeout(300)
def test_no_request_of_the_openapi_is_answered_with_an_error_of_ours(here: Console) -> None:
    described = schemathesis.openapi.from_dict(here.app.openapi())
    asked = 0
    for found in described.get_all_operations():
        operation = found.ok()
        if operation.path == "/api/v1/events":
            continue  # never ends; tests/integration/test_console_stream.py

        @OFTEN
        @given(operation.as_strategy())
        def ask(case: Case) -> None:
            for role in (Role.VIEWER, Role.OPERATOR):
                nonlocal asked
                asked += 1
                if role is Role.OPERATOR:  # of what is there: what is behind a name is reached, too
                    there = {"graph": "g", "rollout": "batched", "attempt": 1}
                    known = {name: there[name] for name in case.path_parameters or {} if name in there}
                    case.path_parameters = {**(case.path_parameters or {}), **known}
                answer = send(here, case, role)
                assert answer.status_code < 500 or answer.status_code == 503, answer.text
                assert "Traceback" not in answer.text
                assert SECRET not in answer.text
                if role is Role.VIEWER and case.method != "GET":
                    assert answer.status_code in {403, 404, 405}
                if answer.status_code >= 400:
                    assert answer.headers["content-type"] == "application/problem+json"

        ask()
    assert asked > 300


def send(here: Console, case: Case, role: Role) -> Response:
    headers = {name: value.encode("latin-1", "replace") for name, value in (case.headers or {}).items()}
    body = {} if isinstance(case.body, NotSet) else {"json": case.body}
    return here.client.request(
        case.method, case.formatted_path, params=case.query, headers={**headers, "x-role": role.value}, **body
    )


@pytest.mark.parametrize(
    "page",
    ["/graphs", "/audit", "/login", "/rollouts", "/rollouts/batched", "/rollouts/batched/changes",
     "/rollouts/batched/back", "/graphs/g", "/attempts/1", "/plan"],
)  # fmt: skip
def test_no_query_breaks_a_page_or_comes_back_as_markup(here: Console, page: str) -> None:
    before = everything(here.engine)

    @OFTEN
    @given(
        st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "version",
                    "state",
                    "only",
                    "after",
                    "find",
                    "status",
                    "request",
                    "next",
                    "to",
                    "slug",
                    "where",
                ]
            ),
            st.text() | st.just('"><script>alert(1)</script>'),
            max_size=4,
        )
    )
    def ask(query: dict[str, str]) -> None:
        query = {name: value.encode("utf-8", "replace").decode() for name, value in query.items()}
        answer = here.get(page, params=query)
        assert answer.status_code < 500
        assert "<script>alert" not in answer.text
        assert "Traceback" not in answer.text

    ask()
    assert everything(here.engine) == before


def test_no_form_breaks_a_verb(here: Console) -> None:
    @OFTEN
    @given(
        st.binary(max_size=200),
        st.sampled_from(
            [
                "/graphs/g/retry",
                "/graphs/h/release",
                "/rollouts/batched/set",
                "/rollouts/batched/back",
                "/failures/retry",
            ]
        ),
    )
    def send(body: bytes, path: str) -> None:
        answer = here.post(path, content=body, headers={"content-type": "application/x-www-form-urlencoded"})
        assert answer.status_code < 500
        assert "Traceback" not in answer.text

    send()


def test_a_form_without_end_is_refused(here: Console) -> None:
    answer = here.post("/graphs/g/lock", content=b"reason=" + b"x" * 100_000)
    assert answer.status_code == 413
    assert here.get("/api/v1/graphs/g").json()["state"]["graph"]["read_only"] is None


def test_secrets_that_are_sent_come_back_nowhere(here: Console, caplog: pytest.LogCaptureFixture) -> None:
    for headers in ({"authorization": f"Bearer {SECRET}"}, {"cookie": f"graph_migrator_session={SECRET}"}):
        for path in ("/", "/api/v1/graphs", "/api/v1/graphs/nobody", "/nowhere"):
            assert SECRET not in here.get(path, headers=headers).text
    assert SECRET not in here.post("/login", data={"token": SECRET}).text
    assert SECRET not in here.post("/api/v1/graphs/g/lock", json={"token": SECRET}).text
    assert SECRET not in caplog.text
