"""Intervals and tests against SciPy, plain loops and simulation."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from polypseg.metrics.statistics import (
    _letters,
    bootstrap_interval,
    compare,
    holm,
    rank,
    sign_flip_test,
)


def _dice_like(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Skewed as Dice is: most near 0.93, a tail towards 0; its mean is 0.8 · 12/13 + 0.2 · 1/2."""
    return np.where(rng.random(n) < 0.8, rng.beta(12, 1, n), rng.beta(2, 2, n))


Statistic = Literal["mean", "median"]
Method = Literal["BCa", "percentile"]
STATISTICS: tuple[Statistic, Statistic] = ("mean", "median")
DICE_MEAN = 0.8 * 12 / 13 + 0.2 * 0.5


# --- intervals ---


@pytest.mark.parametrize(("statistic", "method"), [("mean", "BCa"), ("median", "percentile")])
@pytest.mark.parametrize("n", [2, 9, 150])
def test_interval_against_scipy(statistic: Statistic, method: Method, n: int) -> None:
    values = _dice_like(np.random.default_rng(n), n)
    function = getattr(np, statistic)
    reference = stats.bootstrap((values,), function, method=method, n_resamples=2000, rng=np.random.default_rng(5))
    interval = bootstrap_interval(values, statistic, resamples=2000, seed=5)
    assert interval.value == function(values) and interval.n == n
    expected = reference.confidence_interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_batches_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = _dice_like(np.random.default_rng(1), 40)
    for statistic in STATISTICS:
        whole = bootstrap_interval(values, statistic, resamples=500)
        with monkeypatch.context() as patch:
            patch.setattr("polypseg.metrics.statistics.BATCH_ELEMENTS", 40 * 37)
            parts = bootstrap_interval(values, statistic, resamples=500)
        assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_clusters_against_a_plain_loop(statistic: Statistic) -> None:
    """Draw groups, put their images together, take the percentiles; BCa's shift from its definition."""
    rng = np.random.default_rng(2)
    groups = np.r_[np.arange(12), rng.integers(0, 12, 40)]  # of several sizes, mixed, numbered by appearance
    values = np.round(_dice_like(rng, len(groups)) - 0.2 * (groups % 3), 2)  # with ties
    function = getattr(np, statistic)
    parts = [values[groups == group] for group in range(12)]
    draws = np.random.default_rng(6).integers(0, 12, (800, 12))
    resampled = np.array([function(np.concatenate([parts[group] for group in draw])) for draw in draws])
    levels = np.array([0.025, 0.975])
    if statistic == "mean":
        shift = stats.norm.ppf((np.mean(resampled < values.mean()) + np.mean(resampled <= values.mean())) / 2)
        left_out = np.array([function(np.concatenate(parts[:k] + parts[k + 1 :])) for k in range(12)])
        pull = left_out.mean() - left_out
        acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
        reach = shift + stats.norm.ppf(levels)
        levels = stats.norm.cdf(shift + reach / (1 - acceleration * reach))
    names = [f"sequence-{99 - group}" for group in groups]
    interval = bootstrap_interval(values, statistic, names, resamples=800, seed=6)
    assert (interval.low, interval.high) == pytest.approx(np.quantile(resampled, levels), abs=1e-9)
    assert interval.value == function(values) and interval.n == len(values)


@given(st.integers(0, 2**32), st.sampled_from(STATISTICS))
@settings(max_examples=30, deadline=None)
def test_properties_of_intervals(seed: int, statistic: Statistic) -> None:
    rng = np.random.default_rng(seed)
    values = _dice_like(rng, int(rng.integers(12, 30)))
    interval = partial(bootstrap_interval, statistic=statistic, resamples=300)
    one = interval(values)
    assert values.min() - 1e-12 <= one.low <= one.high <= values.max() + 1e-12
    assert one == interval(values)
    alone = interval(values, groups=list(range(len(values))))
    assert alone == one
    moved = interval(2 * values + 3)
    assert (moved.low, moved.high) == pytest.approx((2 * one.low + 3, 2 * one.high + 3), abs=1e-9)
    narrow = interval(values, confidence=0.5)
    assert one.low <= narrow.low <= narrow.high <= one.high


def test_intervals_of_little() -> None:
    one = bootstrap_interval([0.5])
    assert (one.value, one.n) == (0.5, 1) and np.isnan([one.low, one.high]).all()
    group = bootstrap_interval([0.5, 0.7], groups=["a", "a"])
    assert group.value == pytest.approx(0.6) and np.isnan([group.low, group.high]).all()
    same = bootstrap_interval([0.9] * 5)
    assert (same.low, same.high) == (0.9, 0.9)
    twins = bootstrap_interval([0.2, 0.8] * 3, groups=[0, 0, 1, 1, 2, 2])  # every group's mean is the same
    assert (twins.low, twins.high) == pytest.approx((0.5, 0.5))


def _coverage(intervals: Sequence[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.slow
def test_coverage_of_the_mean_and_the_median() -> None:
    """Of 300 samples of 60 images each, about 95 % of the intervals contain the true value."""
    rng = np.random.default_rng(0)
    samples = [_dice_like(rng, 60) for _ in range(300)]
    median = float(np.median(_dice_like(np.random.default_rng(99), 400_000)))
    for statistic, truth in zip(STATISTICS, (DICE_MEAN, median), strict=True):
        found = [bootstrap_interval(sample, statistic, resamples=500) for sample in samples]
        # 0.95 less the bootstrap's known shortfall at n = 60; Monte Carlo error 0.013
        assert 0.91 <= _coverage([(one.low, one.high) for one in found], truth) <= 0.98


def test_sequences_need_the_cluster_bootstrap() -> None:
    """25 sequences of 6 like frames: the plain interval is far too narrow, the cluster's is not."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(25), 6).tolist()
    plain: list[tuple[float, float]] = []
    clustered: list[tuple[float, float]] = []
    for _ in range(200):
        values = np.repeat(rng.normal(0.8, 0.1, 25), 6) + rng.normal(0, 0.03, 150)
        for found, labels in ((plain, None), (clustered, groups)):
            interval = bootstrap_interval(values, groups=labels, resamples=400)
            found.append((interval.low, interval.high))
    assert _coverage(plain, 0.8) < 0.75
    assert 0.88 <= _coverage(clustered, 0.8) <= 0.99


# --- the test of a difference ---


@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_exact_p_against_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    one, other = rng.normal(0.4, 1, n), rng.normal(0, 1, n)
    reference = stats.permutation_test(
        (one, other),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=10_000,  # above all patterns of 12: exact
        vectorized=True,
    )
    assert sign_flip_test(one - other) == pytest.approx(reference.pvalue, abs=1e-12)


def test_random_p_is_near_the_exact_one() -> None:
    differences = np.random.default_rng(7).normal(0.5, 1, 13)
    exact = sign_flip_test(differences)  # 2**13 patterns
    sampled = sign_flip_test(differences, resamples=8191)
    assert sampled != exact and sampled == pytest.approx(exact, abs=5 * np.sqrt(exact / 8191))


def test_exact_p_by_hand() -> None:
    assert sign_flip_test([1, 2, 3]) == 2 / 8  # +++ and ---
    assert sign_flip_test([1, 2, -3]) == 1  # every mean is at least as far from 0 as 0
    assert sign_flip_test([0.1, 0.2, 0.3, -0.1]) == 6 / 16
    assert sign_flip_test([0.0, 0.0]) == 1
    assert sign_flip_test([1, 2, 3, 0, 0]) == 2 / 8  # equal scores say nothing
    # the groups' sums 3 and 4 have two signs between them
    assert sign_flip_test([1, 2, 2, 2], groups=["a", "a", "b", "b"]) == 2 / 4
    # random patterns never give 0, whatever the size
    assert sign_flip_test(np.ones(200), resamples=99) == 1 / 100


def test_false_positives_under_the_null() -> None:
    """At α = 0.05, about 5 % of comparisons of equal models differ; never clearly more."""
    rng = np.random.default_rng(11)
    exact = [sign_flip_test(_dice_like(rng, 10) - _dice_like(rng, 10)) for _ in range(1500)]
    assert 0.03 <= np.mean(np.array(exact) <= 0.05) <= 0.067
    sampled = [
        sign_flip_test(_dice_like(rng, 40) - _dice_like(rng, 40), resamples=399, seed=seed) for seed in range(1500)
    ]
    assert 0.035 <= np.mean(np.array(sampled) <= 0.05) <= 0.067


def test_false_positives_in_sequences() -> None:
    rng = np.random.default_rng(12)
    groups = np.repeat(np.arange(10), 5).tolist()
    plain, clustered = [], []
    for _ in range(400):
        differences = np.repeat(rng.normal(0, 0.1, 10), 5) + rng.normal(0, 0.03, 50)
        plain.append(sign_flip_test(differences, resamples=399))
        clustered.append(sign_flip_test(differences, groups, resamples=2000))
    assert np.mean(np.array(plain) <= 0.05) > 0.2
    assert np.mean(np.array(clustered) <= 0.05) <= 0.085


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_properties_of_p(differences: list[float]) -> None:
    p = sign_flip_test(differences)
    values = np.array(differences)
    assert 0 < p <= 1
    assert sign_flip_test(-values) == sign_flip_test(values[::-1]) == p
    assert sign_flip_test(values / 4) == p


def test_compare() -> None:
    rng = np.random.default_rng(1)
    base = _dice_like(rng, 150)
    other = np.clip(base + rng.normal(0.03, 0.05, 150), 0, 1)
    found = compare(other, base)
    assert found.difference.value == pytest.approx((other - base).mean(), abs=1e-12)
    assert 0 < found.difference.low < found.difference.value < found.difference.high
    assert found.p_value == found.adjusted < 0.001
    turned = compare(base, other)
    assert turned.p_value == pytest.approx(found.p_value, abs=1e-3)
    assert turned.difference.value == pytest.approx(-found.difference.value)
    itself = compare(base, base)
    assert (itself.p_value, itself.difference.low, itself.difference.high) == (1, 0, 0)


# --- several models ---


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_as_the_step_down_procedure(values: list[float], alpha: float) -> None:
    """The paper's procedure: test the smallest at α/m, the next at α/(m - 1), … and stop at the first not rejected."""
    rejected = set()
    for step, index in enumerate(np.argsort(values, kind="stable")):
        if values[index] * (len(values) - step) > alpha:
            break
        rejected.add(int(index))
    adjusted = holm(values)
    assert set(np.flatnonzero(adjusted <= alpha).tolist()) == rejected
    assert (adjusted >= np.array(values)).all() and (adjusted <= 1).all()


def test_ranking_groups_what_cannot_be_told_apart() -> None:
    rng = np.random.default_rng(5)
    base = _dice_like(rng, 120)
    scores = {
        "poor": base - 0.2 + rng.normal(0, 0.05, 120),
        "good": base + rng.normal(0, 0.05, 120),
        "good too": base + rng.normal(0.001, 0.05, 120),
        "best": base + 0.1 + rng.normal(0, 0.05, 120),
    }
    ranking = rank(scores)
    places = {place.name: place for place in ranking.places}
    assert [place.name for place in ranking.places][::3] == ["best", "poor"]
    assert places["best"].letters == ("a",) and places["poor"].letters == ("c",)
    assert places["good"].letters == places["good too"].letters == ("b",)
    assert [place.mean.value for place in ranking.places] == sorted((s.mean() for s in scores.values()), reverse=True)
    pairs = list(ranking.comparisons)
    assert len(pairs) == 6 and ("best", "poor") in pairs
    expected = holm([comparison.p_value for comparison in ranking.comparisons.values()])
    assert [comparison.adjusted for comparison in ranking.comparisons.values()] == expected.tolist()
    assert rank({"one": base}).places[0].letters == ("a",)


@pytest.mark.slow
def test_equal_models_are_rarely_told_apart() -> None:
    """Of 200 rankings of four equal models, at most about 5 % show a difference anywhere."""
    rng = np.random.default_rng(9)
    distinct = 0
    for seed in range(200):
        base = rng.normal(0.8, 0.1, 12)
        scores = {name: base + rng.normal(0, 0.05, 12) for name in "wxyz"}
        distinct += any(place.letters != ("a",) for place in rank(scores, resamples=299, seed=seed).places)
    assert distinct / 200 <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 200)


@given(st.integers(0, 8), st.data())
def test_letters_are_shared_by_what_is_not_apart(count: int, data: st.DataObject) -> None:
    names = list(string.ascii_uppercase[:count])
    pairs = list(itertools.combinations(names, 2))
    apart = [pair for pair in pairs if data.draw(st.booleans())]
    letters = _letters(names, apart)
    for one, other in pairs:
        assert bool(set(letters[one]) & set(letters[other])) == ((one, other) not in apart)
    used = [
        {name for name in names if letter in letters[name]} for letter in {x for own in letters.values() for x in own}
    ]
    assert not any(column < wider for column in used for wider in used)  # no letter too many
    if names:
        assert letters["A"][0] == "a"


def test_wrong_arguments() -> None:
    for values in ([], [[0.1]], [0.1, np.nan], [np.inf]):
        with pytest.raises(ValueError, match="score"):
            bootstrap_interval(values)
        with pytest.raises(ValueError, match="score"):
            sign_flip_test(values)
    with pytest.raises(ValueError, match="1 groups for 2 scores"):
        bootstrap_interval([0.1, 0.2], groups=["a"])
    with pytest.raises(ValueError, match="same images"):
        compare([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([0.1, 0.2], confidence=95)
    with pytest.raises(ValueError, match="statistic"):
        bootstrap_interval([0.1, 0.2], "mode")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="p-values"):
        holm([0.2, np.nan])
    with pytest.raises(ValueError, match="no models"):
        rank({})
    with pytest.raises(ValueError, match="alpha"):
        rank({"a": [0.1]}, alpha=0)
