"""Everything but Celery: graph types, the execution of migrations, events, inspection, and the store in Postgres.

The public names are those of `graph_migrator`; docs/architecture.md has the map.
"""

from typing import Any

if __name__ == "core":
    from graph_migrator.checkout import stand_in

    stand_in("core")


def __getattr__(name: str) -> Any:
    import graph_migrator

    if name in graph_migrator.__all__:
        return getattr(graph_migrator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
