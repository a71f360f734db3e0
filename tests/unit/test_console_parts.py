"""Parts of the console that need no database: the limit of logins, forms, cells, and positions in lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_migrator.console.api import place_of
from graph_migrator.console.authentication import LoginLimit
from graph_migrator.console.forms import _next
from graph_migrator.console.pages import _csv_line, _plain
from graph_migrator.console.problems import Problem, as_problem, status_of
from graph_migrator.core import errors
from graph_migrator.core.errors import GraphMigratorError, MigrationInFlight, UnknownGraph


def test_wrong_logins_are_limited_by_address_and_in_all() -> None:
    limit = LoginLimit(tries=2, all_tries=3, seconds=60)
    for address in ("a", "a", "b"):
        limit.check(address)
        limit.failed(address)
    with pytest.raises(Problem):
        limit.check("a")
    with pytest.raises(Problem):
        limit.check("c")


def test_a_login_is_possible_again_when_the_time_is_over() -> None:
    limit = LoginLimit(tries=1, seconds=0)
    limit.failed("a")
    limit.check("a")


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "\tx"])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert _plain(cell) == f"'{cell}"
    assert _csv_line([_plain("a,b"), "c"]) == '"a,b",c\r\n'


@given(st.text())
def test_a_login_leads_to_a_path_of_ours(to: str) -> None:
    found = _next(to)
    assert found == to or found == "/"
    assert found.startswith("/")
    assert not found.startswith("//")


@pytest.mark.parametrize("after", ["x", "2026-01-01~1", "~", "2026-13-01T00:00:00+00:00~1"])
def test_what_is_no_place_in_a_list_is_refused(after: str) -> None:
    with pytest.raises(Problem):
        place_of(after)


def test_errors_have_the_status_of_their_exit_code() -> None:
    assert status_of(UnknownGraph("g")) == 404
    assert status_of(MigrationInFlight("g", "m", "running", 2)) == 409
    problem = as_problem(MigrationInFlight("g", "m", "running", 2))
    assert problem["code"] == "graph_migrator.MigrationInFlight"
    assert problem["fields"] == {"graph": "g", "migration_id": "m", "status": "running", "to_version": 2}
    by_exit_code = {1: {409, 500}, 2: {400, 404, 500}, 3: {409}, 4: {503}}
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, GraphMigratorError) and cls is not GraphMigratorError:
            error = cls.__new__(cls)
            assert status_of(error) in by_exit_code[cls.exit_code], cls
