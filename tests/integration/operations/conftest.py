"""Operators in the tests are impatient."""

from __future__ import annotations

import pytest

from graph_migrator.core.settings import settings
from tests.integration.scripted import Script


@pytest.fixture(autouse=True)
def _short_patience(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS", "0.05")
    settings.cache_clear()
