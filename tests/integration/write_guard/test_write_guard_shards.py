"""What a shard's session may write: the rows of its own range, while it holds its locks and its attempt runs."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.store.connections import make_engine
from tests.integration.hand_driven import (
    FENCED,
    REFUSED,
    REPEAT,
    Client,
    HandDriven,
    add_graph,
    at_every_isolation,
    in_background,
    sqlstate_of,
    wait_until_waiting,
)

OUTSIDE = "23000"
MINE = "UPDATE nodes SET label = 'w' WHERE graph_id = %s AND id BETWEEN 'n1' AND 'n4'"
OTHERS = [
    ("another shard's rows", "UPDATE nodes SET label = 'w' WHERE graph_id = %s AND id = 'n5'"),
    ("rows of both", "UPDATE nodes SET label = 'w' WHERE graph_id = %s AND id IN ('n4', 'n5')"),
    ("a row that leaves the range", "UPDATE nodes SET id = 'n9' WHERE graph_id = %s AND id = 'n1'"),
    ("a row that enters it", "UPDATE nodes SET id = 'n11' WHERE graph_id = %s AND id = 'n7'"),
    ("a new row of another shard", "INSERT INTO nodes VALUES (%s, 'n6a', 'w')"),
    ("a deleted one", "DELETE FROM nodes WHERE graph_id = %s AND id = 'n8'"),
    ("another table", "INSERT INTO edges VALUES (%s, 'e', 'n1', 'n2', 'KNOWS')"),
]


@pytest.fixture
def graph(app: Client) -> UUID:
    """The graph `people`, at v1, of n1 … n8."""
    return add_graph(app, "people", nodes=8)


class Shards:
    """A migration whose hop is cut at n4, and sessions that take its shards."""

    def __init__(self, app: Client, migration: HandDriven) -> None:
        self.app, self.migration = app, migration
        migration.begin()
        app.do(
            "SELECT cut_shards(%s, 2, 'queued', 1, 'graph_migrator.nodes', '[\"id\"]', NULL, "
            "'[[[\"n4\"], 4], [null, 4]]', NULL, 30)",
            str(migration.id),
        )

    def take(self, client: Client, number: int) -> int:
        """Lock a shard, open its attempt and name the session, as its executor does."""
        locked = client.one(
            "SELECT locked FROM lock_and_load_hop(%s, 2, 1, %s)", str(self.migration.id), number
        )
        assert locked
        attempt = client.one(
            "SELECT attempt_id FROM open_hop(%s, %s, 'running', 1, NULL, 1, 2, 'hop', 'f', 'test', 1, NULL, 0, 30, %s)",
            str(self.migration.id), str(self.migration.graph), number,
        )  # fmt: skip
        client.commit()
        return int(attempt)


@pytest.fixture
def shards(app: Client, migration: HandDriven) -> Shards:
    return Shards(app, migration)


@pytest.fixture
def second(database_url: str) -> Iterator[Client]:
    client = Client(database_url)
    yield client
    client.close()


@at_every_isolation
def test_a_shard_writes_its_own_range_and_nothing_else(
    shards: Shards, writer: Client, second: Client, graph: UUID
) -> None:
    other = add_graph(second, "others")
    shards.take(writer, 1)
    shards.take(second, 2)
    writer.do(MINE, str(graph))
    writer.do("INSERT INTO nodes VALUES (%s, 'n3a', 'w')", str(graph))
    writer.do("DELETE FROM nodes WHERE graph_id = %s AND id = 'n3a'", str(graph))
    found = {}
    for what, statement in OTHERS:
        found[what] = sqlstate_of(writer.run, statement, str(graph))
        writer.rollback()
    assert found == {what: OUTSIDE for what, _ in OTHERS}
    attacks = (
        ("UPDATE nodes SET label = 'w' WHERE graph_id = %s", other, FENCED),  # nobody owns that graph
        ("UPDATE graphs SET config = '{\"a\": 1}' WHERE id = %s", graph, FENCED),
        ("UPDATE graphs SET version = 2 WHERE id = %s", graph, FENCED),
    )
    for statement, which, code in attacks:
        assert sqlstate_of(writer.run, statement, str(which)) == code, statement
        writer.rollback()
    two = "UPDATE nodes SET label = 'w' WHERE graph_id IN (%s, %s)"
    assert sqlstate_of(writer.run, two, str(graph), str(other)) == OUTSIDE
    writer.rollback()
    labels = shards.app.run("SELECT id, label FROM nodes WHERE graph_id = %s ORDER BY id", str(graph))
    assert labels == [(f"n{i}", "w" if i <= 4 else "v1") for i in range(1, 9)]


@at_every_isolation
def test_names_without_locks_and_locks_without_names_prove_nothing(
    shards: Shards, writer: Client, second: Client, graph: UUID
) -> None:
    attempt = shards.take(second, 1)
    writer.do("SELECT become_shard_executor(%s, %s)", str(shards.migration.id), attempt)
    assert sqlstate_of(writer.run, MINE, str(graph)) == FENCED, "the shard's lock is another session's"
    writer.rollback()
    writer.do("SELECT release_shard_lock()")
    writer.do("SELECT try_shard_lock(%s, %s, 2, 2)", str(graph), str(shards.migration.id))
    assert sqlstate_of(writer.run, MINE, str(graph)) == REFUSED, "an ordinary writer that holds locks"
    writer.rollback()


@at_every_isolation
@pytest.mark.parametrize("snapshot", ["fresh", "old"])
@pytest.mark.parametrize("then", ["found dead", "taken by another", "done", "closed"])
def test_after_its_shard_was_lost_a_session_writes_nothing(
    shards: Shards, writer: Client, second: Client, graph: UUID, snapshot: str, then: str
) -> None:
    attempt = shards.take(writer, 1)
    writer.do("SELECT pg_advisory_unlock_all()")  # as only a hop can do that tampers with its session
    if snapshot == "old":
        writer.begin()
    assert shards.app.one("SELECT graph_id IS NOT NULL FROM lock_and_load_dead_shard(%s)", attempt)
    shards.app.do("SELECT record_lost_shard(%s, %s, 30)", attempt, str(shards.migration.id))
    if then != "found dead":
        again = shards.take(second, 1)
        if then != "taken by another":
            second.run("SELECT set_config('graph_migrator.transaction', 'open', true)")
            second.do(
                "SELECT save_shard_batch(%s, %s, %s, 2, 1, '[\"n4\"]', 4, 4, true, 30)",
                again, str(shards.migration.id), str(graph),
            )  # fmt: skip
            second.do("SELECT release_shard_lock()")
    if then == "closed":
        shards.app.do("UPDATE shards SET is_done = true")
        shards.migration.run_hop("SELECT %s::uuid")
    code = sqlstate_of(writer.run, MINE, str(graph))
    writer.rollback()
    assert code in {FENCED, REPEAT}
    labels = {label for (label,) in shards.app.run("SELECT label FROM nodes WHERE graph_id = %s", str(graph))}
    assert labels == {"v1"}


def test_attempts_that_end_together_are_linked_one_after_the_other(
    shards: Shards, writer: Client, second: Client, graph: UUID, database_url: str
) -> None:
    taken = [(writer, 1, shards.take(writer, 1)), (second, 2, shards.take(second, 2))]

    def end(client: Client, number: int, attempt: int) -> None:
        client.run("SELECT set_config('graph_migrator.transaction', 'open', true)")
        client.run(
            "SELECT save_shard_batch(%s, %s, %s, 2, %s, '[\"n\"]', 0, 0, true, 30)",
            attempt, str(shards.migration.id), str(graph), number,
        )  # fmt: skip

    end(*taken[0])
    with in_background(lambda: (end(*taken[1]), second.commit())) as other:
        wait_until_waiting(shards.app, second.pid)
        writer.commit()
        other.result()
    assert shards.app.run("SELECT link, status FROM hop_attempts ORDER BY link") == [
        (1, "succeeded"),
        (2, "succeeded"),
    ]
    assert verify_chains(make_engine(database_url)).count == 0


def test_a_shard_that_has_lost_its_share_of_the_graphs_lock_writes_nothing_beside_who_has_it(
    shards: Shards, writer: Client, second: Client, graph: UUID
) -> None:
    shards.take(writer, 1)
    writer.do("SELECT pg_advisory_unlock_shared(lock_key(%s))", str(graph))  # and keeps its shard's own
    second.do("SELECT pg_advisory_lock(lock_key(%s))", str(graph))
    assert sqlstate_of(writer.run, MINE, str(graph)) == FENCED
    writer.rollback()


def test_who_does_not_get_a_shard_keeps_nothing_of_its_graph(
    shards: Shards, writer: Client, second: Client, graph: UUID
) -> None:
    shards.take(writer, 1)
    assert not second.one("SELECT try_shard_lock(%s, %s, 2, 1)", str(graph), str(shards.migration.id))
    second.commit()
    writer.do("SELECT release_shard_lock()")
    assert writer.one("SELECT pg_try_advisory_lock(lock_key(%s))", str(graph)), "nobody else holds it"
    writer.commit()


def test_a_shard_ends_only_by_its_own_executor(
    shards: Shards, writer: Client, second: Client, graph: UUID
) -> None:
    """Whoever else says so, by the right numbers, changes nothing."""
    attempt, migration = shards.take(writer, 1), str(shards.migration.id)
    calls = (
        "SELECT open_shard_batch(%s, %s, %s)",
        "SELECT save_shard_batch(%s, %s, %s, 2, 1, '[\"n4\"]', 4, 4, true, 30)",
        "SELECT fail_shard(%s, %s, %s, false, true, 'E', 'm', '[]', NULL, 30)",
    )
    second.do("SELECT set_config('graph_migrator.transaction', 'open', false)")
    for call in calls:
        assert sqlstate_of(second.run, call, attempt, migration, str(graph)) == FENCED, call
        second.rollback()
    assert sqlstate_of(writer.run, calls[1], attempt, migration, str(graph)) is not None, (
        "no transaction of its hop"
    )
    writer.rollback()
    assert shards.app.run("SELECT status FROM hop_attempts") == [("running",)]
    assert shards.app.run("SELECT status FROM migrations") == [("running",)]


def test_what_has_ended_does_not_change_any_more(shards: Shards, writer: Client, graph: UUID) -> None:
    attempt, migration = shards.take(writer, 1), str(shards.migration.id)
    writer.run("SELECT set_config('graph_migrator.transaction', 'open', true)")
    save = "SELECT save_shard_batch(%s, %s, %s, 2, 1, '[\"n4\"]', 4, 4, true, 30)"
    writer.do(save, attempt, migration, str(graph))
    writer.run("SELECT set_config('graph_migrator.transaction', 'open', true)")
    assert sqlstate_of(writer.run, save, attempt, migration, str(graph)) == FENCED
    writer.rollback()
    for call in ("SELECT stop_shard(%s)", "SELECT record_lost_shard(%s, NULL, 30)"):
        writer.do(call, attempt)
    assert writer.one("SELECT graph_id FROM lock_and_load_dead_shard(%s)", attempt) is None
    writer.commit()
    assert shards.app.run("SELECT status FROM hop_attempts") == [("succeeded",)]


def test_the_last_shard_writes_no_row_before_its_range(shards: Shards, writer: Client, graph: UUID) -> None:
    shards.take(writer, 2)
    for row in ("n1", "n4"):
        statement = "UPDATE nodes SET label = 'w' WHERE graph_id = %s AND id = %s"
        assert sqlstate_of(writer.run, statement, str(graph), row) == OUTSIDE
        writer.rollback()


def test_a_shard_alone_is_not_the_migrations_executor(shards: Shards, writer: Client, graph: UUID) -> None:
    """It could take the graph's lock exclusively: nobody else shares it."""
    shards.take(writer, 1)
    migration = str(shards.migration.id)
    for statement, values in (
        ("SELECT require_executor(%s, %s)", (migration, str(graph))),
        ("UPDATE graphs SET config = '{\"a\": 1}' WHERE id = %s", (str(graph),)),
    ):
        assert sqlstate_of(writer.run, statement, *values) == FENCED, statement
        writer.rollback()


def test_a_shard_is_dead_when_its_own_lock_is_free(
    shards: Shards, writer: Client, second: Client, graph: UUID
) -> None:
    dead, load = (
        "SELECT * FROM dead_shards()",
        "SELECT graph_id IS NOT NULL FROM lock_and_load_dead_shard(%s)",
    )
    attempt = shards.take(writer, 1)
    assert (second.run(dead), second.one(load, attempt)) == ([], False), "its executor lives"
    second.commit()
    writer.do("SELECT release_shard_lock()")
    assert second.run(dead) == [(attempt,)]
    writer.do("SELECT pg_advisory_lock(lock_key(%s))", str(graph))
    assert not second.one(load, attempt), "the coordinator has the graph, and finds it"
    writer.do("SELECT pg_advisory_unlock_all()")
    assert second.one(load, attempt)
    second.commit()


def test_each_shard_has_its_own_losses_and_its_own_progress(
    shards: Shards, writer: Client, second: Client, graph: UUID
) -> None:
    migration = str(shards.migration.id)
    first = shards.take(writer, 1)
    writer.do("SELECT release_shard_lock()")
    writer.do("SELECT record_lost_shard(%s, %s, 30)", first, migration)
    lost = "SELECT interruptions FROM count_losses(%s, 2, 0, %s)"
    assert [shards.app.one(lost, migration, number) for number in (1, 2)] == [1, 0]
    shards.app.commit()
    other = shards.take(second, 2)
    second.run("SELECT set_config('graph_migrator.transaction', 'open', true)")
    second.do(
        "SELECT save_shard_batch(%s, %s, %s, 2, 2, '[\"n6\"]', 2, 2, false, 30)", other, migration, str(graph)
    )
    assert [shards.app.one(lost, migration, number) for number in (1, 2)] == [1, 0]


def test_of_two_shards_that_fail_the_first_says_why(
    shards: Shards, writer: Client, second: Client, graph: UUID
) -> None:
    taken = [(writer, shards.take(writer, 1), "first"), (second, shards.take(second, 2), "second")]
    for client, attempt, error in taken:
        client.do(
            "SELECT fail_shard(%s, %s, %s, false, true, %s, 'm', '[]', NULL, 30)",
            attempt, str(shards.migration.id), str(graph), error,
        )  # fmt: skip
    assert shards.app.run("SELECT status, error_type FROM migrations") == [("failed", "first")]
    assert shards.app.run("SELECT status, error_type FROM hop_attempts ORDER BY shard") == [
        ("failed", "first"),
        ("failed", "second"),
    ]


NEXT = "SELECT status, numbers FROM next_shards(%s, 2, %s, 16, 64, %s)"


def test_shards_are_chosen_by_one_session_at_a_time(shards: Shards, writer: Client, second: Client) -> None:
    migration = str(shards.migration.id)
    assert writer.one(NEXT, migration, 1, False) == ("running", [1, 2])
    with in_background(lambda: (second.one(NEXT, migration, 1, False), second.commit())[0]) as other:
        wait_until_waiting(shards.app, second.pid)
        writer.commit()
        assert other.result() == ("running", []), "none is sent twice"


@pytest.mark.parametrize(
    ("status", "dispatch", "found"), [("pausing", 1, "pausing"), ("running", 0, "stale")]
)
def test_of_a_migration_that_stops_or_has_gone_on_no_shard_is_sent(
    shards: Shards, writer: Client, status: str, dispatch: int, found: str
) -> None:
    shards.app.do("UPDATE migrations SET status = %s", status)
    assert writer.one(NEXT, str(shards.migration.id), dispatch, False) == (found, [])
    writer.commit()
    assert shards.app.run("SELECT is_sent FROM shards") == [(False,), (False,)]


def test_the_coordinator_finds_the_attempts_of_the_dead_and_sends_their_shards_again(
    shards: Shards, writer: Client, second: Client
) -> None:
    migration = str(shards.migration.id)
    writer.do(NEXT, migration, 1, False)
    attempt = shards.take(second, 2)
    second.do("SELECT release_shard_lock()")
    chosen = writer.one("SELECT numbers, lost_ids FROM next_shards(%s, 2, 1, 16, 64, true)", migration)
    writer.commit()
    assert chosen == ([1, 2], [attempt])
    assert shards.app.run("SELECT status FROM hop_attempts") == [("lost",)]


def test_a_hop_is_cut_only_as_it_was_looked_at(app: Client, migration: HandDriven) -> None:
    migration.begin()
    cut = (
        "SELECT cut_shards(%s, 2, %s, %s, 'graph_migrator.nodes', '[\"id\"]', NULL, "
        "'[[[\"n4\"], 4], [null, 4]]', NULL, 30)"
    )
    assert not app.one(cut, str(migration.id), "running", 1)
    assert not app.one(cut, str(migration.id), "queued", 2)
    assert app.run("SELECT * FROM shards") == []
    assert app.one(cut, str(migration.id), "queued", 1)
    app.commit()


def test_whoever_takes_the_graphs_lock_exclusively_has_no_shard_beside_it(
    shards: Shards, writer: Client, second: Client, graph: UUID
) -> None:
    lock = "SELECT pg_try_advisory_lock(lock_key(%s))"
    shards.take(writer, 1)
    assert not second.one(lock, str(graph))
    second.commit()
    writer.do("SELECT release_shard_lock()")
    assert second.one(lock, str(graph))
    second.commit()
    taken = "SELECT locked FROM lock_and_load_hop(%s, 2, 1, 2)"
    assert not writer.one(taken, str(shards.migration.id))
    writer.commit()


@pytest.fixture
def isolation() -> str:
    return "READ COMMITTED"
