"""What a batched hop may visit."""

import pytest

from graph_migrator import Edges, Nodes, Rows
from graph_migrator.core.errors import InvalidRequest


def test_nodes_and_edges_are_processed_by_id():
    assert Nodes("Person").key == Edges("KNOWS").key == ("id",)
    assert Nodes().label is None
    assert Edges().type is None


def test_equal_selectors_are_equal():
    assert Rows("orders", "id") == Rows("orders", ("id",))
    assert Nodes("Person") != Nodes("Place")
    assert len({Nodes("Person"), Nodes("Person"), Edges("Person")}) == 2


def test_a_key_of_several_columns_keeps_its_order():
    rows = Rows("sales.orders", ("day", "number"), where="state = 'open'", graph_id="tenant")
    assert (rows.table, rows.key, rows.where, rows.graph_id) == (
        "sales.orders",
        ("day", "number"),
        "state = 'open'",
        "tenant",
    )


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"table": "orders; DROP TABLE graphs", "key": "id"}, "Rows.table"),
        ({"table": "a.b.c", "key": "id"}, "Rows.table"),
        ({"table": "a.", "key": "id"}, "Rows.table"),
        ({"table": "", "key": "id"}, "Rows.table"),
        ({"table": '"Orders"', "key": "id"}, "Rows.table"),
        ({"table": "o" * 64, "key": "id"}, "Rows.table"),
        ({"table": "orders\n", "key": "id"}, "Rows.table"),
        ({"table": "orders", "key": ()}, "Rows.key"),
        ({"table": "orders", "key": "lower(id)"}, "Rows.key"),
        ({"table": "orders", "key": ("id", "id")}, "Rows.key"),
        ({"table": "orders", "key": ("graph_id", "id")}, "Rows.key"),
        ({"table": "orders", "key": "id", "graph_id": "1st"}, "Rows.graph_id"),
        ({"table": "orders", "key": "id", "where": "  "}, "Rows.where"),
    ],
)
def test_names_that_are_no_plain_identifiers_are_refused(arguments, field):
    with pytest.raises(InvalidRequest) as refused:
        Rows(**arguments)
    assert refused.value.field == field
