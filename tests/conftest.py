"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# Threads that wait asleep: spinning ones make every test many times slower beside another busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
gc.set_threshold(10_000, 20, 20)  # as the program has it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Signals are handled on the usual stack.

    Libraries that earlier tests loaded set another one for the main thread and leave it behind when it is gone. The
    next signal of a DataLoader's worker would then end the whole process.
    """
    from polypseg.serve.run import handle_signals_on_the_usual_stack

    handle_signals_on_the_usual_stack()


# What may be skipped where POLYPSEG_ALL_TESTS is set, as CI does: what the machine or its user decides. All else is
# installed there, and a test that is skipped all the same would guard nothing.
EXPECTED_SKIPS = re.compile("root may|real data|file system|no IPv6|network namespaces|mono is not")


def _unless_expected(report: Any) -> None:
    """A skip that nobody expected is a failure."""
    if report.skipped and "POLYPSEG_ALL_TESTS" in os.environ and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not EXPECTED_SKIPS.search(reason):
            report.outcome, report.longrepr = "failed", f"{reason}: here everything is to be tested"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    _unless_expected(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    _unless_expected(report)
    return report


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of the files: whoever tests beside each other should end together, and not wait for each other.

    The first one needs ``exported``, which takes a minute to make. Then come those with slow tests that do without it,
    those that need it, the browser's before others, and the quick ones, which fill what is left.
    """
    need = {item.path: None for item in items if "exported" in getattr(item, "fixturenames", ())}
    browsing = {item.path for item in items if "browser" in getattr(item, "fixturenames", ())}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    first = next((path for path in need if path in slow), None)
    for item in items:
        if {"exported", "browser"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")

    def order(item: pytest.Item) -> int:
        if item.path == first:
            return 0
        if item.path in slow - need.keys() - browsing:
            return 1
        return 2 if item.path in browsing else 3 if item.path in need else 4

    items.sort(key=order)


def pytest_collection_finish() -> None:
    """What the libraries made stays: the garbage collector need not look at it in every test."""
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets; skips where it is absent. ``POLYPSEG_DATA`` overrides the place."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("POLYPSEG_DATA", default))
    if not (folder / "Kvasir-SEG").is_dir():
        pytest.skip(f"no real data in {folder}; set POLYPSEG_DATA to the folder that contains Kvasir-SEG")
    return folder


@pytest.fixture(scope="module")  # Playwright's event loop must not run on in the tests after these
def browser() -> Iterator[Any]:
    """Debian's Chromium, with a camera that shows a test picture. ``POLYPSEG_CHROMIUM`` names another one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("POLYPSEG_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium: apt-get install chromium, or name one in POLYPSEG_CHROMIUM")
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 40 small phantom frames; not to be changed."""
    from polypseg.data import phantom

    return phantom.write(tmp_path_factory.mktemp("data") / "phantom", 40, seed=3, height=72, width=88)


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., Any]:
    """Makes a Recipe that trains in seconds; keyword arguments as ``trainer={"epochs": 3}`` change it."""
    from polypseg.training.recipe import FramesConfig, ModelConfig, OptimizerConfig, Recipe, TrainerConfig

    def make(**changes: Any) -> Recipe:
        sections = {
            "frames": (FramesConfig, {"size": 64, "batch_size": 8, "workers": 0}),
            "model": (
                ModelConfig,
                {
                    "name": "Unet",
                    "encoder": "tu-test_efficientnet",
                    "decoder_channels": (32, 16, 16, 8, 8),
                    "encoder_weights": "none",
                },
            ),
            "optimizer": (OptimizerConfig, {"name": "adamw", "learning_rate": 1e-3}),
            "trainer": (TrainerConfig, {"epochs": 2, "loggers": ()}),
        }
        built = {name: kind(**{**values, **changes.pop(name, {})}) for name, (kind, values) in sections.items()}
        return Recipe(**{"name": "small", **built, **changes})

    return make


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and reports have empty pictures: Matplotlib takes longer than a small network's training."""

    def draw(shown: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"")

    monkeypatch.setattr("polypseg.visualization.gallery.draw_predictions", draw)
    monkeypatch.setattr("polypseg.visualization.curves.draw_curves", draw)
    monkeypatch.setattr("polypseg.visualization.charts._png", lambda figure: b"")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> Any:
    """A ModelBundle of a small network that has seen phantom frames, in every export; not to be changed.

    It takes minutes to make, so that processes that test beside each other share it, and runs one after another where
    ``POLYPSEG_TEST_CACHE`` names a folder that keeps it.
    """
    from filelock import FileLock

    from polypseg.bundle import ModelBundle

    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    common = Path(os.environ.get("POLYPSEG_TEST_CACHE", common))
    folder = common / "exported"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            shutil.move(_export(tmp_path_factory.mktemp("unfinished"), phantom_folder), folder)
    return ModelBundle.load(folder / "bundle")


def _export(folder: Path, phantom_folder: Path) -> Path:
    """Train, save and export the bundle of ``exported`` in a folder, and return that."""
    import numpy as np
    import torch

    from polypseg.bundle import Architecture, ModelBundle, Preprocessing
    from polypseg.data import read_all
    from polypseg.data.splits import hash_split, make_split, write_split
    from polypseg.export.run import PRECISIONS, export
    from polypseg.models.network import build

    torch.manual_seed(0)
    architecture = Architecture("Unet", "tu-test_efficientnet", (32, 16, 16, 8, 8))
    preprocessing = Preprocessing(64, 96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    catalog = read_all([phantom_folder])
    frames = range(len(catalog))
    images = torch.from_numpy(np.stack([preprocessing.apply(catalog.frame(index)) for index in frames])).double()
    masks = torch.from_numpy(np.stack([preprocessing.resize_mask(catalog.mask(index)) for index in frames])).double()
    network = build(architecture).double()  # in single precision each processor and number of threads makes another
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(120):
        batch = torch.arange(step * 8, step * 8 + 8) % len(catalog)
        logits = network.train()(images[batch])[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # nothing is so sure that the page's highest threshold, 0.99, would not hide it
        for value in network.segmentation_head.parameters():
            value *= 0.87
    split = make_split("random", catalog)
    write_split(split, folder / "split.csv")
    bundle = ModelBundle.save(
        folder / "bundle", network.float().state_dict(), name="exported", architecture=architecture,
        preprocessing=preprocessing, threshold=0.4, split={"name": "random", "hash": hash_split(split)},
    )  # fmt: skip
    for name, precisions in PRECISIONS.items():
        for precision in precisions:
            # A network so little trained may lose more than a real one.
            export(bundle.folder, name, precision, data=[phantom_folder], max_drop=0.2, progress=False)
    return folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An untrained network that finds something of every shape in most frames."""
    import torch

    from polypseg.bundle import Architecture, ModelBundle, Preprocessing
    from polypseg.models.network import build

    torch.manual_seed(0)
    architecture = Architecture("Unet", "mobilenet_v2", (32, 16, 16, 8, 8))
    network = build(architecture)
    with torch.no_grad():
        for _ in range(5):
            network.train()(torch.randn(4, 3, 64, 64))
    preprocessing = Preprocessing(64, 96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return ModelBundle.save(
        tmp_path_factory.mktemp("model") / "bundle", network.state_dict(), name="untrained",
        architecture=architecture, preprocessing=preprocessing, threshold=0.565,
    )  # fmt: skip


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle of an OpenVINO export alone, which finds what is redder than its surroundings; no network made it.

    For tests in which the network does not matter, and processes of their own are started: with PyTorch each of them
    would take seconds to start.
    """
    import openvino
    import torch
    from openvino import opset13 as op

    from polypseg.bundle import Architecture, ModelBundle, Preprocessing
    from polypseg.files import sha256_file

    bundle = ModelBundle.save(
        tmp_path_factory.mktemp("model") / "light", {"none": torch.zeros(1)}, name="light",
        architecture=Architecture("Unet", "tu-test_efficientnet", (32, 16, 16, 8, 8)),
        preprocessing=Preprocessing(64, 96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), threshold=0.565,
    )  # fmt: skip
    image = op.parameter([-1, 3, -1, -1], openvino.Type.f32, name="image")
    red = op.convolution(image, _constant([[[[3.0]], [[-3.0]], [[-1.0]]]]), [1, 1], [0, 0], [0, 0], [1, 1])
    smooth = op.avg_pool(red, [1, 1], [2, 2], [2, 2], [5, 5], True)
    around = op.reduce_mean(red, op.constant([2, 3]), keep_dims=True)
    logits = op.multiply(op.subtract(smooth, around), _constant([[[[6.0]]]]))
    model = openvino.Model([logits], [image])
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"logits"})
    file = bundle.folder / "openvino" / "fp32.xml"
    file.parent.mkdir()
    openvino.save_model(model, file, compress_to_fp16=False)
    files = [file, file.with_suffix(".bin")]
    return bundle.update(exports=[{
        "runtime": "openvino", "precision": "fp32", "weights_sha256": bundle.metadata["weights_sha256"],
        "files": {f"openvino/{one.name}": sha256_file(one) for one in files},
        "bytes": sum(one.stat().st_size for one in files), "calibration": None,
    }])  # fmt: skip


def _constant(values: Any) -> Any:
    """A constant of OpenVINO's opset."""
    import numpy as np
    from openvino import opset13 as op

    return op.constant(np.array(values, np.float32))


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs ``polypseg predict`` here; gives its status, what it printed, and the lines that it told of trouble."""

    from polypseg.cli import main

    def call(*arguments: object) -> tuple[int, str, list[str]]:
        caplog.clear()
        status = main(["predict", *map(str, arguments), "--runtime", "torch", "--device", "cpu", "--precision", "fp32"])
        captured = capsys.readouterr()
        told = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
        return (
            status,
            captured.out,
            told + [line for line in captured.err.splitlines() if line.startswith("polypseg: ")],
        )

    return call
