"""The page of a report in a real browser: its script runs, tables sort, pictures enlarge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polypseg.cli import main


@pytest.fixture(scope="module")
def report(browser: Any, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of predictions that are the masks moved aside, one of which marks a frame without a polyp."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "theirs").mkdir()
    for file in sorted((phantom_folder / "masks").iterdir()):
        mask = np.asarray(Image.open(file).convert("L"))
        moved = (
            np.roll(mask, 6, axis=1) if mask.any() else np.pad(np.full((12, 12), 255, np.uint8), ((30, 30), (38, 38)))
        )
        Image.fromarray(moved).save(folder / "theirs" / f"{file.stem}.png")
    arguments = ["evaluate", "--predictions", folder / "theirs", "--data", phantom_folder, "--split", "all"]
    assert main([str(one) for one in (*arguments, "--out", folder / "out")]) == 0
    return folder / "out" / "report.html"


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The page, dark; fails where it raised or logged an error, or asked for another file."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    opened = context.new_page()
    opened.set_default_timeout(15_000)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("request", lambda request: wrong.append(request.url) if not request.url.startswith("data:") else None)
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert wrong == [report.as_uri()]


def test_a_table_sorts_by_a_click_on_its_head(page: Any) -> None:
    table = page.locator("table", has=page.get_by_role("button", name="n", exact=True)).first
    head = table.locator("th", has_text="Dice")
    column = head.evaluate("head => head.cellIndex")

    def cells() -> list[str]:
        found: list[str] = table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
        return found

    given = cells()
    assert len(given) > 3
    ascending = sorted(given, key=float)
    assert given not in (ascending, ascending[::-1])
    for order, expected in (("ascending", ascending), ("descending", ascending[::-1]), (None, given)):
        head.get_by_role("button").press("Enter")
        assert cells() == expected and head.get_attribute("aria-sort") == order
    table.locator("th").first.get_by_role("button").click()
    assert table.locator("[aria-sort]").all_inner_texts() == [table.locator("th").first.inner_text()]


def test_what_has_no_number_stays_last(page: Any) -> None:
    table = page.locator("table.defs")
    page.set_viewport_size({"width": 1280, "height": 800})  # narrow, this table has no head
    head = table.locator("th", has_text="interval").get_by_role("button")
    for _ in range(2):
        head.click()
        cells = table.locator("tbody td:nth-child(3)").all_inner_texts()
        bounds = [cell != "–" for cell in cells]
        assert bounds == sorted(bounds, reverse=True) and True in bounds and False in bounds


def test_a_picture_is_enlarged_by_keyboard_and_mouse(page: Any) -> None:
    buttons, dialog = page.locator("button.enlarge"), page.get_by_role("dialog")
    shown = dialog.get_by_role("img")
    buttons.nth(1).press("Enter")
    assert shown.get_attribute("src") == buttons.nth(1).locator("img").get_attribute("src")
    edge = dialog.get_by_role("button", name="Close").bounding_box()
    assert edge["x"] + edge["width"] <= 390
    page.keyboard.press("ArrowLeft")
    assert shown.get_attribute("src") == buttons.nth(0).locator("img").get_attribute("src")
    page.keyboard.press("ArrowLeft")  # round the end
    assert shown.get_attribute("src") == buttons.last.locator("img").get_attribute("src")
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert buttons.nth(1).evaluate("button => button === document.activeElement")
    page.set_viewport_size({"width": 1280, "height": 800})
    small = page.locator("figure img").first.bounding_box()["width"]
    page.locator("figure button").first.click()
    assert shown.bounding_box()["width"] > 1.5 * small
    shown.click()
    dialog.wait_for(state="hidden")


def test_no_part_of_the_page_is_wider_than_a_phone(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_everything_can_be_read_and_reached(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    assert [(one["id"], [node["html"][:150] for node in one["nodes"]]) for one in found] == []
