"""The page in a real browser: what people do on it, each thing once, on phantom frames."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from polypseg.data import phantom, read_all
from polypseg.io.outputs import coco_segmentation
from polypseg.operating_point import OperatingPoint
from polypseg.segmentation import Segmentation

TOKEN = "a-token-of-the-tests"
RESEARCH = "Research use only, not a medical device"
Visit = Callable[..., Any]


def asked(service: Any, frame: Path) -> dict[str, Any]:
    """What the service itself says of a frame."""
    return dict(service.web.post("/v1/segment", files={"file": (frame.name, frame.read_bytes())}).json())


def give(page: Any, *files: Path) -> None:
    """Choose files, and wait until each is done."""
    page.set_input_files("#files", list(files))
    for file in files:
        state = page.locator("#list li", has_text=file.name).last.locator(".state")
        state.filter(has_text=re.compile("polyp|video, done")).wait_for(timeout=60_000)
    page.locator("#stage-facts", has_text="pixels").wait_for()  # and one of them is shown


def look_at(page: Any, file: Path) -> None:
    """Choose what is shown."""
    page.locator("#list .item", has_text=file.name).last.click()
    page.locator("#stage-title", has_text=file.name).wait_for()
    page.locator("#stage-facts", has_text="pixels").wait_for()


def read(path: Path) -> NDArray[np.uint8]:
    """A picture as it is in its file: H×W, or H×W×3 RGB."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None and pixels.dtype == np.uint8
    return np.asarray(pixels if pixels.ndim == 2 else pixels[..., 2::-1], np.uint8)


def fill(page: Any) -> None:
    """Show polyps as solid yellow, so that pixels can be counted."""
    page.get_by_label("Fill").check()
    page.locator("#opacity").fill("1")


def shown(page: Any) -> NDArray[np.uint8]:
    """The canvas as it is on the screen: H×W×3 uint8 RGB."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    picture = cv2.imdecode(np.frombuffer(page.locator("#canvas").screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture[..., ::-1]


def yellow(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the polyps' colour is."""
    return np.abs(picture.astype(int) - (255, 230, 0)).max(axis=2) < 25


def filled(shape: Any, height: int, width: int) -> NDArray[np.bool_]:
    """A shape of COCO as a mask: run lengths down the columns, or polygons by the even-odd rule."""
    if isinstance(shape, dict):
        values = np.repeat(np.arange(len(shape["counts"])) % 2 == 1, shape["counts"])
        return values.reshape(width, height).T
    parity = np.zeros((height, width), bool)
    for ring in shape:
        # Twice as large, the pixels' middles lie off the ring.
        inside = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
        cv2.fillPoly(inside, [2 * np.reshape(ring, (-1, 2))], 1)
        parity ^= inside[1::2, 1::2] > 0
    return parity


def kept(page: Any, button: str, folder: Path) -> Path:
    """What a button downloads."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    path = folder / str(download.value.suggested_filename)
    download.value.save_as(path)
    return path


# --- frames ---


def test_files_become_frames_with_the_polyps_that_the_service_finds(
    visit: Visit, service: Any, frames: list[Path], tmp_path: Path
) -> None:
    page = visit()
    give(page, *frames)
    for frame in frames:
        expected = asked(service, frame)
        look_at(page, frame)
        page.locator("#stage-facts", has_text="176 × 144").wait_for()
        found = json.loads(kept(page, "JSON", tmp_path).read_text())
        assert {**found, "polyps": []} == {**expected, "polyps": []}
        # The map comes in 255 steps, so that a pixel on the brink may go over.
        large = [polyp for polyp in expected["polyps"] if polyp["area"] > 60]
        assert len(found["polyps"]) >= len(large)
        for one, other in zip(found["polyps"], large, strict=False):
            assert one["area"] == pytest.approx(other["area"], rel=0.05)
            assert one["confidence"] == pytest.approx(other["confidence"], abs=0.01)
        assert page.locator("#polyps li").count() == len(found["polyps"])
    assert any(asked(service, frame)["polyps"] for frame in frames)


def test_a_folder_is_taken_with_its_frames_and_without_its_masks(
    visit: Visit, phantom_folder: Path, tmp_path: Path
) -> None:
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        for index in range(2):
            name = f"{kind}/{phantom.frame_id(index)}.{suffix}"
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes((phantom_folder / name).read_bytes())
    (tmp_path / "set" / "notes.txt").write_text("not a frame")
    page = visit()
    page.set_input_files("#folder", tmp_path / "set")
    page.locator("#list .item img:visible").nth(1).wait_for()
    assert page.locator("#list .name").all_inner_texts() == ["phantom-0000.jpg", "phantom-0001.jpg"]
    assert page.locator("#notice").inner_text() == "3 files left out: no frames or videos, or masks"


def test_a_folder_and_a_file_can_be_dropped(
    visit: Visit, phantom_folder: Path, frames: list[Path], tmp_path: Path
) -> None:
    deep = tmp_path / "exam" / "later"
    deep.mkdir(parents=True)
    for index in range(2):
        source = phantom_folder / "images" / f"{phantom.frame_id(index)}.jpg"
        (deep / source.name).write_bytes(source.read_bytes())
    page = visit()
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "exam"), str(frames[0])], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 400, "data": data})
    page.locator("#list .item img:visible").nth(2).wait_for()
    names = ["frame-0.png", "phantom-0000.jpg", "phantom-0001.jpg"]
    assert sorted(page.locator("#list .name").all_inner_texts()) == names


def test_what_cannot_be_read_is_told_in_one_line_at_its_place(visit: Visit, frames: list[Path], tmp_path: Path) -> None:
    broken, text = tmp_path / "broken.png", tmp_path / "notes.txt"
    broken.write_bytes(frames[0].read_bytes()[:2000])
    text.write_text("not a frame")
    page = visit()
    page.set_input_files("#files", [broken, text, frames[1]])
    page.locator("#list .state.wrong").nth(1).wait_for()
    lines = page.locator("#list .state.wrong").all_inner_texts()
    assert lines[0].startswith("broken.png: is damaged") and lines[1].startswith("notes.txt: ")
    assert all("\n" not in line and "/tmp" not in line for line in lines)
    page.locator("#list .state", has_text="polyp").wait_for()  # the third one is answered all the same
    assert lines[0] in page.locator("#wait").inner_text()


def test_a_file_beyond_the_limit_is_not_sent(visit: Visit, service: Any, tmp_path: Path) -> None:
    page = visit()
    most = service.web.get("/v1/model").json()["limits"]["max_bytes"]
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(most + 1)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.set_input_files("#files", [large])
    page.locator("#list .state.wrong", has_text="this service takes at most").wait_for()
    assert not any("segment" in url for url in sent)


def test_a_format_that_browsers_do_not_know_is_shown_with_the_overlay_of_the_service(
    visit: Visit, frames: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "frame.tiff"
    cv2.imwrite(str(path), read(frames[0])[..., ::-1])
    page = visit()
    give(page, path)
    page.locator("#stage-facts", has_text="shown with the service's overlay").wait_for()
    assert shown(page).std() > 20
    assert page.get_by_role("button", name="Correct the mask").is_disabled()


def test_a_photo_that_says_it_is_turned_is_shown_upright(visit: Visit, frames: list[Path], tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be turned by 90°
    path = tmp_path / "turned.jpg"
    Image.open(frames[0]).save(path, exif=turned)
    page = visit()
    give(page, path)
    page.locator("#stage-facts", has_text="144 × 176 pixels").wait_for()
    assert page.get_by_role("button", name="Correct the mask").is_enabled()


def test_the_operating_point_of_the_model_is_applied(visit: Visit, service: Any, frames: list[Path]) -> None:
    model = service.web.get("/v1/model").json()
    page = visit()
    point = {**model["operating_point"], "min_area": 0.9}
    page.route("**/v1/model", lambda route: route.fulfill(json={**model, "operating_point": point}))
    page.reload()
    give(page, frames[0])
    page.locator("#polyps-text", has_text="no polyp").wait_for()


def test_progress_is_shown_while_frames_are_computed(visit: Visit, frames: list[Path]) -> None:
    page = visit()

    def never_the_last(route: Any) -> None:
        if b"frame-2" not in (route.request.post_data_buffer or b""):
            route.continue_()

    page.route("**/v1/segment*", never_the_last)
    page.set_input_files("#files", frames)
    page.get_by_text("2 of 3 frames").wait_for()
    assert page.locator("#progress-bar").evaluate("(bar) => bar.value") == pytest.approx(2 / 3)
    assert page.locator("#list .state").nth(2).inner_text() == "computing"


def test_a_full_queue_is_waited_for(visit: Visit, frames: list[Path]) -> None:
    page = visit()
    refused: list[str] = []

    def refuse_once(route: Any) -> None:
        if refused:
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(
            status=429, headers={"Retry-After": "1"}, content_type="application/json", body='{"error": "full"}'
        )

    page.route("**/v1/segment*", refuse_once)
    give(page, frames[0])
    assert refused and page.locator("#list .wrong").count() == 0


# --- looking ---


def test_polyps_are_drawn_as_contour_fill_and_heat_map_with_an_opacity(visit: Visit, frames: list[Path]) -> None:
    page = visit()
    give(page, frames[0])
    pictures = {}
    for mode in ("Contour", "Fill", "Heat map", "Off"):
        page.get_by_label(mode).check()
        pictures[mode] = shown(page)
    fill(page)
    solid = yellow(shown(page)).sum()
    assert solid > yellow(pictures["Contour"]).sum() > yellow(pictures["Off"]).sum()
    assert yellow(pictures["Off"]).sum() < 20
    plain = pictures["Off"].astype(int)
    changed = {mode: (np.abs(picture - plain).max(axis=2) > 12).sum() for mode, picture in pictures.items()}
    assert changed["Fill"] > solid / 2 and changed["Heat map"] > solid / 2
    page.locator("#opacity").fill("0.2")
    assert yellow(shown(page)).sum() < solid / 2


def test_the_threshold_answers_without_the_service(
    visit: Visit, service: Any, frames: list[Path], tmp_path: Path
) -> None:
    own = service.web.get("/v1/model").json()["threshold"]
    page = visit()
    give(page, frames[0])
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    fill(page)
    sizes = []
    for threshold in (own - 0.02, own, own + 0.02):
        page.locator("#threshold").fill(f"{threshold:.2f}")
        page.locator("#threshold-value", has_text=f"{threshold:.2f}").wait_for()
        sizes.append(yellow(shown(page)).sum())
    assert sizes[0] > sizes[1] > sizes[2]
    assert json.loads(kept(page, "JSON", tmp_path).read_text())["threshold"] == round(own + 0.02, 2)
    page.get_by_role("button", name="Back to the model's").click()
    assert page.locator("#threshold-value").inner_text() == f"{own:.2f}"
    assert yellow(shown(page)).sum() == sizes[1]
    # What is known of the frame is looked up once, a moment after it was predicted.
    assert not [url for url in sent if "/v1/" in url and "/frames?hash=" not in url]


def test_regions_below_the_least_confidence_are_drawn_faintly_and_not_counted(
    visit: Visit, service: Any, frames: list[Path], tmp_path: Path
) -> None:
    found = asked(service, frames[0])["polyps"]
    assert found and all(polyp["confidence"] < 0.995 for polyp in found)
    page = visit()
    give(page, frames[0])
    page.locator("#polyps-text", has_text=f"{len(found)} polyp").wait_for()
    before = yellow(shown(page)).sum()
    page.locator("#confidence").fill("1")
    page.locator("#polyps-text", has_text="no polyp").wait_for()
    assert f"{len(found)} region" in page.locator("#polyps-text").inner_text()
    assert page.locator("#confidence-value").inner_text() == "1.000" and page.locator("#polyps li").count() == 0
    faint = shown(page)
    page.get_by_label("Off").check()
    assert yellow(faint).sum() < 20 < before and (np.abs(faint.astype(int) - shown(page)).max(2) > 12).sum() > 20
    record = json.loads(kept(page, "JSON", tmp_path).read_text())
    assert record["polyps"] == [] and record["operating_point"]["min_confidence"] == 1
    assert not read(kept(page, "Mask (PNG)", tmp_path)).any()
    page.get_by_role("button", name="Back to the model's").click()
    page.locator("#polyps-text", has_text=f"{len(found)} polyp").wait_for()


def test_the_counts_in_the_list_follow_the_threshold(visit: Visit, frames: list[Path]) -> None:
    page = visit()
    give(page, *frames)
    page.locator("#threshold").fill("0.99")
    page.locator("#list .state", has_text="no polyp").nth(2).wait_for()


def test_a_polyp_of_the_list_is_zoomed_to(visit: Visit, frames: list[Path], tmp_path: Path) -> None:
    page = visit()
    give(page, frames[0])
    fill(page)
    whole = shown(page)
    first = page.locator("#polyps button").first
    assert re.search(r"px, .* % of frame\nconfidence \d+ %\nx \d+–\d+, y \d+–\d+", first.inner_text())
    first.click()
    assert first.get_attribute("aria-pressed") == "true"
    polyp = json.loads(kept(page, "JSON", tmp_path).read_text())["polyps"][0]
    left, top, right, bottom = polyp["box"]
    height, width = whole.shape[:2]
    scale = min(width / (right - left), height / (bottom - top)) / 2  # half of the canvas, in the middle
    across, down = (right - left) * scale / 2, (bottom - top) * scale / 2
    window = np.s_[int(height / 2 - down) : int(height / 2 + down), int(width / 2 - across) : int(width / 2 + across)]
    assert yellow(shown(page)[window]).sum() == pytest.approx(polyp["area"] * scale**2, rel=0.3)  # but for its number
    page.keyboard.press("0")
    assert (shown(page) != whole).any(axis=2).mean() < 0.05  # the box around it
    page.mouse.move(640, 400)
    page.mouse.wheel(0, -400)
    assert (shown(page) != whole).any(axis=2).mean() > 0.3


def test_the_comparing_slider_parts_the_frame_from_its_polyps(visit: Visit, frames: list[Path]) -> None:
    page = visit()
    give(page, frames[0])
    fill(page)
    everything = yellow(shown(page))
    middle = int(np.median(np.flatnonzero(everything.any(axis=0)))) / everything.shape[1]
    page.locator("#compare").fill(str(middle))
    parted = yellow(shown(page))
    line = round(middle * parted.shape[1])
    assert parted[:, : line - 3].sum() == 0 and parted[:, line + 3 :].sum() > 0
    assert (parted[:, line + 3 :] == everything[:, line + 3 :]).mean() > 0.999


def test_keys_go_through_frames_and_views_and_can_be_turned_off(visit: Visit, frames: list[Path]) -> None:
    page = visit()
    give(page, *frames)
    title = page.locator("#stage-title")
    for key, name in (
        ("ArrowRight", "frame-1"),
        ("n", "frame-2"),
        ("n", "frame-2"),
        ("ArrowLeft", "frame-1"),
        ("p", "frame-0"),
    ):
        page.keyboard.press(key)
        page.locator("#stage-title", has_text=name).wait_for()
    page.keyboard.press("h")
    assert page.get_by_label("Heat map").is_checked()
    page.keyboard.press("o")
    assert page.get_by_label("Off").is_checked()
    page.keyboard.press("o")
    assert page.get_by_label("Heat map").is_checked()
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    assert "next frame or video" in page.get_by_role("dialog").inner_text()
    page.get_by_label("Keys without Ctrl are on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.keyboard.press("c")
    assert title.inner_text() == "frame-0.png" and page.get_by_label("Heat map").is_checked()


def test_the_page_can_be_used_with_the_keyboard_alone(visit: Visit, frames: list[Path]) -> None:
    page = visit()
    give(page, *frames[:2])
    reached: list[str] = []
    # Where the focus starts is the browser's choice: it goes once round, from the page's first stop.
    while len(reached) < 150 and not ("skip" in reached and "confidence" in reached[reached.index("skip") :]):
        page.keyboard.press("Tab")
        focus = page.evaluate("() => (({ id, className, name }) => id || className || name)(document.activeElement)")
        reached.append(focus)
    reached = reached[reached.index("skip") :]
    above = ["skip", "help-button", "files", "folder", "camera", "sets-button", "item"]
    order = [*above, "next", "canvas", "compare", "opacity", "edit", "threshold", "confidence"]
    assert reached.count("item") == 1 and "remove" not in reached  # arrows go through the list, Delete removes
    places = [reached.index(name) for name in order]
    assert places == sorted(places)
    said = page.locator("#live").inner_text()
    assert re.match(r"frame-0\.png: (no|\d+) polyp|All 2 frames are done", said)


# --- correcting ---


def test_a_corrected_mask_becomes_a_data_set_to_train_on(
    visit: Visit, state: Path, frames: list[Path], tmp_path: Path
) -> None:
    page = visit()
    give(page, frames[2])
    before = read(kept(page, "Mask (PNG)", tmp_path)) > 0
    page.get_by_role("button", name="Correct the mask").click()
    box = page.locator("#canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.locator("#size").fill("20")
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    page.get_by_label("Eraser").check()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.up()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Redo").click()
    page.mouse.move(x, box["y"] - 20)
    page.get_by_role("button", name="Save correction").click()
    page.get_by_text("Saved as correction frame-2").wait_for()
    page.get_by_text("1 correction saved").wait_for()
    assert page.locator("#list .state").inner_text().endswith("corrected")

    mask = read(kept(page, "Mask (PNG)", tmp_path))
    assert mask.ndim == 2 and set(np.unique(mask)) <= {0, 255}
    drawn = (mask > 0) & ~before
    height, width = mask.shape
    # A bar of 20 pixels' height across the middle, with a round hole of 20 pixels in it.
    assert drawn.any() and mask[height // 2, width // 2] == 0
    rows, columns = np.nonzero(mask[height // 2 - 12 : height // 2 + 12, width // 2 - 30 : width // 2 + 30])
    assert 18 <= np.ptp(rows) + 1 <= 22 and np.ptp(columns) + 1 > 35

    catalog = read_all([state / "corrections"])
    assert list(catalog.frames.frame_id) == ["frame-2"]
    assert (catalog.mask(0) == (mask > 0)).all()
    assert (catalog.frame(0) == read(frames[2])).all()
    with zipfile.ZipFile(kept(page, "Download corrections (zip)", tmp_path)) as archive:
        assert {name.split("/", 1)[1] for name in archive.namelist()} == {"images/frame-2.png", "masks/frame-2.png"}

    page.get_by_role("button", name="Discard the correction").click()
    assert ((read(kept(page, "Mask (PNG)", tmp_path)) > 0) == before).all()


def test_a_mask_can_be_corrected_with_keys_and_undone(visit: Visit, frames: list[Path]) -> None:
    page = visit()
    give(page, frames[2])
    page.keyboard.press("e")
    page.locator("#save-edit").wait_for()
    start = shown(page)
    page.keyboard.press("Space")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
    assert page.locator("#stage-title").inner_text() == "frame-2.png"  # the arrows moved the brush
    drawn = shown(page)
    assert (drawn != start).any()
    for _ in range(4):
        page.keyboard.press("Control+z")
    assert page.get_by_role("button", name="Undo").is_disabled()
    page.keyboard.press("Control+y")
    page.get_by_role("button", name="Undo").wait_for()
    asked_about: list[str] = []

    def stay(dialog: Any) -> None:
        asked_about.append(dialog.message)
        dialog.dismiss()

    page.once("dialog", stay)
    page.keyboard.press("Escape")
    assert asked_about == ["Discard the correction that was not saved?"]
    page.once("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Correct the mask").wait_for()


# --- saving ---


def test_mask_overlay_and_coco_can_be_saved(visit: Visit, frames: list[Path], tmp_path: Path) -> None:
    page = visit()
    give(page, *frames)
    look_at(page, frames[0])
    page.locator("#polyps button").first.wait_for()
    mask = read(kept(page, "Mask (PNG)", tmp_path))
    record = json.loads(kept(page, "JSON", tmp_path).read_text())
    assert mask.shape == (144, 176) and mask.dtype == np.uint8
    assert (mask > 0).sum() == sum(polyp["area"] for polyp in record["polyps"])
    fill(page)
    overlay = read(kept(page, "Overlay (PNG)", tmp_path))
    assert overlay.shape == (144, 176, 3)
    inner = cv2.erode(mask, np.ones((5, 5))) > 0
    assert yellow(overlay)[inner].mean() > 0.8 and (tmp_path / "frame-0.overlay.png").exists()

    coco = json.loads(kept(page, "COCO, 3 frames (JSON)", tmp_path).read_text())
    assert [image["file_name"] for image in coco["images"]] == [frame.name for frame in frames]
    ours = [note for note in coco["annotations"] if note["image_id"] == 1]
    assert [note["area"] for note in ours] == [polyp["area"] for polyp in record["polyps"]]
    drawn = np.zeros(mask.shape, bool)
    for note in ours:
        drawn |= filled(note["segmentation"], *mask.shape)
    assert (drawn == (mask > 0)).all()


# --- videos ---


def test_a_video_is_sent_followed_played_and_jumped_through(visit: Visit, film: Path, tmp_path: Path) -> None:
    page = visit()
    # Watched from inside the page: a short film may be done before one looks from outside.
    page.evaluate(
        """() => {
            window.shown = 0;
            new MutationObserver(() => {
                window.shown += document.querySelectorAll("#list progress:not([hidden])").length;
            }).observe(document.querySelector("#list"), { subtree: true, childList: true, attributes: true });
        }"""
    )
    page.set_input_files("#files", [film])
    page.locator("#film").wait_for(timeout=60_000)
    assert page.evaluate("window.shown") > 0  # how far it was
    seconds = page.locator("#video").evaluate(
        """(video) => new Promise((done, fail) => {
            if (video.readyState >= 1) done(video.duration);
            video.addEventListener("loadedmetadata", () => done(video.duration));
            video.addEventListener("error", () => fail(video.error.message));
        })"""
    )
    assert seconds == pytest.approx(3, abs=0.2)
    timeline = json.loads(kept(page, "exam.timeline.json", tmp_path).read_text())
    marks = page.locator("#timeline button")
    assert marks.count() == len(timeline["tracks"]) == page.locator("#polyps li").count() > 0
    last = max(timeline["tracks"], key=lambda track: track["start"])
    marks.nth(timeline["tracks"].index(last)).click()
    now = "() => document.getElementById('video').currentTime"
    assert page.evaluate(now) == pytest.approx(last["start"], abs=0.01)
    page.locator("#polyps button").first.click()
    assert page.evaluate(now) == pytest.approx(timeline["tracks"][0]["largest_view"]["time"], abs=0.01)
    page.locator("#timeline").click(
        position={"x": page.locator("#timeline").bounding_box()["width"] * 0.5, "y": 2}, force=True
    )
    page.locator("#video").evaluate("(video) => video.play()")
    page.evaluate("() => new Promise((done) => document.getElementById('video').addEventListener('ended', done))")
    needle = page.locator(".needle").evaluate("(needle) => parseFloat(needle.style.left)")
    assert needle == pytest.approx(100, abs=5)

    page.reload()  # the job is the service's: it is still there
    page.locator("#list .state", has_text="video, done").first.wait_for()
    count = page.locator("#list li").count()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove exam.mp4").first.click()
    page.wait_for_timeout(300)
    page.reload()
    page.get_by_text("on cpu").wait_for()
    page.wait_for_timeout(300)
    assert page.locator("#list li").count() == count - 1


def test_a_damaged_video_is_told_at_its_place(visit: Visit, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0\0\0\x18ftypmp42 and then nothing")
    page = visit()
    page.set_input_files("#files", [broken])
    line = page.locator("#list li", has_text="broken.mp4").locator(".state.wrong")
    line.wait_for()
    assert "broken.mp4" in line.inner_text() and "\n" not in line.inner_text()


# --- camera ---


COUNTED = """(broken) => {
    window.flying = { now: 0, most: 0, sent: 0 };
    const began = () => (flying.sent++, (flying.most = Math.max(flying.most, ++flying.now)));
    window.WebSocket = class extends WebSocket {
        constructor(...how) {
            super(...how);
            this.addEventListener("message", ({ data }) => data.startsWith('{"ready"') || flying.now--);
        }
        send(message) {
            if (broken) return this.close(); // as behind a proxy that knows no WebSockets
            if (typeof message !== "string") began();
            super.send(message);
        }
    };
    const asked = window.fetch;
    window.fetch = async (address, ...how) => {
        const counts = String(address).includes("segment");
        if (counts) began();
        return asked(address, ...how).finally(() => (flying.now -= counts));
    };
}"""


@pytest.mark.parametrize("broken", [False, True], ids=["stream", "requests"])
def test_a_camera_is_answered_one_newest_frame_at_a_time(visit: Visit, service: Any, broken: bool) -> None:
    page = visit()
    page.evaluate(COUNTED, broken)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "segment" in request.url else None)
    page.get_by_role("button", name="Camera").click()
    page.locator("#list .state", has_text="frames/s").wait_for()
    page.locator("#stage-facts", has_text="ms a frame").wait_for()
    assert shown(page).std() > 10
    page.locator("#verdict-text", has_text="it shows no inside of a body").wait_for()  # Chromium's camera is green
    first = shown(page)
    page.wait_for_timeout(600)
    assert (shown(page) != first).any()
    flying = page.evaluate("flying")
    assert flying["most"] == 1 and flying["sent"] > 2 and bool(requests) == broken
    page.get_by_role("button", name="Keep this frame").click()
    page.locator("#list .name", has_text=".jpg").wait_for()
    page.get_by_role("button", name="Camera", exact=True).click()
    page.wait_for_timeout(300)
    stopped = page.evaluate("flying.sent")
    page.wait_for_timeout(600)
    assert page.evaluate("flying.sent") == stopped
    page.locator("#stage-title", has_text=".jpg").wait_for()
    assert page.get_by_role("button", name="Correct the mask").is_enabled()
    assert "polypseg_streams 0.0" in service.web.get("/metrics").text


def test_a_camera_that_may_not_be_used_is_told(visit: Visit) -> None:
    page = visit()
    page.evaluate(
        """() => {
            navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotAllowedError"); };
        }"""
    )
    page.get_by_role("button", name="Camera").click()
    page.locator("#notice", has_text="the browser was not allowed to use it").wait_for()
    assert page.locator("#list li", has_text="Camera").count() == 0


# --- the service ---


def test_a_cameras_stream_has_the_token(visit: Visit, start: Callable[..., Any], tmp_path: Path) -> None:
    guarded = start(tmp_path / "state", "--token", TOKEN)
    page = visit(address=guarded.url)
    page.get_by_role("textbox", name="Token").fill(TOKEN)
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("on cpu").wait_for()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "segment" in request.url else None)
    page.get_by_role("button", name="Camera").click()
    page.locator("#list .state", has_text="frames/s").wait_for()
    page.get_by_role("button", name="Camera", exact=True).click()
    assert requests == []


def test_a_token_is_asked_for_once_and_covers_videos_that_are_kept(
    visit: Visit, start: Callable[..., Any], frames: list[Path], film: Path, tmp_path: Path
) -> None:
    guarded = start(tmp_path / "state", "--token", TOKEN, "--keep_video_mib", "1")
    page = visit(address=guarded.url)
    for value in ("wrong", TOKEN):
        page.get_by_role("dialog", name="needs its token").wait_for()
        page.get_by_role("textbox", name="Token").fill(value)
        page.get_by_role("button", name="Continue").click()
    page.get_by_text("on cpu").wait_for()
    give(page, frames[0], film)
    look_at(page, film)
    loaded = "(video) => new Promise((done) => { video.onloadeddata = () => done(true); video.load(); })"
    assert page.locator("#video").evaluate(loaded)
    page.reload()
    page.get_by_text("on cpu").wait_for()  # not asked again
    look_at(page, film)
    assert page.locator("#video").evaluate(loaded)
    page.get_by_text("The service keeps the video's file until the video is removed.").wait_for()
    assert page.locator("#video").evaluate("(video) => video.currentSrc").endswith("/upload")
    page.locator("#confidence").fill("0.5")
    anew, held = page.get_by_role("button", name="Follow anew at this confidence"), []
    page.route("**/again", lambda route: held.append(route))
    anew.click()
    page.get_by_text("anew: sending").wait_for()
    taken = held[0].fetch()  # the service has it, and the page does not know yet
    page.get_by_role("button", name="Stop").click()
    with page.expect_response(lambda response: response.request.method == "DELETE" and response.status == 204):
        held[0].fulfill(response=taken)
    page.unroute("**/again")
    anew.click()  # from the file that the service keeps
    page.locator("#stage-facts", has_text="confidence 0.500").wait_for()
    page.get_by_text("The service keeps the video's file until the video is removed.").wait_for()
    page.get_by_role("button", name="Look at this frame").click()
    page.locator("#stage-title", has_text="exam-00000.png").wait_for()
    page.locator("#stage-facts", has_text="176 × 144").wait_for()
    (job,) = guarded.web.get("/v1/jobs", headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert job["upload"] and job["operating_point"]["min_confidence"] == 0.5
    assert guarded.web.get(f"/v1/jobs/{job['id']}/upload").status_code == 401
    headers = {"authorization": f"Bearer {TOKEN}", "range": "bytes=10-19"}
    part = guarded.web.get(f"/v1/jobs/{job['id']}/upload", headers=headers)
    assert (part.status_code, part.content) == (206, film.read_bytes()[10:20])
    assert guarded.web.get("/v1/jobs").status_code == 401

    guarded.end(signal.SIGTERM)
    page.set_input_files("#files", [frames[1]])
    line = page.locator("#list li", has_text=frames[1].name).locator(".state.wrong")
    line.filter(has_text="The service does not respond; is it still running?").wait_for()


# --- everywhere ---


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (360, 740)])
def test_the_page_is_accessible_and_says_that_it_is_for_research(
    visit: Visit, frames: list[Path], film: Path, width: int, height: int, scheme: str
) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    ).Axe()
    page = visit(width, height, color_scheme=scheme)
    page.get_by_text("on cpu").wait_for()

    def look_at_a_video() -> None:
        page.keyboard.press("Escape")
        give(page, film)
        look_at(page, film)
        page.locator("#film").wait_for()

    steps: dict[str, Callable[[], Any]] = {
        "empty": lambda: None,
        "frames": lambda: give(page, *frames),
        "zoomed": lambda: page.locator("#polyps button").first.click(),
        "correcting": lambda: page.get_by_role("button", name="Correct the mask").click(),
        "help": lambda: page.get_by_role("button", name="Help and keys").click(),
        "video": look_at_a_video,
    }
    for name, step in steps.items():
        step()
        found = axe.run(page).response["violations"]
        told = [(violation["id"], [node["html"][:150] for node in violation["nodes"]]) for violation in found]
        assert told == [], f"{name}: {told}"
        page.mouse.wheel(0, 3000)
        line = page.get_by_text(RESEARCH, exact=True)
        box = line.bounding_box()
        assert line.is_visible() and 0 <= box["y"] < height and box["x"] + box["width"] <= width
        if folder := os.environ.get("POLYPSEG_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}.png")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


# --- the page's arithmetic against Python's ---


def blobs(seed: int, height: int = 57, width: int = 83) -> NDArray[np.float32]:
    """A smooth random map, 0..1."""
    noise = np.random.default_rng(seed).random((height, width), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


@pytest.mark.parametrize("seed", range(4))
def test_polyps_of_the_page_are_those_of_python(visit: Visit, seed: int) -> None:
    page = visit()
    probability = blobs(seed)
    height, width = probability.shape
    outside = np.zeros((6, 9), bool)
    outside[:, :2] = seed > 1
    least = (0.0, 0.75, 0.62, 0.75)[seed]
    point = OperatingPoint(0.55, least, "peak" if seed % 2 else "mean", 0.002, seed > 0)
    expected = Segmentation.from_probability(probability, point, outside)
    mask = expected.mask
    assert (len(expected.polyps) < len(expected.candidates)) == (seed > 0)
    found = page.evaluate(
        """async ([values, width, height, point, outside]) => {
            const { findPolyps } = await import("/static/polyps.js");
            const { Surface } = await import("/static/surface.js");
            const map = { pixels: Uint8Array.from(outside), width: 9, height: 6 };
            const surface = new Surface({ pixels: Float32Array.from(values), width, height }, width, height);
            const found = findPolyps(surface, point, map);
            return { ...found, mask: Array.from(found.mask) };
        }""",
        [probability.ravel().tolist(), width, height, asdict(point), (255 * outside.ravel()).tolist()],
    )
    polyps = found["polyps"]
    assert (np.reshape(found["mask"], mask.shape) == mask).all()
    assert len(polyps) == len(expected.polyps) > 2
    assert len(polyps) + len(found["faint"]) == len(expected.candidates)
    by_box = {tuple(polyp["box"]): polyp for polyp in polyps}
    for polyp in expected.polyps:
        one = by_box[polyp.box]
        assert one["area"] == polyp.area
        assert one["confidence"] == pytest.approx(polyp.confidence, abs=1e-5)
        assert one["contour"] == polyp.contour.tolist()
    assert [polyp["area"] for polyp in polyps] == [polyp.area for polyp in expected.polyps]
    rings = [ring for polyp in polyps for ring in polyp["rings"]]
    assert (filled(rings, height, width) == mask).all()


def test_the_map_is_enlarged_as_python_enlarges_it(visit: Visit) -> None:
    page = visit()
    levels = np.rint(blobs(5) * 255).astype(np.uint8)
    found = page.evaluate(
        """async ([pixels, width, height]) => {
            const { Surface } = await import("/static/surface.js");
            const surface = new Surface({ pixels: Uint8Array.from(pixels), width, height }, 211, 130);
            return Array.from({ length: 130 }, (_, y) => [...surface.row(y)]).flat();
        }""",
        [levels.ravel().tolist(), levels.shape[1], levels.shape[0]],
    )
    expected = cv2.resize(levels.astype(np.float32) / 255, (211, 130), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(np.reshape(found, (130, 211)), expected, atol=1e-5)


def grey_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of H×W levels that uses every row filter, one row after another."""
    height, width = pixels.shape
    padded = np.pad(pixels, ((1, 0), (1, 0))).astype(int)
    here, left, above, corner = padded[1:, 1:], padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    distances = np.abs(np.stack([above - corner, left - corner, left + above - 2 * corner]))
    nearest = np.choose(distances.argmin(axis=0), [left, above, corner])  # the first of equals
    guesses = [np.zeros_like(here), left, above, (left + above) // 2, nearest]
    rows = [bytes([y % 5, *((here - guesses[y % 5])[y] % 256)]) for y in range(height)]
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in ((b"IHDR", head), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")):
        content += struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
    return content


def test_grey_pngs_are_read_and_written_byte_for_byte(visit: Visit) -> None:
    page = visit()
    pixels = np.rint(blobs(7) * 255).astype(np.uint8)
    content = np.frombuffer(grey_png(pixels), np.uint8)
    assert (cv2.imdecode(content, cv2.IMREAD_UNCHANGED) == pixels).all()
    found, written = page.evaluate(
        """async (bytes) => {
            const { decodeGrey, encodeGrey } = await import("/static/png.js");
            const { pixels, width, height } = await decodeGrey(Uint8Array.from(bytes));
            const blob = await encodeGrey(pixels, width, height);
            return [[...pixels], [...new Uint8Array(await blob.arrayBuffer())]];
        }""",
        content.tolist(),
    )
    assert found == pixels.ravel().tolist()
    assert (cv2.imdecode(np.array(written, np.uint8), cv2.IMREAD_UNCHANGED) == pixels).all()


def test_coco_of_a_polyp_with_a_hole_is_python_s(visit: Visit) -> None:
    page = visit()
    mask = np.zeros((40, 50), bool)
    mask[:, 0:40] = True  # whole columns, so that one's end is the next one's beginning
    mask[10:20, 12:25] = False
    mask[30:, 42:] = True  # up to the frame's last pixel
    mask[33:35, 45:47] = False
    found = Segmentation(mask, mask.astype(np.float32), 0.5)
    runs = page.evaluate(
        """async ([values, width, height]) => {
            const { polypsOf } = await import("/static/polyps.js");
            const { coco } = await import("/static/download.js");
            const { Surface } = await import("/static/surface.js");
            const surface = new Surface({ pixels: Float32Array.from(values), width, height }, width, height);
            const polyps = polypsOf(Uint8Array.from(values), surface);
            const frame = { answer: { source: "a.png", width, height }, polyps };
            return coco([frame], "").annotations.map((note) => note.segmentation);
        }""",
        [mask.astype(int).ravel().tolist(), 50, 40],
    )
    assert runs == [coco_segmentation(found, polyp) for polyp in found.polyps]
