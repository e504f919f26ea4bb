"""Predictions that another program wrote: every format that is read, and one line for each that is not."""

from __future__ import annotations

import builtins
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from polypseg.catalog import Catalog
from polypseg.data import read, read_all
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.evaluate import evaluate
from polypseg.evaluation.predictions import FolderPredictor, read_probability
from polypseg.metrics.pranet import pranet_scores

Mask = NDArray[np.bool_]
SHAPE = (40, 56)


def ellipse(centre: tuple[int, int], axes: tuple[int, int]) -> Mask:
    return cv2.ellipse(np.zeros(SHAPE, np.uint8), centre, axes, 0, 0, 360, 1, -1).astype(bool)


MASKS = {
    "a": ellipse((20, 20), (12, 9)),
    "b": ellipse((10, 10), (6, 5)) | ellipse((40, 25), (8, 7)),
    "c": np.zeros(SHAPE, bool),
    "d": ellipse((0, 39), (15, 12)),
}


def write_data(folder: Path, masks: dict[str, Mask] = MASKS) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for name, mask in masks.items():
        Image.fromarray(rng.integers(0, 255, (*mask.shape, 3), np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return read(write_data(tmp_path_factory.mktemp("data") / "clinic"))


def fill(folder: Path, write: Callable[[Path, Mask], Any], masks: dict[str, Mask] = MASKS) -> Path:
    """One file a frame, by ``write(folder / stem, mask)``."""
    folder.mkdir(parents=True)
    for name, mask in masks.items():
        write(folder / name, mask)
    return folder


def as_png(path: Path, mask: Mask) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path.with_suffix(".png"))


def soft(mask: Mask) -> NDArray[Any]:
    return 0.1 + 0.8 * cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 2)


def predicted(folder: Path, frames: Catalog, threshold: float = 0.5) -> list[Any]:
    return list(FolderPredictor(folder, frames, threshold).predictions(frames))


def complaint(call: Callable[[], Any], kind: type[PolypsegError] = PolypsegError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read ---


@pytest.mark.parametrize(
    "write",
    [
        as_png,
        lambda path, mask: Image.fromarray(mask).save(path.with_suffix(".png")),  # one bit
        lambda path, mask: Image.fromarray(np.dstack([mask.astype(np.uint8) * 255] * 3)).save(f"{path}.png"),
        lambda path, mask: Image.fromarray(mask.astype(np.uint8) * 255).save(f"{path}.bmp"),
        lambda path, mask: Image.fromarray(mask.astype(np.uint8) * 255).save(f"{path}.TIF"),
        lambda path, mask: np.save(f"{path}.npy", mask),
        lambda path, mask: np.save(f"{path}.npy", np.asfortranarray(mask.astype(np.float16))),
    ],
    ids=["8 bits", "1 bit", "grey as RGB", "BMP", "TIFF", "bool", "float16"],
)
def test_masks_of_every_kind(tmp_path: Path, frames: Catalog, write: Callable[[Path, Mask], None]) -> None:
    for prediction, mask in zip(predicted(fill(tmp_path / "p", write), frames), MASKS.values(), strict=True):
        np.testing.assert_array_equal(prediction.mask, mask)
        assert prediction.probability.dtype == np.float32 and set(np.unique(prediction.probability)) <= {0.0, 1.0}


def eight_bits(path: Path, mask: Mask) -> None:
    Image.fromarray(np.rint(soft(mask) * 255).astype(np.uint8)).save(f"{path}.png")


def sixteen_bits(path: Path, mask: Mask) -> None:
    cv2.imwrite(f"{path}.png", np.rint(soft(mask) * 65535).astype(np.uint16))


@pytest.mark.parametrize(
    ("write", "tolerance"),
    [
        (eight_bits, 0.5 / 255 + 1e-6),
        (sixteen_bits, 0.5 / 65535 + 1e-6),
        (lambda path, mask: np.save(f"{path}.npy", soft(mask).astype(np.float32)), 0.0),
        (lambda path, mask: np.save(f"{path}.npy", soft(mask)), 0.0),
        (lambda path, mask: Image.fromarray(soft(mask).astype(np.float32)).save(f"{path}.tif"), 0.0),
        (lambda path, mask: cv2.imwrite(f"{path}.tiff", soft(mask).astype(np.float32)), 0.0),
    ],
    ids=["8-bit PNG", "16-bit PNG", "float32", "float64", "TIFF by Pillow", "TIFF by OpenCV"],
)
def test_maps_of_every_kind(
    tmp_path: Path, frames: Catalog, write: Callable[[Path, Mask], None], tolerance: float
) -> None:
    predictions = predicted(fill(tmp_path / "p", write), frames, threshold=0.3)
    for prediction, mask in zip(predictions, MASKS.values(), strict=True):
        expected = soft(mask).astype(np.float32)
        assert np.abs(prediction.probability - expected).max() <= tolerance
        np.testing.assert_array_equal(prediction.mask, prediction.probability >= np.float32(0.3))


def test_several_data_sets_lie_in_sub_folders(tmp_path: Path) -> None:
    empty = {name: np.zeros_like(mask) for name, mask in MASKS.items()}
    both = read_all([write_data(tmp_path / "one"), write_data(tmp_path / "Other Clinic", empty)])
    fill(tmp_path / "p" / "one", as_png)
    fill(tmp_path / "p" / "other-clinic", lambda path, mask: np.save(f"{path}.npy", mask), empty)
    predictions = predicted(tmp_path / "p", both)
    assert [prediction.mask.any() for prediction in predictions] == [True, True, False, True] + [False] * 4
    as_png(tmp_path / "p" / "stray", MASKS["a"])
    assert f"{tmp_path / 'p' / 'stray.png'}: is for no frame" in complaint(
        lambda: FolderPredictor(tmp_path / "p", both)
    )
    (tmp_path / "p" / "stray.png").unlink()
    (tmp_path / "p" / "one").rename(tmp_path / "p" / "uno")
    assert f"{tmp_path / 'p' / 'one'}: is missing" in complaint(lambda: FolderPredictor(tmp_path / "p", both))


def test_accents_in_either_unicode_form(tmp_path: Path) -> None:
    masks = {"é": MASKS["a"]}
    catalog = read(write_data(tmp_path / "data", masks))
    folder = fill(tmp_path / "p", as_png, {unicodedata.normalize("NFD", "é"): MASKS["a"]})
    np.testing.assert_array_equal(predicted(folder, catalog)[0].mask, MASKS["a"])


def test_hidden_and_other_files_are_passed_over(tmp_path: Path, frames: Catalog) -> None:
    folder = fill(tmp_path / "p", as_png)
    for name in ("._a.png", "notes.txt", "run.log"):
        (folder / name).write_text("x")
    assert len(predicted(folder, frames)) == 4


def test_eight_bit_maps_and_pranets_protocol(tmp_path: Path) -> None:
    """Where a map spans 0..255, as PraNet writes it, the scores are main.m's; elsewhere as near as is documented."""
    truth = MASKS["b"]
    for low, high, tolerance in ((0, 255, 1e-12), (20, 180, 0.0032)):
        levels = np.rint(low + (high - low) * cv2.GaussianBlur(truth.astype(np.float64), (0, 0), 1)).astype(np.uint8)
        levels[0, 0], levels[10, 10] = low, high
        Image.fromarray(levels).save(tmp_path / "map.png")
        ours, theirs = pranet_scores(read_probability(tmp_path / "map.png"), truth), pranet_scores(levels, truth)
        assert ours.summary()["meanDic"] == pytest.approx(theirs.summary()["meanDic"], abs=tolerance)
    assert ours.summary()["meanDic"] != theirs.summary()["meanDic"]


# --- the scores of predictions that are known ---


def test_the_truth_itself_scores_one_everywhere(tmp_path: Path, frames: Catalog) -> None:
    report = evaluate(FolderPredictor(fill(tmp_path / "p", as_png), frames), frames, progress=False)
    shown = report.per_image[report.per_image["polyps"] > 0]
    assert (shown[["dice", "iou", "recall", "precision", "specificity", "boundary_iou"]] == 1).all(axis=None)
    assert (shown[["hd_px", "hd95_px", "assd_px", "missed", "false_positives", "mae"]] == 0).all(axis=None)
    for entry in report.numbers["headline"].values():
        assert entry["mean"] == entry["median"] == entry["low"] == entry["high"] == 1
    lesions = report.numbers["lesions"]
    assert lesions["lesions"] == lesions["predicted"] == 4 and lesions["specificity_on_frames_without_polyp"] == 1
    assert all(
        one == {"recall": 1, "precision": 1, "false_positives_per_frame": 0} for one in lesions["at_iou"].values()
    )
    assert report.numbers["calibration"]["ece"] == report.numbers["calibration"]["brier"] == 0


def test_empty_masks_score_nothing_anywhere(tmp_path: Path, frames: Catalog) -> None:
    folder = fill(tmp_path / "p", lambda path, mask: as_png(path, np.zeros_like(mask)))
    report = evaluate(FolderPredictor(folder, frames), frames, progress=False)
    dice = report.per_image.set_index("frame_id")["dice"]
    assert np.isnan(dice.pop("c")) and dice.to_dict() == {"a": 0, "b": 0, "d": 0}  # c shows no polyp
    assert report.numbers["headline"]["dice"]["mean"] == report.numbers["definitions"]["dice_global"]["mean"] == 0
    assert report.numbers["polyp_free"]["marked"]["mean"] == 0
    diagonal = float(np.hypot(*SHAPE))
    assert list(report.per_image["hd95_px"].dropna()) == pytest.approx([diagonal] * 3)
    assert list(report.per_image["missed"]) == [1, 2, 0, 1]
    half = report.numbers["lesions"]["at_iou"]["0.5"]
    assert half["recall"] == 0 and half["precision"] is None and half["false_positives_per_frame"] == 0


# --- what is refused ---


def test_a_missing_prediction_is_never_scored(tmp_path: Path, frames: Catalog) -> None:
    folder = fill(tmp_path / "p", as_png)
    (folder / "c.png").unlink()  # the frame on which nothing at all would have scored 1
    line = complaint(lambda: FolderPredictor(folder, frames))
    assert str(folder) in line and "frame c of clinic" in line and "1 of 4 missing" in line
    (folder / "c.webp").write_bytes(b"x")  # a format that is not read counts as missing
    assert "frame c of clinic" in complaint(lambda: FolderPredictor(folder, frames))


def test_an_extra_one_is_told(tmp_path: Path, frames: Catalog) -> None:
    folder = fill(tmp_path / "p", as_png)
    as_png(folder / "e", MASKS["a"])
    assert f"{folder / 'e.png'}: is for no frame" in complaint(lambda: FolderPredictor(folder, frames))


def test_two_files_of_one_stem(tmp_path: Path, frames: Catalog) -> None:
    folder = fill(tmp_path / "p", as_png)
    np.save(folder / "a.npy", MASKS["a"])
    line = complaint(lambda: FolderPredictor(folder, frames))
    assert str(folder / "a.png") in line and "a.npy" in line


def test_no_folder(tmp_path: Path, frames: Catalog) -> None:
    assert str(tmp_path / "no") in complaint(lambda: FolderPredictor(tmp_path / "no", frames))
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in complaint(lambda: FolderPredictor(tmp_path / "file", frames))


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_outside_0_to_1(tmp_path: Path, frames: Catalog, threshold: float) -> None:
    folder = fill(tmp_path / "p", as_png)
    assert "--threshold" in complaint(lambda: FolderPredictor(folder, frames, threshold), UsageError)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import builtins; builtins.polypseg_bomb = True",))


def object_array(path: Path) -> None:
    np.save(path, np.array([Bomb(), None], dtype=object), allow_pickle=True)


def in_colour(path: Path) -> None:
    Image.fromarray(np.dstack([MASKS["a"] * 255, MASKS["a"] * 0, MASKS["a"] * 0]).astype(np.uint8)).save(path)


def with_palette(path: Path) -> None:
    image = Image.fromarray(MASKS["a"].astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(path)


def with_alpha(path: Path) -> None:
    """White everywhere; the mask is in the alpha channel."""
    Image.fromarray(np.dstack([np.full(SHAPE, 255), MASKS["a"] * 255]).astype(np.uint8), "LA").save(path)


@pytest.mark.parametrize(
    "pixels",
    [
        lambda mask: mask.astype(np.uint8),
        lambda mask: mask.astype(np.uint8) * np.uint8(3),  # classes
        lambda mask: mask.astype(np.uint16) * np.uint16(255),
        lambda mask: mask.astype(np.uint16) * np.uint16(4095),
    ],
)
def test_pictures_of_a_small_range_are_told(tmp_path: Path, frames: Catalog, pixels: Callable[[Any], Any]) -> None:
    folder = fill(tmp_path / "p", lambda path, mask: Image.fromarray(pixels(mask)).save(path.with_suffix(".png")))
    predictor = FolderPredictor(folder, frames)
    line = complaint(lambda: evaluate(predictor, frames, progress=False))
    assert line.startswith(f"{folder}: no picture contains more than ")


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(MASKS["a"].astype(np.uint8) * 255).save(path, exif=exif)


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])


def truncated_tiff(path: Path) -> None:
    Image.fromarray(soft(MASKS["a"]).astype(np.float32)).save(path)
    path.write_bytes(path.read_bytes()[:-3000])


def two_pages(path: Path) -> None:
    page = Image.fromarray(soft(MASKS["a"]).astype(np.float32))
    page.save(path, save_all=True, append_images=[page])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("a.png", lambda path: as_png(path, np.ones((40, 57), bool)), "is 57×40 but its frame is 56×40"),
        ("a.npy", lambda path: np.save(path, MASKS["a"].T), "is 40×56 but its frame is 56×40"),
        ("a.npy", lambda path: np.save(path, np.where(MASKS["a"], np.nan, 0.5)), "NaN"),
        ("a.npy", lambda path: np.save(path, np.where(MASKS["a"], np.inf, 0.5)), "NaN or infinity"),
        ("a.npy", lambda path: np.save(path, MASKS["a"] * 255.0), "from 0 to 255"),
        ("a.npy", lambda path: np.save(path, MASKS["a"] * 8.0 - 4), "from -4 to 4"),
        ("a.npy", lambda path: np.save(path, np.full(SHAPE, -1e-3)), "from -0.001"),
        ("a.npy", lambda path: np.save(path, MASKS["a"].astype(np.uint8) * 255), "uint8"),
        ("a.npy", lambda path: np.save(path, MASKS["a"] * 0.5 + 0j), "complex128"),
        ("a.npy", lambda path: np.save(path, MASKS["a"][None] * 0.5), "height × width"),
        ("a.npy", lambda path: np.save(path, np.float32(0.5)), "height × width"),
        ("a.npy", object_array, "cannot be read"),
        ("a.npy", lambda path: path.write_bytes(pickle.dumps(Bomb())), "cannot be read"),
        ("a.npy", lambda path: np.savez(path.open("wb"), a=MASKS["a"]), "cannot be read"),
        ("a.npy", lambda path: path.write_bytes(b""), "cannot be read"),
        (
            "a.npy",
            lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'shape': ("),
            "cannot be read",
        ),
        ("a.tif", lambda path: Image.fromarray(np.full(SHAPE, np.nan, np.float32)).save(path), "NaN"),
        ("a.tif", lambda path: Image.fromarray(np.full(SHAPE, 7, np.float32)).save(path), "from 7 to 7"),
        ("a.tif", lambda path: Image.fromarray(np.full(SHAPE, 1, np.int32)).save(path), "32-bit"),
        ("a.tif", two_pages, "contains 2 pictures"),
        ("a.tif", truncated_tiff, "damaged"),
        ("a.png", truncated, "damaged"),
        ("a.png", lambda path: path.write_text("no picture"), "is not an image"),
        ("a.png", lambda path: path.write_bytes(b""), "is empty"),
        ("a.png", Path.mkdir, "cannot be read"),
        ("a.png", in_colour, "colour"),
        ("a.png", with_palette, "colour"),
        ("a.png", turned, "orientation"),
        ("a.png", with_alpha, "alpha channel that is not opaque"),
    ],
)
def test_a_bad_file_is_told_in_one_line(
    tmp_path: Path, frames: Catalog, name: str, write: Callable[[Path], None], reason: str
) -> None:
    folder = fill(tmp_path / "p", as_png)
    (folder / "a.png").unlink()
    write(folder / name)
    predictor = FolderPredictor(folder, frames)
    line = complaint(lambda: evaluate(predictor, frames, progress=False))
    assert line.startswith(f"{folder / name}: ") and reason in line
    assert not hasattr(builtins, "polypseg_bomb")
    assert "allow_pickle" not in line.replace("allow_pickle=False", "")  # no advice to load it after all


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_0_and_1_are_not_scored_as_empty(tmp_path: Path, frames: Catalog, dtype: Any) -> None:
    folder = fill(tmp_path / "p", lambda path, mask: cv2.imwrite(f"{path}.png", mask.astype(dtype)))
    line = complaint(lambda: evaluate(FolderPredictor(folder, frames), frames, progress=False))
    assert str(folder) in line and "0 and 255" in line
    # one faint map among others is a faint map
    as_png(folder / "b", MASKS["b"])
    assert evaluate(FolderPredictor(folder, frames), frames, progress=False).per_image["dice"][1] == 1
