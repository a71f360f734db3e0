"""Whatever dies, wherever it dies: the migration ends by itself, with each hop's effect there once.

`make test` plays every place with a death drawn by a seed, `make crash` every case.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event

import pytest
from celery.result import AsyncResult
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from graph_migrator import migrate_graph
from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.errors import HopFailed
from graph_migrator.core.execution import failpoints
from graph_migrator.core.graph_types import registry
from graph_migrator.core.interchange import export_graph
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.session import Executors
from tests.acceptance.crash import ledger, matrix
from tests.acceptance.crash.ledger import BadData
from tests.acceptance.crash.matrix import Case, Death, Place
from tests.acceptance.crash.stage import PATIENT, Stage
from tests.integration.fleet_inline import PACKED, counted_right
from tests.rows import attempts, graph_row, properties, rows
from tests.waiting import until

FEW = {"shard", "rebuild", "undo", "packed"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, places in (
        ("succeeding", matrix.SUCCEEDING),
        ("failing", matrix.FAILING),
        ("recovery", matrix.RECOVERY),
        ("shard", matrix.SHARDS),
        ("rebuild", matrix.REBUILD),
        ("undo", matrix.UNDO),
        ("packed", matrix.PACKED),
    ):
        if f"{name}_case" in metafunc.fixturenames:
            if metafunc.config.getoption("--whole-matrix", default=False):
                cases = matrix.whole(places)
            else:
                seed = metafunc.config.getoption("--matrix-seed", default=1)
                cases = matrix.few(places, seed, 4) if name in FEW else matrix.sample(places, seed)
            ids = [f"{death.value}-{place}" for place, death in cases]
            metafunc.parametrize(f"{name}_case", cases, ids=ids)


def test_the_matrix_has_every_kill_point() -> None:
    assert {place.point for place in matrix.PLACES} == set(failpoints.POINTS)


def test_a_migration_survives_any_death(stage: Stage, succeeding_case: Case) -> None:
    place, death = succeeding_case
    stage.keep(workers_for(death))
    slug = a_slug()
    stage.arm(str(place))
    result = stage.migrate(slug)

    strike(stage, death)

    if place.point in {"begin_locked", "begin_before_commit"}:
        result = redeliver_the_call(stage, slug, result, death)
    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug, stumbles_of(place, death))


def test_a_failing_hop_fails_its_migration_whatever_dies(stage: Stage, failing_case: Case) -> None:
    place, death = failing_case
    stage.keep(workers_for(death))
    slug = a_slug()
    stage.arm(str(place))
    result = stage.migrate(slug, "doomed")

    strike(stage, death)

    # Where recovery answers the caller, it does so from a process that has not loaded the hop's module.
    with pytest.raises((BadData, HopFailed), match="a node without a name"):
        result.get(timeout=PATIENT)
    ends = [status for _, status in attempts(stage.engine, slug)]
    if place.point == "fail_committed":
        assert ends == ["failed"]
    else:
        assert ends == ["lost", "failed"] or (death is Death.BACKEND and ends == ["failed", "failed"])
    stage.assert_at_rest(slug, 1, "failed")


def test_a_hop_in_shards_survives_any_death(stage: Stage, shard_case: Case) -> None:
    place, death = shard_case
    stage.keep(workers_for(death))
    slug = a_slug()
    stage.arm(str(place))
    result = stage.migrate(slug, "vault")

    strike(stage, death)

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    written = properties(stage.engine, slug)
    assert written == {f"n{i:04}": {"entries": ledger.VAULT_HOPS} for i in range(ledger.NODES)}
    ends = rows(
        stage.engine,
        "SELECT a.shard, a.status FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id WHERE g.slug = :slug "
        "AND a.to_version = 2 ORDER BY a.id",
        slug=slug,
    )
    assert sorted(shard or 0 for shard, status in ends if status == "succeeded") == [0, 1, 2]
    assert len(ends) <= 4, "what died cost one attempt"
    assert {status for _, status in ends} <= {"succeeded", "lost", "failed"}
    assert rows(stage.engine, "SELECT * FROM shards") == []
    stage.assert_at_rest(slug, 3, "succeeded")


def test_readers_of_a_rebuild_hop_see_one_version_whole_whatever_dies(
    stage: Stage, rebuild_case: Case
) -> None:
    place, death = rebuild_case
    stage.keep(workers_for(death))
    slug = a_slug()
    stage.arm(str(place))
    stage.make(slug, "atlas")
    with reading(stage.engine, slug) as seen:  # before the call: all of it may be over when the call returns
        result = stage.ask(slug)
        strike(stage, death)
        assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    assert seen == {(1, "[]"), (2, f'["{ledger.ATLAS_HOP}"]')}
    ends = [status for _, status in attempts(stage.engine, slug)]
    assert len(ends) <= 2, "what died cost one attempt"
    assert set(ends) <= {"succeeded", "lost", "failed"}
    stage.assert_at_rest(slug, 2, "succeeded")


def test_an_undo_survives_any_death(stage: Stage, undo_case: Case) -> None:
    place, death = undo_case
    stage.keep(workers_for(death))
    slug = a_slug()
    stage.migrate(slug, "atlas").get(timeout=PATIENT)
    stage.arm(str(place))
    with reading(stage.engine, slug) as seen:
        result = migrate_graph.delay(slug, 1)
        strike(stage, death)
        assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    assert seen == {(1, "[]"), (2, f'["{ledger.ATLAS_HOP}"]')}
    (undid,) = rows(
        stage.engine,
        "SELECT a.undid = (SELECT migration_id FROM hop_attempts b WHERE b.graph_id = g.id ORDER BY id LIMIT 1) "
        "FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id "
        "WHERE g.slug = :slug AND a.to_version = 1 AND a.status = 'succeeded'",
        slug=slug,
    )
    assert undid == (True,)


def test_graphs_that_share_transactions_survive_any_death(stage: Stage, packed_case: Case) -> None:
    place, death = packed_case
    stage.keep(workers_for(death))
    stage.arm(str(place))
    move_packed(stage, lambda: strike(stage, death))


def test_graphs_that_share_transactions_survive_a_crash_of_postgres(stage: Stage) -> None:
    stage.keep(1)
    for place in ("hop_in_data:16", "hop_before_commit:6", "hop_committed:5"):
        stage.arm(place)

        def crash() -> None:
            pid = stage.held()
            assert stage.postgres is not None
            stage.postgres.kill()
            stage.let_go(pid)
            stage.postgres.start()
            stage.engine.dispose()

        move_packed(stage, crash)


def move_packed(stage: Stage, strike_it: Callable[[], None]) -> None:
    """Move twenty graphs in a pack, while something is struck. Each ends at its target, each effect there once."""
    slugs = [a_slug() for _ in range(20)]
    for slug in slugs:
        stage.make(slug, "tally")
    registry.register(ledger.tally)
    executors = Executors(stage.engine)
    strategy = PACKED.model_copy(update={"max_in_flight": 1})
    with executors.borrow() as executor:
        plan = start(executor, RolloutRequest(graph_type="tally", strategy=strategy))
    executors.close()

    strike_it()

    def has_ended() -> bool:
        with suppress(OperationalError):
            return rows(stage.engine, "SELECT status FROM rollouts WHERE id = :id", id=plan.rollout_id) == [
                ("succeeded",)
            ]
        return False

    until(has_ended, "every graph is moved", seconds=2 * PATIENT)
    assert rows(
        stage.engine,
        "SELECT status, count(*) FROM rollout_members WHERE rollout_id = :id GROUP BY 1",
        id=plan.rollout_id,
    ) == [("succeeded", 20)]
    assert counted_right(stage.engine)
    for slug in slugs:
        assert properties(stage.engine, slug) == {
            f"n{i:04}": {"entries": ledger.TALLY_HOPS} for i in range(ledger.NODES)
        }
        seen = attempts(stage.engine, slug)
        assert [hop for hop, status in seen if status == "succeeded"] == ledger.TALLY_HOPS, seen
        assert len(seen) <= 5, seen
        assert {status for _, status in seen} <= {"succeeded", "lost", "failed", "stopped"}, seen
        stage.assert_at_rest(slug, 4, "succeeded")
    assert verify_chains(stage.engine).count == 0
    until(
        lambda: not rows(stage.engine, "SELECT FROM packs WHERE status IN ('sent', 'running')"),
        "every pack is closed",
    )


@contextmanager
def reading(engine: Engine, slug: str) -> Iterator[set[tuple[int, str]]]:
    """Exports a graph in a loop. Yields what was seen, at the end also of what is there then: of each export, the
    version and the entries of its nodes, one after another where they differ.
    """
    seen: set[tuple[int, str]] = set()
    ended = Event()

    def read() -> None:
        stream = io.BytesIO()
        report = export_graph(engine, slug, stream, format="jsonl")
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        entries = {
            json.dumps(line["properties"].get("entries", [])) for line in lines if "properties" in line
        }
        seen.add((report.version, "; ".join(sorted(entries))))

    def keep_reading() -> None:
        while not ended.is_set():
            read()

    read()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(keep_reading)
        try:
            yield seen
        finally:
            ended.set()
    reader.result()
    read()


def test_recovery_survives_its_own_death(stage: Stage, recovery_case: Case) -> None:
    place, death = recovery_case
    stage.keep(1 + workers_for(death))
    slug = a_slug()
    stage.arm("hop_after_data")
    result = stage.migrate(slug)
    first = stage.held()
    stage.arm(str(place))
    stage.kill_group(first)  # the message stays unacknowledged, so that only recovery can go on

    strike(stage, death)

    assert result.get(timeout=PATIENT).status is MigrationStatus.SUCCEEDED
    stage.assert_exactly_once(slug, {matrix.FIRST: {"lost"}})


def a_slug() -> str:
    return f"g-{uuid.uuid4().hex[:12]}"


def workers_for(death: Death) -> int:
    return 1 if death in {Death.ONLY, Death.WIPED} else 2


def strike(stage: Stage, death: Death) -> None:
    """Wait until a process is held, and let what is to die die."""
    pid = stage.held()
    match death:
        case Death.CHILD:
            stage.kill_process(pid)
        case Death.GROUP:
            stage.kill_group(pid)
        case Death.BACKEND:
            assert stage.terminate_sessions(pid), "the held process has no session in Postgres"
        case Death.ONLY:
            stage.kill_group(pid)
            stage.start_another()
        case Death.WIPED:
            stage.redis.flush()
            stage.kill_group(pid)
            stage.redis.flush()
            stage.start_another()


def redeliver_the_call(stage: Stage, slug: str, result: AsyncResult, death: Death) -> AsyncResult:
    """Before begin commits, the call is in the broker and nowhere else. Returns the result to wait for."""
    if death in {Death.GROUP, Death.ONLY}:
        stage.an_hour_passes()
    if death is Death.WIPED:
        assert graph_row(stage.engine, slug).migration_id is None
        assert attempts(stage.engine, slug) == []
        until(lambda: not stage.locks_on(slug), "the graph's lock free", seconds=PATIENT)
        return stage.ask(slug)
    return result


def stumbles_of(place: Place, death: Death) -> dict[str, set[str]]:
    """What became of the attempt that was hit."""
    if place.running is None:
        return {}
    # A process that lives and lost its session says so itself, unless recovery is quicker.
    return {place.running: {"failed", "lost"} if death is Death.BACKEND else {"lost"}}
