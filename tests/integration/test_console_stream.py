"""The live stream behind a real server: a snapshot, every change once, and nobody waits for anybody."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator import run_graph_migration
from graph_migrator.console import Identity, Role, create_app
from graph_migrator.console import stream as streaming
from graph_migrator.console.services import Services
from graph_migrator.core.access.tokens import create_token, revoke_token
from graph_migrator.core.store.session import Executors
from tests.acceptance.serving import Reader, served
from tests.integration.scripted import Script
from tests.integration.web import Notes
from tests.rows import add_graph, rows
from tests.waiting import until

INSERT = text(
    "INSERT INTO graph_migrator.change_events (kind, change) VALUES ('rollout', jsonb_build_object('n', :n))"
)
SECRET = "a-name-in-a-message"


def application(engine: Engine) -> Any:
    services = Services(broker=Notes(), engine=engine, executors=Executors(engine))
    return create_app(lambda _: Identity(name="ada", role=Role.VIEWER), services=services)


@pytest.fixture
def base(engine: Engine) -> Iterator[str]:
    with served(application(engine)) as base:
        yield base


@contextmanager
def reading(base: str, query: str = "", **options: Any) -> Iterator[Reader]:
    reader = Reader.open(base, query, **options)
    try:
        yield reader
    finally:
        reader.close()


def change(engine: Engine, n: int) -> None:
    with engine.begin() as connection:
        connection.execute(INSERT, {"n": n})


def long_change(engine: Engine, n: int) -> None:
    """A change that fills a socket's buffers soon."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO graph_migrator.change_events (kind, change) VALUES ('rollout', "
                "jsonb_build_object('n', :n, 'long', repeat('x', 400000)))"
            ),
            {"n": n},
        )


def numbers_to_the_end(reader: Reader) -> list[int]:
    found: list[int] = []
    with suppress(AssertionError):  # the stream has ended
        while True:
            found.append(reader.read("rollout")["change"]["n"])
    return found


def test_a_snapshot_comes_first_and_then_each_change(base: str, engine: Engine, script: Script) -> None:
    graph = add_graph(engine, "g", "plain")
    with reading(base) as reader:
        assert reader.status == 200
        assert "text/event-stream" in reader.head
        assert reader.read("snapshot") == {"troubles": [], "moving": []}
        run_graph_migration(engine, "g", 2)
        assert reader.read("migration")["change"]["status"] == "queued"
        assert reader.read("attempt")["graph_id"] == str(graph)
        while reader.read("migration")["change"]["status"] != "succeeded":
            pass


def test_it_is_resumed_without_a_gap_after_the_server_was_away(engine: Engine) -> None:
    with served(application(engine)) as base, reading(base) as reader:
        reader.read("snapshot")
        change(engine, 1)
        assert reader.read("rollout")["change"] == {"n": 1}
        at = reader.last_id
    for n in (2, 3):
        change(engine, n)
    with served(application(engine)) as base, reading(base, last_id=at) as reader:
        assert [reader.read()["change"]["n"] for _ in range(2)] == [2, 3]
        change(engine, 4)
        assert reader.read()["change"] == {"n": 4}


def test_what_began_before_anybody_followed_is_not_missed(base: str, engine: Engine) -> None:
    """It may have made changes that were not recorded: when it has ended, the state is sent anew."""
    with engine.connect() as early:
        early.execute(text("SELECT pg_current_xact_id()"))
        with reading(base) as reader:
            reader.read("snapshot")
            early.commit()
            assert reader.read("reset") == {}
            assert "troubles" in reader.read("snapshot")
            change(engine, 1)
            assert reader.read()["change"] == {"n": 1}


def test_an_unknown_id_is_answered_with_a_reset_and_a_snapshot(base: str, engine: Engine) -> None:
    for unknown in ("1:1:", "nonsense", "99999999:99999999:", "x" * 300):
        with reading(base, last_id=unknown) as reader:
            assert reader.read() == {}
            assert "troubles" in reader.read("snapshot")


def test_what_has_ended_is_a_204(base: str, engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    with reading(base, "?graph=g") as reader:
        reader.read("snapshot")
        run_graph_migration(engine, "g", 2)
        while reader.read("migration")["change"]["status"] != "succeeded":
            pass
        change(engine, 1)
    with reading(base, "?graph=g", last_id=reader.last_id) as again:
        assert again.status == 204
    with reading(base, last_id=reader.last_id) as everything:
        assert everything.status == 200


def test_what_is_not_there_is_a_404(base: str) -> None:
    for query, status in (
        ("?graph=nobody", 404),
        ("?rollout=nobody", 404),
        ("?view=user", 400),
        ("?graph=a&rollout=b", 400),
    ):
        with reading(base, query) as reader:
            assert reader.status == status, query


def test_a_graphs_stream_has_its_own_changes_alone(base: str, engine: Engine, script: Script) -> None:
    mine = add_graph(engine, "mine", "plain")
    add_graph(engine, "other", "plain")
    with reading(base, "?graph=mine") as reader:
        assert reader.read("snapshot")["graph"]["slug"] == "mine"
        run_graph_migration(engine, "other", 2)
        run_graph_migration(engine, "mine", 2)
        assert reader.read()["graph_id"] == str(mine)


def test_an_end_user_sees_a_fraction_and_a_safe_sentence(base: str, engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain", nodes={SECRET: {"name": SECRET}})

    def fail(_: object) -> None:
        raise RuntimeError(SECRET)

    script.on["two"] = fail
    with reading(base, "?graph=g&view=user") as reader:
        first = reader.read("snapshot")
        assert first["state"] == "idle"
        with pytest.raises(RuntimeError):
            run_graph_migration(engine, "g", 3)
        seen = [first]
        while seen[-1]["state"] != "failed":
            seen.append(reader.read("progress"))
        assert seen[-1]["fraction"] == 0.5
        assert all(set(each) == {"state", "fraction", "sentence"} for each in seen)
        assert SECRET not in json.dumps(seen)
        assert "plain" not in json.dumps(seen)
        assert '"g"' not in json.dumps(seen)


def test_all_clients_share_one_session(base: str, engine: Engine) -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(reading(base)) for _ in range(30)]
        for reader in readers:
            reader.read("snapshot")
        change(engine, 1)
        for reader in readers:
            assert reader.read("rollout")["change"] == {"n": 1}
        ours = "application_name LIKE 'graph-migrator%' AND pid <> pg_backend_pid()"
        (found,) = rows(
            engine, f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {ours}"
        )[0]
        assert found <= 1


def test_a_client_that_does_not_read_is_dropped_and_hinders_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SEND_SECONDS", 0.5)
    app = application(engine)
    with served(app) as base, reading(base) as good:
        good.read("snapshot")
        lazy = Reader.open(base)
        until(lambda: app.state.stream.clients == 2, "both follow")
        deadline = time.monotonic() + 60
        sent = 0
        while app.state.stream.clients == 2 and time.monotonic() < deadline:
            long_change(engine, sent)
            assert good.read("rollout")["change"]["n"] == sent
            sent += 1
        assert app.state.stream.clients == 1
        lazy.close()


def test_a_client_that_reads_too_slowly_is_dropped_and_misses_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into its queue is never left out in silence: the stream ends, and it comes again."""
    monkeypatch.setattr(streaming, "_QUEUE", 2)
    app = application(engine)
    with served(app) as base, reading(base) as good, reading(base) as slow:
        good.read("snapshot")
        slow.read("snapshot")
        sent = 0
        while not any(client.is_dropped for client in app.state.stream._clients):
            long_change(engine, sent)
            assert good.read("rollout")["change"]["n"] == sent
            sent += 1
        seen = numbers_to_the_end(slow)
        assert seen == list(range(len(seen)))
        assert len(seen) < sent
        with reading(base, last_id=slow.last_id) as again:
            rest = [again.read("rollout")["change"]["n"] for _ in range(sent - len(seen))]
        assert rest == list(range(len(seen), sent))


def test_it_goes_on_when_postgres_has_ended_its_session(base: str, engine: Engine) -> None:
    with reading(base) as reader:
        reader.read("snapshot")
        with engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        change(engine, 1)
        assert reader.read("rollout")["change"] == {"n": 1}


def test_a_client_that_goes_is_forgotten(engine: Engine) -> None:
    app = application(engine)
    with served(app) as base:
        with reading(base) as reader:
            reader.read("snapshot")
            assert app.state.stream.clients == 1
        change(engine, 1)
        until(lambda: app.state.stream.clients == 0, "it is forgotten")


def test_a_stream_ends_for_who_has_lost_the_right_to_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "LONGEST_SECONDS", 1.0)
    monkeypatch.setattr(streaming, "COMMENT_SECONDS", 0.1)
    _, secret = create_token(engine, "ada", Role.VIEWER)
    headers = f"Authorization: Bearer {secret}\r\nConnection: close\r\n"
    services = Services(broker=Notes(), engine=engine, executors=Executors(engine))
    with served(create_app("tokens", services=services)) as base:
        with reading(base, headers=headers) as reader:
            reader.read("snapshot")
            change(engine, 1)
            reader.read("rollout")
            with pytest.raises(AssertionError, match="the stream has ended"):
                reader.read("never", seconds=20)
        change(engine, 2)
        with reading(base, headers=headers, last_id=reader.last_id) as again:
            assert again.read()["change"] == {"n": 2}, "nothing is missed in between"
        revoke_token(engine, "ada")
        with reading(base, headers=headers, last_id=reader.last_id) as refused:
            assert refused.status == 401
