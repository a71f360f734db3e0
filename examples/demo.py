"""``make demo``: a real graph migrates while its worker is killed half-way.

Everything is real: a Postgres, a Redis, two Celery workers, *Les Misérables* (77 characters and who appears
with whom, as NetworkX ships it), and a SIGKILL in the middle of a hop.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import networkx
from rich.console import Console

from graph_migrator.core.embedded import Postgres, Redis
from graph_migrator.core.inspection import history
from graph_migrator.core.interchange import import_graph
from graph_migrator.core.store import schema
from graph_migrator.core.store.connections import make_engine
from graph_migrator.tasks.serving import Worker, environment

GRAPH = "les-miserables"
NODE = "MmeMagloire"

out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def main() -> None:
    """Run the demo; whatever happens, nothing is left running."""
    global out
    parser = argparse.ArgumentParser(description="A real graph migrates while its worker is killed half-way.")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="Also write what is printed as a picture.")
    picture = parser.parse_args().svg
    if picture is not None:
        out = Console(highlight=False, width=132, record=True)
    try:
        run()
    except SystemExit as ended:
        if ended.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            out.print("\nInterrupted. Everything is stopped.")
        raise
    if picture is not None:
        svg = out.export_svg(title="make demo")
        # Rich names fonts on a server of others; whoever looks at the picture need not ask it.
        picture.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), "utf-8")


def run() -> None:
    """The demo itself."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupted)
    os.environ["GRAPH_MIGRATOR_TYPES"] = "examples.knowledge:knowledge"
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="gm-demo-")))
        say("1", "Postgres and Redis start in a private folder, on free ports of this machine.")
        postgres = running.enter_context(Postgres())
        redis = running.enter_context(Redis())
        schema.upgrade(postgres.url)
        variables = environment(postgres, redis)
        os.environ.update(variables)
        engine = make_engine(postgres.url)

        say("2", "Two Celery workers start. One of them will be killed half-way through the second hop.")
        # So that a hop of milliseconds can be killed half-way, its worker waits there for a moment.
        hold = folder / "hold"
        hold.mkdir()
        (hold / "armed").write_text("batch_before_commit:2")
        held = variables | {"GRAPH_MIGRATOR_TEST_HOLD": str(hold)}
        for number in (1, 2):
            # One process each, so that the kill takes a whole worker.
            running.enter_context(Worker(folder / f"{number}", f"worker-{number}", held, pool="solo"))

        graph = networkx.les_miserables_graph()
        document = BytesIO(json.dumps(networkx.node_link_data(graph)).encode())
        imported = import_graph(engine, document, slug=GRAPH, graph_type="knowledge", version=1)
        say("3", f"{GRAPH} is imported at v1: {imported.nodes} characters, {imported.edges} edges.")
        before = node(engine)

        from graph_migrator import migrate_graph

        say("4", f'migrate_graph.delay("{GRAPH}", 4)')
        result = migrate_graph.delay(GRAPH, 4, requested_by="demo", reason="the new release")
        follow(engine, result, hold)
        report = result.get(timeout=30)
        say(
            "5",
            f"The caller's .get() returns: {report.status}, v{report.from_version}→v{report.version}, "
            f"dispatch {report.dispatch}.",
        )

        say("6", f"The history (graph-migrator history {GRAPH}):\n")
        describe(engine)
        out.print(f"\n  node {NODE} before: {before}\n  node {NODE} after:  {node(engine)}")
    out.print(
        "\nEverything is stopped. Now try it yourself:\n\n"
        "  make dev ARGS='--flower'                      Postgres, Redis, a worker and Flower, until Ctrl-C\n"
        '  eval "$(.venv/bin/graph-migrator env)"        in another shell: point it at them\n'
        "  .venv/bin/graph-migrator --help               import, migrate --dry-run, status, watch, history, retry ...\n"
        "  less examples/knowledge.py                    the graph type that just ran, in a hundred lines\n"
    )


def say(number: str, what: str) -> None:
    """Print one step."""
    out.print(f"[bold]{number}.[/] {what}")


def node(engine: Any) -> str:
    """One node as it stands in the database."""
    with engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT to_jsonb(n) - 'graph_id' FROM graph_migrator.nodes n WHERE id = %s", (NODE,)
        )
        return json.dumps(row.scalar_one(), ensure_ascii=False)


def follow(engine: Any, result: Any, hold: Path) -> None:
    """Print each attempt as it begins and ends, read from Postgres by another connection; and kill one."""
    seen: dict[int, str] = {}
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        over = result.ready()
        stories = history.history(engine, GRAPH)
        for attempt in stories[-1].attempts if stories else ():
            if seen.get(attempt.id) == attempt.status:
                continue
            seen[attempt.id] = attempt.status
            hop = (
                f"v{attempt.from_version}→v{attempt.to_version} {attempt.hop_name}, attempt {attempt.attempt}"
            )
            match attempt.status:
                case "running":
                    again = (
                        ", behind the last committed batch" if attempt.done and attempt.attempt > 1 else ""
                    )
                    out.print(f"     {hop}: on {attempt.worker}{again}")
                case "lost":
                    out.print(
                        f"     [magenta]{hop}: {attempt.worker} is dead; {attempt.done} rows were committed and stay[/]"
                    )
                case _:
                    out.print(
                        f"     [green]{hop}: {attempt.status}[/], {attempt.rows_changed} rows; "
                        f"the graph is at v{attempt.to_version}"
                    )
        if over:
            return
        for mark in hold.glob("held.*"):
            if any(status == "running" for status in seen.values()):  # its beginning was printed
                out.print(f"     [bold red]kill -9 {mark.suffix[1:]}[/]   in the middle of its second batch")
                os.kill(int(mark.suffix[1:]), signal.SIGKILL)
                mark.unlink()
        time.sleep(0.02)
    raise SystemExit("The migration did not end in time. Its workers' logs were in a temporary folder.")


def describe(engine: Any) -> None:
    """Print the history as the command line does."""
    from graph_migrator.tasks.cli.history import print_story

    for entry in history.history(engine, GRAPH):
        print_story(entry, out if out.record else None)


def _interrupted(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough; what was started is being stopped
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
