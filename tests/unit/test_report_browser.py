"""The pages in a real browser: nothing is loaded, all is seen, on a phone and on a wide screen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_helpers import SCREENSHOTS

from rotescale.run_dir import RunDir
from rotescale.study_runner import StudyDir

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="NO BROWSER: the report's pages are not tested in one; on Debian, as root: "
    "apt-get install -y chromium chromium-driver",
)

PHONE, WIDE = 375, 1440


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless browser that reaches no network."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("browser")
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield found
    found.quit()


@pytest.fixture(params=["run", "study"])
def page(request: pytest.FixtureRequest) -> Path:
    """The page of a run, whose facts' names are made to break it, and of a study."""
    if request.param == "run":
        run: RunDir = request.getfixturevalue("reported_run")
        return run.node_dir / "report" / "index.html"
    study: StudyDir = request.getfixturevalue("reported_study")
    return study.root / "report" / "index.html"


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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, WIDE])
def test_a_page_opens_whole(browser: Any, page: Path, width: int, dark: bool) -> None:
    show(browser, page, width=width, dark=dark)
    assert browser.get_log("browser") == []
    widths = browser.execute_script(
        "return Array.from(document.images, (i) => [i.complete, i.naturalWidth, i.clientWidth])"
    )
    assert widths
    assert all(complete and natural > 0 and shown > 250 for complete, natural, shown in widths)
    over = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert over <= 0
    # The names of facts try to run scripts.
    assert browser.execute_script("return window.hit === undefined")


def test_colours_follow_the_readers_choice(browser: Any, page: Path) -> None:
    seen = []
    for dark in (False, True):
        show(browser, page, width=WIDE, dark=dark)
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        seen.append((ground, browser.execute_script("return document.images[0].currentSrc")))
    assert seen[0][0] == "rgb(255, 255, 255)"
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def column(browser: Any, place: int) -> list[str]:
    """The cells of a column of the paper's table, from the top."""
    cells: list[str] = browser.execute_script(
        "return Array.from(document.querySelectorAll('#paper tbody tr'),"
        " (row) => row.cells[arguments[0]].textContent)",
        place,
    )
    return cells


def test_a_click_or_a_key_on_a_heading_sorts(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, page, width=WIDE)
    headings = browser.find_elements("css selector", "#paper th button")
    epochs = column(browser, 1)
    assert epochs == sorted(epochs, key=int)
    headings[1].click()
    headings[1].click()
    assert column(browser, 1) == sorted(epochs, key=int, reverse=True)
    state = "return document.querySelectorAll('#paper th')[arguments[0]].getAttribute('aria-sort')"
    assert browser.execute_script(state, 1) == "descending"
    headings[5].send_keys(Keys.ENTER)
    shown = [float(text.partition("[")[0]) for text in column(browser, 5)]
    assert shown == sorted(shown)
    assert browser.execute_script(state, 5) == "ascending"
    assert browser.execute_script(state, 1) is None


def test_wide_tables_scroll_inside_their_box(browser: Any, page: Path) -> None:
    show(browser, page, width=PHONE)
    boxes = browser.execute_script(
        "return Array.from(document.querySelectorAll('.box'),"
        " (box) => [box.clientWidth, box.scrollWidth, box.tabIndex])"
    )
    assert any(inner > outer for outer, inner, _ in boxes)
    assert all(outer <= PHONE and index == 0 for outer, _, index in boxes)
