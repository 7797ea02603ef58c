"""The installed Chromium or Chrome, driven by playwright: it prints decks, draws figures, and tests pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
MISSING = "no Chromium or Chrome found: sudo apt-get install chromium (or set CHROME to the program)"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def executable() -> str | None:
    """Any installed Chromium or Chrome: ``$CHROME``, or a usual name; None if there is none."""
    if os.environ.get("CHROME"):
        return os.environ["CHROME"]
    return next(filter(None, map(shutil.which, NAMES)), MAC if Path(MAC).exists() else None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser without a window; closed on leaving."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=executable(), args=FLAGS)
        try:
            yield running
        finally:
            running.close()
