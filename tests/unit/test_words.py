"""The words that docs/glossary.md retires stay out of code, messages and pages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RETIRED = re.compile(
    r"(?<![a-z])("
    r"tells?|told|telling|tellable|disclosure|rings?|doorbells?|checkup|killpoints?|loose|walked|walks"
    r"|put[s_ ]?( it| them| its message| the message)?[ _]back|taken?[ _]up|took[ _]up"
    r"|g[ai]v(e|es|en|ing)[ _](it |them )?(up|back)|half[ _-]done|two shapes|drain(ed|ing)"
    r"|own_rows|edges_aside|counted_from|later_begun|not to be had|without a word"
    r")(?![a-z])",
    re.IGNORECASE,
)
NAMES_THE_WORDS = {"docs/glossary.md", "tests/unit/test_words.py", "LICENSE"}
# Where a word is somebody else's: (file, what the line has).
LEGITIMATE = {
    ("tests/integration/test_interchange.py", "self.tell()"),  # a file's position
}


def texts() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    kinds = {".py", ".md", ".sql", ".toml", ".yml", ".txt", ".json", ".cfg", ""}
    found = (ROOT / name for name in listed.stdout.splitlines() if name not in NAMES_THE_WORDS)
    return [path for path in found if path.suffix in kinds and path.is_file() and not path.is_symlink()]


def test_no_retired_word_is_used() -> None:
    used = []
    for path in texts():
        name = path.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            allowed = any(file == name and part in line for file, part in LEGITIMATE)
            if RETIRED.search(line) and not allowed:
                used.append(f"{name}:{number}: {line.strip()[:150]}")
    assert not used, "\n".join(used)


@pytest.mark.parametrize(
    "text",
    [
        "it is told so",
        "def telling(",
        "put back",
        "give_up",
        "taken up",
        "forced loose",
        "half-done",
        "rings = 0",
    ],
)
def test_a_retired_word_is_found(text: str) -> None:
    assert RETIRED.search(text)


@pytest.mark.parametrize(
    "text", ["string", "metrics", "ast.walk(tree)", "giveaway", "a tolled bell", "looser"]
)
def test_other_words_pass(text: str) -> None:
    assert not RETIRED.search(text)
