"""The console with its own database role: it carries verbs out, and changes no data."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from graph_migrator import run_graph_migration
from graph_migrator.core.access.tokens import Role, create_token
from graph_migrator.core.rollouts.start import RolloutRequest, start
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.integration.test_roles import DENIED, LogIn, log_in, refused
from tests.integration.web import console
from tests.rows import add_graph

__all__ = ["log_in"]


def test_the_console_carries_verbs_out_and_changes_no_data(
    engine: Engine, log_in: LogIn, script: Script
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no luck")

    add_graph(engine, "g", "plain")
    add_graph(engine, "r", "batched")
    script.on["two"] = fail
    with pytest.raises(RuntimeError):
        run_graph_migration(engine, "g")
    mine = log_in("console")
    with Executors(engine).borrow() as executor:
        start(executor, RolloutRequest(graph_type="batched"))
    with console(mine) as here:
        for page in ("/", "/graphs", "/graphs/g", "/rollouts/batched", "/types", "/audit", "/attempts/2"):
            assert here.get(page, role="operator").status_code == 200, page
        for verb in ("retry", "pause", "resume", "cancel", "migrate", "lock", "unlock"):
            assert here.post(f"/api/v1/graphs/g/{verb}").status_code == 200, verb
        for verb in ("pause", "resume", "cancel"):
            assert here.post(f"/api/v1/rollouts/batched/{verb}").status_code == 200, verb
        assert here.post("/api/v1/rollouts/hold").status_code == 200
    _, secret = create_token(mine, "ada", Role.VIEWER)
    with console(mine, "tokens") as here:
        assert (
            here.client.get("/api/v1/graphs", headers={"authorization": f"Bearer {secret}"}).status_code
            == 200
        )
    for statement in (
        "SELECT properties FROM graph_migrator.nodes",
        "UPDATE graph_migrator.nodes SET label = 'x'",
        "UPDATE graph_migrator.graphs SET version = 1",
        "UPDATE graph_migrator.migrations SET status = 'failed'",
        "DELETE FROM graph_migrator.api_tokens",
        "DELETE FROM graph_migrator.hop_attempts",
    ):
        assert refused(mine, statement) == DENIED, statement
