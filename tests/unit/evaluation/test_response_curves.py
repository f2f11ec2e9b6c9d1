"""Verdicts and curves of policies whose behaviour is planted: obedient, deaf, or only talkative."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from steerlm.attributes import STEERLM
from steerlm.evaluation.answers import JUDGE, PERPLEXITY, SECOND, Answer, Measured
from steerlm.evaluation.asks import Ask, sweep
from steerlm.evaluation.bootstrap import bootstrap, draw_weights, mean_estimates
from steerlm.evaluation.response_curves import Sweep, against, leakage, sweep_figures, sweep_of

PROMPTS = 12
RANDOM = np.random.default_rng(0)
Score = Callable[[int, int], float]


def measured(scores: dict[str, Score], characters: Score = lambda prompt, level: 100.0) -> Measured:
    """The sweep of complexity, with each column a function of prompt and level."""
    asks = sweep(STEERLM, ["complexity"], PROMPTS)
    places = [(ask.prompt, ask.named[0][1]) for ask in asks]
    columns = {name: np.array([of(*place) for place in places]) for name, of in scores.items()}
    columns |= {"characters": np.array([characters(*place) for place in places])}
    answers = tuple(Answer(f"answer {prompt} {level}", 5, level == 4) for prompt, level in places)
    return Measured(tuple(asks), answers, columns)


def figures(found: Measured) -> dict[str, object]:
    return sweep_figures(sweep_of(found, STEERLM["complexity"]), STEERLM, 500, 0)


def test_one_that_obeys() -> None:
    """Each prompt has its own level of difficulty; half a point of noise; slope 0.8."""
    base = RANDOM.normal(size=PROMPTS)
    row = figures(measured({f"{JUDGE}complexity": lambda p, k: 0.8 * k + base[p] + RANDOM.normal(0, 0.3)}))
    assert row["verdict"] == "steers"
    assert row["slope"]["value"] == pytest.approx(0.8, abs=0.1)
    assert row["within_prompt"]["low"] > 0.8
    assert row["effects"][f"{JUDGE}complexity"]["value"] == pytest.approx(3.2, abs=0.4)
    assert row["cut"] == [0, 0, 0, 0, 1]


def test_one_that_is_deaf() -> None:
    row = figures(measured({f"{JUDGE}complexity": lambda p, k: 2 + RANDOM.normal(0, 0.5)}))
    assert row["verdict"] == "does not steer"
    assert row["slope"]["low"] < 0.1
    same = figures(measured({f"{JUDGE}complexity": lambda p, k: 2.0}))
    assert same["verdict"] == "does not steer"
    assert same["within_prompt"]["value"] == 0


@pytest.mark.parametrize(("count", "verdict"), [(1, "too few prompts"), (4, "too few prompts"), (5, "steers")])
def test_few_prompts_give_no_verdict(count: int, verdict: str) -> None:
    """Levels are followed to the letter; the scores of the other prompts are missing."""
    row = figures(measured({f"{JUDGE}complexity": lambda p, k: float(k) if p < count else np.nan}))
    assert row["verdict"] == verdict
    enough = verdict == "steers"
    assert row["within_prompt"]["low"] == pytest.approx(1 if enough else math.nan, nan_ok=True)
    [adjusted] = [item["effect"] for item in row["length_controlled"] if item["measure"] == row["own"]]
    for estimate in (row["spearman"], row["slope"], row["curves"][row["own"]][0], adjusted):
        assert np.isfinite(estimate["value"])
        assert np.isfinite(estimate["low"]) == enough
    assert "nan" not in row["why"]


@pytest.mark.parametrize(
    ("whole", "partly", "verdict"), [(0, 2, "too few prompts"), (1, 4, "too few prompts"), (5, 3, "steers")]
)
def test_a_slope_needs_every_level(whole: int, partly: int, verdict: str) -> None:
    """Levels are followed to the letter, but of prompts beyond the first `whole` only `partly` levels are scored."""
    found = measured({f"{JUDGE}complexity": lambda p, k: float(k) if p < whole or k < partly else np.nan})
    row = figures(found)
    assert row["verdict"] == verdict
    assert row["within_prompt"]["value"] == pytest.approx(1)
    assert row["unscored"] == {JUDGE: [0] * partly + [PROMPTS - whole] * (5 - partly)}
    assert "nan" not in row["why"]
    assert ("slope not measured" in row["why"]) is (whole == 0)
    if verdict == "too few prompts":
        assert row["why"].startswith(f"{whole} of at least 5; ")
    flat = sweep_of(measured({f"{JUDGE}complexity": lambda p, k: 2.0}), STEERLM["complexity"])
    compared = against(sweep_of(found, STEERLM["complexity"]), flat, True, 500, 0)
    assert (compared or {})["verdict"] == {"steers": "better"}.get(verdict, verdict)


def test_the_independent_judge_has_the_say() -> None:
    """The teacher sees what it taught, the other does not."""
    row = figures(measured({f"{JUDGE}complexity": lambda p, k: float(k), f"{SECOND}complexity": lambda p, k: 1.0}))
    assert row["own"] == f"{SECOND}complexity"
    assert row["verdict"] == "does not steer"


def test_the_independent_judge_says_what_the_ends_cost() -> None:
    """It alone, or beside the teacher, which sees nothing of what is lost at the bottom: two points of quality."""
    scores = {f"{SECOND}complexity": lambda p, k: float(k), f"{SECOND}quality": lambda p, k: 4.0 if k else 2.0}
    for teacher in ({}, {f"{JUDGE}quality": lambda p, k: 4.0}):
        row = figures(measured({**teacher, **scores}))
        assert row["quality_cost"]["of"] == ["quality"]
        assert row["quality_cost"]["at_lowest"]["value"] == pytest.approx(-2)
        assert leakage({"complexity": row}, STEERLM)["complexity"]["quality"]["value"] == 2


def test_what_joins_scores_takes_those_of_one_judge() -> None:
    """The second scores complexity and quality, of which it sees two points lost at the bottom; the first, helpfulness
    besides, and sees nothing lost.
    """
    scores = {f"{SECOND}complexity": lambda p, k: float(k), f"{SECOND}quality": lambda p, k: 4.0 if k else 2.0}
    first = {f"{JUDGE}{name}": lambda p, k: 3.0 for name in ("complexity", "quality", "helpfulness")}
    row = figures(measured({**first, **scores}))
    assert row["own"] == f"{SECOND}complexity"
    assert set(row["quality_cost"]["measures"]) == {f"{JUDGE}quality", f"{JUDGE}helpfulness"}
    assert row["quality_cost"]["at_lowest"]["value"] == 0
    leaks = leakage({"complexity": row}, STEERLM)["complexity"]
    assert {name: cell["value"] for name, cell in leaks.items()} == {"complexity": 0, "quality": 0, "helpfulness": 0}


def test_the_cost_is_told_by_the_same_judge_whatever_is_swept() -> None:
    """The first scores four attributes of which more is better, the second three; without quality each three."""
    names = ("quality", "helpfulness", "correctness", "coherence")
    constant = {f"{JUDGE}{name}": lambda p, k: 3.0 for name in names}
    constant |= {f"{SECOND}{name}": lambda p, k: 3.0 for name in names[1:]}
    found = measured(constant)
    for swept, others in (("complexity", names), ("quality", names[1:])):
        asks = tuple(replace(ask, named=((swept, ask.named[0][1]),)) for ask in found.asks)
        row = sweep_figures(sweep_of(replace(found, asks=asks), STEERLM[swept]), STEERLM, 100, 0)
        assert row["quality_cost"]["measures"] == [f"{JUDGE}{name}" for name in others]


def test_without_a_judge_the_reading_grade_stands_in() -> None:
    row = figures(measured({"reading_grade": lambda p, k: 3.0 * k + RANDOM.normal(0, 1)}))
    assert (row["own"], row["verdict"], row["slope"]) == ("reading_grade", "steers", None)
    assert figures(measured({"words": lambda p, k: 3.0}))["verdict"] == "not measured"
    few = figures(measured({"reading_grade": lambda p, k: 3.0 * k if p < 1 or k < 2 else np.nan}))
    assert (few["verdict"], few["unscored"]["reading_grade"]) == ("too few prompts", [0, 0, *[PROMPTS - 1] * 3])


def test_what_is_only_length_goes_away_at_equal_length() -> None:
    """Scores are the logarithm of the length and nothing else; then with a point for each level besides."""
    long = {(p, k): 50.0 * (k + 1) * RANDOM.uniform(0.5, 2) for p in range(PROMPTS) for k in range(5)}

    def only_length(prompt: int, level: int) -> float:
        return float(np.log1p(long[prompt, level]))

    def characters(prompt: int, level: int) -> float:
        return long[prompt, level]

    bare = figures(measured({f"{JUDGE}complexity": only_length}, characters))
    assert bare["effects"][f"{JUDGE}complexity"]["value"] > 1
    assert bare["length_controlled"][0]["effect"]["value"] == pytest.approx(0, abs=1e-6)
    more = figures(measured({f"{JUDGE}complexity": lambda p, k: only_length(p, k) + k}, characters))
    assert more["length_controlled"][0]["effect"]["value"] == pytest.approx(4, abs=1e-6)


def test_texts_are_looked_at_beside_a_judge() -> None:
    """Scores follow to the letter; reading grades are the length's logarithm, and fall for every other prompt."""

    def characters(prompt: int, level: int) -> float:
        return 50.0 * (level + 1 if prompt % 2 else 5 - level)

    scores = {f"{JUDGE}complexity": lambda p, k: float(k), "reading_grade": lambda p, k: np.log1p(characters(p, k))}
    row = figures(measured(scores, characters))
    assert {name: found["value"] for name, found in row["within"].items()} == pytest.approx(
        {f"{JUDGE}complexity": 1, "reading_grade": 0, "characters": 0}
    )
    assert row["within"][f"{JUDGE}complexity"] == row["within_prompt"]
    assert row["within"]["characters"]["low"] < -0.3
    assert [item["measure"] for item in row["length_controlled"]] == [f"{JUDGE}complexity", "reading_grade"]
    assert row["length_controlled"][1]["effect"]["value"] == pytest.approx(0, abs=1e-6)


def test_figures_by_hand() -> None:
    """Every prompt is a point above what was asked but at the top: miss 4/5, slope (2*4+1*4-1*2-2*1)/10 = 0.8; quality
    falls by two points from the default (4) to the bottom.
    """
    scores = {f"{JUDGE}complexity": lambda p, k: min(k + 1.0, 4.0), f"{JUDGE}quality": lambda p, k: 4.0 if k else 2.0}
    found = measured(scores, lambda p, k: 10.0 * (k + 1))
    row = figures(found)
    assert row["miss"]["value"] == pytest.approx(0.8)
    assert row["slope"]["value"] == pytest.approx(0.8)
    assert row["ratio_of_length"]["value"] == pytest.approx(5)
    assert row["quality_cost"]["of"] == ["quality"]
    assert row["quality_cost"]["at_lowest"]["value"] == pytest.approx(-2)
    assert row["quality_cost"]["at_highest"]["value"] == 0
    assert [point["value"] for point in row["curves"]["characters"]] == [10, 20, 30, 40, 50]
    matrix = leakage({"complexity": row}, STEERLM)
    assert {name: cell["value"] for name, cell in matrix["complexity"].items()} == {"quality": 2, "complexity": 3}


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (lambda p, k: 2.0, "better"),
        (lambda p, k: float(k), "worse"),
        (lambda p, k: 0.5 * k + 1.0, "no difference shown"),
        (lambda p, k: 0.5 * k + 3.0, "better"),  # the same slope, but off the mark
        (lambda p, k: float(k) + 9.0, "better and worse"),  # steeper, and off the mark
    ],
)
def test_against_asking_in_words(words: Score, verdict: str) -> None:
    """The policy says 1, 1.5, 2, 2.5, 3: slope 1/2, and it misses by 1, 1/2, 0, 1/2, 1. Noise is the same for both but
    for a little of it, so that pairing by prompts tells them apart that differ by less than prompts do.
    """
    random = np.random.default_rng(0)
    base, rest = random.normal(0, 0.1, PROMPTS), random.normal(0, 0.01, (2, PROMPTS, 5))
    column = f"{JUDGE}complexity"

    def noisy(of: Score, noise_PL: np.ndarray) -> Sweep:
        return sweep_of(measured({column: lambda p, k: of(p, k) + base[p] + noise_PL[p, k]}), STEERLM["complexity"])

    found = against(noisy(lambda p, k: 0.5 * k + 1.0, rest[0]), noisy(words, rest[1]), True, 500, 0)
    assert found is not None
    assert found["verdict"] == verdict
    assert found["slope"]["value"] == pytest.approx(0.5 - (words(0, 4) - words(0, 0)) / 4, abs=0.02)


def test_one_that_is_deaf_is_not_better_than_words() -> None:
    """It lies in the middle of the scale, and so nearer to what is asked than what lies at its end."""
    column = f"{JUDGE}complexity"
    deaf, end = (sweep_of(measured({column: lambda p, k, at=at: at}), STEERLM["complexity"]) for at in (2.0, 4.0))
    found = against(deaf, end, False, 500, 0)
    assert found is not None
    assert found["miss"]["low"] > 0
    assert found["verdict"] == "does not steer"


def test_against_words_without_a_score() -> None:
    """Reading grades that follow, against ones that do not; of four prompts nothing is said."""
    grades, flat = {"reading_grade": lambda p, k: 3.0 * k}, {"reading_grade": lambda p, k: float((7 * p + 3 * k) % 5)}
    one, other = (sweep_of(measured(dict(of)), STEERLM["complexity"]) for of in (grades, flat))
    found = against(one, other, True, 500, 0)
    assert found is not None
    assert (found["verdict"], found["slope"]) == ("better", None)
    few = replace(one, values_PLM=one.values_PLM[:4]), replace(other, values_PLM=other.values_PLM[:4])
    assert (against(*few, True, 500, 0) or {})["verdict"] == "too few prompts"
    nothing = sweep_of(measured({"words": lambda p, k: 3.0}), STEERLM["complexity"])
    assert against(nothing, nothing, False, 500, 0) is None


def test_one_absurd_answer_does_not_make_up_the_perplexity() -> None:
    """At each level it is 2 and 8 by turns, 4 in the mean; at the top once e^50 besides, and once not measured."""

    def likely(prompt: int, level: int) -> float:
        if level == 4 and prompt < 2:
            return float(np.exp(50)) if prompt else float("nan")
        return 8.0 if prompt % 2 else 2.0

    row = figures(measured({PERPLEXITY: likely}))
    curve = row["curves"][PERPLEXITY]
    assert [point["value"] for point in curve[:4]] == pytest.approx([4] * 4)
    assert 2 <= curve[0]["low"] < 4 < curve[0]["high"] <= 8
    # Of eleven: five of 2, five of 8, and e^50.
    top = float(np.exp((5 * np.log(2) + 5 * np.log(8) + 50) / 11))
    assert curve[4]["value"] == pytest.approx(top)
    assert row["effects"][PERPLEXITY]["value"] == pytest.approx(top - 4)


def test_missing_scores_are_left_out() -> None:
    row = figures(measured({f"{JUDGE}complexity": lambda p, k: np.nan if p == 0 else float(k)}))
    assert row["verdict"] == "steers"
    assert row["curves"][f"{JUDGE}complexity"][3]["value"] == 3


def test_only_the_plain_sweep_is_taken() -> None:
    found = measured({f"{JUDGE}complexity": lambda p, k: float(k)})
    other = Measured(
        (*found.asks, Ask(0, (("complexity", 0),), 1), Ask(0, (("complexity", 4), ("humor", 1)))),
        (*found.answers, Answer("x", 1, False), Answer("y", 1, False)),
        {name: np.append(column, [99.0, 99.0]) for name, column in found.columns.items()},
    )
    assert sweep_of(other, STEERLM["complexity"]).values_PLM.shape == (PROMPTS, 5, 2)
    assert sweep_of(other, STEERLM["complexity"]).values_PLM.max() == 100


def test_means_by_weights_are_the_bootstrap() -> None:
    values = RANDOM.normal(size=(200, 2))
    ours = mean_estimates(values, draw_weights(200, 2000, 1))
    plain = bootstrap(lambda a: float(a.mean()), values[:, 0])
    assert ours[0].value == pytest.approx(plain.value)
    assert ours[0].low == pytest.approx(plain.low, abs=0.02)
    assert ours[0].high == pytest.approx(plain.high, abs=0.02)
    values[3, 1] = np.nan
    assert mean_estimates(values, draw_weights(200))[1].value == pytest.approx(np.nanmean(values[:, 1]))
