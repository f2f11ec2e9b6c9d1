"""Bootstrap intervals over prompts or responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure with the ends of its 95% interval (percentile bootstrap)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(statistic: Callable[..., float], *samples: Floats, resamples: int = 2000, seed: int = 0) -> Estimate:
    """`statistic(*samples)` with its interval. The samples are paired: entry i of each belongs to unit i, and units
    are drawn with replacement. Resamples on which the statistic is not finite are left out.
    """
    random = np.random.default_rng(seed)
    size = len(samples[0])
    draws = []
    for _ in range(resamples):
        chosen = random.integers(0, size, size)
        value = statistic(*(sample[chosen] for sample in samples))
        if np.isfinite(value):
            draws.append(value)
    low, high = np.percentile(draws, [2.5, 97.5]) if draws else (np.nan, np.nan)
    return Estimate(float(statistic(*samples)), float(low), float(high))
