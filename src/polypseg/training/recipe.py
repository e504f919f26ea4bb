"""The Recipe: everything that decides a training run, as typed dataclasses that a YAML file fills.

Importing this needs no torch, so that the command line can print and check a recipe at once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import yaml

from polypseg import renamed
from polypseg.bundle import Architecture
from polypseg.errors import PolypsegError, UsageError
from polypseg.files import check_yaml
from polypseg.inference.augmentation import Augmented
from polypseg.models.losses import LossConfig
from polypseg.training.ranges import shown, trouble

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class FramesConfig:
    """How frames are read, augmented and batched.

    Args:
        size: rows and columns of the network's input, pixels; a multiple of 32. Validation is always at this size.
        first_size: rows and columns in the first epochs of training, a multiple of 32; they grow in steps of 32 to
            last_size. null: all epochs at last_size.
        last_size: rows and columns in the last quarter of the epochs of training, a multiple of 32. null: size.
        interpolation: how frames are resized, linear or area (averages when shrinking).
        augmentation: none, baseline (that of the baseline recipe), strong or stronger (also hue, glare, borders and
            insets).
        polyp_free_share: share of polyp-free frames in every batch of training, 0 or more and below 1; null takes them
            as they come.
        made_polyp_free: share of the frames with a polyp that are shown without it, painted over by their own mucosa or
            cut to a window beside it, each time anew, 0..1.
        batch_size: frames in a batch, for each device.
        workers: processes that augment beside the training; -1 chooses for this machine.
        cache: where decoded frames are kept, memory, disk or none.
        cache_gb: most that the cache may take, GiB.
    """

    size: int = 256
    first_size: int | None = None
    last_size: int | None = None
    interpolation: Literal["linear", "area"] = "linear"
    augmentation: Literal["none", "baseline", "strong", "stronger"] = "baseline"
    polyp_free_share: float | None = None
    made_polyp_free: float = 0.0
    batch_size: int = 16
    workers: int = -1
    cache: Literal["memory", "disk", "none"] = "memory"
    cache_gb: float = 4.0


@dataclass(frozen=True)
class ModelConfig(Architecture):
    """The network and where its encoder's weights come from.

    Args:
        name: class in segmentation_models_pytorch, as UnetPlusPlus, Unet or FPN.
        encoder: encoder by SMP's name, as efficientnet-b3 or tu-tf_efficientnet_lite2.
        decoder_channels: channels of the decoder's stages, deepest first; null keeps SMP's own.
        decoder_dropout: dropout rate of the decoder, 0..1, where SMP has a place for it.
        output_stride: rows of the frame to a row of the map that the decoder computes, which is enlarged bilinearly to
            the frame's size: 1; 2 for the last stage at half the size, with the same weights; 4 without the stage
            before it and the encoder's finest features. 2 and 4 are quicker; Unet and UnetPlusPlus alone.
        presence: whether the network also judges, from the encoder's deepest features and the map, where a polyp is
            plausible at all; where it is not, what the map marks loses confidence, never its outline.
        encoder_weights: imagenet, none, or the path of a .safetensors or .pth file.
        weights: bundle, run folder or shipped model whose network training starts from, as for fine-tuning; null starts
            from encoder_weights.
        frozen: whether all but the judgement of presence keeps the weights it starts with.
        frozen_stride: the encoder's layers whose output has this stride or a finer one keep their weights and
            statistics, 1 to 32; null for none. 4 spares a third of the time and suits fine-tuning.
    """

    encoder_weights: str = "imagenet"
    weights: str | None = None
    frozen: bool = False
    frozen_stride: int | None = None

    def __post_init__(self) -> None:
        """Nothing: the Recipe checks its fields by their whole names, and then the architecture."""

    @property
    def architecture(self) -> Architecture:
        """The part that a bundle keeps."""
        return Architecture(**{item.name: getattr(self, item.name) for item in fields(Architecture)})


@dataclass(frozen=True)
class DistillationConfig:
    """Knowledge distillation: the network learns a trained model's predictions on the very frames that it is shown.

    Hinton et al., 2015, in the form of Beyer et al., A good teacher is patient and consistent, CVPR 2022: both see the
    same augmented frame, in many epochs.

    Args:
        teacher: bundle, run folder or shipped model that teaches, an ensemble too; null for none.
        weight: of the loss against the teacher's predictions, 0..1; the rest is that against the masks.
        tta: its test-time augmentation, none, hflip (twice the work), flips (four times) or multiscale (two fifths
            more).
    """

    teacher: str | None = None
    weight: float = 0.5
    tta: Augmented = "none"


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights move.

    Args:
        name: adam or adamw.
        learning_rate: of the decoder, and of the encoder where encoder_learning_rate is null.
        encoder_learning_rate: of the encoder.
        presence_learning_rate: of the judgement of presence, which starts afresh where the rest does not; null takes
            learning_rate.
        weight_decay: decoupled for adamw, L2 for adam.
        schedule: cosine (each epoch, to 0), one_cycle (each step, with warm-up) or constant.
        ema_decay: decay of the exponential moving average of weights for each step, 0..1; null for none.
        gradient_clip: largest norm of the gradient; 0 for no limit.
        accumulate: batches whose gradients are summed before a step.
    """

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-4
    encoder_learning_rate: float | None = None
    presence_learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    ema_decay: float | None = None
    gradient_clip: float = 0.0
    accumulate: int = 1


@dataclass(frozen=True)
class TrainerConfig:
    """How long, and on what machine.

    Args:
        epochs: passes over the training frames.
        patience: epochs without a better validation Dice before training stops; null trains them all.
        keep: the epoch whose weights become the bundle, best (on validation) or last (as for an average of models).
        start_share: share of the weights that training started from (model.weights) in the result, 0 to below 1: the
            rest is what was trained. Between the two lies what fits new data and still generalises (Wortsman et al.,
            Robust fine-tuning of zero-shot models, CVPR 2022).
        precision: auto, 32-true, bf16-mixed or 16-mixed; auto takes bf16-mixed where the device gains from it.
        channels_last: memory layout that is faster for convolutions.
        accelerator: auto, cpu, gpu or mps.
        devices: devices, or processes on a CPU, of each node; 0 for all.
        num_nodes: machines.
        strategy: Lightning's strategy, as auto, ddp or fsdp.
        threads: threads of each process on a CPU; 0 leaves it to PyTorch.
        seed: decides initial weights, order, augmentation and dropout.
        loggers: tensorboard, mlflow and wandb (Weights & Biases), beside metrics.csv which is always written.
    """

    epochs: int = 25
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    start_share: float = 0.0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    channels_last: bool = True
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    threads: int = 0
    seed: int = 42
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Args:
        name: names the run folder, runs/NAME, and the model.
        threshold: probability at and above which a pixel is polyp, 0..1; null chooses it on validation.
        tta: test-time augmentation that the model is chosen, tested and run with, none, hflip (twice the work), flips
            (four times) or multiscale (two fifths more).
        split: random, grouped, pranet, medico or kfold, or a CSV written by `polypseg data split`.
        frames: how frames are read, augmented and batched.
        model: the network.
        loss: what is minimised.
        distillation: a teacher whose predictions the network learns beside the masks.
        optimizer: how the weights move.
        trainer: how long and on what.
    """

    name: str = "baseline"
    threshold: float | None = 0.5
    tta: Augmented = "none"
    split: str = "random"
    frames: FramesConfig = field(default_factory=FramesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        self._take_old_spellings()
        for name, value in self._values():
            wrong = trouble(name, field_types()[name], value)
            if wrong:
                raise UsageError(f"{name} {shown(value)}: {wrong}")
        frames = self.frames
        for is_wrong, message in (
            (
                frames.last_size is not None and frames.last_size > frames.size,
                f"frames.last_size {frames.last_size}: must not be larger than frames.size, {frames.size}",
            ),
            (
                frames.first_size is not None and frames.first_size > self._last_size,
                f"frames.first_size {frames.first_size}: must not be larger than frames.last_size, {self._last_size}",
            ),
            (
                not self.loss.bce and not self.loss.dice,
                "loss.bce and loss.dice: are both 0, which leaves nothing to learn from; give one a weight",
            ),
            (
                self.model.frozen and not (self.model.presence and self.model.weights),
                "model.frozen: leaves nothing to train; set model.presence, and model.weights to start from",
            ),
            (
                self.trainer.start_share and not self.model.weights,
                f"trainer.start_share {self.trainer.start_share:g}: there is no start to share; set model.weights",
            ),
        ):
            if is_wrong:
                raise UsageError(message)
        try:
            _ = self.model.architecture
        except ValueError as error:
            raise UsageError(f"model: {error}") from error

    def _take_old_spellings(self) -> None:
        for name, value in list(self._values()):
            now = renamed.value(name, value)
            if now != value:
                section, _, last = name.rpartition(".")
                changed = replace(getattr(self, section), **{last: now}) if section else now
                object.__setattr__(self, section or last, changed)

    def _values(self) -> Iterator[tuple[str, Any]]:
        """Every field by its whole name, as ``frames.size``, and its value."""
        for item in fields(self):
            value = getattr(self, item.name)
            if is_dataclass(value):
                yield from ((f"{item.name}.{one.name}", getattr(value, one.name)) for one in fields(value))
            else:
                yield item.name, value

    def training_size(self, epoch: int) -> int:
        """Rows and columns that frames have in an epoch of training, counted from 0; see ``frames.first_size``.

        The last quarter of the epochs, and the last one in any case, have the last size.

        Growing frames cost less and train as well or better (progressive learning: Tan and Le, EfficientNetV2, 2021),
        and so does training below the size of inference (Touvron et al., Fixing the train-test resolution discrepancy,
        2019).
        """
        smaller = range(self.frames.first_size or self._last_size, self._last_size, 32)
        done = epoch / (0.75 * self.trainer.epochs)
        growing = done < 1 and epoch + 1 < self.trainer.epochs
        return smaller[int(done * len(smaller))] if smaller and growing else self._last_size

    @property
    def inputs(self) -> tuple[str, ...]:
        """The models and the split that it names: paths, or names that polypseg knows."""
        return tuple(one for one in (self.model.weights, self.distillation.teacher, self.split) if one is not None)

    @property
    def _last_size(self) -> int:
        return self.frames.size if self.frames.last_size is None else self.frames.last_size

    def to_dict(self) -> dict[str, Any]:
        """The recipe in plain types, as ``config.yaml`` and a bundle's metadata keep it."""
        values = asdict(self)
        values["trainer"]["loggers"] = list(self.trainer.loggers)
        channels = self.model.decoder_channels
        values["model"]["decoder_channels"] = None if channels is None else list(channels)
        return values


@functools.cache
def field_types() -> dict[str, Any]:
    """The type of every field, by its whole name."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(Recipe).items():
        if is_dataclass(kind):
            found |= {f"{name}.{inner}": of for inner, of in get_type_hints(kind).items()}
        else:
            found[name] = kind
    return found


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file, as those in ``recipes/`` or a run folder's ``config.yaml``.

    What the file leaves out takes its default.

    Args:
        path: a YAML file with the fields of ``Recipe``.

    Raises:
        UsageError: the file contains no settings, an unknown one, or a value of the wrong type or range.
        PolypsegError: the file cannot be read.
    """
    try:
        text = _file(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise PolypsegError(f"{path}: cannot be read ({reason}); name a recipe, a YAML file") from error
    try:
        check_yaml(text)
        return _parse(text)
    except UsageError as error:
        raise UsageError(f"{path}: is no recipe that can be used ({error}); correct it") from error


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values, checked as those of a file are.

    Args:
        recipe: is not changed.
        values: by name, as ``optimizer.learning_rate``.

    Raises:
        UsageError: there is no such field, or a value is of the wrong type or range.
    """
    changed = recipe.to_dict()
    for name, value in renamed.values(values).items():
        section, _, field_name = name.rpartition(".")
        inner = changed.get(section) if section else changed
        if not isinstance(inner, dict) or field_name not in inner or isinstance(inner[field_name], dict):
            raise UsageError(f"{name}: is no field of a recipe, as optimizer.learning_rate")
        inner[field_name] = value
    return _parse(json.dumps(changed))


def _parse(text: str) -> Recipe:
    """A Recipe from YAML, of which JSON is a part."""
    from jsonargparse import ArgumentError

    parser = _parser()
    try:
        return Recipe(**vars(parser.instantiate(parser.parse_string(spelt_now(text)))))
    except (ArgumentError, UsageError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def spelt_now(text: str, section: str = "", names_split: bool = False) -> str:
    """YAML without old spellings: the text itself where it has none.

    Args:
        text: with the values of a recipe, of one of its sections, or of a verb's options.
        section: ``teacher`` where they are those of that section.
        names_split: whether ``name`` is a split's, as of ``polypseg data split``.
    """
    from jsonargparse import get_loader

    try:
        given = get_loader("yaml")(text)
    except yaml.YAMLError:
        return text  # for the parser to refuse
    if not isinstance(given, dict):
        return text
    now = renamed.values({section: given})["distillation"] if section else renamed.values(given)
    if names_split and "name" in given:
        now["name"] = renamed.value("split", given["name"])
    return text if now == given else json.dumps(now)


@functools.cache  # it takes a while
def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, None)
    return parser


def shipped_recipes() -> dict[str, Path]:
    """The recipes that polypseg comes with, by name: in the installed package, or in the source tree."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "recipes", package.parents[1] / "recipes")
    folder = next((one for one in folders if one.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def shipped_recipe(name: str) -> Path:
    """The file of a recipe that polypseg comes with, as ``smoke``.

    Raises:
        UsageError: there is none of that name.
    """
    recipes = shipped_recipes()
    if name not in recipes:
        import difflib

        near = difflib.get_close_matches(name.lower(), recipes, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{name}: is no recipe file, nor one that ships; choose {', '.join(recipes)}{hint}")
    return recipes[name]


def recipe_file(name: str | Path) -> Path:
    """The file that a recipe's name or path means: the file of that path, else the shipped recipe of that name.

    Raises:
        UsageError: there is neither.
    """
    file = _file(name)
    return file if file.is_file() else shipped_recipe(str(file))


def _file(path: str | Path) -> Path:
    """A path as it is or, where nothing is there, with the recipe's name as it is spelt now."""
    file = Path(path)
    return file if file.exists() else file.parent / f"{renamed.value('recipe', file.stem)}{file.suffix}"


# These say where and how fast a run computes, not what; they may differ when it is resumed.
MAY_DIFFER = {
    "frames.workers", "frames.cache", "frames.cache_gb", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
    "trainer.strategy", "trainer.threads", "trainer.loggers", "trainer.patience", "trainer.keep", "trainer.start_share",
    "split",
}  # fmt: skip


def first_difference(
    before: dict[str, Any],
    now: dict[str, Any],
    prefix: str = "",
    may_differ: Collection[str] = MAY_DIFFER,
    defaults: dict[str, Any] | None = None,
) -> str | None:
    """The first setting, as ``frames.size: 256 then, 352 now``, in which two recipes would train differently.

    A field that an earlier version did not have yet counts as its default, which is what that version did.
    """
    if defaults is None:
        before, defaults = renamed.values(before, quiet=True), Recipe().to_dict()
    for key in {**before, **now}:
        name = f"{prefix}{key}"
        old, new = before.get(key, defaults.get(key)), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found = first_difference(old, new, f"{name}.", may_differ, defaults.get(key, {}))
            if found:
                return found
        elif old != new and name not in may_differ:
            return f"{name}: {old} then, {new} now"
    return None


# Resolved here, once: to resolve annotations that are text, jsonargparse would import what stands under TYPE_CHECKING
# in their modules, and that is torch.
for _kind in (FramesConfig, ModelConfig, LossConfig, DistillationConfig, OptimizerConfig, TrainerConfig, Recipe):
    vars(_kind)["__init__"].__annotations__ = get_type_hints(_kind)
