"""Agreement figures against computations by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steerlm.attributes import Attribute, Schema
from steerlm.training import metrics
from steerlm.training.metrics import agreement, agreement_by_attribute

NAN = math.nan


def test_by_hand() -> None:
    """Errors 1, -1, 0, 2: MAE 1, RMSE sqrt(6/4). Around the means 2.5 and 2: predicted -.5 -1.5 -.5 2.5, rated
    -1 0 0 1 (product sum 3, square sums 9 and 2): r = 3 / sqrt(18).
    """
    figures = agreement(np.array([2.0, 1.0, 2.0, 5.0]), np.array([1.0, 2.0, 2.0, 3.0]), baseline=2.5)
    assert figures["n"] == 4
    assert figures["mae"] == pytest.approx(1.0)
    assert figures["rmse"] == pytest.approx(math.sqrt(1.5))
    assert figures["pearson"] == pytest.approx(3 / math.sqrt(18))
    # Always 2.5: off by 1.5, .5, .5, .5.
    assert figures["baseline_mae"] == pytest.approx(0.75)
    assert figures["baseline_rmse"] == pytest.approx(math.sqrt(0.75))


def test_spearman_by_hand() -> None:
    """Ranks of 10 40 20 30 are 1 4 2 3; of 1 2 2 5, with the tie shared, 1 2.5 2.5 4. Around 2.5: product sum
    -1.5*-1.5 + 1.5*0 + -.5*0 + .5*1.5 = 3; square sums 5 and 4.5.
    """
    figures = agreement(np.array([10.0, 40.0, 20.0, 30.0]), np.array([1.0, 2.0, 2.0, 5.0]), baseline=0.0)
    assert figures["spearman"] == pytest.approx(3 / math.sqrt(5 * 4.5))


def pearson(xs: list[float], ys: list[float]) -> float:
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    products = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return products / math.sqrt(sum((x - x_mean) ** 2 for x in xs) * sum((y - y_mean) ** 2 for y in ys))


def ranks(values: list[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


@given(st.lists(st.tuples(st.integers(-8, 24), st.integers(0, 8)), min_size=3, max_size=12))
def test_correlations(pairs: list[tuple[int, int]]) -> None:
    predicted, rated = [x / 4 for x, _ in pairs], [y / 2 for _, y in pairs]
    figures = agreement(np.array(predicted), np.array(rated), baseline=1.0)
    if len(set(predicted)) == 1 or len(set(rated)) == 1:
        assert math.isnan(figures["pearson"])
        assert math.isnan(figures["spearman"])
    else:
        assert figures["pearson"] == pytest.approx(pearson(predicted, rated), abs=1e-9)
        assert figures["spearman"] == pytest.approx(pearson(ranks(predicted), ranks(rated)), abs=1e-9)


@pytest.mark.parametrize("pairs", [[(1, 2)], [(1, 2), (2, 3)], [(1, 2), (1, 3), (1, 4)], [(1, 2), (2, 2), (3, 2)]])
def test_correlations_that_mean_nothing_are_nan(pairs: list[tuple[float, float]]) -> None:
    predicted, rated = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    figures = agreement(predicted, rated, baseline=0.0)
    assert math.isnan(figures["pearson"])
    assert math.isnan(figures["spearman"])
    assert figures["mae"] == pytest.approx(np.mean([abs(a - b) for a, b in pairs]))


def test_by_attribute_leaves_out_what_nobody_rated() -> None:
    schema = Schema((Attribute("a"), Attribute("b"), Attribute("c")))
    predicted_RA = np.array([[1.0, 2.0, 0.0], [2.0, 9.0, 4.0], [3.0, 0.0, 1.0]])
    rated_RA = np.array([[1.0, NAN, NAN], [4.0, NAN, 3.0], [3.0, NAN, NAN]])
    figures = agreement_by_attribute(schema, predicted_RA, rated_RA, np.array([2.0, NAN, 1.0]))
    assert list(figures) == ["a", "c"]
    assert figures["a"]["n"] == 3
    assert figures["a"]["mae"] == pytest.approx(2 / 3)
    assert figures["a"]["baseline_mae"] == pytest.approx((1 + 2 + 1) / 3)
    assert (figures["c"]["n"], figures["c"]["mae"], figures["c"]["baseline_mae"]) == (1, 1.0, 2.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=30))
def test_correlations_agree_with_scipy(pairs: list[tuple[int, int]]) -> None:
    """Whole numbers, so that ties abound."""
    one, other = np.array(pairs, dtype=float).T
    varied = np.ptp(one) > 0 and np.ptp(other) > 0
    for ours, theirs in ((metrics.pearson, stats.pearsonr), (metrics.spearman, stats.spearmanr)):
        found = ours(one, other)
        assert found == pytest.approx(theirs(one, other).statistic) if varied else math.isnan(found)
