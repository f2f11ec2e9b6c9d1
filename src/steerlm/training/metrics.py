"""How well predicted attribute values agree with human ratings. Shapes: R responses, A attributes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerlm.attributes import Schema

Floats = NDArray[np.float64]


def pearson(first: Floats, second: Floats) -> float:
    """The correlation of two samples [R]; NaN where either does not vary, or R < 3.

    Written out, as scipy's takes as long again for p-values, and an interval asks for thousands.
    """
    if len(first) < 3 or first.min() == first.max() or second.min() == second.max():
        return math.nan
    first, second = first - first.mean(), second - second.mean()
    product = float(np.sqrt(first @ first) * np.sqrt(second @ second))
    return float(np.clip(first @ second / product, -1.0, 1.0)) if product > 0 else math.nan


def spearman(first: Floats, second: Floats) -> float:
    """The correlation of the ranks, ties sharing theirs; NaN as for `pearson`."""
    return pearson(_ranks(first), _ranks(second)) if len(first) else math.nan


def _ranks(sample: Floats) -> Floats:
    """From 1; equal entries share the mean of theirs."""
    _, place, counts = np.unique(sample, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def mean_error(predicted: Floats, rated: Floats) -> float:
    """The mean absolute error."""
    return float(np.abs(predicted - rated).mean())


def root_mean_square(predicted: Floats, rated: Floats) -> float:
    """The root of the mean squared error."""
    return float(np.sqrt(np.square(predicted - rated).mean()))


def agreement(predicted: Floats, rated: Floats, baseline: float) -> dict[str, float]:
    """MAE, RMSE, Pearson and Spearman of one attribute, beside the errors of always predicting `baseline`.

    Both arrays have shape [R] and hold no NaN. A correlation is NaN where either side does not vary, or R < 3.
    """
    always = np.full_like(rated, baseline)
    return {
        "n": len(rated),
        "mae": mean_error(predicted, rated),
        "rmse": root_mean_square(predicted, rated),
        "pearson": pearson(predicted, rated),
        "spearman": spearman(predicted, rated),
        "baseline_mae": mean_error(always, rated),
        "baseline_rmse": root_mean_square(always, rated),
    }


def agreement_by_attribute(schema: Schema, predicted_RA: Floats, rated_RA: Floats, means_A: Floats) -> dict[str, Any]:
    """`agreement` of every attribute that has ratings in `rated_RA` (NaN marks a missing one)."""
    figures = {}
    for column, attribute in enumerate(schema):
        present_R = ~np.isnan(rated_RA[:, column])
        if present_R.any():
            figures[attribute.name] = agreement(
                predicted_RA[present_R, column], rated_RA[present_R, column], float(means_A[column])
            )
    return figures
