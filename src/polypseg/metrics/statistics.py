"""How sure a mean is, whether two models differ, and which of several cannot be told apart.

Scores are one number an image, as Dice; every function works on scores of any range. Frames of one sequence are not
independent: give their groups, and whole groups are drawn or flipped together. Without them the intervals are too
narrow and the p-values too small. Empty masks are the metric's affair, and NaN is refused here: decide upstream
what a frame without a value counts.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

Scores = NDArray[np.float64]
Codes = NDArray[np.intp]

RESAMPLES = 10_000
DRAWS = 2_000  # of ``group_bootstrap``, whose statistics are many
BATCH_ELEMENTS = 2_000_000  # numbers in memory at a time, 16 MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: the statistic of the sample.
        low, high: bounds; NaN where there are fewer than two groups, for one draw says nothing of the spread.
        n: the number of images.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        difference: mean over images of the first's score less the second's.
        p_value: of the sign-flip test that the differences are symmetric about 0, two-sided.
        adjusted: ``p_value`` corrected for the other comparisons beside it; the same where there are none.
    """

    difference: Interval
    p_value: float
    adjusted: float


@dataclass(frozen=True)
class Place:
    """A model's place in a ranking.

    Attributes:
        name: the model.
        mean: of its scores.
        letters: two models that share one could not be told apart; "a" is the best model's first.
    """

    name: str
    mean: Interval
    letters: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """Models from the highest mean to the lowest.

    Attributes:
        places: one a model, in order.
        comparisons: of each pair (better, worse).
        groups: of the images.
        groups_needed: with fewer no pair can be told apart, whatever the scores are; letters then say nothing.
    """

    places: tuple[Place, ...]
    comparisons: dict[tuple[str, str], Comparison]
    groups: int
    groups_needed: int


def bootstrap_interval(
    values: ArrayLike,
    statistic: Literal["mean", "median"] = "mean",
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean or the median over images with its bootstrap interval.

    The mean has the bias-corrected and accelerated interval (BCa; Efron, JASA 1987): Dice is skewed, most images
    near 0.95 and a tail to 0, and the share that BCa's ends leave out on either side errs by the order of 1/n where
    the percentile interval's errs by 1/√n. The median has the percentile interval (Efron & Tibshirani 1993, ch. 13),
    for the jackknife that BCa's acceleration is made of fails for medians. With groups, whole groups are drawn with
    replacement (cluster bootstrap; Field & Welsh, JRSS B 2007), and the statistic is that of all images drawn; fewer
    than about 20 groups make any such interval too narrow. Where all values are equal the interval is that value.

    Args:
        values: one number an image.
        statistic: of the two.
        groups: one label an image, as the Catalog's; without it, each image is a group of its own.
        confidence: 0..1, exclusive.
        resamples: bootstrap samples.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: there are no values, one is NaN or infinite, or the groups are of another number.
    """
    scores = _scores(values)
    codes = _codes(groups, len(scores))
    count = int(codes.max()) + 1
    if statistic == "mean":
        value = float(scores.mean())
    elif statistic == "median":
        value = float(np.median(scores))
    else:
        raise ValueError(f"statistic is {statistic!r}; choose mean or median")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    if count < 2:
        return Interval(value, np.nan, np.nan, len(scores))
    if scores.min() == scores.max():
        return Interval(value, value, value, len(scores))
    # SciPy draws the groups' numbers; what it computes of them is ours, for groups contain any number of images.
    statistic_of = _mean_of_groups(scores, codes) if statistic == "mean" else _median_of_groups(scores, codes)
    low, high = np.nan, np.nan
    for method in ("BCa", "percentile") if statistic == "mean" else ("percentile",):
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.simplefilter("ignore", DegenerateDataWarning)
            found = bootstrap(
                (np.arange(count),),
                statistic_of,
                n_resamples=resamples,
                batch=max(1, BATCH_ELEMENTS // len(scores)),
                vectorized=True,
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        low, high = float(found.low), float(found.high)
        if np.isfinite(low) and np.isfinite(high):
            break  # BCa has no interval where every resample lies on one side of the value
    return Interval(value, low, high, len(scores))


def group_bootstrap(
    statistics: Callable[[NDArray[np.float32]], Scores],
    groups: Sequence[object],
    confidence: float = 0.95,
    resamples: int = DRAWS,
    seed: int = 0,
) -> tuple[Scores, Scores, Scores]:
    """Percentile intervals of several statistics of the same images, from the same draws of whole groups.

    Made for ratios of sums and for points of curves, which are no mean over images. Groups are drawn with replacement
    (cluster bootstrap; Field & Welsh, JRSS B 2007); draws in which a statistic is undefined are left out.

    Args:
        statistics: from b×n float32, how often each of n images counts in each of b draws, to b×k float64; NaN where a
            statistic is undefined.
        groups: one label an image.
        confidence: 0..1, exclusive.
        resamples: draws.
        seed: the same seed gives the same intervals.

    Returns:
        k values, their lower and their upper bounds; NaN where undefined, and in the bounds with fewer than two groups.
    """
    codes = _codes(groups, len(groups))
    count = int(codes.max(initial=-1)) + 1
    value = statistics(np.ones((1, len(codes)), np.float32))[0]
    if count < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    rng = np.random.default_rng(seed)
    drawn, rows = [], max(1, BATCH_ELEMENTS // max(count, len(codes)))
    for start in range(0, resamples, rows):
        batch = min(rows, resamples - start)
        chosen = rng.integers(count, size=(batch, count)) + np.arange(batch)[:, None] * count
        times = np.bincount(chosen.ravel(), minlength=batch * count).reshape(batch, count).astype(np.float32)
        drawn.append(statistics(times[:, codes]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN
        low, high = np.nanquantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return value, np.where(np.isnan(value), np.nan, low), np.where(np.isnan(value), np.nan, high)


def exact_share(whole: bool, draws: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a share that is 0, or where ``whole`` 1, in each of some draws (Clopper & Pearson, Biometrika 1934).

    A bootstrap sees no spread there and would say that 0 of 5 is 0 for certain.
    """
    end = ((1 - confidence) / 2) ** (1 / draws)
    return (end, 1.0) if whole else (0.0, 1 - end)


def exact_rate_of_none(draws: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of the mean number of events in a draw where some draws had none (Garwood, Biometrika 1936)."""
    return 0.0, -math.log((1 - confidence) / 2) / draws


def sign_flip_test(
    differences: ArrayLike,
    groups: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the sign-flip permutation test of a mean difference of 0 (Fisher 1935).

    Under the null hypothesis the two models could be exchanged on any image, so that each difference might as well
    have the other sign; p is the share of sign patterns with a mean at least as far from 0. With groups, a group's
    differences keep one common sign. Exact where there are no more patterns than ``resamples``; else of random
    patterns with the observed one counted among them, ``(1 + hits) / (1 + resamples)``, which is never too small
    (Phipson & Smyth, SAGMB 2010).

    Args:
        differences: one number an image: one model's score less the other's.
        groups: one label an image; without it, each image is a group of its own.
        resamples: random patterns.
        seed: the same seed gives the same p.

    Returns:
        p, above 0 and up to 1; 1 where all differences are 0.

    Raises:
        ValueError: as ``bootstrap_interval``.
    """
    scores = _scores(differences)
    sums = np.bincount(_codes(groups, len(scores)), weights=scores)
    scale = float(np.abs(sums).sum())
    sums = sums[np.abs(sums) > 1e-12 * scale]  # a sum of 0 is the same with either sign
    observed = abs(float(sums.sum())) - 1e-9 * scale  # else rounding would part equal sums
    n = len(sums)
    if n == 0:
        return 1.0
    if n < 63 and 2**n <= resamples:
        patterns = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float(np.mean(np.abs((2.0 * patterns - 1) @ sums) >= observed))
    rng = np.random.default_rng(seed)
    hits, left = 0, resamples
    while left:
        rows = min(left, max(1, BATCH_ELEMENTS // n))
        bits = np.unpackbits(np.frombuffer(rng.bytes(rows * -(-n // 8)), np.uint8).reshape(rows, -1), axis=1, count=n)
        hits += int(np.count_nonzero(np.abs((2.0 * bits - 1) @ sums) >= observed))
        left -= rows
    return (1 + hits) / (1 + resamples)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values adjusted for their number by Holm's step-down method (Holm, Scand. J. Statist. 1979).

    With m values in ascending order, the k-th becomes ``max over j <= k of min(1, (m - j + 1) p_j)``: rejecting
    those at or below α makes one false rejection or more with a probability of at most α, whatever their
    dependence.

    Args:
        p_values: m numbers, 0..1.

    Returns:
        m float64 values, 0..1, in the same order.

    Raises:
        ValueError: one is NaN or outside 0..1.
    """
    values = np.asarray(p_values, np.float64).ravel()
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("p-values must lie in 0..1")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return adjusted


def compare(
    one: ArrayLike,
    other: ArrayLike,
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models by their scores on the same images, in the same order.

    Args:
        one: a number an image.
        other: likewise, of the same images.
        groups: as in ``bootstrap_interval``.
        confidence: likewise.
        resamples: as in ``bootstrap_interval`` and ``sign_flip_test``.
        seed: likewise.

    Raises:
        ValueError: as there, or the two are of different length.
    """
    first, second = _scores(one), _scores(other)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} scores against {len(second)}; both models need the same images")
    difference = first - second
    p_value = sign_flip_test(difference, groups, resamples, seed)
    return Comparison(
        bootstrap_interval(difference, "mean", groups, confidence, resamples, seed), p_value, adjusted=p_value
    )


def rank(
    scores: Mapping[str, ArrayLike],
    groups: Sequence[object] | None = None,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ranking:
    """Rank models by their mean score and say which of them cannot be told apart.

    Rule: every pair is compared by the sign-flip test, the p-values are adjusted by Holm's method over all pairs,
    and two are told apart where the adjusted one is at most α. Two models share a letter if and only if they were
    not told apart (compact letter display by insertion and absorption; Piepho, JCGS 2004). "Not told apart" is no
    proof that they are equal. The intervals are of each mean or difference alone, at confidence 1 - α; only the
    p-values are corrected, so that an interval without 0 may belong to a pair that was not told apart.

    Args:
        scores: by model name, one number an image, all of the same images in the same order; higher is better.
        groups: as in ``compare``.
        alpha: probability of one false difference or more, 0..1, exclusive.
        resamples: as in ``compare``.
        seed: likewise.

    Raises:
        ValueError: there are no models, or as ``compare``.
    """
    if not scores:
        raise ValueError("there are no models to rank")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1")
    means = {
        name: bootstrap_interval(values, "mean", groups, 1 - alpha, resamples, seed) for name, values in scores.items()
    }
    names = sorted(means, key=lambda name: -means[name].value)  # equal means stay in the given order
    pairs = list(itertools.combinations(names, 2))
    compared = [compare(scores[one], scores[other], groups, 1 - alpha, resamples, seed) for one, other in pairs]
    adjusted = holm([comparison.p_value for comparison in compared])
    comparisons = {
        pair: Comparison(comparison.difference, comparison.p_value, float(value))
        for pair, comparison, value in zip(pairs, compared, adjusted, strict=True)
    }
    apart = [pair for pair, comparison in comparisons.items() if comparison.adjusted <= alpha]
    letters = _letters(names, apart)
    count = int(_codes(groups, len(_scores(scores[names[0]]))).max()) + 1
    places = tuple(Place(name, means[name], letters[name]) for name in names)
    return Ranking(places, comparisons, count, groups_needed(len(pairs), alpha))


def groups_needed(pairs: int, alpha: float = 0.05) -> int:
    """The fewest groups with which the sign-flip test can tell one of some pairs apart.

    Of k groups there are 2^k sign patterns, of which two, the observed one and its opposite, are always as far from 0:
    p is at least 2^(1 - k), and Holm's correction takes the smallest of them times the number of pairs.

    Args:
        pairs: that are compared, 1 or more.
        alpha: as in ``rank``.
    """
    return math.ceil(1 + math.log2(max(pairs, 1) / alpha))


def _letters(names: Sequence[str], apart: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Each name's letters, so that two share one if and only if they are not ``apart``."""
    columns = [frozenset(names)]
    for one, other in apart:
        # insert: a column that connects the two becomes two columns, each without one of them
        inserted = {
            part
            for column in columns
            for part in ([column - {one}, column - {other}] if {one, other} <= column else [column])
        }
        # absorb: a column inside another says nothing new
        columns = [column for column in inserted if not any(column < wider for wider in inserted)]
    columns.sort(key=lambda column: sorted(names.index(name) for name in column))
    return {name: tuple(_letter(index) for index, column in enumerate(columns) if name in column) for name in names}


def _letter(index: int) -> str:
    """The letter of a number: a, b, … z, a1, b1, …."""
    return chr(ord("a") + index % 26) + (str(index // 26) if index >= 26 else "")


def _mean_of_groups(scores: Scores, codes: Codes) -> Callable[..., Scores]:
    """The mean over the images of drawn groups, as SciPy calls a statistic: rows of group numbers."""
    sums, sizes = np.bincount(codes, weights=scores), np.bincount(codes)

    def statistic(drawn: Codes, axis: int = -1) -> Scores:
        mean: Scores = sums[drawn].sum(axis) / sizes[drawn].sum(axis)
        return mean

    return statistic


def _median_of_groups(scores: Scores, codes: Codes) -> Callable[..., Scores]:
    """The median over the images of drawn groups; as above."""
    count = int(codes.max()) + 1
    order = np.argsort(scores)
    ascending, group_of = scores[order], codes[order]

    def of_groups(drawn: Codes, axis: int = -1) -> Scores:  # noqa: ARG001  (SciPy names the axis)
        # How often each group was drawn, then where half of the images are counted off in ascending order.
        rows = np.arange(len(drawn))[:, None] * count
        times = np.bincount((drawn + rows).ravel(), minlength=len(drawn) * count).reshape(-1, count)
        passed = times[:, group_of].cumsum(axis=1)
        lower = (2 * passed >= passed[:, -1:]).argmax(axis=1)
        upper = (2 * passed > passed[:, -1:]).argmax(axis=1)
        median: Scores = (ascending[lower] + ascending[upper]) / 2
        return median

    def of_images(drawn: Codes, axis: int = -1) -> Scores:
        median: Scores = np.median(scores[drawn], axis=axis)
        return median

    return of_images if count == len(scores) else of_groups


def _scores(values: ArrayLike) -> Scores:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores are {scores.shape}; give a row of at least one number")
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite; decide what it counts first")
    return scores


def _codes(groups: Sequence[object] | None, n: int) -> Codes:
    """Each image's group as a number from 0; its own where there are no groups."""
    if groups is None:
        return np.arange(n)
    labels = list(groups)
    if len(labels) != n:
        raise ValueError(f"{len(labels)} groups for {n} scores; give one an image")
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], np.intp)
