"""`graph-migrator --help` lists what there is, and loads nothing for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from graph_migrator.tasks.cli.main import GROUPS, main

COMMANDS = {name: text for commands in GROUPS.values() for name, text in commands.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says_of_itself(name: str) -> None:
    assert main.commands[name].name == name
    assert main.commands[name].get_short_help_str(200) == COMMANDS[name]


def test_every_command_stands_in_one_group_and_no_other_is_known() -> None:
    assert sum(map(len, GROUPS.values())) == len(COMMANDS) == len(main.commands)
    with pytest.raises(KeyError):
        main.commands["unheard-of"]


@pytest.mark.parametrize(
    ("command", "unloaded"),
    [
        ("['--help']", {"celery", "kombu", "sqlalchemy", "alembic", "pydantic", "rich", "psycopg2"}),
        ("['status', '--help']", {"celery", "kombu", "alembic"}),
        ("['graphs', '--help']", {"celery", "kombu", "alembic"}),
        ("['history', '--help']", {"celery", "kombu", "alembic"}),
    ],
)
def test_a_command_loads_only_what_it_needs(command: str, unloaded: set[str]) -> None:
    script = (
        "import sys\nfrom graph_migrator.tasks.cli import main\n"
        f"try: main({command})\nexcept SystemExit: pass\n"
        f"print(sorted(set({sorted(unloaded)!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("words", "completed"), [("st", ["status"]), ("", [*COMMANDS]), ("--de", ["--debug"])], ids=repr
)
def test_completion_lists_the_commands_and_loads_none_of_them(words: str, completed: list[str]) -> None:
    script = (
        "import sys\nfrom graph_migrator.tasks.cli import main\n"
        "try: main(prog_name='graph-migrator', complete_var='_COMPLETE')\nexcept SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if 'sqlalchemy' in m or '.cli.' in m), file=sys.stderr)"
    )
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "_COMPLETE": "bash_complete",
        "COMP_WORDS": f"graph-migrator {words}",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == completed
    assert done.stderr == "['graph_migrator.tasks.cli.main']\n"
