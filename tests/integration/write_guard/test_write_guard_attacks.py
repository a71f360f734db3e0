"""Writers that try to slip in behind the write guard: at every moment, isolation level and with every statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from uuid import UUID

import pytest
from sqlalchemy import Engine

from graph_migrator.core.store.guard import install_guard
from tests.integration.hand_driven import (
    INSERT,
    READ_COMMITTED,
    REFUSED,
    REPEAT,
    REPEATABLE_READ,
    SERIALIZABLE,
    UPDATE,
    Client,
    HandDriven,
    add_graph,
    at_every_isolation,
    in_background,
    sqlstate_of,
    wait_until_waiting,
)

ASK = "SELECT * FROM write_guard(%s::text, NULL)"


with_every_write = pytest.mark.parametrize("write", [INSERT, UPDATE, ASK], ids=["insert", "update", "ask"])


@pytest.fixture
def hops() -> int:
    return 2


class Writers:
    """One session for each way to write, all of one isolation level."""

    def __init__(self, url: str, isolation: str) -> None:
        # None of them is meant to wait.
        self.clients = {write: Client(url, isolation, lock_timeout="500") for write in (INSERT, UPDATE, ASK)}

    def begin(self) -> None:
        for client in self.clients.values():
            client.begin()

    def codes(self, graph: UUID) -> dict[str, str | None]:
        """Each writes, one after the other."""
        found = {}
        for write, client in self.clients.items():
            found[write] = sqlstate_of(client.run, write, graph)
            client.rollback()
        return found


@pytest.fixture
def writers(database_url: str, isolation: str) -> Iterator[Writers]:
    writers = Writers(database_url, isolation)
    yield writers
    for client in writers.clients.values():
        client.close()


@at_every_isolation
def test_began_before_the_migration_and_writes_after_it(
    writers: Writers, graph: UUID, migration: HandDriven
) -> None:
    writers.begin()
    migration.run()
    assert writers.codes(graph) == {INSERT: REPEAT, UPDATE: REPEAT, ASK: REPEAT}


@at_every_isolation
def test_began_before_the_migration_and_writes_between_its_hops(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str
) -> None:
    writers.begin()
    migration.begin()
    migration.run_hop()
    code = REFUSED if isolation == READ_COMMITTED else REPEAT
    assert writers.codes(graph) == {INSERT: code, UPDATE: code, ASK: code}


@at_every_isolation
@pytest.mark.parametrize("began", ["before the migration", "during the hop"])
def test_writes_while_a_hop_runs(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str, began: str
) -> None:
    if began == "before the migration":
        writers.begin()
    migration.begin()
    migration.open_hop()
    writers.begin()
    stale = isolation != READ_COMMITTED and began == "before the migration"
    code = REPEAT if stale else REFUSED
    assert writers.codes(graph) == {INSERT: code, UPDATE: code, ASK: code}


@at_every_isolation
def test_began_between_the_hops_and_writes_after_the_migration(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str
) -> None:
    migration.begin()
    migration.run_hop()
    writers.begin()
    migration.run_hop()
    # READ COMMITTED shows a graph that is free again; an old snapshot still shows the claim, and rows that
    # have changed since.
    code = REPEAT if isolation == READ_COMMITTED else REFUSED
    assert writers.codes(graph) == {INSERT: code, UPDATE: REPEAT, ASK: code}


@at_every_isolation
def test_began_during_the_last_hop_and_writes_after_the_migration(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str
) -> None:
    migration.begin()
    migration.run_hop()
    migration.open_hop()
    with migration.data() as run:
        run("UPDATE nodes SET label = 'v3' WHERE graph_id = %s", graph)
        writers.begin()
    migration.release_lock(stamp=True)
    code = REPEAT if isolation == READ_COMMITTED else REFUSED
    assert writers.codes(graph) == {INSERT: code, UPDATE: REPEAT, ASK: code}


@at_every_isolation
def test_began_between_the_last_commit_and_its_date(
    writers: Writers, graph: UUID, migration: HandDriven
) -> None:
    """The date is later than the commit, so a few transactions that read only new rows repeat as well."""
    migration.begin()
    migration.run_hop()
    migration.open_hop()
    with migration.data() as run:
        run("UPDATE nodes SET label = 'v3' WHERE graph_id = %s", graph)
    writers.begin()
    migration.release_lock(stamp=True)
    assert writers.codes(graph) == {INSERT: REPEAT, UPDATE: REPEAT, ASK: REPEAT}


@at_every_isolation
def test_began_before_a_hops_commit_and_writes_after_the_migration_was_cancelled(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str
) -> None:
    """The hop dated its change before the writer began; what the writer has read is of the old shape."""
    migration.begin()
    migration.open_hop()
    with migration.data(before_commit=writers.begin) as run:
        run("UPDATE nodes SET label = 'v2' WHERE graph_id = %s", graph)
    migration.release_lock()
    migration.cancel()
    code = REPEAT if isolation == READ_COMMITTED else REFUSED
    assert writers.codes(graph) == {INSERT: code, UPDATE: REPEAT, ASK: code}


@at_every_isolation
def test_began_after_the_migration(writers: Writers, graph: UUID, migration: HandDriven) -> None:
    migration.run()
    writers.begin()
    assert writers.codes(graph) == {INSERT: None, UPDATE: None, ASK: None}


@at_every_isolation
def test_wrote_before_the_migration_begins_and_again_while_it_waits(
    app: Client, writer: Client, graph: UUID, migration: HandDriven
) -> None:
    """Whoever is in may go on; the migration comes after it."""
    writer.run(UPDATE, graph)
    with in_background(migration.lock_and_load) as entering:
        wait_until_waiting(app, migration.pid)
        writer.run(INSERT, graph)
        assert not entering.done()
        writer.commit()
        assert entering.result().locked
    migration.claim()
    migration.release_lock()
    for _ in range(2):
        migration.run_hop()
    assert app.run("SELECT DISTINCT label FROM nodes") == [("v3",)]


@at_every_isolation
def test_began_with_a_write_that_was_rolled_back_to_a_savepoint(
    writer: Client, graph: UUID, migration: HandDriven
) -> None:
    """The lock falls with the savepoint; then the transaction is no longer in."""
    writer.begin()
    writer.run("SAVEPOINT s")
    writer.run(UPDATE, graph)
    writer.run("ROLLBACK TO SAVEPOINT s")
    migration.run()
    assert sqlstate_of(writer.run, INSERT, graph) == REPEAT


@with_every_write
def test_in_read_committed_a_writer_waits_for_begin_and_is_refused_then(
    app: Client, database_url: str, graph: UUID, migration: HandDriven, write: str
) -> None:
    writer = Client(database_url)
    migration.lock_and_load()
    with in_background(sqlstate_of, writer.run, write, graph) as writing:
        wait_until_waiting(app, writer.pid)
        migration.claim()
        migration.release_lock()
        assert writing.result() == REFUSED
    writer.close()


@with_every_write
def test_invariant_3_begin_gives_its_lock_back_with_the_commit_of_its_claim_and_not_before(
    app: Client, database_url: str, graph: UUID, migration: HandDriven, write: str
) -> None:
    # Fence: the lock for the transaction, beside the session's, in begin_migration.
    writer = Client(database_url)
    migration.lock_and_load()
    with ExitStack() as stack:
        with migration.executor.transaction():
            migration.claim(leave=True)
            writing = stack.enter_context(in_background(sqlstate_of, writer.run, write, graph))
            wait_until_waiting(app, writer.pid)
        assert writing.result() == REFUSED
    writer.close()


@with_every_write
def test_in_read_committed_a_writer_that_waits_at_the_last_commit_repeats(
    app: Client, database_url: str, graph: UUID, migration: HandDriven, write: str
) -> None:
    writer = Client(database_url)
    migration.begin()
    migration.run_hop()
    migration.open_hop()
    with migration.data():
        pass
    with in_background(sqlstate_of, writer.run, write, graph) as writing:
        wait_until_waiting(app, writer.pid)
        migration.release_lock(stamp=True)
        assert writing.result() == REPEAT
    writer.close()


@pytest.mark.parametrize("isolation", [REPEATABLE_READ, SERIALIZABLE])
def test_above_read_committed_a_writer_gives_way_at_once(
    writers: Writers, graph: UUID, migration: HandDriven
) -> None:
    """It may hold rows that the executor needs: waiting would be a deadlock."""
    migration.lock_and_load()
    writers.begin()
    assert writers.codes(graph) == {INSERT: REPEAT, UPDATE: REPEAT, ASK: REPEAT}


@at_every_isolation
def test_an_executor_that_died_before_it_dated_the_change_lets_nobody_in(
    app: Client, writer: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    migration.run_hop()
    migration.open_hop()
    with migration.data():
        pass
    migration.close()
    app.run("SELECT pg_advisory_xact_lock(lock_key(%s))", graph)  # its session has ended
    app.commit()
    assert sqlstate_of(writer.run, INSERT, graph) == REPEAT
    writer.rollback()
    writer.begin()
    assert app.one("SELECT stamp_graphs()") == 1
    app.commit()
    assert sqlstate_of(writer.run, INSERT, graph) == REPEAT  # it began before the date
    writer.rollback()
    assert sqlstate_of(writer.run, INSERT, graph) is None


@pytest.mark.parametrize("isolation", [REPEATABLE_READ, SERIALIZABLE])
def test_an_executor_with_an_old_snapshot_does_not_write_into_what_came_after(
    writer: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    writer.run("SELECT set_config('graph_migrator.executor', %s, false)", str(migration.id))
    writer.begin()
    for _ in range(2):
        migration.run_hop()
    assert sqlstate_of(writer.run, INSERT, graph) == REPEAT


@pytest.mark.parametrize("isolation", [REPEATABLE_READ, SERIALIZABLE])
def test_a_graph_that_an_old_snapshot_does_not_know_is_not_written(
    engine: Engine, app: Client, database_url: str, writer: Client
) -> None:
    app.do("CREATE TABLE public.facts (graph_id uuid)")
    with engine.begin() as connection:
        install_guard(connection, "facts")
    writer.begin()
    young = add_graph(app, "young")
    migration = HandDriven(database_url, young).begin()
    assert sqlstate_of(writer.run, "INSERT INTO facts VALUES (%s)", young) == REPEAT
    writer.rollback()
    writer.begin()
    other = add_graph(app, "other")
    assert sqlstate_of(writer.run, INSERT, other) == "23503"  # the foreign key is asked first
    migration.close()
