"""What changes a fingerprint, and what does not.

Each case is a module in two versions; `hop` is its hop, made with the options that the module states.
"""

import importlib.util
import itertools
import textwrap
from dataclasses import dataclass

import pytest

from graph_migrator import Edges, GraphType, Nodes, Rows
from graph_migrator.core.graph_types.fingerprint import fingerprint, normalise_sql

_numbers = itertools.count()


@pytest.fixture
def load(tmp_path):
    """Import a module from its text."""

    def load(text):
        path = tmp_path / f"fingerprinted_{next(_numbers)}.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def same(load):
    """Whether two texts of a module give their hop one fingerprint."""

    def same(one, other):
        prints = [_of(load(text).hop) for text in (one, other)]
        return prints[0] == prints[1]

    return same


def _of(hop):
    return hop.forward.fingerprint if hasattr(hop, "directions") else fingerprint(hop)


PLAIN = """
    def hop(ctx):
        ctx.execute("UPDATE nodes")
    """


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(
            """
            # why
            def hop(ctx):
                ctx.execute("UPDATE nodes")  # because
            """,
            id="comments",
        ),
        pytest.param(
            '''
            """About this module."""
            def hop(ctx):
                """About this hop."""
                ctx.execute("UPDATE nodes")
            ''',
            id="docstrings",
        ),
        pytest.param(
            """
            import os
            def hop( ctx, ) :


                ctx.execute('UPDATE '
                    "nodes",
                )
            """,
            id="formatting, quotes, and neighbours that it does not use",
        ),
        pytest.param(
            """
            from __future__ import annotations
            def hop(ctx: HopContext) -> None:
                ctx.execute("UPDATE nodes")
            """,
            id="annotations of arguments",
        ),
        pytest.param(
            """
            class Box:
                def __init__(self): self.hop = lambda function: function
            box = Box()
            @box.hop
            def hop(ctx):
                ctx.execute("UPDATE nodes")
            """,
            id="the decorator that makes it a hop",
        ),
    ],
)
def test_what_does_not_change_the_code_does_not_change_the_fingerprint(same, other):
    assert same(PLAIN, other)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param('def hop(ctx):\n    ctx.execute("UPDATE edges")', id="a text"),
        pytest.param('def hop(ctx):\n    ctx.execute("UPDATE nodes")\n    return 1', id="a statement"),
        pytest.param('def hop(graph):\n    graph.execute("UPDATE nodes")', id="a name"),
        pytest.param('def hop(ctx):\n    ctx.execute(b"UPDATE nodes")', id="the type of a constant"),
        pytest.param('def hop(ctx, n=1):\n    ctx.execute("UPDATE nodes")', id="a default"),
        pytest.param(
            'import functools\n@functools.cache\ndef hop(ctx):\n    ctx.execute("UPDATE nodes")',
            id="another decorator",
        ),
    ],
)
def test_other_code_has_another_fingerprint(same, other):
    assert not same(PLAIN, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = True", "x = 1"),
        ("x = None", "x = ..."),
        ("x = f'{ctx}'", "x = f'{ctx!r}'"),
        ("x = f'{ctx:>3}'", "x = f'{ctx:<3}'"),
        ("x = a - (b - c)", "x = a - b - c"),
        ("x = [a for a in b]", "x = {a for a in b}"),
        ("x = a if b else c", "x = a or c"),
        ("x = a.b", "x = a.c"),
        ("x = yes", "x = not yes"),
        ("return", "return None"),
    ],
)
def test_small_differences_count(same, one, other):
    assert not same(f"def hop(ctx):\n    {one}", f"def hop(ctx):\n    {other}")


HELPED = """
    import re
    LABELS = {"KNOWS": "ACQUAINTED_WITH"}
    UNUSED = 1
    SQUARES = [local * local for local in (1, 2)]
    def outer(text):
        return inner(text)
    def inner(text):
        '''About inner.'''
        return LABELS[text]
    def unused(): return 1
    class Shape:
        size = 1
    def hop(ctx):
        local = 1
        return outer(ctx), Shape(), re, local
    """


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("inner(text)\n", "inner(text) or 1\n"),
        ("LABELS[text]", "LABELS.get(text)"),
        ('"ACQUAINTED_WITH"', '"MET"'),
        ("size = 1", "size = 2"),
        ("import re", "import os as re"),
    ],
)
def test_what_the_hop_reaches_in_its_module_changes_the_fingerprint(same, old, new):
    assert old in HELPED
    assert not same(HELPED, HELPED.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("UNUSED = 1", "UNUSED = 2"),
        ("(1, 2)", "(1, 3)"),
        ("unused(): return 1", "unused(): return 2"),
        ("About inner.", "About."),
        ("import re", "import re, os"),
        ("LABELS = {", "LABELS = {  # by type\n        "),
    ],
)
def test_what_the_hop_does_not_reach_changes_nothing(same, old, new):
    assert old in HELPED
    assert same(HELPED, HELPED.replace(old, new))


def test_helpers_that_call_one_another_come_to_an_end(load):
    assert fingerprint(load("def hop(ctx): return back(ctx)\ndef back(ctx): return hop(ctx)").hop)


MADE = """
    def make(table):
        def hop(ctx):
            ctx.execute(table)
        return hop
    hop = make("nodes")
    """


def test_what_a_function_caught_from_around_it_counts(same):
    assert same(MADE, MADE + "\n    other = make('edges')")
    assert not same(MADE, MADE.replace('make("nodes")', 'make("edges")'))


def test_a_function_that_caught_itself_comes_to_an_end(load):
    assert fingerprint(
        load("def make():\n    def hop(ctx):\n        return hop\n    return hop\nhop = make()").hop
    )


def test_values_bound_as_defaults_count(load):
    module = load("hops = [lambda ctx, n=n: n for n in (1, 2)]")
    assert fingerprint(module.hops[0]) != fingerprint(module.hops[1])


def test_functions_behind_a_foreign_decorator_count(same):
    wrapped = """
        def twice(function):
            def run(ctx):
                function(ctx)
                function(ctx)
            return run
        @twice
        def hop(ctx):
            ctx.one()
        """
    assert not same(wrapped, wrapped.replace("ctx.one()", "ctx.two()"))
    assert not same(wrapped, wrapped.replace("@twice", "@twice\n        @twice"))


def test_functions_of_one_name_are_distinguished(load):
    module = load("def hop(ctx): return 1\nfirst = hop\ndef hop(ctx): return 2")
    assert fingerprint(module.first) != fingerprint(module.hop)


OPTIONS = """
    from graph_migrator import GraphType
    from graph_migrator import Nodes
    kind = GraphType("kind")
    def ready(ctx): return LIMIT
    def steady(ctx): return ready(ctx)
    LIMIT = 1
    @kind.hop(1, 2, over=Nodes("Person"), batch_size=10, when=lambda ctx: ready(ctx), check=ready,
              retry_on=(KeyError, ValueError), timeout=5)
    def hop(ctx, rows): ...
    """


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('Nodes("Person")', 'Nodes("Place")'),
        ("lambda ctx: ready(ctx)", "lambda ctx: not ready(ctx)"),
        ("when=lambda ctx: ready(ctx), ", ""),
        ("LIMIT = 1", "LIMIT = 2"),
        ("check=ready", "check=steady"),
        ("check=ready,", ""),
        ("(KeyError, ValueError)", "(KeyError,)"),
        ("timeout=5", "timeout=6"),
    ],
)
def test_options_change_the_fingerprint(same, old, new):
    assert old in OPTIONS
    assert not same(OPTIONS, OPTIONS.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("batch_size=10", "batch_size=20"),
        ("(KeyError, ValueError)", "(ValueError, KeyError)"),
        ("check=ready,\n", "check=ready,  # so\n\n"),
    ],
)
def test_options_that_do_not_change_the_effect_do_not_count(same, old, new):
    assert old in OPTIONS
    assert same(OPTIONS, OPTIONS.replace(old, new))


@dataclass
class Labelled:
    label: str


IMPORTED = """
    {imports}

    def missing(ctx):
        return {Node}("ada", "Person", {{}})

    def hop(ctx):
        try:
            return [missing(ctx), {Node}]
        except {Raised}:
            return None
    """


@pytest.mark.parametrize(
    ("imports", "node", "raised"),
    [
        ("from graph_migrator.core.graph_types.data import Node; from graph_migrator.core.errors import UnknownGraph",
         "Node", "UnknownGraph"),
        ("from core import Node; from graph_migrator.core.errors import UnknownGraph", "Node", "UnknownGraph"),
        ("import graph_migrator as gm; import graph_migrator.core.errors", "gm.Node",
         "graph_migrator.core.errors.UnknownGraph"),
        ("import core, graph_migrator.core.errors as errors", "core.Node", "errors.UnknownGraph"),
        ("from graph_migrator import Node as N; from graph_migrator.core.errors import UnknownGraph as U", "N", "U"),
        ("from graph_migrator import *; from graph_migrator.core import errors", "Node", "errors.UnknownGraph"),
    ],
)  # fmt: skip
def test_how_our_names_are_imported_does_not_count(same, imports, node, raised):
    usual = "from graph_migrator import Node; from graph_migrator.core.errors import UnknownGraph"
    assert same(
        IMPORTED.format(imports=usual, Node="Node", Raised="UnknownGraph"),
        IMPORTED.format(imports=imports, Node=node, Raised=raised),
    )


def test_which_name_of_ours_is_meant_counts(same):
    usual = "from graph_migrator import Node, Edge; from graph_migrator.core.errors import UnknownGraph"
    one = IMPORTED.format(imports=usual, Node="Node", Raised="UnknownGraph")
    assert not same(one, IMPORTED.format(imports=usual, Node="Edge", Raised="UnknownGraph"))
    assert not same(one, IMPORTED.format(imports=usual, Node="Node", Raised="ValueError"))


def test_a_class_of_the_authors_own_is_not_taken_for_ours(same):
    ours = "from graph_migrator import Node\ndef hop(ctx): return Node()"
    own = "class Node: {body}\ndef hop(ctx): return Node()"
    assert not same(ours, own.format(body="a = 1"))
    assert not same(own.format(body="a = 1"), own.format(body="a = 2"))
    replaced = "from graph_migrator import Node\nclass Node: {body}\ndef hop(ctx): return Node()"
    assert not same(replaced.format(body="a = 1"), replaced.format(body="a = 2"))


def test_an_import_of_ours_inside_a_hop_does_not_count_either(same):
    hop = "def hop(ctx):\n    from {module} import Node\n    return Node"
    assert same(hop.format(module="graph_migrator"), hop.format(module="core"))
    assert same(
        hop.format(module="graph_migrator"), hop.format(module="graph_migrator.core.graph_types.data")
    )
    assert not same(hop.format(module="graph_migrator"), hop.format(module="ast"))


def test_an_error_of_ours_as_an_option_is_known_by_its_name():
    moved = type("UnknownGraph", (Exception,), {"__module__": "graph_migrator.somewhere.else_"})
    stays = type("UnknownGraph", (Exception,), {"__module__": "graph_migrator.core.errors"})
    assert fingerprint("", {"retry_on": moved}) == fingerprint("", {"retry_on": stays})


def test_selectors_are_known_by_their_type():
    assert fingerprint("SELECT", {"over": Nodes("a")}) != fingerprint("SELECT", {"over": Labelled("a")})


def test_a_set_has_no_order():
    assert list({0, 8}) != list({8, 0}), "this pair is chosen because Python shows it in another order"
    assert fingerprint("SELECT", {"some": {0, 8}}) == fingerprint("SELECT", {"some": {8, 0}})


def test_selectors_of_one_text_are_distinguished():
    prints = {
        fingerprint("SELECT", {"over": over}) for over in (Nodes("a"), Edges("a"), Rows("a", "a"), None)
    }
    assert len(prints) == 4


def test_lambdas_that_share_a_line_count_together(load):
    two = "hop, other = lambda ctx: ctx.one(), lambda ctx: ctx.two()"
    module = load(two)
    assert fingerprint(module.hop) == fingerprint(module.other)
    assert fingerprint(module.hop) != fingerprint(load(two.replace("two", "three")).hop)
    assert fingerprint(module.hop) == fingerprint(load(two.replace(",  ", ",")).hop)


def test_a_function_is_found_below_other_decorators_and_inside_functions():
    kind = GraphType("kind")

    @kind.hop(
        1,
        2,
    )
    def hop(ctx): ...

    assert len(hop.forward.fingerprint) == 64


@pytest.mark.parametrize(
    ("sql", "normal"),
    [
        (" UPDATE nodes\n\t SET  a = 1 ", "UPDATE nodes SET a = 1"),
        ("a -- why\n b /* and\nhow */ c", "a b c"),
        ("SELECT 'a  b', \"c  d\"", "SELECT 'a  b', \"c  d\""),
        ("SELECT 'it''s  -- so'  , 1", "SELECT 'it''s  -- so' , 1"),
        (r"SELECT E'it\'s  so'  , 1", r"SELECT E'it\'s  so' , 1"),
        ("DO $$ a  b $$  x $t$ $$  $t$", "DO $$ a  b $$ x $t$ $$  $t$"),
    ],
)
def test_sql_counts_without_white_space_and_comments_but_with_its_quoted_text(sql, normal):
    assert normalise_sql(sql) == normal


def test_white_space_inside_quotes_changes_the_fingerprint():
    assert fingerprint("SELECT  1 -- one") == fingerprint("SELECT 1")
    assert fingerprint("SELECT 'a b'") != fingerprint("SELECT 'a  b'")


def test_a_function_without_source_is_refused():
    namespace = {}
    exec("def hop(ctx): ...", namespace)
    with pytest.raises(OSError, match="source"):
        fingerprint(namespace["hop"])
    with pytest.raises(OSError, match="no function"):
        fingerprint("", {"when": len})


def test_a_file_that_changed_since_it_was_loaded_is_noticed(load):
    module = load("def hop(ctx):\n    return 1")
    with open(module.__file__, "w") as file:
        file.write("# moved down\ndef hop(ctx):\n    return 1")
    with pytest.raises(OSError, match="changed since it was loaded"):
        fingerprint(module.hop)


SAMPLE = '''
    import re as regex
    from functools import partial
    SIZES = {"a": [1, 2.5, -3j, b"x"], "é": (None, ...)}
    def helper(text, /, *rest, key=None, **more):
        return regex.sub("a", partial(str, text)(), f"{text!r:>{key}} {text=}" "b" f"c{{{SIZES}")
    def hop(ctx):
        """Sample."""
        total: int = 0
        try:
            with ctx as inner, inner: total += sum(x for x in helper(ctx) if x)
        except (KeyError, ValueError) as error: raise RuntimeError(f"{'nested'} {error:}") from error
        finally: del inner
        match ctx:
            case {"a": [1, *_], **rest} if rest: return lambda y=1: y
            case str() | None: pass
        while (n := total) > 1: total -= n
        else: yield from ()
    '''


EVERYWHERE = "00c63ba88970ab6cf8108623bbb675afa0852a6ffac4c01b644d423e45836765"


def test_every_python_version_gives_the_same_fingerprint(load):
    # Made by Python 3.11, and the same under 3.12 and 3.13. If it differs after a change of the hash, raise
    # its scheme; if it differs under a new Python, that Python's syntax tree needs a rule.
    assert fingerprint(load(SAMPLE).hop) == EVERYWHERE
