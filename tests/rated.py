"""Random conversations, as people rate them who agree with an attribute model or go by something else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from steerlm.annotation import Scorer
from steerlm.conversation import Conversation, Message
from steerlm.evaluation.attribute_settings import AttributeEvaluationSettings
from steerlm.models.load import SteerModel
from tiny_judge import WORDS

SETTINGS = AttributeEvaluationSettings(context=512, resamples=200, invariance=6, precision="fp32")


def unrated(count: int, answers: int = 3) -> list[Conversation]:
    """Prompts with a few random answers each."""
    generator = random.Random(0)

    def text() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(2, 12)))

    return [
        Conversation(
            f"c{k}",
            (Message("user", text()), *(Message("assistant", text(), 0) for _ in range(answers))),
            source=("forum", "survey")[k % 2],
        )
        for k in range(count)
    ]


def rated_by(
    conversations: list[Conversation], rate: Callable[[dict[str, float]], dict[str, float]], judge: SteerModel
) -> list[Conversation]:
    """Ratings made from the judge's own scores: people who agree with it in some way."""
    scores = Scorer(judge, SETTINGS).score(conversations).values
    return [
        replace(
            conversation,
            messages=tuple(
                replace(message, ratings=rate(values[index])) if index in values else message
                for index, message in enumerate(conversation.messages)
            ),
        )
        for conversation, values in zip(conversations, scores, strict=True)
    ]


def with_ratings(conversation: Conversation, rate: Callable[[Message], dict[str, float]]) -> Conversation:
    """The conversation with its answers rated."""
    rated = (replace(m, ratings=rate(m)) if m.role == "assistant" else m for m in conversation.messages)
    return replace(conversation, messages=tuple(rated))


def clipped(values: dict[str, float]) -> dict[str, float]:
    return {name: min(max(value, 0.0), 4.0) for name, value in values.items()}
