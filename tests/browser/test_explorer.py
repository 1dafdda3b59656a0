"""The explorer as people click it."""

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import WebDriverWait

from ubrain.exchange.transfers import open_encoder
from ubrain.report import explorer
from ubrain.report.lab import Lab


@pytest.fixture(scope="module")
def found(explorable):
    folder, crowd = explorable
    lab = Lab("98_test", str(crowd), "smoke")
    encoder, lab.source = open_encoder(folder, lab.crowd)
    return explorer.gather(lab, encoder)


@pytest.fixture
def opened(browser, found, tmp_path):
    (tmp_path / "page.html").write_text(explorer.page(found), encoding="utf-8")
    browser.get((tmp_path / "page.html").as_uri())
    wait(browser, lambda: heading(browser))
    return browser


def wait(browser, condition):
    WebDriverWait(browser, 30).until(lambda _: condition())


def heading(browser) -> str:
    return browser.execute_script("return document.getElementById('who')?.textContent ?? ''")


def figure(browser, name):
    """The figure of a subject, by number, or the map."""
    parent = "#map" if name == "map" else f"#pictures > div:nth-child({name + 1})"
    return browser.find_element("css selector", f"{parent} .bk-Figure")


def click(browser, name, place, size) -> None:
    """Click at a place in mm."""
    box = figure(browser, name)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    r = browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", box)
    x = r["left"] + place[0] / size[0] * r["width"]
    y = r["bottom"] - place[1] / size[1] * r["height"]
    chain = ActionChains(browser)
    chain.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    chain.w3c_actions.pointer_action.click()
    chain.perform()


def changes(browser, names, action) -> bool:
    """Whether an action changes what is drawn of these subjects."""
    before = [figure(browser, n).screenshot_as_base64 for n in names]
    action()

    def changed():
        return all(
            figure(browser, n).screenshot_as_base64 != b for n, b in zip(names, before, strict=True)
        )

    wait(browser, changed)
    return True


def test_it_opens_with_a_voxel(opened, found, complaints):
    row = found.voxels.iloc[found.first]
    assert heading(opened).startswith(f"{row['subject']}, voxel {row['voxel']}")
    shown = opened.find_elements("css selector", "#card .thumb")
    assert len(shown) == 1 + explorer.LOOKS + 2 * explorer.BEST
    assert complaints() == []


def test_a_click_on_a_cortex_shows_the_voxel_and_lights_up_the_others(opened, found, complaints):
    picture, mine = found.pictures["S2"], found.voxels["subject"] == "S2"
    rows, columns = (picture.pixels >= len(explorer.GROUND)).nonzero()
    row, column = rows[len(rows) // 2], columns[len(rows) // 2]
    number = picture.pixels[row, column] - len(explorer.GROUND)
    row_of_it = found.voxels[mine].iloc[number]
    place = (column + 0.5) * explorer.PIXEL, (row + 0.5) * explorer.PIXEL
    assert changes(opened, [0, 1, 2], lambda: click(opened, 1, place, picture.size))
    assert heading(opened).startswith(f"S2, voxel {row_of_it['voxel']}")
    table = opened.find_element("css selector", "#card table").text
    assert "S1, voxel" in table
    assert "S2, voxel" not in table
    assert complaints() == []


def test_a_click_on_the_map_lights_up_the_other_subjects(opened, found, complaints):
    at = explorer._on_map(found.places)
    chosen = len(at) - 1  # of the last subject
    size = (explorer.MAP, explorer.MAP)
    assert changes(opened, [0, 1, 2], lambda: click(opened, "map", at[chosen], size))
    assert heading(opened).startswith(f"S3, voxel {found.voxels['voxel'][chosen]}")
    assert complaints() == []


def test_a_click_on_a_cluster_shows_all_its_voxels_and_images(opened, found, complaints):
    last = found.clusters.n_clusters - 1
    button = opened.find_element("css selector", f"[data-cluster='{last}']")
    assert changes(opened, [0, 1, 2, "map"], button.click)
    assert heading(opened).startswith(f"Cluster {found.clusters.titles[last]}")
    assert f"{found.clusters.sizes[last]} voxels" in heading(opened)
    assert len(opened.find_elements("css selector", "#card .thumb")) == explorer.OF_CLUSTER
    assert complaints() == []


def test_colours_show_the_score(opened, complaints):
    button = opened.find_element("css selector", "[data-mode='r']")
    assert changes(opened, [0, 1, 2, "map"], button.click)
    assert button.get_attribute("aria-pressed") == "true"
    assert complaints() == []
