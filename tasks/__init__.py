"""The Celery side: tasks, the worker's recovery, and the command line.

The public names are those of `graph_migrator`: ``graph_migrator.migrate_graph.delay("les-miserables", 3).get()``.
"""

from typing import Any

if __name__ == "tasks":
    from graph_migrator.checkout import stand_in

    stand_in("tasks")


def __getattr__(name: str) -> Any:
    import graph_migrator

    if name in graph_migrator.__all__:
        return getattr(graph_migrator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
