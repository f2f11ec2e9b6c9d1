"""Totals against what is counted by hand, and against published ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from small_bench import IDS, judgment_row
from steerlm.evaluation.bootstrap import cluster_bootstrap
from steerlm.evaluation.mt_bench.layouts import SingleJudgment
from steerlm.evaluation.mt_bench.questions import CATEGORIES
from steerlm.evaluation.mt_bench.scores import Counts, Score, difference, scores, steering_differences


def judged(*rows: dict[str, Any]) -> list[SingleJudgment]:
    return [SingleJudgment.from_row(row) for row in rows]


def only(rows: list[SingleJudgment], **options: Any) -> Score:
    [score] = scores(rows, **options)
    return score


HARD = judged(
    judgment_row(81, "m", 1, 8),
    judgment_row(81, "m", 2, 5),
    judgment_row(82, "m", 1, 9),
    judgment_row(82, "m", 2, -1, "I cannot rate this."),
    judgment_row(104, "m", 1, 2),
    judgment_row(104, "m", 2, 4),
    judgment_row(104, "m", 2, 6),
    judgment_row(111, "m", 1, 1, "Rating: [[10]]"),
    judgment_row(131, "m", 1, -1, "Rating: [7]"),
)


def test_missing_unrated_duplicate_and_differing_rows() -> None:
    """By hand, with the text's rating where it is not the recorded one:

    | question (category) | turn 1 | turn 2 |
    |---|---|---|
    | 81 (writing) | 8 | 5 |
    | 82 (writing) | 9 | -1, left out |
    | 104 (reasoning) | 2 | 4 and 6, a duplicate |
    | 111 (math) | 10 (recorded 1) | missing |
    | 131 (extraction) | 7 (recorded -1) | missing |

    Turn 1: (8 + 9 + 2 + 10 + 7) / 5 = 36 / 5 = 7.2. Turn 2: (5 + 4 + 6) / 3 = 5. Total, over the rows and not over
    the two turns: (36 + 15) / 8 = 6.375. Writing: 22 / 3. Reasoning: 12 / 3 = 4. Questions 104 and 111 are among those
    whose published reference is wrong: without their 3 + 1 rows (36 + 15 - 12 - 10) / 4 = 7.25. Of the 160 turns 7
    have a rated row, so that 153 are missing.
    """
    score = only(HARD)
    assert score.total.value == 6.375
    assert (score.turns[1].value, score.turns[2].value) == (7.2, 5)
    found = {name: estimate.value for name, estimate in score.categories.items() if not math.isnan(estimate.value)}
    assert found == {"writing": 22 / 3, "reasoning": 4, "math": 10, "extraction": 7}
    assert score.sound.value == 7.25
    assert score.counts == Counts(rated=8, unrated=1, missing=153, questions=5, duplicates=1, differing=2, doubtful=4)


def test_the_last_of_duplicates() -> None:
    """Only the 6 of question 104's second turn counts: turn 2 is (5 + 6) / 2 = 5.5, the total (36 + 11) / 7."""
    score = only(HARD, duplicates="last")
    assert score.turns[2].value == 5.5
    assert score.total.value == pytest.approx(47 / 7)
    assert (score.counts.rated, score.counts.duplicates) == (7, 1)


def test_recorded_scores() -> None:
    """111 counts 1 instead of 10, and 131 is without a rating: (8 + 9 + 2 + 1 + 5 + 4 + 6) / 7 = 5."""
    score = only(HARD, recorded=True)
    assert score.total.value == 5
    assert (score.counts.unrated, score.counts.differing, score.counts.missing) == (2, 2, 154)


def test_a_row_without_text_has_its_recorded_score() -> None:
    score = only(judged(judgment_row(81, "m", 1, 7.5, ""), judgment_row(82, "m", 1, -1, "")))
    assert score.total.value == 7.5
    assert (score.counts.unrated, score.counts.differing) == (1, 0)


def test_a_repeated_request_after_an_unrated_one_counts_once() -> None:
    score = only(judged(judgment_row(81, "m", 1, -1, "?"), judgment_row(81, "m", 1, 6)))
    assert (score.total.value, score.counts.unrated, score.counts.duplicates) == (6, 1, 0)


# Category scores of the model cards of Llama2-70B-SteerLM-Chat and SteerLM-llama2-13B, with the totals they give.
PUBLISHED = {
    7.54: {
        "writing": 7.92,
        "roleplay": 8.9,
        "extraction": 8.98,
        "stem": 9.2,
        "humanities": 9.7,
        "reasoning": 6.35,
        "math": 4.55,
        "coding": 4.75,
    },
    6.13: {
        "writing": 7.8,
        "roleplay": 8.15,
        "extraction": 5.52,
        "stem": 8.43,
        "humanities": 9.02,
        "reasoning": 4.95,
        "math": 2.15,
        "coding": 3.0,
    },
}


def spread(total: float, count: int) -> list[float]:
    """Grades from 1 to 10 in halves with this sum, to within a quarter."""
    halves = round(total * 2)
    return [(halves // count + (k < halves % count)) / 2 for k in range(count)]


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_totals_follow_from_published_categories(published: float) -> None:
    """A card's categories stand for 20 grades each, of which the total is the mean."""
    rows = []
    for name, mean in PUBLISHED[published].items():
        for k, grade in enumerate(spread(20 * mean, 20)):
            rows.append(judgment_row(IDS[name] + k // 2, "card", 1 + k % 2, grade))
    score = only(judged(*rows))
    for name, mean in PUBLISHED[published].items():
        assert score.categories[name].value == pytest.approx(mean, abs=0.0126)
    assert score.total.value == pytest.approx(published, abs=0.006)
    assert score.counts.missing == 0
    assert score.counts.doubtful == 26


def test_judges_and_models_stand_apart_and_the_best_comes_first() -> None:
    rows = judged(
        judgment_row(81, "a", 1, 3),
        judgment_row(81, "b", 1, 9),
        judgment_row(81, "a", 1, 5, judge="other"),
        judgment_row(81, "c", 1, -1, "?"),
    )
    found = [(score.model, score.judge) for score in scores(rows)]
    assert found == [("b", "gpt-4"), ("a", "other"), ("a", "gpt-4"), ("c", "gpt-4")]
    assert math.isnan(scores(rows)[-1].total.value)


def test_categories_of_another_benchmark() -> None:
    rows = judged(judgment_row(1, "m", 1, 4), judgment_row(900, "m", 1, 8))
    assert only(rows).categories["other"].value == 6
    named = only(rows, categories={1: "cooking", 900: "writing"})
    assert (named.categories["cooking"].value, named.categories["writing"].value) == (4, 8)
    assert named.counts.missing == 2
    assert list(named.categories) == [*CATEGORIES, "cooking"]


def random_rows(model: str, seed: int, shift: int = 0) -> list[SingleJudgment]:
    grades = np.random.default_rng(seed).integers(2, 9, 160)
    return judged(*(judgment_row(81 + k // 2, model, 1 + k % 2, int(grade) + shift) for k, grade in enumerate(grades)))


def test_intervals_are_those_of_a_bootstrap_over_questions() -> None:
    rows = random_rows("m", 3)
    values = np.array([row.score for row in rows])
    wanted = cluster_bootstrap(lambda sample: float(sample.mean()), [row.question_id for row in rows], values)
    assert only(rows).total == pytest.approx(wanted)


def test_settings_are_compared_with_the_defaults_question_by_question() -> None:
    """A shift of one point is found exactly, though the grades themselves vary by many."""
    rows = random_rows("m", 4) + random_rows("m@verbosity=4", 4, shift=1) + random_rows("other@humor=4", 5)
    [found] = steering_differences(scores(rows))
    assert (found.model, found.against, found.questions) == ("m@verbosity=4", "m", 80)
    assert found.points == pytest.approx((1, 1, 1))


def test_a_difference_is_over_shared_questions() -> None:
    one = only(judged(judgment_row(81, "a", 1, 8), judgment_row(82, "a", 1, 1)))
    two = only(judged(judgment_row(81, "b", 1, 5), judgment_row(83, "b", 1, 10)))
    assert (difference(one, two).points.value, difference(one, two).questions) == (3, 1)
    three = only(judged(judgment_row(99, "c", 1, 5)))
    assert math.isnan(difference(one, three).points.value)


def test_a_turn_judged_twice_counts_once_in_a_difference() -> None:
    """Every turn that both have is graded the same."""
    once = only(judged(judgment_row(81, "a", 1, 9), judgment_row(82, "a", 1, 3)))
    twice = only(judged(judgment_row(81, "b", 1, 9), judgment_row(81, "b", 1, 9), judgment_row(82, "b", 1, 3)))
    assert twice.total.value == 7
    assert difference(once, twice).points.value == 0


@pytest.mark.parametrize(("questions", "has_interval"), [(1, False), (4, False), (5, True)])
def test_a_few_questions_have_no_interval(questions: int, has_interval: bool) -> None:
    """That of one would have no width, as if it were exact."""
    rows = [judgment_row(81 + k, model, turn, 4 + k) for k in range(questions) for model in "ab" for turn in (1, 2)]
    one, two = scores(judged(*rows))
    for estimate in (one.total, one.turns[1], difference(one, two).points):
        assert math.isfinite(estimate.value)
        assert math.isfinite(estimate.low) == math.isfinite(estimate.high) == has_interval


def test_a_turn_that_one_setting_lacks_is_compared_for_neither() -> None:
    """Both settings get 8 for first turns and 4 for second ones; one lacks half of the latter."""
    rows = [judgment_row(number, "m", turn, {1: 8, 2: 4}[turn]) for number in range(81, 87) for turn in (1, 2)]
    rows += [judgment_row(number, "m@verbosity=4", 1, 8) for number in range(81, 87)]
    rows += [judgment_row(number, "m@verbosity=4", 2, 4) for number in range(81, 84)]
    found = scores([SingleJudgment.from_row(row) for row in rows])
    assert {score.model: round(score.total.value, 2) for score in found} == {"m": 6.0, "m@verbosity=4": 6.67}
    [change] = steering_differences(found)
    assert (change.points.value, change.questions) == (0, 6)
