"""Decoding where it can be stopped: what takes too long, too much or its process down is refused, and others go on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from polypseg.errors import PolypsegError
from polypseg.serve.decoding import Decoders
from polypseg.serve.uploads import video_frames

MIB = 1 << 20


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    processes = Decoders(20, 256 * MIB)
    yield processes
    processes.close()


def test_what_is_decoded_comes_back_whole_and_the_process_is_used_again(decoders: Decoders) -> None:
    frame = decoders.call("a.png", np.arange, 3 * MIB)
    assert (frame == np.arange(3 * MIB)).all() and frame.flags.writeable
    assert decoders.call("a.png", os.getpid) == decoders.call("a.png", os.getpid) != os.getpid()


def test_a_video_comes_frame_by_frame(decoders: Decoders, clip: Path) -> None:
    info, *frames, problem = decoders.stream("clip.mp4", video_frames, clip, 64 * 48)
    assert (info.width, info.height, problem) == (64, 48, None)
    assert [index for index, *_ in frames] == list(range(30)) and frames[0][3].shape == (48, 64, 3)
    with pytest.raises(PolypsegError, match="more than 3,071 pixels"):
        list(decoders.stream("clip.mp4", video_frames, clip, 64 * 48 - 1))


@pytest.mark.parametrize(
    ("work", "arguments", "status", "says"),
    [
        (bytearray, (2048 * MIB,), 413, "takes more memory"),
        (os.abort, (), 422, "brings its decoder down"),
        (int, ("no number",), 422, "is damaged"),
    ],
)
def test_a_decoder_that_fails_costs_its_own_upload_alone(
    decoders: Decoders, work: Any, arguments: tuple[Any, ...], status: int, says: str
) -> None:
    with pytest.raises(HTTPException, match=rf"^a\.png: {says}") as refusal:
        decoders.call("a.png", work, *arguments)
    assert refusal.value.status_code == status
    assert decoders.call("b.png", min, (1, 2)) == 1


def test_what_takes_too_long_is_killed() -> None:
    hasty = Decoders(0.3, 256 * MIB)
    hasty.call("a.png", min, (1, 2))
    with pytest.raises(HTTPException, match=r"^a\.png: takes more than 0\.3 s") as refusal:
        hasty.call("a.png", time.sleep, 1000)
    assert refusal.value.status_code == 413 and not hasty._all
    hasty.close()


def test_whoever_waits_can_stop_and_closing_ends_all_that_is_decoded(decoders: Decoders) -> None:
    def stop() -> None:
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        list(decoders.stream("a.png", time.sleep, 1000, check=stop))
    others = Decoders(1000, 256 * MIB)
    refused: list[int] = []

    def wait() -> None:
        try:
            others.call("a.png", time.sleep, 1000)
        except HTTPException as refusal:
            refused.append(refusal.status_code)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not others._all:
        time.sleep(0.01)
    others.close()
    waiting.join(30)
    assert refused == [503] and not waiting.is_alive()
    with pytest.raises(HTTPException, match="stopping"):
        others.call("a.png", min, (1, 2))
