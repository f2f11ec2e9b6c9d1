"""Agreement of an attribute model's scores with people's ratings, with intervals.

Shapes: R responses, A attributes, P pairs of responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from steerlm.attributes import Attribute
from steerlm.evaluation.attribute_settings import AttributeEvaluationSettings
from steerlm.evaluation.baselines import Baselines, folds
from steerlm.evaluation.bootstrap import MIN_CLUSTERS, Estimate, bootstrap_figures, cluster_bootstrap
from steerlm.evaluation.responses import RatedResponses
from steerlm.training.metrics import mean_error, pearson, root_mean_square, spearman

Floats = NDArray[np.float64]
STATISTICS: dict[str, Callable[[Floats, Floats], float]] = {
    "mae": mean_error,
    "rmse": root_mean_square,
    "pearson": pearson,
    "spearman": spearman,
}
BASELINES = {
    "mean": "the mean rating",
    "ridge": "a ridge regression on length and text statistics",
    "length": "length alone",
}
_SWAP_MARGIN = 0.05


@dataclass(frozen=True)
class Evaluated:
    """Rated responses that were scored, with the scores of the model, [R, A]; `unscored` were too long. `truncated`
    responses of the same conversations, rated or not, were scored without their oldest turns.
    """

    responses: RatedResponses
    predicted_RA: Floats
    unscored: int
    truncated: int = 0


def attribute_figures(
    evaluated: Evaluated, fitted: Baselines, settings: AttributeEvaluationSettings
) -> dict[str, dict[str, Any]]:
    """Per attribute: agreement with people per source and over all, calibration, confusion, ranking, the verdict."""
    found: dict[str, dict[str, Any]] = {}
    responses = evaluated.responses
    for column, attribute in enumerate(responses.schema):
        present_R = ~np.isnan(responses.rated_RA[:, column])
        if not present_R.any():
            continue
        columns = {
            "model": evaluated.predicted_RA[:, column],
            "mean": fitted.mean_RA[:, column],
            "ridge": fitted.ridge_RA[:, column],
        }
        rated_R = responses.rated_RA[:, column]
        overall = _agreement(responses, columns, column, present_R, settings)
        sources = np.unique(responses.source_R[present_R])
        by_source = {
            str(source): _agreement(responses, columns, column, present_R & (responses.source_R == source), settings)
            for source in (sources if len(sources) > 1 else ())
        }
        for part in by_source.values():
            part |= verdict(part["rmse_gain"], part["independent"])
        predicted_R, owner_R = columns["model"][present_R], responses.group_R[present_R]
        found[attribute.name] = {
            "overall": overall,
            "sources": by_source,
            "calibration": calibration(attribute, predicted_R, rated_R[present_R], owner_R, settings),
            "levels": list(attribute.levels),
            "confusion": confusion(attribute, predicted_R, rated_R[present_R]),
            "ranking": _ranking(responses, columns, column, settings),
            **verdict(overall["rmse_gain"], overall["independent"]),
        }
    return found


def _agreement(
    responses: RatedResponses,
    columns: Mapping[str, Floats],
    column: int,
    part_R: NDArray[np.bool_],
    settings: AttributeEvaluationSettings,
) -> dict[str, Any]:
    """On some of the responses: statistics of the model with intervals, those of the baselines, and, from the same
    draws, how much more the baselines err.
    """
    predicted = {who: values[part_R] for who, values in columns.items()}
    rated_R, owner_R = responses.rated_RA[part_R, column], responses.group_R[part_R]
    model_R, *others = predicted.values()

    def figures(entries: NDArray[np.int64]) -> Floats:
        own = [statistic(model_R[entries], rated_R[entries]) for statistic in STATISTICS.values()]
        rmse = own[list(STATISTICS).index("rmse")]
        return np.array([*own, *(root_mean_square(other[entries], rated_R[entries]) - rmse for other in others)])

    estimates = [
        estimate._asdict() for estimate in bootstrap_figures(figures, owner_R, settings.resamples, settings.seed)
    ]
    name, *baseline_names = predicted
    return {
        "n": len(rated_R),
        "conversations": len(np.unique(responses.conversation_R[part_R])),
        "independent": len(np.unique(owner_R)),
        name: dict(zip(STATISTICS, estimates, strict=False)),
        **{
            other: {statistic: of(predicted[other], rated_R) for statistic, of in STATISTICS.items()}
            for other in baseline_names
        },
        "rmse_gain": dict(zip(baseline_names, estimates[len(STATISTICS) :], strict=True)),
    }


def verdict(gains: Mapping[str, Mapping[str, float]], independent: int) -> dict[str, Any]:
    """A model beats a baseline where the 95% interval of what it gains over it, in the same draws, lies above 0: of
    (the baseline's RMSE less the model's), or of (the model's accuracy less the baseline's). None where nothing can be
    said: there was no rating to fit the baseline on, or fewer than `MIN_CLUSTERS` independent units to draw.
    """
    if independent < MIN_CLUSTERS:
        too_few = f"too few to compare ({independent} independent of at least {MIN_CLUSTERS})"
        return {"beats": dict.fromkeys(gains), "verdict": too_few}
    beats = {name: gain["low"] > 0 if np.isfinite(gain["low"]) else None for name, gain in gains.items()}
    lost = [BASELINES[name] for name, beaten in beats.items() if beaten is False]
    if None in beats.values():
        return {"beats": beats, "verdict": "not compared"}
    beaten = "both baselines" if len(beats) > 1 else " ".join(BASELINES[name] for name in beats)
    return {"beats": beats, "verdict": f"does not beat {' and '.join(lost)}" if lost else f"beats {beaten}"}


def calibration(
    attribute: Attribute, predicted_R: Floats, rated_R: Floats, owner_R: NDArray[np.int64], settings: Any
) -> list[dict[str, Any]]:
    """For each level, of the predictions nearest to it: their number, their mean, and the mean rating by people."""
    bins_R = np.array([attribute.level(value) for value in predicted_R])
    rows = []
    for level in attribute.levels:
        in_R = bins_R == level
        if in_R.any():
            mean = mean_estimate(rated_R[in_R], owner_R[in_R], settings)
            rows.append(
                {
                    "level": level,
                    "n": int(in_R.sum()),
                    "predicted": float(predicted_R[in_R].mean()),
                    "rated": mean._asdict(),
                }
            )
    return rows


def confusion(attribute: Attribute, predicted_R: Floats, rated_R: Floats) -> list[list[int]]:
    """Counts of responses by rounded rating (rows) and rounded prediction (columns), in the order of its levels."""
    table = np.zeros((len(attribute.levels),) * 2, dtype=int)
    for rated, predicted in zip(rated_R, predicted_R, strict=True):
        table[attribute.level(rated) - attribute.low, attribute.level(predicted) - attribute.low] += 1
    return [[int(count) for count in row] for row in table]


def ranked_pairs(responses: RatedResponses, column: int) -> NDArray[np.int64]:
    """Pairs (higher rated, lower rated) of responses to the same prompt whose ratings differ, [P, 2]."""
    rated_R = responses.rated_RA[:, column]
    groups: dict[int, list[int]] = {}
    for index in np.flatnonzero(~np.isnan(rated_R)):
        groups.setdefault(int(responses.prompt_R[index]), []).append(int(index))
    pairs = [
        (one, other) for group in groups.values() for one in group for other in group if rated_R[one] > rated_R[other]
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def won(higher: Floats, lower: Floats) -> Floats:
    """1 where the first is above the second, 0 where below, a half where equal."""
    return np.where(higher > lower, 1.0, np.where(higher < lower, 0.0, 0.5))


def _ranking(
    responses: RatedResponses, columns: Mapping[str, Floats], column: int, settings: AttributeEvaluationSettings
) -> dict[str, Any] | None:
    """How often a pair of responses to one prompt is ranked as people ranked it; also by length alone, and by the ridge
    where it could be fitted.
    """
    pairs = ranked_pairs(responses, column)
    if not len(pairs):
        return None
    owner_P = responses.group_R[pairs[:, 0]]
    lengths = np.array([float(len(text)) for text in responses.texts])
    fitted = {"ridge": columns["ridge"]} if np.isfinite(columns["ridge"][pairs]).all() else {}
    by = {"model": columns["model"], **fitted, "length": lengths}
    wins = {name: won(values[pairs[:, 0]], values[pairs[:, 1]]) for name, values in by.items()}
    accuracy = {name: mean_estimate(found, owner_P, settings)._asdict() for name, found in wins.items()}
    return {"pairs": len(pairs), **accuracy, **ranking_gains(wins, "model", owner_P, settings)}


def ranking_gains(
    wins: Mapping[str, Floats], own: str, clusters: NDArray[Any], settings: AttributeEvaluationSettings
) -> dict[str, Any]:
    """How much more often than each baseline `own` ranks the same pairs as people did, and the verdict."""
    gains = {
        name: mean_estimate(wins[own] - wins[name], clusters, settings)._asdict() for name in BASELINES if name in wins
    }
    return {"gain": gains, **verdict(gains, len(np.unique(clusters)))}


def mean_estimate(values: Floats, clusters: NDArray[Any], settings: AttributeEvaluationSettings) -> Estimate:
    """The mean with its interval, from drawing whole clusters."""
    return cluster_bootstrap(
        lambda sample: float(sample.mean()), clusters, values, resamples=settings.resamples, seed=settings.seed
    )


def swapped_outputs(evaluated: Evaluated, settings: AttributeEvaluationSettings) -> dict[str, Any]:
    """Whether another order of the outputs agrees better with the ratings: outputs that were mixed up show here.

    `order[a]` is the output that fits attribute a best when each is used once, where that is not its own; `found` says
    that over these attributes the mean correlation with the ratings is above that of the model's own order by at least
    0.05, with the 95% interval above 0. The order is chosen on some of the conversations and compared on the others: of
    so many orders the best one always looks better where it was chosen. Where fewer than two attributes are rated, or
    fewer than `MIN_CLUSTERS` independent conversations are left to compare on, nothing is looked for, and `unchecked`
    says why. `gain` is None then, and where the model's own order is the best.
    """
    responses, names = evaluated.responses, evaluated.responses.schema.names
    rated_RA, predicted_RA = responses.rated_RA, evaluated.predicted_RA
    rated = [a for a in range(len(names)) if (~np.isnan(rated_RA[:, a])).sum() >= 3 and np.nanstd(rated_RA[:, a]) > 0]
    choosing_R = folds(responses.group_R) % 2 == 0
    comparing = np.flatnonzero(~choosing_R)
    independent = len(np.unique(responses.group_R[comparing]))
    nothing: dict[str, Any] = {"found": False, "order": {}, "gain": None, "unchecked": None}
    if len(rated) < 2:
        return nothing | {"unchecked": "fewer than two attributes have ratings that differ"}
    if independent < MIN_CLUSTERS:
        few = f"too few conversations ({independent} independent ones to compare on, of at least {MIN_CLUSTERS})"
        return nothing | {"unchecked": few}
    own_RA, fit_RA = predicted_RA[choosing_R], rated_RA[choosing_R]
    fit_AA = np.array([[_correlation(own_RA[:, b], fit_RA[:, a]) for b in range(len(names))] for a in rated])
    rows, best = linear_sum_assignment(-np.nan_to_num(fit_AA, nan=-1.0))
    moved = [(rated[row], column) for row, column in zip(rows, best, strict=True) if rated[row] != column]
    if not moved:
        return nothing

    def gain(entries: NDArray[np.int64]) -> Floats:
        chosen = comparing[entries]
        total = [
            _correlation(predicted_RA[chosen, output], rated_RA[chosen, attribute])
            - _correlation(predicted_RA[chosen, attribute], rated_RA[chosen, attribute])
            for attribute, output in moved
        ]
        return np.array([np.nanmean(total) if not np.all(np.isnan(total)) else np.nan])

    estimate = bootstrap_figures(gain, responses.group_R[comparing], settings.resamples, settings.seed)[0]
    return nothing | {
        "found": estimate.low > 0 and estimate.value >= _SWAP_MARGIN,
        "order": {names[attribute]: names[output] for attribute, output in moved},
        "gain": estimate._asdict(),
    }


def _correlation(predicted_R: Floats, rated_R: Floats) -> float:
    present_R = ~np.isnan(rated_R)
    return pearson(predicted_R[present_R], rated_R[present_R])
