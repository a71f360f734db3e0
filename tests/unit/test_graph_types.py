"""Declaring a graph type, and everything that a type must not do."""

import functools
import importlib.util
import sys

import pytest
from pydantic import BaseModel

from graph_migrator import Edges, Nodes, Rows
from graph_migrator.core.errors import InvalidGraphType
from graph_migrator.core.graph_types.definition import Direction, GraphType


class PersonV1(BaseModel):
    name: str


class PersonV2(BaseModel):
    first_name: str


def _ready(ctx):
    return True


def refusal_of(kind):
    with pytest.raises(InvalidGraphType) as refused:
        kind.validate()
    assert refused.value.graph_type == kind.name
    return refused.value.reason


@pytest.fixture
def kind():
    return GraphType("kind")


# ── declaring ───────────────────────────────────────────────────────────────────────────────────────


def test_a_hop_can_be_called_like_the_function_it_is(kind):
    @kind.hop(1, 2)
    def rename(ctx):
        """KNOWS becomes MET.

        Because.
        """
        return f"renamed {ctx}"

    assert rename("g") == "renamed g"
    assert rename.__name__ == rename.name == "rename"
    assert rename.description == "KNOWS becomes MET."
    assert (rename.from_version, rename.to_version) == (1, 2)


def test_a_reverse_is_declared_with_and_without_options(kind):
    def ready(ctx):
        return True

    @kind.hop(1, 2, when=ready, check=ready, retry_on=KeyError, timeout=5)
    def one(ctx): ...

    @one.reverse
    def one_back(ctx):
        """Back."""
        return "back"

    @kind.hop(2, 3)
    def two(ctx): ...

    @two.reverse(when=ready, check=ready)
    def two_back(ctx): ...

    kind.validate()
    assert one_back("g") == "back"
    back = kind.directed(2, 1)
    assert back.direction is Direction.REVERSE
    assert (back.name, back.run, back.description) == ("one", one_back, "Back.")
    assert (back.retry_on, back.timeout) == ((KeyError,), 5)
    assert (back.when, back.check) == (None, None)
    assert (kind.directed(3, 2).when, kind.directed(3, 2).check) == (ready, ready)
    assert kind.directed(1, 2).when is ready


def test_the_way_back_of_a_batched_hop_processes_the_same_unless_it_says_otherwise(kind):
    @kind.hop(1, 2, over=Nodes("Person"), batch_size=50)
    def one(ctx, people): ...

    @one.reverse
    def one_back(ctx, people): ...

    @kind.hop(2, 3, over=Nodes("Person"))
    def relabel(ctx, people): ...

    @relabel.reverse(over=Nodes("Human"))
    def relabel_back(ctx, people): ...

    kind.validate()
    assert (kind.directed(2, 1).over, kind.directed(2, 1).batch_size) == (Nodes("Person"), 50)
    assert kind.directed(3, 2).over == Nodes("Human")
    assert kind.directed(1, 2).is_batched
    assert kind.directed(2, 1).is_batched


def test_a_reverse_is_declared_once(kind):
    @kind.hop(1, 2)
    def one(ctx): ...

    one.reverse(lambda ctx: None)
    with pytest.raises(InvalidGraphType, match="'one' has two ways in reverse"):
        one.reverse(lambda ctx: None)


def test_sql_hops_hold_their_text(kind):
    hop = kind.sql_hop(
        1, 2, name="rename", forward="UPDATE :graph_id", reverse="DELETE :graph_id", doc="Renames."
    )
    kind.validate()
    assert kind.directed(1, 2).sql == "UPDATE :graph_id"
    assert kind.directed(2, 1).sql == "DELETE :graph_id"
    assert kind.directed(1, 2).run is None
    assert hop.description == "Renames."
    with pytest.raises(TypeError, match="is SQL"):
        hop("ctx")


def test_an_sql_hop_may_go_back_by_a_function(kind):
    hop = kind.sql_hop(1, 2, name="rename", forward="UPDATE :graph_id")
    assert not hop.is_reversible
    hop.reverse(lambda ctx: None)
    kind.validate()
    assert hop.is_reversible


def test_hops_stand_in_the_order_of_their_versions(kind):
    for version in (3, 1, 2):
        kind.sql_hop(version, version + 1, name=f"hop_{version}", forward=":graph_id")
    kind.validate()
    assert [hop.name for hop in kind.hops] == ["hop_1", "hop_2", "hop_3"]
    assert (kind.oldest, kind.newest) == (1, 4)


def test_what_is_not_there_cannot_be_run(kind):
    kind.sql_hop(1, 2, name="rename", forward=":graph_id")
    for versions, reason in (
        ((2, 1), "has no reverse"),
        ((2, 3), "no hop"),
        ((1, 3), "no hop"),
        ((1, 1), "no hop"),
    ):
        with pytest.raises(LookupError, match=reason):
            kind.directed(*versions)


def test_models_are_those_of_the_version_that_a_hop_leads_to():
    kind = GraphType(
        "kind", nodes={1: {"Person": PersonV1}, 2: {"Person": PersonV2}}, edges={2: {"KNOWS": PersonV1}}
    )
    kind.sql_hop(1, 2, name="split", forward=":graph_id", reverse=":graph_id")
    kind.validate()
    assert kind.directed(1, 2).node_models == {"Person": PersonV2}
    assert kind.directed(1, 2).edge_models == {"KNOWS": PersonV1}
    assert kind.directed(2, 1).node_models == {"Person": PersonV1}
    assert kind.directed(2, 1).edge_models == {}


# ── refusing ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["", "Kind", "1kind", "a b", "é", "a" * 64, "kind\n"])
def test_a_type_has_a_plain_name(name):
    kind = GraphType(name)
    kind.sql_hop(1, 2, name="hop", forward=":graph_id")
    assert "its name" in refusal_of(kind)


@pytest.mark.parametrize("name", ["k", "knowledge-base_2", "a" * 63])
def test_plain_names_are_welcome(name):
    kind = GraphType(name)
    kind.sql_hop(1, 2, name="hop", forward=":graph_id")
    kind.validate()


def test_a_type_has_hops(kind):
    assert refusal_of(kind) == "it has no hops"
    with pytest.raises(InvalidGraphType, match="it has no hops"):
        _ = kind.newest


@pytest.mark.parametrize(
    ("hops", "reason"),
    [
        ([(1, 3)], "hop 'hop_0' (v1→v3) does not lead to the next version"),
        ([(2, 1)], "hop 'hop_0' (v2→v1) does not lead to the next version"),
        ([(0, 1)], "hop 'hop_0' (v0→v1) starts below v1"),
        ([(1, 2), (4, 5)], "no hop leads from v2 to v4"),
        ([(1, 2), (1, 2)], "2 hops start from v1"),
    ],
)
def test_hops_are_neighbours_none_missing_none_twice(kind, hops, reason):
    for number, versions in enumerate(hops):
        kind.sql_hop(*versions, name=f"hop_{number}", forward=":graph_id")
    assert refusal_of(kind) == reason


def test_everything_that_is_wrong_is_named_at_once(kind):
    kind.sql_hop(1, 3, name="hop", forward="UPDATE")
    kind.sql_hop(5, 6, name="hop", forward=":graph_id")
    reason = refusal_of(kind)
    for part in (
        "next version",
        "2 hops are called 'hop'",
        "no hop leads from v2 to v5",
        "mention :graph_id",
    ):
        assert part in reason


def test_a_lambda_is_no_hop(kind):
    kind.hop(1, 2)(lambda ctx: None)
    assert "has no plain name" in refusal_of(kind)


async def _async(ctx): ...


async def _async_generator(ctx):
    yield


def _generator(ctx):
    yield


def _two(ctx, rows): ...


def _none(): ...


def _keyword(*, ctx): ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_async, "is async"),
        (_async_generator, "is async"),
        (_generator, "is a generator"),
        (_two, "must take (ctx)"),
        (_none, "must take (ctx)"),
        (_keyword, "must take (ctx)"),
    ],
)
def test_hops_and_their_conditions_are_plain_functions_of_the_context(function, reason):
    as_hop, as_reverse, as_when, as_check = (GraphType("kind") for _ in range(4))
    as_hop.hop(1, 2)(function)
    as_reverse.sql_hop(1, 2, name="hop", forward=":graph_id").reverse(function)
    as_when.sql_hop(1, 2, name="hop", forward=":graph_id", when=function)
    as_check.sql_hop(1, 2, name="hop", forward=":graph_id", check=function)
    for kind, what in (
        (as_hop, "hop"),
        (as_reverse, "the reverse"),
        (as_when, "when="),
        (as_check, "check="),
    ):
        refusal = refusal_of(kind)
        assert refusal.startswith(what)
        assert reason in refusal


def test_a_batched_hop_takes_the_context_and_the_rows(kind):
    @kind.hop(1, 2, over=Edges())
    def one(ctx): ...

    assert refusal_of(kind) == "hop 'one' must take (ctx, rows)"


def test_more_arguments_are_welcome_where_they_have_defaults(kind):
    @kind.hop(1, 2)
    def one(ctx, limit=1, *more): ...

    kind.validate()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 10}, "batch_size= without over="),
        ({"over": Nodes(), "batch_size": 0}, "batch_size= must be 1 or more"),
        ({"over": Nodes}, "over= is neither"),
        ({"shards": 2}, "shards= without over="),
        ({"over": Nodes(), "shards": 1}, "shards= is neither 'auto' nor a number from 2 to 1000"),
        ({"over": Nodes(), "shards": True}, "shards= is neither"),
        ({"over": Nodes(), "shards": "all"}, "shards= is neither"),
        ({"over": Nodes(), "shards": 2, "when": _ready}, "takes no when="),
        ({"rebuild": True}, "rebuild= without over="),
        ({"over": Rows("orders", "id"), "rebuild": True}, "rebuild= is for Nodes and Edges"),
        ({"over": Nodes(), "rebuild": True, "undo_for": -1}, "undo_for= must be 0 or more"),
        ({"over": Nodes(), "undo_for": 60}, "undo_for= without rebuild="),
        ({"timeout": 0}, "timeout= must be above 0"),
        ({"retry_on": (KeyError, "ValueError")}, "retry_on= must name exception types"),
        ({"retry_on": (KeyboardInterrupt,)}, "retry_on= must name exception types"),
    ],
)
def test_options_that_contradict_themselves_are_refused(kind, options, reason):
    kind.hop(1, 2, **options)(_two if "over" in options else lambda ctx: None)
    assert reason in refusal_of(kind)


@pytest.mark.parametrize(
    ("sql", "over", "missing"),
    [
        ("UPDATE nodes SET id = '' WHERE graph_id = graph_id", None, [":graph_id"]),
        ("SELECT x::graph_id", None, [":graph_id"]),
        ("SELECT :graph_ids", None, [":graph_id"]),
        ("UPDATE nodes WHERE graph_id = :graph_id", Nodes(), [":first", ":last"]),
        ("WHERE graph_id = :graph_id AND id <= :last", Nodes(), [":first"]),
        ("WHERE graph_id = :graph_id AND id BETWEEN :first AND :last", Nodes(), []),
    ],
)
def test_sql_names_its_graph_and_its_batch(kind, sql, over, missing):
    kind.sql_hop(1, 2, name="hop", forward=sql, over=over)
    if not missing:
        kind.validate()
        return
    assert refusal_of(kind) == "; ".join(f"hop 'hop': its SQL does not mention {name}" for name in missing)


def test_the_sql_of_the_way_back_is_checked_too(kind):
    kind.sql_hop(1, 2, name="hop", forward=":graph_id", reverse="DELETE")
    assert refusal_of(kind) == "the reverse of hop 'hop': its SQL does not mention :graph_id"


def test_batched_sql_takes_a_key_of_one_column(kind):
    sql = ":graph_id :first :last"
    kind.sql_hop(1, 2, name="hop", forward=sql, over=Rows("orders", ("day", "number")))
    assert "needs a key of one column" in refusal_of(kind)


@pytest.mark.parametrize("where", ["nodes", "edges"])
def test_models_belong_to_versions_that_exist(where):
    kind = GraphType("kind", **{where: {3: {"Person": PersonV1}}})
    kind.sql_hop(1, 2, name="hop", forward=":graph_id")
    assert "models for v3" in refusal_of(kind)


def test_models_are_pydantic_models():
    kind = GraphType("kind", nodes={2: {"Person": dict}})
    kind.sql_hop(1, 2, name="hop", forward=":graph_id")
    assert "is no pydantic model" in refusal_of(kind)


def test_a_function_without_source_says_so_at_its_decorator(kind):
    namespace = {}
    exec("def hop(ctx): ...", namespace)
    with pytest.raises(InvalidGraphType, match="its source is unavailable"):
        kind.hop(1, 2)(namespace["hop"])
    with pytest.raises(InvalidGraphType, match="its source is unavailable"):
        kind.hop(1, 2)(functools.partial(_two, 1))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Import a module from its text, under a name."""

    def load(name, text):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize(
    ("imports", "refused"),
    [
        ("import alembic", True),
        ("from alembic import op", True),
        ("import json, alembic.op as op", True),
        ("def late():\n    from alembic.op import execute", True),
        ("import json as alembic", False),
        ("# import alembic", False),
    ],
)
@pytest.mark.parametrize(
    "hop", ["@kind.hop(1, 2)\ndef hop(ctx): ...", "kind.sql_hop(1, 2, name='hop', forward=':graph_id')"]
)
def test_a_module_of_hops_does_not_import_alembic(load, imports, refused, hop):
    text = f"from graph_migrator import GraphType\n{imports}\nkind = GraphType('kind')\n{hop}\n"
    kind = load("hops_with_imports", text).kind
    if refused:
        assert "imports alembic" in refusal_of(kind)
    else:
        kind.validate()


def test_nor_does_a_module_whose_functions_are_hops(load, kind):
    elsewhere = load("hops_elsewhere", "import alembic\ndef hop(ctx): ...\n")
    kind.hop(1, 2)(elsewhere.hop)
    assert "imports alembic" in refusal_of(kind)
