"""Batched hops on a real Postgres: what is visited, what is written, and that nothing is lost."""

from __future__ import annotations

import datetime as dt
import gc
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, text

from graph_migrator import Edge, Edges, GraphType, Node, Nodes, Rows, execute_migration, run_graph_migration
from graph_migrator.core.errors import InvalidGraphData
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.apply_hop import BatchWalk
from graph_migrator.core.graph_types import registry
from graph_migrator.core.graph_types.context import GraphFacts, HopContext
from graph_migrator.core.store.session import Executors

NUMBERS = (
    '{"a": 1.10, "b": 10000000000000000000000, "c": [18446744073709551617, 0.30000000000000004000], '
    '"d": "é\\\\\\t"}'
)


def make_graph(engine: Engine, kind: str, nodes: int = 0, properties: str = "{}", version: int = 1) -> UUID:
    graph = uuid4()
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO graphs (id, slug, graph_type, version) VALUES (:g, :s, :k, :v)"),
            {"g": graph, "s": f"g{graph.hex[:8]}", "k": kind, "v": version},
        )
        connection.execute(
            text(
                "INSERT INTO nodes SELECT :g, 'n' || lpad(i::text, 6, '0'), "
                "CASE WHEN i % 3 = 0 THEN 'Place' ELSE 'Person' END, "
                "CAST(:p AS jsonb) || jsonb_build_object('n', i) FROM generate_series(1, :n) i"
            ),
            {"g": graph, "p": properties, "n": nodes},
        )
        connection.execute(
            text(
                "INSERT INTO edges SELECT :g, 'e' || lpad(i::text, 6, '0'), 'n' || lpad(i::text, 6, '0'), "
                "'n' || lpad((i + 1)::text, 6, '0'), 'KNOWS', CAST(:p AS jsonb) FROM generate_series(1, :n - 1) i"
            ),
            {"g": graph, "p": properties, "n": nodes},
        )
    return graph


def table(engine: Engine, graph: UUID, name: str = "nodes") -> list[tuple[Any, ...]]:
    columns = {"nodes": "id, label", "edges": "id, source, target, type"}[name]
    with engine.connect() as connection:
        found = connection.execute(
            text(
                f"SELECT {columns}, properties::text, xmin::text FROM {name} WHERE graph_id = :g ORDER BY id"
            ),
            {"g": graph},
        )
        return [tuple(row) for row in found]


def without_xmin(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [row[:-1] for row in rows]


def scalar(engine: Engine, query: str, **values: Any) -> Any:
    with engine.connect() as connection:
        return connection.execute(text(query), values).scalar()


# ── exactness ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("over", [Nodes(), Edges()])
def test_up_and_down_again_leaves_every_byte(engine: Engine, executors: Executors, over: Any) -> None:
    kind = GraphType("t")

    @kind.hop(1, 2, over=over, batch_size=7)
    def add(ctx: HopContext, rows: list[Any]) -> None:
        for row in rows:
            row.properties["twice"] = row.properties["a"] * 2

    @add.reverse
    def remove(ctx: HopContext, rows: list[Any]) -> None:
        for row in rows:
            del row.properties["twice"]

    registry.register(kind)
    graph = make_graph(engine, "t", 50, NUMBERS)
    before = table(engine, graph), table(engine, graph, "edges")
    run_graph_migration(executors, graph, 2)
    name = "nodes" if isinstance(over, Nodes) else "edges"
    assert scalar(engine, f"SELECT bool_and(properties->>'twice' = '2.2') FROM {name}")
    run_graph_migration(executors, graph, 1)
    after = table(engine, graph), table(engine, graph, "edges")
    assert [without_xmin(rows) for rows in after] == [without_xmin(rows) for rows in before]


def test_rows_that_do_not_change_are_not_written(engine: Engine, executors: Executors) -> None:
    kind = GraphType("t")

    @kind.hop(1, 2, over=Nodes("Person"), batch_size=7)
    def some(ctx: HopContext, rows: list[Node]) -> None:
        for row in rows:
            assert row.label == "Person"
            if row.properties["n"] % 10 == 1:
                row.properties["x"] = None

    registry.register(kind)
    graph = make_graph(engine, "t", 60, NUMBERS)
    before = table(engine, graph)
    report = run_graph_migration(executors, graph)
    after = table(engine, graph)
    changed = [new[0] for new, old in zip(after, before, strict=True) if new != old]
    assert changed == ["n000001", "n000011", "n000031", "n000041"]
    assert report.hops[0].rows_changed == 4


def test_labels_types_and_ends_are_written(engine: Engine, executors: Executors) -> None:
    kind = GraphType("t")

    @kind.hop(1, 2, over=Nodes("Person"), batch_size=7)
    def relabel(ctx: HopContext, rows: list[Node]) -> None:
        for row in rows:
            row.label = 'Hu\tm"\\an\n'

    @kind.hop(2, 3, over=Edges("KNOWS"), batch_size=7)
    def turn(ctx: HopContext, rows: list[Edge]) -> None:
        for row in rows:
            row.source, row.target = row.target, row.source

    registry.register(kind)
    graph = make_graph(engine, "t", 60)
    before = table(engine, graph, "edges")
    run_graph_migration(executors, graph)
    assert scalar(engine, "SELECT count(*) FROM nodes WHERE label = :l", l='Hu\tm"\\an\n') == 40
    assert [(r[1], r[2]) for r in table(engine, graph, "edges")] == [(r[2], r[1]) for r in before]


# ── what is visited ─────────────────────────────────────────────────────────────────────────────────


def test_rows_inserted_ahead_are_visited_and_rows_deleted_ahead_are_not(
    engine: Engine, executors: Executors
) -> None:
    seen: list[str] = []
    kind = GraphType("t")

    def visit(ctx: HopContext, rows: list[Node]) -> None:
        seen.extend(row.id for row in rows)
        if rows[0].id == "n000001":
            ctx.execute("DELETE FROM edges WHERE graph_id = :graph_id")
            ctx.execute("DELETE FROM nodes WHERE graph_id = :graph_id AND id IN ('n000002', 'n000008')")
            ctx.execute(
                "INSERT INTO nodes VALUES (:graph_id, 'a', 'Person'), (:graph_id, 'n000009x', 'Person')"
            )
        if rows[-1].id == "n000010":
            ctx.execute("INSERT INTO nodes VALUES (:graph_id, 'z1', 'Person'), (:graph_id, 'z2', 'Person')")
        for row in rows:
            row.properties["seen"] = True

    hop = kind.hop(1, 2, over=Nodes(), batch_size=4)(visit)
    registry.register(kind)
    graph = make_graph(engine, "t", 10)
    run_graph_migration(executors, graph)
    assert hop.name == "visit"
    assert seen == [
        "n000001", "n000002", "n000003", "n000004", "n000005", "n000006", "n000007", "n000009",
        "n000009x", "n000010", "z1", "z2",
    ]  # fmt: skip
    left = {row[0]: row[2] for row in table(engine, graph)}
    assert left.keys() == {*seen, "a"} - {"n000002"}
    assert [id_ for id_, properties in left.items() if "seen" not in properties] == ["a"]


@pytest.mark.parametrize("misuse", ["add", "take", "replace", "id"])
def test_misuse_of_the_list_is_refused(engine: Engine, executors: Executors, misuse: str) -> None:
    def wrong(ctx: HopContext, rows: list[Node]) -> None:
        match misuse:
            case "add":
                rows.append(Node("new", "Person"))
            case "take":
                rows.pop()
            case "replace":
                rows[0] = Node(rows[0].id, "Person")
            case "id":
                rows[0].id = "other"

    kind = GraphType("t")
    kind.hop(1, 2, over=Nodes())(wrong)
    registry.register(kind)
    graph = make_graph(engine, "t", 3)
    with pytest.raises(ValueError, match=r"a hop (changes|must not)"):
        run_graph_migration(executors, graph)


def test_memory_is_bounded_by_the_size_of_rows_too(engine: Engine, executors: Executors) -> None:
    sizes: list[int] = []

    def note(ctx: HopContext, rows: list[Node]) -> None:
        sizes.append(len(rows))

    kind = GraphType("t")
    kind.hop(1, 2, over=Nodes(), batch_size=10_000)(note)
    registry.register(kind)
    graph = make_graph(engine, "t", 1_200, '{"text": "%s"}' % ("x" * 10_000))
    run_graph_migration(executors, graph)
    assert sum(sizes) == 1_200
    assert max(sizes) < 300


def test_batches_adapt_to_the_time_they_take() -> None:
    kind = GraphType("t")
    kind.sql_hop(1, 2, name="h", forward="SELECT 1", over=Nodes(), batch_size=1_000)
    visit = BatchWalk(kind.hops[0].forward, GraphFacts(uuid4(), "g", "t", 1), after=None, done=0)
    sizes = []
    for seconds in (0.01, 0.8, 1.0, 4.0, 100.0, *[0.0] * 10):
        visit.adapt(seconds, 1.0)
        sizes.append(visit.size)
    assert sizes[:5] == [2_000, 2_500, 2_500, 1_250, 625]
    assert sizes[-1] == 50_000


# ── SQL ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("on", [True, False])
def test_a_batch_leaves_the_collection_of_cycles_as_it_was(engine: Engine, on: bool) -> None:
    kind, during = GraphType("collected"), []

    @kind.hop(1, 2, over=Nodes(), batch_size=10)
    def fails_in_its_second_batch(ctx: HopContext, nodes: list[Node]) -> None:
        during.append(gc.isenabled())
        if len(during) == 2:
            raise ValueError("second")

    registry.register(kind)
    graph = make_graph(engine, kind.name, 30)
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(ValueError, match="second"):
            run_graph_migration(engine, graph, 2)
        assert (during[:2], gc.isenabled()) == ([False, False], on)
    finally:
        gc.enable()


def test_sql_batches_with_their_models(engine: Engine, executors: Executors) -> None:
    class Person(BaseModel):
        model_config = ConfigDict(extra="forbid")
        number: int

    kind = GraphType("t", nodes={2: {"Person": Person}})
    kind.sql_hop(
        1, 2, name="rename", over=Nodes("Person"), batch_size=7,
        forward="UPDATE nodes SET properties = jsonb_build_object('number', properties->'n') "
        "WHERE graph_id = :graph_id AND label = 'Person' AND id BETWEEN :first AND :last",
        reverse="UPDATE nodes SET properties = jsonb_build_object('n', properties->'number') "
        "WHERE graph_id = :graph_id AND label = 'Person' AND id BETWEEN :first AND :last",
    )  # fmt: skip
    registry.register(kind)
    graph = make_graph(engine, "t", 100)
    before = without_xmin(table(engine, graph))
    report = run_graph_migration(executors, graph)
    assert report.hops[0].rows_changed == 67
    assert scalar(engine, "SELECT count(*) FROM nodes WHERE properties ? 'number'") == 67
    run_graph_migration(executors, graph, 1)
    assert without_xmin(table(engine, graph)) == before


KEYS = {
    "bigint": "i",
    "uuid": "lpad(i::text, 32, '0')::uuid",
    "timestamptz": "'2024-01-01Z'::timestamptz + i * interval '1 hour 0.000001 s'",
    "numeric": "i * 1.10",
    "float8": "i / 3.0::float8",
    "date": "'2024-01-01'::date + i",
    "bytea": "decode(lpad(to_hex(i), 6, '0'), 'hex')",
}


@pytest.mark.parametrize("type_", KEYS)
def test_keys_of_any_type(engine: Engine, executors: Executors, type_: str) -> None:
    with engine.begin() as connection:
        create = f"CREATE TABLE public.things (graph_id uuid, k {type_}, n int DEFAULT 0, PRIMARY KEY (graph_id, k))"
        connection.execute(text(create))
    kind = GraphType("t")
    kind.sql_hop(
        1, 2, name="count", over=Rows("things", "k"), batch_size=7,
        forward="UPDATE things SET n = n + 1 WHERE graph_id = :graph_id AND k BETWEEN :first AND :last "
        "AND pg_typeof(:first) = pg_typeof(k)" if type_ in {"uuid", "timestamptz", "date"} else
        "UPDATE things SET n = n + 1 WHERE graph_id = :graph_id AND k BETWEEN :first AND :last",
    )  # fmt: skip

    @kind.hop(2, 3, over=Rows("public.things", "k"), batch_size=7)
    def again(ctx: HopContext, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["n"] += 1

    registry.register(kind)
    graph, other = make_graph(engine, "t"), make_graph(engine, "t")
    with engine.begin() as connection:
        for g in (graph, other):
            connection.execute(
                text(f"INSERT INTO things SELECT :g, {KEYS[type_]} FROM generate_series(1, 50) i"), {"g": g}
            )  # fmt: skip
    report = run_graph_migration(executors, graph)
    assert [hop.rows_changed for hop in report.hops] == [50, 50]
    assert scalar(engine, "SELECT array_agg(DISTINCT n) FROM things WHERE graph_id = :g", g=graph) == [2]
    assert scalar(engine, "SELECT array_agg(DISTINCT n) FROM things WHERE graph_id = :g", g=other) == [0]


def test_table_rows_with_a_composite_key_and_a_condition(engine: Engine, executors: Executors) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            'CREATE TABLE public."Lines" ("order" int, line text, g uuid, "per%%cent" text[], doc jsonb, raw json, '
            'at timestamptz, amount numeric, blob bytea, PRIMARY KEY (g, "order", line))'
        )
    kind = GraphType("t")
    where = "\"order\" % 2 = 0 AND line LIKE 'l%' AND doc ->> 'a:b' <> ':no' -- 50% :done"

    @kind.hop(1, 2, over=Rows("public.Lines", ("order", "line"), where, graph_id="g"), batch_size=5)
    def change(ctx: HopContext, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            assert row["order"] % 2 == 0
            row["doc"]["new"] = row["per%cent"][0]
            if row["line"] == "l1":
                row["per%cent"].append("x'y")
                row["at"] += dt.timedelta(days=1)
                row["amount"] *= 2
                row["blob"] += b"\x00\xff"
            if row["line"] == "l2":
                row["raw"] = None

    registry.register(kind)
    graph = make_graph(engine, "t")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            """INSERT INTO public."Lines" SELECT o, 'l' || l, %s, ARRAY['%%s', ':a'],
               '{"a:b": 1.10}', '{"z":1 , "z":2}',
               '2024-01-01Z', 1.10, '\\x00ff' FROM generate_series(1, 20) o, generate_series(1, 3) l""",
            (graph,),
        )
    report = run_graph_migration(executors, graph)
    assert report.hops[0].rows_changed == 30
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            'SELECT DISTINCT "order" %% 2, line, "per%%cent", doc::text, raw::text, at::date::text, amount::text, '
            "encode(blob, 'hex') FROM \"Lines\" ORDER BY 1, 2",
            (),
        ).all()
    raw, doc, new = '{"z":1 , "z":2}', '{"a:b": 1.10}', '{"a:b": 1.10, "new": "%s"}'
    assert [tuple(row) for row in found] == [
        (0, "l1", ["%s", ":a", "x'y"], new, raw, "2024-01-02", "2.20", "00ff00ff"),
        (0, "l2", ["%s", ":a"], new, None, "2024-01-01", "1.10", "00ff"),
        (0, "l3", ["%s", ":a"], new, raw, "2024-01-01", "1.10", "00ff"),
        *((1, f"l{n}", ["%s", ":a"], doc, raw, "2024-01-01", "1.10", "00ff") for n in (1, 2, 3)),
    ]


# ── models ──────────────────────────────────────────────────────────────────────────────────────────


class Person(BaseModel):
    model_config = ConfigDict(strict=True)
    born: dt.date


def broken(kind: GraphType, how: str) -> None:
    def spoil(ctx: HopContext, rows: list[Node]) -> None:
        for row in rows:
            row.properties["born"] = "secret" if row.properties["n"] >= 30 else "2024-01-01"

    def spoil_whole(ctx: HopContext) -> None:
        ctx.execute(SPOIL)

    def spoil_people(ctx: HopContext, rows: list[Node]) -> None:
        ctx.execute(SPOIL)

    match how:
        case "python":
            kind.hop(1, 2, over=Nodes("Person"), batch_size=100)(spoil)
        case "whole":
            kind.hop(1, 2)(spoil_whole)
        case "sql":
            kind.sql_hop(
                1, 2, name="s", forward=SPOIL + " AND id BETWEEN :first AND :last", over=Nodes("Person")
            )
        case "other":  # another label than the selected one
            kind.hop(1, 2, over=Nodes("Place"), batch_size=100)(spoil_people)


SPOIL = (
    "UPDATE nodes SET properties = properties || jsonb_build_object('born', CASE WHEN (properties->'n')::int >= 30 "
    "THEN 'secret' ELSE '2024-01-01' END) WHERE graph_id = :graph_id AND label = 'Person'"
)


@pytest.mark.parametrize("how", ["python", "whole", "sql", "other"])
def test_data_that_does_not_fit_is_not_kept(engine: Engine, executors: Executors, how: str) -> None:
    kind = GraphType("t", nodes={2: {"Person": Person}})
    broken(kind, how)
    registry.register(kind)
    graph = make_graph(engine, "t", 99)
    before = table(engine, graph)
    with pytest.raises(InvalidGraphData) as caught:
        run_graph_migration(executors, graph)
    error = caught.value
    assert error.count == 46
    assert len(error.failures) == 20
    assert error.failures[0] == "node 'n000031': born (date_parsing)"
    assert "secret" not in str(error)
    assert table(engine, graph) == before


def test_edges_are_validated_by_their_type(engine: Engine, executors: Executors) -> None:
    kind = GraphType("t", edges={2: {"KNOWS": Person}})

    @kind.hop(1, 2, over=Edges("KNOWS"), batch_size=4)
    def date(ctx: HopContext, rows: list[Edge]) -> None:
        for row in rows:
            row.properties["born"] = dt.date(2024, 1, 1) if row.id < "e000006" else "no"

    registry.register(kind)
    graph = make_graph(engine, "t", 10)
    with pytest.raises(InvalidGraphData, match=r"4 rows|3 rows"):
        run_graph_migration(executors, graph)
    # The batch before is committed: the checkpoint says so, and the claim keeps writers out.
    assert scalar(engine, "SELECT done FROM checkpoints") == 4
    assert scalar(engine, "SELECT count(*) FROM edges WHERE properties ? 'born'") == 4


# ── progress and resuming ───────────────────────────────────────────────────────────────────────────


def test_progress_is_seen_from_another_connection(engine: Engine, executors: Executors) -> None:
    seen: list[tuple[int, int]] = []

    def watch(ctx: HopContext, rows: list[Node]) -> None:
        with engine.connect() as other:
            seen.append(tuple(other.execute(text("SELECT done, total FROM hop_attempts")).one()))

    kind = GraphType("t")
    kind.hop(1, 2, over=Nodes("Person"), batch_size=10)(watch)
    registry.register(kind)
    run_graph_migration(executors, make_graph(engine, "t", 60))
    assert seen[:2] == [(0, 40), (10, 40)]


def test_a_hop_that_renames_what_it_processes_is_resumed_and_keeps_its_total(
    engine: Engine, executors: Executors
) -> None:
    calls = 0

    def rename(ctx: HopContext, rows: list[Node]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("once")
        for row in rows:
            assert "count" not in row.properties
            row.label, row.properties["count"] = "Human", 1

    kind = GraphType("t")
    kind.hop(1, 2, over=Nodes("Person"), batch_size=10)(rename)
    registry.register(kind)
    graph = make_graph(engine, "t", 90)
    with pytest.raises(RuntimeError, match="once"):
        run_graph_migration(executors, graph)
    done = scalar(engine, "SELECT done FROM checkpoints")
    assert 0 < done < 60
    run_graph_migration(executors, graph)
    assert scalar(engine, "SELECT count(*) FROM nodes WHERE label = 'Human' AND properties ? 'count'") == 60
    assert scalar(engine, "SELECT array_agg(total ORDER BY id) FROM hop_attempts") == [60, 60]
    assert scalar(engine, "SELECT max(done) FROM hop_attempts") == 60


@pytest.mark.parametrize("point", ["batch_before_data", "batch_before_commit", "batch_committed"])
@pytest.mark.parametrize("sql", [False, True])
def test_no_batch_is_applied_twice_when_the_session_dies(
    engine: Engine, executors: Executors, monkeypatch: pytest.MonkeyPatch, point: str, sql: bool
) -> None:
    kind = GraphType("t")
    if sql:
        kind.sql_hop(
            1, 2, name="h", over=Nodes(), batch_size=10,
            forward="UPDATE nodes SET properties = properties || jsonb_build_object('k', "
            "coalesce((properties->'k')::int, 0) + 1) WHERE graph_id = :graph_id "
            "AND id BETWEEN :first AND :last",
        )  # fmt: skip
    else:
        kind.hop(1, 2, over=Nodes(), batch_size=10)(add_one)
    registry.register(kind)
    graph = make_graph(engine, "t", 95)
    monkeypatch.setattr(failpoints, "hook", end_sessions(engine, point, times=2))
    run_graph_migration(executors, graph)
    assert scalar(engine, "SELECT array_agg(DISTINCT (properties->'k')::int) FROM nodes") == [1]
    assert scalar(engine, "SELECT count(*) FROM hop_attempts") == 3
    assert scalar(engine, "SELECT count(*) FROM checkpoints") == 0


def add_one(ctx: HopContext, rows: list[Node]) -> None:
    for row in rows:
        row.properties["k"] = row.properties.get("k", 0) + 1


def end_sessions(engine: Engine, point: str, times: int) -> Callable[[str], None]:
    left, passed = times, 0
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def hook(reached: str) -> None:
        nonlocal left, passed
        if reached != point:
            return
        passed += 1
        if not left or passed % 2:
            return
        left -= 1
        other = psycopg2.connect(url)
        with other, other.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        other.close()

    return hook


def test_many_batches_in_one_transaction_of_the_caller(engine: Engine) -> None:
    kind = GraphType("t")
    kind.hop(1, 2, over=Nodes(), batch_size=10)(add_one)
    registry.register(kind)
    graph = make_graph(engine, "t", 500)
    with engine.begin() as connection:
        execute_migration(connection, graph)
    assert scalar(engine, "SELECT sum((properties->'k')::int) FROM nodes") == 500
