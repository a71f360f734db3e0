"""Documents whose graph stands below one key, read element by element."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from graph_migrator.core.interchange.input_file import InputFile
from graph_migrator.core.interchange.json_window import JsonWindow
from graph_migrator.core.interchange.node_link import read_attribute
from graph_migrator.core.interchange.records import Choices, EdgeRecord, NodeRecord


class JsonDocumentReader(ABC):
    """Reads one document with one graph.

    Attributes:
        attributes: What stands beside the graph's nodes and edges; complete when `records` is exhausted.
    """

    keys: ClassVar[tuple[str, ...]]
    """Below one of these stands the graph; the first is the usual one."""
    second: ClassVar[str]
    """What is wrong with a second one, for the refusal."""

    def __init__(self, source: InputFile, choices: Choices) -> None:
        self.attributes: dict[str, Any] = {}
        self._source = source
        self._choices = choices
        self._window = JsonWindow(source)

    def records(self) -> Iterator[NodeRecord | EdgeRecord]:
        """The graph's nodes and edges, in the order in which the document holds them.

        Raises:
            InvalidRecord: The document or one of its elements is malformed.
        """
        window, usual = self._window, self.keys[0]
        found = False
        for line, key in window.members("document", f"must be an object with {usual!r}"):
            if key not in self.keys:
                self.attributes[key] = read_attribute(self._source, window, key)
            elif found:
                raise self._source.invalid(line, key, self.second)
            else:
                found = True
                yield from self._below(key)
        window.end()
        if not found:
            raise self._source.invalid(None, usual, "is missing")

    @abstractmethod
    def _below(self, key: str) -> Iterator[NodeRecord | EdgeRecord]:
        """The records below one of the keys."""
