"""Answers with everything that is measured in them. Shapes: N answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerlm.annotation import Scorer
from steerlm.annotation.scorer import on_scale
from steerlm.conversation import Conversation
from steerlm.evaluation.answers import JUDGE, PERPLEXITY, SECOND, Answer, Measured
from steerlm.evaluation.asks import Ask, Ways
from steerlm.evaluation.conditions import Condition, answer_tree
from steerlm.evaluation.perplexity import perplexities
from steerlm.evaluation.text_measures import text_measures
from steerlm.models.load import SteerModel

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Instruments:
    """What answers are measured with, besides their text: the attribute model, another one, the untuned base."""

    judge: Scorer | None = None
    second: Scorer | None = None
    base: SteerModel | None = None
    context: int = 1024


def measure(
    condition: Condition,
    asks: Sequence[Ask],
    answers: Mapping[Hashable, Answer],
    prompts: Sequence[Ways],
    system: str,
    instruments: Instruments,
) -> Measured:
    """Measure the answers, which were given under the system text `system`; equal ones to one prompt are measured
    once.
    """
    found = [answers[condition.key(ask)] for ask in asks]
    texts: dict[tuple[int, int], dict[str, int]] = {}
    for ask, answer in zip(asks, found, strict=True):
        own = texts.setdefault((ask.prompt, ask.paraphrase), {})
        own.setdefault(answer.text, len(own))
    trees = [answer_tree(system, prompts[prompt][way], list(own)) for (prompt, way), own in texts.items()]
    order = {place: number for number, place in enumerate(texts)}
    at = [
        (order[ask.prompt, ask.paraphrase], texts[ask.prompt, ask.paraphrase][answer.text] + 1)
        for ask, answer in zip(asks, found, strict=True)
    ]
    columns: dict[str, Floats] = {}
    for prefix, scorer in ((JUDGE, instruments.judge), (SECOND, instruments.second)):
        if scorer is not None:
            columns |= _scores(prefix, scorer, trees, at)
    if instruments.base is not None:
        columns[PERPLEXITY] = _perplexity(instruments.base, instruments.context, trees, at, found)
    columns |= {item.name: _each_once(item.of, [answer.text for answer in found]) for item in text_measures()}
    return Measured(tuple(asks), tuple(found), columns)


def _scores(
    prefix: str, scorer: Scorer, trees: Sequence[Conversation], at: Sequence[tuple[int, int]]
) -> dict[str, Floats]:
    """Scores on the attributes' scales."""
    schema = scorer.model.schema
    values = [
        {message: on_scale(schema, scores) for message, scores in tree.items()} for tree in scorer.score(trees).values
    ]
    return {
        f"{prefix}{name}": np.array([values[tree].get(message, {}).get(name, np.nan) for tree, message in at])
        for name in schema.names
    }


def _perplexity(
    base: SteerModel,
    context: int,
    trees: Sequence[Conversation],
    at: Sequence[tuple[int, int]],
    answers: Sequence[Answer],
) -> Floats:
    """The perplexity of each answer, NaN of those too long for the context; of one that was cut without what closes it,
    which it never wrote.
    """
    likely = perplexities(base, trees, context)
    values = [likely[tree].get(message) for tree, message in at]
    return np.array(
        [
            np.nan if value is None else value.cut if answer.cut else value.ended
            for value, answer in zip(values, answers, strict=True)
        ]
    )


def _each_once(of: Callable[[str], float], texts: Sequence[str]) -> Floats:
    known = {text: of(text) for text in dict.fromkeys(texts)}
    return np.array([known[text] for text in texts], dtype=np.float64)
