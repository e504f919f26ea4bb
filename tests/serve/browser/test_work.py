"""The page as a tool to annotate with, in a real browser: the editor, sets, other people, outages, long lists."""

from __future__ import annotations

import base64
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from polypseg.bundle import ModelBundle
from polypseg.data import read_all
from polypseg.inference.prompting import Click, grow, grow_in_box

from .conftest import write_film
from .test_page import give, kept, read, shown

Visit = Callable[..., Any]
LABELS = "classes: [polyp, adenoma]\nattributes:\n  paris: [Ip, Is]\n  remark: []\n"
ANNA, BOB = "anna-0123456789abcdef", "bob-0123456789abcdef"


@pytest.fixture(scope="module")
def service(browser: Any, start: Callable[..., Any], model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with labels and two people; ``web`` is anna's."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "labels.yaml").write_text(LABELS)
    (folder / "tokens").write_text(f"anna {ANNA}\nbob {BOB}\n")
    (folder / "tokens").chmod(0o600)
    options = ("--labels", str(folder / "labels.yaml"), "--tokens", str(folder / "tokens"))
    service = start(folder / "state", "--model", str(model), *options)
    service.web.headers["authorization"] = f"Bearer {ANNA}"
    return service


@pytest.fixture
def enter(visit: Visit) -> Visit:
    """Opens the page and gives it a token, anna's by default."""

    def opened(token: str = ANNA, **options: Any) -> Any:
        page = visit(**options)
        sign_in(page, token)
        return page

    return opened


def sign_in(page: Any, token: str = ANNA) -> None:
    page.get_by_role("textbox", name="Token").fill(token)
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("on cpu").wait_for()


class Hand:
    """A mouse on the canvas, in pixels of a frame that is shown whole."""

    def __init__(self, page: Any, width: int = 176, height: int = 144) -> None:
        self.page = page
        box = page.locator("#canvas").bounding_box()
        self.scale = min(box["width"] / width, box["height"] / height)
        self.left = box["x"] + (box["width"] - self.scale * width) / 2
        self.top = box["y"] + (box["height"] - self.scale * height) / 2

    def place(self, x: float, y: float) -> tuple[float, float]:
        return self.left + self.scale * x, self.top + self.scale * y

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.place(x, y))

    def drag(self, *places: tuple[float, float]) -> None:
        self.page.mouse.move(*self.place(*places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*self.place(*place))
        self.page.mouse.up()


def areas(page: Any) -> list[int]:
    """Of the polyps in the list, as they are while a mask is edited."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(done))")
    texts = page.locator("#polyps li button span:nth-child(2)").all_inner_texts()
    return [int("".join(letter for letter in text.split("px")[0] if letter.isdigit())) for text in texts]


def empty(page: Any) -> None:
    """No region at all: the threshold as high as it goes."""
    page.locator("#threshold").fill("0.99")
    page.locator("#polyps-text", has_text="no polyp").wait_for()


def correct(page: Any) -> Hand:
    page.get_by_role("button", name="Correct the mask").click()
    page.locator("#editing").wait_for()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return Hand(page)


def choose(page: Any, tool: str) -> None:
    page.locator(f"[name=tool][value={tool}]").check(force=True)


def frame_in(service: Any, project: str) -> dict[str, Any]:
    """What the service knows of ``frame-0`` there."""
    found = service.web.get(f"/v1/projects/{project}/frames", params={"name": "frame-0"}).json()["frames"]
    return dict(found[0])


def outline(page: Any, hand: Hand) -> None:
    """Draw a region of 40×30 pixels."""
    choose(page, "lasso")
    hand.drag((90, 80), (130, 80), (130, 110), (90, 110))


# --- the editor ---


def test_every_tool_of_the_editor_and_undo_over_all_of_them(enter: Visit, frames: list[Path]) -> None:
    page = enter()
    give(page, frames[2])
    empty(page)
    hand = correct(page)
    choose(page, "polygon")
    for corner in ((20, 20), (60, 20), (60, 60), (20, 60)):
        hand.click(*corner)
    page.keyboard.press("Enter")
    assert areas(page) == pytest.approx([1600], rel=0.05)  # the list is up to date while one edits
    page.get_by_label("Takes away").check()
    for corner in ((30, 30), (50, 30), (50, 50), (30, 50)):
        hand.click(*corner)
    hand.click(30, 30)  # the first corner closes it too
    assert areas(page) == pytest.approx([1200], rel=0.05)
    choose(page, "hole")
    hand.click(40, 40)
    assert areas(page) == pytest.approx([1600], rel=0.05)
    choose(page, "lasso")
    page.get_by_label("Takes away").uncheck()
    hand.drag((90, 80), (130, 80), (130, 110), (90, 110))
    assert areas(page) == pytest.approx([1600, 1200], rel=0.05)
    page.get_by_role("button", name="Smooth").click()
    smoothed = areas(page)
    assert 0.9 * 2800 < sum(smoothed) < 2800
    choose(page, "remove")
    hand.click(100, 100)
    assert areas(page) == smoothed[:1]
    hand.click(100, 100)
    page.locator("#notice", has_text="There is no region here").wait_for()
    choose(page, "move")
    before = shown(page)
    hand.drag((40, 40), (70, 60))
    assert (shown(page) != before).any() and areas(page) == smoothed[:1]
    page.keyboard.press("0")
    for mode in ("Contour", "Off", "Fill"):  # the view can be changed meanwhile
        page.get_by_label(mode, exact=True).check()
    for _ in range(6):
        page.keyboard.press("Control+z")
    assert areas(page) == [] and page.get_by_role("button", name="Undo").is_disabled()
    for _ in range(6):
        page.keyboard.press("Control+y")
    assert areas(page) == smoothed[:1] and page.get_by_role("button", name="Redo").is_disabled()


def test_a_click_grows_and_takes_away_what_python_does(enter: Visit, service: Any, frames: list[Path]) -> None:
    answer = service.web.post("/v1/segment?probability=true", files={"file": frames[0].read_bytes()}).json()
    content = np.frombuffer(base64.b64decode(answer["probability"]), np.uint8)
    levels = np.asarray(cv2.imdecode(content, cv2.IMREAD_UNCHANGED))
    probability = levels.astype(np.float32) / 255
    row, column = np.unravel_index(levels.argmax(), levels.shape)
    x, y = (column + 0.5) * 176 / levels.shape[1], (row + 0.5) * 144 / levels.shape[0]
    page = enter()
    give(page, frames[0])
    empty(page)
    hand = correct(page)
    choose(page, "grow")
    hand.click(x, y)
    expected = grow(probability, 144, 176, [Click(x, y, True)])
    assert areas(page) == pytest.approx([int(expected.mask.sum())], rel=0.01)
    assert float(page.locator("#reach").input_value()) == pytest.approx(expected.threshold, abs=0.01)
    more = levels.max() / 255 * 0.9
    page.locator("#reach").fill(f"{more:.2f}")
    raised = grow(probability, 144, 176, [Click(x, y, True)], round(more, 2))
    assert areas(page) == pytest.approx([int(raised.mask.sum())], rel=0.01)
    page.keyboard.press("Control+z")
    assert areas(page) == []  # one step, however often the level was moved

    hand.click(x, y)
    inside = cv2.distanceTransform(expected.mask.astype(np.uint8), cv2.DIST_L2, 3)
    off_y, off_x = np.unravel_index(np.where(inside > 3, inside, np.inf).argmin(), inside.shape)
    page.get_by_label("Takes away").check()
    hand.click(off_x + 0.5, off_y + 0.5)
    less = grow(probability, 144, 176, [Click(x, y, True), Click(off_x + 0.5, off_y + 0.5, False)])
    assert 0 < less.mask.sum() < expected.mask.sum()
    assert sum(areas(page)) == pytest.approx(int(less.mask.sum()), rel=0.02)


def test_a_box_gives_the_region_that_python_grows_in_it(
    visit: Visit, service: Any, segmenter: Any, frames: list[Path]
) -> None:
    page = visit()

    def model_alone(route: Any) -> None:  # whether or not LiteMedSAM is prepared on this computer
        if route.request.method != "GET":
            return route.continue_()
        told = route.fetch().json()
        return route.fulfill(json={"methods": [one for one in told["methods"] if one["name"] == "model"]})

    page.route("**/v1/prompt", model_alone)
    sign_in(page)
    give(page, frames[0])
    empty(page)
    hand = correct(page)
    choose(page, "prompt")
    probability = segmenter.probability(read(frames[0]))
    peak = np.unravel_index(cv2.resize(probability, (176, 144)).argmax(), (144, 176))
    top, left = (int(np.clip(place - 25, 0, limit - 50)) for place, limit in zip(peak, (144, 176), strict=True))
    box = (left, top, left + 50, top + 50)
    expected = grow_in_box(probability, 144, 176, box).mask
    with page.expect_response("**/v1/prompt"):
        hand.drag((left, top), (left + 20, top + 30), (left + 50, top + 50))
    page.locator("#polyps li").first.wait_for()
    assert sum(areas(page)) == pytest.approx(int(expected.sum()), rel=0.05) and expected.sum() > 50
    page.get_by_role("button", name="Save correction").click()
    page.get_by_text("Saved as correction frame-0").wait_for()
    found = frame_in(service, "corrections")
    frame = f"/v1/projects/corrections/frames/{found['hash']}"
    content = service.web.get(f"{frame}/mask").content
    for for_good in (False, True):  # other tests begin with the model's mask
        service.web.delete(frame, params={"for_good": for_good})
    mask = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) > 0
    assert (mask & expected).sum() > 0.95 * (mask | expected).sum()


def test_the_editor_works_with_keys_alone(enter: Visit, frames: list[Path]) -> None:
    page = enter()
    give(page, frames[2])
    empty(page)
    correct(page)
    page.keyboard.press("g")
    for way in ("ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press("Space")
        for _ in range(4):
            page.keyboard.press(way)
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    (area,) = areas(page)
    page.keyboard.press("d")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert area > 50 and areas(page) == []


def test_two_fingers_zoom_and_draw_nothing(enter: Visit, frames: list[Path]) -> None:
    page = enter(width=390, height=800, has_touch=True)
    give(page, frames[2])
    empty(page)
    hand = correct(page)
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = (
            [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(hand.place(*one) for one in places)]
            if places
            else []
        )
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    before = shown(page)
    touch("touchStart", (80, 72))
    touch("touchStart", (80, 72), (96, 72))
    for apart in range(10, 40, 10):
        touch("touchMove", (80 - apart, 72), (96 + apart, 72))
    touch("touchEnd")
    assert areas(page) == [] and page.get_by_role("button", name="Undo").is_disabled()
    assert (shown(page) != before).any(axis=2).mean() > 0.3  # closer
    touch("touchStart", (80, 72))
    touch("touchMove", (90, 72))
    touch("touchEnd")
    assert len(areas(page)) == 1  # one finger draws


# --- looking ---


def test_a_frame_that_cannot_be_judged_says_so_in_place_of_polyps(
    enter: Visit, service: Any, frames: list[Path]
) -> None:
    page = enter()
    answer = service.web.post("/v1/segment?probability=true", files={"file": frames[0].read_bytes()}).json()
    quality = {"judgeable": False, "reason": "blurred", "sharpness": 1.0, "glare": 0.0, "lit": 1.0}
    page.route("**/v1/segment*", lambda route: route.fulfill(json={**answer, "quality": quality}))
    page.set_input_files("#files", [frames[0]])
    page.get_by_text("This frame cannot be judged: it is out of focus.").wait_for()
    assert page.locator("#polyps li").count() == 0
    assert page.locator("#list .state").inner_text() == "cannot be judged"
    page.get_by_role("button", name="Show what the model sees").click()
    page.locator("#polyps li").first.wait_for()


def test_what_falls_below_can_be_hidden_and_the_heat_map_has_a_legend(enter: Visit, frames: list[Path]) -> None:
    page = enter()
    give(page, frames[0])
    page.locator("#confidence").fill("1")
    page.locator("#polyps-text", has_text="dashed").wait_for()
    dashed = shown(page)
    page.get_by_label("Show what falls below, dashed").uncheck()
    page.locator("#polyps-text", has_text="hidden").wait_for()
    assert (shown(page) != dashed).any()
    assert not page.locator("#legend").is_visible()
    page.get_by_label("Heat map").check()
    assert page.locator("#legend").is_visible()


# --- outages and long lists ---


def tiny(folder: Path, count: int) -> list[Path]:
    """Frames of a few pixels."""
    content = cv2.imencode(".png", np.full((32, 32, 3), 90, np.uint8))[1].tobytes()
    paths = [folder / f"tiny-{index:04d}.png" for index in range(count)]
    for path in paths:
        path.write_bytes(content)
    return paths


def test_after_an_outage_all_frames_are_tried_again_by_themselves(
    enter: Visit, frames: list[Path], tmp_path: Path
) -> None:
    page = enter()
    give(page, frames[0])
    for url in ("**/v1/segment*", "**/health/ready"):
        page.route(url, lambda route: route.abort())
    page.set_input_files("#files", tiny(tmp_path, 40))
    page.locator("#outage", has_text="The service does not respond.").wait_for()
    page.locator("#outage", has_text="frames wait").wait_for()
    for url in ("**/v1/segment*", "**/health/ready"):
        page.unroute(url)
    page.get_by_role("button", name="Try now").click()
    page.locator("#live", has_text="All 41 frames are done").wait_for(state="attached", timeout=60_000)
    assert not page.locator("#outage").is_visible() and page.locator("#list .wrong").count() == 0


def test_what_failed_can_be_tried_again(enter: Visit, frames: list[Path], tmp_path: Path) -> None:
    page = enter()
    page.route("**/v1/segment*", lambda route: route.fulfill(status=504, json={"error": "it took too long"}))
    text = tmp_path / "notes.txt"
    text.write_text("not a frame")
    page.set_input_files("#files", frames[:2])
    page.get_by_role("button", name="Retry 2 failed frames").wait_for()
    page.unroute("**/v1/segment*")
    page.set_input_files("#files", [text])  # which can never be read
    page.get_by_role("button", name="Retry 2 failed frames").click()
    page.locator("#list .state", has_text="polyp").nth(1).wait_for()
    assert not page.locator("#retry").is_visible() and page.locator("#list .wrong").count() == 1


def test_of_a_thousand_frames_only_those_that_are_seen_are_in_the_page(enter: Visit, tmp_path: Path) -> None:
    page = enter()
    page.route("**/v1/segment*", lambda route: None)
    page.set_input_files("#files", tiny(tmp_path, 1000))
    page.get_by_text("0 of 1000 frames").wait_for()
    assert 5 < page.locator("#list li").count() < 40
    assert page.locator("#list .item[tabindex='0']").count() == 1
    page.locator("#list .item").first.focus()
    page.keyboard.press("End")
    last = page.locator("#list li", has_text="tiny-0999.png")
    last.wait_for()
    assert last.locator(".item").evaluate("(element) => element === document.activeElement")
    assert last.get_attribute("aria-posinset") == "1000" and last.get_attribute("aria-setsize") == "1000"
    page.keyboard.press("Delete")
    page.get_by_text("0 of 999 frames").wait_for()
    assert page.locator("#list li").count() < 40
    page.keyboard.press("Enter")
    page.locator("#stage-title", has_text="tiny-0998.png").wait_for()


# --- sets ---


def data_set(folder: Path, frames: list[Path]) -> Path:
    """A folder of ``images/`` and ``masks/``; the last frame has no mask."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for frame in frames:
        (folder / "images" / frame.name).write_bytes(frame.read_bytes())
    for number, frame in enumerate(frames[:-1]):
        mask = np.zeros((144, 176), np.uint8)
        mask[20:60, 20 : 60 + 10 * number] = 255
        cv2.imwrite(str(folder / "masks" / frame.name), mask)
    return folder


def broken_rules(page: Any) -> list[Any]:
    """What axe finds wrong with the page for people who do not see it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], [node["html"][:150] for node in one["nodes"]]) for one in found]


def names_are(page: Any, names: list[str]) -> None:
    """Wait until the list has these frames, in this order."""
    page.wait_for_function(
        """(names) => {
            const shown = [...document.querySelectorAll("#list .name")];
            return String(shown.map((one) => one.textContent)) === String(names);
        }""", arg=names,
    )  # fmt: skip


def open_set(page: Any, name: str, folder: Path | None = None) -> None:
    page.get_by_role("button", name="Sets…").click()
    if folder is None:
        page.get_by_role("button", name=f"Open {name}").click()
    else:
        page.get_by_label("New set").fill(name)
        page.get_by_role("button", name="Create").click()
        page.get_by_role("dialog", name=name).wait_for()
        page.set_input_files("#import-folder", folder)
        page.locator("#import-text", has_text="added").wait_for()
        page.keyboard.press("Escape")
    page.locator("#stage-facts", has_text="pixels").wait_for()
    assert page.locator("#order").input_value() == "confidence"
    page.locator("#order").select_option("name")
    names_are(page, sorted(page.locator("#list .name").all_inner_texts()))
    page.locator("#list .item").first.click()


def at(page: Any, name: str) -> None:
    """Wait until a frame is shown."""
    page.locator("#stage-title", has_text=name).wait_for()
    page.locator("#stage-facts", has_text="pixels").wait_for()


def states(service: Any, project: str) -> dict[str, str]:
    found = service.web.get(f"/v1/projects/{project}/frames").json()["frames"]
    return {frame["name"]: frame["state"] for frame in found}


def test_a_set_is_imported_reviewed_filtered_and_exported(
    enter: Visit, service: Any, frames: list[Path], tmp_path: Path
) -> None:
    page = enter()
    open_set(page, "First exam", data_set(tmp_path / "set", frames))
    at(page, "frame-0")
    assert page.locator("#position").inner_text() == "1 of 3"
    page.get_by_text("2 of 3 reviewed").wait_for()
    page.get_by_text("Accepted by anna").wait_for()
    assert (
        page.locator("#list .picture:visible").first.evaluate(
            "(image) => image.decode().then(() => image.naturalWidth)"
        )
        > 0
    )
    page.keyboard.press("n")
    at(page, "frame-1")
    page.get_by_role("button", name="No polyp", exact=True).click()
    at(page, "frame-2")
    hand = correct(page)
    outline(page, hand)
    page.get_by_role("button", name="Save correction").wait_for()
    page.keyboard.press("Control+s")
    page.get_by_text("3 of 3 reviewed").wait_for()
    assert states(service, "first-exam") == {
        "frame-0.png": "accepted", "frame-1.png": "no_polyp", "frame-2.png": "corrected",
    }  # fmt: skip

    # A label of a polyp, by the service's file.
    page.locator("#polyps button").first.click()
    page.locator("[name=class]").select_option("adenoma")
    page.locator("[name='attribute:paris']").select_option("Is")
    assert "adenoma, Is" in page.locator("#polyps button").first.inner_text()
    page.get_by_role("button", name="Save labels").click()
    page.get_by_role("button", name="Save labels").wait_for(state="hidden")
    found = service.web.get("/v1/projects/first-exam/frames", params={"label": "paris:Is"}).json()["frames"]
    assert [(one["name"], one["state"]) for one in found] == [("frame-2.png", "corrected")]
    assert "adenoma" in [polyp["class"] for polyp in found[0]["polyps"]]

    page.locator("#filter summary").click()
    assert broken_rules(page) == []
    page.locator("#filter-states").get_by_label("No polyp").check()
    page.locator("#filter-text", has_text="1 of 3").wait_for()
    page.locator("#list li", has_text="frame-0").wait_for(state="detached")
    assert page.locator("#list .name").all_inner_texts() == ["frame-1.png"]
    page.locator("#filter-states").get_by_label("No polyp").uncheck()
    page.locator("#list li").nth(2).wait_for()
    for chosen in ("uncertainty", "confidence"):
        page.locator("#order").select_option(chosen)
        order = service.web.get(f"/v1/projects/first-exam/frames?order={chosen}").json()["frames"]
        names_are(page, [frame["name"] for frame in order])

    page.get_by_role("button", name="Manage…").click()
    assert broken_rules(page) == []
    out = tmp_path / "out"
    with zipfile.ZipFile(kept(page, "Images and masks", tmp_path)) as archive:
        archive.extractall(out)
    (folder,) = {path.parent.parent for path in out.rglob("masks/*")}
    catalog = read_all([folder])
    masks = {name: catalog.mask(row) for row, name in enumerate(catalog.frames.frame_id)}
    assert set(masks) == {"frame-0", "frame-1", "frame-2"} and not masks["frame-1"].any()
    assert masks["frame-0"].sum() == 1600 and masks["frame-2"][85:105, 95:125].all()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Close set").click()
    page.locator("#welcome").wait_for()


def test_labels_are_undone_too_while_a_mask_is_corrected_and_before_they_are_saved(
    enter: Visit, service: Any, frames: list[Path], tmp_path: Path
) -> None:
    page = enter()
    open_set(page, "Labels", data_set(tmp_path / "set", frames[:2]))
    at(page, "frame-0")
    row, form = page.locator("#polyps button").first, page.locator("#label-form")
    hand = correct(page)
    row.click()
    page.locator("[name=class]").select_option("adenoma")
    page.keyboard.press("0")
    outline(page, hand)
    page.locator("[name='attribute:paris']").select_option("Is")  # the region stays chosen
    assert "adenoma, Is" in page.locator("#polyps").inner_text()
    for expected, count in (("adenoma", 2), ("adenoma", 1), ("", 1)):
        page.keyboard.press("Control+z")
        text = page.locator("#polyps").inner_text()
        assert "Is" not in text and ("adenoma" in text) == bool(expected) and len(areas(page)) == count
    assert page.locator("[name=class]").input_value() == "polyp" and page.locator("#undo").is_disabled()
    for _ in range(3):
        page.keyboard.press("Control+y")
    page.get_by_role("button", name="Save correction").click()
    page.get_by_text("Corrected by").wait_for()
    found = frame_in(service, "labels")
    labels = {polyp["area"]: (polyp["class"], polyp["attributes"]) for polyp in found["polyps"]}
    assert labels.pop(1600) == ("adenoma", {"paris": "Is"}) and list(labels.values()) == [("polyp", {})]

    # Without a correction they wait until they are saved.
    page.locator("#polyps button", has_text="adenoma").click()
    page.locator("[name=class]").select_option("polyp")
    remark = page.locator("[name='attribute:remark']")
    remark.press_sequentially("a yummy one")  # whose letters are no keys of the page
    remark.blur()
    page.locator("#polyps", has_text="a yummy one").wait_for()
    at(page, "frame-0")
    page.keyboard.press("Control+z")
    assert "yummy" not in page.locator("#polyps").inner_text() and remark.input_value() == ""
    form.get_by_role("button", name="Undo").click()
    assert "adenoma, Is" in page.locator("#polyps").inner_text()
    assert form.get_by_role("button", name="Save labels").is_hidden()
    page.keyboard.press("Control+y")
    form.get_by_role("button", name="Save labels").click()
    form.get_by_role("button", name="Save labels").wait_for(state="hidden")
    found = frame_in(service, "labels")
    assert {polyp["class"] for polyp in found["polyps"]} == {"polyp"} and found["version"] == 3


def test_an_older_version_can_be_taken_back_and_a_removed_frame_restored(
    enter: Visit, service: Any, frames: list[Path], tmp_path: Path
) -> None:
    page = enter()
    open_set(page, "Versions", data_set(tmp_path / "set", frames[:2]))
    at(page, "frame-0")
    first = read(kept(page, "Mask (PNG)", tmp_path))
    page.get_by_role("button", name="No polyp", exact=True).click()
    at(page, "frame-1")
    page.keyboard.press("p")
    at(page, "frame-0")
    page.locator("#polyps-text", has_text="no polyp").wait_for()
    page.locator("#versions-part summary").click()
    page.locator("#versions li", has_text="2: no polyp, anna").wait_for()
    page.get_by_role("button", name="Take back to this").click()
    page.locator("#versions li", has_text="3: accepted, anna").wait_for()
    page.locator("#polyps-text", has_text="1 polyp").wait_for()
    assert (read(kept(page, "Mask (PNG)", tmp_path)) == first).all()

    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#list .item").first.press("Delete")
    at(page, "frame-1")
    page.locator("#filter summary").click()
    page.get_by_label("Removed frames instead").check()
    at(page, "frame-0")
    page.get_by_role("button", name="Restore this frame").click()
    page.locator("#list li").wait_for(state="detached")
    assert set(states(service, "versions")) == {"frame-0.png", "frame-1.png"}


def test_two_people_at_one_frame_see_each_other_and_nothing_is_replaced_in_silence(
    enter: Visit, service: Any, frames: list[Path], tmp_path: Path
) -> None:
    anna = enter()
    open_set(anna, "Together", data_set(tmp_path / "set", frames[:2]))
    at(anna, "frame-0")
    bob = enter(BOB)
    open_set(bob, "Together")
    at(bob, "frame-0")
    bob.locator("#people", has_text="anna is at this frame too").wait_for()
    hand = correct(anna)
    outline(anna, hand)
    bob.get_by_role("button", name="No polyp", exact=True).click()
    at(bob, "frame-1")
    anna.get_by_role("button", name="Save correction").click()
    dialog = anna.get_by_role("dialog", name="Somebody saved this frame meanwhile")
    assert "bob saved version 2" in dialog.inner_text()
    dialog.get_by_role("button", name="Go on correcting").click()
    assert len(areas(anna)) == 2
    anna.get_by_role("button", name="Save correction").click()
    dialog.get_by_role("button", name="Save mine as the newest").click()
    anna.get_by_text("Corrected by anna").wait_for()
    found = frame_in(service, "together")
    versions = service.web.get(f"/v1/projects/together/frames/{found['hash']}/versions").json()
    assert [(one["author"], one["state"]) for one in versions] == [
        ("anna", "corrected"), ("bob", "no_polyp"), ("anna", "accepted"),
    ]  # fmt: skip


def test_what_was_made_of_a_frame_is_known_by_its_content_after_a_reload(
    enter: Visit, frames: list[Path], tmp_path: Path
) -> None:
    page = enter()
    give(page, frames[1])
    empty(page)
    hand = correct(page)
    outline(page, hand)
    page.get_by_role("button", name="Save correction").click()
    page.get_by_text("Saved as correction frame-1").wait_for()
    before = read(kept(page, "Mask (PNG)", tmp_path))
    page.reload()
    renamed = tmp_path / "another-name.png"
    renamed.write_bytes(frames[1].read_bytes())
    page.set_input_files("#files", [renamed])
    page.locator("#list .state", has_text="1 polyp, corrected").wait_for()
    page.locator("#by-hand:visible").wait_for()
    assert (read(kept(page, "Mask (PNG)", tmp_path)) == before).all() and (before > 0).sum() > 1000
    page.get_by_role("button", name="Open them").click()
    at(page, "frame-1")
    assert page.locator("#sources-title").inner_text().lower() == "corrections"


@pytest.mark.slow
def test_a_set_fine_tunes_the_model_from_the_page(
    enter: Visit, service: Any, phantom_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the extra polypseg[train] is not installed")
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for path in sorted((phantom_folder / kind).iterdir())[:12]:
            (tmp_path / "set" / kind / path.name).write_bytes(path.read_bytes())
    page = enter()
    open_set(page, "Fine", tmp_path / "set")
    page.get_by_role("button", name="Manage…").click()
    page.get_by_label("Epochs").fill("1")
    page.get_by_role("button", name="Start fine-tuning").click()
    page.get_by_text("Use it: polypseg serve --model training/").wait_for(timeout=240_000)
    curve = page.get_by_role("img", name=re.compile(r"Dice on validation by epoch, 0\.\d{3} after epoch 1"))
    told = service.web.get("/v1/training").json()
    assert curve.is_visible() and f"{told['curve'][0]['dice']:.3f}" in curve.get_attribute("aria-label")
    assert ModelBundle.load(service.state / told["bundle"]).hash != service.web.get("/v1/model").json()["hash"]


# --- videos ---


def test_a_video_is_stepped_through_and_corrected(enter: Visit, film: Path) -> None:
    page = enter()
    page.set_input_files("#files", [film])
    page.locator("#film").wait_for(timeout=60_000)
    page.locator("#list img:visible").wait_for()  # a thumbnail that shows something
    time = page.locator("#film-time")
    page.locator("#film-time", has_text="0:00.0 of 0:03.0").wait_for()
    for expected in ("0:00.1", "0:00.2", "0:00.3"):
        page.get_by_role("button", name="One frame on").click()
        page.locator("#film-time", has_text=f"{expected} of").wait_for()
    page.get_by_role("button", name="One frame back").click()
    page.locator("#film-time", has_text="0:00.2 of").wait_for()
    screen, controls = page.locator("#screen").bounding_box(), page.locator("#film-controls").bounding_box()
    assert screen["y"] + screen["height"] <= controls["y"]

    # Over the user's own file the polyps follow the least confidence, and can be off.
    def drawn() -> int:
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return int(page.locator("#film-canvas").evaluate(
            """(canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
                .reduce((sum, value, at) => sum + (at % 4 === 3 && value > 0), 0)"""
        ))  # fmt: skip

    page.locator("#confidence").fill("0")
    assert drawn() > 0
    page.locator("#confidence").fill("1")
    assert drawn() == 0
    page.get_by_role("button", name="Back to the model's").click()
    page.get_by_label("Show polyps").uncheck()
    assert drawn() == 0
    page.get_by_label("Show polyps").check()

    page.get_by_role("button", name="Correct this frame").click()
    page.locator("#editing").wait_for()
    assert page.locator("#stage-title").inner_text() == "exam-00002.png" and "0:00.2" in time.inner_text()
    page.keyboard.press("Escape")
    empty(page)
    hand = correct(page)
    outline(page, hand)
    page.get_by_role("button", name="Save correction").click()
    page.get_by_text("Saved as correction exam-00002").wait_for()

    # What was made of a frame of the video is known when it is taken again, after a reload too.
    page.reload()
    page.set_input_files("#files", [film])
    page.locator("#film-time", has_text="0:00.0 of 0:03.0").wait_for()
    for expected in ("0:00.1", "0:00.2"):
        page.get_by_role("button", name="One frame on").click()
        page.locator("#film-time", has_text=f"{expected} of").wait_for()
    page.get_by_role("button", name="Correct this frame").click()
    page.locator("#editing").wait_for()
    assert areas(page) == pytest.approx([1200], rel=0.05)


def test_a_corrected_mask_is_carried_to_neighbours_and_kept_where_it_is_accepted(
    enter: Visit, service: Any, frames: list[Path], tmp_path: Path
) -> None:
    page = enter()
    page.set_input_files("#files", [write_film(tmp_path / "carried.mp4", frames[1])])
    page.locator("#film").wait_for(timeout=60_000)
    page.locator("#film-time", has_text="0:00.0 of 0:03.0").wait_for()
    for expected in ("0:00.1", "0:00.2"):
        page.get_by_role("button", name="One frame on").click()
        page.locator("#film-time", has_text=f"{expected} of").wait_for()
    page.get_by_role("button", name="Correct this frame").click()
    page.locator("#editing").wait_for()
    choose(page, "lasso")
    hand = Hand(page)
    hand.drag((5, 5), (12, 5), (12, 12), (5, 12))  # beside what the model sees itself
    page.get_by_role("button", name="Save correction").click()
    page.get_by_text("Saved as correction carried-00002").wait_for()
    with page.expect_response("**/v1/propagate") as response:
        page.get_by_role("button", name="Carry to neighbouring frames…").click()
    told = response.value.json()
    sure = [one for one in told["frames"] if one["sure"] and one["index"] != told["at"]]
    assert len(told["frames"]) == 11  # eight frames on, and the two before
    assert {one["index"] for one in sure} > {0, 1, 3}
    page.get_by_text(re.compile(f"^{len(sure)} frames? proposed")).wait_for()
    at(page, "carried-00000")
    names = [f"carried-{one:05}.png" for one in sorted({2, *(one["index"] for one in sure)})]
    listed = [one for one in page.locator("#list .name").all_inner_texts() if one.startswith("carried-")]
    assert len(listed) >= 4 and listed == names[: len(listed)]  # the list has rows for what is seen
    given = cv2.imdecode(np.frombuffer(base64.b64decode(sure[0]["mask"]), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert (read(kept(page, "Mask (PNG)", tmp_path)) == given).all()
    assert f"{round(100 * sure[0]['sureness'])} % sure" in page.locator("#review-state").inner_text()
    page.get_by_role("button", name="Accept and next").click()
    at(page, "carried-00001")
    page.get_by_role("button", name="Next", exact=True).click()
    at(page, "carried-00002")
    found = service.web.get("/v1/projects/corrections/frames", params={"name": "carried-0"}).json()["frames"]
    assert {one["name"]: one["state"] for one in found} == {  # what was not accepted was not saved
        "carried-00000.png": "accepted", "carried-00002.png": "corrected",
    }  # fmt: skip


def test_the_threshold_acts_on_the_frame_of_a_video_that_stands_still(enter: Visit, service: Any, film: Path) -> None:
    page = enter()
    page.set_input_files("#files", [film])
    page.locator("#film").wait_for(timeout=60_000)
    page.locator("#film-time", has_text="0:00.0 of 0:03.0").wait_for()
    page.get_by_role("button", name="One frame on").click()
    page.locator("#film-time", has_text="0:00.1 of").wait_for()
    page.locator("#confidence").fill("0")
    own, sent = float(page.locator("#threshold").input_value()), []

    def passed(route: Any) -> None:
        sent.append(route.request.post_data_buffer)
        route.continue_()

    page.route("**/v1/segment?probability=true", passed)

    def outlines(threshold: float) -> list[list[int]]:
        """Where the service has them in the frame that the page sent."""
        picture = sent[0][sent[0].index(b"\x89PNG") : sent[0].index(b"IEND") + 8]
        fields = {"threshold": str(threshold), "min_confidence": "0"}
        told = service.web.post("/v1/segment", files={"file": picture}, data=fields).json()
        points = [point for polyp in told["polyps"] for point in polyp["contour"]]
        assert len(points) > 10
        return points

    page.evaluate(
        """() => {
          window.areDrawn = (points) => {
            const canvas = document.getElementById("film-canvas");
            const scale = Math.min(canvas.width / 176, canvas.height / 144);
            const [left, top] = [(canvas.width - scale * 176) / 2, (canvas.height - scale * 144) / 2];
            const context = canvas.getContext("2d");
            const isDrawn = ([x, y]) => {  // the line runs along the edges of the pixels
                const corner = [left + scale * (x + 0.1), top + scale * (y + 0.1)];
                const near = context.getImageData(...corner, scale * 0.8, scale * 0.8);
                return near.data.some((value, at) => at % 4 === 3 && value > 0);
            };
            return points.filter(isDrawn).length > 0.95 * points.length;
          };
        }"""
    )
    with page.expect_response("**/v1/segment?probability=true"):
        page.locator("#threshold").fill(f"{own - 0.03:.2f}")
    for lower, before in ((0.03, 0.0), (0.05, 0.03)):
        page.locator("#threshold").fill(f"{own - lower:.2f}")
        page.wait_for_function("(points) => areDrawn(points)", arg=outlines(own - lower))
        assert not page.evaluate("(points) => areDrawn(points)", outlines(own - before))
    assert len(sent) == 1  # the frame is asked for once
    page.get_by_role("button", name="Back to the model's").click()
    page.wait_for_function("(points) => !areDrawn(points)", arg=outlines(own - 0.05))
    page.get_by_role("button", name="One frame on").click()
    page.locator("#film-time", has_text="0:00.2 of").wait_for()
    assert len(sent) == 1


def test_a_video_is_followed_anew_at_another_threshold(enter: Visit, service: Any, film: Path, tmp_path: Path) -> None:
    shutil.copy(film, tmp_path / "anew.mp4")
    page = enter()
    page.set_input_files("#files", [tmp_path / "anew.mp4"])
    page.locator("#film").wait_for(timeout=60_000)
    page.locator("#film-time", has_text="0:00.0 of 0:03.0").wait_for()
    rows = page.locator("#list li", has_text="anew.mp4")
    page.get_by_role("button", name="One frame on").click()
    page.locator("#film-time", has_text="0:00.1 of").wait_for()
    own = service.web.get("/v1/model").json()["operating_point"]
    former = service.web.get("/v1/jobs").json()[-1]
    assert former["operating_point"] == own and not page.locator("#film-anew").is_visible()
    page.locator("#threshold").fill(f"{own['threshold'] - 0.05:.2f}")
    anew = page.get_by_role("button", name="Follow anew at this threshold")

    # Given up, or refused: what was there is there.
    held: list[Any] = []
    page.route("**/again", lambda route: held.append(route))
    anew.click()
    rows.nth(1).get_by_text("anew: sending").wait_for()
    page.get_by_text(f"Followed anew at threshold {own['threshold'] - 0.05:.2f}: sending").wait_for()
    assert page.locator("#film").is_visible() and not anew.is_visible()
    page.get_by_role("button", name="Stop").click()
    held[0].abort()
    page.unroute("**/again")
    anew.wait_for()
    assert rows.count() == 1
    full = '{"error": "the disk of the service is full; ask who runs it"}'
    page.route("**/again", lambda route: route.fulfill(status=507, body=full))
    anew.click()
    page.get_by_text("anew.mp4 could not be followed anew: the disk of the service is full; ask who runs it").wait_for()
    page.unroute("**/again")
    assert page.locator("#stage-facts").inner_text().endswith(f"followed at threshold {own['threshold']:.2f}")

    # Given up too late: it has taken the former's place, and stays.
    def late(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "state": "running"})

    page.route(re.compile("v1/jobs/[0-9a-f]{32}$"), late)
    anew.click()
    page.get_by_text("computing").first.wait_for()
    service.wait_for(service.web.get("/v1/jobs").json()[-1]["id"], lambda job: job["state"] == "done")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("anew.mp4 was followed anew already").wait_for()
    page.unroute(re.compile("v1/jobs/[0-9a-f]{32}$"))
    page.get_by_text(re.compile("^anew.mp4 was followed anew at threshold")).wait_for()
    page.locator("#stage-facts", has_text=f"followed at threshold {own['threshold'] - 0.05:.2f}").wait_for()
    page.locator("#film-time", has_text="0:00.1 of 0:03.0").wait_for()  # where it was
    assert rows.count() == 1 and not anew.is_visible()
    assert service.web.get(f"/v1/jobs/{former['id']}").status_code == 404
    job = service.web.get("/v1/jobs").json()[-1]
    told = service.web.get(f"/v1/jobs/{job['id']}/files/anew.timeline.json").json()
    assert told["operating_point"]["threshold"] == pytest.approx(own["threshold"] - 0.05)
    assert page.locator("#timeline button").count() == len(told["tracks"])

    page.reload()
    rows.get_by_text(f"followed at {own['threshold'] - 0.05:.2f}").wait_for()
    rows.locator(".item").click()
    page.get_by_text("the service does not keep it").wait_for()
    assert not page.locator("#threshold").is_visible()
    page.set_input_files("#film-source", tmp_path / "anew.mp4")
    assert float(page.locator("#threshold").input_value()) == pytest.approx(own["threshold"] - 0.05)
    page.get_by_role("button", name="Back to the model's").click()
    anew.wait_for()
    page.get_by_role("button", name="Back to the video's").click()
    anew.wait_for(state="hidden")


def test_without_its_file_a_video_is_shown_as_the_service_drew_it(enter: Visit, film: Path) -> None:
    page = enter()
    page.set_input_files("#files", [film])
    page.locator("#film").wait_for(timeout=60_000)
    page.reload()
    page.locator("#list .item", has_text="exam.mp4").first.click()
    page.get_by_text("the service does not keep it").wait_for()
    assert page.get_by_role("button", name="Correct this frame").is_disabled()
    page.set_input_files("#film-source", film)
    page.locator("#film-text", has_not_text="keep").wait_for(state="attached")
    assert page.get_by_role("button", name="Correct this frame").is_enabled()
