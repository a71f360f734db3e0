"""Changes since a position: nothing is missing and nothing is twice, whatever the order of commits."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Connection, Engine, text

from graph_migrator import run_graph_migration
from graph_migrator.core.events import tail
from graph_migrator.core.events.tail import Change, Position
from tests.integration.scripted import Script
from tests.rows import add_graph, rows

INSERT = text(
    "INSERT INTO graph_migrator.change_events (kind, change) VALUES ('rollout', jsonb_build_object('n', :n))"
)


@pytest.fixture
def reader(engine: Engine) -> Iterator[Connection]:
    with engine.execution_options(isolation_level="REPEATABLE READ").connect() as connection:
        with connection.begin():
            tail.follow(connection)
        yield connection


def look(reader: Connection, since: Position) -> tuple[list[Change], Position]:
    with reader.begin():
        found = tail.changes_since(reader, since)
        assert found is not None
        return found, tail.position(reader)


def stand(reader: Connection) -> Position:
    with reader.begin():
        return tail.position(reader)


def test_what_commits_late_comes_later_and_delays_nobody(engine: Engine, reader: Connection) -> None:
    at = stand(reader)
    with engine.connect() as slow, engine.connect() as quick:
        slow.execute(INSERT, {"n": 1})
        quick.execute(INSERT, {"n": 2})
        quick.commit()
        found, at = look(reader, at)
        assert [each.change["n"] for each in found] == [2]
        slow.commit()
        found, at = look(reader, at)
        assert [each.change["n"] for each in found] == [1]
        assert look(reader, at)[0] == []


def test_a_position_outlives_its_reader_as_text(engine: Engine, reader: Connection) -> None:
    with engine.connect() as slow:
        slow.execute(INSERT, {"n": 1})
        at = stand(reader)
        slow.commit()
    again = Position.parse(str(at))
    assert again == at
    assert [each.change["n"] for each in look(reader, again)[0]] == [1]


@pytest.mark.parametrize(
    "text_", ["", "1", "1:2", "a:b:", "1:2:3,", "1:2:x", "-1:2:", "9" * 30 + ":1:", "1:2:\n"]
)
def test_what_is_no_position_is_none(text_: str) -> None:
    assert Position.parse(text_) is None


def test_many_writers_in_any_order_of_commits(engine: Engine, reader: Connection) -> None:
    """Twenty transactions at a time that begin, write, roll back and commit in random order, read all the while."""
    chance = random.Random(7)
    at, heard, committed = stand(reader), [], []
    number = 0
    with ExitStack() as stack:
        sessions = [stack.enter_context(engine.connect()) for _ in range(20)]
        pending: dict[int, list[int]] = {n: [] for n in range(20)}
        for _ in range(400):
            which = chance.randrange(20)
            match chance.choice(("write", "write", "commit", "roll back", "read")):
                case "write":
                    number += 1
                    sessions[which].execute(INSERT, {"n": number})
                    pending[which].append(number)
                case "commit":
                    sessions[which].commit()
                    committed += pending[which]
                    pending[which] = []
                case "roll back":
                    sessions[which].rollback()
                    pending[which] = []
                case "read":
                    found, at = look(reader, Position.parse(str(at)) or at)
                    heard += [each.change["n"] for each in found]
        for which, session in enumerate(sessions):
            session.commit()
            committed += pending[which]
    found, at = look(reader, at)
    heard += [each.change["n"] for each in found]
    assert sorted(heard) == sorted(committed)
    assert len(heard) > 50


def test_writers_at_the_same_time(engine: Engine, reader: Connection) -> None:
    at, heard = stand(reader), []
    ended = threading.Event()

    def write(first: int) -> None:
        with engine.connect() as connection:
            for n in range(first, first + 100):
                connection.execute(INSERT, {"n": n})
                if n % 3 == 0:
                    connection.commit()
            connection.commit()

    threads = [threading.Thread(target=write, args=(1000 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    while not ended.is_set():
        if not any(thread.is_alive() for thread in threads):
            ended.set()
        found, at = look(reader, at)
        heard += [each.change["n"] for each in found]
    assert sorted(heard) == [1000 * n + m for n in range(6) for m in range(100)]


def test_a_migration_is_recorded_while_somebody_follows(
    engine: Engine, reader: Connection, script: Script
) -> None:
    at = stand(reader)
    graph = add_graph(engine, "g", "batched", nodes=25)
    run_graph_migration(engine, "g")
    found, _ = look(reader, at)
    assert {each.graph_id for each in found} == {graph}
    assert [(each.kind, each.change["status"]) for each in found if each.kind == "migration"] == [
        ("migration", "queued"), ("migration", "running"), ("migration", "succeeded"),
    ]  # fmt: skip
    done = [each.change["done"] for each in found if each.kind == "attempt" and each.change["hop"] == "visit"]
    assert done[0] == 0
    assert done[-1] == 25
    assert len(done) >= 4


def test_nothing_is_recorded_where_nobody_follows(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    run_graph_migration(engine, "g")
    assert rows(engine, "SELECT count(*) FROM change_events") == [(0,)]


def test_a_position_from_before_a_gap_is_not_known(engine: Engine, reader: Connection) -> None:
    at = stand(reader)
    with reader.begin():
        assert tail.is_known(reader, at)
        assert not tail.is_known(reader, Position(at.xmin + 10_000, at.xmax + 10_000, ()))
        tail.follow(reader, seconds=-1)  # nobody is there any more
    with reader.begin():
        assert not tail.follow(reader)
    with reader.begin():
        assert not tail.is_known(reader, at)
        assert tail.is_known(reader, tail.position(reader))


def test_old_changes_are_removed_and_positions_before_them_forgotten(
    engine: Engine, reader: Connection
) -> None:
    at = stand(reader)
    with engine.begin() as connection:
        connection.execute(INSERT, {"n": 1})
        connection.exec_driver_sql("UPDATE graph_migrator.change_events SET at = at - interval '2 hours'")
    with reader.begin():
        assert tail.follow(reader)
    assert rows(engine, "SELECT count(*) FROM change_events") == [(0,)]
    with reader.begin():
        assert not tail.is_known(reader, at)


def test_who_is_too_far_behind_begins_anew(engine: Engine, reader: Connection) -> None:
    at = stand(reader)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO graph_migrator.change_events (xid, kind, change) SELECT "
                "pg_current_xact_id()::text::bigint, 'rollout', '{}' FROM generate_series(1, :n)"
            ),
            {"n": tail.MAX_CHANGES + 1},
        )
    with reader.begin():
        assert tail.changes_since(reader, at) is None
