"""Nodes and edges on their way from a file to Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from graph_migrator.core.interchange.exact_json import Unstorable, encode, number_fault, text_fault
from graph_migrator.core.interchange.input_file import InputFile
from graph_migrator.core.store.json_text import ExactFloat

NO_LABEL = "Node"
NO_TYPE = "RELATED"


class Place(NamedTuple):
    """Where a record stands in its file."""

    line: int | None
    element: str = ""
    """The path to it in a document, such as ``nodes[17]``."""

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
    key: str | int | ExactFloat | None = None


class Reader(Protocol):
    """Reads the files of one dialect.

    Attributes:
        attributes: What becomes the graph's `config`; complete when `records` is exhausted.
    """

    attributes: dict[str, Any]

    def records(self) -> Iterator[NodeRecord | EdgeRecord]:
        """All nodes and edges, in the order in which the file holds them."""
        ...


@dataclass(frozen=True)
class Choices:
    """What a caller decides about a file that the file itself leaves open.

    Attributes:
        labels_property: The property that keeps a node's labels after the first; None refuses such nodes.
        columns: For CSV, the header of a field: ``{"source": "from_user"}``.
    """

    labels_property: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


class BadField(ValueError):
    """A field of a record is malformed; whoever knows the place makes an `InvalidRecord` of it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


Record = TypeVar("Record")


def build(
    source: InputFile, place: Place, make: Callable[..., Record], *arguments: Any
) -> tuple[Record] | tuple[()]:
    """The record, or nothing where it is malformed and the file is only being checked.

    Raises:
        InvalidRecord: It is malformed, and this is an import.
    """
    try:
        return (make(place, *arguments),)
    except BadField as error:
        source.report(place.line, place.field(error.field), error.reason)
        return ()


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


def object_of(field: str, value: Any) -> dict[str, Any]:
    """The value, which must be an object.

    Raises:
        BadField: It is not.
    """
    if not isinstance(value, dict):
        raise BadField(field, f"must be an object, not {json_type(value)}")
    return value


def take_identity(field: str, attributes: dict[str, Any], path: str = "") -> str:
    """Take an id out of an element's attributes. A number becomes the text that it is written as.

    Args:
        field: The attribute.
        attributes: Without it afterwards.
        path: What errors put before the field's name.

    Raises:
        BadField: It is missing, or neither text nor a number.
    """
    try:
        value = attributes.pop(field)
    except KeyError:
        raise BadField(path + field, "is missing") from None
    if isinstance(value, int | ExactFloat) and not isinstance(value, bool):
        if isinstance(value, ExactFloat) and (reason := number_fault(value)):
            raise BadField(path + field, reason)
        return number_text(value)
    if not isinstance(value, str):
        raise BadField(path + field, f"must be text or a number, not {json_type(value)}")
    return text_of(path + field, value)


def number_text(value: str | int | ExactFloat) -> str:
    """A number as it is written in the file; text as it is."""
    return value.text if isinstance(value, ExactFloat) else str(value)


def take_label(attributes: dict[str, Any], choices: Choices, field: str = "labels") -> str:
    """Take a node's label out of its attributes, out of `label` or a list of `labels`.

    A node of our tables has one label. With several, the first one is the label, and the others are kept in
    the property that the caller has named for it; `labels` beside a `label` is a property like any other.

    Raises:
        BadField: There are several labels and no name for the others, or it is no label.
    """
    if "label" in attributes:
        return text_of("label", attributes.pop("label"))
    labels = attributes.get("labels")
    if not isinstance(labels, list):
        return NO_LABEL
    for index, label in enumerate(labels):
        text_of(f"{field}[{index}]", label)
    if len(labels) > 1 and choices.labels_property is None:
        several = ", ".join(labels)[:200]
        raise BadField(
            field,
            f"names {len(labels)} labels ({several}), and a node has one. With --labels-property NAME the "
            "first is the label, and the others are kept in the property NAME",
        )
    del attributes["labels"]
    if len(labels) > 1 and choices.labels_property is not None:
        if choices.labels_property in attributes:
            raise BadField(
                choices.labels_property, "is a property already; give --labels-property another name"
            )
        attributes[choices.labels_property] = labels[1:]
    return str(labels[0]) if labels else NO_LABEL


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
    try:
        return encode(object_of(field, value))
    except Unstorable as error:
        raise BadField((field + error.path).removeprefix("."), error.reason) from error


def merged(outer: dict[str, Any], inner: dict[str, Any], name: str) -> dict[str, Any]:
    """The attributes of an element and of an object inside of it, as one set of properties.

    Raises:
        BadField: Both have an attribute of the same name.
    """
    if twice := sorted(outer.keys() & inner.keys()):
        raise BadField(twice[0], f"stands both beside and inside of {name!r}")
    return {**inner, **outer}


def json_type(value: Any) -> str:
    """What kind of JSON value it is, in words."""
    names = {bool: "a boolean", type(None): "null", list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), "a number")
