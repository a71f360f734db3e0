"""Rebuild hops: readers see the old version whole until one commit; until then nothing of the graph is written."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import chain
from threading import Event, Thread

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from graph_migrator import Edge, HopContext, Node, graph_repair
from graph_migrator.core.audit.digests import verify_data
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.errors import CheckFailed, HopFailed, MigrationCancelled
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.dry_run import dry_run
from graph_migrator.core.execution.in_process import execute_migration, follow, run_graph_migration
from graph_migrator.core.execution.model import Dispatch, Failed
from graph_migrator.core.execution.recovery import sweep
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.graph_types import registry
from graph_migrator.core.interchange import export_graph
from graph_migrator.core.store.guard import install_guard
from graph_migrator.core.store.session import Executors
from graph_migrator.testing import MakeGraph, assert_survives_crash
from tests.integration.scripted import Flaky, Killed, Script, fails_now, rebuilt, trails
from tests.rows import add_graph, graph_row, migration_of, one, rows

pytest_plugins = ["graph_migrator.testing"]
pytestmark = pytest.mark.usefixtures("script")

ALL = [f"n{i:04}" for i in range(30)]


def circle(engine: Engine, nodes: int = 30) -> None:
    """A graph of nodes n0000 … in a circle."""
    edges = ((f"e{i:04}", f"n{i:04}", f"n{(i + 1) % nodes:04}") for i in range(nodes))
    add_graph(engine, "g", "rebuilt", nodes=nodes, edges=edges)


def exported(engine: Engine, slug: str = "g") -> bytes:
    stream = io.BytesIO()
    export_graph(engine, slug, stream, format="jsonl")
    return stream.getvalue()


def begun(executors: Executors, target: int = 2) -> Dispatch:
    with executors.borrow() as executor:
        dispatch = begin_migration(executor, "g", target)
    assert isinstance(dispatch, Dispatch)
    return dispatch


def at_row(script: Script, id_: str, act: Callable[[HopContext], object]) -> None:
    """Do something, once, in the batch that has this row."""

    def play(ctx: HopContext) -> None:
        if id_ in script.batches[-1]:
            del script.on["rebuild_nodes"]
            act(ctx)

    script.on["rebuild_nodes"] = play


def tries(engine: Engine) -> list[str]:
    return [status for (status,) in rows(engine, "SELECT status FROM hop_attempts ORDER BY id")]


def staged(engine: Engine) -> list[tuple[object, ...]]:
    """(status, processed, changed, rows that are there) of every rebuild."""
    return rows(
        engine,
        "SELECT r.status, r.done, r.rows, (SELECT count(*) FROM rebuilt_rows x WHERE x.rebuild_id = r.id) "
        "FROM rebuilds r ORDER BY r.id",
    )


def swept(executors: Executors) -> None:
    with executors.borrow() as executor:
        sweep(executor)


def die(_: HopContext) -> None:
    raise Killed


# ── the way ─────────────────────────────────────────────────────────────────────────────────────────


def test_until_the_last_commit_readers_see_the_old_version_whole(engine: Engine, script: Script) -> None:
    circle(engine)
    before, seen = exported(engine), []

    def look(ctx: HopContext) -> None:
        seen.append(exported(engine))
        assert ctx.execute("SELECT count(*) FROM nodes WHERE label = 'Rebuilt'").scalar() == 0

    script.on["rebuild_nodes"] = look
    script.on["check"] = lambda ctx: (
        seen.append(exported(engine))
        or ctx.execute("SELECT count(*) FROM nodes WHERE label = 'Rebuilt'").scalar() == 30
    )
    report = run_graph_migration(engine, "g", 2)
    assert seen == [before] * 4, "three batches and the check"
    assert (report.version, trails(engine, "g")) == (2, {"rebuild_nodes"})
    assert list(chain.from_iterable(script.batches)) == ALL
    attempt = one(engine, "SELECT * FROM hop_attempts")
    assert (attempt.status, attempt.done, attempt.rows_changed, attempt.batches) == ("succeeded", 30, 30, 4)
    assert staged(engine) == [("kept", 30, 30, 30)]
    assert rows(engine, "SELECT * FROM checkpoints") == []
    assert (verify_data(engine).graphs, verify_data(engine).differences) == (1, ())
    assert verify_chains(engine).count == 0


def test_edges_are_rebuilt_with_their_ends(engine: Engine) -> None:
    circle(engine)
    ends = "SELECT source, target FROM edges ORDER BY id"
    before = rows(engine, ends)
    assert run_graph_migration(engine, "g", 3).version == 3
    assert rows(engine, ends) == [(target, source) for source, target in before]


def test_what_a_row_keeps_is_not_staged(engine: Engine, script: Script) -> None:
    circle(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET properties = '{\"n\": 1.50}' WHERE id = 'n0003'"))
    run_graph_migration(engine, "g", 3)
    assert rows(
        engine,
        "SELECT old_kind, old_source, old_properties::text, new_kind, new_properties FROM rebuilt_rows "
        "WHERE id = 'n0003'",
    ) == [("Node", None, '{"n": 1.50}', "Rebuilt", {"n": 1.5, "trail": ["rebuild_nodes"]})]
    assert rows(engine, "SELECT * FROM rebuilt_rows WHERE id = 'e0000'")[0][2:] == (
        None, "n0000", "n0001", None, None, "n0001", "n0000", None,
    )  # fmt: skip


def test_a_reader_in_a_loop_sees_one_version_or_the_other_whole(engine: Engine, executors: Executors) -> None:
    circle(engine)
    seen, stop = set[bytes](), Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(exported(engine))

    seen.add(before := exported(engine))
    reader = Thread(target=read)
    reader.start()
    try:
        follow(executors, begun(executors))
    finally:
        stop.set()
        reader.join()
    assert seen <= {before, exported(engine)}


def test_a_rebuild_hop_survives_a_crash_at_every_boundary(make_graph: MakeGraph) -> None:
    nodes = [Node(f"n{i}", "Node") for i in range(5)]
    edges = [Edge(f"e{i}", f"n{i}", f"n{(i + 1) % 5}", "KNOWS") for i in range(5)]
    assert_survives_crash(rebuilt, make_graph(rebuilt, nodes=nodes, edges=edges))


def test_when_it_is_skipped_nothing_is_staged(engine: Engine, script: Script) -> None:
    circle(engine)
    script.on["when"] = lambda _: False
    assert run_graph_migration(engine, "g", 2).hops[0].status == "skipped"
    assert trails(engine, "g") == {""}


def test_in_the_callers_transaction_and_in_a_dry_run(engine: Engine) -> None:
    circle(engine)
    before = exported(engine)
    assert dry_run(engine, "g", 3, batches=100).error is None
    assert dry_run(engine, "g", 3, batches=1).hops[0].rows_tried == 10
    assert exported(engine) == before
    with engine.begin() as connection:
        assert execute_migration(connection, "g", 4).version == 4
        assert exported(engine) == before
        connection.execute(text("UPDATE nodes SET label = 'Late' WHERE id = 'n0000'"))
    assert trails(engine, "g") == {"rebuild_nodes plain_after"}


# ── nothing but the rows that it is given ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE nodes SET label = 'X' WHERE graph_id = :graph_id",
        "DELETE FROM edges WHERE graph_id = :graph_id",
        "INSERT INTO nodes (graph_id, id, label) VALUES (:graph_id, 'late', 'Node')",
        "UPDATE graphs SET config = '{\"x\": 1}' WHERE id = :graph_id",
    ],
)
@pytest.mark.parametrize("place", ["rebuild_nodes", "when", "check"])
def test_its_code_cannot_write_the_graph_by_other_ways(
    engine: Engine, script: Script, place: str, statement: str
) -> None:
    circle(engine)
    before = exported(engine)
    script.on[place] = lambda ctx: ctx.execute(statement) and True
    with pytest.raises(HopFailed, match="writes nothing but the rows that it is given"):
        run_graph_migration(engine, "g", 2)
    assert (exported(engine), graph_row(engine, "g").version) == (before, 1)


def test_its_code_cannot_write_guarded_tables(engine: Engine, script: Script) -> None:
    circle(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE public.facts (graph_id uuid, fact text)"))
        install_guard(connection, "public.facts")
    script.on["rebuild_nodes"] = lambda ctx: ctx.execute("INSERT INTO public.facts VALUES (:graph_id, 'x')")
    with pytest.raises(HopFailed, match="writes nothing but the rows that it is given"):
        run_graph_migration(engine, "g", 2)


def test_the_version_does_not_move_before_the_swap(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    script.on["check"] = fails_now_in_check
    dispatch = begun(executors)
    assert isinstance(run_hop(executors, dispatch.messages()[0]), Failed)
    migration = migration_of(engine, "g")
    facts = {"graph": migration.graph_id, "id": str(migration.id)}
    with engine.connect() as connection:
        for statement in (
            "SELECT pg_advisory_xact_lock(lock_key(:graph)), set_config('graph_migrator.executor', :id, true)",
            "UPDATE migrations SET status = 'running', error_type = NULL, finished_at = NULL WHERE id = :id",
            "INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, "
            "attempt, dispatch) SELECT :id, :graph, 1, 2, 'h', fingerprint, 9, 1 FROM rebuilds",
        ):
            connection.execute(text(statement), facts)
        finish = (
            "SELECT finish_hop(max(id), :id, :graph, 1, 2, 'succeeded', 0, 0, true, false) FROM hop_attempts"
        )
        with pytest.raises(DBAPIError, match="staged rows that are not swapped in"):
            connection.execute(text(finish), facts)


def fails_now_in_check(_: HopContext) -> str:
    return "no"


# ── what goes wrong, and what operators do ──────────────────────────────────────────────────────────


def test_a_swap_that_fails_is_done_again_without_the_batches(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    before = exported(engine)
    script.on["check"] = fails_now_in_check
    with pytest.raises(CheckFailed):
        run_graph_migration(engine, "g", 2)
    assert (exported(engine), staged(engine)) == (before, [("staged", 30, 30, 30)])
    del script.on["check"]
    with executors.borrow() as executor:
        _, chain_ = operations.retry(executor, "g")
    assert chain_ is not None
    assert follow(executors, chain_).version == 2
    assert script.invoked == ["rebuild_nodes"] * 3, "no batch was run again"


def test_a_retry_after_a_death_or_an_error_goes_on_behind_the_cursor(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    at_row(script, "n0012", die)
    dispatch = begun(executors)
    with pytest.raises(Killed):
        run_hop(executors, dispatch.messages()[0])
    assert staged(engine) == [("staging", 10, 10, 10)]
    with executors.borrow() as executor:
        (again,) = sweep(executor).to_send
    at_row(script, "n0025", lambda _: (_ for _ in ()).throw(Flaky()))
    assert follow(executors, again).version == 2
    assert tries(engine) == ["lost", "failed", "succeeded"]
    assert [batch[0] for batch in script.batches] == ["n0000", "n0010", "n0010", "n0020", "n0020"]
    assert staged(engine) == [("kept", 30, 30, 30)]


def test_a_failure_names_its_row(engine: Engine, script: Script) -> None:
    circle(engine)

    def fail(ctx: HopContext) -> None:
        if "n0013" in script.batches[-1]:
            fails_now()

    script.on["rebuild_nodes"] = fail
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(engine, "g", 2)
    assert one(engine, "SELECT error_rows FROM hop_attempts").error_rows == "at node 'n0013'"
    assert staged(engine) == [("staging", 10, 10, 10)]


@pytest.mark.parametrize("row", ["n0000", "n0015", "n0029"])
def test_cancelled_on_the_way_the_graph_is_whole_and_free(
    engine: Engine, executors: Executors, script: Script, row: str
) -> None:
    circle(engine)
    before = exported(engine)

    def cancel(_: HopContext) -> None:
        with executors.borrow() as executor:
            operations.cancel(executor, "g")

    at_row(script, row, cancel)
    with pytest.raises(MigrationCancelled, match="the graph is whole at v1"):
        run_graph_migration(engine, "g", 2)
    graph = graph_row(engine, "g")
    assert (exported(engine), graph.version, graph.migration_id, graph.partially_migrated) == (
        before,
        1,
        None,
        None,
    )
    swept(executors)
    assert staged(engine) == []
    assert rows(engine, "SELECT * FROM rebuilt_rows") == []
    script.on.clear()
    assert run_graph_migration(engine, "g", 2).version == 2


def test_paused_and_resumed_it_goes_on(engine: Engine, executors: Executors, script: Script) -> None:
    circle(engine)

    def pause(_: HopContext) -> None:
        with executors.borrow() as executor:
            operations.pause(executor, "g")

    at_row(script, "n0012", pause)
    run_hop(executors, begun(executors).messages()[0])
    assert (migration_of(engine, "g").status, staged(engine)) == ("paused", [("staging", 20, 20, 20)])
    with executors.borrow() as executor:
        _, again = operations.resume(executor, "g")
    assert again is not None
    assert follow(executors, again).version == 2
    assert list(chain.from_iterable(script.batches)) == ALL


def test_a_failed_one_is_released_without_force_and_whole(
    engine: Engine, executors: Executors, script: Script
) -> None:
    circle(engine)
    before = exported(engine)
    at_row(script, "n0012", lambda _: fails_now())
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(engine, "g", 2)
    with executors.borrow() as executor:
        report = operations.release(executor, "g")
    assert report.message == "released to its writers at v1"
    graph = graph_row(engine, "g")
    assert (exported(engine), graph.migration_id, graph.partially_migrated) == (before, None, None)
    assert run_graph_migration(engine, "g", 2).version == 2
    assert list(chain.from_iterable(script.batches[-3:])) == ALL


@pytest.mark.parametrize("is_rebuild", [True, False])
def test_a_retry_with_other_code_begins_anew(
    engine: Engine,
    executors: Executors,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    is_rebuild: bool,
) -> None:
    circle(engine)
    at_row(script, "n0012", lambda _: fails_now())
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(engine, "g", 2)
    hop = registry.graph_type("rebuilt").directed(1, 2)
    before = hop.fingerprint
    object.__setattr__(hop, "fingerprint", "0" * len(before))
    object.__setattr__(hop, "rebuild", is_rebuild)
    monkeypatch.setattr(script, "batches", [])
    try:
        with executors.borrow() as executor:
            _, again = operations.retry(executor, "g")
        assert again is not None
        assert follow(executors, again).version == 2
    finally:
        object.__setattr__(hop, "fingerprint", before)
        object.__setattr__(hop, "rebuild", True)
    assert list(chain.from_iterable(script.batches)) == ALL
    assert staged(engine)[0][1:] == (10, 10, 10)
    swept(executors)
    assert staged(engine) == ([("kept", 30, 30, 30)] if is_rebuild else [])


def test_a_hop_that_stands_half_way_goes_on_as_it_began(
    engine: Engine, executors: Executors, script: Script
) -> None:
    add_graph(engine, "g", "batched", nodes=30)
    script.on["visit"] = lambda _: fails_now() if "n0012" in script.batches[-1] else None
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(engine, "g", 2)
    script.on.clear()
    hop = registry.graph_type("batched").directed(1, 2)
    object.__setattr__(hop, "rebuild", True)
    try:
        with executors.borrow() as executor:
            _, again = operations.retry(executor, "g")
        assert again is not None
        assert follow(executors, again).version == 2
    finally:
        object.__setattr__(hop, "rebuild", False)
    assert (trails(engine, "g"), staged(engine)) == ({"visit"}, [])


def test_after_a_repair_it_stages_anew(engine: Engine, executors: Executors, script: Script) -> None:
    circle(engine)
    at_row(script, "n0012", lambda _: fails_now())
    with pytest.raises(ValueError, match="half-way"):
        run_graph_migration(engine, "g", 2)
    with engine.begin() as connection, graph_repair(connection, "g", by="ada", reason="corrected"):
        connection.execute(text("UPDATE nodes SET properties = '{\"mended\": true}' WHERE id = 'n0003'"))
    with executors.borrow() as executor:
        _, again = operations.retry(executor, "g")
    assert again is not None
    assert follow(executors, again).version == 2
    mended = one(engine, "SELECT properties FROM nodes WHERE id = 'n0003'").properties
    assert mended == {"mended": True, "trail": ["rebuild_nodes"]}


def test_a_row_that_is_gone_stops_the_swap(engine: Engine, executors: Executors, script: Script) -> None:
    circle(engine)
    script.on["check"] = fails_now_in_check
    with pytest.raises(CheckFailed):
        run_graph_migration(engine, "g", 2)
    del script.on["check"]
    with engine.begin() as connection:  # the owner of the tables can do anything
        for state in ("DISABLE", "ENABLE ALWAYS"):
            for table in ("edges", "nodes"):
                connection.execute(
                    text(f"ALTER TABLE graph_migrator.{table} {state} TRIGGER graph_migrator_guard_delete")
                )
            if state == "DISABLE":
                connection.execute(text("DELETE FROM edges WHERE 'n0004' IN (source, target)"))
                connection.execute(text("DELETE FROM nodes WHERE id = 'n0004'"))
                connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    with executors.borrow() as executor:
        _, again = operations.retry(executor, "g")
    assert again is not None
    with pytest.raises(HopFailed, match=r"of 30 staged rows .* the graph has 29"):
        follow(executors, again)
