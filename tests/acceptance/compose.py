"""docker-compose.yml read as Compose reads it, and its services run as processes of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:?[-?])([^}]*))?\}|(\w+))")


class Unset(ValueError):
    """A variable that Compose would refuse to go on without."""


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """Every text in a tree with its variables replaced, by Compose's rules.

    Raises:
        Unset: A ``${NAME:?…}`` is unset or empty.
    """
    if isinstance(value, dict):
        return {key: interpolated(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, variables) for each in value]
    if not isinstance(value, str):
        return value

    def replaced(found: re.Match[str]) -> str:
        dollar, braced, operator, rest, bare = found.groups()
        if dollar:
            return "$"
        given = variables.get(braced or bare)
        missing = given is None or (given == "" and (operator or "").startswith(":"))
        if missing and (operator or "").endswith("?"):
            raise Unset(f"{braced}: {rest}")
        return (rest if operator else "") if missing else str(given)

    return _VARIABLE.sub(replaced, value)


def load(variables: Mapping[str, str]) -> dict[str, Any]:
    """The whole file, as Compose would carry it out."""
    found: dict[str, Any] = interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), variables)
    return found


class Running:
    """One service's command as a local process, with the service's settings.

    Args:
        name: The service.
        service: Its part of the file.
        moved: Texts of its environment and command that are different here: hosts, ports, addresses.
        folder: For its log.
    """

    def __init__(self, name: str, service: dict[str, Any], moved: Mapping[str, str], folder: Path) -> None:
        def here(text: str) -> str:
            for there, instead in moved.items():
                text = text.replace(there, instead)
            return text

        self.log = folder / f"{name}.log"
        self.environment = {key: here(str(value)) for key, value in service.get("environment", {}).items()}
        self.command = [here(word) for word in service["command"]]
        programs = Path(sys.executable).parent  # of the virtual environment, as in the image
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,  # where the image has the graph types
                # Nothing of ours but where programs are found: a container inherits nothing either.
                env={"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), **self.environment},
                start_new_session=True,
            )

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text("utf-8", "replace")

    def stop(self, how: signal.Signals, seconds: float) -> int:
        """As `docker stop` does: a signal to the main process, and its exit code."""
        self.process.send_signal(how)
        return self.process.wait(seconds)

    def end(self) -> None:
        """SIGKILL for it and all its children."""
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for each in family:
                if each.is_running():
                    each.kill()
        self.process.wait(10)
