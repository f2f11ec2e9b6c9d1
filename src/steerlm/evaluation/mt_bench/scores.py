"""Tables from grades: per category, per turn, total, with bootstrap intervals over questions where there are enough.

The total is the mean over all rated rows of both turns, so that every row counts alike; a row without a rating (-1)
is left out, a missing one is not made up for, and a duplicate counts as often as it is there, as in FastChat's table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from steerlm.evaluation.bootstrap import Estimate, Floats, bootstrap
from steerlm.evaluation.mt_bench.layouts import TURNS, SingleJudgment, base_model
from steerlm.evaluation.mt_bench.questions import CATEGORIES, WRONG_REFERENCES, standard_categories
from steerlm.evaluation.mt_bench.verdicts import UNRATED, rating

Duplicates = Literal["all", "last"]
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Counts:
    """What stands behind a score.

    rated       rows that count
    unrated     rows in which the judge gave no rating
    missing     turns of the benchmark without a rated row
    questions   questions of which at least one turn counts
    duplicates  further rated rows of a turn that has one already
    differing   rows whose recorded score is not what their text says
    doubtful    rated rows that were judged against a reference answer that is known to be wrong
    """

    rated: int
    unrated: int
    missing: int
    questions: int
    duplicates: int
    differing: int
    doubtful: int


@dataclass(frozen=True)
class Score:
    """The scores of a model (at a setting) by a judge. `sound` is the total without the doubtful rows."""

    model: str
    judge: str
    total: Estimate
    turns: Mapping[int, Estimate]
    categories: Mapping[str, Estimate]
    sound: Estimate
    counts: Counts
    rows: tuple[tuple[int, int, float], ...]
    """Question, turn and score of each row that counts."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "judge": self.judge,
            "total": self.total._asdict(),
            "turns": {str(turn): estimate._asdict() for turn, estimate in self.turns.items()},
            "categories": {name: estimate._asdict() for name, estimate in self.categories.items()},
            "total_without_doubtful_references": self.sound._asdict(),
            "counts": {name: getattr(self.counts, name) for name in Counts.__dataclass_fields__},
        }


@dataclass(frozen=True, slots=True)
class _Rated:
    question: int
    turn: int
    category: str
    score: float
    doubtful: bool


def scores(
    judgments: Iterable[SingleJudgment],
    categories: Mapping[int, str] | None = None,
    duplicates: Duplicates = "all",
    recorded: bool = False,
) -> list[Score]:
    """One score for each model and judge, the best first.

    `categories` by question id are MT-Bench's own where none are given. A score is read from the judgment's text by
    FastChat's rule, from the row's own where it has no text, or always with `recorded`. With `duplicates="last"` only
    the last rated row of a turn counts.
    """
    known = standard_categories() if categories is None else categories
    groups: dict[tuple[str, str], list[SingleJudgment]] = {}
    for judgment in judgments:
        groups.setdefault((judgment.model, judgment.judge), []).append(judgment)
    found = [_score(model, judge, rows, known, duplicates, recorded) for (model, judge), rows in groups.items()]
    return sorted(found, key=lambda score: (-np.nan_to_num(score.total.value, nan=-1.0), score.model, score.judge))


def _score(
    model: str,
    judge: str,
    judgments: Sequence[SingleJudgment],
    categories: Mapping[int, str],
    duplicates: Duplicates,
    recorded: bool,
) -> Score:
    rated: list[_Rated] = []
    unrated = differing = 0
    for item in judgments:
        said = rating(item.text) if item.text else item.score
        differing += said != item.score
        value = item.score if recorded else said
        if value == UNRATED:
            unrated += 1
        else:
            category = categories.get(item.question_id, OTHER)
            rated.append(_Rated(item.question_id, item.turn, category, value, _doubtful(item)))
    places = Counter((row.question, row.turn) for row in rated)
    if duplicates == "last":
        rated = list({(row.question, row.turn): row for row in rated}.values())
    names = [*CATEGORIES, *sorted({row.category for row in rated} - set(CATEGORIES))]
    return Score(
        model,
        judge,
        _mean(rated),
        {turn: _mean([row for row in rated if row.turn == turn]) for turn in TURNS},
        {name: _mean([row for row in rated if row.category == name]) for name in names},
        _mean([row for row in rated if not row.doubtful]),
        Counts(
            rated=len(rated),
            unrated=unrated,
            missing=len({(number, turn) for number in categories for turn in TURNS} - set(places)),
            questions=len({number for number, _ in places}),
            duplicates=sum(places.values()) - len(places),
            differing=differing,
            doubtful=sum(row.doubtful for row in rated),
        ),
        tuple((row.question, row.turn, row.score) for row in rated),
    )


def _doubtful(judgment: SingleJudgment) -> bool:
    """Whether it was judged against a reference known to be wrong; rows of others do not say, and used FastChat's."""
    note = judgment.row.get("reference")
    return note == "known-wrong" if note else judgment.question_id in WRONG_REFERENCES and "math" in judgment.prompt


def _mean(rows: Sequence[_Rated]) -> Estimate:
    """The mean over rows. Questions are drawn, each with all its rows: its two turns are not independent."""
    return over_questions(ratio, *by_question((row.question, row.score) for row in rows))


def over_questions(statistic: Callable[..., float], *tables: Mapping[int, float]) -> Estimate:
    """`statistic` of columns of the tables, each by question, on the questions that all have; NaN without any."""
    shared = [number for number in tables[0] if all(number in table for table in tables)]
    columns = [np.array([table[number] for number in shared]) for table in tables]
    return bootstrap(statistic, *columns) if shared else Estimate(np.nan, np.nan, np.nan)


def by_question(rows: Iterable[tuple[int, float]]) -> tuple[dict[int, float], dict[int, float]]:
    """Sum of the scores and number of the rows of each question."""
    sums: dict[int, float] = {}
    counts: dict[int, float] = {}
    for number, score in rows:
        sums[number] = sums.get(number, 0.0) + score
        counts[number] = counts.get(number, 0.0) + 1
    return sums, counts


def ratio(sums: Floats, counts: Floats) -> float:
    """The mean over all rows, from their sum and number by question."""
    return float(sums.sum() / counts.sum())


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher a model scores than another, on the turns that both have, in points."""

    model: str
    against: str
    judge: str
    points: Estimate
    questions: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "against": self.against,
            "judge": self.judge,
            "points": self.points._asdict(),
            "questions": self.questions,
        }


def steering_differences(found: Sequence[Score]) -> list[Difference]:
    """Every model at a setting against the same model at its defaults, by the same judge; questions are paired."""
    plain = {(score.model, score.judge): score for score in found}
    differences = []
    for score in found:
        name = base_model(score.model)
        if name != score.model and (other := plain.get((name, score.judge))):
            differences.append(difference(score, other))
    return differences


def difference(score: Score, other: Score) -> Difference:
    """The total of `score` minus that of `other` on the turns that both have; of a question that one has more turns of,
    such as where its server refused the second, only the same turns are compared, and a turn with several grades counts
    once, with their mean.
    """
    ours, others = _by_turn(score), _by_turn(other)
    both = ours.keys() & others.keys()
    (sums, counts), (other_sums, other_counts) = (
        by_question((question, value) for (question, turn), value in each.items() if (question, turn) in both)
        for each in (ours, others)
    )
    points = over_questions(lambda a, b, c, d: ratio(a, b) - ratio(c, d), sums, counts, other_sums, other_counts)
    return Difference(score.model, other.model, score.judge, points, len(sums))


def _by_turn(score: Score) -> dict[tuple[int, int], float]:
    """The mean grade of each question and turn."""
    grades: dict[tuple[int, int], list[float]] = {}
    for question, turn, value in score.rows:
        grades.setdefault((question, turn), []).append(value)
    return {place: sum(values) / len(values) for place, values in grades.items()}
