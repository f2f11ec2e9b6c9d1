"""Win rates from pairwise judgments, by FastChat's rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from steerlm.evaluation.bootstrap import Estimate
from steerlm.evaluation.mt_bench.layouts import PairJudgment
from steerlm.evaluation.mt_bench.scores import by_question, over_questions, ratio
from steerlm.evaluation.mt_bench.verdicts import winner


@dataclass(frozen=True)
class WinRate:
    """How a model fared in its comparisons by a judge.

    A comparison is won or lost where both orders agree; one order for each, or ties, is a tie. Without a verdict in
    both orders it is an error, and counts nowhere. `rate` counts a tie as half a win; its interval is over questions.
    """

    model: str
    judge: str
    wins: int
    losses: int
    ties: int
    rate: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "judge": self.judge,
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "rate": self.rate._asdict(),
        }


@dataclass(frozen=True, slots=True)
class PositionBias:
    """How a judge dealt with the order: comparisons in which both orders agree, and in which whoever came first, or
    second, won both times; `errors` have no verdict in one order, `duplicates` are left out for a later row.
    """

    judge: str
    consistent: int
    first: int
    second: int
    errors: int
    duplicates: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _winners(judgment: PairJudgment, recorded: bool) -> tuple[str, str]:
    if recorded or not all(judgment.texts):
        return judgment.winners
    return winner(judgment.texts[0], swapped=False), winner(judgment.texts[1], swapped=True)


def win_rates(judgments: Iterable[PairJudgment], recorded: bool = False) -> tuple[list[WinRate], list[PositionBias]]:
    """Win rates by model and judge, the best first, and the judges' position bias.

    Winners are read from the texts, or with `recorded` from what the rows say. A question's turn counts once a pair, by
    the last row with a verdict, whichever model the row names first.
    """
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    biases: dict[str, Counter[str]] = {}
    verdicts: dict[tuple[object, ...], tuple[PairJudgment, str, str]] = {}
    for judgment in judgments:
        one, two = _winners(judgment, recorded)
        bias = biases.setdefault(judgment.judge, Counter())
        if "error" in (one, two):
            bias["errors"] += 1
            continue
        bias["duplicates"] += judgment.key in verdicts
        verdicts[judgment.key] = judgment, one, two
    for judgment, one, two in verdicts.values():
        bias = biases[judgment.judge]
        bias["consistent"] += one == two
        bias["first"] += (one, two) == ("model_1", "model_2")
        bias["second"] += (one, two) == ("model_2", "model_1")
        point = 0.5 if one == "tie" or one != two else float(one == "model_1")
        for model, value in zip(judgment.models, (point, 1 - point), strict=True):
            points.setdefault((model, judgment.judge), []).append((judgment.question_id, value))
    rates = [_rate(model, judge, rows) for (model, judge), rows in points.items()]
    ordered = sorted(rates, key=lambda rate: (-rate.rate.value, rate.model, rate.judge))
    names = ("consistent", "first", "second", "errors", "duplicates")
    return ordered, [PositionBias(judge, *(counts[name] for name in names)) for judge, counts in biases.items()]


def _rate(model: str, judge: str, rows: list[tuple[int, float]]) -> WinRate:
    values = [value for _, value in rows]
    rate = over_questions(ratio, *by_question(rows))
    return WinRate(model, judge, values.count(1.0), values.count(0.0), values.count(0.5), rate)
