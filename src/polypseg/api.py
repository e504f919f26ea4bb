"""The verbs for programs: the same options and defaults as on the command line; what they return are objects.

Everything heavy is imported by the verb that needs it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polypseg import renamed
from polypseg.bundle import ModelBundle
from polypseg.errors import UsageError
from polypseg.extras import naming_extras
from polypseg.names import Part, Precision, Runtime

if TYPE_CHECKING:
    from polypseg.evaluation.evaluate import Report
    from polypseg.inference.segmenter import Segmenter
    from polypseg.training.recipe import Recipe

Place = str | os.PathLike[str]
Model = ModelBundle | Place  # an opened bundle, or what ``polypseg.zoo.open`` takes; a Run is such a place


@naming_extras()
def load(
    bundle: Model | Sequence[Model] | None = None,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    tta: str | None = None,
    threshold: float | None = None,
    min_confidence: float | None = None,
    min_area: float | None = None,
    fill_holes: bool | None = None,
) -> Segmenter:
    """A ``Segmenter`` for a bundle.

    Args:
        bundle: the path of a bundle or of a run folder, a ``Run``, an opened bundle, the name of a shipped model, or
            ``hf://owner/name[@revision]`` on the Hugging Face hub; several make an ensemble, none is the shipped
            default.
        runtime: ``auto``, ``openvino``, ``onnx`` or ``torch``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        tta: test-time augmentation, ``none``, ``hflip``, ``flips`` or ``multiscale``; by default the bundle's own.
        threshold: probability, 0..1, at and above which a pixel belongs to a region; this and the next three by default
            the bundle's own, its operating point.
        min_confidence: a region's least confidence, 0..1, to be a polyp.
        min_area: a region's least size, share of the frame.
        fill_holes: whether holes in a region are filled.

    Raises:
        PolypsegError: there is no whole bundle there, or what it needs is not installed.
        UsageError: the options do not go together.
    """
    from polypseg.inference.segmenter import Segmenter

    return Segmenter(
        bundle, runtime, device, precision, threads, tta, threshold=threshold, min_confidence=min_confidence,
        min_area=min_area, fill_holes=fill_holes,
    )  # fmt: skip


@dataclass(frozen=True)
class Run(os.PathLike[str]):
    """A trained model's folder; it is taken wherever a run folder is.

    Attributes:
        folder: the run folder.
    """

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def bundle(self) -> ModelBundle:
        """The model, opened and verified."""
        return ModelBundle.load(self.folder)

    @property
    def metrics(self) -> dict[str, Any]:
        """What it scored, by the part of the split: ``metrics["test"]["dice"]``; none before the end of the run."""
        return dict(self.bundle.metadata.get("metrics") or {})

    def __repr__(self) -> str:
        test = self.metrics.get("test") or {} if (self.folder / "bundle").is_dir() else {}
        scored = "" if test.get("dice") is None else f": Dice {test['dice']:.4f} on {test['n']} test frames"
        return f"Run({self.folder}{scored})"


@naming_extras("train")
def train(
    recipe: Recipe | Place,
    data: Place | Sequence[Place],
    out: Place | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    folds: int | None = None,
    masks: str = "binary",
    progress: bool | None = None,
    **fields: Any,
) -> Run:
    """Train a network by a recipe, test it once, and write a run folder with its bundle.

    Args:
        recipe: the name of a recipe that polypseg comes with, as ``realtime``; a YAML file; or a ``Recipe``.
        data: the folder of a data set, with images/ and masks/, or several.
        out: the run folder; ``runs/NAME`` by default.
        resume: continue from the last complete epoch of the run in ``out``.
        overwrite: replace an earlier run in ``out``, once the new one is known to work.
        folds: train as many networks, each on all folds of the frames but one, and make one ensemble of them.
        masks: how masks are read: binary (white is polyp), nonzero, class:N, colour (all but black) or alpha.
        progress: show progress bars; by default where standard error is a terminal.
        fields: of the recipe, in place of its own: by the last part of a field's name where one field alone has it, as
            ``epochs=20``, ``batch_size=8``, ``size=352``; by its whole name, as ``**{"optimizer.name": "adamw"}``; or
            a section as a dict, as ``optimizer={"name": "adamw"}``.

    Raises:
        UsageError: there is no such recipe or field, or a value is out of its range.
        PolypsegError: the data, the disk, the network or an earlier run in ``out`` stands in the way.
    """
    from polypseg.data import with_masks

    chosen = _recipe(recipe, fields)
    sources = with_masks(_places(data), masks)
    place = None if out is None else Path(out)
    if folds is None:
        from polypseg.training.run import train as run

        return Run(run(chosen, sources, place, resume=resume, overwrite=overwrite, progress=progress))
    from polypseg.training.folds import train_folds

    return Run(train_folds(chosen, sources, folds, place, resume=resume, overwrite=overwrite, progress=progress))


def _recipe(recipe: Recipe | Place, fields: Mapping[str, Any]) -> Recipe:
    """A recipe by name, file or itself, with other values of some fields."""
    from polypseg.training.recipe import Recipe, load_recipe, recipe_file, with_values

    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe_file(os.fspath(recipe)))
    return with_values(recipe, _whole_names(recipe, fields)) if fields else recipe


def _whole_names(recipe: Recipe, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe's fields by their whole names, as ``optimizer.learning_rate``."""
    sections = {name: value for name, value in recipe.to_dict().items() if isinstance(value, dict)}
    known = [name for name in recipe.to_dict() if name not in sections]
    known += [f"{section}.{name}" for section, values in sections.items() for name in values]
    found: dict[str, Any] = {}
    for name, value in renamed.values(fields).items():
        if name in sections and isinstance(value, Mapping):
            found |= {f"{name}.{inner}": one for inner, one in value.items()}
            continue
        meant = [name] if name in known else [one for one in known if one.rpartition(".")[2] == name]
        if not meant:
            near = difflib.get_close_matches(name, [*known, *(one.rpartition(".")[2] for one in known)], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{name}: is no field of a recipe, as epochs or optimizer.learning_rate{hint}")
        if len(meant) > 1:
            raise UsageError(f"{name}: may be {' or '.join(meant)}; give its whole name, as **{{{meant[0]!r}: …}}")
        found[meant[0]] = value
    return found


@naming_extras()
def evaluate(  # noqa: PLR0913  (the options of the verb)
    bundle: Model | None = None,
    data: Place | Sequence[Place] = (),
    out: Place = "evaluation",
    *,
    split: Part | None = None,
    split_file: Place | None = None,
    predictions: Place | None = None,
    threshold: float | None = None,
    allow_train_frames: bool = False,
    corruptions: bool = False,
    runtime: Runtime = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    tta: str | None = None,
    masks: str = "binary",
    progress: bool | None = None,
) -> Report:
    """Score a model, or predictions of another program, under every definition, with intervals and a report.

    Args:
        bundle: a bundle, a ``Run``, or what ``load`` takes; None with ``predictions``.
        data: the folder of a data set, with images/ and masks/, or several.
        out: folder for report.json, per_image.csv and report.html.
        split: part of the split to score on; ``all`` takes every frame; None is ``test``, but ``all`` for data that the
            bundle has not seen and for predictions without ``split_file``.
        split_file: a CSV of ``polypseg data split``; else the split that the bundle was trained with.
        predictions: folder of masks or probability maps, one a frame, named by its stem.
        threshold: predictions only, probability at and above which a pixel is polyp, 0..1; None is 0.5.
        allow_train_frames: also score frames that the bundle was trained or chosen on; the report says so first.
        corruptions: also score corrupted frames (blur, darkness, highlights, …); 40 times the work.
        runtime: as of ``load``.
        device: as of ``load``.
        precision: as of ``load``.
        tta: as of ``load``.
        masks: how masks are read, as of ``train``.
        progress: show progress bars; by default where standard error is a terminal.

    Returns:
        ``numbers``, what report.json has, ``per_image``, a table with a row a frame, and ``folder``, where both lie.

    Raises:
        UsageError: an option is wrong, or options do not go together.
        PolypsegError: the bundle, the data, a prediction or the folder stands in the way, or a frame is one that the
            bundle was trained or chosen on.
    """
    from polypseg.data import with_masks
    from polypseg.evaluation.run import report_on

    return report_on(
        bundle, with_masks(_places(data), masks), Path(out), split=split,
        split_file=None if split_file is None else Path(split_file),
        predictions=None if predictions is None else Path(predictions), threshold=threshold,
        allow_train_frames=allow_train_frames, corruptions=corruptions, runtime=runtime, device=device,
        precision=precision, tta=tta, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class Predictions(os.PathLike[str]):
    """What ``predict`` wrote.

    Attributes:
        folder: where; a text where it is the URL of an archive's results.
        complete: whether every source could be read; those that could not were named in a warning each.
    """

    folder: Path | str
    complete: bool

    def __fspath__(self) -> str:
        return str(self.folder)


@naming_extras()
def predict(
    sources: Place | int | Sequence[Place | int],
    model: Place | Sequence[Place] = (),
    out: Place = "predictions",
    save: str | Sequence[str] | None = None,
    **options: Any,
) -> Predictions:
    """Segment images, folders, globs, videos, DICOM files, what a camera sees, or whole archives, to files.

    Args:
        sources: what is segmented; one or several.
        model: a bundle's or a run's folder, or what ``load`` takes; of several, an ensemble; of none, the model that
            ships.
        out: folder for the outputs, named by the sources' stems: STEM.png (the mask) and STEM.json of an image,
            STEM.mp4, STEM.jsonl and STEM.timeline.json of a video.
        save: outputs, of ``mask``, ``probability``, ``overlay``, ``contours``, ``json``, ``coco`` and ``csv``; by
            default mask and json.
        options: all others of ``polypseg predict --help``, by the same names: ``threshold``, ``min_confidence``,
            ``batch_size``, ``smoothing``, ``resume``, ``overwrite``, ``live``, ``engine``, …

    Raises:
        UsageError: the arguments contradict one another.
        PolypsegError: a source is missing, an output is there already, the model cannot be used, or the disk refuses.
    """
    from polypseg.pipeline.predict import predict as run

    models = [os.fspath(one) for one in _places(model)]
    named = [str(sources)] if isinstance(sources, int) else [str(one) for one in _several(sources)]
    saved: Any = None if save is None else [save] if isinstance(save, str) else list(save)
    place = os.fspath(out)
    status = run(named, model=models, out=place, save=saved, **options)
    return Predictions(place if "://" in place else Path(place), status == 0)


def _several(given: Any) -> list[Any]:
    return [given] if isinstance(given, str | os.PathLike) else list(given)


def _places(given: Place | Sequence[Place]) -> list[str]:
    """One place, or several, as strings."""
    return [os.fspath(one) for one in _several(given)]
