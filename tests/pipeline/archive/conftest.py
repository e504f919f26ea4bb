"""A small archive, a model that predicts it quickly, and what is expected of every run over it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import polypseg
from polypseg.bundle import ModelBundle
from polypseg.io.pictures import read_frame, read_mask

EXACT = ("--runtime", "openvino", "--device", "cpu", "--precision", "fp32", "--threads", "1")


@pytest.fixture(scope="session")
def frames(phantom_folder: Path) -> list[Path]:
    """Files of phantom frames, in order."""
    return sorted((phantom_folder / "images").iterdir())


@pytest.fixture(scope="session")
def expected(frames: list[Path], light: ModelBundle) -> dict[str, Any]:
    """The prediction of each frame by another way than an archive's, by the file's name."""
    segmenter = polypseg.load(light.folder, runtime="openvino", device="cpu", precision="fp32", threads=1)
    return {path.name: segmenter.segment(read_frame(path)) for path in frames}


@pytest.fixture
def command(light: ModelBundle) -> Callable[..., list[str]]:
    """The command that runs ``polypseg predict`` in a process of its own."""

    def make(*arguments: object) -> list[str]:
        return [
            sys.executable,
            "-m",
            "polypseg",
            "predict",
            *map(str, arguments),
            "--model",
            str(light.folder),
            *EXACT,
        ]

    return make


@pytest.fixture
def run(command: Callable[..., list[str]]) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs ``polypseg predict`` in a process of its own; its status, what it printed, and its lines on stderr."""

    def call(*arguments: object, **environment: str) -> tuple[int, str, list[str]]:
        done = subprocess.run(
            command(*arguments), env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout, done.stderr.splitlines()

    return call


def read_rows(out: Path) -> list[dict[str, Any]]:
    """All rows of a run, in the order of its partitions."""
    import pyarrow.parquet as pq

    files = sorted((out / "partitions").iterdir())
    assert all(file.suffix == ".parquet" and not file.name.startswith(".") for file in files)
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


@pytest.fixture(scope="session")
def check(expected: dict[str, Any]) -> Callable[..., list[dict[str, Any]]]:
    """Asserts that each frame of a list is predicted exactly once, in order, and rightly; gives the rows."""

    def verify(out: Path, sources: Sequence[str], broken: Sequence[int] = ()) -> list[dict[str, Any]]:
        rows = read_rows(out)
        assert [row["source"] for row in rows] == list(sources)
        masks = [row["mask"] for row in rows if row["mask"] is not None]
        written = [str(path.relative_to(out)) for path in sorted((out / "masks").rglob("*")) if path.is_file()]
        assert sorted(masks) == written and len(set(masks)) == len(rows) - len(broken)
        for index, row in enumerate(rows):
            if index in broken:
                assert row["error"] and row["polyps"] is None and row["mask"] is None and row["width"] is None
                continue
            prediction = expected[row["source"].rpartition("/")[2]]
            assert row["error"] is None
            assert (row["height"], row["width"]) == prediction.mask.shape
            assert [polyp["area"] for polyp in row["polyps"]] == [polyp.area for polyp in prediction.polyps]
            assert [tuple(polyp["box"]) for polyp in row["polyps"]] == [polyp.box for polyp in prediction.polyps]
            np.testing.assert_allclose(
                [polyp["confidence"] for polyp in row["polyps"]],
                [polyp.confidence for polyp in prediction.polyps], atol=1e-5,
            )  # fmt: skip
        for row in rows[:: max(1, len(rows) // 40)]:
            if row["mask"] is not None:
                prediction = expected[row["source"].rpartition("/")[2]]
                np.testing.assert_array_equal(read_mask(out / row["mask"]), prediction.mask)
        return rows

    return verify


@pytest.fixture
def manifest(tmp_path: Path, frames: list[Path]) -> Callable[..., tuple[Path, list[str], list[int]]]:
    """Writes a manifest of many lines; gives it, what it names in order, and which of that are broken."""

    def write(lines: int, broken_every: int = 0) -> tuple[Path, list[str], list[int]]:
        broken = tmp_path / "broken.jpg"
        content = frames[0].read_bytes()
        broken.write_bytes(content[: len(content) // 2])
        bad = [index for index in range(lines) if broken_every and index % broken_every == broken_every - 1]
        named = [str(broken if index in bad else frames[index % len(frames)]) for index in range(lines)]
        file = tmp_path / "manifest.csv"
        file.write_text("path,patient\n" + "".join(f"{path},p{index}\n" for index, path in enumerate(named)))
        return file, named, bad

    return write


@pytest.fixture(scope="session")
def picture() -> Callable[[Path], Path]:
    """Writes a small grey image."""

    def write(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (128, 128, 128)).save(path)
        return path

    return write
