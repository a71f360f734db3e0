"""Rollouts on a real Postgres: from plan to done, what stops them, and what Postgres itself refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from graph_migrator.core.errors import (
    InvalidRequest,
    RolloutInFlight,
    RolloutRefused,
    UnknownGraph,
    UnknownGraphType,
    UnknownRollout,
    UnknownTarget,
)
from graph_migrator.core.events import types as events
from graph_migrator.core.execution import operations as graph_verbs
from graph_migrator.core.execution.in_process import follow, run_graph_migration
from graph_migrator.core.execution.model import Caller, Later
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.graph_types import registry
from graph_migrator.core.graph_types.definition import Direction, GraphType
from graph_migrator.core.rollouts import operations
from graph_migrator.core.rollouts.inspection import changes, errors, list_rollouts, members
from graph_migrator.core.rollouts.operations import Operator
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import plan, start
from graph_migrator.core.rollouts.statuses import (
    MEMBER_EDGES,
    ROLLOUT_EDGES,
    HoldReason,
    MemberStatus,
    RolloutStatus,
    pairs,
)
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.store.session import Executors
from tests.integration.fleet_inline import QUICK, Fleet, add_tenants, counted_right, mended, tenants
from tests.rows import add_graph, dump, graph_row, rows

ADA = Operator("ada", "because")


@pytest.fixture
def fleet(engine: Engine, executors: Executors) -> Iterator[Fleet]:
    registry.register(tenants())
    yield Fleet(executors)
    assert counted_right(engine)


def use(kind: GraphType) -> None:
    """This process has other code from now on."""
    registry.reset()
    registry.register(kind)


def by_status(engine: Engine) -> dict[str, int]:
    return dict(rows(engine, "SELECT status, count(*) FROM rollout_members GROUP BY 1"))  # type: ignore[arg-type]


# ── from plan to done ───────────────────────────────────────────────────────────────────────────────


def test_a_plan_says_what_will_be_and_writes_nothing(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 20)
    add_tenants(engine, 3, version=2, prefix="u")
    add_tenants(engine, 2, version=3, prefix="done")
    before = dump(engine)
    found = fleet.do(plan, RolloutRequest(graph_type="tenant"))
    assert (found.graphs, found.by_version) == (23, {1: 20, 2: 3})
    assert found.hops == ("v1→v2 rename", "v2→v3 divide")
    assert found.without_reverse == found.hops
    assert len(found.canaries) == 10
    assert {"starts from v1", "starts from v2"} <= {canary.why for canary in found.canaries}
    assert [stage.size for stage in found.stages] == [10, 1, 1, 4, 7]
    assert dump(engine) == before
    assert rows(engine, "SELECT * FROM rollouts") == []


def test_a_plan_says_how_many_graphs_have_the_shape_of_a_canary(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 40)
    with engine.begin() as connection:
        for label, first, last in (("A", "t010", "t014"), ("B", "t015", "t021"), ("C", "t022", "t033")):
            graphs = f"SELECT id FROM graphs WHERE slug BETWEEN '{first}' AND '{last}'"
            connection.exec_driver_sql(f"UPDATE nodes SET label = '{label}' WHERE graph_id IN ({graphs})")
    found = fleet.do(plan, RolloutRequest(graph_type="tenant"))
    said = {canary.why for canary in found.canaries if "shape" in canary.why}
    assert said == {"has the shape of 7 graphs: B"}  # median and largest have the others


def test_a_rollout_moves_all_graphs_and_each_effect_is_once(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 25)
    fleet.start(requested_by="ada", reason="release 7")
    state = fleet.run()
    assert state.rollout.status is RolloutStatus.SUCCEEDED
    assert by_status(engine) == {"succeeded": 25}
    assert rows(engine, "SELECT DISTINCT version FROM graphs") == [(3,)]
    assert rows(engine, "SELECT count(*), count(DISTINCT graph_id) FROM migrations") == [(25, 25)]
    assert rows(engine, "SELECT DISTINCT requested_by, status FROM migrations") == [("ada", "succeeded")]
    assert state.time_left is not None
    assert [change.what for change in fleet.do(changes, "tenant")] == ["start", "end"]
    assert fleet.do(list_rollouts)[0].id == state.rollout.id


def test_the_members_of_a_large_rollout_have_statistics_from_the_start(
    engine: Engine, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph_migrator.core.rollouts.start.MANY", 7)
    add_tenants(engine, 7)
    fleet.start()
    assert rows(engine, "SELECT reltuples FROM pg_class WHERE oid = 'rollout_members'::regclass") == [(7,)]


def test_graphs_that_cannot_be_moved_are_members_that_say_why(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 4)
    add_graph(engine, "beyond", "tenant", 3)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO graphs (id, slug, graph_type, version, partially_migrated) "
                "VALUES (gen_random_uuid(), 'halfway', 'tenant', 1, '{}')"
            )
        )
    names = ("t000", "t001", "beyond", "halfway")
    fleet.start(graphs=names, to_version=2)
    state = fleet.run()
    found = {m.graph: (m.status, m.note) for m in fleet.do(members, "tenant")}
    assert found == {
        "t000": (MemberStatus.SUCCEEDED, None),
        "t001": (MemberStatus.SUCCEEDED, None),
        "beyond": (MemberStatus.SKIPPED, "beyond the target"),
        "halfway": (MemberStatus.SKIPPED, "partially migrated"),
    }
    assert state.rollout.status is RolloutStatus.SUCCEEDED
    assert graph_row(engine, "t003").version == 1


def test_a_selection_by_pattern_and_version(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    add_tenants(engine, 3, prefix="eu_")
    add_tenants(engine, 2, version=2, prefix="eu_x")
    assert fleet.do(plan, RolloutRequest(graph_type="tenant", slug="eu_*")).graphs == 5
    assert fleet.do(plan, RolloutRequest(graph_type="tenant", slug="eu_*", from_version=2)).graphs == 2
    with pytest.raises(InvalidRequest):  # a percent sign is no pattern
        fleet.do(plan, RolloutRequest(graph_type="tenant", slug="%"))


@pytest.mark.parametrize("order", ["slug", "size", "newest"])
def test_members_are_moved_in_the_order_that_was_asked_for(engine: Engine, fleet: Fleet, order: str) -> None:
    for number, nodes in enumerate((5, 1, 3)):
        add_graph(engine, f"t{number}", "tenant", 1, nodes=nodes)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), order=order, max_in_flight=1))
    found = [member.graph for member in fleet.do(members, "tenant")]
    assert (
        found == {"slug": ["t0", "t1", "t2"], "size": ["t1", "t2", "t0"], "newest": ["t2", "t1", "t0"]}[order]
    )


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"graph_type": "nobody"}, UnknownGraphType),
        ({"to_version": 9}, UnknownTarget),
        ({"to_version": 1}, InvalidRequest),
        ({"slug": "nothing*"}, InvalidRequest),
        ({"graphs": ("missing",)}, UnknownGraph),
        ({"canary_graphs": ("missing",)}, InvalidRequest),
    ],
)
def test_a_request_that_cannot_be_carried_out_changes_nothing(
    engine: Engine, fleet: Fleet, values: dict[str, object], error: type[Exception]
) -> None:
    add_tenants(engine, 2)
    request = RolloutRequest(**{"graph_type": "tenant", **values})  # type: ignore[arg-type]
    for verb in (plan, start):
        with pytest.raises(error):
            fleet.do(verb, request)
    assert rows(engine, "SELECT * FROM rollouts") == []


def test_a_type_has_one_live_rollout(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 2)
    first = fleet.start()
    with pytest.raises(RolloutInFlight, match=str(first.rollout_id)):
        fleet.start()
    assert len(rows(engine, "SELECT * FROM rollouts")) == 1
    with pytest.raises(UnknownRollout):
        fleet.do(operations.pause, "ffff", ADA)


# ── what stops it ───────────────────────────────────────────────────────────────────────────────────


def test_a_canary_catches_a_fault_that_is_mended_retried_and_resumed(engine: Engine, fleet: Fleet) -> None:
    odd = {"t005", "t017"}
    use(tenants(odd.__contains__))
    add_tenants(engine, 30)
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE nodes SET label = 'Odd' WHERE graph_id IN (SELECT id FROM graphs WHERE slug = ANY (:odd))"
            ),
            {"odd": list(odd)},
        )
    fleet.start(Strategy(canaries=5, bake_seconds=0, gate="auto"))
    state = fleet.run()
    assert state.rollout.hold is HoldReason.BREAKER
    assert "1 of the canaries failed (t017" in state.why
    assert "rollout retry" in state.what_to_do
    assert state.rollout.counts.pending == 25  # no wave has begun
    (group,) = fleet.do(errors, "tenant")
    assert (group.graphs, group.examples) == (1, ("t017",))  # the other one of that shape was not met yet
    assert "ValueError in divide" in group.title
    assert "t017" not in group.title

    use(mended())
    fleet.do(operations.retry, "tenant", ADA, error_group=group.error_group)
    with pytest.raises(RolloutRefused, match="accept-new-code"):
        fleet.do(operations.resume, "tenant", ADA)
    fleet.do(operations.resume, "tenant", ADA, accept_new_code=True)
    state = fleet.run()
    assert state.rollout.status is RolloutStatus.SUCCEEDED
    assert by_status(engine) == {"succeeded": 30}
    assert rows(engine, "SELECT count(*), count(DISTINCT graph_id) FROM migrations") == [(30, 30)]
    whats = [change.what for change in fleet.do(changes, "tenant")]
    assert whats == ["start", "hold", "retry", "accept new code", "resume", "end"]


def test_graphs_in_flight_go_on_with_code_that_is_accepted(
    engine: Engine, fleet: Fleet, executors: Executors
) -> None:
    """No worker may have the code that they were begun with: they would wait for one, and fail at last."""
    add_tenants(engine, 4)
    fleet.start(QUICK.model_copy(update={"canaries": 0, "waves": (100,)}))
    begun = sorted((fleet.begin(sending) for sending in fleet.turn()), key=lambda dispatch: dispatch.graph)
    fleet.queue.clear()
    run_hop(executors, begun[1].messages()[0])  # t001 is half its way
    use(mended())
    fleet.turn()
    assert fleet.show().rollout.hold is None  # nothing is left to be sent, and those in flight may end
    assert isinstance(run_hop(executors, begun[1].messages()[1]), Later)
    fleet.turn()
    assert fleet.show().rollout.hold is HoldReason.CODE_CHANGED
    with engine.connect() as other:  # t003 is in the hands of an executor that has the old code
        other.execute(
            text("SELECT pg_advisory_xact_lock(graph_migrator.lock_key(id)) FROM graphs WHERE slug = 't003'")
        )
        report = fleet.do(operations.resume, "tenant", ADA, accept_new_code=True)
        other.exec_driver_sql(
            "SELECT pg_advisory_unlock_all()"
        )  # the pool keeps the session, and with it the lock
    assert report.message == "resumed; 4 graphs in flight with the new code"
    now = {hop.name: hop.directions[Direction.FORWARD].fingerprint for hop in mended().hops}
    plans = dict(
        rows(
            engine,
            "SELECT g.slug, array_agg(s->>'fingerprint' ORDER BY s->>'name' DESC) FROM graphs g "
            "JOIN migrations m ON m.id = g.migration_id, jsonb_array_elements(m.plan) s GROUP BY 1",
        )
    )
    before = {hop.name: hop.directions[Direction.FORWARD].fingerprint for hop in tenants().hops}
    assert before["divide"] != now["divide"]
    assert {slug: hops[1] for slug, hops in plans.items()} == dict.fromkeys(plans, now["divide"])
    for dispatch in begun:
        follow(executors, dispatch)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED
    assert rows(engine, "SELECT DISTINCT code_mismatches FROM migrations") == [(0,)]


@pytest.mark.parametrize("obstacle", ["executor", "checkpoint"])
def test_a_hop_that_has_begun_keeps_its_code_when_other_code_is_accepted(
    engine: Engine, fleet: Fleet, executors: Executors, obstacle: str
) -> None:
    add_tenants(engine, 1, version=2)
    fleet.start()
    (sending,) = fleet.turn()
    begun = fleet.begin(sending)
    use(mended())
    run_hop(executors, begun.messages()[0])
    fleet.turn()
    before = rows(engine, "SELECT plan FROM migrations")
    with engine.connect() as other:
        if obstacle == "executor":
            other.execute(text("SELECT pg_advisory_xact_lock(graph_migrator.lock_key(id)) FROM graphs"))
        else:
            other.execute(
                text(
                    "INSERT INTO checkpoints (migration_id, to_version, cursor) SELECT id, 3, '{}' FROM migrations"
                )
            )
            other.commit()
        report = fleet.do(operations.resume, "tenant", ADA, accept_new_code=True)
    assert report.message == "resumed"
    assert rows(engine, "SELECT plan FROM migrations") == before


def test_three_failures_of_one_cause_hold_a_wave(engine: Engine, fleet: Fleet) -> None:
    use(tenants(lambda slug: slug >= "t010"))
    add_tenants(engine, 30)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), max_in_flight=2))
    state = fleet.run()
    assert state.rollout.hold is HoldReason.BREAKER
    assert "graphs failed with one error group" in state.why
    assert 3 <= state.rollout.counts.failed <= 4  # the third, and what was in flight with it


def test_failures_within_the_limits_finish_it_and_a_retry_opens_it_again(
    engine: Engine, fleet: Fleet
) -> None:
    use(tenants({"t008"}.__contains__))
    add_tenants(engine, 10)
    fleet.start(Strategy(packs=False, canaries=0, waves=(50, 100)))
    state = fleet.run()
    assert state.rollout.status is RolloutStatus.FINISHED_WITH_FAILURES
    assert by_status(engine) == {"succeeded": 9, "failed": 1}
    fleet.do(operations.retry, "tenant", ADA)
    state = fleet.run()
    assert state.rollout.status is RolloutStatus.FINISHED_WITH_FAILURES
    assert [m.tries for m in fleet.do(members, "tenant", status=MemberStatus.FAILED)] == [2]


def test_a_manual_gate_waits_for_promote(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 6)
    fleet.start(Strategy(packs=False, canaries=2, bake_seconds=0))
    state = fleet.run()
    assert (state.rollout.hold, state.rollout.counts.succeeded) == (HoldReason.GATE, 2)
    assert "rollout promote" in state.what_to_do
    with pytest.raises(RolloutRefused, match="promote"):
        fleet.do(operations.resume, "tenant", ADA)
    fleet.do(operations.promote, "tenant", ADA)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_a_bake_is_waited_for_and_shown(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 6)
    fleet.start(Strategy(packs=False, canaries=2, bake_seconds=3_600, gate="auto"))
    state = fleet.run()
    assert state.rollout.counts.succeeded == 2
    assert "stage 1 bakes for another 3" in state.why
    fleet.do(operations.set_knob, "tenant", "bake-seconds", "0", ADA)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_a_pause_sends_nothing_more_and_what_is_in_flight_ends(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 10)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), max_in_flight=3))
    assert len(fleet.turn()) == 3
    fleet.do(operations.pause, "tenant", ADA)
    state = fleet.run()
    assert (state.rollout.counts.succeeded, state.rollout.counts.pending) == (3, 7)
    assert "an operator paused it (ada): because" in state.why
    fleet.do(operations.resume, "tenant", ADA)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_the_hold_of_all_rollouts_ends_when_it_is_taken_away(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    fleet.do(operations.hold_all, ADA)
    fleet.start()
    state = fleet.run()
    assert (state.rollout.hold, state.fleet_held) == (HoldReason.FLEET, True)
    assert "ada" in state.why
    with pytest.raises(RolloutRefused, match="unhold"):
        fleet.do(operations.resume, "tenant", ADA)
    fleet.do(operations.unhold_all, ADA)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_a_shut_window_holds_it_until_the_window_is_changed(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    hour = rows(engine, "SELECT (extract(hour FROM now() AT TIME ZONE 'UTC') + 5)::integer % 24")[0][0]
    fleet.start(QUICK.model_copy(update={"window": f"{hour:02}:00-{(hour + 1) % 24:02}:00 UTC"}))
    assert fleet.run().rollout.hold is HoldReason.WINDOW
    fleet.do(operations.set_knob, "tenant", "window", "none", ADA)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_other_code_holds_it_and_sends_no_message_to_its_end(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 4)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), max_in_flight=2))
    fleet.turn()
    use(mended())
    fleet.deliver()  # requeued: nothing is recorded
    assert len(fleet.queue) == 2
    assert rows(engine, "SELECT * FROM requests") == []
    fleet.turn()
    assert fleet.show().rollout.hold is HoldReason.CODE_CHANGED
    use(tenants())
    fleet.deliver()
    fleet.do(operations.resume, "tenant", ADA)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_a_cancelled_rollout_leaves_what_waits_as_it_is(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 6)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), max_in_flight=2))
    first, second = fleet.turn()
    fleet.queue = [second]
    begun = fleet.begin(first)
    fleet.do(operations.cancel, "tenant", ADA)
    assert fleet.show().rollout.status is RolloutStatus.CANCELLING
    follow(fleet.executors, begun)  # was begun before: it ends its migration
    state = fleet.run()
    assert state.rollout.status is RolloutStatus.CANCELLED
    notes = {m.note for m in fleet.do(members, "tenant", status=MemberStatus.SKIPPED)}
    assert notes == {"the rollout was cancelled by ada", "the rollout was cancelled"}
    assert sorted(rows(engine, "SELECT version, count(*) FROM graphs GROUP BY 1")) == [(1, 5), (3, 1)]


def test_a_stall_holds_it_and_names_its_limit(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 2)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), max_in_flight=2, stall_seconds=60))
    fleet.turn()
    fleet.queue.clear()
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollouts SET progress_at = now() - interval '90 s'"))
    fleet.turn()
    state = fleet.show()
    assert state.rollout.hold is HoldReason.STALL
    assert "the limit is 60 s" in state.why


# ── deaths, duplicates, other people ────────────────────────────────────────────────────────────────


def test_a_message_that_was_lost_is_sent_again_as_the_same_request(
    engine: Engine, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tenants(engine, 2)
    fleet.start()
    sent = fleet.turn()
    fleet.queue.clear()  # the controller's worker died after its commit
    assert fleet.turn() == []
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollout_members SET resend_at = now() - interval '1 s'"))
    assert {s.request_id for s in fleet.turn()} == {s.request_id for s in sent}
    fleet.queue += sent  # and the first ones were not lost after all
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED
    assert rows(engine, "SELECT count(*) FROM migrations") == [(2,)]


def test_a_turn_that_dies_leaves_nothing(
    engine: Engine, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graph_migrator.core.rollouts.turn_rows import PostgresRows

    add_tenants(engine, 3)
    fleet.start()
    before = rows(engine, "SELECT * FROM rollout_members ORDER BY 2")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PostgresRows, "_progress", die)
        with pytest.raises(KeyboardInterrupt):
            fleet.turn()
    assert rows(engine, "SELECT * FROM rollout_members ORDER BY 2") == before
    assert rows(engine, "SELECT stage FROM rollouts") == [(0,)]
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_a_turn_does_not_wait_for_an_operators_verb(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    fleet.start()
    with engine.begin() as operator:
        operator.execute(text("SELECT FROM rollouts FOR UPDATE"))
        assert fleet.turn() == []
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_what_happens_to_a_rollout_is_an_event_after_its_commit(engine: Engine, executors: Executors) -> None:
    seen: list[events.Event] = []
    unsubscribe = events.subscribe(lambda event: seen.append(event) if "rollout" in event.name else None)
    try:
        registry.register(tenants({"t001"}.__contains__))
        fleet = Fleet(executors)
        add_tenants(engine, 3)
        started = fleet.start(QUICK.model_copy(update={"canaries": 0, "max_failures": 1, "waves": (100.0,)}))
        fleet.run()
        fleet.do(operations.skip, "tenant", ["t001"], Operator("ada", "odd"))
        fleet.do(operations.resume, "tenant", Operator("ada"))
        fleet.run()
    finally:
        unsubscribe()
    assert [event.name.removeprefix("rollout_") for event in seen] == [
        "started", "stage_opened", "held", "changed", "changed", "stage_ended", "ended",
    ]  # fmt: skip
    assert {event.fields()["rollout_id"] for event in seen} == {started.rollout_id}
    held, skipped = seen[2].fields(), seen[3].fields()
    assert (held["reason"], held["why"]) == ("breaker", "too many graphs failed")
    assert (skipped["verb"], skipped["requested_by"], skipped["reason"]) == ("skip", "ada", "odd")


def test_graphs_that_changed_since_the_start_are_settled_with_what_they_are(
    engine: Engine, fleet: Fleet
) -> None:
    add_tenants(engine, 4)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), max_in_flight=1), to_version=2)
    run_graph_migration(engine, "t000", 2)
    run_graph_migration(engine, "t001", 3)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM graphs WHERE slug = 't002'"))
    fleet.run()
    notes = {m.graph: m.note for m in fleet.do(members, "tenant")}
    assert notes == {
        "t000": "was at the target already",
        "t001": "beyond the target",
        "t002": "deleted",
        "t003": None,
    }


def test_a_graph_that_moves_on_between_dispatch_and_begin_is_not_moved_back(
    engine: Engine, fleet: Fleet
) -> None:
    add_tenants(engine, 1)
    fleet.start(to_version=2)
    fleet.turn()
    run_graph_migration(engine, "t000", 3)
    state = fleet.run()
    assert state.rollout.status is RolloutStatus.SUCCEEDED
    assert [m.note for m in fleet.do(members, "tenant")] == ["beyond the target"]
    assert graph_row(engine, "t000").version == 3


def test_a_paused_migration_takes_no_place_is_named_and_keeps_its_stage_open(
    engine: Engine, fleet: Fleet
) -> None:
    add_tenants(engine, 3)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), max_in_flight=1))
    (first,) = fleet.turn()
    fleet.queue.clear()
    fleet.begin(first)
    fleet.do(graph_verbs.pause, "t000", Caller())
    with fleet.executors.borrow() as executor:
        from graph_migrator.core.execution.recovery import sweep

        sweep(executor)
    state = fleet.run()
    assert (state.rollout.counts.succeeded, state.paused_graphs) == (2, ("t000",))
    assert state.rollout.status is RolloutStatus.RUNNING
    assert "graph-migrator resume t000" in state.what_to_do
    with fleet.executors.borrow() as executor:
        _, dispatch = graph_verbs.resume(executor, "t000", Caller())
    assert dispatch is not None
    follow(fleet.executors, dispatch)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_a_failed_member_follows_what_an_operator_does_to_its_migration(engine: Engine, fleet: Fleet) -> None:
    odd = {"t000", "t001"}
    use(tenants(odd.__contains__))
    add_tenants(engine, 4)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), max_in_flight=1))
    fleet.run()
    fleet.do(operations.retry, "tenant", ADA)
    fleet.do(operations.pause, "tenant", ADA)
    odd.clear()
    with fleet.executors.borrow() as executor:  # quicker than the rollout's own retry
        _, dispatch = graph_verbs.retry(executor, "t000", Caller())
    assert dispatch is not None
    fleet.do(operations.resume, "tenant", ADA)
    fleet.turn()
    fleet.deliver()  # refused: the member's own migration is live
    fleet.turn()
    assert fleet.show().in_flight == 1
    follow(fleet.executors, dispatch)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED
    assert by_status(engine) == {"succeeded": 4}


def test_a_released_migration_skips_its_failed_member(engine: Engine, fleet: Fleet) -> None:
    use(tenants({"t000"}.__contains__))
    add_tenants(engine, 3)
    fleet.start(Strategy(packs=False, canaries=0, waves=(50, 100), wave_bake_seconds=3_600, max_in_flight=1))
    fleet.run()
    fleet.do(graph_verbs.release, "t000", Caller(str(uuid4()), "grace"))
    fleet.turn()
    (member,) = fleet.do(members, "tenant", status=MemberStatus.SKIPPED)
    assert (member.graph, member.note) == ("t000", "its migration was released by grace")


def test_a_member_that_an_operator_takes_out_stays_as_it_is(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    fleet.start(held=True)
    with pytest.raises(RolloutRefused, match="missing"):
        fleet.do(operations.skip, "tenant", ["t001", "missing"], ADA)
    fleet.do(operations.skip, "tenant", ["t001"], ADA)
    deleted = str(graph_row(engine, "t002").id)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM graphs WHERE slug = 't002'"))
    with pytest.raises(RolloutRefused, match="t002"):  # a slug that nothing has any more
        fleet.do(operations.skip, "tenant", ["t002"], ADA)
    fleet.do(operations.skip, "tenant", [deleted], ADA)
    fleet.do(operations.resume, "tenant", ADA)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED
    assert graph_row(engine, "t001").version == 1
    found = fleet.do(members, "tenant", status=MemberStatus.SKIPPED)
    assert {(member.graph, member.note) for member in found} == {
        ("t001", "taken out by ada: because"),
        ("t002", "taken out by ada: because"),
    }


@pytest.mark.parametrize(
    ("knob", "value"),
    [("nothing", "1"), ("waves", "100"), ("max-in-flight", "0"), ("window", "never"), ("gate", "x")],
)
def test_a_knob_that_cannot_be_set_changes_nothing(
    engine: Engine, fleet: Fleet, knob: str, value: str
) -> None:
    add_tenants(engine, 2)
    fleet.start()
    before = rows(engine, "SELECT strategy, max_in_flight FROM rollouts")
    with pytest.raises(InvalidRequest):
        fleet.do(operations.set_knob, "tenant", knob, value, ADA)
    assert rows(engine, "SELECT strategy, max_in_flight FROM rollouts") == before


def test_a_lower_limit_is_met_as_graphs_end(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 9)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,), max_in_flight=4))
    fleet.turn()
    fleet.do(operations.set_knob, "tenant", "max-in-flight", "1", ADA)
    assert fleet.turn() == []
    fleet.deliver()
    assert len(fleet.turn()) == 1


@pytest.mark.parametrize("verb", [operations.pause, operations.resume, operations.promote, operations.cancel])
def test_a_verb_on_an_ended_rollout_is_refused(
    engine: Engine, fleet: Fleet, verb: Callable[..., object]
) -> None:
    add_tenants(engine, 1)
    fleet.start()
    fleet.run()
    before = rows(engine, "SELECT * FROM rollouts")
    with pytest.raises(RolloutRefused, match="Nothing was changed"):
        fleet.do(verb, "tenant", ADA)
    assert rows(engine, "SELECT * FROM rollouts") == before


# ── what Postgres refuses ───────────────────────────────────────────────────────────────────────────


def refused(engine: Engine, statement: str) -> str | None:
    """Why Postgres refuses a statement; nothing of it is kept."""
    with engine.connect() as connection, connection.begin() as transaction:
        try:
            connection.execute(text(statement))
        except IntegrityError as error:
            return str(error.orig)
        finally:
            transaction.rollback()
    return None


DISPATCH = (
    "UPDATE rollout_members SET status = 'dispatched', request_id = gen_random_uuid(), resend_at = now() "
    "WHERE graph IN ('t000', 't001', 't002') AND status = 'pending'"
)


def test_postgres_holds_f1_f2_and_f3(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 6)
    fleet.start(Strategy(packs=False, canaries=0, waves=(50, 100), max_in_flight=3), held=True)
    assert "F3" in str(refused(engine, DISPATCH))
    fleet.do(operations.resume, "tenant", ADA)
    assert "F2" in str(refused(engine, DISPATCH))
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollouts SET stage = 1"))
    assert refused(engine, DISPATCH) is None
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollouts SET max_in_flight = 2"))
    assert "F1" in str(refused(engine, DISPATCH))
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollouts SET max_in_flight = 3"))
    fleet.do(operations.hold_all, ADA)
    assert "F3" in str(refused(engine, DISPATCH))


def test_postgres_holds_f4_f6_and_f8(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    fleet.start()
    for statement in (
        "INSERT INTO rollout_members (rollout_id, graph_id, graph, stage, position, from_version) "
        "SELECT id, gen_random_uuid(), 'late', 1, 1, 1 FROM rollouts",
        "UPDATE rollout_members SET stage = stage + 1 WHERE graph = 't000'",
        "DELETE FROM rollout_members",
        "DELETE FROM rollouts",
        "DELETE FROM rollout_changes",
        "UPDATE rollout_changes SET who = 'nobody'",
        "TRUNCATE rollout_changes",
        "UPDATE rollout_stages SET pending = pending + 1 WHERE number = 1",
        "UPDATE rollouts SET to_version = 2",
        "UPDATE rollouts SET status = 'held'",
        "INSERT INTO rollouts SELECT gen_random_uuid(), r.graph_type, 3, 1, 'running', 0, r.strategy, 1, NULL, r.plan "
        "FROM rollouts r",
    ):
        assert refused(engine, statement), statement


def test_postgres_permits_the_edges_of_the_tables_and_no_other(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 2)
    fleet.start(Strategy(packs=False, canaries=0, waves=(100,)))
    fleet.do(operations.pause, "tenant", ADA)
    fitting = (
        "status = '{0}', hold = CASE WHEN '{0}' = 'held' THEN '{{\"reason\": \"operator\"}}'::jsonb END, "
        "finished_at = CASE WHEN '{0}' IN ('cancelled', 'succeeded', 'finished_with_failures') THEN now() END"
    )
    permitted = set()
    for old in RolloutStatus:
        for new in RolloutStatus:
            if old is not new and _moved(engine, "rollouts", fitting, old, new):
                permitted.add((old, new))
    assert permitted == pairs(ROLLOUT_EDGES)
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollouts SET status = 'running', hold = NULL, stage = 1"))
    fitting = (
        "status = '{0}', request_id = gen_random_uuid(), resend_at = now(), note = 'n', "
        "error_group = CASE WHEN '{0}' = 'failed' THEN 'g' END, "
        "settled_at = CASE WHEN '{0}' IN ('succeeded', 'failed', 'skipped') THEN now() END"
    )
    members_permitted = set()
    for before in MemberStatus:
        for after in MemberStatus:
            if before is not after and _moved(engine, "rollout_members", fitting, before, after):
                members_permitted.add((before, after))
    assert members_permitted == pairs(MEMBER_EDGES)


def _moved(engine: Engine, table: str, fitting: str, old: str, new: str) -> bool:
    """Whether a row that is put at `old` may go to `new`. The first step is made with the triggers off."""
    with engine.connect() as connection, connection.begin() as transaction:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(f"UPDATE {table} SET {fitting.format(old)}".replace(":j", "\\:j")))
        if table == "rollout_members":
            connection.execute(
                text(
                    f"UPDATE rollout_stages SET pending = 0, dispatched = 0, succeeded = 0, failed = 0, skipped = 0, "
                    f"size = 2, {old} = 2".replace(f"{old} = 0, ", "", 1).replace(f", {old} = 0", "", 1)
                )
            )
        connection.execute(text("SET LOCAL session_replication_role = origin"))
        try:
            connection.execute(text(f"UPDATE {table} SET {fitting.format(new)}"))
        except IntegrityError:
            return False
        finally:
            transaction.rollback()
    return True
