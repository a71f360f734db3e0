"""For the tests of graph types: a real Postgres, graphs from literals, and assertions about hops.

    pytest_plugins = ["graph_migrator.testing"]

    def test_names_are_split(make_graph):
        graph = make_graph(people, version=1, nodes=[Node("1", "Person", {"name": "Ada Lovelace"})])
        assert_hop(graph, 1, 2, nodes=[Node("1", "Person", {"first_name": "Ada", "last_name": "Lovelace"})])

The fixtures need the extra `embedded`. They are no plugin that pytest loads by itself: other projects that
have this package installed are left alone. (PYTEST_DONT_REWRITE: a test module imports this before pytest does.)
"""

from graph_migrator.core.testing.assertions import assert_hop, assert_reversible
from graph_migrator.core.testing.crashes import assert_survives_crash
from graph_migrator.core.testing.fixtures import MakeGraph, graph_database, graph_server, make_graph
from graph_migrator.core.testing.sample import SampleGraph

__all__ = [
    "MakeGraph",
    "SampleGraph",
    "assert_hop",
    "assert_reversible",
    "assert_survives_crash",
    "graph_database",
    "graph_server",
    "make_graph",
]
