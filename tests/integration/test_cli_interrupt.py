"""Ctrl-C while a command is still being loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.console import ROOT
from tests.waiting import until

SLOW_IMPORT = """
import builtins, pathlib, time
real = builtins.__import__
def slowly(name, *rest, **more):
    if name.startswith({module!r}):
        pathlib.Path({marker!r}).touch()
        time.sleep(60)
    return real(name, *rest, **more)
builtins.__import__ = slowly
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (("status",), "click"),
        (("status",), "sqlalchemy"),
        (("migrate", "g"), "celery"),
        (("doctor",), "graph_migrator.tasks.fleet"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_ctrl_c_while_modules_are_loaded_says_nothing(
    tmp_path: Path, command: tuple[str, ...], module: str
) -> None:
    marker = tmp_path / "loading"
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT.format(module=module, marker=str(marker)))
    process = subprocess.Popen(
        [sys.executable, "-m", "graph_migrator", *command],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        # A shell's background jobs ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(marker.exists, "it is being loaded")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == -signal.SIGINT
