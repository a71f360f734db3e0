"""Every command explains itself; completion, new types, and what `dev` refuses."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from graph_migrator.tasks.cli import main
from tests.acceptance.cluster import ROOT, Cluster
from tests.fork_server import fork_and_wait
from tests.integration.console import call, failed, spawn


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


# ── every command ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [(), *commands()], ids=" ".join)
def test_every_command_has_help_that_explains_it(path: tuple[str, ...]) -> None:
    outcome = call(*path, "--help")
    assert outcome.exit_code == 0
    assert outcome.out.startswith("Usage: ")
    assert len(outcome.out.split("\n\n")[1].strip()) > 20, "no sentence says what it does"


@pytest.mark.parametrize("path", [(), ("dev",), ("env",)])
def test_no_help_breaks_the_name_of_our_command(path: tuple[str, ...]) -> None:
    for width in range(30, 81):
        shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=width).output
        assert "graph-migrator" in shown
        assert "graph-\n" not in shown


def documented() -> dict[str, tuple[str, set[str]]]:
    """The JSON shapes of docs/cli.md, by command."""
    text = (ROOT / "docs" / "cli.md").read_text()
    found = re.findall(r"^\| `([^`]+)` \| (list|object|line by line) \| (.+) \|$", text, re.MULTILINE)
    return {command: (shape, set(re.findall(r"`([^`]+)`", keys))) for command, shape, keys in found}


@pytest.mark.parametrize("command", documented())
def test_json_is_what_the_documentation_says(here: Cluster, tmp_path: Path, command: str) -> None:
    failed(here)
    here.add_graph("h", "trail")
    file = tmp_path / "one.jsonl"
    file.write_text('{"kind": "node", "id": "a", "label": "N", "properties": {}}\n')
    more: dict[str, tuple[Any, ...]] = {
        "plan": ("h",), "status GRAPH": ("g",), "watch": ("g",), "history": ("g",), "migrate": ("h",),
        "migrate --inline": ("h",), "migrate --dry-run": ("h",), "lock": ("g",), "delete": ("h", "--yes"),
        "import": (file, "--slug", "i", "--type", "trail", "--version", 1),
        "baseline": ("h", "--version", 2, "--reason", "r", "--yes"),
        "console token create": ("ada",), "policy set": ("trail", "automatic"),
        "audit archive": ("--before", "2020-01-01", "--to", tmp_path / "archive"),
        "rollout plan": ("trail", "--all"), "rollout start": ("trail", "--all"),
        **{f"rollout {verb}": ("trail",) for verb in ("show", "graphs", "errors", "changes", "pause")},
    }  # fmt: skip
    if command.startswith("rollout ") and command not in {"rollout plan", "rollout start"}:
        assert call("rollout", "start", "trail", "--all").exit_code == 0
    words = [word for word in command.split() if word != "GRAPH"]
    outcome = call(*words, *more.get(command, ()), "--json")
    assert outcome.exit_code in {0, 1}
    shape, keys = documented()[command]
    value: Any = json.loads(outcome.out.splitlines()[0]) if shape == "line by line" else outcome.json()
    assert isinstance(value, list) == (shape == "list")
    for each in value if shape == "list" else [value]:
        assert set(each) == keys


def test_every_reading_command_has_its_json_documented() -> None:
    with_json = {
        " ".join(path) for path in commands()
        if any(o.name == "as_json" for o in _command(path).params)
    }  # fmt: skip
    shown = set(documented())
    same_as_lock = {"retry", "cancel", "pause", "resume", "release", "unlock", "guard install"}
    same_as_lock.add("console token revoke")
    verbs = ("resume", "promote", "cancel", "retry", "skip", "set", "hold", "unhold", "back", "watch")
    same_as_lock |= {f"rollout {verb}" for verb in verbs}
    assert with_json - same_as_lock == {name for name in shown if " --" not in name and "GRAPH" not in name}


def _command(path: tuple[str, ...]) -> click.Command:
    found: click.Command = main
    for name in path:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


# ── completion, new-type, env ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(shell: str) -> None:
    outcome = call("completion", shell)
    assert outcome.exit_code == 0
    assert "_GRAPH_MIGRATOR_COMPLETE" in outcome.out


def test_bash_takes_the_completion_script() -> None:
    script = call("completion", "bash").out
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_env_without_a_dev_that_runs(tmp_path: Path) -> None:
    for left_over in (None, "export DATABASE_URL=postgresql://gone\n"):
        if left_over is not None:  # by a `dev` that was killed
            (tmp_path / "env").write_text(left_over)
        outcome = call("env", "--folder", tmp_path)
        assert outcome.exit_code == 4
        assert "no `graph-migrator dev` runs" in outcome.err
        assert not outcome.out


def test_dev_refuses_a_folder_in_use_and_types_that_cannot_be_loaded(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        outcome = spawn("dev", "--folder", tmp_path, env={})
        assert (outcome.exit_code, outcome.out) == (3, "")
        assert "runs in" in outcome.err
    finally:
        os.close(descriptor)
    outcome = spawn("dev", "--folder", tmp_path, env={"GRAPH_MIGRATOR_TYPES": "nosuch:types"})
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert "'nosuch:types' cannot be loaded" in outcome.err


def test_a_new_types_own_test_passes(tmp_path: Path) -> None:
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    assert call("new-type", "my-people", "--folder", folder).exit_code == 0
    again = call("new-type", "my-people", "--folder", folder)
    assert again.exit_code == 2
    assert "is left as it is" in again.err
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    options = ("-q", "-p", "no:cacheprovider", "-W", "error")
    done = fork_and_wait("pytest", *options, str(folder), env=environment, cwd=tmp_path, seconds=110)
    assert done.exit_code == 0, done.out
    assert "3 passed" in done.out
