"""What the result of `steerlm eval steering` says of each condition, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerlm.attributes import Schema
from steerlm.evaluation.answers import Measured
from steerlm.evaluation.goal_space import consistency, goal_figures, grid_cells
from steerlm.evaluation.response_curves import against, examples, leakage, sweep_figures, sweep_of
from steerlm.evaluation.steering_settings import ConditionName, SteeringSettings

TITLES: dict[ConditionName, str] = {
    "policy": "policy",
    "words": "untuned base, asked in words",
    "guidance": "policy with guidance",
    "verified": "policy, verified",
}


def condition_records(
    conditions: Mapping[ConditionName, Measured], schema: Schema, settings: SteeringSettings, prompts: Sequence[str]
) -> dict[str, Any]:
    """All figures of each condition; beside `words`, what each of the others gains over it."""
    found: dict[str, Any] = {}
    all_sweeps = {
        name: {attribute: sweep_of(measured, schema[attribute]) for attribute in settings.attributes}
        for name, measured in conditions.items()
    }
    in_words = all_sweeps.get("words")
    for name, measured in conditions.items():
        sweeps = all_sweeps[name]
        figures = {
            attribute: sweep_figures(item, schema, settings.resamples, settings.seed)
            for attribute, item in sweeps.items()
        }
        if in_words and name != "words":
            for attribute, item in sweeps.items():
                steers = figures[attribute]["verdict"] == "steers"
                figures[attribute]["against_words"] = against(
                    item, in_words[attribute], steers, settings.resamples, settings.seed
                )
        found[name] = {
            "title": TITLES[name],
            "attributes": figures,
            "answers": len(measured.answers),
            "unscored": {instrument: int(unscored.sum()) for instrument, unscored in measured.unscored().items()},
            "leakage": leakage(figures, schema),
            "goal_space": goal_figures(measured, schema, settings.attributes, settings.resamples, settings.seed),
            "grid": grid_cells(measured, settings.attributes),
            "consistency": consistency(measured, settings.attributes),
            "examples": {attribute: examples(item, prompts) for attribute, item in sweeps.items()},
        }
    return found
