"""ECE against torchmetrics, Brier and temperature against scikit-learn, the conformal promise by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

from polypseg.errors import PolypsegError
from polypseg.metrics.calibration import (
    CONFORMAL_THRESHOLDS,
    TEMPERATURES,
    Reliability,
    conformal_threshold,
    fit_temperature,
    log_loss,
    miss_rates,
)

Probability = NDArray[np.float32]
Mask = NDArray[np.bool_]


# PyTorch's float32 linspace differs from NumPy's in the last bit of some edges; these are the same in both.
COMMON_EDGES = np.intersect1d(np.linspace(0, 1, 16, dtype=np.float32), torch.linspace(0, 1, 16).numpy())[:-1]


@st.composite
def frames(draw: st.DrawFn) -> tuple[Probability, Mask]:
    """Maps of any kind, with values on the bins' edges; the truth random, tiny, empty or full."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 1.0, 8.0]))
    probability = expit(rng.normal(0, spread, shape)).astype(np.float32)
    on_edge = rng.random(shape) < draw(st.sampled_from([0.0, 0.5]))
    probability[on_edge] = rng.choice(COMMON_EDGES, on_edge.sum())
    probability = np.minimum(probability, np.float32(1 - 1e-7))  # 1 itself has a test of its own
    return probability, rng.random(shape) < draw(st.sampled_from([0.0, 0.03, 0.5, 1.0]))


def _reliability(probability: Probability, truth: Mask, bins: int = 15) -> Reliability:
    reliability = Reliability(bins)
    reliability.add(probability, truth)
    return reliability


def _torchmetrics(probability: Probability, truth: Mask, bins: int = 15) -> float:
    return float(binary_calibration_error(torch.from_numpy(probability), torch.from_numpy(truth).int(), bins))


@given(frames(), st.sampled_from([1, 4, 15]))
def test_ece_and_brier_against_the_references(frame: tuple[Probability, Mask], bins: int) -> None:
    probability, truth = frame
    reliability = _reliability(probability, truth, bins)
    assert reliability.ece() == pytest.approx(_torchmetrics(probability, truth, bins), abs=1e-6)
    reference = brier_score_loss(truth.ravel(), probability.ravel().astype(np.float64), pos_label=True, labels=[0, 1])
    assert reliability.brier() == pytest.approx(reference, abs=1e-12)


def test_an_edge_belongs_to_the_bin_above() -> None:
    edges = np.linspace(0, 1, 16, dtype=np.float32)
    assert len(COMMON_EDGES) > 8  # else the comparison with torchmetrics shows little
    below = np.nextafter(edges[1:], np.float32(0))
    reliability = _reliability(np.r_[edges[:-1], below], np.r_[np.ones(15, bool), np.zeros(15, bool)])
    assert reliability.counts.tolist() == [2] * 15 and reliability.positives.tolist() == [1] * 15


def test_probability_one_belongs_to_the_last_bin() -> None:
    """Torchmetrics gives it a bin of its own, where two errors that cancel in ours do not."""
    probability = np.array([0.95, 1.0], np.float32)
    truth = np.array([True, False])
    reliability = _reliability(probability, truth)
    assert reliability.counts[-1] == 2
    assert reliability.ece() == pytest.approx(abs(1 - 1.95) / 2, abs=1e-6)
    assert _torchmetrics(probability, truth) == pytest.approx((0.05 + 1.0) / 2, abs=1e-6)


@given(frames(), st.integers(1, 6))
def test_adding_frames_equals_adding_them_at_once(frame: tuple[Probability, Mask], parts: int) -> None:
    probability, truth = frame[0].ravel(), frame[1].ravel()
    pieces = Reliability()
    for some, true in zip(np.array_split(probability, parts), np.array_split(truth, parts), strict=True):
        pieces.add(some, true)
    whole = _reliability(probability, truth)
    assert (pieces.counts == whole.counts).all() and (pieces.positives == whole.positives).all()
    assert pieces.ece() == pytest.approx(whole.ece(), abs=1e-12)
    assert pieces.brier() == pytest.approx(whole.brier(), abs=1e-12)


@given(frames())
def test_properties_of_reliability(frame: tuple[Probability, Mask]) -> None:
    probability, truth = frame
    reliability = _reliability(probability, truth)
    assert 0 <= reliability.ece() <= 1 and 0 <= reliability.brier() <= 1
    flipped = _reliability(probability[::-1, ::-1], truth[::-1, ::-1])
    assert flipped.ece() == pytest.approx(reliability.ece(), abs=1e-12)
    held = reliability.counts > 0
    assert (np.isnan(reliability.confidence) == ~held).all() and (np.isnan(reliability.frequency) == ~held).all()
    assert (reliability.confidence[held] >= reliability.edges[:-1][held] - 1e-7).all()
    assert (reliability.confidence[held] <= reliability.edges[1:][held] + 1e-7).all()
    # one bin sees the mean alone
    overall = abs(truth.mean() - probability.astype(np.float64).mean())
    assert _reliability(probability, truth, 1).ece() == pytest.approx(overall, abs=1e-9)


def test_a_perfect_map_and_its_opposite() -> None:
    truth = np.arange(20).reshape(4, 5) % 3 == 0
    perfect = _reliability(truth.astype(np.float32), truth)
    assert perfect.ece() == perfect.brier() == 0
    wrong = _reliability((~truth).astype(np.float32), truth)
    assert wrong.ece() == wrong.brier() == 1


def _overconfident(temperature: float, n: int = 60_000) -> tuple[Probability, Mask]:
    """Pixels whose truth was drawn from ``sigmoid(logit / temperature)``."""
    rng = np.random.default_rng(4)
    logits = rng.normal(-1.5, 3, n)
    return expit(logits).astype(np.float32), rng.random(n) < expit(logits / temperature)


def _fitted(probability: Probability, truth: Mask, parts: int = 1) -> float:
    """As of that many frames."""
    logits = np.clip(logit(probability.astype(np.float64)), -17, 17)

    def predict(temperature: float) -> list[tuple[Probability, Mask]]:
        scaled = expit(logits / temperature).astype(np.float32)
        return [(scaled[part::parts], truth[part::parts]) for part in range(parts)]

    return fit_temperature(predict)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_temperature_against_logistic_regression(temperature: float) -> None:
    """Without intercept and penalty, the regression's one coefficient is 1/T."""
    probability, truth = _overconfident(temperature)
    fitted = _fitted(probability, truth, 6)
    values = probability.astype(np.float64)
    logits = np.clip(np.log(values) - np.log1p(-values), -17, 17)[:, None]
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(logits, truth)
    assert fitted == pytest.approx(1 / regression.coef_[0, 0], rel=1e-3)
    assert fitted == pytest.approx(temperature, rel=0.03)
    mended = _reliability(expit(logits[:, 0] / fitted).astype(np.float32), truth)
    assert mended.ece() < 0.01
    if temperature != 1:
        assert mended.ece() < 0.3 * _reliability(probability, truth).ece()


def test_temperature_of_a_mean_of_views() -> None:
    """The one that is best for the mean, by a search of its own; it is not that of a single view."""
    rng = np.random.default_rng(3)
    true = rng.normal(-1, 2, 20_000)
    views = [2 * (true + rng.normal(0, 2, true.size)) for _ in range(2)]
    truth = rng.random(true.size) < expit(true)

    def mean(temperature: float, of: list[np.ndarray]) -> Probability:
        return np.mean([expit(one / temperature) for one in of], axis=0, dtype=np.float64).astype(np.float32)

    grid = np.exp(np.linspace(np.log(0.5), np.log(10), 400))
    best = grid[int(np.argmin([log_loss(mean(one, views), truth) for one in grid]))]
    assert fit_temperature(lambda one: [(mean(one, views), truth)]) == pytest.approx(best, rel=0.01)
    assert fit_temperature(lambda one: [(mean(one, views[:1]), truth)]) > 1.1 * best


def test_temperature_at_its_ends() -> None:
    truth = np.array([True, True, False, False])
    distinct = np.array([0.99, 0.9, 0.01, 0.2], np.float32)  # without error
    assert TEMPERATURES[0] <= _fitted(distinct, truth) < 0.1  # below it all probabilities are 0 or 1 in 32 bits
    wrong = np.array([0.01, 0.1, 0.99, 0.8], np.float32)  # always: nothing is best
    assert _fitted(wrong, truth) == pytest.approx(TEMPERATURES[1], rel=0.01)


@pytest.mark.parametrize(("value", "absent"), [(False, "polyp"), (True, "background")])
def test_temperature_needs_both_classes(value: bool, absent: str) -> None:
    with pytest.raises(PolypsegError, match=f"no {absent} pixels"):
        _fitted(np.full(9, 0.4, np.float32), np.full(9, value))


@settings(max_examples=50)
@given(frames(), st.integers(0, 2**32))
def test_miss_rates_against_masks(frame: tuple[Probability, Mask], seed: int) -> None:
    truth = frame[1]
    thresholds = np.linspace(0, 1, 11).astype(np.float32)
    # values on the thresholds themselves are the hard case: >= keeps them
    probability = (
        np.random.default_rng(seed).choice(np.r_[thresholds, frame[0].ravel()], truth.shape).astype(np.float32)
    )
    expected = [
        np.count_nonzero(truth & ~(probability >= threshold)) / truth.sum() if truth.any() else 0.0
        for threshold in thresholds
    ]
    rates = miss_rates(probability, truth, thresholds)
    assert rates == pytest.approx(expected, abs=1e-12)
    assert rates[0] == 0 and (np.diff(rates) >= 0).all()


def _population(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Miss-rate curves of frames of which some are easy, some hard and some without a polyp."""
    curves = np.zeros((n, len(CONFORMAL_THRESHOLDS)))
    for curve in curves:
        kind = rng.random()
        if kind > 0.1:
            pixels = expit(rng.normal(rng.normal(3, 2) if kind < 0.9 else -3, 1.5, (6, 6))).astype(np.float32)
            curve[:] = miss_rates(pixels, np.ones((6, 6), bool), CONFORMAL_THRESHOLDS)
    return curves


@pytest.mark.parametrize("n", [30, 150])
def test_the_promise_holds_on_average_and_is_not_empty(n: int) -> None:
    """Many draws of n calibration frames and of new ones: the mean risk is below α, and not far below it."""
    rng = np.random.default_rng(8)
    population = _population(rng, 3000)
    alpha, risks = 0.1, []
    for _ in range(800):
        drawn = rng.permutation(len(population))[: n + 20]
        chosen = conformal_threshold(population[drawn[:n]], CONFORMAL_THRESHOLDS, alpha)
        assert (n * chosen.risk + 1) / (n + 1) <= alpha
        at = np.searchsorted(CONFORMAL_THRESHOLDS, np.float32(chosen.threshold))
        risks.append(population[drawn[n:], at].mean())
    error = np.std(risks) / np.sqrt(len(risks))
    assert np.mean(risks) <= alpha + 3 * error
    # the theory's lower bound: alpha - 2 / (n + 1) for a continuous risk
    assert np.mean(risks) >= alpha - 2 / (n + 1) - 3 * error - 0.005


@given(st.integers(0, 2**32), st.floats(0.05, 0.9), st.integers(20, 60))
@settings(max_examples=40)
def test_the_largest_threshold_is_chosen(seed: int, alpha: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    thresholds = np.linspace(0, 1, 21).astype(np.float32)
    rates = np.array([miss_rates(rng.random(9).astype(np.float32), np.ones(9, bool), thresholds) for _ in range(n)])
    chosen = conformal_threshold(rates, thresholds, alpha)
    for threshold, risk in zip(thresholds, rates.mean(axis=0), strict=True):
        kept = n / (n + 1) * risk + 1 / (n + 1) <= alpha + 1e-12
        assert kept == (threshold <= np.float32(chosen.threshold))
    assert chosen.n == n and chosen.alpha == alpha


def test_what_cannot_be_promised() -> None:
    thresholds = np.array([0.0, 0.5], np.float32)
    nothing_missed = np.zeros((19, 2))
    assert conformal_threshold(nothing_missed, thresholds, 0.05).threshold == 0.5  # 1/20, on the point
    with pytest.raises(PolypsegError, match="needs at least 19 calibration frames but there are 18"):
        conformal_threshold(nothing_missed[:18], thresholds, 0.05)
    with pytest.raises(PolypsegError, match=r"even at threshold 0\.5"):
        conformal_threshold(np.ones((50, 1)), thresholds[1:], 0.1)


def test_wrong_arguments() -> None:
    half, empty = np.full((2, 2), 0.5, np.float32), np.zeros((2, 2), bool)
    reliability = Reliability()
    for judge in (reliability.add, log_loss):
        with pytest.raises(ValueError, match="prediction is"):
            judge(half, empty[:1])
        with pytest.raises(ValueError, match="must be bool"):
            judge(half, empty.astype(np.uint8))
        for value in (np.nan, -0.1, 1.1, np.inf):
            with pytest.raises(ValueError, match=r"0\.\.1"):
                judge(np.full((2, 2), value, np.float32), empty)
    assert not reliability.counts.any()
    with pytest.raises(ValueError, match="no pixels"):
        Reliability().ece()
    with pytest.raises(ValueError, match="bins"):
        Reliability(0)
    with pytest.raises(ValueError, match="ascending"):
        miss_rates(half, empty, np.array([0.5, 0.2], np.float32))
    limits = np.array([0.2, 0.5], np.float32)
    for rates in (np.zeros(2), np.zeros((0, 2)), np.zeros((3, 3))):
        with pytest.raises(ValueError, match="one row a frame"):
            conformal_threshold(rates, limits, 0.1)
    for row in ([0.5, 0.2], [np.nan, 0.2], [0.2, 1.2]):
        with pytest.raises(ValueError, match="never fall"):
            conformal_threshold(np.array([row]), limits, 0.1)
    with pytest.raises(ValueError, match="alpha"):
        conformal_threshold(np.zeros((3, 2)), limits, 1.0)
