"""A real browser for the report's pages: headless, and without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None or find_spec("selenium") is None,
    reason="NO BROWSER: the report's pages are not tested in one; on Debian, as root: "
    "apt-get install -y chromium chromium-driver; and selenium, which is in the extra `dev`",
)

SCREENSHOTS = os.environ.get("ROTESCALE_SCREENSHOTS")
"""Folder in which tests leave pictures of the pages, for people to look at."""

PHONE, WIDE = 375, 1440
"""Widths in CSS pixels."""


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A headless Chromium that reaches no network, with its own empty profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield found
    finally:
        found.quit()


def show(browser: Any, page: Path, *, width: int, dark: bool = False) -> None:
    """Open the page at that width, in light or dark colours."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    if SCREENSHOTS:
        name = f"{page.parents[1].name}-{width}{'-dark' if dark else ''}.png"
        height = browser.execute_script("return document.documentElement.scrollHeight")
        whole = {**size, "height": min(height, 16000)}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", whole)
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(SCREENSHOTS) / name))
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def column(browser: Any, place: int) -> list[str]:
    """The cells of a column of the paper's table, from the top."""
    cells: list[str] = browser.execute_script(
        "return Array.from(document.querySelectorAll('#paper tbody tr'),"
        " (row) => row.cells[arguments[0]].textContent)",
        place,
    )
    return cells
