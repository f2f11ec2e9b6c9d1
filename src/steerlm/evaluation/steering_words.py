"""What a result of `steerlm eval steering` says in words, wherever it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerlm.evaluation.answers import ATTRIBUTE_MODELS, PERPLEXITY, READING_GRADE

_UNSCORED = {
    **{prefix: f"are too long for {model} and have no score" for prefix, model in ATTRIBUTE_MODELS.items()},
    READING_GRADE: "have no reading grade, being empty or mostly not in Latin letters",
    PERPLEXITY: "have no perplexity, being too long for the base, or empty and cut",
}
UNSCORED_ROWS = {
    **{prefix: f"answers too long for {model}" for prefix, model in ATTRIBUTE_MODELS.items()},
    READING_GRADE: "answers without a reading grade",
    PERPLEXITY: "answers without a perplexity",
}
"""What rows of such answers are called, by instrument."""


def leading(record: Mapping[str, Any]) -> str:
    """The name of the condition that a result is shown by: the plain policy, or the first without it."""
    return "policy" if "policy" in record["conditions"] else next(iter(record["conditions"]))


def are_held_out(record: Mapping[str, Any]) -> bool:
    """Whether it is known that the policy learnt from none of the prompts."""
    return bool((record["prompts"].get("source") or {}).get("held_out"))


def prompts_title(record: Mapping[str, Any]) -> str:
    """What the prompts are called: "held-out" where it is known that they are."""
    source = record["prompts"].get("source")
    if source is None:
        return "prompts"
    return f"{'held-out ' if are_held_out(record) else ''}prompts ({source['name']})"


def unscored_lines(record: Mapping[str, Any]) -> list[str]:
    """What is said of answers that an attribute model could not read, or that have no reading grade or perplexity, of
    each condition with any: how many, and to how many prompts at which levels of which attributes.
    """
    lines = []
    for condition in record["conditions"].values():
        for instrument, count in condition["unscored"].items():
            if not count:
                continue
            places = [
                f"{name} " + ", ".join(f"at {level}: {number}" for level, number in counts)
                for name, row in condition["attributes"].items()
                if (counts := [at for at in zip(row["levels"], row["unscored"][instrument], strict=True) if at[1]])
            ]
            lines.append(
                f"{condition['title']}: {count} of {condition['answers']} answers {_UNSCORED[instrument]}"
                + (f" ({'; '.join(places)})" if places else "")
            )
    return lines
