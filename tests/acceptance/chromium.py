"""The system's Chromium, driven by Playwright; and axe-core, which finds faults of accessibility in a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_AXE = Path(__file__).parent / "vendor" / "axe-core-4.14.1.min.js"
_SERIOUS = {"serious", "critical"}


def chromium_program() -> str | None:
    """The browser's program; None where there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=chromium_program(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        try:
            yield launched
        finally:
            launched.close()


def faults(page: Any) -> list[str]:
    """Serious faults of accessibility in a page, each with the first element that has it."""
    # Evaluated by the debugger's protocol, so the page's own Content-Security-Policy is left as it is.
    page.evaluate(_AXE.read_text("utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {each['help']}: {each['nodes'][0]['html'][:150]}"
        for each in found["violations"]
        if each["impact"] in _SERIOUS
    ]
