"""`graph-migrator types`."""

from __future__ import annotations

import click

from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.tasks.cli.output import (
    console,
    json_option,
    print_json,
    table,
)


@click.command()
@json_option
def types(as_json: bool) -> None:
    """List the graph types that this process knows, and their hops."""
    known = graph_types()
    hops = [
        {
            "graph_type": kind.name,
            "from_version": hop.from_version,
            "to_version": hop.to_version,
            "name": hop.name,
            "batched": hop.forward.is_batched,
            "reversible": hop.is_reversible,
            "description": hop.description,
            "fingerprint": hop.forward.fingerprint,
        }
        for kind in known.values()
        for hop in kind.hops
    ]
    if as_json:
        print_json(hops)
        return
    if not known:
        click.echo("No graph types. Name one in GRAPH_MIGRATOR_TYPES as module:attribute.", err=True)
        return
    rows = [
        (h["graph_type"], f"v{h['from_version']}→v{h['to_version']}", h["name"], "batched" if h["batched"] else "",
         "" if h["reversible"] else "no way back", h["description"], str(h["fingerprint"])[:12])
        for h in hops
    ]  # fmt: skip
    console().print(table(None, ("TYPE", "HOP", "NAME", "", "", "WHAT IT DOES", "FINGERPRINT"), rows))
