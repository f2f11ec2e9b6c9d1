"""Bootstrap intervals against what statistics says they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from steerlm.evaluation.bootstrap import (
    bootstrap,
    bootstrap_figures,
    cluster_bootstrap,
    draw_weights,
    mean_estimates,
)
from steerlm.training.metrics import pearson


def mean(sample: np.ndarray) -> float:
    return float(sample.mean())


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    sample = np.random.default_rng(0).normal(3, 2, 400)
    error = 1.96 * sample.std() / math.sqrt(400)
    found = bootstrap(mean, sample)
    assert found.value == sample.mean()
    assert found.low == pytest.approx(sample.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(sample.mean() + error, abs=0.1 * error)


def test_samples_are_paired() -> None:
    sample = np.random.default_rng(0).normal(size=50)
    assert bootstrap(lambda a, b: float((a - b).mean()), sample + 1, sample) == pytest.approx((1, 1, 1))


def test_draws_without_a_value_are_left_out() -> None:
    """One of five is 1: of the draws with a 1, six in ten have one of it, and one in a hundred more than three."""
    found = bootstrap(lambda a: float(a.mean()) if a.mean() > 0 else math.nan, np.array([0.0, 0.0, 0.0, 0.0, 1.0]))
    assert found == (0.2, 0.2, 0.6)
    assert all(math.isnan(value) for value in bootstrap(lambda a: math.nan, np.zeros(5)))


@pytest.mark.parametrize("units", [1, 4, 5])
def test_few_units_have_no_interval(units: int) -> None:
    """However many entries they have: 40 of one conversation would have an interval without a width."""
    clusters = np.arange(40) % units
    values = np.random.default_rng(0).normal(size=40)
    found = cluster_bootstrap(mean, clusters, values)
    [column] = mean_estimates(np.append(values[:units], np.nan)[:, None], draw_weights(units + 1))
    for estimate, value in ((found, values.mean()), (column, values[:units].mean())):
        assert estimate.value == pytest.approx(value)
        assert np.isfinite(estimate[1:]).tolist() == [units == 5] * 2
        assert ("[" in str(estimate)) is (units == 5)


def test_equal_entries_of_a_cluster_count_once() -> None:
    """Each of 60 values ten times: the interval is that of 60 values, not of 600, whatever the order of entries."""
    values = np.random.default_rng(1).normal(size=60)
    order = np.random.default_rng(2).permutation(600)
    clusters = np.repeat([f"c{k}" for k in range(60)], 10)[order]
    found = cluster_bootstrap(mean, clusters, np.repeat(values, 10)[order])
    expected = bootstrap(mean, values)
    width, naive = found.high - found.low, np.ptp(bootstrap(mean, np.repeat(values, 10))[1:])
    assert found.value == pytest.approx(expected.value)
    assert width == pytest.approx(expected.high - expected.low, rel=0.1)
    assert width > 2.5 * naive


def test_a_cluster_comes_whole() -> None:
    """Four clusters of 1 and one of 3: a draw with the latter k times has 5 + 2k entries."""
    sizes = set()
    clusters = [7, 5, 5, 5, 1, 2, 3]
    cluster_bootstrap(lambda a: float(sizes.add(len(a)) or 0.0), clusters, np.arange(7.0))  # type: ignore[func-returns-value]
    assert {5, 7, 9, 11} <= sizes <= set(range(5, 16, 2))


def test_several_figures_of_the_same_draws() -> None:
    """A figure has the interval that it has alone, and a difference is that of the same draws."""
    values = np.random.default_rng(3).normal(size=(80, 2))
    clusters = np.repeat(np.arange(20), 4)

    def figures(entries: np.ndarray) -> np.ndarray:
        one, other = values[entries].mean(axis=0)
        return np.array([one, other, one - other])

    found = bootstrap_figures(figures, clusters)
    assert found[0] == pytest.approx(cluster_bootstrap(mean, clusters, values[:, 0]))
    difference = cluster_bootstrap(lambda a, b: float((a - b).mean()), clusters, values[:, 0], values[:, 1])
    assert found[2] == pytest.approx(difference)


@pytest.mark.parametrize("statistic", ["mean", "pearson"])
def test_intervals_agree_with_scipy(statistic: str) -> None:
    """Scipy's percentile bootstrap of the same data has the same interval, up to the noise of its draws."""
    random = np.random.default_rng(4)
    x = random.normal(size=120)
    y = x + random.normal(size=120)
    of = (lambda a, b: float((a + b).mean())) if statistic == "mean" else pearson
    theirs = stats.bootstrap(
        (x, y), of, paired=True, vectorized=False, method="percentile", n_resamples=2000, rng=np.random.default_rng(5)
    ).confidence_interval
    ours = bootstrap(of, x, y)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)
