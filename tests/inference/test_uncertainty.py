"""The mean entropy of a probability map."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bernoulli

from polypseg.inference.uncertainty import mean_entropy


def test_it_is_the_mean_of_what_scipy_computes() -> None:
    probability = np.random.default_rng(1).random((9, 7)).astype(np.float32)
    assert mean_entropy(probability) == pytest.approx(np.mean(bernoulli.entropy(probability)) / np.log(2), abs=1e-6)


def test_it_is_0_where_the_model_is_sure_and_1_where_it_knows_nothing() -> None:
    sure = np.array([[0, 1], [1, 0]], np.float32)
    assert mean_entropy(sure) == pytest.approx(0, abs=1e-5) and mean_entropy(np.full((2, 2), 0.5, np.float32)) == 1
    half = np.array([[0.5, 0.5], [0, 1]], np.float32)
    outside = np.array([[True, True], [False, False]])
    assert mean_entropy(half) == pytest.approx(0.5, abs=1e-5)
    assert mean_entropy(half, outside) == pytest.approx(0, abs=1e-5)
    assert mean_entropy(half, np.ones((2, 2), bool)) == 0
