"""The platform of the simulation, and stories on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from graph_migrator.core.embedded import Postgres
from tests.simulation.runs import make_database, make_platform
from tests.simulation.story import Story
from tests.simulation.world import Platform


@pytest.fixture(scope="session")
def platform(postgres: Postgres) -> Iterator[Platform]:
    platform = make_platform(make_database(postgres, "regressions"))
    yield platform
    platform.close()


@pytest.fixture
def stories(platform: Platform) -> Iterator[list[Story]]:
    shown: list[Story] = []
    with platform.running():
        platform.clean()
        yield shown
        for story in shown:
            print("\n".join(story.trace))
            story.tear_down()


@pytest.fixture
def plain(platform: Platform, stories: list[Story]) -> Story:
    """A graph whose hops are one transaction each, v1 to v4."""
    stories.append(Story(platform, "plain"))
    return stories[-1]


@pytest.fixture
def batched(platform: Platform, stories: list[Story]) -> Story:
    """A graph whose first hop has three batches and whose second is one transaction, v1 to v3."""
    stories.append(Story(platform, "batched"))
    return stories[-1]
