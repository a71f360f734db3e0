"""Edges to missing nodes are refused, checked at once or row by row, and whoever else writes is checked as before."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from graph_migrator.core.errors import DanglingEdges
from graph_migrator.core.interchange import import_graph
from graph_migrator.core.interchange.edge_ends import EdgeEnds
from graph_migrator.core.store.connections import make_engine

SOUND = [{"id": "a"}, {"id": "b"}], [{"source": "a", "target": "b"}]
TRIGGER = """
CREATE TABLE public.seen (id text);
CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.seen VALUES (NEW.id); RETURN NULL; END $$;
CREATE TRIGGER see AFTER INSERT ON graph_migrator.edges FOR EACH ROW EXECUTE FUNCTION public.see();
"""
FOREIGN_KEY = """
CREATE TABLE public.labels (label text PRIMARY KEY);
INSERT INTO public.labels VALUES ('Node');
ALTER TABLE graph_migrator.nodes ADD CONSTRAINT known FOREIGN KEY (label) REFERENCES public.labels;
"""


def load(engine: Engine, nodes: list[Any], edges: list[Any]) -> None:
    document = io.BytesIO(json.dumps({"nodes": nodes, "edges": edges}).encode())
    import_graph(engine, document, slug="g", graph_type="knowledge", version=1)


@pytest.fixture
def regimes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each import checked its edges at once."""
    seen: list[bool] = []
    begin = EdgeEnds.begin

    def watched(self: EdgeEnds) -> None:
        begin(self)
        seen.append(self.at_once)

    monkeypatch.setattr(EdgeEnds, "begin", watched)
    return seen


def as_plain_role(engine: Engine) -> Engine:
    """A role that may write the tables and no more."""
    with engine.begin() as connection:
        name = f"plain_{connection.scalar(text('SELECT current_database()'))}"
        for statement in (
            f"CREATE ROLE {name} LOGIN PASSWORD 'x'",
            f"GRANT USAGE ON SCHEMA graph_migrator TO {name}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA graph_migrator TO {name}",
        ):
            connection.execute(text(statement))
    url = make_url(engine.url).set(username=name, password="x")
    return make_engine(url.render_as_string(hide_password=False))


def test_a_superuser_checks_at_once_and_a_plain_role_row_by_row(engine: Engine, regimes: list[bool]) -> None:
    plain = as_plain_role(engine)
    for each in (engine, plain):
        for edge in (
            {"source": "a", "target": "x"},
            {"source": "x", "target": "a"},
            {"source": "y", "target": "x"},
        ):
            with pytest.raises(DanglingEdges) as caught:
                load(each, SOUND[0], [*SOUND[1], edge])
            assert caught.value.count == 1
    load(plain, *SOUND)
    assert regimes == [True] * 3 + [False] * 4
    plain.dispose()


@pytest.mark.parametrize("addition", [TRIGGER, FOREIGN_KEY])
def test_what_an_application_hangs_on_the_tables_fires(
    engine: Engine, regimes: list[bool], addition: str
) -> None:
    with engine.begin() as connection:
        connection.execute(text(addition))
    load(engine, *SOUND)
    assert regimes == [False]
    if addition is TRIGGER:
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM public.seen")) == 1
        return
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM graph_migrator.graphs"))
    with pytest.raises(Exception, match="known"):
        load(engine, [{"id": "a", "label": "Other"}], [])


@pytest.mark.parametrize("end", ["source", "target"])
def test_the_constraints_hold_for_whoever_writes_afterwards(
    engine: Engine, regimes: list[bool], end: str
) -> None:
    load(engine, *SOUND)
    assert regimes == [True]
    with pytest.raises(IntegrityError, match=f"edges_{end}_is_a_node"), engine.begin() as connection:
        connection.execute(text(f"UPDATE graph_migrator.edges SET {end} = 'away'"))
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("DELETE FROM graph_migrator.nodes WHERE id = 'a'"))
    with engine.begin() as connection:  # deleting the graph takes its rows along
        connection.execute(text("DELETE FROM graph_migrator.graphs"))
        assert connection.scalar(text("SELECT count(*) FROM graph_migrator.edges")) == 0
