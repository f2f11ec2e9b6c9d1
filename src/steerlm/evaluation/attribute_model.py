"""How far an attribute model agrees with people, beside what agrees without understanding anything.

Shapes: R responses, A attributes, S statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from steerlm.annotation import Scorer, ScoreSettings
from steerlm.attributes import Attribute
from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.evaluation.baselines import Baselines, baselines, ridges, text_statistics
from steerlm.evaluation.bootstrap import Estimate, bootstrap_figures, cluster_bootstrap
from steerlm.evaluation.invariance import check_invariance
from steerlm.evaluation.preferences import SCALAR_WEIGHTS, Preference, Preferences
from steerlm.evaluation.responses import RatedResponses, rated_responses
from steerlm.files import sha256
from steerlm.models.load import SteerModel
from steerlm.provenance import environment
from steerlm.training.metrics import mean_error, pearson, root_mean_square, spearman

Floats = NDArray[np.float64]
STATISTICS: dict[str, Callable[[Floats, Floats], float]] = {
    "mae": mean_error,
    "rmse": root_mean_square,
    "pearson": pearson,
    "spearman": spearman,
}
_SWAP_MARGIN = 0.05


class AttributeEvaluationSettings(ScoreSettings):
    """How an attribute model is evaluated."""

    weights: dict[str, float] = Field(default_factory=lambda: dict(SCALAR_WEIGHTS))
    """Weights of the attributes in the one figure that ranks the two responses of a preference row; those of
    Llama3-70B-SteerLM-RM unless given."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Draws of conversations behind each interval."""
    seed: int = 0
    """Seed of the draws."""
    invariance: Annotated[int, Field(ge=0)] = 24
    """Responses to check for scores that change with what is scored beside them; 0 leaves the check out."""


@dataclass(frozen=True)
class Evaluated:
    """Rated responses that were scored, with the scores of the model, [R, A]; `unscored` were too long."""

    responses: RatedResponses
    predicted_RA: Floats
    unscored: int


def evaluate_attributes(
    model: SteerModel,
    conversations: Sequence[Conversation],
    settings: AttributeEvaluationSettings | None = None,
    train: Sequence[Conversation] | None = None,
    preferences: Mapping[str, Preferences] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything that is known of an attribute model from rated conversations and preference data, as plain data.

    The baselines are fitted on `train`, or without it on the evaluated data by cross-validation. Raises `DataError`
    where there is nothing to compare with.
    """
    settings = settings or AttributeEvaluationSettings()
    scorer = Scorer(model, settings)
    known = rated_responses(train, model.schema) if train else None
    record: dict[str, Any] = {"kind": "attributes", "model": model.info.fingerprint}
    rated = [c for c in conversations if any(model.schema.known(c.messages[i].ratings) for i in c.responses)]
    if conversations and not rated:
        raise DataError(f"no response is rated on any of {', '.join(model.schema.names)}; give rated conversations")
    if not rated and not preferences:
        raise DataError("nothing to evaluate on; give rated conversations or preference files")
    if rated:
        say(f"scoring {len(rated)} conversations")
        evaluated = score_rated(scorer, rated)
        fitted = baselines(evaluated.responses, known)
        say("figures and their intervals")
        record |= {
            "responses": len(evaluated.responses),
            "conversations": len(rated),
            "unscored": evaluated.unscored,
            "baselines_fitted_on": fitted.fitted_on,
            "attributes": attribute_figures(evaluated, fitted, settings),
            "swapped_outputs": swapped_outputs(evaluated, settings),
        }
    if preferences:
        predictors = ridges(known) if known else {}
        record["preferences"] = {
            name: preference_figures(scorer, found, settings, predictors) for name, found in preferences.items()
        }
    if settings.invariance:
        say("invariance")
        some = rated or [pair.conversation for found in (preferences or {}).values() for pair in found.pairs]
        record["invariance"] = [
            check.record() for check in check_invariance(model, some, settings, settings.invariance)
        ]
        if not record["invariance"]:
            say("invariance is not checked: no response fits into the context")
    return {**record, "settings": settings.model_dump(mode="json"), **environment()}


def score_rated(scorer: Scorer, conversations: Sequence[Conversation]) -> Evaluated:
    """Score the rated responses; those too long for the context are left out and counted."""
    responses = rated_responses(conversations, scorer.model.schema)
    values = scorer.score(conversations).values
    names = scorer.model.schema.names
    scored_R = np.array([message in values[number] for number, message in responses.places])
    if not scored_R.any():
        raise DataError("all rated responses are longer than the model's context; raise --context")
    kept = responses.only(scored_R)
    predicted_RA = np.array([[values[number][message][name] for name in names] for number, message in kept.places])
    return Evaluated(kept, predicted_RA, int((~scored_R).sum()))


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
        predicted_R, owner_R = columns["model"][present_R], responses.group_R[present_R]
        found[attribute.name] = {
            "overall": overall,
            "sources": by_source,
            "calibration": calibration(attribute, predicted_R, rated_R[present_R], owner_R, settings),
            "confusion": confusion(attribute, predicted_R, rated_R[present_R]),
            "ranking": _ranking(responses, columns, column, settings),
            **_verdict(overall),
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


def _verdict(figures: Mapping[str, Any]) -> dict[str, Any]:
    """A model beats a baseline where the 95% interval of (its RMSE less the model's) lies above 0. None where nothing
    can be said: there was no rating to fit the baseline on, or a single conversation, which leaves no interval.
    """
    beats = {
        name: gain["low"] > 0 if figures["independent"] > 1 and np.isfinite(gain["low"]) else None
        for name, gain in figures["rmse_gain"].items()
    }
    what = {"mean": "the mean rating", "ridge": "a ridge regression on length and text statistics"}
    lost = [what[name] for name, beaten in beats.items() if beaten is False]
    if None in beats.values():
        return {"beats": beats, "verdict": "not compared"}
    return {"beats": beats, "verdict": f"does not beat {' and '.join(lost)}" if lost else "beats both baselines"}


def calibration(
    attribute: Attribute, predicted_R: Floats, rated_R: Floats, owner_R: NDArray[np.int64], settings: Any
) -> list[dict[str, Any]]:
    """For each level, of the predictions nearest to it: their number, their mean, and the mean rating by people."""
    bins_R = np.array([attribute.level(value) for value in predicted_R])
    rows = []
    for level in attribute.levels:
        in_R = bins_R == level
        if in_R.any():
            mean = cluster_bootstrap(
                lambda values: float(values.mean()), owner_R[in_R], rated_R[in_R], resamples=settings.resamples
            )
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
    """Counts of responses by rounded rating (rows) and rounded prediction (columns), in the order of the levels."""
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
    """How often a pair of responses to one prompt is ranked as people ranked it; also by length alone."""
    pairs = ranked_pairs(responses, column)
    if not len(pairs):
        return None
    owner_P = responses.group_R[pairs[:, 0]]
    lengths = np.array([float(len(text)) for text in responses.texts])
    by = {"model": columns["model"], "ridge": columns["ridge"], "length": lengths}
    accuracy = {
        name: cluster_bootstrap(
            lambda wins: float(wins.mean()),
            owner_P,
            won(values[pairs[:, 0]], values[pairs[:, 1]]),
            resamples=settings.resamples,
            seed=settings.seed,
        )._asdict()
        for name, values in by.items()
    }
    return {"pairs": len(pairs), **accuracy}


def swapped_outputs(evaluated: Evaluated, settings: AttributeEvaluationSettings) -> dict[str, Any]:
    """Whether another order of the outputs agrees better with the ratings: outputs that were mixed up show here.

    `order[a]` is the output that fits attribute a best when each is used once; `found` says that its mean correlation
    with the ratings is above that of the model's own order by at least 0.05, with the 95% interval above 0.
    """
    responses, names = evaluated.responses, evaluated.responses.schema.names
    rated_RA, predicted_RA = responses.rated_RA, evaluated.predicted_RA
    rated = [a for a in range(len(names)) if (~np.isnan(rated_RA[:, a])).sum() >= 3 and np.nanstd(rated_RA[:, a]) > 0]
    if len(rated) < 2:
        return {"found": False, "order": {}, "gain": None}
    fit_AA = np.array([[_correlation(predicted_RA[:, b], rated_RA[:, a]) for b in range(len(names))] for a in rated])
    rows, best = linear_sum_assignment(-np.nan_to_num(fit_AA, nan=-1.0))
    order = {names[rated[row]]: names[column] for row, column in zip(rows, best, strict=True)}

    def gain(entries: NDArray[np.int64]) -> Floats:
        total = [
            _correlation(predicted_RA[entries, column], rated_RA[entries, rated[row]])
            - _correlation(predicted_RA[entries, rated[row]], rated_RA[entries, rated[row]])
            for row, column in zip(rows, best, strict=True)
        ]
        return np.array([np.nanmean(total) if not np.all(np.isnan(total)) else np.nan])

    estimate = bootstrap_figures(gain, responses.group_R, settings.resamples, settings.seed)[0]
    moved = {name: output for name, output in order.items() if name != output}
    return {
        "found": bool(moved) and estimate.low > 0 and estimate.value >= _SWAP_MARGIN,
        "order": moved,
        "gain": estimate._asdict(),
    }


def _correlation(predicted_R: Floats, rated_R: Floats) -> float:
    present_R = ~np.isnan(rated_R)
    return pearson(predicted_R[present_R], rated_R[present_R])


def preference_figures(
    scorer: Scorer,
    preferences: Preferences,
    settings: AttributeEvaluationSettings,
    predictors: Mapping[str, Callable[[Floats], Floats]],
) -> dict[str, Any]:
    """How often the weighted sum of attributes, and each attribute, is higher for the preferred response; also that
    sum of what the ridge regressions `predictors` say, where there is one for each weighed attribute, and the length.
    """
    schema = scorer.model.schema
    weights = {name: weight for name, weight in settings.weights.items() if name in schema}
    if not weights:
        raise DataError(
            f"none of the weights ({', '.join(settings.weights)}) is of an attribute that the model knows "
            f"({', '.join(schema.names)}); give others with --weights"
        )
    values = scorer.score([pair.conversation for pair in preferences.pairs]).values
    kept = [
        (pair, scores)
        for pair, scores in zip(preferences.pairs, values, strict=True)
        if all(index in scores for index in pair.pair)
    ]
    if not kept:
        raise DataError("all pairs of the preference data are longer than the model's context; raise --context")
    figures: dict[str, NDArray[np.float64]] = {}
    for name, weighed in {"weighted sum": weights, **{name: {name: 1.0} for name in schema.names}}.items():
        table = np.array([[_weighed(scores[index], weighed) for index in pair.pair] for pair, scores in kept])
        figures[name] = won(table[:, 0], table[:, 1])
    pairs = [pair for pair, _ in kept]
    if all(name in predictors for name in weights):
        sums = _ridge_sums(pairs, weights, predictors)
        figures["ridge"] = won(sums[:, 0], sums[:, 1])
    lengths = np.array([[len(pair.conversation.messages[index].text) for index in pair.pair] for pair, _ in kept])
    figures["length"] = won(lengths[:, 0].astype(float), lengths[:, 1].astype(float))
    prompts = np.array([_prompt_of(pair.conversation) for pair, _ in kept])
    subset_P = np.array([pair.subset for pair, _ in kept])
    subsets = np.unique(subset_P)
    return {
        "pairs": len(kept),
        "ties": preferences.ties,
        "unscored": len(preferences.pairs) - len(kept),
        "weights": weights,
        "accuracy": {name: _mean(wins, prompts, settings)._asdict() for name, wins in figures.items()},
        "subsets": {
            str(subset): {
                name: _mean(figures[name][subset_P == subset], prompts[subset_P == subset], settings)._asdict()
                for name in ("weighted sum", "ridge", "length")
                if name in figures
            }
            for subset in (subsets if len(subsets) > 1 else ())
        },
    }


def _ridge_sums(
    pairs: Sequence[Preference], weights: Mapping[str, float], predictors: Mapping[str, Callable[[Floats], Floats]]
) -> Floats:
    """The weighted sums of what the ridge regressions say of the two responses of each pair, [P, 2]."""
    features = []
    for pair in pairs:
        *_, prompt, better, worse = pair.conversation.messages
        features += [text_statistics(better.text, prompt.text), text_statistics(worse.text, prompt.text)]
    table = np.array(features, dtype=np.float64)
    sums = np.sum([weight * predictors[name](table) for name, weight in weights.items()], axis=0)
    return np.asarray(sums).reshape(-1, 2)


def _weighed(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return sum(weight * scores[name] for name, weight in weights.items())


def _mean(values: Floats, clusters: NDArray[np.str_], settings: AttributeEvaluationSettings) -> Estimate:
    return cluster_bootstrap(
        lambda sample: float(sample.mean()), clusters, values, resamples=settings.resamples, seed=settings.seed
    )


def _prompt_of(conversation: Conversation) -> str:
    return "\n".join(message.text for message in conversation.messages[:-2])


def distinct_names(paths: Sequence[Path]) -> dict[Path, str]:
    """For each file as few of the last parts of its path as no other file's path ends in; a file's whole path where it
    is the end of another's.
    """
    files = list(dict.fromkeys(paths))
    names = {}
    for path in files:
        endings = [path.parts[-count:] for count in range(1, len(path.parts) + 1)]
        others = [other.parts for other in files if other != path]
        own = (ending for ending in endings if not any(other[-len(ending) :] == ending for other in others))
        names[path] = str(Path(*next(own, path.parts)))
    return names


def data_provenance(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Names and digests of data files."""
    return [{"name": name, "sha256": sha256(path)} for path, name in distinct_names(paths).items()]
