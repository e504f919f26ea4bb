"""Training that starts from a trained model (``model.weights``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polypseg import ModelBundle
from polypseg.errors import PolypsegError, UsageError
from polypseg.models.losses import LossConfig
from polypseg.models.network import build, finer_layers
from polypseg.training.run import train

pytestmark = pytest.mark.slow
STILL = {"learning_rate": 0.0, "weight_decay": 0.0}


@pytest.fixture
def start(tmp_path: Path, small_recipe: Callable[..., Any]) -> ModelBundle:
    """A network as no encoder's weights would make it, normalised as none is."""
    from polypseg.bundle import Preprocessing

    torch.manual_seed(7)
    architecture = small_recipe().model.architecture
    return ModelBundle.save(
        tmp_path / "start", build(architecture).state_dict(), name="start", architecture=architecture,
        preprocessing=Preprocessing(96, 96, (0.4, 0.3, 0.2), (0.3, 0.2, 0.1)), threshold=0.5,
        data={"datasets": ["elsewhere"]}, split={"name": "random", "hash": "0"},
    )  # fmt: skip


def test_training_starts_from_the_bundles_weights(
    start: ModelBundle, tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model = {"weights": str(start.folder), "output_stride": 2}  # another computation with the same weights
    recipe = small_recipe(model=model, optimizer=STILL, trainer={"epochs": 1})
    with caplog.at_level(logging.WARNING, "polypseg"):
        made = ModelBundle.load(train(recipe, [phantom_folder], tmp_path / "run"))
    expected, found = start.weights(), made.weights()
    # What a step would move stays, at a rate of 0; only the statistics of batch normalisation follow the frames.
    moved = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert moved and all("running" in name or "num_batches" in name for name in moved)
    np.testing.assert_allclose([*made.preprocessing.mean, *made.preprocessing.std], [0.4, 0.3, 0.2, 0.3, 0.2, 0.1])
    assert made.architecture.output_stride == 2
    assert made.preprocessing.height == 64  # the recipe's, not the bundle's
    origin = made.metadata["encoder_weights"]
    assert origin["source"] == "the bundle start" and origin["revision"] == start.hash
    assert origin["bundle"] == start.lineage() == {"name": "start", "hash": start.hash, "epoch": None, "recipe": None}
    assert "another split" not in caplog.text


def test_a_network_without_the_finest_stage_takes_the_weights_that_it_has_a_place_for(
    start: ModelBundle, tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model = {"weights": str(start.folder), "output_stride": 4}
    recipe = small_recipe(model=model, optimizer=STILL, trainer={"epochs": 1})
    with caplog.at_level(logging.INFO, "polypseg"):
        made = ModelBundle.load(train(recipe, [phantom_folder], tmp_path / "run"))
    before, after = start.weights(), made.weights()
    taken = [name for name in after if name in before and before[name].shape == after[name].shape]
    assert {name.rsplit(".", 3)[0] for name in after if name not in taken} == {"decoder.blocks.3"}
    assert f"1 of {len(after)} tensors start afresh: start has no such stage" in caplog.text
    assert all(torch.equal(before[name], after[name]) for name in taken if "running" not in name and "num_" not in name)


def test_a_frozen_network_learns_where_a_polyp_is_plausible_and_nothing_else(
    start: ModelBundle, tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    recipe = small_recipe(
        model={"weights": str(start.folder), "presence": True, "frozen": True},
        loss=LossConfig(presence=1.0, background=0.3),
        frames={"made_polyp_free": 0.4, "polyp_free_share": 0.2},
        optimizer={"ema_decay": 0.5}, trainer={"epochs": 2},
    )  # fmt: skip
    made = ModelBundle.load(train(recipe, [phantom_folder], tmp_path / "run"))
    before, after = start.weights(), made.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    judging = {name: value for name, value in after.items() if name not in before}
    assert judging and all(name.startswith("presence.") for name in judging)
    assert judging["presence.last.weight"].abs().max() > 0  # it began at 0
    assert made.architecture.presence


def test_the_encoders_finer_layers_keep_weights_and_statistics(
    start: ModelBundle, tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    recipe = small_recipe(
        model={"weights": str(start.folder), "presence": True, "frozen_stride": 4},
        loss=LossConfig(presence=1.0),
        optimizer={"learning_rate": 1e-3, "encoder_learning_rate": 1e-4, "presence_learning_rate": 1e-2},
        trainer={"epochs": 1},
    )  # fmt: skip
    made = ModelBundle.load(train(recipe, [phantom_folder], tmp_path / "run"))
    network = build(made.architecture)
    encoder = network.get_submodule("encoder")
    kept = {id(layer) for layer in finer_layers(network, 4)}
    names = {f"encoder.{name}." for name, layer in encoder.named_modules() if id(layer) in kept}
    before, after = start.weights(), made.weights()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    still = {name for name in before if name.rpartition(".")[0] + "." in names}
    assert still and not changed & still
    learnt = {name for name in before if name.startswith("encoder.") and name.endswith("weight")} - still
    assert learnt and learnt <= changed


def test_a_share_of_the_start_stays_in_the_result(
    start: ModelBundle, tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    """By changing the share alone, the same run gives the other mixture when it is resumed."""
    settings: dict[str, Any] = {"weights": str(start.folder), "presence": True}
    recipe = small_recipe(model=settings, trainer={"epochs": 1})
    trained = ModelBundle.load(train(recipe, [phantom_folder], tmp_path / "run")).weights()
    mixed = small_recipe(model=settings, trainer={"epochs": 1, "start_share": 0.25})
    after = ModelBundle.load(train(mixed, [phantom_folder], tmp_path / "run", resume=True)).weights()
    before = start.weights()
    assert any(not torch.equal(before[name], trained[name]) for name in before)
    for name, value in after.items():
        if name not in before or not value.is_floating_point():
            assert torch.equal(value, trained[name])
        else:
            torch.testing.assert_close(value, 0.25 * before[name] + 0.75 * trained[name])


def test_a_share_of_no_start_is_refused(small_recipe: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"trainer\.start_share 0\.5: there is no start"):
        small_recipe(trainer={"start_share": 0.5})


def test_a_frozen_network_without_anything_to_learn_is_refused(small_recipe: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"model\.frozen: leaves nothing to train"):
        small_recipe(model={"frozen": True})


def test_a_model_that_may_know_the_frames_is_warned_of(
    start: ModelBundle, tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    first = train(small_recipe(trainer={"epochs": 1}), [phantom_folder], tmp_path / "first")
    again = small_recipe(model={"weights": str(first)}, optimizer=STILL, trainer={"epochs": 1})
    with caplog.at_level(logging.WARNING, "polypseg"):
        train(again, [phantom_folder], tmp_path / "same")
        assert "another split" not in caplog.text
        train(
            small_recipe(model={"weights": str(first)}, trainer={"epochs": 1}, split="grouped"),
            [phantom_folder], tmp_path / "other",
        )  # fmt: skip
    assert f"{first} was trained on" in caplog.text
    assert "may have seen frames that are validation or test" in caplog.text


def test_a_bundle_that_cannot_be_started_from(
    start: ModelBundle, tmp_path: Path, phantom_folder: Path, small_recipe: Callable[..., Any]
) -> None:
    other = small_recipe(model={"weights": str(start.folder), "decoder_channels": (32, 16, 16, 8, 4)})
    with pytest.raises(PolypsegError, match=r"start: its network has decoder_channels .*8\), the recipe's .*4\); "):
        train(other, [phantom_folder], tmp_path / "other")
    with pytest.raises(PolypsegError, match="nowhere: is no model bundle"):
        train(small_recipe(model={"weights": str(tmp_path / "nowhere")}), [phantom_folder], tmp_path / "none")
    joined = ModelBundle.join(
        tmp_path / "joined", {"one": start, "two": start.compact(tmp_path / "half")}, name="joined", threshold=0.5
    )
    with pytest.raises(PolypsegError, match="is an ensemble; name one of its members"):
        train(small_recipe(model={"weights": str(joined.folder)}), [phantom_folder], tmp_path / "ensemble")
    assert not [one.name for one in tmp_path.iterdir() if one.name in ("other", "none", "ensemble")]
