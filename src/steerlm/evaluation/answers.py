"""Answers, and what was measured in them. Shapes: N answers."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerlm.evaluation.asks import Ask

JUDGE, SECOND, PERPLEXITY = "score:", "second:", "perplexity"
"""Names of measures: scores of the attribute model and of the second one, each before an attribute's name."""
ATTRIBUTE_MODELS = {JUDGE: "the attribute model", SECOND: "the second attribute model"}
"""What they are called."""

READING_GRADE = "reading_grade"
PROXIES = {"verbosity": "characters", "complexity": READING_GRADE, "toxicity": "toxic_words"}


def score_column(attribute: str, columns: Container[str]) -> str | None:
    """The measure among `columns` by which an attribute is judged: the score of the second attribute model before that
    of the first.
    """
    return next((name for name in (f"{SECOND}{attribute}", f"{JUDGE}{attribute}") if name in columns), None)


def score_columns(attributes: Iterable[str], columns: Container[str]) -> dict[str, str]:
    """The measures among `columns` by which attributes are judged together, by attribute: the scores of a single
    attribute model, the second where it has as many of them as the first.
    """
    names = list(attributes)
    found = [{name: column for name in names if (column := f"{prefix}{name}") in columns} for prefix in (SECOND, JUDGE)]
    return max(found, key=len)


def proxy(attribute: str, columns: Container[str]) -> str | None:
    """The measure of the text among `columns` that stands for an attribute where no attribute model measures it."""
    name = PROXIES.get(attribute)
    return name if name in columns else None


def own_column(attribute: str, columns: Container[str]) -> str | None:
    """The measure of an attribute itself: its score, or what of the text stands for it."""
    return score_column(attribute, columns) or proxy(attribute, columns)


def is_score(column: str | None) -> bool:
    """Whether a measure is an attribute model's score, on the attribute's own scale."""
    return column is not None and column.startswith(tuple(ATTRIBUTE_MODELS))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for an ask."""

    text: str
    tokens: int
    cut: bool
    """Whether it ended at the token limit."""


@dataclass(frozen=True)
class Measured:
    """The answers of a condition; `columns` maps the name of each measure to its values, [N], NaN where it has none."""

    asks: tuple[Ask, ...]
    answers: tuple[Answer, ...]
    columns: Mapping[str, NDArray[np.float64]]

    def unscored(self) -> dict[str, NDArray[np.bool_]]:
        """By instrument which answers it said nothing of, [N]: for each attribute model that scored, by the beginning
        of its measures' names, those too long for its context; for the reading grade and the perplexity, by their
        names, those without one.
        """
        found: dict[str, NDArray[np.bool_]] = {}
        for prefix in ATTRIBUTE_MODELS:
            scores = [column for name, column in self.columns.items() if name.startswith(prefix)]
            if scores:
                found[prefix] = np.any(np.isnan(scores), axis=0)
        for name in (READING_GRADE, PERPLEXITY):
            if name in self.columns:
                found[name] = np.isnan(self.columns[name])
        return found
