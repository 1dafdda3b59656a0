"""The built site: no warning, no dead link, nothing wider than the screen."""

import subprocess
import sys
from pathlib import Path

import pytest

from ubrain.report import site

ROOT = Path(__file__).parents[2]
PAGES = ("index", "docs/claims", "docs/dashboard", "docs/api", "notebooks/01_crowd_gains")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site, with a stand-in for the explorer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        folder = tmp_path_factory.mktemp("site")
        site.sources(folder / "sources")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(ROOT / "docs")]
    done = subprocess.run(
        [*command, str(folder / "sources"), str(folder / "site")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (folder / "site/explorer.html").write_text("<title>x</title>")
    return folder / "site"


def test_every_link_leads_somewhere(built):
    assert site.check(built) == []


@pytest.mark.parametrize("width", [1400, 420])
def test_pages_fit_the_screen_without_an_error(built, browser, complaints, width):
    browser.set_window_size(width, 1000)
    for page in PAGES:
        browser.get((built / f"{page}.html").as_uri())
        wide = "return document.scrollingElement.scrollWidth - window.innerWidth"
        assert browser.execute_script(wide) <= 0, page
    # a theme that finds no setting of an earlier visit says so, and takes its default
    assert [
        c for c in complaints() if "Invalid theme mode" not in c and "theme mode" not in c
    ] == []


def test_rows_can_be_filtered(built, browser):
    browser.get((built / "docs/dashboard.html").as_uri())
    box = browser.find_element("css selector", ".scroll input")
    rows = browser.find_elements("css selector", ".scroll tbody")[0].find_elements("tag name", "tr")
    box.send_keys("voxels S1")
    shown = [row.text for row in rows if row.is_displayed()]
    assert shown
    assert all("S1" in row and "voxels" in row for row in shown)
