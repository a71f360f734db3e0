"""Every call and page reads as many pages of our tables on a large fleet as on a small one.

The large database has fifty times as many graphs, and its statistics say fifty times as many again, so that the
plans are those for a million graphs. What a call reads is taken from Postgres's own counters: statements inside of
functions and triggers count as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, text

from graph_migrator.core.embedded import Postgres
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import operations as verbs
from graph_migrator.core.execution import recovery
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.execution.model import Caller
from graph_migrator.core.graph_types import registry
from graph_migrator.core.inspection import doctor, history, metrics, overview
from graph_migrator.core.inspection.attempts import attempt_story
from graph_migrator.core.inspection.failures import failed_graphs, failure_groups
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.graphs import find_graph, list_graphs
from graph_migrator.core.inspection.requests import list_requests
from graph_migrator.core.rollouts import inspection, policy, troubles
from graph_migrator.core.rollouts.controller import move_rollouts_on
from graph_migrator.core.rollouts.current import look, move_to_front
from graph_migrator.core.rollouts.measures import measure_fleet
from graph_migrator.core.rollouts.policy import Mode
from graph_migrator.core.rollouts.statuses import MemberStatus
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.turn_rows import PostgresRows
from graph_migrator.core.rollouts.workers import workers
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.lock_sessions import lock_sessions
from graph_migrator.core.store.session import Executors
from tests.databases import administer
from tests.integration.fleet_inline import tenants
from tests.integration.function_plans import plans
from tests.integration.statements import explain, nodes, statements
from tests.waiting import until

SMALL, LARGE = 400, 20_000
MORE = 50
"""The statistics of the large database say so many times as many rows as it has: a million graphs; and ten times as
many attempts again, thirty millions."""
SLACK = 40
"""Pages: an index of the large database is a level or two deeper, and a call follows some indexes."""
BIG = ("graphs", "nodes", "edges", "migrations", "hop_attempts", "requests", "rollout_members")

FILL = """
SET search_path = graph_migrator;
ALTER TABLE graphs DISABLE TRIGGER USER; ALTER TABLE hop_attempts DISABLE TRIGGER USER;
ALTER TABLE nodes DISABLE TRIGGER USER; ALTER TABLE edges DISABLE TRIGGER USER;
INSERT INTO graphs (id, slug, graph_type, version)
    SELECT gen_random_uuid(), 'g-' || lpad(n::text, 6, '0'), 'tenant', 2 FROM generate_series(1, {graphs}) n;
INSERT INTO nodes (graph_id, id, label) SELECT id, 'n', 'Person' FROM graphs;
SET CONSTRAINTS ALL IMMEDIATE;
INSERT INTO edges (graph_id, id, source, target, type) SELECT id, 'e', 'n', 'n', 'KNOWS' FROM graphs;
INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline, created_at,
                        finished_at)
    SELECT gen_random_uuid(), id, 'tenant', 1, 2, 'succeeded', '[]', now(), now() - interval '1 day',
           now() - interval '1 day' FROM graphs;
INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt, dispatch,
                          status, started_at, finished_at, link, hash)
    SELECT m.id, m.graph_id, h, h + 1, 'hop_' || h, 'f', 1, 1, 'succeeded', m.created_at, m.finished_at, h, 'unread'
    FROM migrations m, generate_series(1, 3) h;
INSERT INTO requests (task_id, verb, graph_id, target, migration_id, created_at, settled_at, answered_at)
    SELECT gen_random_uuid(), 'migrate', m.graph_id, 2, m.id, m.created_at, m.finished_at, m.finished_at
    FROM migrations m;
WITH live AS (
    INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline, finished_at,
                            error_type)
    SELECT gen_random_uuid(), id, 'tenant', 2, 3, CASE WHEN n <= 10 THEN 'failed' ELSE 'queued' END, '[]',
           now() + interval '1 hour', CASE WHEN n <= 10 THEN now() END, CASE WHEN n <= 10 THEN 'E' END
    FROM (SELECT id, row_number() OVER (ORDER BY slug DESC) AS n FROM graphs) g WHERE n <= {graphs} / 4
    RETURNING id, graph_id
), waiting AS (
    INSERT INTO requests (task_id, verb, graph_id, target, migration_id)
    SELECT gen_random_uuid(), 'migrate', graph_id, 3, id FROM live
)
UPDATE graphs g SET migration_id = live.id FROM live WHERE live.graph_id = g.id;
INSERT INTO rollouts (id, graph_type, to_version, direction, strategy, max_in_flight, plan, stage, sizes)
    VALUES ('00000000-0000-0000-0000-000000000001', 'tenant', 3, 1, '{strategy}', 4, '{plan}', 1, '{{"1": {graphs}}}');
INSERT INTO rollout_members (rollout_id, graph_id, graph, stage, position, from_version, row_count)
    SELECT '00000000-0000-0000-0000-000000000001', id, slug, 1, row_number() OVER (ORDER BY slug), version, 1
    FROM graphs WHERE migration_id IS NULL;
INSERT INTO rollout_stages (rollout_id, number, kind, size, pending)
    SELECT '00000000-0000-0000-0000-000000000001', 1, 'wave', count(*), count(*) FROM rollout_members;
ALTER TABLE graphs ENABLE TRIGGER USER; ALTER TABLE hop_attempts ENABLE TRIGGER USER;
ALTER TABLE nodes ENABLE TRIGGER USER; ALTER TABLE edges ENABLE TRIGGER USER;
UPDATE metrics_state SET counted_up_to = (SELECT max(id) FROM hop_attempts);
"""
PRETEND = """
UPDATE pg_class SET reltuples = reltuples * {more}
WHERE relnamespace = 'graph_migrator'::regnamespace AND relkind IN ('r', 'i') AND reltuples > 1000;
UPDATE pg_class SET reltuples = reltuples * 10
WHERE oid = 'graph_migrator.hop_attempts'::regclass
   OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 'graph_migrator.hop_attempts'::regclass)
"""


@dataclass
class Site:
    """One filled database. Calls take graphs that no call has touched yet."""

    url: str
    size: int
    _next: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self._next = count(self.size // 4)

    def fresh(self) -> str:
        return f"g-{next(self._next):06}"

    @property
    def waiting(self) -> str:
        """A graph whose migration is queued."""
        return f"g-{self.size * 4 // 5:06}"


Call = Callable[[Engine, Executors, Site], object]


def reading(function: Callable[..., object], **options: Any) -> Call:
    return lambda engine, _executors, site: function(engine, site.fresh(), **options)


def doing(function: Callable[..., object], *arguments: Any, **options: Any) -> Call:
    def call(_engine: Engine, executors: Executors, _site: Site) -> object:
        with executors.borrow() as executor:
            return function(executor, *arguments, **options)

    return call


def listing(**filters: Any) -> Call:
    return lambda engine, _executors, site: list_graphs(
        engine, limit=10, **{key: value(site) if callable(value) else value for key, value in filters.items()}
    )


def begun(target: int | None, *, of: Callable[[Site], str] = Site.fresh) -> Call:
    def call(_engine: Engine, executors: Executors, site: Site) -> None:
        with executors.borrow() as executor, suppress(GraphMigratorError):
            begin_migration(executor, of(site), target)

    return call


def verbs_of_a_graph(_engine: Engine, executors: Executors, site: Site) -> None:
    graph = site.fresh()
    with executors.borrow() as executor:
        begin_migration(executor, graph, 3, caller=Caller(f"call-{graph}"))
        verbs.pause(executor, graph, Caller(f"pause-{graph}"))
        verbs.resume(executor, graph, Caller(f"resume-{graph}"))
        verbs.cancel(executor, graph, Caller(f"cancel-{graph}"))


def sweep(_engine: Engine, executors: Executors, _site: Site) -> None:
    with recovery.sweeping(executors, holder="me", lease_seconds=1) as executor:
        assert executor is not None
        recovery.sweep(executor)
        recovery.unanswered_calls(executor)


def scrape(engine: Engine, executors: Executors, _site: Site) -> None:
    with engine.connect() as connection:
        # As on a fleet that takes long to count: this one is counted anew by each scrape where the machine is quick.
        connection.execute(text("UPDATE graph_migrator.metrics_state SET count_took = 1"))
        connection.commit()
        metrics.measure(connection)
    with executors.borrow() as executor, executor.cursor() as cursor:
        measure_fleet(cursor, "migrations")


def examined(engine: Engine, _executors: Executors, _site: Site) -> None:
    types = {"tenant": tenants()}
    with engine.connect() as connection:
        for check in (doctor.types_in_use, doctor.reachable):
            list(check(connection, types))
        list(doctor.graphs(connection))


def opened(engine: Engine, _executors: Executors, site: Site) -> None:
    with engine.connect() as connection:
        graph = look(connection, site.fresh(), 3)
        assert graph.rollout_id is not None
        move_to_front(connection, graph.rollout_id, graph.graph_id)


def next_of_a_rollout(_engine: Engine, executors: Executors, _site: Site) -> None:
    """The next ones that wait, however many do."""
    with executors.borrow() as executor, executor.transaction(), executor.cursor() as cursor:
        cursor.execute("SELECT id FROM rollouts")
        rows = PostgresRows.lock(cursor, cursor.fetchone()[0])
        assert rows is not None
        found = [graph for graph, _ in rows.next_pending(10)]
        cursor.execute(
            "SELECT graph_id FROM rollout_members WHERE rollout_id = %s AND status = 'pending' "
            "ORDER BY stage, position LIMIT 10",
            (rows.id,),
        )
        assert found == [graph for (graph,) in cursor.fetchall()]
        assert len(found) == 10


def graphs_of_a_rollout(_engine: Engine, executors: Executors, _site: Site) -> None:
    """The first page of each status, also of those that no graph has, and one from the middle."""
    with executors.borrow() as executor:
        for status in MemberStatus:
            inspection.members(executor, "tenant", status=status, limit=10)
        *_, last = inspection.members(executor, "tenant", limit=200)
        inspection.members(executor, "tenant", after=last.place, limit=10)
        inspection.members(executor, "tenant", after=last.place, status=MemberStatus.PENDING, limit=10)


def pages_of_the_console(engine: Engine, executors: Executors, site: Site) -> None:
    """What the console's pages read, but for those that are calls of their own below."""
    with engine.connect() as connection:
        overview.troubles(connection, {"tenant": tenants()})
        overview.moving(connection)
        overview.versions_in_use(connection)
        latest = list_requests(connection)
        list_requests(connection, before=(latest[-1].at, latest[-1].id))
        attempt_story(connection, site.size)
    with executors.borrow() as executor:
        troubles.troubles(executor)
        inspection.list_rollouts(executor, live=True)
        workers(executor)


CALLS: dict[str, Call] = {
    "find": reading(find_graph),
    "status": reading(graph_state, count_rows=False),
    "status, waiting": lambda engine, _, site: graph_state(engine, site.waiting, count_rows=False),
    "history": reading(history.history),
    "archived parts": reading(history.archived_parts),
    "refusals": lambda engine, _, site: history.refusals(engine, find_graph(engine, site.fresh()).id),
    "lock sessions": lambda engine, _, site: lock_sessions(engine, find_graph(engine, site.fresh()).id),
    "failures": lambda engine, *_: failed_graphs(engine, {"tenant": tenants()}),
    "failures, grouped": lambda engine, *_: failure_groups(engine, {"tenant": tenants()}),
    "doctor": examined,
    "opened": opened,
    "list": listing(),
    "list, deep": listing(after=Site.fresh),
    "list, type": listing(graph_type="tenant"),
    "list, version": listing(graph_type="tenant", version=2),
    "list, no such version": listing(graph_type="tenant", version=3),
    "list, behind": listing(behind={"tenant": 3}),
    "list, none behind": listing(behind={"tenant": 2}),
    "list, unreachable": listing(unreachable={"tenant": (1, 3)}),
    "list, all unreachable": listing(unreachable={"tenant": (3, 4)}),
    "list, queued": listing(state="queued"),
    "list, failed": listing(state="failed"),
    "list, paused": listing(state="paused"),
    "list, owner": listing(state="owner"),
    "begin, nothing to do": begun(2),
    "begin, refused": begun(9),
    "begin, in flight": begun(3, of=lambda site: site.waiting),
    "begin": begun(3),
    "whole migration": lambda _, executors, site: run_graph_migration(executors, site.fresh(), 3),
    "verbs": verbs_of_a_graph,
    "sweep": sweep,
    "scrape": scrape,
    "rollout: turn": doing(move_rollouts_on),
    "rollout: show": doing(inspection.show, "tenant"),
    "rollout: errors": doing(inspection.errors, "tenant"),
    "rollout: next graphs": next_of_a_rollout,
    "rollout: graphs": graphs_of_a_rollout,
    "console": pages_of_the_console,
    "rollout: list": doing(inspection.list_rollouts),
    "rollout: changes": doing(inspection.changes, "tenant"),
    "policy": doing(policy.policies, "tenant"),
}


@pytest.fixture(scope="module")
def sites(postgres: Postgres, template_database: str) -> Iterator[tuple[Site, Site]]:
    """The small and the large database, filled alike."""
    made = []
    for size in (SMALL, LARGE):
        name = f"test_flat_{size}"
        administer(postgres, f"CREATE DATABASE {name} TEMPLATE {template_database} STRATEGY file_copy")
        made.append(Site(postgres.url_of(name), size))
        fill(made[-1])
    yield made[0], made[1]
    for site in made:
        administer(postgres, f"DROP DATABASE test_flat_{site.size} WITH (FORCE)")


def fill(site: Site) -> None:
    from graph_migrator.core.planning import make_plan

    registry.register(tenants())
    steps = [step.to_json() for step in make_plan("tenant", tenants(), 1, 3).steps]
    strategy = Strategy(canaries=0, waves=(100,), max_in_flight=4).model_dump_json()
    engine = make_engine(site.url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT", no_parameters=True) as connection:
        connection.exec_driver_sql(FILL.format(graphs=site.size, strategy=strategy, plan=json.dumps(steps)))
        connection.exec_driver_sql("VACUUM ANALYZE")
        if site.size == LARGE:
            connection.exec_driver_sql(PRETEND.format(more=MORE))
    with engine.connect() as connection, Executors(engine).borrow() as executor:
        policy.set_policy(executor, "tenant", Mode.AUTOMATIC, verbs_operator(), settle_seconds=0)
        metrics.advance(connection)
        connection.commit()
    engine.dispose()


def verbs_operator() -> Any:
    from graph_migrator.core.rollouts.operations import Operator

    return Operator("ada")


@dataclass(frozen=True)
class Read:
    """What a call has read of our tables."""

    pages: int
    scans: dict[str, int]
    """Whole tables, by name."""


def read(site: Site, call: Call) -> Read:
    """Make a call on sessions of its own, and look what Postgres has counted when they are gone."""
    watcher = make_engine(site.url)
    with watcher.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = counted(connection)
        engine = make_engine(site.url)
        executors = Executors(engine)
        try:
            call(engine, executors, site)
        finally:
            executors.close()
            engine.dispose()
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        until(lambda: connection.execute(text(others)).scalar_one() == 0, "the call's sessions have ended")
        after = counted(connection)
    watcher.dispose()
    pages = sum(after[name][0] - before[name][0] for name in after)
    return Read(
        pages, {name: after[name][1] - before[name][1] for name in BIG if after[name][1] > before[name][1]}
    )


def counted(connection: Any) -> dict[str, tuple[int, int]]:
    connection.execute(text("SELECT pg_stat_clear_snapshot()"))
    rows = connection.execute(
        text(
            "SELECT io.relname, heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0), seq_scan "
            "FROM pg_statio_user_tables io JOIN pg_stat_user_tables st USING (relid) "
            "WHERE io.schemaname = 'graph_migrator'"
        )
    )
    return {name: (int(pages), int(scans)) for name, pages, scans in rows}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_reads_the_same_on_a_large_fleet(sites: tuple[Site, Site], name: str) -> None:
    registry.register(tenants())
    small, large = sites
    call = CALLS[name]
    for site in sites:
        read(site, call)  # plans and the catalogue's pages
    few, many = read(small, call), read(large, call)
    assert many.scans == {}, f"{name} reads whole tables"
    assert many.pages <= 1.5 * few.pages + SLACK, (
        f"{name}: {few.pages} pages of a small fleet, {many.pages} of a large one"
    )


DEAR = 1_000.0
"""The planner's units: some hundred pages. What follows an index to what is asked for costs a few dozen."""
WHOLE = {
    "core/inspection/overview.py _MOVING": "adds up the running attempts of each migration of its page, by an index",
    "core/audit/archive.py": "archives what is old, all of it",
    "core/audit/data.py": "`validate --data` reads every row",
    "core/audit/digests.py": "`audit verify --data` reads every graph",
    "core/audit/validate.py": "`validate` reads every graph",
    "core/audit/verify.py": "`audit verify` reads every attempt",
    "tasks/cli/baseline.py": "a baseline of all graphs of a type",
    "core/inspection/attempts.py _SAME": "looks at a thousand failed graphs at most",
    "core/inspection/metrics.py _COUNTS": "counted by the sweep, as rarely as it takes long",
    "core/inspection/metrics.py _HOPS": "a piece of the history, from an attempt to another one",
    "core/inspection/graphs.py _SUMMARY": "what all lists begin with; each filter is among the calls above",
    "core/inspection/requests.py _OF_GRAPHS": "what a list and a look-up begin with",
    "core/rollouts/operations.py cancel": "skips all graphs that wait",
    "core/rollouts/start.py _let_the_policy_give_way": "skips all graphs that wait",
}
"""Statements that read much by their nature."""
IN_PARTS = {
    "core/audit/data.py _ROWS": "of nodes or of edges",
    "core/audit/repairs.py": "of one graph, or of all",
    "core/inspection/doctor.py _IDLE_HOLDERS": "reads sessions",
    "core/inspection/graphs.py _COLUMNS": "columns alone",
    "core/inspection/waiting_calls.py _WAITING": "is given its condition",
    "core/rollouts/turn_rows.py _MEMBER": "columns alone; see _DISPATCHED",
    "core/rollouts/start.py": "reads the candidates of a start, a temporary table",
    "core/rollouts/selection.py": "reads the candidates of a start, a temporary table",
    "core/store/graph_rows.py": "is given tables and columns",
    "core/store/keyset.py": "is given tables and columns",
    "core/store/session.py": "no table",
    "core/store/table_rows.py": "is given tables and columns",
}
"""Texts that are no whole statement, or whose parameters have no type by themselves."""


def test_no_statement_reads_much_of_a_large_table(sites: tuple[Site, Site]) -> None:
    _, large = sites
    found, parts, used = [], [], set()
    with closing(psycopg2.connect(large.url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SET search_path = graph_migrator")
        for statement, where in statements().items():
            names = {name for name in (*WHOLE, *IN_PARTS) if where.startswith(name)}
            try:
                plan = explain(cursor, statement)
            except psycopg2.Error as error:
                parts += [] if names & {*IN_PARTS} else [f"{where}: {error}"]
                used |= names & {*IN_PARTS}
                continue
            whole = [each["Relation Name"] for each in nodes(plan) if each["Node Type"] == "Seq Scan"]
            if plan["Total Cost"] > DEAR or {*whole} & {*BIG}:
                found += [] if names & {*WHOLE} else [f"{where}: {plan['Total Cost']:.0f}, whole: {whole}"]
                used |= names & {*WHOLE}
    assert not found, "\n".join(found)
    assert not parts, "\n".join(parts)
    assert used == {*WHOLE, *IN_PARTS}, f"no exception is needed for {({*WHOLE} | {*IN_PARTS}) - used}"


MUCH = {
    "recovery_candidates": "the loop ends after a page of what is overdue",
    "unanswered_calls": "a page, of a size that the plan does not know",
}
"""Functions with a statement that could read much."""


def test_no_statement_inside_of_a_function_reads_much_of_a_large_table(sites: tuple[Site, Site]) -> None:
    _, large = sites
    dear = [plan for plan in plans(large.url) if plan.cost > DEAR or {*plan.whole} & {*BIG}]
    found = [
        f"{p.function}: {p.cost:.0f}, whole: {p.whole}: {p.statement}" for p in dear if p.function not in MUCH
    ]
    assert not found, "\n".join(found)
    assert {plan.function for plan in dear} == {*MUCH}


FORGET = """
SET search_path = graph_migrator;
DELETE FROM pg_statistic WHERE starelid = 'rollout_members'::regclass;
UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE oid = 'rollout_members'::regclass
    OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 'rollout_members'::regclass);
INSERT INTO requests (task_id, verb, graph_id, target, outcome, settled_at, answered_at)
    SELECT request_id::text, 'migrate', graph_id, 3, '{"report": {}}', now(), now()
    FROM rollout_members WHERE status = 'dispatched' ON CONFLICT DO NOTHING;
UPDATE packs SET status = 'running', worker = 'w', started_at = sent_at WHERE status = 'sent';
UPDATE packs SET status = 'left', done = size, ended_at = started_at + interval '0.1 s' WHERE status = 'running';
"""
"""The members have no statistics yet, and all that is in flight has ended."""


PAGES_A_GRAPH = 60
"""Of a turn for each graph that it settles or sends. Reading all members for each would be some 400."""


def test_a_turn_right_after_a_large_start_reads_what_is_in_flight_and_no_more(
    sites: tuple[Site, Site],
) -> None:
    registry.register(tenants())
    _, large = sites
    for _ in range(2):  # packs grow, up to 100 graphs
        settles = in_flight(large, FORGET)
        pages = read(large, CALLS["rollout: turn"]).pages
        sent = in_flight(large)
        assert sent > settles
        assert pages <= PAGES_A_GRAPH * (settles + sent)


def in_flight(site: Site, before: str = "") -> int:
    """How many members are in flight."""
    with closing(psycopg2.connect(site.url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"{before} SELECT count(*) FROM graph_migrator.rollout_members WHERE status = 'dispatched'"
        )
        (found,) = cursor.fetchone()
        connection.commit()
    return int(found)


def test_reading_everything_would_be_noticed(sites: tuple[Site, Site]) -> None:
    def everything(engine: Engine, _executors: Executors, site: Site) -> None:
        with engine.connect() as connection:
            connection.execute(
                text("SELECT count(*) FROM graphs WHERE slug = :g OR id::text = :g"), {"g": site.fresh()}
            ).all()

    small, large = sites
    few, many = read(small, everything), read(large, everything)
    assert many.pages > 1.5 * few.pages + SLACK
