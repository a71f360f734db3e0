"""An import reads the next chunk while Postgres takes the one before; nothing else is different by that."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest
from sqlalchemy import Engine

from graph_migrator.core.errors import InvalidRecord
from graph_migrator.core.interchange import import_graph, loading
from tests.rows import rows


def lines(*ids: str) -> bytes:
    made = ({"kind": "node", "id": id_, "label": "N", "properties": {}} for id_ in ids)
    return "".join(json.dumps(each) + "\n" for each in made).encode()


def load(engine: Engine, data: bytes, **options: Any) -> Any:
    return import_graph(engine, io.BytesIO(data), slug="g", graph_type="t", version=1, **options)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_CHUNK_ROWS", 2)


def test_the_next_chunk_is_read_while_one_is_sent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    was_read = threading.Event()
    send = loading.Loader._send
    add = loading.Loader._add_node

    def send_late(loader: Any, chunk: Any, chunk_rows: Any) -> None:
        assert was_read.wait(30), "nothing was read meanwhile"
        send(loader, chunk, chunk_rows)

    def add_and_note(loader: Any, node: Any) -> None:
        add(loader, node)
        if node.id == "c":  # the first of the second chunk
            was_read.set()

    monkeypatch.setattr(loading.Loader, "_send", send_late)
    monkeypatch.setattr(loading.Loader, "_add_node", add_and_note)
    assert load(engine, lines("a", "b", "c", "d", "e")).nodes == 5


def test_an_error_in_the_chunk_before_comes_before_one_of_the_reader(engine: Engine) -> None:
    with pytest.raises(InvalidRecord, match=r":2: id: 'a' is already the id of another node"):
        load(engine, lines("a", "a") + b'{"kind": "node"}\n')
    assert not rows(engine, "SELECT 1 FROM graphs")


def test_progress_is_reported_in_the_callers_thread_and_may_end_the_import(engine: Engine) -> None:
    seen: list[tuple[int, threading.Thread]] = []

    def note(nodes: int, _edges: int) -> None:
        seen.append((nodes, threading.current_thread()))
        if nodes == 4:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        load(engine, lines(*"abcdefgh"), on_progress=note)
    assert seen == [(2, threading.main_thread()), (4, threading.main_thread())]
    assert not rows(engine, "SELECT 1 FROM graphs")
