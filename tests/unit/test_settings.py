"""Settings come from the environment, by the names that operators know."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from graph_migrator.core.settings import Settings, settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("GRAPH_MIGRATOR_") or name in {
            "DATABASE_URL",
            "CELERY_BROKER_URL",
            "CELERY_RESULT_BACKEND",
        }:
            monkeypatch.delenv(name)
    settings.cache_clear()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg"])
def test_a_bare_postgres_url_is_read_as_psycopg2(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://me:p%40ss@db:5433/graphs?sslmode=require")
    assert settings().database_url == "postgresql+psycopg2://me:p%40ss@db:5433/graphs?sslmode=require"


def test_another_driver_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql+pg8000://db/graphs")
    assert settings().database_url == "postgresql+pg8000://db/graphs"


def test_services_are_found_by_the_names_that_operators_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://broker/0")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://results/1")
    assert settings().broker_url == "redis://broker/0"
    assert settings().result_backend == "redis://results/1"


def test_all_else_bears_our_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPH_MIGRATOR_QUEUE", "other")
    monkeypatch.setenv("GRAPH_MIGRATOR_TYPES", "a:b")
    monkeypatch.setenv("GRAPH_MIGRATOR_MAX_CRASHES", "5")
    assert (settings().queue, settings().types, settings().max_crashes) == ("other", "a:b", 5)


def test_settings_can_be_given_by_name() -> None:
    given = Settings(database_url="postgresql://db/x", broker_url="redis://b/0", result_backend="redis://r/0")
    assert given.database_url == "postgresql+psycopg2://db/x"
    assert given.broker_url == "redis://b/0"


@pytest.mark.parametrize("name", ["MAX_CRASHES", "DEADLINE_SECONDS", "SWEEP_SECONDS"])
@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_a_limit_that_is_no_limit_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"GRAPH_MIGRATOR_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        settings()


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
