"""How well predicted attribute values agree with human ratings. Shapes: R responses, A attributes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from steerlm.attributes import Schema

Floats = NDArray[np.float64]


def agreement(predicted: Floats, rated: Floats, baseline: float) -> dict[str, float]:
    """MAE, RMSE, Pearson and Spearman of one attribute, beside the errors of always predicting `baseline`.

    Both arrays have shape [R] and hold no NaN. A correlation is NaN where either side does not vary, or R < 3.
    """
    varied = len(rated) >= 3 and np.ptp(predicted) > 0 and np.ptp(rated) > 0
    return {
        "n": len(rated),
        "mae": float(np.abs(predicted - rated).mean()),
        "rmse": float(np.sqrt(np.square(predicted - rated).mean())),
        "pearson": float(stats.pearsonr(predicted, rated).statistic) if varied else math.nan,
        "spearman": float(stats.spearmanr(predicted, rated).statistic) if varied else math.nan,
        "baseline_mae": float(np.abs(baseline - rated).mean()),
        "baseline_rmse": float(np.sqrt(np.square(baseline - rated).mean())),
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
