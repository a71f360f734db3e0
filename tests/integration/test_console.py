"""The console on a real Postgres: who gets in, what is shown and what is done."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.routing import Route
from starlette.testclient import TestClient

from graph_migrator import HopContext, run_graph_migration
from graph_migrator.console import ProxyHeader, Role, create_app
from graph_migrator.console.services import CeleryBroker, Services
from graph_migrator.core.access import tokens
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.model import Caller
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.integration.web import Console, Notes, console, everything
from tests.rows import add_graph, mark_partially_migrated, one, rows

SECRET = uuid4().hex
PAGES = ("/", "/graphs", "/rollouts", "/types", "/workers", "/health", "/audit", "/doctor", "/plan")


def _refuse(ctx: HopContext) -> None:
    int(ctx.execute("SELECT properties->>'name' FROM nodes WHERE graph_id = :graph_id").scalar_one())


@pytest.fixture
def here(engine: Engine, executors: Executors, script: Script) -> Iterator[Console]:
    """A console; graphs that are idle, failed, queued, partly behind; and a rollout."""
    add_graph(engine, "idle", "plain", nodes={"n": {"name": SECRET}})
    add_graph(engine, "broken", "plain", nodes={"n": {"name": SECRET}})
    add_graph(engine, "queued", "plain")
    add_graph(engine, "stranger", "unheard-of")
    add_graph(engine, "beyond", "plain", version=99)
    for n in range(3):
        add_graph(engine, f"member-{n}", "batched")
    script.on["two"] = _refuse
    with pytest.raises(ValueError, match="invalid literal"):
        run_graph_migration(engine, "broken")
    script.on.clear()
    with executors.borrow() as executor:
        begin_migration(executor, "queued", 2)
        start(executor, RolloutRequest(graph_type="batched", strategy=Strategy(shapes=False)))
    with console(engine) as made:
        yield made


# ── pages and reads ─────────────────────────────────────────────────────────────────────────────────


def details(here: Console) -> list[str]:
    (attempt,) = rows(here.engine, "SELECT id FROM hop_attempts WHERE status = 'failed'")[0]
    (rollout,) = rows(here.engine, "SELECT id::text FROM rollouts")[0]
    graphs = ("idle", "broken", "queued", "stranger", "beyond", "member-0")
    return [*(f"/graphs/{graph}" for graph in graphs), f"/attempts/{attempt}", f"/rollouts/{rollout}",
            "/rollouts/batched?status=pending", "/rollouts/batched/changes", "/rollouts/batched/back",
            "/graphs?type=plain&version=1", "/graphs?state=failed", "/graphs?only=behind",
            "/graphs?only=unreachable", "/graphs?type=plain&state=idle"]  # fmt: skip


def test_every_page_is_shown_and_no_row_data_is_in_it(here: Console) -> None:
    for path in (*PAGES, *details(here)):
        answer = here.get(path, role="operator")
        assert answer.status_code == 200, (path, answer.text)
        assert SECRET not in answer.text, path
        assert "<h1" in answer.text
        assert "style=" not in answer.text, path
        assert not re.search(r"<script(?![^>]*src=)", answer.text), path
        assert "Undefined" not in answer.text, path


def test_the_first_page_says_what_is_wrong_and_the_command_of_the_next_step(here: Console) -> None:
    wrong = {each["kind"]: each for each in here.get("/api/v1/overview").json()["wrong"]}
    assert set(wrong) == {"failed", "unreachable"}
    assert wrong["failed"]["command"] == "graph-migrator history broken"
    page = here.get("/").text
    assert "graph-migrator history broken" in page
    assert page.index("Wrong now") < page.index("Rollouts</h2>") < page.index("Moving</h2>")


def test_actions_that_are_not_allowed_now_say_why(here: Console) -> None:
    actions = {each["verb"]: each["why_not"] for each in here.get("/api/v1/graphs/broken").json()["actions"]}
    assert actions["retry"] is None
    assert actions["release"] is None
    assert "failed" in actions["pause"]
    assert "retry it" in actions["migrate"]
    page = here.get("/graphs/broken", role="viewer").text
    assert page.count("<button disabled>") == len(actions)
    assert "you are a viewer" in page


def test_each_action_that_is_shown_as_allowed_is_carried_out(here: Console) -> None:
    for graph in ("idle", "broken", "queued"):
        for action in here.get(f"/api/v1/graphs/{graph}").json()["actions"]:
            now = {a["verb"]: a["why_not"] for a in here.get(f"/api/v1/graphs/{graph}").json()["actions"]}
            if action["verb"] not in now:
                continue
            answer = here.post(f"/api/v1/graphs/{graph}/{action['verb']}")
            if (graph, action["verb"]) == ("broken", "migrate"):
                continue  # a program's call goes on with what has failed; a person is shown `retry` for it
            assert (answer.status_code == 200) == (now[action["verb"]] is None), (graph, action, answer.text)


def test_a_graph_that_is_partially_migrated_is_declared_whole_from_its_page(here: Console) -> None:
    (migration,) = rows(here.engine, "SELECT id FROM migrations WHERE status = 'failed'")[0]
    assert here.post("/api/v1/graphs/broken/release").status_code == 200
    mark_partially_migrated(here.engine, "broken", f'{{"migration_id": "{migration}", "hop": "two"}}')
    page = here.get("/graphs/broken", role="operator").text
    form = re.search(r'action="/graphs/broken/release">(.*?)</form>', page, re.S)
    assert form
    assert "graph-migrator release broken --whole" in form[1]
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', form[1]))
    assert here.post("/graphs/broken/release", data=fields).status_code == 303
    assert here.get("/api/v1/graphs/broken").json()["state"]["graph"]["partially_migrated"] is False


def test_a_viewer_sees_no_traceback(here: Console) -> None:
    (attempt,) = rows(here.engine, "SELECT id FROM hop_attempts WHERE status = 'failed'")[0]
    assert here.get(f"/api/v1/attempts/{attempt}", role="viewer").json()["traceback"] is None
    assert "Traceback" in here.get(f"/api/v1/attempts/{attempt}", role="operator").json()["traceback"]
    assert "operators see it" in here.get(f"/attempts/{attempt}", role="viewer").text


def test_graphs_come_page_by_page(here: Console) -> None:
    found, after = [], None
    while True:
        page = here.get("/api/v1/graphs", params={"limit": 3, **({"after": after} if after else {})}).json()
        found += [each["slug"] for each in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert found == sorted(found)
    assert len(found) == 8


def test_requests_come_page_by_page_and_as_csv(here: Console) -> None:
    for verb in ("lock", "unlock") * 3:
        assert here.post(f"/api/v1/graphs/idle/{verb}").status_code == 200
    everything_ = here.get("/api/v1/requests", params={"limit": 100}).json()["items"]
    found, after = [], None
    while True:
        page = here.get("/api/v1/requests", params={"limit": 2, **({"after": after} if after else {})}).json()
        found += page["items"]
        after = page["next"]
        if after is None:
            break
    assert found == everything_
    assert {"lock", "unlock", "rollout start"} <= {each["verb"] for each in found}
    assert {each["who"] for each in found if each["verb"] == "lock"} == {"operator-1"}
    lines = here.get("/audit.csv").text.splitlines()
    assert lines[0].startswith("at,who,verb")
    assert len(lines) == 1 + len(found)


def test_an_answer_that_has_not_changed_is_a_304(here: Console) -> None:
    first = here.get("/api/v1/types")
    tag = first.headers["etag"]
    again = here.get("/api/v1/types", headers={"if-none-match": f'"other", W/{tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert here.get("/api/v1/types", headers={"if-none-match": '"other"'}).status_code == 200


# ── verbs ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_retry_is_done_once_however_often_it_is_asked_for(here: Console) -> None:
    key = str(uuid4())
    first = here.post("/api/v1/graphs/broken/retry", headers={"idempotency-key": key})
    again = here.post("/api/v1/graphs/broken/retry", headers={"idempotency-key": key})
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert len(here.broker.sent) == 1
    request = one(here.engine, "SELECT verb, requested_by FROM requests WHERE task_id = :id", id=key)
    assert tuple(request) == ("retry", "operator-1")
    other = here.post("/api/v1/graphs/broken/cancel", headers={"idempotency-key": key})
    assert (other.status_code, other.json()["code"]) == (400, "graph_migrator.InvalidRequest")
    assert here.get("/api/v1/graphs/broken").json()["state"]["migration"]["status"] == "running"


def test_a_refusal_is_a_problem_with_the_fields_of_the_error(here: Console) -> None:
    answer = here.post("/api/v1/graphs/broken/pause")
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    problem = answer.json()
    assert problem["code"] == "graph_migrator.IllegalTransition"
    assert problem["fields"]["graph"] == "broken"
    assert "Nothing was changed" in problem["detail"]
    assert here.get("/api/v1/graphs/nobody").status_code == 404
    assert here.get("/api/v1/rollouts/nobody").status_code == 404
    assert here.get("/api/v1/attempts/99").status_code == 404
    assert here.post("/api/v1/graphs/beyond/migrate").status_code == 400


def test_migrate_is_sent_under_the_id_of_the_request(here: Console) -> None:
    key = uuid4()
    body = {"to": 3, "reason": "spring"}
    answer = here.post("/api/v1/graphs/idle/migrate", json=body, headers={"idempotency-key": str(key)})
    assert answer.json()["request_id"] == str(key)
    assert here.broker.called == [("idle", 3, Caller(str(key), "operator-1", "spring"))]
    assert here.get(f"/api/v1/requests/{key}").status_code == 404


def test_where_the_broker_is_away_a_retry_is_recorded_and_a_migrate_is_refused(here: Console) -> None:
    here.broker.is_away = True
    retried = here.post("/api/v1/graphs/broken/retry")
    assert retried.status_code == 200
    assert "broker is out of reach" in retried.json()["message"]
    refused = here.post("/api/v1/graphs/idle/migrate")
    assert (refused.status_code, refused.json()["code"]) == (503, "graph_migrator.BrokerUnreachable")


def test_a_verb_for_another_migration_than_was_seen_is_refused(here: Console) -> None:
    answer = here.post("/api/v1/graphs/broken/retry", json={"migration_id": str(uuid4())})
    assert answer.status_code == 409


def test_many_are_retried_only_where_they_are_as_many_as_were_seen(here: Console) -> None:
    wrong = here.post("/api/v1/failures/retry", json={"graph_type": "plain", "graphs": 2})
    assert (wrong.status_code, here.broker.sent) == (400, [])
    right = here.post("/api/v1/failures/retry", json={"graph_type": "plain", "graphs": 1})
    assert right.json() == {"retried": 1, "refused": {}}
    assert [each.graph for each in here.broker.sent] == ["broken"]


def test_a_rollout_is_held_and_goes_on_and_a_repeated_request_changes_nothing(here: Console) -> None:
    key = {"idempotency-key": str(uuid4())}
    assert (
        here.post("/api/v1/rollouts/batched/pause", headers=key, json={"reason": "look"}).status_code == 200
    )
    assert here.post("/api/v1/rollouts/batched/pause", headers=key).json()["message"] == "paused"
    assert [what for (what,) in rows(here.engine, "SELECT what FROM rollout_changes ORDER BY id")] == [
        "start",
        "pause",
    ]
    assert here.get("/api/v1/rollouts/batched").json()["state"]["hold"]["by"] == "operator-1"
    refused = {"idempotency-key": str(uuid4())}
    assert here.post("/api/v1/rollouts/batched/promote", headers=refused).status_code == 409
    assert here.post("/api/v1/rollouts/batched/promote", headers=refused).status_code == 409
    assert here.post("/api/v1/rollouts/batched/resume").status_code == 200
    assert here.post("/api/v1/rollouts/hold").json()["message"] == "all rollouts are held"
    assert [each["kind"] for each in here.get("/api/v1/overview").json()["wrong"]].count("fleet-held") == 1
    assert here.post("/api/v1/rollouts/unhold").status_code == 200


def test_the_forms_of_the_pages_do_what_the_api_does(here: Console) -> None:
    page = here.get("/graphs/broken", role="operator").text
    form = re.search(r'action="/graphs/broken/retry">(.*?)</form>', page, re.S)
    assert form
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', form[1]))
    answer = here.post("/graphs/broken/retry", data={**fields, "reason": "mended"})
    assert (answer.status_code, answer.headers["location"]) == (
        303, f"/graphs/broken?request={fields['request_id']}"
    )  # fmt: skip
    again = here.post("/graphs/broken/retry", data={**fields, "reason": "mended"})
    assert again.status_code == 303
    assert len(here.broker.sent) == 1
    assert "retry of broken: retried" in here.get(answer.headers["location"], role="operator").text
    refused = here.post("/graphs/broken/release", data={})
    assert refused.status_code == 409
    assert "Refused" in refused.text
    assert here.post("/graphs/idle/explode", data={}).status_code == 404
    assert here.post("/hold", data={"reason": "night"}).status_code == 303
    assert "All rollouts are held by operator-1: night" in here.get("/").text


def test_a_call_of_the_console_is_shown_as_waiting_until_a_worker_has_it(
    here: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of the command line is: both send it by one function."""
    from graph_migrator.tasks.migrate import migrate_graph

    sent: list[str] = []

    def publish(_: object, task_id: str) -> SimpleNamespace:
        sent.append(task_id)
        return SimpleNamespace(id=task_id)

    monkeypatch.setattr(migrate_graph, "apply_async", publish)
    monkeypatch.setattr(here.app.state.services, "broker", CeleryBroker())
    key = str(uuid4())
    assert (
        here.post("/api/v1/graphs/idle/migrate", headers={"idempotency-key": key}, json={"to": 3}).status_code
        == 200
    )
    assert sent == [key]
    (waiting,) = here.get("/api/v1/graphs/idle").json()["state"]["waiting_calls"]
    assert (waiting["task_id"], waiting["target"], waiting["requested_by"]) == (key, 3, "operator-1")
    assert "waits for a worker" in here.get("/graphs/idle").text


# ── who gets in ─────────────────────────────────────────────────────────────────────────────────────


def unsafe_routes(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every route that is not a read; the paths' parts filled in."""
    values = {
        "graph": "broken",
        "rollout": "batched",
        "request_id": str(uuid4()),
        "attempt": "1",
        "graph_type": "plain",
    }
    verbs = (
        "migrate",
        "retry",
        "pause",
        "resume",
        "cancel",
        "release",
        "lock",
        "unlock",
        "promote",
        "skip",
        "set",
    )
    found = []
    for route in all_routes(app):
        for method in sorted((route.methods or set()) - {"GET", "HEAD", "OPTIONS"}):
            for verb in verbs if "{verb}" in route.path else ("",):
                path = route.path.replace("{verb}", verb)
                found.append((method, re.sub(r"{(\w+)(?::\w+)?}", lambda m: values[m[1]], path)))
    return found


def all_routes(app: FastAPI) -> list[Route]:
    """Every route, also those of routers that were included."""
    found: list[Route] = []
    waiting = list(app.routes)
    while waiting:
        each = waiting.pop()
        inner = getattr(getattr(each, "original_router", None), "routes", None)
        if isinstance(each, Route):
            found.append(each)
        elif inner is not None:
            waiting += inner
    return found


def test_a_request_without_rights_changes_nothing_on_any_route(here: Console) -> None:
    routes = [each for each in unsafe_routes(here.app) if each[1] not in {"/login", "/logout"}]
    assert len(routes) > 40
    before = everything(here.engine)
    for method, path in routes:
        for body in ({"json": {}}, {"data": {"reason": "x"}}):
            nobody = here.client.request(method, path, **body)
            viewer = here.client.request(method, path, headers={"x-role": "viewer"}, **body)
            foreign = here.client.request(
                method, path, headers={"x-role": "operator", "origin": "https://elsewhere.example"}, **body
            )
            sent = here.client.request(
                method, path, headers={"x-role": "operator", "sec-fetch-site": "cross-site"}, **body
            )
            assert [each.status_code for each in (nobody, viewer, foreign, sent)] == [401, 403, 403, 403], (
                path
            )
    for route in all_routes(here.app):
        if "GET" in (route.methods or ()) and "/events" not in route.path:
            here.client.get(route.path.replace("{graph}", "broken"))
    assert everything(here.engine) == before
    assert here.broker.sent == here.broker.called == []


def test_nobody_reads_anything(here: Console) -> None:
    for route in all_routes(here.app):
        if "GET" in (route.methods or ()):
            answer = here.client.get(re.sub(r"{\w+}", "1", route.path))
            assert answer.status_code == (200 if route.path == "/healthz" else 401), route.path


def test_every_answer_has_the_headers_that_keep_a_browser_safe(here: Console) -> None:
    for path in (
        "/",
        "/api/v1/overview",
        "/static/console.css",
        "/nowhere",
        "/api/v1/graphs/nobody",
        "/login",
    ):
        headers = here.get(path).headers
        policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
        # Only our own scripts and styles, none that stand in a page; no frame around it; forms lead nowhere else.
        assert policy == {
            "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self' data:",
            "connect-src": "'self'", "form-action": "'self'", "base-uri": "'none'", "frame-ancestors": "'none'",
        }  # fmt: skip
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
    assert here.get("/").headers["cache-control"] == "no-store"


def test_a_token_lets_in_until_it_is_revoked(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    with console(engine, "tokens") as here:
        secret = here.token("ada", Role.OPERATOR)
        assert secret not in str(everything(engine))
        headers = {"authorization": f"Bearer {secret}"}
        assert here.client.get("/api/v1/graphs", headers=headers).status_code == 200
        assert here.client.post("/api/v1/graphs/g/lock", headers=headers).status_code == 200
        assert one(engine, "SELECT requested_by FROM requests").requested_by == "ada"
        assert here.client.get("/api/v1/graphs", headers={"authorization": "Bearer gmt_x"}).status_code == 401
        viewer = {"authorization": f"Bearer {here.token('bob')}"}
        assert here.client.post("/api/v1/graphs/g/unlock", headers=viewer).status_code == 403
        tokens.revoke_token(engine, "ada")
        assert here.client.get("/api/v1/graphs", headers=headers).status_code == 401


def test_an_expired_token_does_not_let_in(engine: Engine) -> None:
    made, secret = tokens.create_token(engine, "ada", Role.VIEWER, days=1)
    assert tokens.identify(engine, secret) is not None
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE graph_migrator.api_tokens SET expires_at = clock_timestamp()")
    assert tokens.identify(engine, secret) is None
    assert tokens.open_session(engine, secret) is None
    assert made.expires_at is not None


def test_a_browser_logs_in_with_a_token_and_out_again(engine: Engine) -> None:
    with console(engine, "tokens", base_url="http://127.0.0.1") as here:
        secret = here.token("ada", Role.OPERATOR)
        first = here.client.get("/graphs?state=failed")
        assert (first.status_code, first.headers["location"]) == (303, "/login?next=/graphs%3Fstate%3Dfailed")
        assert here.client.get(first.headers["location"]).status_code == 200
        answer = here.client.post("/login", data={"token": secret, "next": "/graphs?state=failed"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/graphs?state=failed")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert secret not in cookie
        assert here.client.get("/graphs").status_code == 200
        session = here.client.cookies["graph_migrator_session"]
        assert here.client.post("/logout").status_code == 303
        here.client.cookies.set("graph_migrator_session", session)
        assert here.client.get("/graphs").status_code == 303
        here.client.cookies.clear()
        here.client.post("/login", data={"token": secret})
        tokens.revoke_token(engine, "ada")
        assert here.client.get("/graphs").status_code == 303


def test_a_login_ends_when_its_time_is_over(engine: Engine) -> None:
    _, secret = tokens.create_token(engine, "ada", Role.VIEWER)
    opened = tokens.open_session(engine, secret)
    assert opened is not None
    assert tokens.identify_session(engine, opened[1]) is not None
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE graph_migrator.api_sessions SET expires_at = clock_timestamp()")
    assert tokens.identify_session(engine, opened[1]) is None


def test_the_cookie_goes_over_https_alone_but_on_this_machine(engine: Engine) -> None:
    for base, secure in (
        ("https://console.example", True),
        ("http://console.example", True),
        ("http://127.0.0.1:8080", False),
    ):
        with console(engine, "tokens", base_url=base) as here:
            answer = here.client.post("/login", data={"token": here.token(f"ada at {base}")})
            assert ("secure" in answer.headers["set-cookie"].lower()) is secure, base


def test_nobody_asks_in_the_name_of_another(here: Console) -> None:
    asked = {"graph_type": "plain", "graphs": ["idle"], "requested_by": "mallory"}
    assert here.post("/api/v1/rollouts", json=asked).status_code == 200
    assert here.post("/api/v1/graphs/idle/lock", json={"requested_by": "mallory"}).status_code == 400
    for table in ("rollouts", "rollout_changes", "requests", "api_requests"):
        assert "mallory" not in everything(here.engine)[table], table


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/\n/x"]
)
def test_a_login_never_leads_to_another_site(engine: Engine, to: str) -> None:
    with console(engine, "tokens") as here:
        answer = here.client.post("/login", data={"token": here.token(), "next": to})
        assert answer.headers["location"] == "/"


def test_wrong_tokens_are_refused_after_some_tries(engine: Engine) -> None:
    with console(engine, "tokens") as here:
        secret = here.token()
        found = [here.client.post("/login", data={"token": f"gmt_{n}"}).status_code for n in range(12)]
        assert found == [401] * 10 + [429] * 2
        assert here.client.post("/login", data={"token": secret}).status_code == 429


def test_a_login_is_refused_from_another_site(engine: Engine) -> None:
    with console(engine, "tokens") as here:
        headers = {"sec-fetch-site": "cross-site"}
        answer = here.client.post("/login", data={"token": here.token()}, headers=headers)
        assert answer.status_code == 403


def test_a_proxys_header_counts_from_the_proxy_alone(engine: Engine) -> None:
    proxy = ProxyHeader("X-User", proxies=("10.0.0.0/8",), operators=frozenset({"ada"}))
    with console(engine, proxy, client=("10.1.2.3", 1)) as here:
        assert here.client.get("/", headers={"x-user": "bob"}).status_code == 200
        assert here.client.get("/").status_code == 401
        assert here.client.post("/hold", headers={"x-user": "bob"}).status_code == 403
        assert here.client.post("/hold", headers={"x-user": "ada"}).status_code == 303
    with console(engine, proxy, client=("192.168.0.1", 1)) as here:
        assert here.client.get("/", headers={"x-user": "ada"}).status_code == 401


def test_without_authentication_this_machine_alone_is_served(engine: Engine) -> None:
    with console(engine, "none", client=("127.0.0.1", 1), base_url="http://localhost:8080") as here:
        assert here.client.get("/").status_code == 200
        assert here.client.get("/", headers={"host": "rebound.example"}).status_code == 403
    with console(engine, "none", client=("192.168.0.1", 1), base_url="http://localhost:8080") as here:
        assert here.client.get("/").status_code == 403


def test_it_can_be_mounted_below_a_path(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    outer = FastAPI()
    outer.mount(
        "/migrations",
        create_app("tokens", services=Services(broker=Notes(), engine=engine, executors=Executors(engine))),
    )
    _, secret = tokens.create_token(engine, "ada", Role.OPERATOR)
    with TestClient(outer, follow_redirects=False) as client:
        assert client.get("/migrations/graphs").headers["location"] == "/migrations/login?next=/graphs"
        answer = client.post("/migrations/login", data={"token": secret, "next": "/graphs"})
        assert answer.headers["location"] == "/migrations/graphs"
        headers = {"authorization": f"Bearer {secret}"}
        page = client.get("/migrations/graphs", headers=headers).text
        assert set(re.findall(r'(?:href|src|action)="(/[^/"]*)', page)) == {"/migrations"}
        assert client.get("/migrations/static/console.css").status_code == 200
        done = client.post("/migrations/graphs/g/lock", headers=headers)
        assert done.headers["location"].startswith("/migrations/graphs/g?request=")


# ── trouble ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_database_that_is_away_is_a_503_with_a_sentence(engine: Engine) -> None:
    from graph_migrator.core.store.connections import make_engine

    away = make_engine("postgresql://nobody:hunter2@127.0.0.1:1/none")
    with console(away) as here:
        for path in ("/api/v1/overview", "/api/v1/graphs/g", "/", "/graphs/g"):
            answer = here.get(path)
            assert answer.status_code == 503, path
            assert "does not answer" in answer.text
            assert "hunter2" not in answer.text
    with console(away, "tokens") as here:
        assert here.client.get("/api/v1/graphs", headers={"authorization": "Bearer x"}).status_code == 503


def test_the_unexpected_is_a_500_that_says_nothing(here: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    from graph_migrator.console import reads

    def explode(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(reads, "graph", explode)
    for path in ("/api/v1/graphs/idle", "/graphs/idle"):
        answer = here.get(path)
        assert answer.status_code == 500
        assert SECRET not in answer.text
        assert "Traceback" not in answer.text


def test_the_openapi_names_every_route_of_the_api(here: Console) -> None:
    described = here.get("/api/v1/openapi.json").json()["paths"]
    routes = {route.path for route in all_routes(here.app) if route.path.startswith("/api/v1/")}
    assert set(described) == routes - {"/api/v1/openapi.json"}
    for path, methods in described.items():
        for method, operation in methods.items():
            assert operation["description"], (method, path)
            assert "application/problem+json" in operation["responses"]["409"]["content"], (method, path)
            assert "422" not in operation["responses"], (method, path)


def test_the_vendored_script_comes_with_its_licence() -> None:
    static = Path(__file__).resolve().parents[2] / "console" / "static"
    (script,) = static.glob("htmx-*.js")
    assert "Zero-Clause BSD" in (static / "htmx-LICENSE.txt").read_text()
    assert "eval(" not in (static / "console.js").read_text()
    assert script.stat().st_size < 60_000
