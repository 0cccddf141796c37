"""Where headless Chromium is, and how it starts."""

from __future__ import annotations

import os
import shutil

from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
MISSING = f"no browser: set OPENGCL_CHROMIUM, or install one of {', '.join(NAMES)}"


def path() -> str | None:
    """OPENGCL_CHROMIUM, or the first of `NAMES` on the PATH."""
    return os.environ.get("OPENGCL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=path(), args=FLAGS)
