"""Every code block in README.md and docs/ runs, in the order in which a reader meets them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from graph_migrator.core.embedded import Redis
from graph_migrator.tasks.cli import main
from graph_migrator.tasks.metrics import METRICS
from graph_migrator.tasks.serving import FLOWER_COLUMNS
from tests.acceptance.cluster import ROOT, Cluster
from tests.fork_server import fork_and_wait

PAGES = (
    "README.md", "docs/tutorial.md", "docs/how-to.md", "docs/write-guard.md", "docs/events.md", "docs/formats.md",
    "docs/monitoring.md", "docs/operations.md", "docs/brokers.md", "docs/benchmarks.md", "docs/architecture.md",
    "docs/console.md",
)  # fmt: skip

RUN_ELSEWHERE = {
    "make demo": "tests/acceptance/test_demo.py",
    "make test": "this is it",
    "graph-migrator dev": "tests/acceptance/test_demo.py; here the cluster stands in for it",
    'eval "$(graph-migrator env)"': "the cluster's environment is set below",
    "export GRAPH_MIGRATOR_TYPES=people:people": "likewise",
    **dict.fromkeys(
        (
            "graph-migrator rollout plan tenants --all",
            "graph-migrator rollout start tenants --all",
            "graph-migrator rollout show tenants",
            "graph-migrator rollout errors tenants",
        ),
        "tests/acceptance/test_move_a_fleet.py",
    ),
    "pip install 'graph-migrator[console]'": "tests/acceptance/test_package.py holds the wheel",
    "graph-migrator console": "tests/acceptance/test_browser.py",
    "celery -A graph_migrator worker -Q migrations -c 4": "tests/acceptance/test_deploys.py",
    "CELERY_BROKER_URL=amqp://user:password@host:5672//": "tests/acceptance/test_rabbitmq.py",
    "CELERY_RESULT_BACKEND=db+postgresql+psycopg2://user:password@host/database": "tests/acceptance/test_rabbitmq.py",
    "celery -A graph_migrator worker -Q migrations --metrics-port 9464": "tests/acceptance/test_metrics.py",
    'FLOWER_BASIC_AUTH="operator:$FLOWER_PASSWORD" celery -A graph_migrator flower --address=127.0.0.1 '
    f"--tasks-columns={FLOWER_COLUMNS}": "tests/acceptance/test_flower.py",
}

PREAMBLE = """
import os
from sqlalchemy import text
from sqlalchemy.orm import Session
from graph_migrator.core.store.connections import make_engine
session = Session(make_engine(os.environ["DATABASE_URL"]))
rename_ada = text("UPDATE nodes SET properties = properties || '{\\"last_name\\": \\"King\\"}' "
                  "WHERE graph_id = :graph AND id = 'ada'")
"""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(page, language, text) for language, text in found]


@pytest.fixture
def reader(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[tuple[Path, dict[str, str]]]:
    """A reader's folder with the README's files in it, and an environment in which everything runs."""
    folder = tmp_path / "reader"
    folder.mkdir()
    for block in blocks("README.md"):
        if block.text.startswith("# people.py"):
            (folder / "people.py").write_text(block.text)
        elif block.language == "json":
            (folder / "people.jsonl").write_text(block.text)
    path = f"{folder}{os.pathsep}{ROOT}"
    environment = {
        "PYTHONPATH": path,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with Cluster(
        tmp_path / "cluster",
        database_url=database_url,
        redis=redis_server,
        types="people:people",
        env={"PYTHONPATH": path},
    ) as cluster:
        cluster.start_worker()
        services = {
            "DATABASE_URL": cluster.database_url,
            "CELERY_BROKER_URL": redis_server.url,
            "CELERY_RESULT_BACKEND": redis_server.url.removesuffix("/0") + "/1",
            "GRAPH_MIGRATOR_TYPES": "people:people",
        }
        yield folder, os.environ | environment | services


@pytest.mark.timeout(240)
def test_every_block_of_the_documents_runs(reader: tuple[Path, dict[str, str]]) -> None:
    folder, environment = reader
    ran = 0
    for block in (block for page in PAGES for block in blocks(page)):
        match block.language:
            case "console":
                for line in block.text.splitlines():
                    assert line.startswith("$ "), f"{block.page}: {line!r} is no command"
                    command = line.removeprefix("$ ")
                    if command not in RUN_ELSEWHERE:
                        run(command, folder, environment, block.page)
                        ran += 1
            case "python":
                ran += run_python(block, folder, environment)
            case "json":
                ran += run_import(block, folder, environment)
            case "sh" | "":
                for command in re.sub(r"\\\n\s*", "", block.text).splitlines():
                    require_command(re.sub(r"\s+#.*", "", command), block.page)
            case "text":  # what was seen once; the commands must exist
                for line in block.text.splitlines():
                    if line.startswith("$ "):
                        require_command(line.removeprefix("$ "), block.page)
            case "promql":
                named = set(re.findall(r"graph_migrator_\w+", block.text))
                assert named
                assert named <= METRICS.keys()
            case "mermaid":
                assert block.page == "docs/architecture.md", (
                    "tests/unit/test_architecture.py holds its drawings"
                )
            case "toml":
                assert tomllib.loads(block.text)
            case other:
                raise AssertionError(f"{block.page}: a block of {other!r} that nobody runs")
    assert ran > 15


def run_import(block: Block, folder: Path, environment: dict[str, str]) -> int:
    """A graph of a page is imported; the README's own is imported by the README."""
    if block.page == "README.md":
        return 0
    slug = f"of-{block.page[5:-3]}-{len(block.text)}"
    kind = "jsonl" if block.text.startswith('{"kind"') else "json"
    file = folder / f"{slug}.{kind}"
    file.write_text(block.text)
    command = f"graph-migrator import {file} --slug {slug} --type people --version 1"
    run(command, folder, environment, block.page)
    return 1


def require_command(command: str, page: str) -> None:
    """What a page shows for other places than this is there, and run by the test that is named."""
    match command.split():
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), command
        case ["python", "-m", module]:
            assert find_spec(module), command
        case _:
            assert (ROOT / RUN_ELSEWHERE.get(command, "")).is_file(), f"{page}: nobody runs {command!r}"


def run_python(block: Block, folder: Path, environment: dict[str, str]) -> int:
    name = re.match(r"# (\w+\.py)\n", block.text)
    if "graph_repair(" in block.text:  # needs a graph whose migration has failed
        assert "how-to.md" in (ROOT / "tests" / "integration" / "test_repair.py").read_text("utf-8")
        return 0
    if name is None:
        (folder / "shown.py").write_text(PREAMBLE + block.text)
        run_module("shown", [], folder, environment, block.page)
    elif name[1].startswith("test_"):
        (folder / name[1]).write_text(block.text)
        run_module("pytest", ["-q", "-p", "no:cacheprovider", name[1]], folder, environment, block.page)
    else:
        assert (folder / name[1]).read_text() == block.text
    return 1


def run(command: str, folder: Path, environment: dict[str, str], page: str) -> None:
    words = shlex.split(command)
    if words[0] == "graph-migrator" and not set(command) & set("|<>$&;*"):
        run_module("graph_migrator", words[1:], folder, environment, page)
        return
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{page}: {command}\n{done.stdout}\n{done.stderr}"


def run_module(
    module: str, arguments: list[str], folder: Path, environment: dict[str, str], page: str
) -> None:
    done = fork_and_wait(module, *arguments, env=environment, cwd=folder)
    assert done.exit_code == 0, f"{page}: {module} {arguments}\n{done.out}\n{done.err}"


def test_every_page_with_code_is_run() -> None:
    pages = ("README.md", *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")))
    assert {page for page in pages if blocks(page)} == {*PAGES, "docs/move-a-fleet.md"}
    assert "move-a-fleet.md" in (ROOT / "tests" / "acceptance" / "test_move_a_fleet.py").read_text("utf-8")


def shown_commands() -> Iterator[tuple[str, str]]:
    """Every `graph-migrator …` that a sentence of a page or a message of the code shows, and where."""
    pages = (ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md"))
    code = (path for folder in ("core", "tasks", "examples") for path in (ROOT / folder).rglob("*.py"))
    for path in (*pages, *code):
        for command in re.findall(r'`graph-migrator ([^`"\n]+)`', path.read_text("utf-8")):
            yield command, str(path.relative_to(ROOT))


def test_every_command_that_a_sentence_shows_is_one_that_can_be_given() -> None:
    found = sorted(set(shown_commands()))
    assert len(found) > 40
    for command, where in found:
        words = shlex.split(command)
        group, name = main, "graph-migrator"
        while isinstance(group, click.Group) and words and words[0] in group.commands:
            name = words.pop(0)
            group = group.commands[name]
        if words[:1] == ["COMMAND"] or "--debug" in words:
            words = [word for word in words if word != "COMMAND"]
        try:
            _, left, _ = group.make_parser(click.Context(group, info_name=name)).parse_args(words)
        except click.UsageError as error:
            raise AssertionError(f"{where}: `graph-migrator {command}`: {error.message}") from None
        assert left == [], f"{where}: `graph-migrator {command}` has too many words: {left}"


def test_the_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, "run: python docs/generate.py"


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not target.startswith(("http:", "https:")) and not (page.parent / target).exists()
    ]
    assert broken == []
