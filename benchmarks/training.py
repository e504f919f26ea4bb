"""Training speed, images per second, of polypseg against the plain way; both in one run, in turns.

The plain way decodes each frame with Pillow at full size in every epoch, and trains in float32, in the default
memory layout, without workers. Both train the same network at the same size and batch, with the same augmentation
and loss. The time of filling polypseg's cache is counted, spread over the epochs of the recipe.

    python benchmarks/training.py --data ../shared/data/Kvasir-SEG
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import datetime
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import numpy as np
import segmentation_models_pytorch as smp
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from results import add_rows, processor

from polypseg.bundle import Preprocessing
from polypseg.catalog import Catalog
from polypseg.data import phantom, read
from polypseg.data.transforms import training_pipeline
from polypseg.files import commit
from polypseg.models.device import gains_from_bf16
from polypseg.models.network import build
from polypseg.training.datamodule import FramesDataModule
from polypseg.training.module import SegmentationModule
from polypseg.training.recipe import FramesConfig, ModelConfig, OptimizerConfig, Recipe, TrainerConfig


class PlainDataset(torch.utils.data.Dataset):
    """What a notebook does: open, convert, augment, in every epoch."""

    def __init__(self, catalog: Catalog, preprocessing: Preprocessing) -> None:
        self.rows = list(catalog)
        self.pipeline = training_pipeline(preprocessing, "baseline")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.rows[index]
        image = np.array(Image.open(row.image_path).convert("RGB"))
        mask = (np.array(Image.open(row.mask_path).convert("L")) > 127).astype(np.uint8)
        result = self.pipeline(image=image, mask=mask)
        return torch.from_numpy(result["image"].transpose(2, 0, 1)), torch.from_numpy(result["mask"][None]).float()


class PlainWay:
    def __init__(self, catalog: Catalog, preprocessing: Preprocessing, recipe: Recipe) -> None:
        dataset = PlainDataset(catalog, preprocessing)
        self.loader = torch.utils.data.DataLoader(dataset, recipe.frames.batch_size, shuffle=True, drop_last=True)
        self.network = build(recipe.model.architecture)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        self.bce, self.dice = torch.nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")

    def epoch(self, batches: int) -> float:
        """Seconds for so many batches."""
        self.network.train()
        start = time.perf_counter()
        for _, (image, mask) in zip(range(batches), self.loader, strict=False):
            logits = self.network(image)
            loss = self.bce(logits, mask) + self.dice(logits, mask)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - start


class Stopwatch(Callback):
    """Hands the turn to the plain way after each epoch, and times the epochs of the Trainer."""

    def __init__(self, plain: PlainWay, batches: int) -> None:
        self.plain, self.batches = plain, batches
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ours.append(time.perf_counter() - self.start)
        self.theirs.append(self.plain.epoch(self.batches))
        images = self.batches * pl_module.recipe.frames.batch_size
        print(
            f"round {len(self.ours)}: plain {images / self.theirs[-1]:.2f} img/s, "
            f"polypseg {images / self.ours[-1]:.2f} img/s, ratio {self.theirs[-1] / self.ours[-1]:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of a data set; phantom frames without one")
    parser.add_argument("--frames", type=int, default=128, help="frames of it to train on")
    parser.add_argument("--rounds", type=int, default=4, help="epochs of each; the first is a warm-up")
    parser.add_argument("--encoder", default="efficientnet-b3")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--out", default="results/training-speed.csv", help="CSV to which a row is added")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        data = Path(options.data) if options.data else phantom.write(Path(temporary) / "phantom", options.frames)
        table = read(data).frames.iloc[: options.frames].assign(split="train")
        catalog = Catalog(table.reset_index(drop=True))
        recipe = Recipe(
            frames=FramesConfig(size=options.size, batch_size=options.batch_size),
            model=ModelConfig(encoder=options.encoder, encoder_weights="none"),
            optimizer=OptimizerConfig(),
            trainer=TrainerConfig(epochs=25),
        )
        preprocessing = Preprocessing(options.size, options.size)
        batches = len(catalog) // options.batch_size
        watch = Stopwatch(PlainWay(catalog, preprocessing, recipe), batches)
        frames = FramesDataModule(catalog, preprocessing, recipe, progress=False)
        start = time.perf_counter()
        frames.dataset("train")
        fill = time.perf_counter() - start
        precision = "bf16-mixed" if gains_from_bf16("cpu") else "32-true"
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=options.rounds, limit_train_batches=batches, limit_val_batches=0,
            precision=precision, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, callbacks=[watch],
        )  # fmt: skip
        trainer.fit(SegmentationModule(build(recipe.model.architecture), recipe), frames.train_dataloader())

    images = batches * options.batch_size
    spread = fill * images / len(catalog) / recipe.trainer.epochs  # of one epoch
    pairs = list(zip(watch.ours[1:], watch.theirs[1:], strict=True))
    ratios = [theirs / (ours + spread) for ours, theirs in pairs]
    row = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "network": f"UnetPlusPlus {options.encoder}",
        "size": options.size,
        "batch_size": options.batch_size,
        "data": data.name if options.data else "phantom",
        "frames": len(catalog),
        "rounds": len(pairs),
        "threads": torch.get_num_threads(),
        "workers": frames.workers(),
        "precision": precision,
        "plain_images_per_s": round(images / statistics.median(theirs for _, theirs in pairs), 2),
        "polypseg_images_per_s": round(images / (statistics.median(ours for ours, _ in pairs) + spread), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "cache_fill_s": round(fill, 2),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "processor": processor(),
    }
    for key, value in row.items():
        print(f"{key:22} {value}")
    add_rows(options.out, [row])


if __name__ == "__main__":
    main()
