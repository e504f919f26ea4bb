"""What a program types first, and what it gets: pictures of every kind, results that draw, save and compare, verbs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import polypseg
from polypseg.bundle import ModelBundle
from polypseg.data import phantom, read
from polypseg.errors import PolypsegError, UsageError
from polypseg.io.pictures import read_frame
from polypseg.segmentation import Enlarged

FRAME = phantom.draw(1, 90, 130)[0]
Model = polypseg.Segmenter


@pytest.fixture(scope="module")
def model(untrained: ModelBundle) -> Model:
    return polypseg.load(untrained, runtime="torch", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, a video of four frames, and what is no picture."""
    from fractions import Fraction

    from polypseg.io.video import VideoInfo, VideoWriter, finish_mp4

    folder = tmp_path_factory.mktemp("sources")
    for number in (1, 2, 10):
        Image.fromarray(phantom.draw(number, 90, 130)[0]).save(folder / f"frame-{number}.png")
    (folder / "notes.txt").write_text("nothing")
    writer = VideoWriter(folder / "part", VideoInfo(128, 96, fps=25.0, time_base=Fraction(1, 25)))
    for number in range(4):
        writer.write(phantom.draw(number, 96, 128)[0], number)
    writer.close()
    finish_mp4(folder / "part", folder / "clip.mp4")
    (folder / "part").unlink()
    return folder


# ---- pictures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        lambda file: file,
        str,
        Image.open,
        lambda file: np.array(Image.open(file)),
        lambda file: cv2.imread(str(file))[..., ::-1],
        lambda file: np.dstack([read_frame(file), np.full(FRAME.shape[:2], 7, np.uint8)]),
        lambda file: read_frame(file).astype(np.uint16) * 257,
        lambda file: torch.from_numpy(read_frame(file)),
        lambda file: torch.from_numpy(read_frame(file)).permute(2, 0, 1),
        lambda file: torch.from_numpy(read_frame(file)).permute(2, 0, 1) / 255,
    ],
    ids=["path", "str", "PIL", "array", "OpenCV", "RGBA", "16 bits", "tensor HWC", "tensor CHW", "tensor 0..1"],
)
def test_a_picture_may_come_as_anything(model: Model, folder: Path, made: Callable[[Path], Any]) -> None:
    file = folder / "frame-1.png"
    expected = model.segment(read_frame(file))
    assert len(expected.polyps) > 0
    assert model(made(file)) == expected
    assert model.segment([made(file)]) == [expected]


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("L", FRAME[..., 0]),
        ("I;16", FRAME[..., 0].astype(np.uint16) << 4),  # 12 bits in use
        ("RGBA", np.dstack([FRAME, FRAME[..., 0]])),
    ],
)
@pytest.mark.parametrize("kind", ["array", "PIL", "loaded"])
def test_other_modes_are_read_as_their_file_is(
    model: Model, tmp_path: Path, mode: str, values: NDArray[Any], kind: str
) -> None:
    file = tmp_path / "frame.png"
    Image.fromarray(values).save(file)
    given: Any = values if kind == "array" else Image.open(file)
    if kind == "loaded":
        given.load()
    result = model(given)
    assert result.frame is not None
    np.testing.assert_array_equal(result.frame, read_frame(file))


def test_16_bits_of_three_channels_are_not_cut_by_pillow(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "deep.png"
    cv2.imwrite(str(file), FRAME[..., ::-1].astype(np.uint16) << 4)
    for given in (file, Image.open(file)):
        frame = model(given).frame
        assert frame is not None
        np.testing.assert_array_equal(frame, FRAME)


def test_a_pil_image_is_turned_as_its_exif_says(model: Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(FRAME).save(tmp_path / "turned.jpg", exif=exif)
    assert model(Image.open(tmp_path / "turned.jpg")) == model(tmp_path / "turned.jpg")
    assert model(tmp_path / "turned.jpg").mask.shape == (130, 90)


@pytest.mark.parametrize(
    ("picture", "remedy"),
    [
        (FRAME / 255, r"float64; bring it to 0\.\.255 first: \(255 \* array\)"),
        (FRAME.astype(int), r"int64; bring it to 0\.\.255 first: array\.astype"),
        (FRAME.transpose(2, 0, 1), r"put the channels last: array\.transpose\(1, 2, 0\)"),
        (FRAME[None], r"give many frames as a list: list\(array\)"),
        (FRAME[:0], "it is empty"),
        (FRAME[0, 0], "give rows, columns and channels"),
        (np.zeros((8, 9, 5), np.uint8), "give 1, 3 or 4 channels"),
        (torch.zeros(2, 3, 8, 8), r"give many frames as a list: list\(tensor\)"),
        (torch.full((3, 8, 8), 2.0), r"a float tensor is of 0\.\.1, this one of 2 to 2"),
        (torch.full((3, 8, 8), float("nan")), r"a float tensor is of 0\.\.1"),
        (Image.new("F", (8, 8)), "float samples"),
    ],
)
def test_what_is_no_frame_names_the_remedy(model: Model, picture: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        model(picture)
    with pytest.raises(ValueError, match=remedy):
        model([FRAME, picture])


def test_what_is_no_picture_names_the_remedy(model: Model, folder: Path) -> None:
    for picture, remedy in (
        (folder, "is a folder; its pictures are read by stream"),
        (folder / "clip.mp4", "is a video; its frames are read by stream"),
        (f"{folder}/*.png", "is a pattern; its files are read by stream"),
        ("https://example.org/a.jpg", "is no file; download it first"),
    ):
        with pytest.raises(UsageError, match=remedy):
            model(picture)
    with pytest.raises(PolypsegError, match=r"none\.png: is missing; check the name"):
        model("none.png")
    with pytest.raises(PolypsegError, match=r"notes\.txt: is not an image"):
        model(folder / "notes.txt")
    for other in (None, 3, {"a": 1}, b"pixels"):
        with pytest.raises(TypeError, match="a picture is a path, a PIL image, an array or a tensor"):
            model(other)


def test_a_list_gives_a_list(model: Model, folder: Path) -> None:
    files = sorted(folder.glob("*.png"))
    alone = [model(file) for file in files]
    assert model(files) == alone == model(tuple(files)) and model([]) == []
    batched = model(files, batch_size=2)
    assert [one.path for one in batched] == [str(file) for file in files]


# ---- streams ---------------------------------------------------------------------------------------------


def test_a_stream_may_come_as_anything(model: Model, folder: Path) -> None:
    pictures = [folder / f"frame-{number}.png" for number in (1, 2, 10)]
    alone = [model(file) for file in pictures]
    video = list(model.stream(folder / "clip.mp4"))
    assert [one.index for one in video] == [0, 1, 2, 3]
    assert [one.time for one in video] == pytest.approx([0, 0.04, 0.08, 0.12])
    assert list(model.stream(folder)) == [*video, *alone]  # by name, in natural order
    assert list(model.stream(f"{folder}/frame-*.png")) == alone
    together = list(model.stream([*pictures, folder / "clip.mp4"], batch_size=3))
    for one, other in zip(together, [*alone, *video], strict=True):
        assert one.path == other.path and np.abs(one.probability - other.probability).max() < 1e-4
    frames = [read_frame(file) for file in pictures]
    for given in (frames, iter(frames), (one for one in frames), np.stack(frames), torch.from_numpy(np.stack(frames))):
        found = list(model.stream(given))
        assert found == alone and [one.index for one in found] == [0, 1, 2]
    for one in (pictures[0], Image.open(pictures[0]), frames[0]):
        assert list(model.stream(one)) == alone[:1]


def test_a_camera_is_a_stream(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from polypseg.io import frames as module

    asked = []

    def camera_frames(camera: int | str) -> Any:
        asked.append(camera)
        while True:
            yield FRAME

    monkeypatch.setattr(module, "camera_frames", camera_frames)
    for camera in (0, "camera:0", "rtsp://user:secret@host/1"):
        results = model.stream(camera)
        first, second = next(results), next(results)
        assert (first.index, second.index, first.time) == (0, 1, 0.0) and second.time is not None
        assert first.path is not None and "secret" not in first.path
    assert asked == [0, 0, "rtsp://user:secret@host/1"]


def test_what_is_no_stream_names_the_remedy(model: Model, folder: Path, tmp_path: Path) -> None:
    for source, remedy in (
        (tmp_path, "has no image, video or DICOM file; sub-folders are read by"),
        (f"{folder}/*.jpg", "has no image, video or DICOM file; check the pattern"),
        ("none.mp4", "is missing; check the name"),
    ):
        with pytest.raises(PolypsegError, match=remedy):
            next(model.stream(source))
    with pytest.raises(TypeError, match="a picture is a path"):
        next(model.stream(b"pixels"))  # whose bytes are numbers, but no cameras'


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(model: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for ask in (model, lambda source: next(model.stream(source))):
        with pytest.raises(PolypsegError, match=r"pipe\.png: is neither a file nor a folder"):
            ask(tmp_path / "pipe.png")


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_none_is_refused_everywhere_alike(model: Model, batch_size: int) -> None:
    for ask in (
        lambda: model(FRAME, batch_size),
        lambda: model([FRAME], batch_size),
        lambda: model.stream([FRAME], batch_size),  # at once, not when the first is asked for
        lambda: model.probabilities([FRAME], batch_size),
        lambda: model.views([FRAME], batch_size),
        lambda: polypseg.predict("none.png", batch_size=batch_size),
    ):
        with pytest.raises(UsageError, match=f"--batch_size {batch_size}: must be 1 or more"):
            ask()


# ---- results ---------------------------------------------------------------------------------------------


def test_a_result_draws_itself(model: Model, folder: Path) -> None:
    result = model(folder / "frame-1.png")
    assert result.frame is not None
    drawn = result.plot()
    assert drawn.mode == "RGB" and drawn.size == (130, 90)
    changed = (np.asarray(drawn) != result.frame).any(axis=2)
    assert changed[result.mask].mean() > 0.9 and not changed.all()
    bare = model.segmentation(model.probability(FRAME), *FRAME.shape[:2])
    with pytest.raises(ValueError, match=r"has no frame to draw on: give it, as result\.plot\(frame\)"):
        bare.plot()
    assert bare.plot(result.frame).size == drawn.size


def test_a_result_saves_itself_as_predict_would(model: Model, folder: Path, tmp_path: Path) -> None:
    result = model(folder / "frame-1.png")
    files = result.save(tmp_path / "found", ["mask", "overlay", "json"])
    assert [file.name for file in files] == ["frame-1.png", "frame-1.overlay.jpg", "frame-1.json"]
    np.testing.assert_array_equal(np.asarray(Image.open(files[0])), result.mask * 255)
    assert json.loads(files[2].read_text()) == result.to_dict()
    assert sorted(one.name for one in model(FRAME).save(f"{tmp_path}/a.b/")) == ["frame.json", "frame.png"]
    done = polypseg.predict(
        folder / "frame-1.png", model=model.bundle.folder, out=tmp_path / "out", runtime="torch", device="cpu",
        precision="fp32", progress=False,
    )  # fmt: skip
    written = json.loads((Path(done) / "frame-1.json").read_text())
    assert done.complete and {key: written[key] for key in result.to_dict()} == result.to_dict()

    for name, kind in (("one.png", "PNG"), ("one.jpg", "JPEG")):
        (file,) = result.save(tmp_path / name)
        assert Image.open(file).format == kind
    names = [one.save(tmp_path / "video", ["json"])[0].name for one in model.stream(folder / "clip.mp4")]
    assert names == ["clip-0001.json", "clip-0002.json", "clip-0003.json", "clip-0004.json"]
    with pytest.raises(UsageError, match=r"one\.tif: name a folder, or a file \.png \(mask\)"):
        result.save(tmp_path / "one.tif")
    with pytest.raises(UsageError, match="choose of mask, overlay, json, as a list"):
        result.save(tmp_path, ["masks"])  # type: ignore[list-item]


def test_results_compare_hash_and_pickle_by_what_they_say(model: Model) -> None:
    one, same, other = model(FRAME), model(FRAME.copy()), model(FRAME[::-1])
    assert one == same and hash(one) == hash(same) and one != other and one != 3
    assert one.polyps == same.polyps and len({*one.polyps, *same.polyps}) == len(one.polyps)
    assert one.polyps[0] != other.polyps[0]
    again = pickle.loads(pickle.dumps(one))
    assert again == one and again.polyps == one.polyps and again.to_dict() == one.to_dict()


def test_views_are_read_only_and_what_was_given_is_left_alone(model: Model) -> None:
    frame = FRAME.copy()
    result = model(frame)
    assert result.frame is not None and np.shares_memory(result.frame, frame), "a copy of the frame"
    for array in (result.mask, result.candidate_mask, result.probability, result.frame, result.polyps[0].contour):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    frame[0] = 0  # still the caller's own
    strict = polypseg.load(model.bundle, runtime="torch", device="cpu", min_confidence=0.99)(FRAME)
    with pytest.raises(ValueError, match="read-only"):
        strict.mask[0] = True


def test_each_is_told_in_one_line(model: Model, folder: Path, phantom_folder: Path) -> None:
    bundle, result = model.bundle, model(folder / "frame-1.png")
    count = len(result.polyps)
    assert repr(model) == "Segmenter(untrained: torch on cpu in fp32, threshold 0.565, min_confidence 0)"
    assert f"frame-1.png, 130×90, {count} polyp" in repr(result)
    assert repr(result.polyps[0]).startswith("Polyp(box=(") and "confidence=0." in repr(result.polyps[0])
    what = f"Unet mobilenet_v2, 96×64, hash {bundle.hash[:12]}"
    assert repr(bundle).startswith(f"ModelBundle(untrained: {what}, ")
    catalog = read(phantom_folder)
    assert repr(catalog).startswith("Catalog(40 frames, 40 with a mask: ")
    for one in (model, result, result.polyps[0], bundle, catalog):
        assert len(repr(one).splitlines()) == 1


def test_bundles_and_catalogs_compare(model: Model, phantom_folder: Path) -> None:
    bundle, again = model.bundle, ModelBundle.load(model.bundle.folder)
    assert bundle == again and len({bundle, again}) == 1 and pickle.loads(pickle.dumps(bundle)) == bundle
    assert bundle != bundle.at(bundle.preprocessing.scaled(2))
    catalog = read(phantom_folder)
    assert catalog == read(phantom_folder) == pickle.loads(pickle.dumps(catalog))
    assert catalog != polypseg.Catalog(catalog.frames[:3])
    with pytest.raises(TypeError, match="unhashable"):
        hash(catalog)


def test_a_segmenter_that_was_pickled_opens_its_bundle_again(untrained: ModelBundle) -> None:
    model = polypseg.load(untrained, runtime="torch", device="cpu", precision="fp32", tta="hflip", threshold=0.6)
    again = pickle.loads(pickle.dumps(model))
    assert again.settings == model.settings and again(FRAME) == model(FRAME)


def test_several_views_share_one_set_of_weights(exported: ModelBundle) -> None:
    for runtime in ("torch", "onnx", "openvino"):
        model = polypseg.Segmenter(exported, runtime, "cpu", "fp32", tta="flips")
        assert len({id(member.runtime) for member in model._members}) == 1
    small = polypseg.Segmenter(exported, "torch", "cpu", "fp32", tta="multiscale")
    first, second = (member.runtime for member in small._members)
    assert first._network is second._network  # type: ignore[attr-defined]


# ---- the package -----------------------------------------------------------------------------------------


def test_the_package_shows_what_it_offers() -> None:
    names = [name for name in dir(polypseg) if not name.startswith("__")]
    assert names == sorted(polypseg.__all__) and "load" in names
    for name in names:
        assert callable(getattr(polypseg, name)) or name == "zoo"
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = polypseg.lod


@pytest.mark.slow
def test_export_can_be_called_before_and_after_its_package_is_imported() -> None:
    program = (
        "import polypseg\nbefore = callable(polypseg.export)\nimport polypseg.export.run\n"
        "print(before, callable(polypseg.export), polypseg.export is __import__('sys').modules['polypseg.export'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_a_bundle_needs_no_network_code() -> None:
    program = "import sys, polypseg.bundle\nprint({'polypseg.hub', 'huggingface_hub'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_bundle_by_its_name_is_the_zoos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("polypseg-realtime", "hf://someone/polyps"):
        with pytest.raises(PolypsegError, match=f"is opened by polypseg.zoo.open.'{name}'"):
            ModelBundle.load(name)
    with pytest.raises(UsageError, match=r"the shipped model is opened by polypseg\.zoo\.open\(\)"):
        ModelBundle.load()
    with pytest.raises(PolypsegError, match="is no model bundle") as caught:
        ModelBundle.load(tmp_path / "none")
    assert "zoo" not in str(caught.value)


# ---- verbs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"epoch": 3}, r"epoch: is no field of a recipe.*; did you mean epochs\?"),
        ({"interpolations": 1}, r"did you mean interpolation\?"),
        ({"epochs": 0}, "trainer.epochs 0: must be a whole number"),
        ({"presence": 0.1}, r"presence: may be .*loss\.presence.*; give its whole name, as \*\*\{'model\.presence'"),
        ({"optimizer": {"speed": 1}}, "optimizer.speed: is no field of a recipe"),
        ({"optimizer": 3}, "optimizer: is no field of a recipe"),
        ({"dice": -1}, "loss.dice -1"),
    ],
)
def test_a_field_that_is_none_is_told(small_recipe: Callable[..., Any], fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        polypseg.train(small_recipe(), "nowhere", **fields)


def test_a_fields_last_name_is_enough_where_it_is_the_only_one() -> None:
    from polypseg.api import _recipe

    recipe = _recipe(
        "smoke", {"epochs": 3, "size": 96, "name": "own", "optimizer": {"name": "adam"}, "model.name": "Unet"}
    )
    assert (recipe.trainer.epochs, recipe.frames.size, recipe.name) == (3, 96, "own")
    assert (recipe.optimizer.name, recipe.model.name) == ("adam", "Unet")
    assert _recipe(recipe, {}) is recipe
    with pytest.raises(UsageError, match="is no field"):
        _recipe(recipe, {"optimizer.size": 3})


def test_a_recipe_that_polypseg_has_not_is_told(tmp_path: Path) -> None:
    with pytest.raises(PolypsegError, match=r"realtim: is no recipe file, nor one that ships.*did you mean realtime\?"):
        polypseg.train("realtim", tmp_path)
    with pytest.raises(PolypsegError, match=r"own\.yaml: is no recipe file"):
        polypseg.train(tmp_path / "own.yaml", tmp_path)


@pytest.mark.slow
def test_the_verbs_give_objects(small_recipe: Callable[..., Any], phantom_folder: Path, tmp_path: Path) -> None:
    run = polypseg.train(small_recipe(), data=phantom_folder, out=tmp_path / "run", epochs=1, progress=False)
    assert run.folder == tmp_path / "run" and isinstance(run.bundle, ModelBundle)
    assert (run.folder / "config.yaml").read_text().count("epochs: 1") == 1
    assert run.metrics["test"]["n"] > 0 and f"Dice {run.metrics['test']['dice']:.4f}" in repr(run)

    report = polypseg.evaluate(run, data=[phantom_folder], out=tmp_path / "report", progress=False)
    assert report.numbers == json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(report.per_image) == run.metrics["test"]["n"] and report.folder == tmp_path / "report"
    assert repr(report).startswith(f"Report({len(report.per_image)} frames, Dice ")

    made = polypseg.export(run, format="onnx", progress=False)
    assert made.model.is_file() and [one.runtime for one in run.bundle.exports] == ["onnx"]
    for options, says in (
        ({"format": "onx"}, "--format onx: is unknown; choose openvino or onnx"),
        ({"precision": "int8"}, "--precision int8: needs --data"),
    ):
        with pytest.raises(UsageError, match=says):
            polypseg.export(run, **options)

    done = polypseg.predict(phantom_folder, model=run, out=tmp_path / "found", save=["overlay", "csv"], progress=False)
    assert done.complete and len(list(Path(done).glob("*.overlay.jpg"))) == 40
    assert done.folder == tmp_path / "found" and (Path(done) / "predictions.csv").is_file()
    assert polypseg.load(run)(FRAME).mask.shape == FRAME.shape[:2]


def test_the_size_that_a_result_takes_is_the_networks_until_it_is_asked_for_more(model: Model) -> None:
    assert isinstance(model(FRAME).source, Enlarged)
