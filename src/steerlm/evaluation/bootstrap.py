"""Bootstrap intervals over prompts or responses."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
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


def cluster_bootstrap(
    statistic: Callable[..., float],
    clusters: Sequence[Hashable] | NDArray[np.generic],
    *samples: Floats,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """As `bootstrap`, for entries that are not independent: whole clusters are drawn, such as all responses of one
    conversation. `clusters[i]` is the cluster of entry i of each sample.
    """
    _, number = np.unique(np.asarray(clusters), return_inverse=True)
    order = np.argsort(number, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)

    def of_clusters(chosen: Floats) -> float:
        entries = np.concatenate([members[int(index)] for index in chosen])
        return statistic(*(sample[entries] for sample in samples))

    return bootstrap(of_clusters, np.arange(len(members), dtype=np.float64), resamples=resamples, seed=seed)
