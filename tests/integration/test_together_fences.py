"""What Postgres refuses to a session whose graphs share their transactions, whatever the process believes."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID

import psycopg2.errors
import pytest
from sqlalchemy import Engine, text

from graph_migrator.core.execution import together
from graph_migrator.core.execution.limits import limits_of_settings
from graph_migrator.core.execution.model import Caller, Worker
from graph_migrator.core.execution.straight import FreeGraph, StraightRun
from graph_migrator.core.graph_types import registry
from graph_migrator.core.planning import make_plan
from graph_migrator.core.store.errors import sqlstate
from graph_migrator.core.store.protocol import (
    BeginTogether,
    FinishTogether,
    PartCompany,
    ReleaseTogether,
    ResumeTogether,
    TurnTo,
)
from graph_migrator.core.store.session import Executor, Executors
from tests.integration.fleet_inline import tenants
from tests.rows import add_graph, advisory_locks, rows
from tests.waiting import until

SLUGS = ("a", "b", "c")


class Group:
    """Three graphs in one session, as `run_together` begins them."""

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        meanwhile: Callable[[dict[str, UUID]], None] = lambda _: None,
    ) -> None:
        """`meanwhile`: what somebody else does to the graphs, by slug, after they were read."""
        kind = tenants()
        registry.register(kind)
        self.graphs = tuple(add_graph(engine, slug, "tenant") for slug in SLUGS)
        meanwhile(dict(zip(SLUGS, self.graphs, strict=True)))
        plan = make_plan("a", kind, 1, 3)
        calls = [
            StraightRun(
                kind, FreeGraph(id_, slug, 1), plan, Caller(slug), Worker("w"), limits_of_settings()
            ).begin_call()
            for id_, slug in zip(self.graphs, SLUGS, strict=True)
        ]
        begin = BeginTogether.of(calls)
        self.executor = executor
        self.migrations = begin.migrations
        self.opened = executor.call_and_begin(begin)
        self.attempts = tuple(each["attempt_id"] for each in self.opened if each)
        self.plan = plan

    def turn(self, migration: UUID, before: UUID | None = None) -> None:
        self.executor.call(TurnTo(before=before, migration=migration, ms=2_000))

    def turns(self) -> None:
        """One for each of them."""
        for before, migration in pairwise((None, *self.migrations)):
            assert migration is not None
            self.turn(migration, before)

    def finish(self, to: int = 2) -> FinishTogether:
        step = self.plan.steps[1] if to == 2 else None
        return FinishTogether(
            attempts=self.attempts,
            migrations=self.migrations,
            graphs=self.graphs,
            statuses=("succeeded",) * 3,
            rows=(1, 1, 1),
            from_=to - 1,
            to=to,
            deadline_seconds=30,
            next_to=step.to_version if step else None,
            hop=step.name if step else None,
            fingerprint=step.fingerprint if step else None,
            worker="w",
            pid=1,
            task=None,
        )

    def finished(self, call: FinishTogether) -> Any:
        return self.executor.commit_and_open(
            call, then=ResumeTogether(migrations=self.migrations, graphs=self.graphs)
        )


@pytest.fixture
def group(engine: Engine, executors: Executors) -> Iterator[Group]:
    with executors.borrow() as executor:
        yield Group(engine, executor)
        executor.close()


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(psycopg2.Error) as raised:
        yield
    assert sqlstate(raised.value) == code


def versions(engine: Engine) -> list[tuple[Any, ...]]:
    return rows(engine, "SELECT DISTINCT version FROM graphs")


def test_it_finishes_a_hop_of_all_and_keeps_their_locks(engine: Engine, group: Group) -> None:
    group.turns()
    opened = group.finished(group.finish())
    assert len(opened) == 3
    assert versions(engine) == [(2,)]
    with engine.connect() as other:
        lock = text(
            "SELECT bool_or(pg_try_advisory_lock(graph_migrator.lock_key(id))) FROM graph_migrator.graphs"
        )
        assert other.execute(lock).scalar_one() is False


def begun(group: Group) -> list[str]:
    return [slug for slug, opened in zip(SLUGS, group.opened, strict=True) if opened is not None]


def is_free(engine: Engine, graph: UUID) -> bool:
    with engine.connect() as other:
        key = f"graph_migrator.lock_key('{graph}')"
        return bool(other.execute(text(f"SELECT pg_try_advisory_lock({key})")).scalar_one())


def test_it_begins_those_whose_lock_it_gets_and_keeps_it(engine: Engine, executors: Executors) -> None:
    with engine.connect() as other, executors.borrow() as executor:
        lock = "SELECT pg_advisory_lock(graph_migrator.lock_key(:id))"
        group = Group(engine, executor, lambda ids: other.execute(text(lock), {"id": ids["b"]}) and None)
        assert begun(group) == ["a", "c"]
        assert [is_free(engine, graph) for graph in group.graphs] == [False] * 3
        executor.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE graph_migrator.graphs SET graph_type = 'tenant' WHERE false",
        "INSERT INTO graph_migrator.requests (task_id, verb, graph_id) VALUES ('b', 'migrate', :id)",
        "DELETE FROM graph_migrator.graphs WHERE id = :id",
    ],
    ids=["nothing", "its request is known", "it is gone"],
)
def test_it_releases_those_that_it_does_not_begin(engine: Engine, executors: Executors, change: str) -> None:
    def meanwhile(ids: dict[str, UUID]) -> None:
        with engine.begin() as other:
            other.execute(text(change), {"id": ids["b"]} if ":id" in change else {})

    with executors.borrow() as executor:
        group = Group(engine, executor, meanwhile)
        is_changed = ":id" in change
        assert begun(group) == (["a", "c"] if is_changed else ["a", "b", "c"])
        assert [is_free(engine, graph) for graph in group.graphs] == [False, is_changed, False]
        executor.close()


def test_it_begins_none_where_a_request_is_answered_meanwhile(engine: Engine, executors: Executors) -> None:
    other = engine.connect()

    def meanwhile(ids: dict[str, UUID]) -> None:
        insert = "INSERT INTO graph_migrator.requests (task_id, verb, graph_id) VALUES ('b', 'migrate', :id)"
        other.execute(text(insert), {"id": ids["b"]})
        threading.Thread(target=commit_when_waited_for).start()

    def commit_when_waited_for() -> None:
        waits = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        until(lambda: rows(engine, waits), "somebody waits")
        other.commit()
        other.close()

    with refused("40001"), executors.borrow() as executor:
        Group(engine, executor, meanwhile)
    assert rows(engine, "SELECT count(*) FROM migrations") == [(0,)]


def test_nobody_gets_a_lock_in_between_two_hops(engine: Engine, group: Group) -> None:
    has_got = threading.Event()

    def take() -> None:
        with engine.connect() as other:
            other.execute(
                text("SELECT pg_advisory_lock(graph_migrator.lock_key(:id))"), {"id": group.graphs[1]}
            )
            has_got.set()
            other.execute(text("SELECT pg_advisory_unlock_all()"))

    waiting = threading.Thread(target=take)
    waiting.start()
    waits = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
    until(lambda: rows(engine, waits), "somebody waits")
    group.turns()
    group.finished(group.finish())
    assert rows(engine, waits)
    assert not has_got.is_set()
    group.executor.close()
    waiting.join()


def test_what_else_a_hop_has_locked_for_its_session_is_free_after_the_hop(
    engine: Engine, group: Group
) -> None:
    group.turns()
    group.executor.cursor().execute("SELECT pg_advisory_lock(42)")
    group.finished(group.finish())
    with engine.connect() as other:
        assert other.execute(text("SELECT pg_try_advisory_lock(42)")).scalar_one()


def test_a_turn_needs_a_migration_that_began_in_this_session(group: Group) -> None:
    with refused("GM001"):
        group.turn(UUID(int=7))


def test_a_turn_needs_the_transaction_that_was_opened_for_it(group: Group) -> None:
    group.executor.roll_back()
    with refused("GM002"):
        group.turn(group.migrations[0])


def test_a_turn_is_taken_over_from_the_one_that_has_it(group: Group) -> None:
    first, second, third = group.migrations
    group.turn(first)
    with refused("GM002"):
        group.turn(third, before=second)


def test_a_hop_is_finished_after_the_last_turn_only(engine: Engine, group: Group) -> None:
    group.turn(group.migrations[0])
    with refused("GM002"):
        group.finished(group.finish())
    assert versions(engine) == [(1,)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_graph_whose_lock_the_session_has_lost_is_not_finished(
    engine: Engine, group: Group, number: int
) -> None:
    group.turns()
    key = f"graph_migrator.lock_key('{group.graphs[number]}')"
    with group.executor.cursor() as cursor, engine.connect() as other:
        cursor.execute(f"SELECT pg_advisory_unlock({key})")
        other.execute(text(f"SELECT pg_advisory_lock({key})"))
        with refused("GM001"):
            group.finished(group.finish())
    assert versions(engine) == [(1,)]


def test_a_session_that_has_begun_none_of_them_neither_finishes_them_nor_has_a_turn(
    engine: Engine, group: Group
) -> None:
    """Also where nobody holds their locks any more, and their attempts still run."""
    group.executor.close()
    group.executor = Executor.connect(engine)
    with group.executor.transaction(), refused("GM001"):
        group.turn(group.migrations[0])
    with group.executor.transaction(), refused("GM002"):
        group.finished(group.finish())
    assert versions(engine) == [(1,)]
    group.executor.close()


def test_an_attempt_that_somebody_has_settled_is_not_finished(engine: Engine, group: Group) -> None:
    group.turns()
    with engine.begin() as other:
        settle = "UPDATE graph_migrator.hop_attempts SET status = 'lost', finished_at = now() WHERE id = :id"
        other.execute(text(settle), {"id": group.attempts[1]})
    with refused("GM001"):
        group.finished(group.finish())
    assert versions(engine) == [(1,)]


def test_a_graph_at_another_version_is_not_finished(engine: Engine, group: Group) -> None:
    group.turns()
    with refused("GM001"):
        group.finished(replace(group.finish(), from_=2))
    assert versions(engine) == [(1,)]


def test_a_migration_does_not_end_before_its_target(engine: Engine, group: Group) -> None:
    group.turns()
    call = replace(group.finish(), next_to=None)
    with refused("GM001"):
        group.executor.call_and_commit(call, then=ReleaseTogether(graphs=group.graphs))
    assert versions(engine) == [(1,)]


def test_a_transaction_that_was_exchanged_is_not_finished(engine: Engine, group: Group) -> None:
    group.turns()
    with group.executor.cursor() as cursor:
        cursor.execute("ROLLBACK; BEGIN")
    with refused("GM002"):
        group.finished(group.finish())
    assert versions(engine) == [(1,)]


def test_a_transaction_that_graphs_share_is_not_committed_by_a_hop(engine: Engine, group: Group) -> None:
    group.turn(group.migrations[0])
    with group.executor.cursor() as cursor:
        cursor.execute("UPDATE nodes SET label = 'x' WHERE graph_id = %s", (str(group.graphs[0]),))
        with refused("GM002"):
            cursor.execute("COMMIT")
    assert rows(engine, "SELECT count(*) FROM nodes WHERE label = 'x'") == [(0,)]
    assert rows(engine, "SELECT count(*) FROM shared_transactions") == [(0,)]


def test_next_attempts_that_somebody_has_settled_are_not_resumed(engine: Engine, group: Group) -> None:
    with engine.begin() as other:
        settle = "UPDATE graph_migrator.hop_attempts SET status = 'lost', finished_at = now() WHERE id = :id"
        other.execute(text(settle), {"id": group.attempts[1]})
    group.executor.roll_back()
    with refused("GM001"):
        group.executor.call(ResumeTogether(migrations=group.migrations, graphs=group.graphs))


def test_parting_ends_what_runs_and_nothing_else_and_releases_all(engine: Engine, group: Group) -> None:
    group.executor.roll_back()
    with engine.begin() as other:
        settle = "UPDATE graph_migrator.hop_attempts SET status = 'lost', finished_at = now() WHERE id = :id"
        other.execute(text(settle), {"id": group.attempts[1]})
    group.executor.call(PartCompany(migrations=group.migrations, why="because"))
    found = rows(engine, "SELECT status, error_message FROM hop_attempts ORDER BY id")
    assert found == [("stopped", "because"), ("lost", None), ("stopped", "because")]
    with engine.connect() as other:
        lock = text(
            "SELECT bool_and(pg_try_advisory_lock(graph_migrator.lock_key(id))) FROM graph_migrator.graphs"
        )
        assert other.execute(lock).scalar_one() is True


def test_they_part_also_where_the_next_hop_is_open(
    engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised in between, as by a signal of the worker's: the session is idle and without a lock then."""
    kind = tenants()
    registry.register(kind)
    graphs = [(FreeGraph(add_graph(engine, slug, "tenant"), slug, 1), Caller(slug)) for slug in SLUGS]

    def interrupted(*_: Any) -> None:
        raise TimeoutError("the worker's soft time limit")

    monkeypatch.setattr(together, "conclude", interrupted)
    came = together.run_together(
        executors, kind, graphs, make_plan("a", kind, 1, 3), worker=Worker("w"), begin=BeginTogether.of
    )
    assert all(straight is not None and straight.outcome is None for straight in came)
    found = rows(engine, "SELECT to_version, status, count(*) FROM hop_attempts GROUP BY 1, 2 ORDER BY 1, 2")
    assert found == [(2, "succeeded", 3), (3, "stopped", 3)]
    assert rows(engine, "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'") == [(0,)]


def test_where_not_even_the_parting_can_be_written_the_session_and_its_locks_are_gone(
    engine: Engine, executors: Executors
) -> None:
    kind = tenants(broken=lambda slug: slug == "b")
    registry.register(kind)
    graphs = [(FreeGraph(add_graph(engine, slug, "tenant"), slug, 1), Caller(slug)) for slug in SLUGS]
    with engine.begin() as owner:
        owner.execute(text("ALTER TABLE graph_migrator.hop_attempts ADD CHECK (status <> 'stopped')"))
    came = together.run_together(
        executors, kind, graphs, make_plan("a", kind, 1, 3), worker=Worker("w"), begin=BeginTogether.of
    )
    assert [straight and straight.applied for straight in came] == [1, 1, 1]
    until(lambda: not advisory_locks(engine), "the session has ended")


def test_the_last_change_is_dated_after_its_commit(engine: Engine, group: Group) -> None:
    """A writer whose transaction began in between has read old rows."""
    group.turns()
    group.attempts = tuple(group.finished(group.finish()))
    with group.executor.transaction():
        group.turns()
        group.executor.call(group.finish(3))
    undated = "SELECT count(*) FROM graphs WHERE changed_at IS NULL AND version = 3"
    assert rows(engine, undated) == [(3,)]
    group.executor.call(ReleaseTogether(graphs=group.graphs))
    assert rows(engine, undated) == [(0,)]


@pytest.mark.parametrize("number", [0, 2])
def test_whoever_waits_for_one_of_them_is_notified(engine: Engine, group: Group, number: int) -> None:
    waiter = engine.raw_connection()
    raw: Any = waiter.driver_connection
    raw.autocommit = True
    with raw.cursor() as cursor:
        cursor.execute("LISTEN graph_migrator")
        key = "graph_migrator.wait_key(%s)"
        cursor.execute(f"SELECT pg_advisory_lock_shared({key})", (str(group.migrations[number]),))
    group.turns()
    group.finished(group.finish())
    select.select([raw], [], [], 10)
    raw.poll()
    assert [note.payload for note in raw.notifies] == [str(group.migrations[number])]
    waiter.invalidate()
