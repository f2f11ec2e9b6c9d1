"""Agreement of an attribute model's scores with preferences between two responses. Shapes: P pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerlm.annotation import Scorer
from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.errors import ConfigError, DataError
from steerlm.evaluation.agreement import mean_estimate, ranking_gains, won
from steerlm.evaluation.attribute_settings import AttributeEvaluationSettings
from steerlm.evaluation.baselines import text_statistics
from steerlm.evaluation.preferences import Preference, Preferences

Floats = NDArray[np.float64]


def preference_figures(
    scorer: Scorer,
    preferences: Preferences,
    weights: Mapping[str, float],
    settings: AttributeEvaluationSettings,
    predictors: Mapping[str, Callable[[Floats], Floats]],
) -> dict[str, Any]:
    """How often the sum of attributes with these weights, and each attribute, is higher for the preferred response;
    also that sum of what the ridge regressions `predictors` say, where there is one for each weighed attribute, and the
    length; and whether the weighted sum beats these.
    """
    schema = scorer.model.schema
    scored = scorer.score([pair.conversation for pair in preferences.pairs])
    kept = [
        (pair, scores)
        for pair, scores in zip(preferences.pairs, scored.values, strict=True)
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
    compared = {name: wins for name, wins in figures.items() if name in ("weighted sum", "ridge", "length")}
    parts = {str(subset): subset_P == subset for subset in (subsets if len(subsets) > 1 else ())}
    return {
        "pairs": len(kept),
        "ties": preferences.ties,
        "unscored": len(preferences.pairs) - len(kept),
        "truncated": scored.report.truncated,
        "weights": dict(weights),
        "accuracy": {name: mean_estimate(wins, prompts, settings)._asdict() for name, wins in figures.items()},
        **ranking_gains(compared, "weighted sum", prompts, settings),
        "subsets": {
            name: {
                by: mean_estimate(wins[part_P], prompts[part_P], settings)._asdict() for by, wins in compared.items()
            }
            for name, part_P in parts.items()
        },
        "subset_gains": {
            name: ranking_gains(
                {by: wins[part_P] for by, wins in compared.items()}, "weighted sum", prompts[part_P], settings
            )
            for name, part_P in parts.items()
        },
    }


def attribute_weights(settings: AttributeEvaluationSettings, schema: Schema) -> dict[str, float]:
    """The weights of attributes that the model knows. Raises `ConfigError` where some that were given are of others, or
    none of the default ones is left.
    """
    weights = {name: weight for name, weight in settings.weights.items() if name in schema}
    unknown = [name for name in settings.weights if name not in schema]
    if unknown and "weights" in settings.model_fields_set:
        raise ConfigError(
            f"--weights: the model does not know {', '.join(unknown)}; give weights of attributes that it knows "
            f"({', '.join(schema.names)})"
        )
    if not weights:
        raise ConfigError(
            f"none of the weights ({', '.join(settings.weights)}) is of an attribute that the model knows "
            f"({', '.join(schema.names)}); give others with --weights"
        )
    return weights


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


def _prompt_of(conversation: Conversation) -> str:
    return "\n".join(message.text for message in conversation.messages[:-2])
