"""From a Recipe to a run folder: train, choose, test once, picture."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from polypseg.bundle import FrameRecord, ModelBundle, Preprocessing
from polypseg.catalog import Catalog
from polypseg.data import read_all
from polypseg.data.cache import FrameCache
from polypseg.data.splits import changed_frames, hash_split, make_split, read_split, write_split
from polypseg.errors import PolypsegError, UsageError
from polypseg.evaluation.choosing import Maps, choose_point
from polypseg.evaluation.scoring import DEFINITIONS, NO_POLYP, Scores, score
from polypseg.evaluation.seen import frame_records
from polypseg.files import atomic_write, commit, csv_cells, locked, write_json
from polypseg.inference.runtimes.torch import check_weights
from polypseg.inference.segmenter import Segmenter
from polypseg.metrics.lesions import shows_polyp
from polypseg.metrics.overlap import dice
from polypseg.models.device import gains_from_bf16
from polypseg.models.losses import LossConfig
from polypseg.models.network import build, dropout_argument
from polypseg.models.weights import WeightsOrigin, load_encoder_weights, normalisation
from polypseg.training.callbacks import MetricsTable
from polypseg.training.checkpoints import SafeCheckpointIO, is_hashed, read_checkpoint
from polypseg.training.datamodule import FramesDataModule, training_batch_sizes
from polypseg.training.folder import (
    CACHE,
    CONFIG,
    LOG,
    ORIGIN,
    SPLIT,
    is_only_started,
    refuse_inputs_within,
    replacing,
    restore,
)
from polypseg.training.module import SegmentationModule
from polypseg.training.processes import Marker, first_sentence, from_first, gone, join, launched, lost_another, together
from polypseg.training.recipe import Recipe, first_difference
from polypseg.training.rehearsal import rehearse
from polypseg.training.teacher import Teacher

log = logging.getLogger("polypseg")
PICTURES = "predictions.png"  # written last
LICENCE = "Weights follow the terms of the data they were trained on; code Apache-2.0."


def train(
    recipe: Recipe,
    data: Sequence[str | Path],
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    split: tuple[str, pd.DataFrame] | None = None,
) -> Path:
    """Train by a recipe and fill a run folder.

    The checkpoint with the best validation Dice becomes the bundle, or the last one by ``trainer.keep``; the operating
    point is chosen on validation where the recipe leaves the threshold open; only then is the test split scored, once.

    Args:
        recipe: what to do.
        data: folders of data sets.
        out: the run folder; ``runs/<recipe.name>`` by default.
        resume: go on from the last complete checkpoint in ``out``; start anew where there is none.
        overwrite: replace an earlier run in ``out``, which stands until the new one is known to work.
        progress: show progress bars; by default where standard error is a terminal.
        split: a split's name and table, taken in place of ``recipe.split``.

    Returns:
        The run folder: ``config.yaml``, ``split.csv``, ``metrics.csv``, ``curves.png``,
        ``checkpoints/{last,best}.ckpt``, ``bundle/``, ``test.json``, ``per_image.csv``, ``predictions.png``,
        ``log.txt``.

    Raises:
        PolypsegError: the data, the disk, the network or an earlier run in ``out`` stands in the way.
        KeyboardInterrupt: the run was interrupted; ``resume`` goes on from the last complete epoch.
    """
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    show = sys.stderr.isatty() if progress is None else progress
    _quiet_lightning()
    if recipe.trainer.threads:
        os.environ["OMP_NUM_THREADS"] = str(recipe.trainer.threads)  # or Lightning would set what it thinks best
    trainer, _ = _trainer(recipe, folder, show)
    join(trainer)
    marker = Marker(folder / CACHE / "torchrun")
    with contextlib.ExitStack() as held:
        with together():
            if trainer.is_global_zero:
                held.enter_context(locked(folder))
                resume = resume or marker.is_ours()  # restarted by torchrun
                check_folder(folder, recipe.to_dict(), resume, overwrite)
                if not resume:
                    inputs = (recipe.model.weights, recipe.teacher.bundle, recipe.split, *data)
                    refuse_inputs_within(folder, inputs)
        return _train(recipe, data, folder, resume, show, split, trainer, marker)


def _train(
    recipe: Recipe,
    data: Sequence[str | Path],
    folder: Path,
    resume: bool,
    show: bool,
    split: tuple[str, pd.DataFrame] | None,
    trainer: L.Trainer,
    marker: Marker,
) -> Path:
    """What ``train`` does in a folder that is its own."""
    started = time.monotonic()
    first_process = trainer.is_global_zero
    last = folder / "checkpoints" / "last.ckpt"
    resume, begun = from_first((resume, last.is_file()))
    resume = resume and begun
    checkpoint = last if resume else None

    # Everything that may be wrong with the data or the network is met before anything is written.
    with together():
        catalog, split_name = split_frames(recipe, data, folder, resume, split)
        module, frames, origin = prepare(recipe, catalog, folder, checkpoint, show and first_process)
        if checkpoint is not None and not checkpoint.is_file():
            raise PolypsegError(
                f"{checkpoint}: is not seen on {socket.gethostname()}; the run folder must lie on storage that all "
                "machines share"
            )
        if checkpoint is not None:
            read_checkpoint(checkpoint)  # some strategies read it in a way of their own
    with together():
        records = _frame_records(recipe, catalog) if first_process else []
    split_hash = hash_split(catalog.frames)
    same = split_hash == from_first(split_hash)
    with together():
        if not same:
            raise PolypsegError(
                f"{', '.join(map(str, data))}: {socket.gethostname()} finds other frames or another split there than "
                "the first machine; give all the same data"
            )
        if first_process:
            marker.write()
            with contextlib.nullcontext() if resume else replacing(folder):
                _start_folder(folder, recipe, catalog, origin)
                trainer.loggers = _loggers(recipe, folder)

    with logging_to(folder / LOG if first_process else None):
        log.info("%d frames, split %s: %s", len(catalog), split_name, _counts(catalog))
        if trainer.world_size > 1:
            log.info("%d processes, machines: %d", trainer.world_size, trainer.num_nodes)
        if recipe.model.decoder_dropout and dropout_argument(recipe.model.name) is None:
            log.info(
                "SMP's %s has no place for decoder dropout: the rate %g is not applied",
                recipe.model.name, recipe.model.decoder_dropout,
            )  # fmt: skip
        if checkpoint is not None and not is_hashed(checkpoint):
            log.warning(
                "%s: has no SHA-256 beside it, as of an earlier polypseg; it is resumed, but whether it is whole "
                "cannot be verified", checkpoint,
            )  # fmt: skip
        log.info("training %s on %s, %s", recipe.name, trainer.accelerator.__class__.__name__, trainer.precision)
        _fit(trainer, module, frames, checkpoint)
        if not trainer.is_global_zero:
            return folder
        bundle = _bundle(folder, module, frames.preprocessing, catalog, split_name).record_frames(records)
        maps = None
        if recipe.threshold is None:
            maps = Maps.of(Segmenter(bundle), catalog.of_split("val"), show)
            bundle = bundle.update(**choose(maps, "on validation", show))
        segmenter = Segmenter(bundle)
        score_splits(segmenter, recipe.loss, catalog, folder, show, maps)
        _pictures(segmenter, catalog, folder)
        shutil.rmtree(folder / CACHE, ignore_errors=True)
        log.info("done in %.0f s: %s", time.monotonic() - started, folder)
    return folder


def fit(recipe: Recipe, catalog: Catalog, folder: Path, callbacks: Sequence[Callback] = ()) -> float:
    """Train alone: ``metrics.csv`` and checkpoints, but no bundle and no test.

    Args:
        recipe: what to do.
        catalog: the frames of training and validation; its ``split`` column is filled.
        folder: where the files go.
        callbacks: further ones for Lightning's Trainer.

    Returns:
        The best validation Dice of an epoch, 0..1.

    Raises:
        PolypsegError: as ``train``.
    """
    _quiet_lightning()
    module, frames, _ = prepare(recipe, catalog, folder, None, False)
    write_yaml(folder / CONFIG, recipe.to_dict())
    trainer, best = _trainer(recipe, folder, False, callbacks)
    _fit(trainer, module, frames, None)
    assert best.best_model_score is not None
    return float(best.best_model_score)


def check_folder(folder: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else than what was asked for. Nothing that it holds is touched.

    A run that began, but has no complete epoch yet, stands in nobody's way.
    """
    restore(folder)
    config = folder / CONFIG
    if is_only_started(folder):
        return
    if not config.is_file() or not (folder / SPLIT).is_file():
        raise PolypsegError(f"{folder}: is not empty and holds no run; choose another --out")
    if resume:
        difference = first_difference(_read_yaml(config), settings)
        if difference:
            raise PolypsegError(f"{config}: the run to resume differs in {difference}; use its recipe or another --out")
    elif not overwrite:
        raise PolypsegError(f"{folder}: holds a run already; use --resume, --overwrite or another --out")


def prepare(
    recipe: Recipe, catalog: Catalog, folder: Path, checkpoint: Path | None, progress: bool
) -> tuple[SegmentationModule, FramesDataModule, WeightsOrigin | None]:
    """What a Trainer needs, with every frame decoded, and where the encoder's weights came from.

    Writes nothing but a cache.

    Args:
        recipe: what to do.
        catalog: the frames, with their splits.
        folder: of the run.
        checkpoint: what is gone on from; None starts anew.
        progress: show progress bars.

    Raises:
        PolypsegError: the network, its weights, the teacher or a frame cannot be used.
    """
    if recipe.trainer.threads:
        torch.set_num_threads(recipe.trainer.threads)
    L.seed_everything(recipe.trainer.seed, workers=True, verbose=False)
    network = build(recipe.model.architecture)
    rehearse(network, recipe, training_batch_sizes(catalog, recipe))
    start = None if recipe.model.weights is None else _start(recipe, recipe.model.weights, catalog)
    if start is not None:
        mean, std = start.preprocessing.mean, start.preprocessing.std
    else:
        mean, std = normalisation(recipe.model.encoder, recipe.model.encoder_weights)
    size = recipe.frames.size
    preprocessing = Preprocessing(size, size, mean, std, recipe.frames.interpolation)
    frames = FramesDataModule(catalog, preprocessing, recipe, folder / CACHE, progress)
    for split in set(catalog.frames["split"]):
        cache = frames.dataset(split).cache  # decodes, the test split too: damage must not come out after hours
        if checkpoint is None:
            _try(cache)
    for split, use in (("train", "learn from"), ("val", "choose by")):
        cache = frames.dataset(split).cache
        if not any(cache[index][1].any() for index in range(len(cache))):  # the first frame with a polyp ends it
            raise PolypsegError(
                f"{Path(catalog.of_split(split).row(0).image_path).parent.parent}: none of the {len(cache)} {split} "
                f"frames shows a polyp, so there is nothing to {use}; add frames with polyps, or split them otherwise"
            )
    origin = None
    if checkpoint is None and start is not None:
        _take_weights(network, start, recipe)
        origin = WeightsOrigin(
            f"the bundle {start.name}", start.hash, start.metadata["weights_sha256"], LICENCE, start.lineage()
        )
    elif checkpoint is None:  # a resumed run takes every weight from its checkpoint
        origin = load_encoder_weights(network.get_submodule("encoder"), recipe.model.encoder, _weights(recipe))
    teacher = None
    if recipe.teacher.bundle is not None:
        bundle = ModelBundle.load(recipe.teacher.bundle)
        _warn_of_another_split(recipe.teacher.bundle, bundle, catalog)
        teacher = Teacher(bundle, preprocessing, recipe.teacher.tta, recipe.trainer.threads)
    return SegmentationModule(network, recipe, teacher), frames, origin


def _try(cache: FrameCache) -> None:
    """Decode once what the cache has no room for."""

    def decode(index: int) -> None:
        cache[index]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in pool.map(decode, range(cache.held, len(cache))):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start(recipe: Recipe, path: str, catalog: Catalog) -> ModelBundle:
    """The bundle whose network training starts from."""
    bundle = ModelBundle.load(path)
    bundle.check_single("name one of its members as model.weights")
    check_weights(bundle)
    ours, theirs = recipe.model.architecture, bundle.architecture
    differs = ours.weights_differ_by(theirs)
    if differs not in (None, "output_stride", "presence"):
        raise PolypsegError(
            f"{path}: its network has {differs} {getattr(theirs, differs)}, the recipe's {getattr(ours, differs)}; "
            f"set model.{differs} or start from another bundle"
        )
    _warn_of_another_split(path, bundle, catalog)
    return bundle


def _warn_of_another_split(path: str, bundle: ModelBundle, catalog: Catalog) -> None:
    before, now = bundle.metadata.get("split") or {}, hash_split(catalog.frames)
    shared = set((bundle.metadata.get("data") or {}).get("datasets", ())) & set(catalog.frames["dataset"])
    if shared and before.get("hash") != now:
        log.warning(
            "%s was trained on %s by another split: it may have seen frames that are validation or test here",
            path, ", ".join(sorted(shared)),
        )  # fmt: skip


def _take_weights(network: torch.nn.Module, start: ModelBundle, recipe: Recipe) -> None:
    """Load the start's weights; of a network with fewer or more stages those that fit."""
    weights = start.weights()
    if recipe.model.architecture.weights_differ_by(start.architecture):
        own = network.state_dict()
        fit = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
        log.info("%d of %d tensors start afresh: %s has no such stage", len(own) - len(fit), len(own), start.name)
        weights = {**own, **fit}
    network.load_state_dict(weights)


def _start_folder(folder: Path, recipe: Recipe, catalog: Catalog, origin: WeightsOrigin | None) -> None:
    """Write what is known before training starts."""
    write_yaml(folder / CONFIG, recipe.to_dict())
    write_split(catalog.frames.assign(content=catalog.content_hashes()), folder / SPLIT)
    if origin is not None:
        write_yaml(folder / ORIGIN, origin.to_dict())


def split_frames(
    recipe: Recipe,
    data: Sequence[str | Path],
    folder: Path,
    resume: bool,
    split: tuple[str, pd.DataFrame] | None = None,
) -> tuple[Catalog, str]:
    """The Catalog with its splits, and the split's name: of the run that is resumed, the one given, or the recipe's."""
    catalog = read_all(data)
    name = recipe.split if split is None else split[0]
    if resume and (folder / SPLIT).is_file():
        table = read_split(folder / SPLIT)
    elif split is not None:
        table = split[1]
    elif name.lower().endswith(".csv"):
        table = read_split(Path(name))
    else:
        table = make_split(name, catalog)  # by the default seed: another trainer.seed keeps its frames
    catalog = catalog.with_split(table)
    if resume and (folder / "split.csv").is_file():
        changed = changed_frames(catalog, folder / "split.csv")
        if changed:
            raise PolypsegError(
                f"{changed[0]}: this frame or its mask was changed since the run began ({len(changed)} such), or is "
                "read otherwise; restore it, or start anew with --overwrite"
            )
    return catalog, Path(name).stem


def _counts(catalog: Catalog) -> str:
    return ", ".join(f"{count} {split}" for split, count in catalog.frames["split"].value_counts().items())


def _weights(recipe: Recipe) -> str | None:
    return None if recipe.model.encoder_weights.lower() in ("none", "null", "") else recipe.model.encoder_weights


def _trainer(
    recipe: Recipe, folder: Path, progress: bool, further: Sequence[Callback] = ()
) -> tuple[L.Trainer, ModelCheckpoint]:
    settings = recipe.trainer
    checkpoints = folder / "checkpoints"
    best = ModelCheckpoint(
        checkpoints, "best", monitor="val_dice", mode="max", save_on_train_epoch_end=True,
        enable_version_counter=False, auto_insert_metric_name=False,
    )  # fmt: skip
    # After the best one, so that what it knows of the best is in it.
    last = ModelCheckpoint(checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks: list[Callback] = [MetricsTable(folder / "metrics.csv"), best, last, *further]
    if recipe.optimizer.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=recipe.optimizer.ema_decay))
    if settings.patience is not None:
        callbacks.append(EarlyStopping("val_dice", mode="max", patience=settings.patience))
    if progress:
        callbacks.append(TQDMProgressBar())
    on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    precision: Any = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if gains_from_bf16("cuda" if on_gpu else "cpu") else "32-true"
    # What Lightning warns of here is chosen on purpose: few workers on a CPU, logging each epoch only.
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    if "fsdp" in settings.strategy and (recipe.optimizer.ema_decay is not None or recipe.optimizer.gradient_clip):
        raise UsageError("trainer.strategy fsdp goes neither with optimizer.ema_decay nor with optimizer.gradient_clip")
    _check_cores(recipe, on_gpu)
    devices, machines = launched() or (settings.devices or "auto", settings.num_nodes)
    plugins: list[Any] = [SafeCheckpointIO()]
    try:
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            # Lightning's own requeueing would go on from the middle of an epoch, which is not exact.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        trainer = L.Trainer(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=machines,
            strategy=settings.strategy,
            precision=precision,
            max_epochs=settings.epochs,
            gradient_clip_val=recipe.optimizer.gradient_clip or None,
            accumulate_grad_batches=recipe.optimizer.accumulate,
            use_distributed_sampler=False,  # EpochBatches deals out the batches itself
            num_sanity_val_steps=0,
            logger=False,  # they come when the folder is known to be ours
            log_every_n_steps=1,
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            plugins=plugins,
            default_root_dir=folder,
        )
    except Exception as error:  # of many classes, as Lightning has them
        raise PolypsegError(
            f"{recipe.name}: cannot be trained like this ({first_sentence(error)}); correct trainer.accelerator, "
            "devices, num_nodes or strategy"
        ) from error
    return trainer, best


def _check_cores(recipe: Recipe, on_gpu: bool) -> None:
    """Refuse so many processes or threads that this machine could do nothing but switch between them."""
    settings, cores = recipe.trainer, os.cpu_count() or 1
    on_cpu = not on_gpu and settings.accelerator in ("auto", "cpu") and launched() is None
    for name, value, most in (
        ("trainer.devices", settings.devices if on_cpu else 0, max(2, cores)),
        ("trainer.threads", settings.threads, 4 * cores),
        ("frames.workers", recipe.frames.workers, 4 * cores),
    ):
        if value > most:
            raise UsageError(f"{name} {value}: is too many for the {cores} cores of this machine; give {most} at most")


def _loggers(recipe: Recipe, folder: Path) -> list[Any]:
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

    loggers: list[Any] = []
    for name in recipe.trainer.loggers:
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
        elif name == "mlflow":
            try:
                uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
                loggers.append(MLFlowLogger("polypseg", run_name=recipe.name, tracking_uri=uri))
            except ModuleNotFoundError as error:
                raise PolypsegError(f"mlflow: {error}; install it with: pip install 'polypseg[mlflow]'") from error
        else:
            raise UsageError(f"trainer.loggers: {name!r} is unknown; choose tensorboard or mlflow")
    return loggers


def _fit(trainer: L.Trainer, module: SegmentationModule, frames: FramesDataModule, checkpoint: Path | None) -> None:
    try:
        trainer.fit(module, frames, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except SystemExit as error:  # how Lightning ends after Ctrl-C
        raise KeyboardInterrupt from error
    except PolypsegError:
        raise
    except Exception as error:
        if trainer.world_size > 1 and lost_another(error):
            raise gone(error) from error
        if checkpoint is not None and not any(getattr(one, "begun", False) for one in trainer.callbacks):  # type: ignore[attr-defined]
            raise PolypsegError(
                f"{checkpoint}: cannot be resumed from ({_one_line(error)}); use --overwrite"
            ) from error
        if "out of memory" in str(error).lower():
            raise PolypsegError(
                f"{module.recipe.name}: the device is out of memory; lower frames.batch_size or frames.size"
            ) from error
        raise


def _bundle(
    folder: Path, module: SegmentationModule, preprocessing: Preprocessing, catalog: Catalog, split_name: str
) -> ModelBundle:
    recipe, teacher = module.recipe, module.teacher
    taught: dict[str, Any] = {} if teacher is None else {"taught_by": teacher.bundle.lineage()}
    checkpoint = read_checkpoint(folder / "checkpoints" / f"{recipe.trainer.keep}.ckpt")
    prefix = "network."
    state = {key[len(prefix) :]: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
    return ModelBundle.save(
        folder / "bundle",
        state,
        name=recipe.name,
        architecture=recipe.model.architecture,
        preprocessing=preprocessing,
        threshold=0.5 if recipe.threshold is None else recipe.threshold,
        threshold_split="validation" if recipe.threshold is None else None,
        encoder_weights=_read_yaml(folder / ORIGIN),
        tta=recipe.tta,
        **taught,
        epoch=int(checkpoint["epoch"]) + 1,
        recipe=recipe.to_dict(),
        data={"datasets": sorted(set(catalog.frames["dataset"])), "hash": catalog.hash()},
        split={"name": split_name, "hash": hash_split(catalog.frames)},
        commit=commit(),
        device=trainer_device(),
        licence=LICENCE,
    )


def _frame_records(recipe: Recipe, catalog: Catalog) -> list[FrameRecord]:
    """The frames of this run, and of the bundle that it starts from, which has seen them too."""
    path = recipe.model.weights
    start = None if path is None else ModelBundle.load(path).frames()
    return frame_records(catalog) + (start or [])


def trainer_device() -> str:
    """What the computation runs on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def choose(maps: Maps, where: str, progress: bool) -> dict[str, Any]:
    """Choose the operating point on frames, and tell of it.

    Args:
        maps: what the network said of them.
        where: what frames they are, for people, as "on validation".
        progress: show progress bars.

    Returns:
        What was chosen and how, as ``ModelBundle.update`` takes it.
    """
    entries = choose_point(maps, progress=progress)
    point, choice = entries["operating_point"], entries["operating_point_choice"]
    found = choice["chosen"]
    log.info(
        "threshold %.2f, smallest region %g of the frame, holes %s, chosen %s (Dice %.4f there)",
        point.threshold, point.min_area, "filled" if point.fill_holes else "kept", where, found["dice"],
    )  # fmt: skip
    log.info(
        "polyps are regions with a %s of %.4g or more, chosen there: lesions found %.3f, regions right %.3f, false "
        "regions a frame %.3f%s",
        point.confidence, point.min_confidence, found["found"], found["right"], found["false_per_frame"],
        f", polyp-free frames marked {found['polyp_free_marked']:.3f}" if choice["polyp_free"] else
        "; there is no polyp-free frame among them",
    )  # fmt: skip
    return entries


def score_splits(
    segmenter: Segmenter, loss: LossConfig, catalog: Catalog, folder: Path, progress: bool, maps: Maps | None = None
) -> None:
    """Score validation and test, as far as there are, and write what ``write_scores`` does.

    Args:
        segmenter: of the bundle, as it was chosen.
        loss: to report.
        catalog: all frames, with their splits.
        folder: of the run.
        progress: show progress bars.
        maps: what the network said of the validation frames, so that it is not asked again.
    """
    results: dict[str, Scores] = {}
    for split in ("val", "test"):
        if split not in set(catalog.frames["split"]):
            continue
        kept = maps.answers(segmenter.operating_point) if maps is not None and split == "val" else None
        results[split] = score(segmenter, catalog.of_split(split), loss, progress, kept)
        tell(split, results[split])
    metrics = {split: result.summary for split, result in results.items()}
    tables = [result.per_image.assign(split=split) for split, result in results.items()]
    write_scores(folder, segmenter, metrics, DEFINITIONS, tables)


def tell(what: str, scores: Scores) -> None:
    """Log the summary of some frames' scores."""
    known = {name: value for name, value in scores.summary.items() if value is not None and name != "n"}
    values = "  ".join(f"{name} {value:.4f}" for name, value in known.items())
    log.info("%s (n = %d): %s", what, len(scores.per_image), values)
    if scores.summary["dice"] is None:
        log.info("%s: %s, so that there is no Dice", what, NO_POLYP)


def write_scores(
    folder: Path,
    segmenter: Segmenter,
    metrics: dict[str, Any],
    definitions: dict[str, str],
    tables: Sequence[pd.DataFrame],
) -> None:
    """Write ``test.json`` and ``per_image.csv``, and the metrics into the bundle.

    Args:
        folder: of the run.
        segmenter: what was scored.
        metrics: by the part of the frames, each by its name.
        definitions: of the metrics, by name.
        tables: a row a frame, of each part.
    """
    bundle = segmenter.bundle
    provenance = {
        "bundle_hash": bundle.hash, "split": bundle.metadata["split"], "data": bundle.metadata["data"],
        "threshold": bundle.threshold, "operating_point": asdict(bundle.operating_point), "commit": commit(),
        "device": trainer_device(), "precision": segmenter.precision,
    }  # fmt: skip
    write_json(folder / "test.json", {"metrics": metrics, "definitions": definitions, "provenance": provenance})
    with atomic_write(folder / "per_image.csv", "w") as file:
        csv_cells(pd.concat(tables)).to_csv(file, index=False, float_format="%.6f")
    bundle.update(metrics=metrics, metric_definitions=definitions)


def _pictures(segmenter: Segmenter, catalog: Catalog, folder: Path) -> None:
    from polypseg.visualization.curves import draw_curves

    draw_curves(pd.read_csv(folder / "metrics.csv"), folder / "curves.png", title=segmenter.bundle.name)
    draw_examples(segmenter, catalog, folder / PICTURES)


def draw_examples(segmenter: Segmenter, catalog: Catalog, path: Path) -> None:
    """Draw up to eight test frames, or of validation where there are none, beside truth and prediction."""
    from polypseg.visualization.gallery import Panel, draw_predictions

    split = "test" if "test" in set(catalog.frames["split"]) else "val"
    frames, title = catalog.of_split(split), f"{segmenter.bundle.name}, {split} split"
    step = max(1, len(frames) // 8)  # spread over the split; not picked by how well they went
    panels = []
    for index in range(0, len(frames), step)[:8]:
        frame, truth = frames.frame(index), frames.mask(index)
        mask = segmenter.segment(frame).mask
        score = dice(mask, truth) if shows_polyp(truth) else None
        panels.append(Panel(frames.row(index).frame_id, frame, truth, mask, dice=score))
    draw_predictions(panels, path, title=title)


def _quiet_lightning() -> None:
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextlib.contextmanager
def logging_to(file: Path | None) -> Iterator[None]:
    """Also write the log to a file."""
    if file is None:  # another process speaks
        log.setLevel(logging.WARNING)
        yield
        return
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except PolypsegError as error:
        handler.handle(logging.LogRecord("polypseg", logging.ERROR, __file__, 0, "%s", (error,), None))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        yaml.safe_dump(value, file, sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise PolypsegError(f"{path}: cannot be read ({_one_line(error)}); use --overwrite") from error
    if not isinstance(value, dict):
        raise PolypsegError(f"{path}: holds no settings; use --overwrite")
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
