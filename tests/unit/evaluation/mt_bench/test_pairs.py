"""Win rates against what is counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from steerlm.evaluation.mt_bench.layouts import PairJudgment
from steerlm.evaluation.mt_bench.pairs import win_rates


def compared(number: int, one: str, two: str, models: tuple[str, str] = ("a", "b"), **more: Any) -> PairJudgment:
    """`one` and `two` are the letters of the verdicts in the two orders."""
    sides = [{"A": "model_1", "B": "model_2", "C": "tie"}, {"A": "model_2", "B": "model_1", "C": "tie"}]
    winners = [names.get(letter, "error") for names, letter in zip(sides, (one, two), strict=True)]
    row = {
        "question_id": number,
        "model_1": models[0],
        "model_2": models[1],
        "g1_winner": winners[0],
        "g2_winner": winners[1],
        "judge": ["gpt-4", "pair-v2"],
        "g1_judgment": f"[[{one}]]",
        "g2_judgment": f"[[{two}]]",
        "turn": 1,
    }
    return PairJudgment.from_row({**row, **more})


def test_wins_losses_and_ties() -> None:
    """A against b: a is named in both orders (won), b in both (lost), whoever is first (a tie), whoever is second (a
    tie), a tie said once with a win (a tie), a tie twice (a tie), and no verdict in one order (left out).

    a: 1 win, 1 loss, 4 ties: (1 + 2) / 6 = 0.5. Against c, a wins one more: (2 + 2) / 7.
    """
    rows = [
        compared(81, "A", "B"),
        compared(82, "B", "A"),
        compared(83, "A", "A"),
        compared(84, "B", "B"),
        compared(85, "A", "C"),
        compared(86, "C", "C"),
        compared(87, "A", "?"),
        compared(88, "A", "B", ("a", "c")),
    ]
    rates, [bias] = win_rates(rows)
    assert [(rate.model, rate.wins, rate.losses, rate.ties) for rate in rates] == [
        ("a", 2, 1, 4),
        ("b", 1, 1, 4),
        ("c", 0, 1, 0),
    ]
    assert [rate.rate.value for rate in rates] == pytest.approx([4 / 7, 0.5, 0])
    assert (bias.consistent, bias.first, bias.second, bias.errors) == (4, 1, 1, 1)
    assert rates[0].rate.low < 4 / 7 < rates[0].rate.high


def test_a_turn_counts_once_a_pair() -> None:
    """Model b lost to a, then won when asked again with the names the other way round; the last verdict counts, not the
    row without one after it. The second turn is a comparison of its own, and so is another judge's.
    """
    rows = [
        compared(81, "A", "B"),
        compared(81, "A", "B", ("b", "a")),
        compared(81, "?", "?"),
        compared(81, "C", "C", turn=2),
        compared(81, "B", "A", judge=["other", "pair-v2"]),
    ]
    rates, biases = win_rates(rows)
    counted = {(rate.model, rate.judge): (rate.wins, rate.losses, rate.ties) for rate in rates}
    assert counted == {
        ("a", "gpt-4"): (0, 1, 1),
        ("b", "gpt-4"): (1, 0, 1),
        ("a", "other"): (0, 1, 0),
        ("b", "other"): (1, 0, 0),
    }
    assert [(bias.judge, bias.consistent, bias.errors, bias.duplicates) for bias in biases] == [
        ("gpt-4", 2, 1, 1),
        ("other", 1, 0, 0),
    ]


def test_winners_as_recorded() -> None:
    """A row that says model_2 where its texts say model_1."""
    row = compared(81, "A", "B", g1_winner="model_2", g2_winner="model_2")
    assert win_rates([row])[0][0].model == "a"
    assert win_rates([row], recorded=True)[0][0].model == "b"


def test_rows_without_texts_have_their_recorded_winners() -> None:
    [first, _] = win_rates([compared(81, "B", "A", g1_judgment="", g2_judgment="")])[0]
    assert (first.model, first.wins) == ("b", 1)
