"""The option of the whole matrix, and the stage it plays on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.crash.stage import Stage


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole-matrix", action="store_true", help="every failpoint, every kind of death")
    parser.addoption("--matrix-seed", type=int, default=1, help="which sample of the crash matrix to run")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Servers and workers that outlive the cases of a module, as far as a case leaves them alive."""
    with Stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage
        stage.assert_nothing_left()
