"""The source text behind a function, as a syntax tree from which all that does not matter is removed."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any, Final

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_OWN_SCOPE: Final = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class ModuleSource:
    """The syntax tree of one module, indexed by what a function object knows of its own place in it.

    Docstrings, annotations of arguments and results, and the decorators that make a function a hop are
    removed.

    Attributes:
        bindings: For each name of the module's top level, the statements that bind it. A statement that
            imports several names is divided, so that importing one more does not change the others.
        imports: The first part of every module's name that is imported anywhere in it.
    """

    def __init__(self, text: str) -> None:
        """Parse a module's text."""
        tree = ast.parse(text)
        self._functions: dict[tuple[int, str], ast.AST] = {}
        self._lambdas: defaultdict[int, list[ast.AST]] = defaultdict(list)
        self.imports: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, _FUNCTIONS):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                self._functions[first, node.name] = node
            elif isinstance(node, ast.Lambda):
                self._lambdas[node.lineno].append(node)
            elif isinstance(node, ast.Import):
                self.imports |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                self.imports.add((node.module or "").partition(".")[0])
        _Strip().visit(tree)
        self.bindings: defaultdict[str, list[ast.AST]] = defaultdict(list)
        for statement in tree.body:
            for name, binding in _bindings(statement):
                self.bindings[name].append(binding)

    @classmethod
    def of(cls, thing: Callable[..., object] | ModuleType) -> ModuleSource:
        """The source of a module, or of the module that a function was defined in.

        Raises:
            OSError: The source is unavailable.
        """
        try:
            lines, _ = inspect.findsource(thing)
        except TypeError as error:  # built in, or no function at all
            raise OSError(str(error)) from error
        return _parsed("".join(lines))

    def nodes_of(self, function: Callable[..., object]) -> list[ast.AST]:
        """The definition of a function.

        Returns:
            One node; or, where several lambdas share a line, all of them: nothing that is the same in every
            Python version distinguishes them.

        Raises:
            OSError: The source has changed since the function was loaded.
        """
        code: Any = getattr(function, "__code__", None)
        if code is None:
            raise OSError(f"{function!r} is not a function")
        if code.co_name == "<lambda>":
            nodes = self._lambdas.get(code.co_firstlineno, [])
        else:
            found = self._functions.get((code.co_firstlineno, code.co_name))
            nodes = [] if found is None else [found]
        if not nodes:
            raise OSError("the file has changed since it was loaded")
        return nodes


@lru_cache(maxsize=64)
def _parsed(text: str) -> ModuleSource:
    return ModuleSource(text)


class _Strip(ast.NodeTransformer):
    """Removes, in place, what has no influence on what a hop does."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        _drop_docstring(node)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        _drop_docstring(node)
        node.returns = None
        # What is passed to a hop's decorator is part of the fingerprint as its options.
        node.decorator_list = [each for each in node.decorator_list if not _makes_a_hop(each)]
        return self.generic_visit(node)


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        del node.body[0]


def _makes_a_hop(decorator: ast.expr) -> bool:
    made_by = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(made_by, ast.Attribute) and made_by.attr in {"hop", "reverse"}


def _bindings(statement: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield alias.asname or alias.name.partition(".")[0], ast.Import([alias])
    elif isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or alias.name, ast.ImportFrom(statement.module, [alias], statement.level)
    else:
        for name in dict.fromkeys(_names_bound(statement)):
            yield name, statement


def _names_bound(node: ast.AST) -> Iterator[str]:
    """The names that a node binds in the scope it stands in."""
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0]
    elif not isinstance(node, _OWN_SCOPE):
        for child in ast.iter_child_nodes(node):
            yield from _names_bound(child)
