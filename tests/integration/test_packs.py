"""Packs on a real Postgres: what a pack moves, when it ends early, and what becomes of the graphs that are left."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from graph_migrator.core.decisions import Ignored
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.execution.model import Worker
from graph_migrator.core.graph_types import registry
from graph_migrator.core.rollouts import operations, packing
from graph_migrator.core.rollouts.members import OtherCode
from graph_migrator.core.rollouts.operations import Operator
from graph_migrator.core.rollouts.packs import PackReport, Surroundings, _locked, _take, run_pack
from graph_migrator.core.rollouts.statuses import PACK_EDGES, PackStatus, RolloutStatus, pairs
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.turn import SendingPack
from graph_migrator.core.rollouts.workers import WorkerState, announce
from graph_migrator.core.store.session import Executors
from tests.integration.fleet_inline import PACKED, Fleet, add_tenants, counted_right, mended, tenants
from tests.rows import add_graph, rows

ADA = Operator("ada", "because")
ONE = PACKED.model_copy(update={"max_in_flight": 1})
APART = ONE.model_copy(update={"pack_together": 1})


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many graphs are moved together does not depend on how busy the machine is."""
    monkeypatch.setattr(packing, "TOGETHER_SECONDS", 600)


@pytest.fixture
def fleet(engine: Engine, executors: Executors) -> Iterator[Fleet]:
    registry.register(tenants())
    yield Fleet(executors)
    assert counted_right(engine)


def use(kind: object) -> None:
    registry.reset()
    registry.register(kind)  # type: ignore[arg-type]


def the_pack(fleet: Fleet) -> UUID:
    """Take a turn, which sends one pack."""
    (sent,) = fleet.turn()
    assert isinstance(sent, SendingPack)
    fleet.queue.clear()
    return sent.pack_id


def members(engine: Engine) -> dict[str, int]:
    return dict(rows(engine, "SELECT status, count(*) FROM rollout_members GROUP BY 1"))  # type: ignore[arg-type]


def packs(engine: Engine) -> list[tuple[str, int, int]]:
    return rows(engine, "SELECT status, size, done FROM packs ORDER BY sent_at")  # type: ignore[return-value]


def test_a_pack_moves_its_graphs_each_hop_with_a_row_of_its_own(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 12)
    fleet.start(ONE)
    report = fleet.run_pack(the_pack(fleet))
    assert report == PackReport(12, moved=12)
    assert rows(engine, "SELECT DISTINCT version FROM graphs") == [(3,)]
    assert rows(engine, "SELECT count(*), count(DISTINCT (migration_id, to_version)) FROM hop_attempts") == [
        (24, 24)
    ]
    assert rows(engine, "SELECT DISTINCT status, worker FROM hop_attempts") == [("succeeded", "w")]
    assert rows(engine, "SELECT count(*) FROM requests WHERE answered_at IS NULL") == [(0,)]
    fleet.turn()
    assert fleet.show().rollout.status is RolloutStatus.SUCCEEDED
    assert packs(engine) == [("closed", 12, 12)]


def test_a_pack_is_one_unit_and_postgres_refuses_one_more(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 45)
    fleet.start(ONE)
    the_pack(fleet)
    assert members(engine) == {"dispatched": 20, "pending": 25}
    assert fleet.turn() == []
    assert (fleet.show().in_flight, fleet.show().max_in_flight) == (1, 1)
    with pytest.raises(IntegrityError, match=r"has 1 places \(F1\)"), engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE rollout_members SET status = 'dispatched', request_id = gen_random_uuid(), resend_at = now() "
                "WHERE status = 'pending' AND position = 21"
            )
        )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("pack_id = gen_random_uuid()", "cannot go from dispatched"),
        ("status = 'pending', request_id = NULL, resend_at = NULL", "rollout_members_pack_was_sent"),
    ],
)
def test_postgres_keeps_a_member_in_its_pack_until_it_leaves_it(
    engine: Engine, fleet: Fleet, change: str, why: str
) -> None:
    add_tenants(engine, 12)
    fleet.start(ONE)
    the_pack(fleet)
    with pytest.raises(IntegrityError, match=why), engine.begin() as connection:
        connection.execute(text(f"UPDATE rollout_members SET {change} WHERE position = 3"))


def test_a_member_is_sent_in_a_pack_of_its_rollout_only(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 45)
    fleet.start(PACKED.model_copy(update={"max_in_flight": 9}))
    send = (
        "UPDATE rollout_members SET status = 'dispatched', request_id = gen_random_uuid(), resend_at = now(), "
        "pack_id = gen_random_uuid() WHERE position = 1"
    )
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollouts SET stage = 1"))
    with pytest.raises(IntegrityError, match="is not one of rollout"), engine.begin() as connection:
        connection.execute(text(send))


def test_a_sweep_takes_as_many_turns_as_there_is_work_for(engine: Engine, fleet: Fleet) -> None:
    """Each takes in about a hundred graphs, and locks the rollout for so long."""
    add_tenants(engine, 450)
    fleet.start(PACKED.model_copy(update={"max_in_flight": 12}))
    fleet.turn()
    assert members(engine) == {"dispatched": 240, "pending": 210}  # twelve packs, in three turns
    turns = rows(engine, "SELECT count(DISTINCT xmin::text) FROM rollout_members WHERE status = 'dispatched'")
    assert turns == [(3,)]
    fleet.deliver()
    fleet.turn()
    taken_in = rows(
        engine, "SELECT count(*) FROM rollout_members WHERE status = 'succeeded' GROUP BY xmin::text"
    )
    assert sorted(taken_in) == [(40,), (100,), (100,)]
    assert members(engine) == {"succeeded": 240, "dispatched": 210}


def test_packs_grow_with_what_was_measured(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 120)
    fleet.start(ONE.model_copy(update={"pack_seconds": 600.0}))  # however slow the machine is
    fleet.run_pack(the_pack(fleet))
    (second,) = fleet.turn()
    assert isinstance(second, SendingPack)
    assert second.size == 80  # four times the first one


def test_canaries_say_how_long_their_hops_take_in_packs(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 105)
    fleet.start(PACKED.model_copy(update={"canaries": 5, "gate": "manual"}))
    fleet.run()
    with engine.begin() as connection:  # a chain waits for its messages, and for the turn that takes it in
        connection.exec_driver_sql("UPDATE rollout_members SET sent_at = sent_at - interval '1 hour'")
        connection.exec_driver_sql("ALTER TABLE hop_attempts DISABLE TRIGGER USER")
        connection.exec_driver_sql("UPDATE hop_attempts SET finished_at = started_at + interval '2 s'")
    first = left(fleet)
    assert first == (100 * 4.0 / 4, 100 * 4.0 / 4)  # two hops a graph, four places

    announce_worker(engine, processes=2)  # two of the four places wait
    assert left(fleet) == (100 * 4.0 / 2, 100 * 4.0 / 2)

    fleet.do(operations.set_knob, "tenant", "packs", "false", ADA)
    low, high = left(fleet)
    assert 100 * 3_600 / 4 < low <= high < 100 * 3_700 / 4  # the rest goes as the canaries went


def test_the_time_left_is_that_of_packs_not_of_each_of_their_graphs(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 120)
    fleet.start(ONE)
    fleet.run_pack(the_pack(fleet))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE packs SET sent_at = ended_at - interval '20 s'")
    fleet.turn()
    assert fleet.show().rollout.counts.pending == 20
    assert left(fleet) == (20 * 1.0, 20 * 1.0)  # twenty graphs in twenty seconds


def left(fleet: Fleet) -> tuple[float, float]:
    found = fleet.show().time_left
    assert found is not None
    return round(found.low_seconds, 3), round(found.high_seconds, 3)


def announce_worker(engine: Engine, processes: int) -> None:
    with Executors(engine).borrow() as executor:
        announce(
            executor, WorkerState(name="w", queue="migrations", types={}, pool="prefork", processes=processes)
        )


def test_small_graphs_go_in_packs_and_large_ones_as_chains(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 6)
    add_graph(engine, "large", "tenant", 1, nodes=30)
    fleet.start(PACKED.model_copy(update={"pack_rows": 20}))
    sent = fleet.turn()
    assert {each.graph for each in sent if not isinstance(each, SendingPack)} == {"large"}
    assert sum(each.size for each in sent if isinstance(each, SendingPack)) == 6
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


@pytest.mark.parametrize("off", [{"packs": False}, {"shapes": False}, {"pack_rows": 0}])
def test_without_packs_every_graph_is_a_chain(engine: Engine, fleet: Fleet, off: dict[str, object]) -> None:
    add_tenants(engine, 5)
    fleet.start(PACKED.model_copy(update=off))
    assert not any(isinstance(each, SendingPack) for each in fleet.turn())
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED
    assert packs(engine) == []


def test_canaries_and_retried_graphs_are_chains(engine: Engine, fleet: Fleet) -> None:
    use(tenants(broken=lambda slug: slug == "t004"))
    add_tenants(engine, 9)
    fleet.start(PACKED.model_copy(update={"canaries": 2, "max_failures": 9}))
    assert not any(isinstance(each, SendingPack) for each in fleet.turn())
    fleet.run()
    use(mended())
    fleet.do(operations.retry, "tenant", ADA)
    if fleet.show().rollout.status is RolloutStatus.HELD:
        fleet.do(operations.resume, "tenant", ADA, accept_new_code=True)
    assert not any(isinstance(each, SendingPack) for each in fleet.turn())


# ── a pack that ends early ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("strategy", "moved"), [(APART, 2), (ONE, 5)], ids=["graph", "graphs"])
def test_a_hold_ends_a_pack_before_its_next(
    engine: Engine, fleet: Fleet, strategy: Strategy, moved: int
) -> None:
    add_tenants(engine, 6)
    fleet.start(strategy)
    pack, looks = the_pack(fleet), iter(range(9))

    def hold_at_the_third_look() -> bool:
        if next(looks) == 2:
            fleet.do(operations.pause, "tenant", ADA)
        return False

    report = fleet.run_pack(pack, is_stopping=hold_at_the_third_look)
    assert report == PackReport(6, moved=moved, ended_early="the rollout is held")
    fleet.turn()
    assert members(engine) == {"succeeded": moved, "pending": 6 - moved}
    fleet.do(operations.resume, "tenant", ADA)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED
    assert rows(engine, "SELECT count(*) FROM migrations") == [(6,)]


def test_the_hold_of_all_rollouts_ends_a_pack(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    fleet.start(ONE)
    pack = the_pack(fleet)
    assert isinstance(
        fleet.run_pack(pack, is_stopping=lambda: bool(fleet.do(operations.hold_all, ADA)) and False),
        PackReport,
    )
    fleet.turn()
    assert members(engine) == {"pending": 3}


def test_a_worker_that_shuts_down_ends_its_pack(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 4)
    fleet.start(ONE)
    report = fleet.run_pack(the_pack(fleet), is_stopping=lambda: True)
    assert report == PackReport(4, ended_early="the worker shuts down")
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_a_pack_that_takes_far_too_long_ends(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 4)
    fleet.start(ONE.model_copy(update={"pack_seconds": 0.000_001}))
    report = fleet.run_pack(the_pack(fleet))
    assert isinstance(report, PackReport)
    assert report.ended_early is not None
    assert report.ended_early.startswith("it took longer")


def test_a_pack_ends_with_its_first_failure(engine: Engine, fleet: Fleet) -> None:
    use(tenants(broken=lambda slug: slug == "t001"))
    add_tenants(engine, 5)
    fleet.start(APART)
    report = fleet.run_pack(the_pack(fleet))
    assert report == PackReport(5, moved=1, failed=1, ended_early="a graph failed")
    state = fleet.run()
    assert state.rollout.status is RolloutStatus.FINISHED_WITH_FAILURES
    assert (state.rollout.counts.succeeded, state.rollout.counts.failed) == (4, 1)


def test_where_a_graph_fails_those_that_have_begun_with_it_go_on_by_themselves(
    engine: Engine, fleet: Fleet
) -> None:
    use(tenants(broken=lambda slug: slug == "t003"))
    add_tenants(engine, 6)
    fleet.start(ONE)
    report = fleet.run_pack(the_pack(fleet))
    assert report == PackReport(6, moved=3, failed=1, left=1, ended_early="a graph failed")
    assert [chain.graph for chain in fleet.chains] == ["t004"]
    assert rows(
        engine,
        "SELECT slug, array_agg(a.status || ' ' || a.attempt ORDER BY a.id) FROM hop_attempts a "
        "JOIN graphs g ON g.id = a.graph_id WHERE slug >= 't001' GROUP BY slug ORDER BY slug",
    ) == [
        ("t001", ["succeeded 1", "stopped 1", "succeeded 2"]),
        ("t002", ["succeeded 1", "stopped 1", "succeeded 2"]),
        ("t003", ["succeeded 1", "stopped 1", "failed 2"]),
        ("t004", ["succeeded 1", "stopped 1"]),
    ]
    (why,) = rows(engine, "SELECT DISTINCT error_message FROM hop_attempts WHERE status = 'stopped'")[0]
    assert why.startswith("t003, which shared its transaction, raised ")
    fleet.turn()
    assert members(engine) == {"succeeded": 3, "failed": 1, "dispatched": 1, "pending": 1}
    assert fleet.run().rollout.counts.succeeded == 5


@pytest.mark.parametrize("fails", [False, True])
def test_a_graph_that_was_not_begun_with_the_others_keeps_none_of_them(
    engine: Engine, fleet: Fleet, fails: bool
) -> None:
    """It waits again where the pack is to end; those behind it were begun, and go on."""
    with engine.connect() as owner:

        def take_one() -> bool:
            lock = "SELECT pg_try_advisory_lock(graph_migrator.lock_key(id)) FROM graph_migrator.graphs "
            owner.execute(text(lock + "WHERE slug = 't002'"))
            return False

        def hold(slug: str) -> bool:
            if slug == "t001" and not fails:
                fleet.do(operations.pause, "tenant", ADA)
            return fails and slug == "t001"

        use(tenants(broken=hold))
        add_tenants(engine, 6)
        fleet.start(ONE)
        report = fleet.run_pack(the_pack(fleet), is_stopping=take_one)
    assert isinstance(report, PackReport)
    if fails:
        assert report == PackReport(6, moved=1, failed=1, left=2, ended_early="a graph failed")
        assert [chain.graph for chain in fleet.chains] == ["t003", "t004"]
    else:
        assert report == PackReport(6, moved=4, ended_early=report.ended_early)
        assert "held" in (report.ended_early or "")
        assert rows(engine, "SELECT count(*) FROM requests WHERE answered_at IS NULL") == [(0,)]
    fleet.turn()
    assert rows(engine, "SELECT graph FROM rollout_members WHERE status = 'pending' ORDER BY 1") == [
        ("t002",),
        ("t005",),
    ]


def test_graphs_that_fail_are_as_many_as_the_limit_and_what_was_in_flight(
    engine: Engine, fleet: Fleet
) -> None:
    use(tenants(broken=lambda slug: True))
    add_tenants(engine, 60)
    fleet.start(PACKED)
    state = fleet.run()
    assert state.hold is not None
    assert state.hold["reason"] == "breaker"
    assert state.rollout.counts.failed <= PACKED.max_failures - 1 + PACKED.max_in_flight


# ── graphs that leave ───────────────────────────────────────────────────────────────────────────────


def test_a_transient_error_lets_a_graph_go_on_as_a_chain(engine: Engine, fleet: Fleet) -> None:
    tries: list[str] = []

    def flaky(slug: str) -> bool:
        tries.append(slug)
        if slug == "t001" and tries.count(slug) == 1:
            raise TimeoutError("again, please")
        return False

    use(tenants(broken=flaky, retry_on=(TimeoutError,)))
    add_tenants(engine, 4)
    fleet.start(APART)
    report = fleet.run_pack(the_pack(fleet))
    assert report == PackReport(4, moved=3, left=1)
    assert [chain.graph for chain in fleet.chains] == ["t001"]
    assert rows(engine, "SELECT pack_id FROM rollout_members WHERE graph = 't001'") == [(None,)]
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED
    assert tries.count("t001") == 2


def test_a_refused_graph_is_settled_and_the_pack_goes_on(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 4)
    fleet.start(ONE)
    pack = the_pack(fleet)
    run_graph_migration(engine, "t000", 3)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM graphs WHERE slug = 't001'"))
    assert fleet.run_pack(pack) == PackReport(4, moved=3, skipped=1)
    fleet.turn()
    assert rows(
        engine, "SELECT status, note FROM rollout_members WHERE graph IN ('t000', 't001') ORDER BY graph"
    ) == [
        ("succeeded", "was at the target already"),
        ("skipped", "deleted"),
    ]


# ── deaths ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_dead_packs_graphs_are_found_and_go_into_the_next_one(
    engine: Engine, fleet: Fleet, executors: Executors
) -> None:
    add_tenants(engine, 5)
    fleet.start(ONE)
    pack = the_pack(fleet)
    with executors.borrow() as session, _locked(session, pack) as is_ours:
        assert is_ours
        _take(session, pack, Worker("dead"))
        fleet.turn()
        assert members(engine) == {"dispatched": 5}  # its executor lives
        assert isinstance(fleet.run_pack(pack), Ignored)
    (again,) = fleet.turn()  # the lock is free, and nothing was begun
    assert isinstance(again, SendingPack)
    assert again.pack_id != pack
    assert packs(engine)[0] == ("closed", 5, 0)
    assert isinstance(fleet.run_pack(pack), Ignored)
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED


def test_what_a_dead_pack_had_begun_goes_on_as_a_chain(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)

    class PowerCut(BaseException):
        pass

    lives: list[bool] = []

    def die_once(slug: str) -> bool:
        if not lives:
            lives.append(True)
            raise PowerCut
        return False

    use(tenants(broken=die_once))
    fleet.start(ONE)
    pack = the_pack(fleet)
    with pytest.raises(PowerCut):
        fleet.run_pack(pack)
    fleet.turn()
    assert rows(engine, "SELECT status, pack_id FROM rollout_members WHERE graph = 't000'") == [
        ("dispatched", None)
    ]
    assert members(engine) == {"dispatched": 1, "pending": 2}  # one place, and the chain has it


def test_a_zombie_pack_and_its_heir_begin_each_graph_once(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 4)
    fleet.start(ONE)
    pack = the_pack(fleet)
    taken: list[SendingPack] = []

    def lose_the_lock() -> bool:
        if not taken:
            with engine.begin() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid, 30000) FROM pg_locks "
                        "WHERE locktype = 'advisory' AND objsubid = 1 "
                        "AND (classid::bigint << 32 | objid::bigint) = graph_migrator.pack_key(:pack)"
                    ),
                    {"pack": pack},
                )
            taken.extend(each for each in fleet.turn() if isinstance(each, SendingPack))
        return False

    with pytest.raises(Exception, match=r"connection|terminat"):
        fleet.run_pack(pack, is_stopping=lose_the_lock)
    assert len(taken) == 1
    assert rows(engine, "SELECT count(*) FROM migrations") == [(0,)]  # it looked, and its pack was closed
    assert fleet.run().rollout.status is RolloutStatus.SUCCEEDED
    assert rows(engine, "SELECT count(*), count(DISTINCT graph_id) FROM migrations") == [(4, 4)]


def test_a_lost_message_of_a_pack_is_sent_again(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 3)
    fleet.start(ONE)
    pack = the_pack(fleet)
    assert fleet.turn() == []
    with engine.begin() as connection:
        connection.execute(text("UPDATE packs SET resend_at = now() - interval '1 s'"))
    (again,) = fleet.turn()
    assert isinstance(again, SendingPack)
    assert again.pack_id == pack
    assert rows(engine, "SELECT resends, resend_at > now() + interval '50 s' FROM packs") == [(1, True)]


def test_a_worker_with_other_code_does_not_take_a_pack_and_records_nothing(
    engine: Engine, fleet: Fleet
) -> None:
    add_tenants(engine, 3)
    fleet.start(ONE)
    pack = the_pack(fleet)
    use(mended())
    assert isinstance(fleet.run_pack(pack), OtherCode)
    assert packs(engine) == [("sent", 3, 0)]
    assert rows(engine, "SELECT count(*) FROM requests") == [(0,)]
    use(tenants())
    assert fleet.run_pack(pack) == PackReport(3, moved=3)


def test_a_cancel_skips_what_a_pack_has_not_begun(engine: Engine, fleet: Fleet) -> None:
    add_tenants(engine, 30)
    fleet.start(ONE)
    pack = the_pack(fleet)
    fleet.do(operations.cancel, "tenant", ADA)
    fleet.turn()
    assert members(engine) == {"skipped": 30}
    assert fleet.show().rollout.status is RolloutStatus.CANCELLED
    assert isinstance(fleet.run_pack(pack), Ignored)


@pytest.mark.parametrize("before", list(PackStatus))
@pytest.mark.parametrize("after", list(PackStatus))
def test_postgres_refuses_every_other_change_of_a_packs_status(
    engine: Engine, fleet: Fleet, before: PackStatus, after: PackStatus
) -> None:
    if before is after:
        return
    add_tenants(engine, 2)
    fleet.start(ONE)
    the_pack(fleet)
    ended = "now()" if after in {PackStatus.LEFT, PackStatus.CLOSED} else "NULL"
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE packs DISABLE TRIGGER packs_follow_their_states"))
        was_ended = "now()" if before in {PackStatus.LEFT, PackStatus.CLOSED} else "NULL"
        connection.execute(
            text(
                f"UPDATE packs SET status = '{before}', worker = 'w', started_at = now(), ended_at = {was_ended}"
            )
        )
        connection.execute(text("ALTER TABLE packs ENABLE TRIGGER packs_follow_their_states"))
    change = text(f"UPDATE packs SET status = '{after}', ended_at = {ended}")
    if (before, after) in pairs(PACK_EDGES):
        with engine.begin() as connection:
            connection.execute(change)
    else:
        with pytest.raises(IntegrityError, match="cannot go"), engine.begin() as connection:
            connection.execute(change)


def test_run_pack_ignores_a_pack_that_is_not_there(fleet: Fleet, executors: Executors) -> None:
    around = Surroundings(send_later=lambda dispatch, seconds: None)
    assert isinstance(run_pack(executors, UUID(int=7), Worker("w"), around), Ignored)
