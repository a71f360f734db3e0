"""`graph-migrator new-type`: a type and its test, to start from."""

from __future__ import annotations

import re
from pathlib import Path

import click

from graph_migrator.core.errors import InvalidRequest

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


_TEMPLATES = Path(__file__).parent / "templates"


@click.command("new-type")
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the module goes; by default here.",
)
def new_type(name: str, folder: Path) -> None:
    """Write a graph type NAME with its first hop, and a test that passes."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "NAME", "must be lower-case letters, digits, _ and -, a letter first, at most 63"
        )
    module = name.replace("-", "_")
    code, test = folder / f"{module}.py", folder / f"test_{module}.py"
    for path in (code, test):
        if path.exists():
            raise InvalidRequest("NAME", f"{path} exists already and is left as it is")
    folder.mkdir(parents=True, exist_ok=True)
    dotted = ".".join([*_packages(folder.resolve()), module])
    for path, template in ((code, "graph_type.txt"), (test, "test_graph_type.txt")):
        text = (_TEMPLATES / template).read_text()
        text = text.replace("$variable", module).replace("$module", dotted).replace("$name", name)
        path.write_text(text)
    click.echo(f"{code}\n{test}")
    click.echo(f"Run its test:   python -m pytest {test}", err=True)
    click.echo(f"Make it known:  export GRAPH_MIGRATOR_TYPES={dotted}:{module}", err=True)


def _packages(folder: Path) -> list[str]:
    """The packages that a module in this folder belongs to, from the outermost."""
    if not (folder / "__init__.py").exists():
        return []
    return [*_packages(folder.parent), folder.name]
