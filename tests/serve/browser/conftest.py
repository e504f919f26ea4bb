"""Debian's Chromium, which looks at the page of a service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of ``service``."""
    return tmp_path_factory.mktemp("page") / "state"


@pytest.fixture(scope="module")
def service(browser: Any, start: Callable[..., Any], model: Path, state: Path) -> Any:
    """A service with a small model; not to be stopped."""
    return start(state, "--model", model)


@pytest.fixture
def visit(browser: Any, service: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a window of its own; fails where it raised an error or asked another computer for something."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def said(message: Any) -> None:
        # Refusals of the service are part of some tests, and shown as one line on the page.
        if message.type == "error" and "Failed to load" not in message.text:
            wrong.append(message.text)

    def asked(url: str, address: str) -> None:
        if url.startswith("http") and urlsplit(url).netloc != urlsplit(address).netloc:
            wrong.append(f"asked for {url}")

    def opened(width: int = 1280, height: int = 800, address: str = service.url, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", said)
        page.on("request", lambda request: asked(request.url, address))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def frames(phantom_folder: Path, segmenter: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three phantom frames, 176×144: the two in which the network sees most polyp, and the one with least."""
    from polypseg.data import read_all

    catalog = read_all([phantom_folder])
    seen = [np.quantile(segmenter.segment(catalog.frame(index)).probability, 0.9) for index in range(16)]
    order = np.argsort(seen)
    folder = tmp_path_factory.mktemp("frames")
    paths = []
    for number, index in enumerate((order[-1], order[-2], order[0])):
        pixels = cv2.resize(catalog.frame(index), (176, 144), interpolation=cv2.INTER_CUBIC)
        paths.append(folder / f"frame-{number}.png")
        cv2.imwrite(str(paths[-1]), pixels[..., ::-1])
    return paths


@pytest.fixture(scope="session")
def model(exported: Any, segmenter: Any, frames: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``exported`` with a threshold at which a tenth of the second frame, and more of the first, is polyp."""
    from polypseg.bundle import ModelBundle
    from polypseg.io.pictures import read_frame

    folder = tmp_path_factory.mktemp("model") / "bundle"
    shutil.copytree(exported.folder, folder)
    level = np.quantile(segmenter.segment(read_frame(frames[1])).probability, 0.9)
    ModelBundle.load(folder).update(threshold=float(np.floor(100 * level) / 100))
    return folder


def write_film(path: Path, picture: Path) -> Path:
    """Three seconds, ten frames each: a frame with polyps, darkness, and the frame again; the camera trembles."""
    from polypseg.io.video import VideoInfo, VideoWriter, finish_mp4

    frame = np.asarray(cv2.imread(str(picture)), np.uint8)[..., ::-1]
    height, width = frame.shape[:2]
    part = path.with_suffix(".part.mp4")
    writer = VideoWriter(part, VideoInfo(width, height, 10.0, Fraction(1, 1000)))
    for index in range(30):
        bright = np.roll(frame, index % 3, axis=1)
        writer.write(np.ascontiguousarray(bright // 8 if 10 <= index < 20 else bright), 100 * index)
    writer.close()
    finish_mp4(part, path)
    return path


@pytest.fixture(scope="session")
def film(frames: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short video with polyps in it."""
    return write_film(tmp_path_factory.mktemp("film") / "exam.mp4", frames[0])
