"""In a checkout, `core` and `tasks` lie at the top as well; both names lead to the one package.

``from tasks import migrate_graph`` and ``celery -A tasks worker`` work there. A submodule under its short name
would be a second copy with state of its own, so importing one is refused.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _RefuseShortNames(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = sys.modules.get(fullname.partition(".")[0])
        if fullname.startswith(("core.", "tasks.")) and getattr(package, "__name__", "").startswith(
            "graph_migrator."
        ):
            raise ImportError(
                f"import graph_migrator.{fullname}, not {fullname}: under two names a module would be loaded twice",
                name=fullname,
            )
        return None


def stand_in(name: str) -> None:
    """Let `name`, imported from a checkout's top folder, be the package `graph_migrator.<name>`."""
    if not any(isinstance(finder, _RefuseShortNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RefuseShortNames())
    sys.modules[name] = importlib.import_module(f"graph_migrator.{name}")
