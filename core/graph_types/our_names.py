"""Our own names in an author's module, however the module imports them.

``from graph_migrator import Node``, ``import graph_migrator as gm`` with ``gm.Node``, an alias, and in a checkout
``from core import Node`` are one thing. A fingerprint that distinguished them would change when nothing but an
import was rewritten, and when this package moves a class.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Final

PACKAGE: Final = __name__.partition(".")[0]
_IMPORTS: Final = (ast.Import, ast.ImportFrom)


class OurNames:
    """Finds what a module's syntax tree means by the names that it imports from this package.

    Args:
        values: The module's global variables. A name is ours by what it is bound to, not by what the import says:
            `core` may be a package of the author's own.
        bindings: For each name of the module's top level, the statements that bind it.
    """

    def __init__(self, values: Mapping[str, Any], bindings: Mapping[str, list[ast.AST]]) -> None:
        self._imported = {
            name: value
            for name, value in values.items()
            # A name that no statement binds comes from ``import *``.
            if all(isinstance(each, _IMPORTS) for each in bindings.get(name, ()))
        }

    def name(self, node: ast.AST) -> str | None:
        """The class or function of ours that a name or a dotted name means; None for everything else."""
        found = self._value(node)
        if (isinstance(found, type) or inspect.isroutine(found)) and is_ours(found.__module__):
            return found.__qualname__
        return None

    def imports(self, node: ast.ImportFrom) -> bool:
        """Whether an import inside a function is from this package; a module-level one is judged by its names."""
        root = (node.module or "").partition(".")[0]
        return not node.level and is_ours(getattr(sys.modules.get(root), "__name__", None))

    def other_names(self, node: ast.AST) -> Iterator[str]:
        """Every name that stands in a syntax tree, without those that `name` knows."""
        if self.name(node) is not None:
            return
        if isinstance(node, ast.Name):
            yield node.id
        for child in ast.iter_child_nodes(node):
            yield from self.other_names(child)

    def _value(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Name):
            return self._imported.get(node.id)
        if isinstance(node, ast.Attribute):
            module = self._value(node.value)
            if isinstance(module, ModuleType) and is_ours(module.__name__):
                return getattr(module, node.attr, None)
        return None


def is_ours(module: str | None) -> bool:
    """Whether a module of this name is in this package."""
    return (module or "").partition(".")[0] == PACKAGE
