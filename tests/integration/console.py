"""The command line in tests: in this process for speed, as a process where pipes and signals matter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import signature
from pathlib import Path

from click.testing import CliRunner

from graph_migrator.tasks.cli import main
from tests.acceptance.cluster import ROOT, Cluster
from tests.fork_server import Outcome, fork_and_wait

ESCAPE = "\x1b"
OURS = ("DATABASE_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")

# Before click 8.2 the two streams are one, unless the runner is asked for two.
RUNNER = CliRunner(**({"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}))


def call(*arguments: object, answer: str | None = None) -> Outcome:
    """Run a command in this process."""

    result = RUNNER.invoke(main, [str(each) for each in arguments], input=answer)
    error = result.exception
    assert error is None or isinstance(error, SystemExit), (
        f"{type(error).__name__} reached the person: {error}"
    )
    outcome = Outcome(result.exit_code, result.stdout, result.stderr)
    assert "--traceback" in arguments or "Traceback" not in outcome.out + outcome.err
    assert ESCAPE not in outcome.out
    return outcome


def spawn(*arguments: object, env: Mapping[str, str], cwd: Path = ROOT, seconds: float = 60) -> Outcome:
    """Run a command as a process whose output goes into pipes."""
    inherited = {k: v for k, v in os.environ.items() if k not in OURS and not k.startswith("GRAPH_MIGRATOR_")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), **env}
    return fork_and_wait("graph_migrator", *map(str, arguments), env=environment, cwd=cwd, seconds=seconds)


def failed(here: Cluster, slug: str = "g", hop: str = "second") -> None:
    """A graph whose migration has failed."""
    here.add_graph(slug, "trail")
    order = here.steer("fail", slug, hop, "no luck")
    assert call("migrate", slug, "--to", 3, "--inline").exit_code == 1
    order.unlink()
