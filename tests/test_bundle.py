"""The ModelBundle on disk, and the one preprocessing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from polypseg.bundle import SCHEMA_VERSION, Architecture, ModelBundle, Preprocessing
from polypseg.errors import PolypsegError
from polypseg.operating_point import OperatingPoint

ARCHITECTURE = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8), 0.25)
PREPROCESSING = Preprocessing(64, 96, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "area")


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {**torch.nn.Linear(5, 3).state_dict(), "steps": torch.tensor(7)}


def save(folder: Path, seed: int = 0, **details: Any) -> ModelBundle:
    values: dict[str, Any] = {"name": "tiny", "architecture": ARCHITECTURE, "preprocessing": PREPROCESSING}
    return ModelBundle.save(folder, state(seed), **{**values, "threshold": 0.4, **details})


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def change(folder: Path, **values: Any) -> None:
    """Edit metadata.json by hand; a value of None removes the key."""
    file = folder / "metadata.json"
    metadata = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


# ---- on disk --------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    saved = save(tmp_path / "a" / "bundle", licence="Apache-2.0", metrics={"test": {"dice": 0.9}})
    assert names(tmp_path / "a") == ["bundle"]
    assert names(saved.folder) == ["metadata.json", "model.safetensors"]
    bundle = ModelBundle.load(tmp_path / "a" / "bundle")
    assert (bundle.name, bundle.threshold) == ("tiny", 0.4)
    assert bundle.architecture == ARCHITECTURE
    assert bundle.preprocessing == PREPROCESSING
    assert bundle.metadata["licence"] == "Apache-2.0"
    assert bundle.metadata["metrics"] == {"test": {"dice": 0.9}}
    assert bundle.metadata["schema_version"] == SCHEMA_VERSION
    assert "not a medical device" in bundle.metadata["intended_use"].lower()
    assert bundle.metadata["versions"]["numpy"] == np.__version__
    weights = bundle.weights()
    assert weights.keys() == state().keys()
    for key, value in state().items():
        assert weights[key].dtype == value.dtype
        assert torch.equal(weights[key], value)


def test_a_transposed_view_is_saved_as_what_it_shows(tmp_path: Path) -> None:
    value = torch.arange(6.0).reshape(2, 3).T
    bundle = ModelBundle.save(
        tmp_path / "b", {"x": value}, name="x", architecture=ARCHITECTURE, preprocessing=PREPROCESSING,
        threshold=0.5,
    )  # fmt: skip
    assert torch.equal(bundle.weights()["x"], value)


def test_a_run_folder_is_a_bundle_too(tmp_path: Path) -> None:
    save(tmp_path / "run" / "bundle")
    assert ModelBundle.load(tmp_path / "run").folder == tmp_path / "run" / "bundle"
    assert ModelBundle.load(str(tmp_path / "run" / "bundle")).name == "tiny"


def changing(**values: Any) -> Callable[[Path], object]:
    return lambda folder: change(folder, **values)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def nested(**values: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(asdict(PREPROCESSING))), **values}


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (shutil.rmtree, "", "is no model bundle"),
    "no metadata": (lambda folder: (folder / "metadata.json").unlink(), "", "is no model bundle"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors", "is missing",
    ),
    "weights cut": (lambda folder: cut(folder / "model.safetensors"), "model.safetensors", "is not the file"),
    "weights empty": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors", "is not the file",
    ),
    "one flipped bit": (
        lambda folder: flip(folder / "model.safetensors"), "model.safetensors", "is not the file",
    ),
    "another's weights": (
        lambda folder: shutil.copy(
            save(folder.parent / "other", 1).folder / "model.safetensors", folder / "model.safetensors"
        ),
        "model.safetensors",
        "is not the file",
    ),
    "metadata cut": (lambda folder: cut(folder / "metadata.json"), "metadata.json", "is not valid JSON"),
    "metadata empty": (
        lambda folder: (folder / "metadata.json").write_text(""), "metadata.json", "is not valid JSON",
    ),
    "metadata no object": (
        lambda folder: (folder / "metadata.json").write_text("[]"), "metadata.json", "is not a JSON object",
    ),
    "newer schema": (
        lambda folder: change(folder, schema_version=SCHEMA_VERSION + 1), "metadata.json", "upgrade polypseg",
    ),
    "schema of another type": (
        lambda folder: change(folder, schema_version="1"), "metadata.json", "has schema '1'",
    ),
    **{
        f"no {key}": (changing(**{key: None}), "metadata.json", f"is missing {key}")
        for key in ("schema_version", "name", "architecture", "preprocessing", "operating_point", "weights_sha256")
    },
    **{
        f"{key} {value!r}": (
            changing(**{key: value}),
            "metadata.json",
            "contains an unusable value",
        )
        for key, value in (
            ("operating_point", 0.5),
            ("operating_point", {"threshold": 1.5}),
            ("operating_point", {"threshold": 10**400}),
            ("operating_point", {"min_confidence": "high"}),
            ("operating_point", {"min_size": 0.1}),
            ("architecture", []),
            ("architecture", {"nam": "Unet"}),
            ("preprocessing", []),
            ("preprocessing", {}),
            ("preprocessing", nested(height=0)),
            ("preprocessing", nested(width="96")),
            ("preprocessing", nested(mean=[0.5, 0.5])),
            ("preprocessing", nested(mean=["a", "b", "c"])),
            ("preprocessing", nested(std=[0.2, 0.0, 0.2])),
            ("preprocessing", nested(std=0.2)),
            ("preprocessing", nested(interpolation="cubic")),
            ("preprocessing", nested(blur=3)),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_bundle_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "bundle").folder
    damage, file, says = BROKEN[name]
    damage(folder)
    with pytest.raises(PolypsegError, match=says) as error:
        ModelBundle.load(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / file if file else folder}: ")
    assert len(message.splitlines()) == 1


def test_weights_damaged_after_loading_are_told(tmp_path: Path) -> None:
    bundle = save(tmp_path / "bundle")
    (bundle.folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(PolypsegError, match=r"model\.safetensors: is damaged"):
        bundle.weights()


def test_the_hash_is_of_all_that_decides_a_prediction(tmp_path: Path) -> None:
    bundle = save(tmp_path / "one")
    same = save(tmp_path / "two", name="other", licence="x")
    assert bundle.hash == same.hash == ModelBundle.load(tmp_path / "one").hash
    changed = [
        save(tmp_path / "weights", 1),
        save(tmp_path / "threshold", threshold=0.41),
        save(tmp_path / "architecture", architecture=Architecture("Unet")),
        save(tmp_path / "preprocessing", preprocessing=Preprocessing(64, 96)),
    ]
    assert len({item.hash for item in [bundle, *changed]}) == 5
    change(
        bundle.folder, operating_point={"threshold": 0.6}
    )  # by hand: nothing forbids it, but it is another bundle then
    assert ModelBundle.load(bundle.folder).hash not in {bundle.hash, *(item.hash for item in changed)}


def test_a_bundle_of_the_former_schema_reads_as_before(tmp_path: Path) -> None:
    bundle = save(tmp_path / "bundle")
    former = {"schema_version": 1, "operating_point": None, "threshold": 0.45}
    change(bundle.folder, **former)
    assert ModelBundle.load(bundle.folder).operating_point == OperatingPoint(0.45, 0.0, "mean")
    change(bundle.folder, postprocessing={"min_area": 0.01, "fill_holes": True})
    read = ModelBundle.load(bundle.folder)
    assert read.operating_point == OperatingPoint(0.45, 0.0, "mean", 0.01, True) and read.threshold == 0.45
    change(bundle.folder, threshold=0.5)
    assert ModelBundle.load(bundle.folder).hash != read.hash
    kept = read.update(metrics=None)
    assert kept.metadata["schema_version"] == 1 and kept.hash == read.hash
    updated = read.update(threshold=0.7)
    assert updated.operating_point == OperatingPoint(0.7, 0.0, "mean", 0.01, True)
    assert updated.metadata["schema_version"] == SCHEMA_VERSION
    assert not {"threshold", "postprocessing"} & updated.metadata.keys()
    change(bundle.folder, **former)
    change(bundle.folder, threshold=None)
    with pytest.raises(PolypsegError, match="is missing threshold"):
        ModelBundle.load(bundle.folder)
    change(bundle.folder, threshold=2)
    with pytest.raises(PolypsegError, match=r"unusable value \(threshold 2: must lie in 0..1\)"):
        ModelBundle.load(bundle.folder)


def test_update_keeps_the_rest(tmp_path: Path) -> None:
    bundle = save(tmp_path / "bundle", licence="x")
    updated = bundle.update(threshold=0.7, metrics={"dice": 0.5})
    point = {**bundle.metadata["operating_point"], "threshold": 0.7}
    assert updated.metadata == {**bundle.metadata, "operating_point": point, "metrics": {"dice": 0.5}}
    assert ModelBundle.load(bundle.folder).metadata == updated.metadata
    assert updated.threshold == 0.7
    assert names(bundle.folder) == ["metadata.json", "model.safetensors"]


def test_saving_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    first = save(tmp_path / "bundle")
    (first.folder / "onnx").mkdir()  # exported from the old weights
    second = save(tmp_path / "bundle", 1, name="second")
    assert second.name == "second"
    assert second.hash != first.hash
    assert names(tmp_path) == ["bundle"]
    assert names(tmp_path / "bundle") == ["metadata.json", "model.safetensors"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_save_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The disk refuses at the weights, at moving the old folder away, or at moving the new one in."""
    old = save(tmp_path / "bundle")
    calls = {"rename": 0}
    rename, write = Path.rename, Path.write_bytes

    def failing_rename(self: Path, target: Path) -> Path:
        calls["rename"] += 1
        if calls["rename"] == failing - 1:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    def failing_write(self: Path, content: bytes) -> int:
        write(self, content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", failing_rename)
    if failing == 1:
        monkeypatch.setattr(Path, "write_bytes", failing_write)
    with pytest.raises(PolypsegError, match="bundle: the disk is full"):
        save(tmp_path / "bundle", 1)
    monkeypatch.undo()
    assert names(tmp_path) == ["bundle"]
    assert ModelBundle.load(tmp_path / "bundle").hash == old.hash


def test_save_leaves_what_is_no_bundle_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for place in ("thesis", "file"):
        with pytest.raises(PolypsegError, match=f"{place}: contains something that is no bundle"):
            save(tmp_path / place)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "x"
    (tmp_path / "empty").mkdir()
    assert save(tmp_path / "empty").name == "tiny"


# ---- preprocessing --------------------------------------------------------------------------------------


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


def normalised(values: NDArray[Any], settings: Preprocessing) -> NDArray[np.float64]:
    """By the textbook, in float64: channels first, (x / 255 - mean) / std."""
    scaled = (values.astype(np.float64) / 255 - np.array(settings.mean)) / np.array(settings.std)
    return scaled.transpose(2, 0, 1)


def test_a_frame_of_the_right_size_is_only_normalised() -> None:
    frame = noise(64, 96)
    result = PREPROCESSING.apply(frame)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, normalised(frame, PREPROCESSING), atol=2e-6)


@pytest.mark.parametrize("size", [(150, 201), (33, 47), (64, 200)])
def test_linear_is_torch_s_bilinear(size: tuple[int, int]) -> None:
    settings = Preprocessing(64, 96)
    frame = noise(*size)
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None].double()
    expected = functional.interpolate(tensor, (64, 96), mode="bilinear", align_corners=False)[0]
    resized = settings.resize_frame(frame)
    assert resized.dtype == np.uint8
    # OpenCV rounds the weights to 11 bits and the result to whole grey levels.
    assert np.abs(resized - expected.permute(1, 2, 0).numpy()).max() <= 1
    result = settings.apply(frame)
    assert result.shape == (3, 64, 96)
    np.testing.assert_allclose(result, normalised(resized, settings), atol=2e-6)


def test_area_is_the_mean_of_what_a_pixel_covers() -> None:
    frame = noise(64 * 3, 96 * 4)
    expected = frame.reshape(64, 3, 96, 4, 3).mean((1, 3))
    assert np.abs(PREPROCESSING.resize_frame(frame) - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", [(150, 201), (33, 47), (128, 192)])
def test_masks_are_resized_by_the_nearest_pixel_centre(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(1).random(size) > 0.5
    rows = ((np.arange(64) + 0.5) * size[0] / 64).astype(int)
    columns = ((np.arange(96) + 0.5) * size[1] / 96).astype(int)
    result = PREPROCESSING.resize_mask(mask)
    assert result.dtype == np.uint8
    differing = result != mask[np.ix_(rows, columns)]
    # Where a centre falls exactly between two pixels either is nearest.
    assert not differing[:, ((np.arange(96) + 0.5) * size[1] / 96) % 1 != 0][
        ((np.arange(64) + 0.5) * size[0] / 64) % 1 != 0
    ].any()
    np.testing.assert_array_equal(PREPROCESSING.resize_mask(mask.astype(np.uint8)), result)


def test_restore_is_torch_s_bilinear_and_stays_a_probability() -> None:
    probability = np.random.default_rng(2).random((64, 96), dtype=np.float32)
    for height, width in ((130, 301), (40, 50), (64, 96)):
        restored = PREPROCESSING.restore(probability, height, width)
        expected = functional.interpolate(
            torch.from_numpy(probability)[None, None].double(), (height, width), mode="bilinear",
            align_corners=False,
        )[0, 0]  # fmt: skip
        assert restored.dtype == np.float32
        np.testing.assert_allclose(restored, expected, atol=1e-5)
        assert restored.min() >= 0
        assert restored.max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        {"height": 0}, {"width": -1}, {"mean": (0.5,)}, {"std": (0.2, 0.2, 0.0)}, {"std": (0.2, 0.2, float("inf"))},
        {"interpolation": "nearest"},
    ],
    ids=str,
)  # fmt: skip
def test_preprocessing_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Preprocessing(**values)


# ---- in 16 bits -----------------------------------------------------------------------------------------


def test_kernels_in_16_bits_are_read_back_as_float32(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    bundle = save(tmp_path / "half", half=True)
    stored = load_file(bundle.folder / "model.safetensors")
    assert {key: value.dtype for key, value in stored.items()} == {
        "weight": torch.float16, "bias": torch.float32, "steps": torch.int64,
    }  # fmt: skip
    weights = bundle.weights()
    assert torch.equal(weights["weight"], state()["weight"].half().float())
    assert torch.equal(weights["bias"], state()["bias"]) and torch.equal(weights["steps"], state()["steps"])
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_statistics_beyond_the_range_of_16_bits_survive(tmp_path: Path) -> None:
    values = {"running_var": torch.tensor([1e6, 1e-9])}
    bundle = ModelBundle.save(
        tmp_path / "b", values, name="x", architecture=ARCHITECTURE, preprocessing=PREPROCESSING, threshold=0.5,
        half=True,
    )  # fmt: skip
    assert torch.equal(bundle.weights()["running_var"], values["running_var"])


def test_a_kernel_beyond_the_range_of_16_bits_is_kept_as_it_is(tmp_path: Path) -> None:
    values = {"large": torch.full((1, 2), 1e5), "small": torch.full((1, 2), 0.1)}
    bundle = ModelBundle.save(
        tmp_path / "b", values, name="x", architecture=ARCHITECTURE, preprocessing=PREPROCESSING, threshold=0.5,
        half=True,
    )  # fmt: skip
    assert torch.equal(bundle.weights()["large"], values["large"])
    assert not torch.equal(bundle.weights()["small"], values["small"])


def test_compact_is_the_same_model_in_half_the_bytes(tmp_path: Path) -> None:
    from polypseg.inference.segmenter import Segmenter
    from polypseg.models.network import build

    architecture = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))
    torch.manual_seed(0)
    full = ModelBundle.save(
        tmp_path / "full", build(architecture).state_dict(), name="full", architecture=architecture,
        preprocessing=PREPROCESSING, threshold=0.4, licence="x", temperature=2.0, metrics={"test": {"dice": 0.9}},
        exports=[], evaluations=[{"title": "x"}],
    )  # fmt: skip
    small = full.compact(tmp_path / "small", "small")
    left_out = {"metrics", "exports", "evaluations"}
    differs = {"name", "weights_sha256", "versions", "compacted_from"}
    for key in full.metadata.keys() - left_out - differs:
        assert small.metadata[key] == full.metadata[key], key
    assert not left_out & small.metadata.keys()
    assert (small.name, small.metadata["compacted_from"]) == ("small", full.hash)
    before, after = ((one.folder / "model.safetensors").stat().st_size for one in (full, small))
    assert after < 0.55 * before
    frame = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    predictions = [Segmenter(one, "torch", "cpu", "fp32").segment(frame).probability for one in (full, small)]
    assert 0 < np.abs(predictions[0] - predictions[1]).max() < 0.01
    assert full.metadata["metrics"] == ModelBundle.load(full.folder).metadata["metrics"]


# ---- ensembles ------------------------------------------------------------------------------------------


def join(folder: Path, count: int = 3, **details: Any) -> ModelBundle:
    """An ensemble of ``count`` tiny bundles, which lie in ``folder``."""
    members = {f"fold-{k}": save(folder / f"run-{k}", k, epoch=k) for k in range(1, count + 1)}
    return ModelBundle.join(folder / "bundle", members, **{"name": "all", "threshold": 0.35, **details})


def test_an_ensemble_holds_its_members_whole(tmp_path: Path) -> None:
    saved = join(tmp_path, licence="x", operating_point=OperatingPoint(0.35, min_area=0.01))
    single = [ModelBundle.load(tmp_path / f"run-{k}") for k in (1, 2, 3)]
    shutil.move(tmp_path / "bundle", tmp_path / "elsewhere" / "bundle")
    for one in single:
        shutil.rmtree(one.folder)
    loaded = ModelBundle.load(tmp_path / "elsewhere")
    assert loaded.hash == saved.hash
    assert (loaded.name, loaded.threshold, loaded.metadata["licence"]) == ("all", 0.35, "x")
    assert (loaded.operating_point.min_area, loaded.preprocessing) == (0.01, PREPROCESSING)
    assert [one.hash for one in loaded.members] == [one.hash for one in single]
    assert loaded.networks == loaded.members and single[0].networks == (single[0],)
    assert [one.metadata["epoch"] for one in loaded.members] == [1, 2, 3]
    assert names(loaded.folder) == ["fold-1", "fold-2", "fold-3", "metadata.json"]
    assert sorted(loaded.files) == sorted(
        file.relative_to(loaded.folder).as_posix() for file in loaded.folder.rglob("*") if file.is_file()
    )
    for seed, one in enumerate(loaded.members, 1):
        assert all(torch.equal(one.weights()[key], value) for key, value in state(seed).items())
    # what decides no prediction may be added to a member, as an export of it is
    loaded.members[1].update(speed={"rows": []})
    again = ModelBundle.load(tmp_path / "elsewhere")
    assert again.hash == saved.hash and again.members[1].metadata["speed"] == {"rows": []}


def test_a_shipped_ensemble_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polypseg import bundle as bundle_module
    from polypseg import zoo

    join(tmp_path).folder.rename(tmp_path / "several")
    monkeypatch.setattr(bundle_module, "ZOO", tmp_path)
    monkeypatch.setattr(zoo, "shipped_names", lambda: ["several"])
    (model,) = zoo.shipped()
    assert model.bytes > sum(one.stat().st_size for one in tmp_path.glob("several/*/model.safetensors"))
    assert "3 × Unet mobilenet_v2 at 96×64; torch" in zoo.table([model])
    for one in (model.bundle, *model.bundle.members):
        with pytest.raises(PolypsegError, match="is a published model"):
            one.update(threshold=0.1)
    flip(tmp_path / "several" / "fold-1" / "model.safetensors")
    with pytest.raises(PolypsegError, match=r"fold-1/model\.safetensors: is not the file .* reinstall it"):
        zoo.shipped()


def test_an_ensembles_hash_is_of_all_that_decides_its_prediction(tmp_path: Path) -> None:
    one = join(tmp_path / "one")
    assert join(tmp_path / "two", name="other").hash == one.hash
    changed = [
        join(tmp_path / "fewer", 2),
        join(tmp_path / "threshold", threshold=0.36),
        join(tmp_path / "smallest", operating_point=OperatingPoint(0.35, min_area=0.1)),
    ]
    members = {f"fold-{k}": save(tmp_path / f"warm-{k}", k, temperature=1.0 + (k == 2)) for k in (1, 2, 3)}
    changed.append(ModelBundle.join(tmp_path / "warm", members, name="all", threshold=0.35))
    assert len({item.hash for item in [one, *changed]}) == 5


TAMPERED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "weights": (lambda folder: flip(folder / "fold-2" / "model.safetensors"), "fold-2/model.safetensors", "is not the"),
    "another threshold": (lambda folder: change(folder / "fold-2", threshold=0.9), "fold-2", "is not the member that"),
    "another member": (
        lambda folder: (shutil.rmtree(folder / "fold-2"), shutil.copytree(folder / "fold-1", folder / "fold-2")),
        "fold-2", "is not the member that",
    ),
    "no member": (lambda folder: shutil.rmtree(folder / "fold-3"), "fold-3/metadata.json", "is missing"),
    "an ensemble as member": (
        lambda folder: shutil.copytree(join(folder.parent / "x").folder, folder / "fold-2", dirs_exist_ok=True),
        "fold-2", "is not the member that",
    ),
    "no members": (lambda folder: change(folder, members={}), "metadata.json", "unusable value"),
    "members of another type": (lambda folder: change(folder, members=["fold-1"]), "metadata.json", "unusable value"),
    "a member outside": (lambda folder: change(folder, members={"../run-1": "0"}), "metadata.json", "unusable value"),
    "no operating point": (changing(operating_point=None), "metadata.json", "is missing operating_point"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_ensemble_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = join(tmp_path).folder
    damage, file, says = TAMPERED[name]
    damage(folder)
    with pytest.raises(PolypsegError, match=says) as error:
        ModelBundle.load(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / file}: ") and message.endswith("copy the bundle again")
    assert len(message.splitlines()) == 1


def test_what_needs_one_network_refuses_an_ensemble(tmp_path: Path) -> None:
    from polypseg.evaluation.calibrate import calibrate
    from polypseg.export.run import export

    bundle = join(tmp_path)
    for call, says in (
        (bundle.weights, "take its members one by one"),
        (lambda: bundle.compact(tmp_path / "small"), "take its members one by one"),
        (
            lambda: export(bundle.folder, "openvino", "fp32"),
            f"export its members one by one: {bundle.members[0].folder}",
        ),
        (lambda: calibrate(bundle.folder, ["nowhere"]), "calibrate a single network"),
    ):
        with pytest.raises(PolypsegError, match=says) as error:
            call()
        assert str(error.value).startswith(f"{bundle.folder}: is an ensemble; ")
        assert len(str(error.value).splitlines()) == 1


def test_joining_what_cannot_be_joined(tmp_path: Path) -> None:
    bundle = join(tmp_path)
    for members in ({}, {"../x": bundle.members[0]}, {"fold-1": bundle}):
        with pytest.raises(ValueError, match="member"):
            ModelBundle.join(tmp_path / "new", members, name="x", threshold=0.5)
    assert not (tmp_path / "new").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(PolypsegError, match="thesis: contains something that is no bundle"):
        ModelBundle.join(tmp_path / "thesis", {"a": bundle.members[0]}, name="x", threshold=0.5)
    assert names(tmp_path / "thesis") == ["chapter.txt"]


def test_an_ensemble_takes_the_place_of_an_earlier_one_or_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = join(tmp_path)
    again = ModelBundle.join(old.folder, {"a": old.members[0]}, name="a", threshold=0.5)
    assert names(again.folder) == ["a", "metadata.json"]
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> Path:
        if "b" in Path(target).parts:
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    single = ModelBundle.load(tmp_path / "run-1")
    with pytest.raises(PolypsegError, match="the disk is full"):
        ModelBundle.join(old.folder, {"a": single, "b": single}, name="b", threshold=0.5)
    assert ModelBundle.load(old.folder).hash == again.hash
    assert names(tmp_path) == ["bundle", "run-1", "run-2", "run-3"]
