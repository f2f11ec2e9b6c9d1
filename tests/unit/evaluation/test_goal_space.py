"""Steering errors against geometry by hand."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest

from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.evaluation.answers import JUDGE, PERPLEXITY, SECOND, Answer, Measured
from steerlm.evaluation.asks import Ask, goals, paraphrased, ways_of
from steerlm.evaluation.goal_space import consistency, coverage, goal_figures, grid_cells, steering_errors

START = np.array([[0.5, 0.5]])


@pytest.mark.parametrize(
    ("asked", "found", "error", "miscalibration", "orthogonality"),
    [
        ([1.0, 0.5], [1.0, 0.5], 0.0, 0.0, 0.0),  # done
        ([1.0, 0.5], [0.75, 0.5], 0.25, 0.5, 0.0),  # half the way
        ([0.75, 0.5], [1.0, 0.5], 0.25, 1.0, 0.0),  # twice the way
        ([1.0, 0.5], [1.0, 1.0], 0.5, 0.0, np.sqrt(0.5)),  # the way, and as far aside
        ([1.0, 0.5], [0.5, 1.0], np.sqrt(0.5), 1.0, 1.0),  # aside only
        ([1.0, 0.5], [0.5, 0.5], 0.5, 1.0, np.nan),  # not a step
        ([0.5, 0.5], [0.5, 1.0], 0.5, np.nan, np.nan),  # nothing asked for
    ],
)
def test_by_hand(
    asked: list[float], found: list[float], error: float, miscalibration: float, orthogonality: float
) -> None:
    errors = steering_errors(np.array([asked]), np.array([found]), START)
    assert errors["error"][0] == pytest.approx(error)
    assert errors["miscalibration"][0] == pytest.approx(miscalibration, nan_ok=True)
    assert errors["orthogonality"][0] == pytest.approx(orthogonality, nan_ok=True)


def test_along_and_across_make_up_the_error() -> None:
    random = np.random.default_rng(0)
    asked, found, start = random.uniform(size=(3, 50, 4))
    errors = steering_errors(asked, found, start)
    along = errors["miscalibration"] * np.linalg.norm(asked - start, axis=1)
    across = errors["orthogonality"] * np.linalg.norm(found - start, axis=1)
    capped = errors["orthogonality"] == 1
    assert np.allclose(np.hypot(along, across)[~capped], errors["error"][~capped])


def test_goals_cover_the_grid() -> None:
    asks = goals(STEERLM, ["verbosity", "humor"], 500, 4, seed=0)
    assert len(asks) == 2000
    counts = np.zeros((5, 5))
    for ask in asks:
        values = dict(ask.named)
        counts[values["verbosity"], values["humor"]] += 1
    assert counts.min() > 40
    assert asks == goals(STEERLM, ["verbosity", "humor"], 500, 4, seed=0)
    whole = goals(STEERLM, ["verbosity", "humor"], 1, 25, seed=0)
    assert len(set(whole)) == len(whole) == 25


@pytest.mark.parametrize("count", [3, 20])
def test_goals_of_a_prompt_differ(count: int) -> None:
    asks = goals(STEERLM, ["verbosity", "humor"], 50, count, seed=0)
    assert len(set(asks)) == len(asks) == 50 * count


def test_a_grid_that_fits_no_memory_is_drawn_from() -> None:
    """10^30 settings."""
    names = [f"a{k}" for k in range(30)]
    schema = Schema(tuple(Attribute(name, high=9) for name in names))
    asks = goals(schema, names, 2, 3, seed=0)
    assert len(set(asks)) == 6
    assert {level for ask in asks for _, level in ask.named} == set(range(10))
    assert goals(schema, names, 2, 0, seed=0) == []


def test_coverage() -> None:
    """Of 100 answers 90 are about 2, 6 about 4, 4 about 0: two of five levels are reached by one in twenty."""
    measured = np.array([2.2] * 90 + [3.9] * 6 + [0.0] * 4)
    assert coverage(STEERLM["humor"], measured) == pytest.approx(2 / 5)


def obedient(asks: list[Ask]) -> Measured:
    columns = {
        f"{JUDGE}{name}": np.array([float(ask.values(STEERLM)[name]) for ask in asks])
        for name in ("verbosity", "humor")
    }
    return Measured(tuple(asks), tuple(Answer("", 1, False) for _ in asks), columns)


def test_figures_of_one_that_does_what_it_is_asked() -> None:
    names = ["verbosity", "humor"]
    asks = [*(Ask(prompt, (("humor", 0),)) for prompt in range(5)), *goals(STEERLM, names, 5, 3, seed=1)]
    figures = goal_figures(obedient(asks), STEERLM, names, 200, 0)
    assert figures is not None
    assert figures["goals"] == 15
    assert figures["error"]["value"] == figures["miscalibration"]["value"] == 0
    assert figures["within_one_level"]["value"] == 1
    assert goal_figures(obedient(asks[:5]), STEERLM, names, 200, 0) is None


@pytest.mark.parametrize(("seconds", "error"), [(["humor"], 0), (["verbosity", "humor"], 2)])
def test_a_goal_is_measured_by_one_judge(seconds: list[str], error: float) -> None:
    """The first sees what is asked; the second, twice the scale too high on both, has the say where it scores both."""
    names = ["verbosity", "humor"]
    asks = [*(Ask(prompt, (("humor", 0),)) for prompt in range(5)), *goals(STEERLM, names, 5, 3, seed=1)]
    found = obedient(asks)
    columns = {**found.columns, **{f"{SECOND}{name}": found.columns[f"{JUDGE}{name}"] + 8 for name in seconds}}
    figures = goal_figures(replace(found, columns=columns), STEERLM, names, 200, 0)
    assert figures is not None
    assert figures["error"]["value"] == pytest.approx(np.hypot(error, error))


def test_cells_of_the_grid() -> None:
    """Three prompts at each of the 25 settings; at the corner (4, 4) they have 1, 2 and 6 characters and perplexities
    of 1, 2 and 4.
    """
    names = ["verbosity", "humor"]
    asks = [Ask(prompt, (("humor", 0),)) for prompt in range(3)] + goals(STEERLM, names, 3, 25, seed=1)
    found = obedient(asks)
    columns = {
        **found.columns,
        "characters": np.array([[1.0, 2.0, 6.0][ask.prompt] for ask in asks]),
        PERPLEXITY: np.array([[1.0, 2.0, 4.0][ask.prompt] for ask in asks]),
    }
    cells = grid_cells(Measured(found.asks, found.answers, columns), names)
    assert len(cells) == 25
    assert all(cell["n"] == 3 for cell in cells)
    (corner,) = (cell for cell in cells if cell["asked"] == {"verbosity": 4, "humor": 4})
    scores = {f"{JUDGE}{name}": 4 for name in names}
    assert corner["means"] == pytest.approx({**scores, "characters": 3, PERPLEXITY: 2})
    assert grid_cells(obedient(asks[:3]), names) == []


def test_consistency() -> None:
    """The same in all words; then a point more in each of the other frames than in the one before."""
    asks = [Ask(prompt, (("humor", level),)) for level in (0, 4) for prompt in range(3)]
    asks += paraphrased(STEERLM, ["humor"], [ways_of("Hi")] * 3)
    found = obedient(asks)
    same = consistency(found, ["humor"])
    assert same is not None
    assert same["humor"]["measure"] == f"{JUDGE}humor"
    assert same["humor"]["over_paraphrases"]["value"] == same["humor"]["over_prompts"]["value"] == 0
    shifted = found.columns[f"{JUDGE}humor"] + np.array([float(ask.paraphrase) for ask in asks])
    moved = Measured(found.asks, found.answers, {f"{JUDGE}humor": shifted})
    spread = consistency(moved, ["humor"])
    assert spread is not None
    assert spread["humor"]["over_paraphrases"]["value"] == pytest.approx(statistics.stdev([0, 1, 2, 3]))
    assert consistency(obedient(asks[:6]), ["humor"]) is None


def test_consistency_without_a_judge() -> None:
    """Verbosity by characters, of which each frame has ten more than the one before; nothing stands for humor."""
    asks = [Ask(prompt, ((name, level),)) for name in ("verbosity", "humor") for level in (0, 4) for prompt in range(3)]
    asks += paraphrased(STEERLM, ["verbosity", "humor"], [ways_of("Hi")] * 3)
    characters = np.array([10.0 * ask.paraphrase for ask in asks])
    found = consistency(
        Measured(tuple(asks), tuple(Answer("", 1, False) for _ in asks), {"characters": characters}),
        ["verbosity", "humor"],
    )
    assert found is not None
    assert set(found) == {"verbosity"}
    assert found["verbosity"]["measure"] == "characters"
    assert found["verbosity"]["over_paraphrases"]["value"] == pytest.approx(statistics.stdev([0, 10, 20, 30]))


@pytest.mark.parametrize("words", [("Hi", "Hello"), ways_of("Hi")])
def test_the_spread_over_few_words_is_as_that_over_many_prompts(words: tuple[str, ...]) -> None:
    """Noise of deviation 1 on everything: the variances of both are 1, on the mean over seeds, and their intervals hold
    it. Prompts beyond the first eight are not put in other words.
    """
    asks = [Ask(prompt, (("humor", level),)) for level in (0, 4) for prompt in range(16)]
    asks += paraphrased(STEERLM, ["humor"], [words] * 8)
    found = obedient(asks)
    spreads = []
    for seed in range(200):
        noise = found.columns[f"{JUDGE}humor"] + np.random.default_rng(seed).normal(size=len(asks))
        spread = consistency(replace(found, columns={f"{JUDGE}humor": noise}), ["humor"])
        assert spread is not None
        spreads.append([spread["humor"][kind] for kind in ("over_paraphrases", "over_prompts")])
    variances = [[figure["value"] ** 2 for figure in row] for row in spreads]
    assert np.mean(variances, axis=0) == pytest.approx(1, abs=0.1)
    held = np.mean([[figure["low"] <= 1 <= figure["high"] for figure in row] for row in spreads], axis=0)
    assert held.min() > 0.88


@pytest.mark.parametrize(("prompts", "has_interval"), [(1, False), (4, False), (5, True)])
def test_the_spread_over_few_prompts_has_no_interval(prompts: int, has_interval: bool) -> None:
    asks = [Ask(prompt, (("humor", level),)) for level in (0, 4) for prompt in range(prompts)]
    asks += paraphrased(STEERLM, ["humor"], [ways_of("Hi")] * prompts)
    noise = np.random.default_rng(0).normal(size=len(asks))
    spread = consistency(replace(obedient(asks), columns={f"{JUDGE}humor": noise}), ["humor"])
    assert spread is not None
    assert np.isfinite(spread["humor"]["over_paraphrases"]["value"])
    assert np.isfinite(spread["humor"]["over_paraphrases"]["low"]) == has_interval
    assert np.isfinite(spread["humor"]["over_prompts"]["value"]) == (prompts > 1)
