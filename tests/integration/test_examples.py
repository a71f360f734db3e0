"""The example types, held to what `core.testing` promises for every type."""

from __future__ import annotations

import pytest

from examples.hpo import hpo
from examples.knowledge import knowledge
from graph_migrator import Edge, GraphType, HopContext, Node, Nodes
from graph_migrator.testing import MakeGraph, assert_hop, assert_reversible, assert_survives_crash

pytest_plugins = ["graph_migrator.testing"]

PEOPLE = [Node(id_, "Node") for id_ in ("Cosette", "MlleBaptistine", "OldMan", "Valjean", "Zephine")]
KNOWN = [Edge(str(n), "Valjean", "Cosette", "RELATED", {"value": n}) for n in range(3)]


def test_edges_of_the_novel_say_what_they_mean(make_graph: MakeGraph) -> None:
    graph = make_graph(knowledge, nodes=PEOPLE, edges=KNOWN)
    named = [Edge(e.id, e.source, e.target, "APPEARS_WITH", e.properties) for e in KNOWN]
    assert_hop(graph, 1, 2, nodes=PEOPLE, edges=named)
    assert_hop(graph, 2, 1, nodes=PEOPLE, edges=KNOWN)


def test_characters_get_a_name_and_perhaps_a_title(make_graph: MakeGraph) -> None:
    graph = make_graph(knowledge, version=2, nodes=PEOPLE[:2])
    expected = [
        Node("Cosette", "Node", {"name": "Cosette"}),
        Node("MlleBaptistine", "Node", {"title": "Mlle", "name": "Baptistine"}),
    ]
    assert_hop(graph, 2, 3, nodes=expected)


def test_the_novel_can_be_migrated_back(make_graph: MakeGraph) -> None:
    assert_reversible(knowledge, make_graph(knowledge, nodes=PEOPLE, edges=KNOWN))


def test_the_novel_survives_a_crash_at_every_boundary(make_graph: MakeGraph) -> None:
    assert_survives_crash(knowledge, make_graph(knowledge, nodes=PEOPLE, edges=KNOWN))


TERMS = [
    Node("HP:1", "Term", {"name": "All"}),
    Node("HP:2", "Term", {"name": "Gone", "is_obsolete": True}),
    Node("gene:1", "Gene", {"symbol": "FBN1"}),
]
LINES = [Edge(f"line:{n}", "gene:1", "HP:1", "GENE", {"disease": f"OMIM:{n}"}) for n in range(5)]


def test_the_ontology_can_be_migrated_back_and_survives_a_crash(make_graph: MakeGraph) -> None:
    assert_reversible(hpo, make_graph(hpo, nodes=TERMS, edges=LINES))
    assert_survives_crash(hpo, make_graph(hpo, nodes=TERMS, edges=LINES))


# ── the assertions themselves: each must fail where it should ──────────────────────────────────────

broken = GraphType("broken")
_seen: list[tuple[str, str]] = []


@broken.hop(1, 2, over=Nodes())
def remembers(ctx: HopContext, nodes: list[Node]) -> None:
    """What it writes depends on what an earlier attempt did: no rollback takes that back."""
    for node in nodes:
        _seen.append((ctx.graph.slug, node.id))
        node.properties["seen"] = _seen.count((ctx.graph.slug, node.id))


@remembers.reverse
def forgets_too_little(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties["seen"] = None


oneway = GraphType("oneway")


@oneway.hop(1, 2)
def only_there(ctx: HopContext) -> None:
    """No way back."""


def test_a_wrong_expectation_names_the_rows(make_graph: MakeGraph) -> None:
    graph = make_graph(knowledge, nodes=PEOPLE[:1])
    differs = r"node 'Cosette' is .*\n.*expected .*Wrong(.|\n)*node 'Nobody' is missing"
    with pytest.raises(AssertionError, match=differs):
        assert_hop(graph, 1, 2, nodes=[Node("Cosette", "Wrong"), Node("Nobody", "Node")])
    with pytest.raises(AssertionError, match="node 'Cosette' is there and was not expected"):
        assert_hop(graph, 2, 1, nodes=[])
    with pytest.raises(AssertionError, match="is at v1, not at v2"):
        assert_hop(graph, 2, 3)


def test_a_reverse_that_does_not_lead_back_is_found(make_graph: MakeGraph) -> None:
    _seen.clear()
    with pytest.raises(AssertionError, match="back at v1, the graph differs"):
        assert_reversible(broken, make_graph(broken, nodes=PEOPLE))
    with pytest.raises(AssertionError, match=r"'only_there' .* has no reverse"):
        assert_reversible(oneway, make_graph(oneway, nodes=PEOPLE))


def test_a_hop_that_remembers_what_a_crash_undid_is_found(make_graph: MakeGraph) -> None:
    _seen.clear()
    graph = make_graph(broken, nodes=PEOPLE)
    with pytest.raises(AssertionError, match=r"after a crash at .*, the graph differs"):
        assert_survives_crash(broken, graph)


def test_the_wrong_type_is_noticed(make_graph: MakeGraph) -> None:
    with pytest.raises(AssertionError, match="is a 'broken', not a 'oneway'"):
        assert_reversible(oneway, make_graph(broken))
