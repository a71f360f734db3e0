"""What an error's message and traceback show, in a process without services; with a database: test_secrets.py."""

from __future__ import annotations

import importlib.util
import itertools
import linecache
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from graph_migrator.core.store.redaction import redacted, safe_args, safe_message, safe_traceback

SECRET = "hunter2-hush"
_numbers = itertools.count()

Author = Callable[[str], Exception]


@pytest.fixture
def raised(tmp_path: Path) -> Author:
    """What the function `hop` of an author's module raises."""

    def run(source: str) -> Exception:
        path = tmp_path / f"author_{next(_numbers)}.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each its own
            module.hop(SECRET)
        assert caught.value.__traceback__ is not None
        # Without this module's own frame: the secret is a word of this module.
        return caught.value.with_traceback(caught.value.__traceback__.tb_next)

    return run


def test_a_frame_shows_one_line_of_its_file_as_it_is_written(raised: Author) -> None:
    error = raised("""
        def hop(value):
            return "{}{}".join(
                1, "hunter2-hush",
            )
        """)
    shown = safe_traceback(error)
    assert 'return "{}{}".join(\n' in shown
    assert "in hop" in shown
    assert SECRET not in shown
    assert "^" not in shown


def test_pythons_own_rendering_of_frames_is_not_used(raised: Author, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 3.13 on it prints every line of a statement."""

    def whole_statement(_self: object, frame: traceback.FrameSummary, **_: object) -> str:
        return "".join(linecache.getlines(frame.filename))

    monkeypatch.setattr(traceback.StackSummary, "format_frame_summary", whole_statement)
    error = raised("""
        def hop(value):
            print(1 / 0,
                  "hunter2-hush")
        """)
    assert SECRET in "".join(traceback.format_exception(error))
    assert SECRET not in safe_traceback(error)


def test_the_text_of_generated_code_is_not_shown() -> None:
    source = f"def hop():\n    return {SECRET!r}, 1 / 0\n"
    linecache.cache["<made of data>"] = (len(source), None, source.splitlines(True), "<made of data>")
    names: dict[str, Any] = {}
    exec(compile(source, "<made of data>", "exec"), names)
    with pytest.raises(ZeroDivisionError) as caught:
        names["hop"]()
    assert SECRET in "".join(traceback.format_exception(caught.value))
    shown = safe_traceback(caught.value)
    assert 'File "<made of data>", line 2, in hop' in shown
    assert SECRET not in shown


def test_an_endless_recursion_is_shown_by_its_two_ends(raised: Author) -> None:
    shown = safe_traceback(raised("def hop(value):\n    return hop(value)\n"))
    assert "more frames]" in shown
    assert shown.count("in hop") == 100


@pytest.mark.parametrize(
    "body",
    [
        "int(value)", "float(value)", "[].index(value)", "{}[value]", "{}[int, value]", "open('/nowhere/' + value)",
        "__import__('datetime').date.fromisoformat(value)", "__import__('pathlib').Path(value).read_text()",
        "__import__('zoneinfo').ZoneInfo(value)", "__import__('codecs').lookup(value)",
        "__import__('enum').Enum('Colour', 'red')(value)", "__import__('json').loads(value)",
        "__import__('uuid').UUID(value)", "__import__('decimal').Decimal(value)",
        "__import__('ipaddress').ip_address(value)", "raise KeyError(int(value))", "value.encode().decode('hex')",
    ],
)  # fmt: skip
def test_what_python_could_not_convert_find_or_open_is_hidden(raised: Author, body: str) -> None:
    error = raised(f"def hop(value):\n    {body}\n")
    shown = f"{safe_message(error)} {safe_args(error)} {safe_traceback(error)} {redacted(error)}"
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError(\"'this' is kept\")", "'this' is kept"),
        ("raise ValueError(\n        f\"no '{'such'}' thing\"\n    )", "no 'such' thing"),
        ("raise KeyError('email')", "'email'"),
        ("{}['email']", "'email'"),
        ("[{}[name] for name in NAMES]", "'surname'"),
        ("open('/nowhere/at.all')", "[Errno 2] No such file or directory: '/nowhere/at.all'"),
        ("int('seven')", "invalid literal for int() with base 10: 'seven'"),
        ("{}.email", "'dict' object has no attribute 'email'"),
    ],
)
def test_what_stands_in_the_authors_code_is_shown(raised: Author, body: str, message: str) -> None:
    error = raised(f"NAMES = ['surname']\n\ndef hop(value):\n    {body}\n")
    assert safe_message(error) == message
    assert redacted(error) is error


def test_a_hidden_key_travels_as_a_key_error(raised: Author) -> None:
    error = raised("def hop(value):\n    {}[value]\n")
    assert safe_message(error) == "'…'"
    assert safe_args(error) == ["…"]
    assert str(KeyError(*safe_args(error) or ())) == safe_message(error)


def test_the_authors_words_are_known_without_debug_ranges(tmp_path: Path) -> None:
    (tmp_path / "hop.py").write_text(
        "from graph_migrator.core.store.redaction import safe_message\n"
        "def authored():\n    raise ValueError(\"'kept'\" + '!')\n"
        "def pythons(value):\n    int(value)\n"
        "import sys\n"
        "for hop, arguments in ((authored, ()), (pythons, sys.argv[1:])):\n"
        "    try:\n        hop(*arguments)\n"
        "    except ValueError as error:\n        print(safe_message(error))\n"
    )
    command = [sys.executable, "-X", "no_debug_ranges", str(tmp_path / "hop.py"), SECRET]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert ran.stdout.splitlines() == ["'kept'!", "invalid literal for int() with base 10: '…'"]


def test_an_error_of_another_database_hides_what_it_quotes() -> None:
    engine = create_engine("sqlite://", poolclass=NullPool)  # closed with the connection
    with engine.connect() as connection:
        with pytest.raises(Exception, match=SECRET) as caught:
            connection.execute(text(f'SELECT "{SECRET}" FROM sqlite_master, "{SECRET}"'))
        connection.execute(text("CREATE TABLE t (a text UNIQUE)"))
        insert = text("INSERT INTO t VALUES (:a)")
        connection.execute(insert, {"a": SECRET})
        with pytest.raises(IntegrityError) as unique:
            connection.execute(insert, {"a": SECRET})
    assert safe_message(unique.value) == "sqlite3.IntegrityError: UNIQUE constraint failed: t.a"
    assert safe_message(caught.value).startswith("sqlite3.OperationalError: no such table")
