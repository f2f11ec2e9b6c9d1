"""What a judgment's text says: a rating, or which of two answers is better."""

from __future__ import annotations

import re
from typing import Literal

Winner = Literal["model_1", "model_2", "tie", "error"]

UNRATED = -1.0
# Ratings this near to each other are a tie.
TIE = 0.1
_NUMBER = r"(\d+\.?\d*)"
_RATING = re.compile(rf"\[\[{_NUMBER}\]\]")
_RATING_FALLBACK = re.compile(rf"\[{_NUMBER}\]")
_TWO_RATINGS = re.compile(rf"\[\[{_NUMBER},\s?{_NUMBER}\]\]")
_TWO_RATINGS_FALLBACK = re.compile(rf"\[{_NUMBER},\s?{_NUMBER}\]")


def rating(text: str) -> float:
    """The first [[number]], else the first [number], else -1."""
    match = _RATING.search(text) or _RATING_FALLBACK.search(text)
    return float(match[1]) if match else UNRATED


def winner(text: str, swapped: bool) -> Winner:
    """Who is better by [[A]], [[B]] or [[C]] (a tie), or by two ratings; error where the text says neither.

    Assistant A is model_1, or model_2 in the swapped order.
    """
    first: Winner = "model_2" if swapped else "model_1"
    second: Winner = "model_1" if swapped else "model_2"
    marks: dict[str, Winner] = {"[[A]]": first, "[[B]]": second, "[[C]]": "tie"}
    for mark, found in marks.items():
        if mark in text:
            return found
    match = _TWO_RATINGS.search(text) or _TWO_RATINGS_FALLBACK.search(text)
    if not match:
        return "error"
    difference = float(match[1]) - float(match[2])
    if abs(difference) <= TIE:
        return "tie"
    return first if difference > 0 else second
