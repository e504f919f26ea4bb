"""What is written for a video: an overlay, a line of JSON a frame, a timeline; so that nothing that was done is lost.

While it grows, a run has these files, whole up to the last frame whatever ends it:

- ``<stem>.part.json``: what decides its predictions; a run is resumed only where all of it is the same;
- ``<stem>.part.jsonl``: the lines so far. The finished frames are these: their overlay is drawn again from them;
- ``<stem>.part.mp4``: the overlay so far, playable; what is drawn after an interruption is in ``<stem>.part.1.mp4`` and
  so on;
- ``<stem>.part.npz``: with smoothing, the average after some frame not long ago.

At the end they become ``<stem>.mp4``, ``<stem>.timeline.json`` and, last, ``<stem>.jsonl``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypseg.errors import PolypsegError, UsageError
from polypseg.files import BINARY, disk_error, read_json, write_json
from polypseg.io.video import VideoInfo, VideoWriter, continues, finish_mp4, whole_frames
from polypseg.io.video_overlay import draw_polyps


class VideoOutputs:
    """The files of one video.

    Args:
        folder: where they go; made if missing.
        stem: what their names begin with.
        settings: what decides the predictions, in plain types.
        overlay: whether there is to be an mp4.
        resume: continue a run that was interrupted; one that is complete is left as it is.
        overwrite: replace what is there.
        source: the video itself, which is never overwritten.

    Attributes:
        finished: the lines that an interrupted run has left, without line feed.
        drawn: frames that the overlay of an interrupted run contains, once it is started.
        timeline: of a run that is complete already; else None.

    Raises:
        UsageError: ``folder`` is the source's own, so that the overlay would replace the source.
        PolypsegError: there are files already and neither ``resume`` nor ``overwrite`` is set; they are of a run with
            other settings; or the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        settings: Mapping[str, Any],
        *,
        overlay: bool = True,
        resume: bool = False,
        overwrite: bool = False,
        source: Path | None = None,
    ) -> None:
        self.records, self.timeline_file = folder / f"{stem}.jsonl", folder / f"{stem}.timeline.json"
        self.overlay = folder / f"{stem}.mp4" if overlay else None
        self._settings_part, self._records_part = folder / f"{stem}.part.json", folder / f"{stem}.part.jsonl"
        self._overlay_part, self._state_part = folder / f"{stem}.part.mp4", folder / f"{stem}.part.npz"
        self._overlay_parts: dict[int, Path] = {}  # by the number of their first frame
        self._begins: list[int] = []  # ticks of those frames
        self._added = 0
        if source is not None and self.overlay is not None and self.overlay.exists() and self.overlay.samefile(source):
            raise UsageError(f"{source}: its overlay would replace it; choose another --out")
        self.finished: list[str] = []
        self.drawn = 0
        self.timeline: dict[str, Any] | None = None
        self._writer: VideoWriter | None = None
        self._file: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                self._take_up(settings)
            elif overwrite:
                self._remove_parts()
            else:
                self._refuse_existing()
            if self.timeline is None:
                if not self.finished:
                    write_json(self._settings_part, settings)
                self._file = os.open(self._records_part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY, 0o666)
                self._whole = sum(len(line.encode()) + 1 for line in self.finished)
                os.ftruncate(self._file, self._whole)
        except OSError as error:
            raise disk_error(self.records, error) from error

    @property
    def files(self) -> list[Path]:
        """The files of a complete run."""
        return [file for file in (self.overlay, self.records, self.timeline_file) if file is not None]

    def start(self, info: VideoInfo) -> None:
        """Begin the overlay, of a video of this size and rate, or continue that of an interrupted run."""
        if self.overlay is None:
            return
        parts = self._existing_overlay_parts()
        counts = [whole_frames(part) for part in parts] if self.finished else []
        kept = len(list(itertools.takewhile(bool, counts)))
        fresh = self._overlay_part_number(kept)
        self._writer = VideoWriter(fresh, info)
        if not all(continues(part, self._writer) for part in parts[:kept]):  # of another version of the encoder
            self._writer.close()
            kept, fresh = 0, self._overlay_part
            self._writer = VideoWriter(fresh, info)
        first = list(itertools.accumulate(counts[:kept], initial=0))
        self.drawn = first[-1]
        self._overlay_parts = dict(zip(first, [*parts[:kept], fresh], strict=True))
        for part in self._existing_overlay_parts()[kept + 1 :]:
            part.unlink()

    def add(self, pixels: NDArray[np.uint8] | None, pts: int, record: Mapping[str, Any], line: str | None) -> None:
        """Take in the next frame.

        Args:
            pixels: H×W×3 uint8 RGB, drawn into; None only where there is no overlay, or it contains the frame already.
            pts: ticks.
            record: its prediction.
            line: that in JSON, without line feed; None where it is among ``finished``.

        Raises:
            PolypsegError: the disk refuses; the lines are whole up to the frame before.
        """
        if line is not None:
            self._append(line)
        if self._added in self._overlay_parts:
            self._begins.append(pts)
        self._added += 1
        if self._writer is not None and pixels is not None:
            draw_polyps(pixels, record)
            self._writer.write(pixels, pts)

    def keep_state(self, index: int, average: NDArray[np.float32]) -> None:
        """Store the smoothed map after frame ``index``, the last one added."""
        fresh = self._state_part.with_suffix(".new.npz")
        try:
            np.savez(fresh, index=index, average=average)
            fresh.replace(self._state_part)
        except OSError as error:
            raise disk_error(self._state_part, error) from error

    def kept_state(self) -> tuple[int, NDArray[np.float32]] | None:
        """The frame and the smoothed map of the last ``keep_state``, if that frame is among ``finished``."""
        try:
            with np.load(self._state_part) as stored:
                index, average = int(stored["index"]), np.asarray(stored["average"], np.float32)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return (index, average) if index < len(self.finished) else None

    def complete(self, timeline: Mapping[str, Any]) -> None:
        """Give everything its final name. Raises ``PolypsegError`` where the disk refuses; then all can be resumed."""
        assert self._file is not None
        try:
            os.fsync(self._file)
            if self._writer is not None and self.overlay is not None:
                writer, self._writer = self._writer, None
                writer.close()
                # Of a run that was interrupted after its last frame, there is nothing in the last part.
                finish_mp4(list(zip(self._overlay_parts.values(), self._begins, strict=False)), self.overlay)
            write_json(self.timeline_file, timeline)
            self.close()
            self._records_part.replace(self.records)
            self._remove_parts()
        except OSError as error:
            raise disk_error(self.records, error) from error

    def close(self) -> None:
        """Leave the files as they are, whole up to the last frame."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with contextlib.suppress(PolypsegError):  # what came before this has been reported already
                writer.close()
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                os.ftruncate(file, self._whole)
            os.close(file)

    def _overlay_part_number(self, number: int) -> Path:
        """The overlay that was drawn after so many interruptions."""
        return self._overlay_part.with_suffix(f".{number}.mp4") if number else self._overlay_part

    def _existing_overlay_parts(self) -> list[Path]:
        return list(itertools.takewhile(Path.exists, map(self._overlay_part_number, itertools.count())))

    def _remove_parts(self) -> None:
        """What is left of an unfinished run."""
        for part in (self._records_part, self._settings_part, self._state_part, *self._existing_overlay_parts()):
            part.unlink(missing_ok=True)

    def _append(self, line: str) -> None:
        assert self._file is not None
        content = line.encode() + b"\n"
        try:
            written = 0
            while written < len(content):  # a disk that fills takes a part first
                written += os.write(self._file, content[written:])
        except OSError as error:
            raise disk_error(self._records_part, error) from error
        self._whole += len(content)

    def _refuse_existing(self) -> None:
        for part in (self._records_part, self._settings_part):
            if part.exists():
                raise PolypsegError(
                    f"{part}: is left of an interrupted run; use --resume to continue it, or --overwrite"
                )
        for file in self.files:
            if file.exists():
                raise PolypsegError(f"{file}: is there already; use --overwrite, or another --out")

    def _take_up(self, settings: Mapping[str, Any]) -> None:
        """Find out where an earlier run stands."""
        if self.records.exists():
            timeline = read_json(self.timeline_file)
            self._check_same(self.timeline_file, timeline, settings)
            if all(file.exists() for file in self.files):
                self.timeline = timeline
                return
            self.records.replace(self._records_part)  # only the overlay is wanting
            write_json(self._settings_part, settings)
        if self._records_part.exists():
            self._check_same(self._settings_part, read_json(self._settings_part), settings)
            self.finished = whole_lines(self._records_part)

    @staticmethod
    def _check_same(file: Path, earlier: Any, settings: Mapping[str, Any]) -> None:
        for key, value in settings.items():
            before = earlier.get(key) if isinstance(earlier, dict) else None
            if before != value and key == "source_sha256":
                raise PolypsegError(f"{file}: is of another video, or of this one before it changed; use --overwrite")
            if before != value:
                change = f"{key} was {before!r} and is {value!r}"
                raise PolypsegError(f"{file}: is of a run with other settings ({change}); use --overwrite")


def whole_lines(file: Path) -> list[str]:
    """The lines of a JSONL file up to the first that is not whole, or not the record of the next frame."""
    lines: list[str] = []
    with file.open(encoding="utf-8", errors="replace", newline="\n") as content:
        for line in content:
            try:
                whole = line.endswith("\n") and json.loads(line)["frame"] == len(lines)
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                break
            lines.append(line[:-1])
    return lines
