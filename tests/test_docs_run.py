"""What README and documents tell to type does what they say: every block runs as written, on small data.

Each page has a folder of its own, with what the pages name: data sets of small phantom frames, a video, a DICOM file,
the recipes, trained runs. The blocks of a page run there in order. Two things are smaller than written: the recipes'
networks and frames, and numbers in ``SMALLER``. What cannot run stands in ``NOT_HERE``, each with its reason.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from polypseg.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What is typed and cannot run in a test, and why; looked for in the whole line.
NOT_HERE = {
    r"^(make|source|pip install|wandb)\b": "sets up an environment, which is CI's first step",
    r"^(tensorboard|mlflow ui|docker|POLYPSEG_TOKEN=\S+ .*docker|hf auth)\b": "another program",
    r"^python benchmarks/": "hours",
    r"^(torchrun|srun|ray) |--address|^export TORCH_": "several machines: "
    "tests/training/test_nodes.py, tests/pipeline/archive",
    r"--engine ray": "starts Ray: tests/pipeline/archive",
    r"--trainer\.(devices|accelerator gpu)": "several devices: tests/training/test_nodes.py",
    r"data download kvasir-seg|s3://|hf://|postgresql://|HF_HOME|https?://(?!localhost)": "a network: "
    "tests/test_hub.py, tests/data/test_download.py, tests/pipeline/archive",
    r"efficientnet-b3.* imagenet": "a network: tests/models/test_weights.py",
    r"model\.safetensors": "weights of an encoder: tests/models/test_weights.py",
    r"loggers .*wandb": "a network, or an account",
    r"camera:|rtsp:|tcp:|^gst-launch": "a camera: tests/pipeline/test_live.py, tests/io/test_camera.py",
    r"^export POLYPSEG_TOKEN|--host 0\.0\.0\.0|server:8000|jobs/ID": "for other computers, or an id that only the "
    "answer tells: tests/serve",
}
# Exports take minutes to make: one page makes them, and tests/export looks at them closely.
EXPORTS = "docs/how-to/export.md"
# The same of Python, by what the block imports or names.
NOT_HERE_IN_PYTHON = {
    r"push_to_hub": "a network: tests/test_hub.py",
}
# Each block there is an example by itself; tests/test_docs.py checks that they parse and that their imports resolve.
BY_THEMSELVES = {"docs/reference/command-line.md", "docs/how-to/python.md"}
# Options that decide how long a verb takes, and what a network that has learnt nothing may lose when it is exported.
SMALLER = {
    "train": {
        "--trainer.epochs": "1",
        "--frames.size": "64",
        "--frames.first_size": "64",
        "--frames.last_size": "null",
    },
    "tune": {"--trials": "2", "--trainer.epochs": "1"},
    "data": {"--count": "24"},
    "benchmark": {"--repeats": "1", "--frame_size": "96x64"},
    "export": {"--max_drop": "0.5"},
}
SHIPPED = (
    *("--model.name", "UnetPlusPlus", "--model.encoder", "tu-tf_efficientnet_lite2", "--model.output_stride", "4"),
    *("--model.decoder_channels", "[64, 48, 32, 16, 8]"),
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of commands, Python and YAML, in order; indented ones too."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(bash|python|yaml)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [(language, re.sub(rf"(?m)^{indent}", "", block)) for indent, language, block in found]


def lines(block: str) -> list[str]:
    """The commands of a block, continued ones joined, without comments."""
    joined = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.lstrip().startswith("#")]


def reason(line: str, page: Path) -> str | None:
    """Why a command cannot run in a test; ``None`` where it can."""
    if re.search(r"polypseg export\b", line) and name_of(page) != EXPORTS:
        return f"exports run on {EXPORTS}"
    return next((why for pattern, why in NOT_HERE.items() if re.search(pattern, line)), None)


# --- the folder that the pages speak of ---


def small_recipes(folder: Path) -> None:
    """Every shipped recipe with a network and frames that train in a second."""
    folder.mkdir()
    for file in (ROOT / "recipes").glob("*.yaml"):
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        recipe["frames"] |= {"size": 64, "batch_size": 4, "workers": 0}
        recipe["frames"] = {
            name: value for name, value in recipe["frames"].items() if "_size" not in name or name == "batch_size"
        }
        kept = {name: value for name, value in recipe["model"].items() if name == "output_stride"}
        recipe["model"] = kept | {
            "name": "Unet", "encoder": "tu-test_efficientnet", "encoder_weights": "none",
            "decoder_channels": [32, 16, 16, 8, 8],
        }  # fmt: skip
        recipe["trainer"] |= {"epochs": 1, "loggers": []}
        (folder / file.name).write_text(yaml.safe_dump(recipe), encoding="utf-8")


def mirror(source: Path, target: Path, count: int, axis: int, name: Callable[[int], str]) -> None:
    """A data set of other frames: the first ones of a drawn one, mirrored, under other names."""
    for kind, ending in (("images", ".jpg"), ("masks", ".png")):
        (target / kind).mkdir(parents=True)
        for number, file in enumerate(sorted((source / kind).iterdir())[:count]):
            picture = cv2.flip(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), axis)
            cv2.imwrite(str(target / kind / f"{name(number)}{ending}"), picture)


def write_video(path: Path, frames: list[Path]) -> None:
    import av

    pictures = [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in frames]
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name; each page gets a copy."""
    from polypseg.data import phantom

    folder = tmp_path_factory.mktemp("world")
    data = folder / "data"
    drawn = phantom.write(data / "phantom", 80, seed=3, height=72, width=88)  # enough for calibrate --alpha 0.1
    mirror(drawn, data / "Kvasir-SEG", 80, 0, lambda number: f"cju{number:04}")
    mirror(drawn, data / "CVC-ClinicDB", 20, 1, lambda number: str(number + 1))
    mirror(drawn, data / "my-clinic", 12, -1, lambda number: f"{number:04}")
    write_lists(data / "splits")
    frames = sorted((drawn / "images").iterdir())
    for name in ("frame.jpg", "a.jpg", "b.jpg"):
        shutil.copyfile(frames[0], folder / name)
    for name, first in (("frames", 0), ("exam-1", 3), ("more", 6)):
        (folder / name).mkdir()
        for file in frames[first : first + 3]:
            shutil.copyfile(file, folder / name / file.name)
    for file in (folder / "more").glob("*.jpg"):
        cv2.imwrite(str(file.with_suffix(".png")), cv2.imread(str(file)))
    write_video(folder / "exam.mp4", frames[:4] * 3)
    boxes = {"width": 88, "height": 72, "frames": [[{"bbox": [10, 10, 40, 40]}]] * 12}
    (folder / "exam-boxes.json").write_text(json.dumps(boxes))
    (folder / "manifest.csv").write_text("path\n" + "".join(f"frames/{file.name}\n" for file in frames[:3]))
    shutil.copytree(data / "Kvasir-SEG" / "masks", folder / "other-model")
    write_dicom(folder)
    small_recipes(folder / "recipes")
    (folder / "runs").mkdir()
    return folder


@pytest.fixture(scope="session")
def trained(world: Path) -> Callable[[], Path]:
    """A run folder, trained when it is first asked for."""

    @functools.cache
    def run() -> Path:
        with contextlib.chdir(world):
            given = ["train", "--config", "recipes/baseline.yaml", "--data", "data/Kvasir-SEG", "--split", "grouped"]
            assert main([*given, "--out", "trained"]) == 0
        return world / "trained"

    return run


def write_lists(folder: Path) -> None:
    """The lists of the published splits, for as many frames as there are."""
    folder.mkdir()
    kvasir = [f"cju{number:04}" for number in range(80)]
    lists = {
        "pranet-kvasir-test.txt": kvasir[::8],
        "pranet-clinicdb-test.txt": [str(number) for number in range(1, 20, 8)],
        "medico-880-train.txt": kvasir[:64],
        "medico-120-val.txt": kvasir[64:],
    }
    for name, frames in lists.items():
        (folder / name).write_text("\n".join(frames), encoding="utf-8")


def write_dicom(folder: Path) -> None:
    """Pydicom's own colour picture, where it is installed."""
    with contextlib.suppress(ImportError):
        from pydicom.data import get_testdata_file

        (folder / "study").mkdir()
        for name in ("study/polyp.dcm", "frame.dcm"):
            shutil.copyfile(str(get_testdata_file("examples_rgb_color.dcm", download=False)), folder / name)


def prepare(world: Path, trained: Callable[[], Path], folder: Path, page: Path) -> None:
    """What a page takes for granted: the world, and the runs that it names before it trains them."""
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("trained"), dirs_exist_ok=True)
    text = "\n".join(block for _, block in blocks(page))
    if "download phantom" in text:
        shutil.rmtree(folder / "data" / "phantom")
    if re.search("polypseg-state/corrections|projects/corrections", text):  # what somebody corrected on the page
        shutil.copytree(folder / "data" / "my-clinic", folder / "polypseg-state" / "corrections")
        (folder / "polypseg-state").chmod(0o700)
    if "my-clinic.zip" in text:
        shutil.make_archive(str(folder / "my-clinic"), "zip", folder / "data", "my-clinic")
    for run in set(re.findall(r"runs/[a-z0-9-]+", text)):
        made = re.search(rf"--out {run}(?![\w-])|out=\"{run}\"", text)
        used = re.search(rf"(?<!--out ){run}(?![\w-])", text)
        if used and not (made and made.start() < used.start()):
            shutil.copytree(trained(), folder / run)


# --- to run what is written ---


@dataclass
class Page:
    """Runs a page's blocks, one after another."""

    path: Path
    light: Path  # a bundle that takes little time
    python: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    service: subprocess.Popen[str] | None = None
    port: str = ""

    def run(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        target = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if target else words
        if words[0] == "curl":
            self.curl(words)
        elif words[:2] == ["polypseg", "serve"]:
            self.serve(words[2:])
        elif words[0] == "polypseg":
            self.polypseg(words[1:], target)
        else:
            pytest.fail(f"neither run nor listed in NOT_HERE: {line}")

    def polypseg(self, words: list[str], target: str | None) -> None:
        for option, value in SMALLER.get(words[0], {}).items():
            if option in words or words[0] in ("tune", "benchmark", "export"):
                words = [*words, option, value]
        if words[0] == "annotations":  # while the service does not run
            self.end()
        if words[0] == "benchmark":  # one way: OpenVINO, or a small network as it is
            named = len(words) > 1 and not words[1].startswith("-")
            words = [*words, "--runtimes", "torch"] if named else [*words, str(self.light), "--runtimes", "openvino"]
        if "--corruptions" in words:  # every frame in dozens of ways
            words = ["runs/mine" if word == "polypseg-realtime" else word for word in words]
        if "--model.weights polypseg-realtime" in shlex.join(words):  # the recipes here have another network
            words = [*words, *SHIPPED]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                status = main(words)
            except SystemExit as stop:  # --help, --version, --print_config
                status = int(stop.code or 0)
        assert status == 0, shlex.join(words)
        if target:
            Path(target).write_text(printed.getvalue(), encoding="utf-8")

    def serve(self, words: list[str]) -> None:
        self.end()
        command = [sys.executable, "-m", "polypseg", "serve", *words, "--port", "0"]
        self.service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.service.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.service.stdout.readline())
        assert found
        self.port = found[1]

    def curl(self, words: list[str]) -> None:
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        here = [word.replace("localhost:8000", f"127.0.0.1:{self.port}") for word in words]
        assert "-f" not in words
        subprocess.run([here[0], "-fsS", *here[1:]], check=True, capture_output=True)

    def code(self, block: str) -> None:
        block = block.replace("localhost:8000", f"127.0.0.1:{self.port}")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, name_of(self.path), "exec"), self.python)

    def end(self) -> None:
        if self.service is not None:
            self.service.terminate()
            self.service.wait(60)
            assert self.service.stdout is not None
            self.service.stdout.close()
            self.service = None


@pytest.fixture
def quiet() -> Iterator[None]:
    """The level of polypseg's log as it was."""
    log = logging.getLogger("polypseg")
    before = log.level
    yield
    log.setLevel(before)


WITH_BLOCKS = [page for page in PAGES if blocks(page) and name_of(page) not in BY_THEMSELVES]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
@pytest.mark.usefixtures("quiet", "without_pictures")
def test_what_a_page_tells_to_type_works(
    page: Path, world: Path, trained: Callable[[], Path], light: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(world, trained, tmp_path, page)
    monkeypatch.chdir(tmp_path)
    recipes = {file.stem: file for file in (tmp_path / "recipes").glob("*.yaml")}
    monkeypatch.setattr("polypseg.training.recipe.shipped_recipes", lambda: recipes)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    running = Page(page, light.folder)
    try:
        for language, block in blocks(page):
            if language == "bash":
                for line in lines(block):
                    if reason(line, page) is None:
                        running.run(line)
            elif language == "yaml":  # what the page calls so
                Path("labels.yaml" if "classes:" in block else "space.yaml").write_text(block, encoding="utf-8")
            elif not any(re.search(pattern, block) for pattern in NOT_HERE_IN_PYTHON):
                running.code(block)
    finally:
        running.end()


def test_what_is_listed_as_impossible_is_on_some_page() -> None:
    """A pattern that no page needs any more could hide a command that nobody runs."""
    typed = [
        line for page in WITH_BLOCKS for language, block in blocks(page) if language == "bash" for line in lines(block)
    ]
    assert not [pattern for pattern in NOT_HERE if not any(re.search(pattern, line) for line in typed)]
    written = [block for page in WITH_BLOCKS for language, block in blocks(page) if language == "python"]
    assert not [pattern for pattern in NOT_HERE_IN_PYTHON if not any(re.search(pattern, block) for block in written)]


def test_most_of_what_is_written_runs() -> None:
    typed = [
        (line, page)
        for page in WITH_BLOCKS
        for language, block in blocks(page)
        if language == "bash"
        for line in lines(block)
    ]
    ran = [line for line, page in typed if reason(line, page) is None]
    assert len(ran) > 0.5 * len(typed)
