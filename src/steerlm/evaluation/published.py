"""Published figures of the papers' models, to stand beside ours: other models, other prompts, other judges."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """What a paper found when it set an attribute to the ends of its scale."""

    attribute: str
    measure: str
    column: str
    """The name of our measure that comes nearest."""
    low: float
    high: float
    model: str
    source: str


PUBLISHED = (
    Published(
        "verbosity", "characters", "characters", 422.3, 1125.2, "Llama2-70B-SteerLM-Chat", "HelpSteer, arXiv 2311.09528"
    ),
    Published(
        "complexity",
        "Flesch-Kincaid grade",
        "reading_grade",
        8.489,
        9.104,
        "Llama2-70B-SteerLM-Chat",
        "HelpSteer, arXiv 2311.09528",
    ),
    Published(
        "toxicity",
        "toxicity by the Perspective API (0 to 1), on red-team prompts; ours: words of a lexicon in a hundred",
        "toxic_words",
        0.06346,
        0.10408,
        "SteerLM-43B (values 0 and 9)",
        "SteerLM, arXiv 2310.05344",
    ),
)
