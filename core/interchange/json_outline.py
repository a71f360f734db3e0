"""What stands where in the beginning of a JSON document, which may be cut off anywhere."""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|[{}\[\],:]|[^\s{}\[\],:"]+|"')
_DEEPEST: Final = 4


def outline(text: str) -> dict[str, str]:
    """The first values of a document by their paths; of lists, only the first element.

    Args:
        text: The document, or its beginning.

    Returns:
        For ``{"nodes": [{"id": 1}]}``: ``{"": "{", "nodes": "[", "nodes[0]": "{", "nodes[0].id": "1"}``. A
        value is its text, that of a list or an object its bracket.
    """
    found: dict[str, str] = {}
    frames: list[_Frame] = []
    for token in _TOKEN.finditer(text):
        said = token[0]
        frame = frames[-1] if frames else None
        if said == '"':  # a text that is cut off
            break
        if said in "}]":
            if frame is None:
                break
            frames.pop()
        elif said == ",":
            if frame is not None:
                frame.go_on()
        elif said != ":":
            if frame is not None and frame.key is None and frame.is_object and said[0] == '"':
                frame.key = token[1]
                continue
            path = "" if frame is None else frame.path_of_value()
            if path is not None:
                found.setdefault(path, said)
            if said in "{[":
                frames.append(_Frame(path if len(frames) < _DEEPEST else None, said == "{"))
        if not frames:
            break
    return found


class _Frame:
    """An open list or object. Without a path nothing in it is of interest."""

    def __init__(self, path: str | None, is_object: bool) -> None:
        self.is_object = is_object
        self.key: str | None = None
        self._path = path
        self._is_first = True

    def go_on(self) -> None:
        """The next member follows."""
        self.key = None
        self._is_first = False

    def path_of_value(self) -> str | None:
        if self._path is None or (self.is_object and self.key is None):
            return None
        if self.is_object:
            return f"{self._path}.{self.key}" if self._path else self.key
        return f"{self._path}[0]" if self._is_first else None
