"""Links that name their ends by position, as NetworkX 1 and D3 3 wrote them.

Such a link says ``"source": 0`` and means the first node. Where the nodes' ids are numbers too, it would pass
for an id and lead to another node. NetworkX 2 and later write ids; the two differ in what the
numbers are, and by the order in which NetworkX writes: links sorted by the position of their source.
"""

from __future__ import annotations

from array import array
from itertools import pairwise
from typing import Any, Final

_MOST: Final = 200_000
"""Ids and ends that are remembered. NetworkX 1 held a graph in memory; larger files are read by id."""

CONVERSION: Final = (
    "Python: d = json.load(open(FILE)); [l.update({e: d['nodes'][l[e]]['id'] for e in ('source', 'target')}) "
    "for l in d['links']]; d['edges'] = d.pop('links'); json.dump(d, open(NEW, 'w'))"
)
BY_POSITION: Final = (
    "name their ends by position in 'nodes', as NetworkX 1 and D3 version 3 write them; ids are read here. "
    f"Convert with {CONVERSION}. If they are ids after all, call the list 'edges' instead of 'links'"
)


class LinkPositions:
    """Watches the nodes and links of one document whose ends may be positions."""

    def __init__(self) -> None:
        self._ids = array("q")
        self._ends = array("q")
        self._possible = True
        self._only_numbers = True
        self._has_links = False

    def see_node(self, id_: Any) -> None:
        """A node, in the order of the file, with its id as it was read."""
        if self._possible:
            self._note(self._ids, id_)

    def see_link(self, source: Any, target: Any) -> None:
        """A link, with its ends as they were read."""
        self._has_links = True
        self._only_numbers = self._only_numbers and _whole(source) and _whole(target)
        if self._possible:
            self._note(self._ends, source)
            self._note(self._ends, target)

    def may_explain_missing_nodes(self) -> bool:
        """Whether all ends are whole numbers, which may be positions where they are no ids."""
        return self._has_links and self._only_numbers

    def by_position(self) -> bool:
        """Whether the links lead to other nodes by position than by id, and are likely or surely meant so."""
        count = len(self._ids)
        place = {id_: at for at, id_ in enumerate(self._ids)}
        if not self._possible or not self._ends or all(id_ == at for id_, at in place.items()):
            return False
        if not all(0 <= end < count for end in self._ends):
            return False
        if not all(end in place for end in self._ends):
            return True
        return _rises(list(self._ends[::2]))

    def _note(self, numbers: array[int], value: Any) -> None:
        if not _whole(value) or len(numbers) >= _MOST:
            self._possible = False
            self._ids, self._ends = array("q"), array("q")
        else:
            numbers.append(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rises(numbers: list[int]) -> bool:
    return all(a <= b for a, b in pairwise(numbers))
