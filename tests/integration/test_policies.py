"""The fleet around rollouts: live workers, policies, the way back, what is opened, and how graphs are selected."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, text

from graph_migrator import GraphType
from graph_migrator.core.errors import (
    GraphBehind,
    InvalidRequest,
    RolloutGivesWay,
    RolloutInFlight,
    RolloutRefused,
    UnknownGraph,
)
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection import doctor
from graph_migrator.core.inspection.waiting import wait_for
from graph_migrator.core.rollouts import operations
from graph_migrator.core.rollouts.back import back
from graph_migrator.core.rollouts.current import look, move_to_front
from graph_migrator.core.rollouts.inspection import changes, members
from graph_migrator.core.rollouts.operations import Operator
from graph_migrator.core.rollouts.policy import Mode, policies, set_policy, start_what_is_behind
from graph_migrator.core.rollouts.request import RolloutPlan
from graph_migrator.core.rollouts.start import plan, start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.workers import WorkerState, announce, retire, served, workers
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from tests.integration.fleet_inline import QUICK, Fleet, add_tenants, counted_right, tenants
from tests.rows import add_graph, rows

ADA = Operator("ada", "release 7")


@pytest.fixture
def fleet(executors: Executors) -> Fleet:
    registry.register(tenants())
    return Fleet(executors)


def worker(name: str, kind: GraphType | None = None, *, queue: str | None = None) -> WorkerState:
    types = {} if kind is None else {kind.name: served(kind)}
    return WorkerState(name=name, queue=queue or settings().queue, types=types, pool="prefork", processes=2)


def execute(engine: Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL search_path = graph_migrator"))
        connection.execute(text(statement), values)


def versions(engine: Engine) -> dict[str, int]:
    return dict(rows(engine, "SELECT slug, version FROM graphs ORDER BY slug"))


# ── workers ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_has_one_row_that_says_since_when_it_serves_what(engine: Engine, fleet: Fleet) -> None:
    fleet.do(announce, worker("w1", tenants()))
    first = fleet.do(workers)
    fleet.do(announce, worker("w1", tenants()))
    (again,) = fleet.do(workers)
    assert (again.name, again.live, again.types["tenant"].newest) == ("w1", True, 3)
    assert again.types_since == first[0].types_since
    assert again.seen_at > first[0].seen_at
    fleet.do(announce, worker("w1"))
    assert fleet.do(workers)[0].types_since > again.types_since
    execute(engine, "UPDATE workers SET seen_at = now() - interval '1 minute'")
    assert not fleet.do(workers)[0].live
    execute(engine, "UPDATE workers SET seen_at = now() - interval '2 days'")
    fleet.do(announce, worker("w2", tenants()))
    assert [each.name for each in fleet.do(workers)] == ["w2"]
    fleet.do(retire, worker("w2"))
    assert fleet.do(workers) == []


def test_two_workers_of_one_name_have_a_row_each_and_doctor_says_so(engine: Engine, fleet: Fleet) -> None:
    one = worker("w1", tenants()).model_copy(update={"instance": uuid4()})
    other = worker("w1").model_copy(update={"instance": uuid4()})

    def found() -> list[str]:
        with engine.connect() as connection:
            return [each.found for each in doctor.workers(connection)]

    fleet.do(announce, one)
    fleet.do(announce, other)  # `one` may have been killed, and started again as `other`
    assert found() == []
    fleet.do(announce, one)
    assert [line.partition(":")[0] for line in found()] == ["w1 is the name of several workers"]
    since = fleet.do(workers)[0].types_since
    fleet.do(announce, other)
    assert fleet.do(workers)[0].types_since == since
    add_tenants(engine, 1)
    assert fleet.do(plan, request()).lacking == {"w1": "does not serve the type"}
    fleet.do(retire, other)
    assert [each.instance for each in fleet.do(workers)] == [one.instance]
    execute(engine, "UPDATE workers SET seen_at = now() - interval '1 minute'")
    fleet.do(announce, other)  # rows of its earlier starts are removed
    assert [each.instance for each in fleet.do(workers)] == [other.instance]


def test_a_plan_names_live_workers_that_lack_the_code_and_says_how_long_the_hops_took(
    engine: Engine, fleet: Fleet
) -> None:
    add_tenants(engine, 4)
    fleet.do(announce, worker("same", tenants()))
    fleet.do(announce, worker("bare"))
    fleet.do(announce, worker("elsewhere", queue="another"))
    found: RolloutPlan = fleet.do(plan, request())
    assert found.lacking == {"bare": "does not serve the type"}
    assert found.expected_seconds is None
    execute(
        engine,
        "INSERT INTO hop_totals VALUES ('tenant', 'rename', 'succeeded', '{1,1}', 4, 0), "
        "('tenant', 'divide', 'succeeded', '{0,2}', 6, 0)",
    )
    assert fleet.do(plan, request()).expected_seconds == 4 * (2 + 3) / 4


# ── policies ────────────────────────────────────────────────────────────────────────────────────────


def request(**values: Any) -> Any:
    from graph_migrator.core.rollouts.request import RolloutRequest

    return RolloutRequest(graph_type="tenant", **{"strategy": QUICK} | values)


def automatic(fleet: Fleet) -> None:
    fleet.do(announce, worker("w1", tenants()))
    fleet.do(set_policy, "tenant", Mode.AUTOMATIC, ADA, strategy=QUICK, settle_seconds=0)


def test_graphs_that_are_behind_move_forward_by_themselves_once_all_workers_agree(
    engine: Engine, fleet: Fleet
) -> None:
    add_tenants(engine, 3)
    assert fleet.do(start_what_is_behind) == [], "manual where no policy was set"
    automatic(fleet)
    fleet.do(announce, worker("w2"))
    assert fleet.do(start_what_is_behind) == [], "a worker lacks the type"
    (shown,) = fleet.do(policies, "tenant")
    assert "worker w2 does not serve the type" in shown.state
    fleet.do(retire, worker("w2"))
    fleet.do(set_policy, "tenant", Mode.AUTOMATIC, ADA, settle_seconds=3_600)
    assert fleet.do(start_what_is_behind) == [], "the workers have not agreed for long enough"
    execute(engine, "UPDATE workers SET types_since = now() - interval '2 hours'")
    assert fleet.do(start_what_is_behind) == [("tenant", 3, 3)]
    assert fleet.do(start_what_is_behind) == [], "a rollout is live"
    assert fleet.run().rollout.requested_by == "policy"
    assert set(versions(engine).values()) == {3}
    assert fleet.do(start_what_is_behind) == [], "nothing is behind"
    add_graph(engine, "imported", "tenant", 2)
    assert fleet.do(start_what_is_behind) == [("tenant", 3, 1)]
    fleet.run()
    assert versions(engine)["imported"] == 3
    assert [mode for (mode,) in rows(engine, "SELECT mode FROM policies")] == ["automatic"] * 2, (
        "both are kept"
    )


def test_a_policy_leaves_failed_unreachable_and_partial_graphs_and_what_was_taken_out(
    engine: Engine, fleet: Fleet
) -> None:
    add_graph(engine, "unreachable", "tenant", 9)
    add_graph(engine, "odd", "tenant", 1)
    automatic(fleet)
    assert fleet.do(start_what_is_behind) == [("tenant", 3, 1)]
    fleet.do(operations.skip, "tenant", ["odd"], ADA)
    fleet.run()
    assert versions(engine) == {"odd": 1, "unreachable": 9}
    assert fleet.do(start_what_is_behind) == [], "an operator has taken it out"


def test_a_policy_does_not_repeat_what_an_operator_cancelled_until_it_is_set_again(
    engine: Engine, fleet: Fleet
) -> None:
    add_tenants(engine, 2)
    automatic(fleet)
    fleet.do(start_what_is_behind)
    fleet.do(operations.cancel, "tenant", ADA)
    fleet.run()
    assert fleet.do(start_what_is_behind) == []
    assert "was cancelled" in fleet.do(policies, "tenant")[0].state
    fleet.do(set_policy, "tenant", Mode.AUTOMATIC, ADA)
    assert fleet.do(start_what_is_behind) == [("tenant", 3, 2)]


def test_a_policys_rollout_gives_way_to_one_by_hand(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 6)
    automatic(fleet)
    fleet.do(start_what_is_behind)
    with pytest.raises(InvalidRequest):
        fleet.start(slug="nothing*")
    assert fleet.show().rollout.status == "running", "a request that is refused ends nothing"
    fleet.turn()
    assert fleet.show().in_flight
    with pytest.raises(RolloutGivesWay, match="graphs in flight end first"):
        fleet.start()
    with pytest.raises(RolloutGivesWay):
        fleet.start()
    fleet.run()
    assert fleet.show().rollout.status == "cancelled"
    by_hand = fleet.start()
    assert by_hand.graphs == 6, "what no worker had begun was left as it was"
    assert fleet.do(start_what_is_behind) == []
    with pytest.raises(RolloutInFlight):
        fleet.start()
    fleet.run()
    assert set(versions(engine).values()) == {3}
    add_graph(engine, "late", "tenant", 1)
    assert fleet.do(start_what_is_behind) == [("tenant", 3, 1)], "giving way is no cancel"


# ── back ────────────────────────────────────────────────────────────────────────────────────────────


def reversible() -> GraphType:
    from graph_migrator import HopContext

    made = GraphType("tenant")

    @made.hop(1, 2)
    def rename(ctx: HopContext) -> None:
        """A hop."""
        ctx.execute("UPDATE nodes SET label = 'Renamed' WHERE graph_id = :graph_id")

    @rename.reverse
    def restore(ctx: HopContext) -> None:
        """Its reverse."""
        ctx.execute("UPDATE nodes SET label = 'Person' WHERE graph_id = :graph_id")

    return made


def test_back_moves_what_succeeded_to_where_it_came_from(engine: Engine, executors: Executors) -> None:
    registry.register(reversible())
    fleet = Fleet(executors)
    add_tenants(engine, 5)
    first = fleet.start()
    fleet.run()
    execute(engine, "DELETE FROM graphs WHERE slug = 't004'")
    made = fleet.do(back, str(first.rollout_id), ADA, strategy=QUICK)
    planned = fleet.do(plan, made)
    assert (planned.to_version, planned.graphs, planned.by_version) == (1, 4, {2: 4})
    assert planned.hops == ("v2→v1 restore",) or planned.hops[0].startswith("v2→v1")
    fleet.do(start, made)
    assert fleet.run().rollout.status == "succeeded"
    assert set(versions(engine).values()) == {1}
    assert rows(engine, "SELECT direction FROM rollouts ORDER BY started_at") == [(1,), (-1,)]
    assert counted_right(engine)
    again = fleet.do(back, "tenant", ADA, strategy=QUICK)  # and forward again
    fleet.do(start, again)
    fleet.run()
    assert set(versions(engine).values()) == {2}


def test_back_is_refused_with_every_hop_that_has_no_reverse(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 2)
    fleet.start()
    with pytest.raises(RolloutRefused, match="it has to end first"):
        fleet.do(back, "tenant", ADA)
    fleet.run()
    with pytest.raises(RolloutRefused, match=r"v2→v3 divide, v1→v2 rename"):
        fleet.do(back, "tenant", ADA)


def test_back_asks_for_the_version_where_graphs_came_from_several(
    engine: Engine, executors: Executors
) -> None:
    registry.register(tenants())
    fleet = Fleet(executors)
    add_tenants(engine, 2)
    add_graph(engine, "young", "tenant", 2)
    fleet.start()
    fleet.run()
    with pytest.raises(InvalidRequest, match="2 from v1, 1 from v2"):
        fleet.do(back, "tenant", ADA)


# ── what is opened ──────────────────────────────────────────────────────────────────────────────────


def opened(connection: Connection, graph: str, version: int = 3) -> GraphBehind | None:
    from graph_migrator import current

    try:
        current(connection, graph, version)
    except GraphBehind as behind:
        return behind
    return None


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> list[Any]:
    """The calls that `current` sends."""
    from graph_migrator import migrate_graph
    from graph_migrator.tasks import current as opening

    calls: list[Any] = []
    monkeypatch.setattr(
        migrate_graph, "apply_async", lambda args, kwargs, task_id: calls.append((args, task_id))
    )
    monkeypatch.setattr(opening, "engine", lambda: engine)
    return calls


def test_a_graph_that_is_behind_is_migrated_when_it_is_opened(
    engine: Engine, fleet: Fleet, sent: list[Any]
) -> None:
    graph = add_graph(engine, "g", "tenant", 1)
    add_graph(engine, "there", "tenant", 3)
    with engine.connect() as connection:
        assert opened(connection, "there") is None
        assert opened(connection, "there", 2) is None
        first, second = opened(connection, "g"), opened(connection, str(graph))
        assert first is not None
        assert second is not None
        assert first.call == second.call, "many callers begin one migration"
        assert sent[0] == ((str(graph), 3), first.call)
        assert "g is at v1, and v3 is needed" in str(first)
        with pytest.raises(UnknownGraph):
            opened(connection, "nothing")
        with pytest.raises(InvalidRequest):
            look(connection, "g", 0)


def test_what_is_opened_goes_first_in_its_stage_and_is_waited_for(
    engine: Engine, fleet: Fleet, sent: list[Any]
) -> None:
    add_tenants(engine, 6)
    fleet.start(QUICK.model_copy(update={"canaries": 0, "waves": (100.0,), "max_in_flight": 1}))
    with engine.connect() as connection:
        behind = opened(connection, "t004")
    assert behind is not None
    assert "next in its stage" in behind.why
    fleet.turn()
    assert [each.graph for each in fleet.queue] == ["t004"]
    with engine.connect() as connection:
        on_its_way = opened(connection, "t004")
    assert on_its_way is not None
    assert "has sent its migration" in on_its_way.why
    assert on_its_way.call == behind.call
    fleet.deliver()
    report = wait_for(behind, 10, database=engine)
    assert (report.graph, report.version) == ("t004", 3)
    assert sent == []
    assert counted_right(engine)


def test_a_rollout_that_is_held_is_not_gone_round(engine: Engine, fleet: Fleet, sent: list[Any]) -> None:
    add_tenants(engine, 3)
    fleet.start(held=True)
    with engine.connect() as connection:
        behind = opened(connection, "t002")
    assert behind is not None
    assert "is held" in behind.why
    assert sent == []
    assert fleet.turn() == []


def test_a_failed_graph_says_so(engine: Engine, executors: Executors, sent: list[Any]) -> None:
    registry.register(tenants({"t000"}.__contains__))
    fleet = Fleet(executors)
    add_tenants(engine, 1)
    fleet.start()
    fleet.run()
    with engine.connect() as connection:
        behind = opened(connection, "t000")
    assert behind is not None
    assert "failed: `graph-migrator status t000`" in behind.why
    assert sent == []


def test_a_member_that_waits_no_more_is_not_moved(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 1)
    started = fleet.start()
    fleet.run()
    (graph,) = rows(engine, "SELECT id FROM graphs")
    assert started.rollout_id is not None
    with engine.begin() as connection:
        assert not move_to_front(connection, started.rollout_id, UUID(str(graph[0])))


# ── selecting, ordering, pacing ─────────────────────────────────────────────────────────────────────


def test_graphs_are_selected_and_ordered_by_their_config(engine: Engine, fleet: Fleet) -> None:
    for slug, config in (
        ("a", '{"tier": "gold", "users": 200}'),
        ("b", '{"tier": "gold", "users": 5}'),
        ("c", '{"tier": "free", "users": 1}'),
        ("d", "{}"),
    ):
        add_graph(engine, slug, "tenant", 1)
        execute(
            engine,
            "UPDATE graphs SET config = CAST(:config AS jsonb) WHERE slug = :slug",
            config=config,
            slug=slug,
        )
    assert fleet.do(plan, request(where='$.tier == "gold"')).graphs == 2
    assert fleet.do(plan, request(where='$.users < 100 && $.tier starts with "g"')).graphs == 1
    ordered = QUICK.model_copy(update={"order": "config:$.users", "canaries": 0, "waves": (100.0,)})
    fleet.start(ordered)
    assert [each.graph for each in fleet.do(members, "tenant")] == ["c", "b", "a", "d"]


@pytest.mark.parametrize("path", ["$.tier", "tier = gold", "$.a ==", "'"])
def test_a_path_that_is_no_condition_is_refused(engine: Engine, fleet: Fleet, path: str) -> None:
    add_tenants(engine, 1)
    with pytest.raises(InvalidRequest, match=r"\$\.tier == \"gold\""):
        fleet.start(where=path)
    assert rows(engine, "SELECT 1 FROM rollouts") == []


def test_a_rate_limits_what_is_sent(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 9)
    fleet.start(Strategy(canaries=0, waves=(100,), max_in_flight=100, rate="2/min"))
    assert len(fleet.turn()) == 1
    assert fleet.turn() == []
    execute(engine, "UPDATE rollouts SET dispatch_after = dispatch_after - interval '31 seconds'")
    assert len(fleet.turn()) == 1
    execute(engine, "UPDATE rollouts SET dispatch_after = dispatch_after - interval '1 hour'")
    assert len(fleet.turn()) == 1, "what was not sent in time is not made up for"
    fleet.do(operations.set_knob, "tenant", "rate", "4/s", ADA)
    execute(engine, "UPDATE rollouts SET dispatch_after = dispatch_after - interval '1 hour'")
    assert len(fleet.turn()) == 4
    fleet.do(operations.set_knob, "tenant", "rate", "none", ADA)
    assert len(fleet.turn()) == 2


def test_show_says_that_the_rate_or_a_missing_worker_keeps_it(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 2)
    fleet.start(Strategy(canaries=0, waves=(100,), rate="1/min"))
    fleet.turn()
    assert fleet.show().why == "it moves 1 graph in stage 1 of 1"
    execute(
        engine, "UPDATE rollout_members SET sent_at = now() - interval '1 minute' WHERE status = 'dispatched'"
    )
    shown = fleet.show()
    assert shown.why == "1 graph was sent, and no live worker serves tenant v3"
    assert "celery -A graph_migrator worker" in shown.what_to_do
    fleet.do(announce, worker("w1", tenants()))
    assert "it moves" in fleet.show().why
    fleet.deliver()
    fleet.turn()
    assert re.fullmatch(r"its rate of 1/min lets the next graph go in (5\d|60) s", fleet.show().why)
    assert "rate none" in fleet.show().what_to_do


# ── a message that comes twice ──────────────────────────────────────────────────────────────────────


def test_a_call_that_is_delivered_twice_acts_once(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 2)
    first = fleet.do(start, request(), rollout_id=UUID(int=7))
    assert fleet.do(start, request(), rollout_id=UUID(int=7)) == first
    by = Operator("ada", None, "call-1")
    fleet.do(operations.pause, "tenant", by)
    fleet.do(operations.resume, "tenant", ADA)
    assert fleet.do(operations.done_before, "call-2") is None
    assert "done before" in fleet.do(operations.done_before, "call-1").message
    assert [each.what for each in fleet.do(changes, "tenant")] == ["start", "pause", "resume"]


def test_a_rollout_is_operated_by_tasks_of_the_commands_names(
    engine: Engine, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graph_migrator import app
    from graph_migrator.tasks import operate_rollouts

    monkeypatch.setattr(operate_rollouts, "executors", lambda: fleet.executors)
    add_tenants(engine, 3)

    def call(name: str, task_id: str | None = None, **arguments: Any) -> Any:
        return app.tasks[f"tasks.{name}"].apply(kwargs=arguments, task_id=task_id, throw=True).result

    assert call("rollout_plan", graph_type="tenant")["graphs"] == 3
    begin = {
        "graph_type": "tenant",
        "strategy": {"gate": "auto"},
        "requested_by": "ada",
        "reason": "release 7",
    }
    first, again = (call("rollout_start", "call-1", **begin) for _ in range(2))
    assert first == again
    assert call("rollout_pause", "call-2", rollout="tenant", requested_by="ada")["status"] == "held"
    assert call("rollout_resume", "call-3", rollout="tenant")["status"] == "running"
    assert "done before" in call("rollout_pause", "call-2", rollout="tenant", requested_by="ada")["message"]
    assert call("rollout_show", rollout="tenant")["rollout"]["status"] == "running"
    assert call("rollout_set", rollout="tenant", knob="rate", value="5/s")["message"] == "rate: None → 5/s"
    with pytest.raises(RolloutRefused):
        call("rollout_promote", rollout="tenant")
    with pytest.raises(InvalidRequest):
        call("rollout_start", graph_type="tenant", speed=9)
    assert call("rollout_cancel", rollout="tenant", requested_by="ada")["graphs"] == 3
    assert call("policy_set", graph_type="tenant", mode="automatic")["mode"] == "automatic"
    assert [each["policy"]["graph_type"] for each in call("policy_show")] == ["tenant"]
    assert call("workers") == []
    assert [each["what"] for each in call("rollout_changes", rollout="tenant")] == [
        "start", "pause", "resume", "set", "cancel",
    ]  # fmt: skip


def test_a_rollout_task_says_in_flower_what_it_is_about() -> None:
    from graph_migrator.tasks.results import in_words

    assert in_words({"rollout": "tenant", "requested_by": "ada"}) == "tenant, by ada"
    assert in_words({"graph_type": "tenant", "held": True}) == "tenant, held"
    assert in_words({"reason": "slow"}) == "all"
