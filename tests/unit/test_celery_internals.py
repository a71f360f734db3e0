"""What we override of Celery exists in the Celery that is installed; pyproject.toml declares what is tested."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(
    r"^\| `((?:celery|kombu)\.[\w.]+)` \|.*\| `(tasks/\w+\.py)` \|$",
    (ROOT / "docs/decisions/0008-celery-internals.md").read_text("utf-8"),
    re.MULTILINE,
)


def find(name: str) -> Any:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise LookupError(name)


@pytest.mark.parametrize(("name", "where"), ROWS)
def test_each_listed_part_exists_and_is_used_where_the_list_says(name: str, where: str) -> None:
    assert find(name) is not None
    last = name.rpartition(".")[2]
    used = {"task_message": "sent_event", "Task.replace": "replace"}.get(last, last)
    assert used in (ROOT / where).read_text("utf-8")


def test_the_list_is_read() -> None:
    assert len(ROWS) >= 13


def test_the_lower_bounds_are_the_oldest_versions_that_are_tested() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    bounds = dict(
        re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<[\d.]+)?", each).groups() for each in declared
    )  # type: ignore[union-attr]
    pinned = dict(
        re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "tests/oldest.txt").read_text("utf-8"), re.MULTILINE)
    )
    assert pinned.keys() - bounds.keys() == {"kombu", "redis"}  # Celery's own dependencies
    for name, bound in bounds.items():
        assert f"{pinned[name]}.".startswith(f"{bound}."), name
