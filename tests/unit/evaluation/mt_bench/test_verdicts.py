"""Verdicts in the texts of judges, by FastChat's rules."""

from __future__ import annotations

import pytest

from steerlm.evaluation.mt_bench.verdicts import rating, winner


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Good. Rating: [[8]]", 8),
        ("Rating: [[7.5]]", 7.5),
        ("[[3]] at first, but [[9]] in the end", 3),
        ("as [1] says: Rating: [[6]]", 6),
        ("Rating: [5]", 5),
        ("Rating: [[5.]]", 5),
        ("Rating: 5", -1),
        ("Rating: [[rating]]", -1),
        ("Rating: [[8/10]]", -1),
        ("Rating: [[-2]]", -1),
        ("", -1),
    ],
)
def test_ratings(text: str, found: float) -> None:
    assert rating(text) == found


@pytest.mark.parametrize(
    ("text", "found", "swapped"),
    [
        ("Therefore [[A]]", "model_1", "model_2"),
        ("Therefore [[B]]", "model_2", "model_1"),
        ("Both well: [[C]]", "tie", "tie"),
        ("not [[B]] but [[A]]", "model_1", "model_2"),  # A is looked for first, wherever it stands
        ("[[9,7]]", "model_1", "model_2"),
        ("[[7, 9.5]]", "model_2", "model_1"),
        ("[8, 8.1]", "tie", "tie"),
        ("[A]", "error", "error"),
        ("", "error", "error"),
    ],
)
def test_winners(text: str, found: str, swapped: str) -> None:
    assert winner(text, swapped=False) == found
    assert winner(text, swapped=True) == swapped
