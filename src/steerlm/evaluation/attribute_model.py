"""How far an attribute model agrees with people, beside what agrees without understanding anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steerlm.annotation import Scorer
from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.evaluation.agreement import Evaluated, attribute_figures, swapped_outputs
from steerlm.evaluation.attribute_settings import AttributeEvaluationSettings
from steerlm.evaluation.baselines import baselines, ridges
from steerlm.evaluation.invariance import check_invariance
from steerlm.evaluation.preference_agreement import attribute_weights, preference_figures
from steerlm.evaluation.preferences import Preferences
from steerlm.evaluation.responses import rated_responses
from steerlm.models.load import SteerModel
from steerlm.provenance import environment


def evaluate_attributes(
    model: SteerModel,
    conversations: Sequence[Conversation],
    settings: AttributeEvaluationSettings | None = None,
    train: Sequence[Conversation] | None = None,
    preferences: Mapping[str, Preferences] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything that is known of an attribute model from rated conversations and preference data, as plain data.

    The baselines are fitted on `train`, or without it on the evaluated data, see `baselines`. Raises `DataError` where
    there is nothing to compare with, `ConfigError` for weights of unknown attributes.
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
    weights = attribute_weights(settings, model.schema) if preferences else {}
    if rated:
        say(f"scoring {len(rated)} conversations")
        evaluated = score_rated(scorer, rated)
        if evaluated.truncated:
            say(f"{evaluated.truncated} responses are scored without their oldest turns, to fit into the context")
        fitted = baselines(evaluated.responses, known)
        say("figures and their intervals")
        record |= {
            "responses": len(evaluated.responses),
            "conversations": len(rated),
            "unscored": evaluated.unscored,
            "truncated": evaluated.truncated,
            "baselines_fitted_on": fitted.fitted_on,
            "attributes": attribute_figures(evaluated, fitted, settings),
            "swapped_outputs": swapped_outputs(evaluated, settings),
        }
    if preferences:
        predictors = ridges(known) if known else {}
        record["preferences"] = {
            name: preference_figures(scorer, found, weights, settings, predictors)
            for name, found in preferences.items()
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
    """Score the rated responses. Those too long for the context are left out and counted; those read without their
    oldest turns are kept and counted.
    """
    responses = rated_responses(conversations, scorer.model.schema)
    scored = scorer.score(conversations)
    values = scored.values
    names = scorer.model.schema.names
    scored_R = np.array([message in values[number] for number, message in responses.places])
    if not scored_R.any():
        raise DataError("all rated responses are longer than the model's context; raise --context")
    kept = responses.only(scored_R)
    predicted_RA = np.array([[values[number][message][name] for name in names] for number, message in kept.places])
    return Evaluated(kept, predicted_RA, int((~scored_R).sum()), scored.report.truncated)
