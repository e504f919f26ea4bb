"""What ``polypseg export`` does: write, verify against PyTorch, and only then take it into the bundle."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polypseg import zoo
from polypseg.bundle import Export, ModelBundle, versions
from polypseg.catalog import Catalog
from polypseg.data import phantom, read_all, with_masks
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.selection import select
from polypseg.export.formats import open_size, quantise, write_onnx, write_openvino
from polypseg.export.parity import Parity, compare
from polypseg.files import commit, disk_error, sha256_file
from polypseg.inference.segmenter import Segmenter

log = logging.getLogger("polypseg")
PRECISIONS = {"openvino": ("fp32", "bf16", "int8"), "onnx": ("fp32", "int8")}
MAX_DROP = 0.005  # of mean Dice
# The same arithmetic in another order of sums; seen are 1e-5 and less.
FP32_TOLERANCE = 1e-3  # of a pixel's probability
PHANTOMS = 8
PRESETS = ("mixed", "performance")  # of int8: the first that loses little enough is kept


def export(
    bundle: ModelBundle | str | os.PathLike[str],
    format: str = "openvino",
    precision: str = "fp32",
    *,
    data: str | Path | Sequence[str | Path] = (),
    split_file: str | Path | None = None,
    max_drop: float = MAX_DROP,
    calibration_frames: int = 300,
    overwrite: bool = False,
    masks: str = "binary",
    progress: bool | None = None,
) -> Export:
    """Export a bundle's network and prove it.

    The export is compared with PyTorch in fp32: on the validation frames of ``data``, with the Dice of both, else on
    phantom frames. What the comparison found is written into ``metadata.json`` beside the files' hashes. Nothing is
    left in the bundle of an export that fails it.

    Args:
        bundle: a bundle, a run, or the folder of either.
        format: ``openvino`` or ``onnx``.
        precision: ``fp32``; ``bf16`` (OpenVINO: weights of 16 bits, computed in bf16 where the CPU can); ``int8``
            (post-training quantisation by NNCF, calibrated on training frames).
        data: the folder of a data set, or several; int8 needs one.
        split_file: a CSV; by default the split that the bundle was trained with.
        max_drop: mean Dice on validation that the export may lose, else it is refused.
        calibration_frames: most training frames to calibrate int8 on, spread over all.
        overwrite: replace an export of the same format and precision.
        masks: how masks are read, as in ``polypseg.io.masks``.
        progress: show progress bars; by default where standard error is a terminal.

    Raises:
        UsageError: there is no such format, format and precision do not go together, or int8 is asked for without data.
        PolypsegError: the export is there already, cannot be made, differs from PyTorch or loses more Dice than
            ``max_drop``; or the bundle, the data or the disk stand in the way.
    """
    if format not in PRECISIONS:
        raise UsageError(f"--format {format}: is unknown; choose {' or '.join(PRECISIONS)}")
    if precision not in PRECISIONS[format]:
        raise UsageError(f"--precision {precision}: {format} has none; choose {' or '.join(PRECISIONS[format])}")
    if precision == "int8" and not data:
        raise UsageError("--precision int8: needs --data, to calibrate on training frames and to verify on validation")
    if calibration_frames < 1:
        raise UsageError(f"--calibration_frames {calibration_frames}: must be 1 or more")
    opened = zoo.open(bundle)
    opened.check_own()
    names = " ".join(str(one.folder) for one in opened.members)
    opened.check_single(f"export its members one by one: {names}")
    if not overwrite and any((one.runtime, one.precision) == (format, precision) for one in opened.exports):
        raise PolypsegError(f"{opened.folder}: contains an export to {format} {precision} already; use --overwrite")
    show = sys.stderr.isatty() if progress is None else progress
    proof = _Frames(opened, with_masks([data] if isinstance(data, str | Path) else data, masks), split_file)
    try:
        with tempfile.TemporaryDirectory(prefix=".export.", dir=opened.folder) as temporary:
            file = Path(temporary) / format / f"{precision}.{'xml' if format == 'openvino' else 'onnx'}"
            file.parent.mkdir()
            log.info("writing %s %s", format, precision)
            images = proof.calibration(calibration_frames) if precision == "int8" else []
            for preset in PRESETS if images else (None,):
                _write(opened, format, precision, file, images, preset)
                record = {
                    "runtime": format,
                    "precision": precision,
                    "files": {f"{format}/{one.name}": sha256_file(one) for one in _files(file)},
                    "bytes": sum(one.stat().st_size for one in _files(file)),
                    "weights_sha256": opened.metadata["weights_sha256"],
                    "calibration": {"frames": len(images), "split": proof.split("train"), "preset": preset}
                    if images
                    else None,
                }
                parity = _verify(opened, Export(format, precision, file, record), proof, show)
                if parity.drop <= max_drop:
                    break
            _judge(parity, opened, format, precision, max_drop)
            record |= {
                "verified": {**parity.to_dict(), "split": proof.split("val"), "threshold": opened.threshold},
                "commit": commit(),
                "versions": versions("openvino", "nncf", "onnx", "onnxruntime"),
            }
            (opened.folder / format).mkdir(exist_ok=True)
            for one in _files(file):
                one.replace(opened.folder / format / one.name)
    except OSError as error:
        raise disk_error(opened.folder, error) from error
    kept = [
        one for one in opened.metadata.get("exports", []) if (one["runtime"], one["precision"]) != (format, precision)
    ]
    updated = opened.update(exports=[*kept, record])
    return next(one for one in updated.exports if (one.runtime, one.precision) == (format, precision))


def describe(record: dict[str, Any]) -> str:
    """What an export's record in ``metadata.json`` says, in one line."""
    found = record["verified"]
    line = (
        f"{record['runtime']} {record['precision']}: {record['bytes'] / 1e6:.1f} MB; against PyTorch fp32 on "
        f"{found['frames']} {'validation' if found['split'] else 'phantom'} frames: probability differs by "
        f"{found['probability_difference']['largest']:.2g} at most, masks agree at Dice {found['mask_agreement']:.4f}"
    )
    if found["dice"]:
        line += f", mean Dice {found['dice']['export']:.4f} (PyTorch {found['dice']['torch']:.4f})"
    return line


class _Frames:
    """What an export is calibrated and verified on."""

    def __init__(self, bundle: ModelBundle, data: Sequence[str | Path], split_file: str | Path | None) -> None:
        self.bundle = bundle
        self._parts: dict[str, tuple[Catalog, dict[str, Any]]] = {}
        if data:
            catalog = read_all(data)
            self._parts = {part: select(catalog, part, split_file, bundle) for part in ("train", "val")}

    def split(self, part: str) -> dict[str, Any] | None:
        """Name, part and hash of the split; None where phantom frames are taken."""
        split: dict[str, Any] | None = self._parts[part][1]["split"] if self._parts else None
        return split

    def calibration(self, count: int) -> list[NDArray[np.float32]]:
        """The network's input of training frames, at equal steps over all of them."""
        frames = self._parts["train"][0]
        chosen = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int))
        return [self.bundle.preprocessing.apply(frames.frame(int(index))) for index in chosen]

    def __len__(self) -> int:
        return len(self._parts["val"][0]) if self._parts else PHANTOMS

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]:
        if not self._parts:
            yield from ((phantom.draw(seed, 288, 384)[0], None) for seed in range(PHANTOMS))
            return
        frames = self._parts["val"][0]
        yield from ((frames.frame(index), frames.mask(index)) for index in range(len(frames)))


def _write(
    bundle: ModelBundle,
    format: str,
    precision: str,
    file: Path,
    images: Sequence[NDArray[np.float32]],
    preset: str | None,
) -> None:
    floats = file if preset is None else file.with_stem("fp32")
    if format == "onnx":
        # NNCF does not know the shapes of a network of any size, and quantises it to what ONNX Runtime does not run: it
        # gets the network's own size, which is taken out again.
        write_onnx(bundle, floats, any_size=preset is None)
    else:
        write_openvino(bundle, floats, half=precision == "bf16")
    if preset is not None:
        quantise(floats, file, images, preset)
        if format == "onnx":
            open_size(bundle, floats, file)
        for one in _files(floats):
            one.unlink()


def _files(model: Path) -> list[Path]:
    """An export's files, the one to open first."""
    return [model, model.with_suffix(".bin")] if model.suffix == ".xml" else [model]


def _verify(bundle: ModelBundle, made: Export, proof: _Frames, progress: bool) -> Parity:
    # One view each: it is the network's own size and computation that is compared.
    reference = Segmenter(bundle, runtime="torch", device="cpu", precision="fp32", tta="none")
    candidate = replace(bundle, folder=made.model.parent.parent, metadata={**bundle.metadata, "exports": [made.record]})
    exported = Segmenter(candidate, runtime=made.runtime, device="cpu", precision=made.precision, tta="none")
    return compare(reference, exported, tqdm(proof, "verifying", unit="frame", disable=not progress, leave=False))


def _judge(parity: Parity, bundle: ModelBundle, format: str, precision: str, max_drop: float) -> None:
    """Refuse an export that is not the same network any more."""
    if precision == "fp32" and not parity.largest <= FP32_TOLERANCE:
        raise PolypsegError(
            f"{bundle.folder}: its export to {format} differs from PyTorch by {parity.largest:.3g} in a pixel's "
            f"probability, more than {FP32_TOLERANCE:g}, and was not kept; please report this"
        )
    if parity.drop > max_drop:
        assert parity.dice is not None
        raise PolypsegError(
            f"{bundle.folder}: {format} {precision} loses {parity.drop:.4f} of mean Dice on validation "
            f"({parity.dice['torch']:.4f} to {parity.dice['export']:.4f}), more than {max_drop:g}, and was not kept; "
            "take another precision, or allow it with --max_drop"
        )
