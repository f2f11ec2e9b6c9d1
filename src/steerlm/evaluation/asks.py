"""What a policy is asked for: sweeps of one attribute, goals over several, and the same prompts in other words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from steerlm.attributes import Schema
from steerlm.steering import asked_values

Values = tuple[tuple[str, int], ...]
Ways = tuple[str, ...]
"""A prompt as it is, and after it the same in other words."""
FRAMES = (
    "I have a question for you. {prompt}",
    "{prompt} Please answer this.",
    "Could you help me with the following?\n\n{prompt}",
)
"""What changes how a prompt is put, and not what it asks, where nothing else is known of it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer wanted: `named` are the attributes that the request sets, the others are at their defaults."""

    prompt: int
    named: Values
    paraphrase: int = 0

    def values(self, schema: Schema) -> dict[str, int]:
        """The values of all attributes."""
        return asked_values(schema, dict(self.named))


def sweep(schema: Schema, attributes: Sequence[str], prompts: int) -> list[Ask]:
    """Every level of every attribute for every prompt."""
    return [
        Ask(prompt, ((name, level),))
        for name in attributes
        for level in schema[name].levels
        for prompt in range(prompts)
    ]


def goals(schema: Schema, attributes: Sequence[str], prompts: int, count: int, seed: int) -> list[Ask]:
    """`count` different settings for each prompt, drawn uniformly from the grid of the attributes' levels
    (arXiv 2505.23816); the whole grid where it is no larger than that.
    """
    levels = [schema[name].levels for name in attributes]
    random = np.random.default_rng(seed)
    return [
        Ask(prompt, tuple(zip(attributes, chosen, strict=True)))
        for prompt in range(prompts if count else 0)
        for chosen in _drawn(levels, count, random)
    ]


def _drawn(levels: Sequence[Sequence[int]], count: int, random: np.random.Generator) -> list[tuple[int, ...]]:
    """`count` different points of a grid. Few are drawn one by one, since a grid of many attributes fits no memory."""
    size = prod(map(len, levels))
    if 2 * count >= size:
        grid = list(product(*levels))
        return grid if count >= size else [grid[k] for k in random.permutation(size)[:count]]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        places = random.integers(0, [len(own) for own in levels])
        found[tuple(own[place] for own, place in zip(levels, places, strict=True))] = None
    return list(found)


def paraphrased(schema: Schema, attributes: Sequence[str], prompts: Sequence[Ways]) -> list[Ask]:
    """The ends of every attribute for the first prompts, which `prompts` holds, in all their other words."""
    return [
        Ask(prompt, ((name, level),), paraphrase)
        for name in attributes
        for level in (schema[name].low, schema[name].high)
        for prompt, ways in enumerate(prompts)
        for paraphrase in range(1, len(ways))
    ]


def ways_of(prompt: str | Ways) -> Ways:
    """A prompt with what else it can be put in: in frames where only its text is given."""
    return (prompt, *(frame.replace("{prompt}", prompt) for frame in FRAMES)) if isinstance(prompt, str) else prompt


def frozen(values: Mapping[str, int]) -> Values:
    """Values as a key."""
    return tuple(sorted(values.items()))
