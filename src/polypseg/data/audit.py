"""The audit: what is wrong, doubtful or worth knowing in a data set, and what leaks across a split."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polypseg.catalog import Catalog
from polypseg.data import read
from polypseg.data.duplicates import Fingerprints, exact_pairs, fingerprints, near_pairs
from polypseg.data.folder import Problem
from polypseg.errors import PolypsegError, one_line
from polypseg.io.label_files import is_label_kind
from polypseg.io.pictures import depth_doubt, image_header

# A polyp below both is hardly drawn on purpose: the smallest of Kvasir-SEG and CVC-ClinicDB have 0.34 % and
# 373 pixels.
TINY_AREA = 0.001  # of the frame
LARGE_AREA = 0.8  # of the frame; one of Kvasir-SEG's thousand has more
WHITE_CORNERS = 3  # of 4; a polyp seldom fills more than two
LOW_VALUE = 0.04  # of the frame with one value just above 0; the noise of JPEG spreads over several
TINY_PIXELS = 64  # also the least size at which a connected region counts as a polyp, not as a crumb
# A published box agrees with the mask where it overlaps some region, or the whole mask, with this IoU. On
# Kvasir-SEG half of the boxes reach 0.98 and 95 % reach 0.94; 8 of 1071 stay below 0.5, all of them
# around slivers or crumbs of a few pixels.
BOX_IOU = 0.5
PICTURES = 24

# Every check, in the order of the table: kind, severity, title.
CHECKS: tuple[tuple[str, str, str], ...] = (
    ("no-frames", "error", "no usable frames"),
    ("missing-mask", "error", "frames without a mask"),
    ("missing-frame", "error", "masks or names without a frame"),
    ("not-an-image", "error", "files that are no images"),
    ("same-stem", "error", "two files of one stem"),
    ("unreadable", "error", "unreadable files"),
    ("undecodable", "error", "damaged files"),
    ("size", "error", "mask and frame differ in size"),
    ("turned-mask", "error", "masks turned otherwise than their frames"),
    ("mask-names", "error", "masks named in several ways"),
    ("label-values", "error", "masks that are not black and white"),
    ("split-unknown-frame", "error", "split names frames not in the data"),
    ("empty-mask", "warning", "empty masks"),
    ("tiny-mask", "warning", "tiny masks"),
    ("fewer-bits", "warning", "frames of fewer bits than their files"),
    ("large-mask", "warning", "polyps over 80 % of the frame"),
    ("white-corners", "warning", "masks with white corners (inverted?)"),
    ("low-values", "warning", "masks with low values beside white"),
    ("turned-frame", "warning", "frames turned by EXIF, masks not"),
    ("box-outside", "warning", "boxes outside the frame"),
    ("box-disagrees", "warning", "boxes that do not fit the mask"),
    ("exact-duplicate", "warning", "the same picture twice"),
    ("near-duplicate", "warning", "near-duplicate frames"),
    ("leak-exact", "warning", "same picture in two subsets of the split"),
    ("leak-near", "warning", "near duplicates in two subsets of the split"),
    ("leak-group", "warning", "sequences in two subsets of the split"),
    ("split-missing-frame", "info", "frames that the split leaves out"),
    ("mask-suffix", "info", "masks named with an addition"),
    ("grey-masks", "info", "masks with grey edges"),
    ("several-polyps", "info", "frames with several polyps"),
)
_SEVERITY = {kind: severity for kind, severity, _ in CHECKS}


@dataclass(frozen=True)
class Finding:
    """One thing that the audit found.

    Attributes:
        kind: the check, as in ``CHECKS``.
        severity: ``error`` (the data cannot be used as they are), ``warning`` or ``info``.
        frames: the frames involved, each ``dataset/frame_id``; for a file that is no frame, its path.
        message: one line.
        numbers: those of the message, by name, as ``{"correlation": 0.99, "dice": 0.97}``.
    """

    kind: str
    severity: str
    frames: tuple[str, ...]
    message: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """What ``audit`` returns.

    Attributes:
        catalog: the frames that could be paired, as read.
        summary: numbers of the whole: ``frames``, ``datasets`` (name → frames), ``resolution`` (smallest and
            largest ``[width, height]`` by area, number of different ones), ``polyp_area_percent``
            (percentiles of the polyp area in percent of the frame), and for a split its frames.
        findings: in the order of ``CHECKS``.
    """

    catalog: Catalog
    summary: dict[str, Any]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings are allowed."""
        return not any(finding.severity == "error" for finding in self.findings)

    def of_kind(self, kind: str) -> list[Finding]:
        """The findings of one check."""
        return [finding for finding in self.findings if finding.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: ``ok``, ``summary``, ``counts`` (check → findings) and ``findings``."""
        return {
            "ok": self.ok,
            "summary": self.summary,
            "counts": {**dict.fromkeys(_SEVERITY, 0), **Counter(finding.kind for finding in self.findings)},
            "findings": [{**asdict(finding), "frames": list(finding.frames)} for finding in self.findings],
        }

    def table(self, examples: int = 3) -> str:
        """Plain text for the terminal: the summary, every check with its count and its first findings.

        Args:
            examples: at most so many findings are written out for each check.
        """
        lines = [*_summary_lines(self.summary), "", f"{'check':<40}{'severity':<10}{'found':>6}"]
        others = sorted({finding.kind for finding in self.findings} - set(_SEVERITY))
        for kind, severity, title in (*((kind, "error", kind) for kind in others), *CHECKS):
            found = self.of_kind(kind)
            if kind == "no-frames" and not found:
                continue
            lines.append(f"{title:<40}{severity if found else 'ok':<10}{len(found):>6}")
            lines += [f"    {one_line(finding.message)}" for finding in found[:examples]]
            if len(found) > examples:
                lines.append(f"    … and {len(found) - examples} more")
        counts = Counter(finding.severity for finding in self.findings)
        lines += ["", f"{counts['error']} errors, {counts['warning']} warnings, {counts['info']} notes"]
        return "\n".join(lines)


def audit(
    source: str | Path | Sequence[str | Path], split: pd.DataFrame | None = None, progress: bool = False
) -> Audit:
    """Check one or several data sets, and a split of them.

    Every frame and mask is decoded once (the masks of duplicates a second time, to compare them).

    Args:
        source: a data set's folder, or several.
        split: a table ``dataset, frame_id, split``, as ``polypseg.data.splits`` makes it.
        progress: show a progress bar on standard error.

    Returns:
        The findings; what is wrong with single files is among them and raises nothing.

    Raises:
        PolypsegError: a source is no folder of a data set.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    problems: list[Problem] = []
    catalog = Catalog.concatenate([read(path, problems=problems) for path in sources])
    prints = fingerprints(catalog, progress=progress, problems=problems)
    names = [f"{row.dataset}/{row.frame_id}" for row in catalog]
    near = near_pairs(prints)
    exact = exact_pairs(prints, near)

    findings = [_finding(problem.kind, [problem.path], problem.message) for problem in problems]
    if not prints.readable.any():
        places = ", ".join(str(path) for path in sources)
        findings.append(_finding("no-frames", [], f"{places}: contains no frame with a mask that can be read"))
    findings += _mask_findings(catalog, prints, names)
    findings += _file_findings(catalog, names)
    findings += _box_findings(catalog, prints, names)
    findings += _duplicate_findings(catalog, prints, names, exact, near)
    summary = _summary(catalog, prints)
    if split is not None:
        assigned = {f"{row.dataset}/{row.frame_id}": str(row.split) for row in split.itertuples()}
        findings += _split_findings(catalog, names, exact, near, assigned)
        summary["split"] = {part: int(count) for part, count in Counter(assigned.values()).items()}
    order = {kind: place for place, (kind, _, _) in enumerate(CHECKS)}
    return Audit(catalog, summary, sorted(findings, key=lambda finding: order.get(finding.kind, -1)))


def pictures(audit: Audit) -> list[tuple[str, str, str | None, str]]:
    """The frames worth looking at, duplicates side by side first, then by severity; at most 24.

    Returns:
        ``(caption, image_path, mask_path, mask_kind)``, the mask's path None where there is none. The two frames of a
        pair follow each other, so that an even number of columns shows them side by side.
    """
    paths = {f"{row.dataset}/{row.frame_id}": (row.image_path, row.mask_path, row.mask_kind) for row in audit.catalog}
    pairs = ("exact-duplicate", "near-duplicate")
    odd = ("empty-mask", "tiny-mask", "large-mask", "white-corners", "low-values", "turned-frame")
    singles = (*odd, "box-outside", "box-disagrees", "several-polyps")
    chosen: list[tuple[str, str, str | None, str]] = []
    shown: set[tuple[str, ...]] = set()
    for kind in (*pairs, *singles):
        for finding in audit.of_kind(kind):
            if finding.frames in shown or len(chosen) + len(finding.frames) > PICTURES:
                continue
            shown.add(finding.frames)
            title = next(title for name, _, title in CHECKS if name == kind)
            chosen += [(f"{frame}: {title}", *paths[frame]) for frame in finding.frames]
    return chosen


def _finding(kind: str, frames: Sequence[str], message: str, **values: float) -> Finding:
    # A reader of a new data set may name a kind of problem that CHECKS does not list.
    return Finding(kind, _SEVERITY.get(kind, "error"), tuple(frames), message, values)


def _mask_findings(catalog: Catalog, prints: Fingerprints, names: list[str]) -> list[Finding]:
    findings = []
    usable = prints.readable & prints.has_mask
    for k in np.flatnonzero(usable):
        name, pixels, highest = names[k], int(prints.polyp_pixels[k]), int(prints.mask_max[k])
        path = catalog.row(int(k)).mask_path
        if highest == 0:
            findings.append(_finding("empty-mask", [name], f"{path}: is empty; right only if no polyp is seen"))
        elif prints.area[k] < TINY_AREA or pixels < TINY_PIXELS:
            message = f"{path}: the polyp has {pixels} pixels, {prints.area[k]:.3%} of the frame; check the mask"
            findings.append(_finding("tiny-mask", [name], message, pixels=pixels, area=float(prints.area[k])))
        if prints.area[k] > LARGE_AREA:
            whole = "the whole frame" if prints.area[k] == 1 else f"{prints.area[k]:.1%} of the frame"
            message = f"{path}: the polyp is {whole}; check the mask"
            findings.append(_finding("large-mask", [name], message, area=float(prints.area[k])))
        if prints.corners[k] >= WHITE_CORNERS:
            message = f"{path}: {prints.corners[k]} corners are polyp, as in a mask of black on white; check it"
            findings.append(_finding("white-corners", [name], message, corners=int(prints.corners[k])))
        if pixels and prints.low[k] > LOW_VALUE:
            message = (
                f"{path}: one value just above 0 covers {prints.low[k]:.1%} of the frame and is read as background; "
                "if it is a class, see --masks"
            )
            findings.append(_finding("low-values", [name], message, low=float(prints.low[k])))
        polyps = int((prints.components[k][:, 4] >= TINY_PIXELS).sum())
        if polyps > 1:
            message = f"{name}: {polyps} separate regions of {TINY_PIXELS} pixels or more"
            findings.append(_finding("several-polyps", [name], message, polyps=polyps))
    grey = np.flatnonzero(usable & (prints.grey > 0) & (prints.polyp_pixels > 0))
    if len(grey):  # one finding for all: it is a property of the file format, not of a frame
        fraction = float(prints.grey[grey].mean())
        inflation = float((prints.nonzero_pixels[grey] / prints.polyp_pixels[grey]).mean() - 1)
        message = (
            f"{len(grey)} masks contain values between 0 and 255, {fraction:.2%} of their pixels; thresholding "
            f"at > 0 instead of > 127 would enlarge the polyps by {inflation:.1%}"
        )
        values = {"masks": len(grey), "fraction": fraction, "inflation": inflation}
        findings.append(_finding("grey-masks", [names[k] for k in grey], message, **values))
    return findings


def _file_findings(catalog: Catalog, names: list[str]) -> list[Finding]:
    """What the masks' names and headers say."""
    findings = []
    added: dict[tuple[str, str], list[str]] = {}
    for name, row in zip(names, catalog, strict=True):
        try:
            doubt = depth_doubt(row.image_path)
        except PolypsegError:
            continue  # reported elsewhere
        if doubt is not None:
            findings.append(_finding("fewer-bits", [name], f"{row.image_path}: {doubt}"))
        if row.mask_path is None or is_label_kind(row.mask_kind):
            continue
        stem = unicodedata.normalize("NFC", Path(row.mask_path).stem)
        frame = unicodedata.normalize("NFC", Path(row.image_path).stem).rstrip("_")
        if stem.startswith(frame) and stem != frame:
            added.setdefault((row.dataset, stem.removeprefix(frame)), []).append(name)
        try:
            turn, mask_turn = image_header(row.image_path)[1], image_header(row.mask_path)[1]
        except PolypsegError:
            continue  # reported elsewhere
        if turn != mask_turn:
            message = (
                f"{row.image_path}: has the EXIF orientation {turn}, its mask none; right only if the mask was drawn "
                "on the turned picture"
            )
            findings.append(_finding("turned-frame", [name], message, orientation=turn))
    for (dataset, addition), frames in added.items():
        message = f"{dataset}: masks are named <stem>{addition} and are read so"
        findings.append(_finding("mask-suffix", frames, message, masks=len(frames)))
    return findings


def _box_findings(catalog: Catalog, prints: Fingerprints, names: list[str]) -> list[Finding]:
    findings = []
    for k, row in enumerate(catalog):
        if not row.boxes or not (prints.readable[k] and prints.has_mask[k]):
            continue
        boxes = np.array(row.boxes, dtype=np.int64).reshape(-1, 4)
        outside = (boxes[:, :2] < 0).any(1) | (boxes[:, 2] > row.width) | (boxes[:, 3] > row.height)
        outside |= (boxes[:, 2:] <= boxes[:, :2]).any(1)
        if outside.any():
            message = f"{names[k]}: box {boxes[outside][0].tolist()} is not inside {row.width}×{row.height}"
            findings.append(_finding("box-outside", [names[k]], message, boxes=int(outside.sum())))
        regions = prints.components[k][:, :4]
        if len(regions):
            whole = np.concatenate([regions[:, :2].min(0), regions[:, 2:].max(0)])
            best = _box_iou(boxes, np.vstack([regions, whole])).max(1)
        else:
            best = np.zeros(len(boxes))
        if best.min() < BOX_IOU:
            worst = int(best.argmin())
            message = (
                f"{names[k]}: {int((best < BOX_IOU).sum())} of {len(boxes)} boxes fit no region of the mask; "
                f"{boxes[worst].tolist()} reaches IoU {best[worst]:.2f}"
            )
            findings.append(_finding("box-disagrees", [names[k]], message, iou=float(best[worst])))
    return sorted(findings, key=lambda finding: finding.numbers.get("iou", 0.0))


def _box_iou(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of every box in ``a`` (N×4) with every one in ``b`` (M×4), last pixels included."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low + 1, 0).prod(-1)
    size_a, size_b = ((box[:, 2:] - box[:, :2] + 1).clip(min=0).prod(-1) for box in (a, b))
    return np.asarray(shared / np.maximum(size_a[:, None] + size_b[None] - shared, 1))


_HOW = {
    "file": "are the same file",
    "pixels": "contain the same pixels",
    "picture": "show the same picture, encoded or labelled anew",
}


def _duplicate_findings(
    catalog: Catalog,
    prints: Fingerprints,
    names: list[str],
    exact: list[tuple[int, int, str]],
    near: list[tuple[int, int, float]],
) -> list[Finding]:
    findings = []
    correlation = {(i, j): value for i, j, value in near}
    for i, j, how in exact:
        values = {"correlation": correlation.get((i, j), 1.0)}
        message = f"{names[i]} and {names[j]} {_HOW[how]}"
        if prints.has_mask[i] and prints.has_mask[j]:
            a, b = (catalog.mask(k) for k in (i, j))
            total = int(a.sum()) + int(b.sum())
            values["dice"] = 2 * int((a & b).sum()) / total if total else 1.0
            message += f"; their masks agree at Dice {values['dice']:.3f}"
        findings.append(_finding("exact-duplicate", [names[i], names[j]], message, **values))
    group = catalog.frames["group"].tolist()
    done = {(i, j) for i, j, _ in exact}
    for i, j, value in sorted(near, key=lambda pair: -pair[2]):
        # Within a known sequence likeness is expected, and grouped splits keep it together anyway.
        if (i, j) not in done and group[i] != group[j]:
            message = f"{names[i]} and {names[j]} look alike (correlation {value:.3f})"
            findings.append(_finding("near-duplicate", [names[i], names[j]], message, correlation=value))
    return findings


def _split_findings(
    catalog: Catalog,
    names: list[str],
    exact: list[tuple[int, int, str]],
    near: list[tuple[int, int, float]],
    assigned: dict[str, str],
) -> list[Finding]:
    findings = []
    unknown = sorted(set(assigned) - set(names))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        message = f"the split names {unknown[0]}{more}, not among the usable frames; give its --data too"
        findings.append(_finding("split-unknown-frame", unknown, message))
    left_out = [name for name in names if name not in assigned]
    if left_out:
        message = f"the split leaves out {len(left_out)} of {len(names)} frames"
        findings.append(_finding("split-missing-frame", left_out, message))

    def in_two(i: int, j: int) -> bool:
        a, b = assigned.get(names[i]), assigned.get(names[j])
        return a is not None and b is not None and a != b

    def described(i: int, j: int) -> str:
        return f"{names[i]} is in {assigned[names[i]]}, {names[j]} in {assigned[names[j]]}"

    for i, j, _ in exact:
        if in_two(i, j):
            message = f"{described(i, j)}: the same picture"
            findings.append(_finding("leak-exact", [names[i], names[j]], message))
    done = {(i, j) for i, j, _ in exact}
    group = catalog.frames["group"].tolist()
    for i, j, value in sorted(near, key=lambda pair: -pair[2]):
        if (i, j) not in done and group[i] != group[j] and in_two(i, j):
            message = f"{described(i, j)}: correlation {value:.3f}"
            findings.append(_finding("leak-near", [names[i], names[j]], message, correlation=value))
    members: dict[str, list[str]] = {}
    for name, known in zip(names, group, strict=True):
        if name in assigned:
            members.setdefault(known, []).append(name)
    for known, frames in members.items():
        parts = Counter(assigned[name] for name in frames)
        if len(parts) > 1:
            spread = ", ".join(f"{count} in {part}" for part, count in parts.items())
            findings.append(_finding("leak-group", frames, f"{known}: {spread}", parts=len(parts)))
    return findings


def _summary(catalog: Catalog, prints: Fingerprints) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "frames": len(catalog),
        "datasets": {str(name): int(n) for name, n in catalog.frames["dataset"].value_counts(sort=False).items()},
    }
    sizes = sorted({(int(row.width), int(row.height)) for row in catalog}, key=lambda size: (size[0] * size[1], size))
    if sizes:
        summary["resolution"] = {
            "smallest": list(sizes[0]), "largest": list(sizes[-1]), "different": len(sizes)
        }  # fmt: skip
    polyps = prints.area[prints.readable & (prints.polyp_pixels > 0)]
    if len(polyps):
        percentiles = np.percentile(100 * polyps, (0, 5, 50, 95, 100))
        names = ("min", "p5", "median", "p95", "max")
        summary["polyp_area_percent"] = dict(zip(names, percentiles.tolist(), strict=True))
    return summary


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    sets = ", ".join(f"{name} {count}" for name, count in summary["datasets"].items())
    lines = [f"frames          {summary['frames']}" + (f" ({sets})" if sets else "")]
    if "resolution" in summary:
        size = summary["resolution"]
        small, large = ("×".join(map(str, size[end])) for end in ("smallest", "largest"))
        lines.append(f"resolution      {small} to {large}, {size['different']} different")
    if "polyp_area_percent" in summary:
        area = summary["polyp_area_percent"]
        lines.append(
            "polyp area      " + ", ".join(f"{name} {value:.1f} %" for name, value in area.items()) + " of the frame"
        )
    if "split" in summary:
        lines.append("split           " + ", ".join(f"{n} {part}" for part, n in summary["split"].items()))
    return lines
