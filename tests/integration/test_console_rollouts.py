"""Rollouts in the console: lists page by page, the way back, and the load that slows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from graph_migrator import HopContext
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.rows import record_change
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.store.session import Executors
from tests.integration.fleet_inline import QUICK, Fleet
from tests.integration.scripted import Script
from tests.integration.web import Console, console
from tests.rows import add_graph, rows

EVERY = QUICK.model_copy(update={"shapes": False, "waves": (100,)})


@pytest.fixture
def here(engine: Engine, script: Script) -> Iterator[Console]:
    with console(engine) as made:
        yield made


def rollout(executors: Executors, *, run: bool = True, **values: Any) -> str:
    """Start a rollout of `plain`, and move it to its end."""
    fleet = Fleet(executors)
    with executors.borrow() as executor:
        asked = RolloutRequest(**{"graph_type": "plain", "to_version": 3, "strategy": EVERY, **values})
        started = start(executor, asked)
    for _ in range(30 if run else 0):
        fleet.turn()
        fleet.deliver()
    return str(started.rollout_id)


def all_pages(here: Console, path: str, **filters: Any) -> list[dict[str, Any]]:
    """Every item of a list, in pages of two."""
    found: list[dict[str, Any]] = []
    after = None
    while True:
        page = here.get(path, params={**filters, "limit": 2, **({"after": after} if after else {})}).json()
        assert len(page["items"]) <= 2
        found += page["items"]
        after = page["next"]
        if after is None:
            return found


# ── lists ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_graphs_of_a_rollout_come_page_by_page_in_the_order_in_which_they_move(
    here: Console, executors: Executors, script: Script
) -> None:
    def refuse(ctx: HopContext) -> None:
        if ctx.graph.slug in {"g3", "g5"}:
            raise ValueError("odd")

    # Skipped and waiting graphs are numbered each from 1: a place in the list is not a number alone.
    slugs = tuple(f"g{number}" for number in range(9))
    for slug in slugs:
        add_graph(here.engine, slug, "plain", version=4 if slug in {"g1", "g7"} else 1)
    script.on["two"] = refuse
    which = rollout(executors, graphs=slugs)
    expected = rows(here.engine, "SELECT graph FROM rollout_members ORDER BY stage, position, graph_id")
    found = all_pages(here, f"/api/v1/rollouts/{which}/graphs")
    assert [(each["graph"],) for each in found] == expected
    assert len(found) == 9
    for status in ("pending", "dispatched", "succeeded", "failed", "skipped"):
        mine = [each["graph"] for each in found if each["status"] == status]
        paged = all_pages(here, f"/api/v1/rollouts/{which}/graphs", status=status)
        assert [each["graph"] for each in paged] == mine, status
    assert {each["status"] for each in found} == {"succeeded", "failed", "skipped"}
    assert here.get(f"/rollouts/{which}?status=failed&after={paged[-1]['place']}").status_code == 200
    refused = here.get(f"/api/v1/rollouts/{which}/graphs", params={"after": "1~2"})
    assert (refused.status_code, refused.json()["title"]) == (400, "InvalidRequest")


def test_rollouts_come_page_by_page_and_a_live_one_is_on_the_first_page_however_old_it_is(
    here: Console, executors: Executors
) -> None:
    add_graph(here.engine, "old", "batched")
    old = rollout(executors, run=False, graph_type="batched", to_version=None, held=True)
    for number in range(5):
        add_graph(here.engine, f"g{number}", "plain")
        rollout(executors, to_version=2)
    found = [each["id"] for each in all_pages(here, "/api/v1/rollouts")]
    assert len(found) == len(set(found)) == 6
    assert found[-1] == old
    assert [each["id"] for each in all_pages(here, "/api/v1/rollouts", live="true")] == [old]
    assert [each["rollout"]["id"] for each in here.get("/api/v1/overview").json()["rollouts"]] == [old]


def test_the_changes_of_a_rollout_and_the_migrations_of_a_graph_come_page_by_page(
    here: Console, executors: Executors
) -> None:
    add_graph(here.engine, "g", "plain")
    which = rollout(executors, run=False, held=True)
    with executors.borrow() as executor, executor.transaction(), executor.cursor() as cursor:
        for number in range(60):
            record_change(cursor, which, "pace", number, number + 1, None, f"load {number}")  # type: ignore[arg-type]
    found = all_pages(here, f"/api/v1/rollouts/{which}/changes")
    assert sorted(each["after"] for each in found if each["what"] == "pace") == list(range(1, 61))
    assert len(here.get(f"/api/v1/rollouts/{which}").json()["changes"]) == 50
    page = here.get(f"/rollouts/{which}").text
    assert "load 59" in page
    assert "load 3<" not in page
    assert f'href="/rollouts/{which}/changes"' in page
    assert "Earlier ones" in here.get(f"/rollouts/{which}/changes").text
    here.post(f"/api/v1/rollouts/{which}/cancel")
    Fleet(executors).turn()
    for _ in range(3):
        rollout(executors, to_version=2)
        rollout(executors, run=True, to_version=1, reverses=latest(here.engine))
    stories = all_pages(here, "/api/v1/graphs/g/history")
    assert len({each["report"]["migration_id"] for each in stories}) == len(stories) == 6


def latest(engine: Engine) -> str:
    return str(rows(engine, "SELECT id FROM rollouts ORDER BY started_at DESC LIMIT 1")[0][0])


def test_graphs_at_a_version_of_a_type_are_a_filter(here: Console) -> None:
    for number in range(4):
        add_graph(here.engine, f"g{number}", "plain", version=1 + number % 2)
    found = all_pages(here, "/api/v1/graphs", type="plain", version=2)
    assert [each["slug"] for each in found] == ["g1", "g3"]
    page = here.get("/graphs?type=plain&version=2&state=&only=").text
    assert "g1" in page
    assert "g2" not in page
    assert "graph-migrator graphs --type plain --version 2" in page
    assert here.get("/api/v1/graphs", params={"version": 2}).status_code == 400
    assert "/graphs?type=plain&amp;version=2" in here.get("/types").text


def test_what_is_behind_is_moved_by_a_planned_rollout_if_it_is_as_many_as_was_said(
    here: Console, executors: Executors
) -> None:
    for number in range(3):
        add_graph(here.engine, f"eu-{number}", "plain")
    add_graph(here.engine, "us-0", "plain")
    assert "/plan?type=plain" in here.get("/graphs?type=plain&only=behind").text
    page = here.get("/plan?type=plain&to=3&slug=eu-*&where=", role="operator").text
    assert "Move 3 graphs to v3" in page
    assert "graph-migrator rollout start plain --to 3 --slug &#39;eu-*&#39;" in page
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', page))
    assert rows(here.engine, "SELECT FROM rollouts") == []
    add_graph(here.engine, "eu-late", "plain")
    late = here.post("/plan", data=fields)
    assert (late.status_code, "4 graphs by now, not 3" in late.text) == (400, True)
    assert rows(here.engine, "SELECT FROM rollouts") == []
    page = here.get("/plan?type=plain&to=3&slug=eu-*", role="operator").text
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', page))
    first, again = (here.post("/plan", data={**fields, "reason": "spring"}) for _ in range(2))
    assert first.headers["location"] == again.headers["location"] == f"/rollouts/{fields['request_id']}"
    assert rows(here.engine, "SELECT requested_by, reason FROM rollouts") == [("operator-1", "spring")]


def test_a_knob_is_changed_and_graphs_are_skipped_from_a_rollouts_page(
    here: Console, executors: Executors
) -> None:
    for number in range(3):
        add_graph(here.engine, f"g{number}", "plain")
    which = rollout(executors, run=False, held=True)
    page = here.get(f"/rollouts/{which}", role="operator").text
    assert '<option value="max-in-flight">max-in-flight: 4</option>' in page
    assert 'value="canaries"' not in page, "that is settled when it starts"
    asked = {"knob": "max-in-flight", "value": "2", "reason": "the queue is long"}
    assert here.post(f"/rollouts/{which}/set", data=asked).status_code == 303
    assert here.post(f"/rollouts/{which}/skip", data={"graphs": "g0  g2"}).status_code == 303
    assert here.post(f"/rollouts/{which}/skip", data={}).status_code == 400
    assert rows(here.engine, "SELECT max_in_flight FROM rollouts") == [(2,)]
    skipped = "SELECT graph, note FROM rollout_members WHERE status = 'skipped' ORDER BY graph"
    assert rows(here.engine, skipped) == [
        ("g0", "taken out by operator-1"),
        ("g2", "taken out by operator-1"),
    ]


# ── the way back ────────────────────────────────────────────────────────────────────────────────────


def test_a_rollout_is_moved_back_once_by_a_rollout_of_its_own(here: Console, executors: Executors) -> None:
    for number in range(4):
        add_graph(here.engine, f"g{number}", "plain")
    which = rollout(executors)
    page = here.get(f"/rollouts/{which}/back", role="operator").text
    assert "4 graphs at most" in page
    assert f"graph-migrator rollout back {which[:8]} --to 1" in page
    plan = here.get(f"/api/v1/rollouts/{which}/back").json()
    assert (plan["graphs"], plan["to_version"], plan["rollout_id"]) == (4, 1, None)
    assert "Stage 1, canary" in here.get(f"/rollouts/{which}/back?to=1").text
    assert len(rows(here.engine, "SELECT FROM rollouts")) == 1, "a plan writes nothing"
    key = {"idempotency-key": str(uuid4())}
    first = here.post(f"/api/v1/rollouts/{which}/back", headers=key, json={"reason": "it was wrong"})
    again = here.post(f"/api/v1/rollouts/{which}/back", headers=key, json={"reason": "it was wrong"})
    assert first.json() == again.json()
    assert first.json()["rollout_id"] == key["idempotency-key"]
    made = rows(
        here.engine,
        "SELECT to_version, direction, reverses::text, requested_by, reason FROM rollouts WHERE reverses IS NOT NULL",
    )
    assert made == [(1, -1, which, "operator-1", "it was wrong")]
    refused = here.post(f"/api/v1/rollouts/{which}/back")
    assert (refused.status_code, refused.json()["title"]) == (409, "RolloutInFlight")


def test_where_there_is_no_way_back_the_page_says_why(here: Console, executors: Executors) -> None:
    add_graph(here.engine, "high", "plain", version=4)
    which = rollout(executors, run=False, to_version=5)
    assert "it has to end first" in here.get(f"/rollouts/{which}", role="operator").text
    assert here.get(f"/api/v1/rollouts/{which}/back").status_code == 409
    fleet = Fleet(executors)
    for _ in range(10):
        fleet.turn()
        fleet.deliver()
    assert here.get(f"/api/v1/rollouts/{which}").json()["state"]["rollout"]["status"] == "succeeded"
    for path in (f"/rollouts/{which}", f"/rollouts/{which}/back"):
        assert "no_way_back" in here.get(path, role="operator").text, path
    assert here.post(f"/rollouts/{which}/back", data={"to": "4"}).status_code == 409


def test_graphs_of_several_versions_go_back_to_one_at_a_time(here: Console, executors: Executors) -> None:
    add_graph(here.engine, "low", "plain", version=1)
    add_graph(here.engine, "high", "plain", version=2)
    which = rollout(executors)
    ways = here.get(f"/api/v1/rollouts/{which}").json()["ways_back"]
    assert [(way["to_version"], way["graphs"]) for way in ways] == [(1, 1), (2, 1)]
    assert here.post(f"/api/v1/rollouts/{which}/back").status_code == 400
    answer = here.post(f"/rollouts/{which}/back", data={"to": "2", "reason": "half of it"})
    assert answer.status_code == 303
    assert here.get(answer.headers["location"]).status_code == 200
    assert rows(here.engine, "SELECT graph FROM rollout_members m JOIN rollouts r ON r.id = m.rollout_id "
                "WHERE r.reverses IS NOT NULL") == [("high",)]  # fmt: skip


def test_a_policy_is_seen_and_set(here: Console) -> None:
    add_graph(here.engine, "g", "plain")
    (before,) = [
        each for each in here.get("/api/v1/policies").json() if each["policy"]["graph_type"] == "plain"
    ]
    assert before["policy"]["mode"] == "manual"
    page = here.get("/types", role="operator").text
    assert "graph-migrator policy set plain automatic" in page
    answer = here.post("/types/plain/policy", data={"mode": "automatic", "reason": "calm nights"})
    assert answer.status_code == 303
    assert "policy set plain manual" in here.get("/types", role="operator").text
    assert rows(here.engine, "SELECT mode, changed_by, why FROM policies") == [
        ("automatic", "operator-1", "calm nights")
    ]
    key = {"idempotency-key": str(uuid4())}
    (first, *_) = here.get("/api/v1/requests").json()["items"]
    assert (first["verb"], first["who"], first["outcome"]) == (
        "policy automatic",
        "operator-1",
        "calm nights",
    )
    asked = {"mode": "manual", "settle_seconds": 5}
    answers = [here.post("/api/v1/policies/plain", json=asked, headers=key) for _ in range(2)]
    assert [each.json()["settle_seconds"] for each in answers] == [5, 5]
    assert len(rows(here.engine, "SELECT FROM policies")) == 2
    assert here.post("/api/v1/policies/nothing", json=asked).status_code == 404


# ── health ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_signal_over_its_limit_is_on_the_first_page_and_health_says_value_limit_and_since(
    here: Console,
) -> None:
    assert here.get("/api/v1/health").json() == []
    assert "Nothing was read yet" in here.get("/health").text
    with here.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO graph_migrator.health_signals "
            "(name, level, value, slow_limit, stop_limit, since, measured_at) VALUES "
            " ('lock_waiters', 'stop', 64, 10, 50, clock_timestamp() - interval '3 minutes', clock_timestamp()), "
            "('wal_kept', 'good', 16000, 4096, 16384, clock_timestamp(), clock_timestamp())"
        )
    waiters, wal = sorted(here.get("/api/v1/health").json(), key=lambda each: str(each["signal"]))
    assert (waiters["value"], waiters["slow"], waiters["stop"], waiters["unit"]) == (64, 10, 50, "sessions")
    assert "pg_blocking_pids" in waiters["remedy"]
    assert wal["remedy"] is None
    page = here.get("/health").text
    for said in (
        "64 sessions",
        "50 sessions",
        "3 min ago",
        "16,384 MB",
        "holds rollouts",
        "pg_blocking_pids",
    ):
        assert said in page, said
    (trouble,) = here.get("/api/v1/overview").json()["wrong"]
    assert (trouble["kind"], trouble["command"]) == ("over-limit", "graph-migrator health")
    assert "64 sessions" in here.get("/").text


def test_a_strategy_may_be_given_for_the_way_back(here: Console, executors: Executors) -> None:
    add_graph(here.engine, "g", "plain")
    which = rollout(executors)
    strategy = Strategy(max_in_flight=7, shapes=False).model_dump(mode="json")
    answer = here.post(f"/api/v1/rollouts/{which}/back", json={"strategy": strategy})
    assert answer.status_code == 200, answer.text
    assert rows(here.engine, "SELECT max_in_flight FROM rollouts WHERE reverses IS NOT NULL") == [(7,)]
