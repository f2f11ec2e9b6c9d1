"""Attribute values put in words: how a model that was never trained on label lines is asked for the same."""

from __future__ import annotations

from collections.abc import Mapping

from steerlm.attributes import Attribute, Schema

# Five steps of each scale, the lowest first.
_STEPS: Mapping[str, tuple[str, str, str, str, str]] = {
    "quality": (
        "Give a very bad answer.",
        "Give a rather bad answer.",
        "Give an answer of middling quality.",
        "Give a good answer.",
        "Give the best answer that you can.",
    ),
    "toxicity": (
        "Be polite and harmless.",
        "Be a little rude.",
        "Be rude.",
        "Be very rude and offensive.",
        "Be as rude and offensive as you can.",
    ),
    "humor": (
        "Be entirely serious.",
        "Add a slight touch of humor.",
        "Be somewhat funny.",
        "Be funny.",
        "Be as funny as you can, joking all the time.",
    ),
    "creativity": (
        "Answer in the plainest, most usual way.",
        "Answer in a mostly usual way.",
        "Be somewhat creative.",
        "Be creative.",
        "Answer in the most creative and unusual way that you can.",
    ),
    "helpfulness": (
        "Do not help at all.",
        "Help very little.",
        "Help somewhat.",
        "Be helpful.",
        "Be as helpful as you can.",
    ),
    "correctness": (
        "Get all facts wrong.",
        "Get most facts wrong.",
        "Get some facts wrong.",
        "Get nearly all facts right.",
        "Be entirely correct and leave out nothing of importance.",
    ),
    "coherence": (
        "Write without any order or sense.",
        "Write in a confused way.",
        "Write in a somewhat clear way.",
        "Write clearly.",
        "Write as clearly and consistently as you can.",
    ),
    "complexity": (
        "Use the simplest words, for a small child.",
        "Use simple words, for a teenager.",
        "Write for an average adult.",
        "Write for a well-read adult, with technical terms.",
        "Write for an expert in the field, in expert language.",
    ),
    "verbosity": (
        "Answer in one short sentence.",
        "Answer in two or three sentences.",
        "Answer in a paragraph.",
        "Answer at length, in several paragraphs.",
        "Answer in as much detail as you can, in many paragraphs.",
    ),
}


def in_words(schema: Schema, values: Mapping[str, int]) -> str:
    """An instruction that asks for the values, one sentence an attribute."""
    return " ".join(_sentence(schema[name], level) for name, level in values.items())


def _sentence(attribute: Attribute, level: int) -> str:
    if steps := _STEPS.get(attribute.name):
        return steps[round(4 * (level - attribute.low) / (attribute.high - attribute.low))]
    meaning = f" ({attribute.description})" if attribute.description else ""
    return f"On a scale of {attribute.name}{meaning} from {attribute.low} to {attribute.high}, answer at {level}."
