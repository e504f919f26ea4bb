"""Which frames to label next, at equal labels: by uncertainty, spread over the pool, both, or at random.

A small head is trained on features of a frozen ImageNet encoder, which has seen no endoscope: the shipped model was
trained on these very frames, so that its uncertainty of them would say little. It starts from the same few random
frames in each order, then labels are added in rounds, each time those that the order of the pool puts first by the head
as it is. Everything is repeated with other starting frames. A row contains the mean Dice of the test frames at a number
of labels, and what it gains over the random order of the same repetitions, with 95 % intervals over them (Student's t).
The test frames share no sequence and no near duplicate with the pool (split ``grouped``).

    python benchmarks/active_learning.py --data ../shared/data/Kvasir-SEG ../shared/data/CVC-ClinicDB

Ten to twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from results import add_rows
from scipy import stats
from sklearn.cluster import KMeans
from torch import nn

from polypseg.catalog import Catalog
from polypseg.data import read_all
from polypseg.data.splits import hash_split, make_split
from polypseg.files import commit
from polypseg.inference.uncertainty import mean_entropy
from polypseg.models.weights import load_encoder_weights, normalisation

ENCODER = "tu-tf_efficientnet_lite2"
SIDE, CELLS = 224, 28  # pixels of a frame; cells of its map of features, each 8×8 pixels
CHANNELS = 128  # that are left of the features, by principal components
STEPS, BATCH = 150, 8  # of a training
# Which of the remaining frames to label: from the head, their features, how many, and the generator.
Choice = Callable[["Head", torch.Tensor, int, np.random.Generator], NDArray[np.intp]]


class Head(nn.Sequential):
    """From a map of features to one of logits."""

    def __init__(self) -> None:
        layers = nn.Conv2d(CHANNELS, 48, 1), nn.ReLU(), nn.Conv2d(48, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1)
        super().__init__(*layers)

    @torch.no_grad()
    def probability(self, features: torch.Tensor) -> torch.Tensor:
        """N×cells×cells, 0..1."""
        return torch.cat([self(part.float()).sigmoid()[:, 0] for part in features.split(64)])


def entropy(head: Head, features: torch.Tensor) -> NDArray[np.float64]:
    """Mean entropy of the probability of each frame, as the service computes it."""
    return np.array([mean_entropy(one) for one in head.probability(features).numpy()])


def at_random(head: Head, features: torch.Tensor, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.permutation(len(features))[:count]


def by_entropy(head: Head, features: torch.Tensor, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """The highest mean entropy first."""
    return np.argsort(-entropy(head, features), kind="stable")[:count]


def by_views(head: Head, features: torch.Tensor, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """The largest mean difference between the probabilities of a frame's features and of the mirrored ones first."""
    mirrored = head.probability(features.flip(-1)).flip(-1)
    values = (head.probability(features) - mirrored).abs().mean((1, 2)).numpy()
    return np.argsort(-values, kind="stable")[:count]


def by_place(head: Head, features: torch.Tensor, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """As many clusters of frames that look alike as are wanted; of each the frame in its middle."""
    looks = looks_of(features)
    clusters = KMeans(count, n_init=1, random_state=int(rng.integers(1 << 31))).fit(looks)
    distances = clusters.transform(looks)
    return distances.argmin(0)


def by_entropy_and_place(head: Head, features: torch.Tensor, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """The less sure half of the frames in as many clusters as are wanted; of each the least sure frame."""
    values = entropy(head, features)
    unsure = np.argsort(-values, kind="stable")[: max(count, len(values) // 2)]
    clusters = KMeans(count, n_init=1, random_state=int(rng.integers(1 << 31))).fit_predict(looks_of(features)[unsure])
    return np.array([unsure[clusters == one][0] for one in range(count)])


def looks_of(features: torch.Tensor) -> NDArray[np.float32]:
    """What a frame looks like as a whole: N×channels."""
    return features.float().mean((2, 3)).numpy()


ORDERS: dict[str, Choice] = {
    "random": at_random, "uncertainty": by_entropy, "views": by_views, "spread": by_place,
    "uncertainty, spread": by_entropy_and_place,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--labels", nargs="+", type=int, default=[20, 40, 60, 80, 120], help="frames labelled by then")
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/active-learning.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    catalog = read_all(options.data)
    split = make_split("grouped", catalog)
    catalog = catalog.with_split(split)
    pool, test = catalog.of_split("train"), catalog.of_split("test")
    features, basis = features_of(pool)
    truths = torch.from_numpy(np.stack([mask_of(pool, index) for index in range(len(pool))]))
    test_features, _ = features_of(test, basis)
    test_truths = np.stack([mask_of(test, index) for index in range(len(test))])
    print(f"{len(pool)} frames in the pool, {len(test)} to test on; {time.monotonic() - started:.0f} s", flush=True)

    found = {order: np.zeros((options.repetitions, len(options.labels))) for order in ORDERS}
    for repetition in range(options.repetitions):
        first = np.random.default_rng(repetition).permutation(len(pool))[: options.labels[0]]
        start = trained(features[first], truths[first], repetition)
        for order, choose in ORDERS.items():
            rng = np.random.default_rng([repetition, 1])
            labelled, head = list(first), start
            for place, count in enumerate(options.labels):
                if count > len(labelled):
                    rest = np.setdiff1d(np.arange(len(pool)), labelled)
                    labelled += list(rest[choose(head, features[rest], count - len(labelled), rng)])
                    head = trained(features[labelled], truths[labelled], repetition)
                found[order][repetition, place] = dice(head, test_features, test_truths)
        shown = ", ".join(f"{order} {values[repetition, -1]:.3f}" for order, values in found.items())
        print(f"{repetition + 1}/{options.repetitions}: {shown}; {time.monotonic() - started:.0f} s", flush=True)

    rows = []
    for order, values in found.items():
        for place, count in enumerate(options.labels):
            mean, low, high = interval(values[:, place])
            gain, least, most = interval(values[:, place] - found["random"][:, place])
            rows.append(
                {
                    "date": time.strftime("%Y-%m-%d"), "order": order, "labels": count,
                    "repetitions": options.repetitions, "dice": mean, "low": low, "high": high, "gain": gain,
                    "gain_low": least, "gain_high": most, "pool": len(pool), "test": len(test), "encoder": ENCODER,
                    "data": " ".join(sorted(set(catalog.frames["dataset"]))), "split": "grouped",
                    "split_hash": hash_split(split), "commit": commit(), "device": "cpu", "threads": options.threads,
                }
            )  # fmt: skip
            gained = f"gain {gain:+.3f} ({least:+.3f} to {most:+.3f})"
            print(f"{order:20} {count:4} labels  Dice {mean:.3f} ({low:.3f} to {high:.3f})  {gained}")
    add_rows(options.out, rows)


def features_of(
    catalog: Catalog, basis: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """N×channels×cells×cells, half precision, and the mean and the principal components that they were reduced by."""
    encoder = smp.encoders.get_encoder(ENCODER, in_channels=3, weights=None).eval()
    load_encoder_weights(encoder, ENCODER, "imagenet")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation(ENCODER, "imagenet"))
    found = []
    with torch.no_grad():
        for index in range(len(catalog)):
            frame = cv2.resize(catalog.frame(index), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            pixels = (torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255 - mean) / std
            levels = encoder(pixels)[-3:]  # strides 8, 16 and 32
            whole = [nn.functional.interpolate(level, (CELLS, CELLS), mode="bilinear") for level in levels]
            found.append(torch.cat(whole, 1)[0].half())
    features = torch.stack(found)
    if basis is None:
        some = features[:: max(1, len(features) // 200)].float().permute(0, 2, 3, 1).reshape(-1, features.shape[1])
        centre, scale = some.mean(0), some.std(0) + 1e-6
        _, _, components = torch.pca_lowrank((some - centre) / scale, CHANNELS, center=False, niter=4)
        spread = ((some - centre) / scale @ components).std(0)
        basis = centre, components / scale[:, None] / spread
    centre, components = basis
    reduced = [
        torch.einsum("nchw,cd->ndhw", part.float() - centre.view(1, -1, 1, 1), components).half()
        for part in features.split(32)
    ]
    return torch.cat(reduced), basis


def mask_of(catalog: Catalog, index: int) -> NDArray[np.uint8]:
    """SIDE×SIDE, 0 and 1."""
    mask = catalog.mask(index).astype(np.uint8)
    return np.asarray(cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST), np.uint8)


def trained(features: torch.Tensor, truths: torch.Tensor, seed: int) -> Head:
    """A head trained on these frames, mirrored half of the time."""
    torch.manual_seed(seed)
    head = Head()
    optimiser = torch.optim.AdamW(head.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=STEPS)
    targets = nn.functional.avg_pool2d(truths[:, None].float(), SIDE // CELLS)[:, 0]
    for _ in range(STEPS):
        chosen = torch.randint(len(features), (BATCH,))
        batch, wanted = features[chosen].float(), targets[chosen]
        if torch.rand(()) < 0.5:
            batch, wanted = batch.flip(-1), wanted.flip(-1)
        logits = head(batch)[:, 0]
        probability = logits.sigmoid()
        overlap = 2 * (probability * wanted).sum((1, 2)) + 1
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        loss = loss + 1 - (overlap / (probability.sum((1, 2)) + wanted.sum((1, 2)) + 1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


def dice(head: Head, features: torch.Tensor, truths: NDArray[np.uint8]) -> float:
    """Mean over the frames of Dice at probability 0.5, at SIDE×SIDE."""
    small = head.probability(features)
    large = nn.functional.interpolate(small[:, None], (SIDE, SIDE), mode="bilinear")[:, 0].numpy() >= 0.5
    wanted = truths > 0
    overlap = 2 * (large & wanted).sum((1, 2)) + 1e-9
    return float((overlap / (large.sum((1, 2)) + wanted.sum((1, 2)) + 1e-9)).mean())


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """The mean and its 95 % interval."""
    mean = float(values.mean())
    width = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return round(mean, 4), round(mean - width, 4), round(mean + width, 4)


if __name__ == "__main__":
    main()
