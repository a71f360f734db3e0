"""Nodes and edges on their way from a file to Postgres."""

from __future__ import annotations

from typing import Any, NamedTuple

from graph_migrator.core.interchange.exact_json import ExactNumber, Unstorable, encode, text_fault


class Place(NamedTuple):
    """Where a record stands in its file."""

    line: int
    element: str = ""
    """The path to it in a node-link document, such as ``nodes[17]``."""

    def field(self, name: str) -> str:
        """A field of the record, as errors name it."""
        return f"{self.element}.{name}" if self.element and name else self.element or name


class NodeRecord(NamedTuple):
    """A node; `properties` is JSON text."""

    place: Place
    id: str
    label: str
    properties: str


class EdgeRecord(NamedTuple):
    """An edge; `properties` is JSON text.

    An edge without an `id` gets one when the whole file is read; its `key` may become it, and is not among
    the `properties`.
    """

    place: Place
    id: str | None
    source: str
    target: str
    type: str
    properties: str
    key: str | int | ExactNumber | None = None


class BadField(ValueError):
    """A field of a record is malformed; whoever knows the place makes an `InvalidRecord` of it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def text_of(field: str, value: Any) -> str:
    """The value, which must be text that Postgres can store.

    Raises:
        BadField: It is not.
    """
    if not isinstance(value, str):
        raise BadField(field, f"must be text, not {json_type(value)}")
    if reason := text_fault(value):
        raise BadField(field, reason)
    return value


def properties_of(field: str, value: Any) -> str:
    """The properties as JSON text.

    Args:
        field: What errors call them; empty where they are the record's own attributes.
        value: What was read.

    Raises:
        BadField: It is no object, or holds what jsonb cannot.
    """
    if not value and isinstance(value, dict):
        return "{}"
    if not isinstance(value, dict):
        raise BadField(field, f"must be an object, not {json_type(value)}")
    try:
        return encode(value)
    except Unstorable as error:
        raise BadField((field + error.path).removeprefix("."), error.reason) from error


def json_type(value: Any) -> str:
    """What kind of JSON value it is, in words."""
    names = {bool: "a boolean", type(None): "null", list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), "a number")
