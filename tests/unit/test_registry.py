"""Where graph types are found."""

import importlib
import sys

import pytest

from graph_migrator import GraphType
from graph_migrator.core.errors import InvalidGraphType, InvalidRequest, UnknownGraphType
from graph_migrator.core.graph_types import registry

TYPE = """
from graph_migrator import GraphType
{name} = GraphType("{name}")
{name}.sql_hop(1, 2, name="hop", forward="UPDATE :graph_id")
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """No type is known, none is in the settings, and what a test imports is forgotten after it."""
    monkeypatch.delenv("GRAPH_MIGRATOR_TYPES", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    registry.settings.cache_clear()
    registry.reset()
    yield
    registry.settings.cache_clear()
    registry.reset()
    for name in set(sys.modules) - before:
        if name.startswith("shipped_"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    def write(module, text):
        (tmp_path / f"{module}.py").write_text(text)

    return write


@pytest.fixture
def install(tmp_path):
    """Make a distribution with these entry points importable."""

    def install(*entries, name="shipped"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[graph_migrator.graph_types]\n" + "\n".join(entries))
        sys.path.insert(0, str(tmp_path))
        importlib.invalidate_caches()

    return install


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])


def kind(name="kind"):
    made = GraphType(name)
    made.sql_hop(1, 2, name="hop", forward="UPDATE :graph_id")
    return made


def test_installed_packages_ship_types(write, install):
    write("shipped_one", TYPE.format(name="knowledge"))
    install("knowledge = shipped_one:knowledge")
    assert set(registry.load_types("")) == {"knowledge"}


def test_an_entry_point_may_ship_several_types(write, install):
    write("shipped_two", TYPE.format(name="one") + TYPE.format(name="two") + "both = [one, two]\n")
    install("all = shipped_two:both")
    assert list(registry.load_types("")) == ["one", "two"]


def test_the_setting_names_types_in_the_current_directory(write, here, monkeypatch):
    write("shipped_three", TYPE.format(name="three") + "class Box:\n    inner = three\n")
    write("shipped_four", TYPE.format(name="four") + "types = (four,)\n")
    monkeypatch.setenv("GRAPH_MIGRATOR_TYPES", " shipped_three:Box.inner , shipped_four:types,")
    assert list(registry.graph_types()) == ["four", "three"]
    assert registry.graph_type("three").newest == 2


def test_one_object_named_twice_is_one_type(write, install, here):
    write("shipped_five", TYPE.format(name="five"))
    install("five = shipped_five:five")
    assert list(registry.load_types("shipped_five:five")) == ["five"]


def test_two_types_of_one_name_are_refused_and_both_places_are_named(write, here):
    write("shipped_six", TYPE.format(name="same"))
    write("shipped_seven", TYPE.format(name="same"))
    with pytest.raises(InvalidGraphType, match=r"'shipped_six:same' and by 'shipped_seven:same'") as refused:
        registry.load_types("shipped_six:same,shipped_seven:same")
    assert refused.value.graph_type == "same"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("shipped_nowhere:kind", "ModuleNotFoundError"),
        ("shipped_eight:missing", "AttributeError"),
        ("shipped_eight:number", "is int, neither a GraphType nor several"),
        ("shipped_eight:text", "is str, neither a GraphType nor several"),
        ("shipped_broken:kind", "RuntimeError: no license"),
        ("shipped_eight", "not of the form module:attribute"),
        (":eight", "not of the form module:attribute"),
        ("shipped_eight:", "not of the form module:attribute"),
    ],
)
def test_a_name_that_leads_to_no_type_is_refused_and_named(write, here, install, part, reason):
    write("shipped_eight", TYPE.format(name="eight") + "number = 1\ntext = 'ab'\n")
    write("shipped_broken", "raise RuntimeError('no license')")
    with pytest.raises(InvalidRequest, match=reason) as refused:
        registry.load_types(f"shipped_eight:eight,{part}")
    assert refused.value.field == "GRAPH_MIGRATOR_TYPES"
    assert repr(part) in refused.value.reason
    if ":" in part.strip(":"):
        install(f"mine = {part}")
        with pytest.raises(InvalidGraphType, match=reason) as refused:
            registry.load_types("")
        assert "entry point 'mine'" in refused.value.reason


def test_every_type_is_checked(write, here):
    write(
        "shipped_nine",
        "from graph_migrator import GraphType\nempty = GraphType('empty')",
    )
    with pytest.raises(InvalidGraphType, match="it has no hops"):
        registry.load_types("shipped_nine:empty")


def test_a_type_that_refuses_itself_while_it_is_imported_says_why(write, here):
    write("shipped_ten", TYPE.format(name="ten") + "ten.hop(2, 3)(len)\n")
    with pytest.raises(InvalidGraphType, match="source is unavailable"):
        registry.load_types("shipped_ten:ten")


def test_an_unknown_type_is_refused_and_the_known_ones_are_named():
    registry.register(kind("two"))
    registry.register(kind("one"))
    with pytest.raises(UnknownGraphType) as refused:
        registry.graph_type("three")
    assert refused.value.args == ("three", ["one", "two"], None)


def test_a_registered_type_is_checked_and_takes_the_place_of_another():
    first, second = kind(), kind()
    assert registry.register(first) is first
    assert registry.graph_type("kind") is first
    registry.register(second)
    assert registry.graph_type("kind") is second
    with pytest.raises(InvalidGraphType):
        registry.register(GraphType("kind"))
    assert registry.graph_type("kind") is second


def test_a_registered_type_takes_the_place_of_a_shipped_one(write, here, monkeypatch):
    write("shipped_twelve", TYPE.format(name="kind"))
    monkeypatch.setenv("GRAPH_MIGRATOR_TYPES", "shipped_twelve:kind")
    shipped = registry.graph_type("kind")
    mine = registry.register(kind())
    assert registry.graph_type("kind") is registry.graph_types()["kind"] is mine is not shipped


def test_types_are_loaded_once_until_they_are_reset(write, here, monkeypatch):
    write("shipped_eleven", TYPE.format(name="eleven"))
    monkeypatch.setenv("GRAPH_MIGRATOR_TYPES", "shipped_eleven:eleven")
    loaded = registry.graph_type("eleven")
    del sys.modules["shipped_eleven"]
    assert registry.graph_type("eleven") is loaded
    registry.reset()
    assert registry.graph_type("eleven") is not loaded
