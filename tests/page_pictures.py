"""The documentation's pictures of the search page, from a server that runs with two models on fashion-small.

python -m tests.page_pictures http://127.0.0.1:8000
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests import chromium

OUT = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDE, PHONE = (1280, 860), (390, 844)
SHOTS = {
    "page-light": ({"q": "red heels", "minus": "sandals", "f.year": "2011..2013"}, WIDE, "light"),
    "page-dark": ({"q": "winter yellow handbags for women", "doc": ""}, WIDE, "dark"),
    "page-compare": ({"q": "winter red heels for women", "view": "compare"}, WIDE, "light"),
    "page-phone": ({"q": "orange handbags"}, PHONE, "light"),
}


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = chromium.launch(playwright)
        for name, (query, size, scheme) in SHOTS.items():
            picture = Image.open(io.BytesIO(taken(browser, url, query, size, scheme))).convert("RGB")
            file = OUT / f"{name}.png"
            picture.save(file, optimize=True)
            print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")
        browser.close()


def taken(browser: Browser, url: str, query: dict[str, str], size: tuple[int, int], scheme: str) -> bytes:
    viewport = {"width": size[0], "height": size[1]}
    page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    page.goto(f"{url}/?{urlencode({key: value for key, value in query.items() if value})}")
    seen(page, "#results .shot.there img")
    if "doc" in query:
        page.locator("#results .grid a").nth(1).click()
        seen(page, "dialog .grid .shot.there img")
        page.mouse.move(0, 0)
    shot = page.screenshot()
    page.close()
    return shot


def seen(page: Page, selector: str) -> None:
    """Waits for pictures, which are loaded when they come into view."""
    page.locator(selector).first.wait_for()
    page.wait_for_timeout(1500)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
