"""Every error says something, and survives the journey through Celery's JSON."""

from __future__ import annotations

import inspect
import json
import pickle
import re
from dataclasses import fields
from typing import Any

import pytest

from graph_migrator.core import errors
from graph_migrator.core.errors import GraphMigratorError, HopFailed
from graph_migrator.core.recorded_errors import json_args, name_of, own_error, revive

ALL = sorted(
    (
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, GraphMigratorError) and cls.__module__ == errors.__name__
    ),
    key=lambda cls: cls.__name__,
)
CONCRETE = [cls for cls in ALL if not any(cls in other.__bases__ for other in ALL)]
SAMPLES: dict[str, Any] = {
    "str": "les-miserables",
    "str | None": "les-miserables",
    "int": 3,
    "int | None": 3,
    "float": 2.5,
    "bool": True,
    "list[str]": ["one", "two"],
    "list[Any]": ["one", 2],
}


def samples(cls: type[GraphMigratorError], *, empty: bool = False) -> list[Any]:
    """One value for each field; the emptiest there is, where `empty`."""
    values = []
    for field in fields(cls):
        kind = str(field.type)
        if empty and cls is errors.GraphReadOnly and field.name == "reason":
            values.append("owner")  # the only reason that has no migration
        elif empty and kind.endswith("| None"):
            values.append(None)
        elif empty and kind == "list[str]":
            values.append([])
        else:
            values.append(SAMPLES[kind])
    return values


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("cls", CONCRETE)
def test_every_error_has_a_message_of_its_own(cls: type[GraphMigratorError], empty: bool) -> None:
    error = cls(*samples(cls, empty=empty))
    assert str(error) == error.message
    assert error.message != cls.__name__
    assert len(error.message) > 15
    assert "None" not in error.message


@pytest.mark.parametrize("cls", CONCRETE)
def test_every_error_is_built_again_from_its_json_args(cls: type[GraphMigratorError]) -> None:
    error = cls(*samples(cls))
    again = cls(*json.loads(json.dumps(json_args(error))))
    assert type(again) is cls
    assert again.args == error.args
    assert str(again) == str(error)
    for field in fields(cls):
        assert getattr(again, field.name) == getattr(error, field.name)


@pytest.mark.parametrize("cls", CONCRETE)
def test_fields_given_by_name_are_the_args_too(cls: type[GraphMigratorError]) -> None:
    values = dict(zip((field.name for field in fields(cls)), samples(cls), strict=True))
    assert cls(**values).args == tuple(values.values())


@pytest.mark.parametrize("cls", CONCRETE)
def test_every_error_survives_pickling(cls: type[GraphMigratorError]) -> None:
    error = cls(*samples(cls))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, str(again)) == (cls, error.args, str(error))


@pytest.mark.parametrize("cls", CONCRETE)
def test_every_error_is_revived_from_what_postgres_recorded(cls: type[GraphMigratorError]) -> None:
    error = cls(*samples(cls))
    stored = json.loads(json.dumps({"type": name_of(error), "message": str(error), "args": json_args(error)}))
    for again in (
        revive(stored["type"], stored["message"], stored["args"], graph="g", hop="h"),
        own_error(stored["type"], stored["args"]),
    ):
        assert (type(again), again.args, str(again)) == (cls, error.args, str(error))


@pytest.mark.parametrize("cls", CONCRETE)
def test_every_error_survives_celerys_result_backend(cls: type[GraphMigratorError]) -> None:
    from celery import Celery
    from celery.backends.base import Backend

    backend = Backend(app=Celery(set_as_current=False), serializer="json")
    error = cls(*samples(cls))
    again = backend.exception_to_python(json.loads(json.dumps(backend.prepare_exception(error))))
    assert (type(again), list(again.args), str(again)) == (cls, list(error.args), str(error))


@pytest.mark.parametrize("cls", ALL)
def test_the_tree_in_the_docstring_names_every_error_below_its_base(cls: type[GraphMigratorError]) -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"^([ │├└─]*)([A-Z][A-Za-z]+)(?:  .*)?$", line):
            indent = len(found[1])
            path = [(at, name) for at, name in path if at < indent]
            drawn[found[2]] = path[-1][1] if path else None
            path.append((indent, found[2]))
    base = None if cls is GraphMigratorError else cls.__bases__[0].__name__
    assert drawn[cls.__name__] == base
    assert set(drawn) == {each.__name__ for each in ALL}


@pytest.mark.parametrize(
    ("base", "code"), [("WrongUsage", 2), ("Refused", 3), ("MigrationError", 1), ("ServiceUnavailable", 4)]
)
def test_exit_codes_follow_the_tree(base: str, code: int) -> None:
    for cls in ALL:
        if issubclass(cls, getattr(errors, base)):
            assert cls.exit_code == code, cls


class OfThisModule(Exception):
    pass


class WithOwnConstructor(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Hostile(Exception):
    def __init__(self, text: str) -> None:
        if text != "first":
            raise RuntimeError("no")
        super().__init__("second")


def test_a_hops_own_error_is_revived_with_type_and_message() -> None:
    for error in (ValueError("bad name"), OfThisModule("a b"), ValueError("")):
        again = revive(name_of(error), str(error), json_args(error), graph="g", hop="h")
        assert type(again) is type(error)
        assert str(again) == str(error)


def test_quotes_of_a_key_error_are_not_doubled() -> None:
    error = KeyError("name")
    again = revive(name_of(error), str(error), json_args(error), graph="g", hop="h")
    assert type(again) is KeyError
    assert str(again) == "'name'"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WithOwnConstructor(3, "x"), f"{__name__}.WithOwnConstructor"),
        (Hostile("first"), f"{__name__}.Hostile"),
        (ValueError("one", 2), "ValueError"),
    ],
)
def test_an_error_that_cannot_be_rebuilt_is_recorded_by_type_and_message(error: Exception, kind: str) -> None:
    again = revive(name_of(error), str(error), json_args(error), graph="g", hop="h")
    assert again.args == HopFailed("g", "h", kind, str(error)).args
    assert kind in str(again)
    assert str(error) in str(again)


@pytest.mark.parametrize("kind", ["not_there.Error", "json.loads", "os.system", "SystemExit", "builtins", ""])
def test_what_is_recorded_never_calls_anything_but_an_exception_class(kind: str) -> None:
    again = revive(kind, "m", ["m"], graph="g", hop="h")
    assert isinstance(again, HopFailed)
