"""The console with its own database role: it carries verbs out, and changes no data."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from graph_migrator import run_graph_migration
from graph_migrator.core.access.tokens import Role, create_token
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.store.protocol import RecordSent
from graph_migrator.core.store.session import Executors
from tests.integration.fleet_inline import QUICK, Fleet
from tests.integration.scripted import Script
from tests.integration.test_roles import DENIED, LogIn, databases, log_in, refused
from tests.integration.web import console
from tests.rows import add_graph, rows

__all__ = ["databases", "log_in"]


def test_the_console_carries_verbs_out_and_changes_no_data(
    engine: Engine, log_in: LogIn, script: Script
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no luck")

    graph = add_graph(engine, "g", "plain")
    add_graph(engine, "r", "batched")
    script.on["two"] = fail
    with pytest.raises(RuntimeError):
        run_graph_migration(engine, "g")
    mine = log_in("console")
    add_graph(engine, "done", "plain")
    with Executors(engine).borrow() as executor:
        start(executor, RolloutRequest(graph_type="plain", to_version=2, graphs=("done",), strategy=QUICK))
    fleet = Fleet(Executors(engine))
    for _ in range(3):
        fleet.turn()
        fleet.deliver()
    with console(mine) as here:
        began = here.post("/api/v1/rollouts", json={"graph_type": "batched"})  # canaries by shape
        assert began.status_code == 200, began.text
        for page in ("/", "/graphs", "/graphs/g", "/rollouts/batched", "/types", "/health", "/audit", "/attempts/2",
                     "/rollouts/plain/back?to=1"):  # fmt: skip
            assert here.get(page, role="operator").status_code == 200, page
        assert here.post("/api/v1/rollouts/plain/back").status_code == 200
        for verb in ("retry", "pause", "resume", "cancel", "migrate", "lock", "unlock"):
            assert here.post(f"/api/v1/graphs/g/{verb}").status_code == 200, verb
        for verb in ("pause", "resume", "cancel"):
            assert here.post(f"/api/v1/rollouts/batched/{verb}").status_code == 200, verb
        assert here.post("/api/v1/rollouts/hold").status_code == 200
    with Executors(mine).borrow() as executor:  # shown as waiting, as a call of the command line
        executor.call(RecordSent(call="c", graph=graph, target=2, by="ada"))
    assert rows(engine, "SELECT task_id FROM waiting_calls") == [("c",)]
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
