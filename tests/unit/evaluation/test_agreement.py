"""Verdicts on attribute models: what is there is found, and what chance gives is not taken for it."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.evaluation.agreement import Evaluated, attribute_figures, swapped_outputs
from steerlm.evaluation.attribute_settings import AttributeEvaluationSettings
from steerlm.evaluation.attribute_tables import evaluation_view
from steerlm.evaluation.baselines import baselines
from steerlm.evaluation.responses import RatedResponses
from steerlm.pages import figure

Floats = NDArray[np.float64]
SETTINGS = AttributeEvaluationSettings(resamples=200)


def evaluated(rated_RA: Floats, predicted_RA: Floats, answers: int = 1, schema: Schema = STEERLM) -> Evaluated:
    """Responses, so many to a conversation, of one text."""
    number = np.arange(len(rated_RA))
    places, texts = tuple((int(k) // answers, 1 + int(k) % answers) for k in number), ("",) * len(number)
    conversation = number // answers
    source = np.full(len(number), "survey")
    responses = RatedResponses(
        schema, places, conversation, conversation, conversation, source, rated_RA, texts=texts, prompts=texts
    )
    return Evaluated(responses, predicted_RA, unscored=0)


def correlated(seed: int, correlation: float, columns: list[int], count: int = 1000) -> Evaluated:
    """Responses whose ratings each output follows to some degree, with the outputs in the order `columns`."""
    generator = np.random.default_rng(seed)
    rated_RA = generator.normal(size=(count, len(STEERLM)))
    noise_RA = generator.normal(size=rated_RA.shape)
    predicted_RA = correlation * rated_RA + np.sqrt(1 - correlation**2) * noise_RA
    return evaluated(rated_RA, predicted_RA[:, columns])


def test_a_single_pair_of_weak_outputs_that_were_exchanged_is_found() -> None:
    """Each correlates by 0.2 with the ratings; the seven others are in place and tell of no gain."""
    exchanged = list(range(len(STEERLM)))
    exchanged[2], exchanged[5] = 5, 2
    names = STEERLM.names
    for seed in range(10):
        found = swapped_outputs(correlated(seed, 0.2, exchanged), SETTINGS)
        assert found["found"]
        assert found["order"] == {names[2]: names[5], names[5]: names[2]}


@pytest.mark.parametrize("correlation", [0.0, 0.05, 0.2])
def test_outputs_in_place_are_not_called_mixed_up(correlation: float) -> None:
    """Not even those that follow no rating, of which some order always fits better by chance; 5% may be wrong."""
    in_place = list(range(len(STEERLM)))
    found = [swapped_outputs(correlated(seed, correlation, in_place), SETTINGS)["found"] for seed in range(20)]
    assert sum(found) <= 2


@pytest.mark.parametrize("conversations", [2, 5, 20])
def test_who_always_says_the_mean_beats_nothing(conversations: int) -> None:
    """Ratings are drawn about 2, and the model says 2, which is nearer than the mean of some of the ratings."""
    verdicts = []
    for seed in range(4):
        shape = (3 * conversations, len(STEERLM))
        rated_RA = np.clip(np.random.default_rng(seed).normal(2, 1, shape), 0, 4)
        found = evaluated(rated_RA, np.full(shape, 2.0), answers=3)
        rows = attribute_figures(found, baselines(found.responses, None), SETTINGS).values()
        verdicts += [row["verdict"] for row in rows]
    assert len(verdicts) == 36
    assert not [verdict for verdict in verdicts if verdict.startswith("beats")]


@pytest.mark.parametrize(
    ("conversations", "verdict"),
    [(19, "too few to compare (19 independent of at least 20)"), (20, "beats both baselines")],
)
def test_few_conversations_give_no_verdict(conversations: int, verdict: str) -> None:
    """A model that is right in all."""
    rated_RA = np.random.default_rng(0).integers(0, 5, (3 * conversations, len(STEERLM))).astype(float)
    found = evaluated(rated_RA, rated_RA, answers=3)
    rows = attribute_figures(found, baselines(found.responses, None), SETTINGS)
    assert {row["verdict"] for row in rows.values()} == {verdict}


def test_the_mean_of_the_evaluated_data_errs_the_least() -> None:
    """As numpy has it: its error is their standard deviation. The ridge, with texts that are all alike, says it too."""
    rated_RA = np.random.default_rng(0).normal(2, 1, (60, len(STEERLM)))
    rated_RA[::2, 0] = np.nan
    found = evaluated(rated_RA, rated_RA, answers=3)
    fitted = baselines(found.responses, None)
    assert np.allclose(fitted.mean_RA, np.nanmean(rated_RA, axis=0))
    assert np.allclose(fitted.ridge_RA, fitted.mean_RA)
    row = attribute_figures(found, fitted, SETTINGS)["quality"]["overall"]
    assert row["mean"]["rmse"] == pytest.approx(np.nanstd(rated_RA[:, 0]))


@pytest.mark.parametrize(("count", "found"), [(40, False), (60, True)])
def test_few_conversations_do_not_show_a_mix_up(count: int, found: bool) -> None:
    """Outputs that are entirely right, two of them exchanged; two fifths of the conversations are compared on."""
    exchanged = list(range(len(STEERLM)))
    exchanged[2], exchanged[5] = 5, 2
    swapped = swapped_outputs(correlated(0, 1.0, exchanged, count), SETTINGS)
    assert swapped["found"] == found
    assert (swapped["gain"] is not None) == found
    assert (swapped["unchecked"] is None) == found


def test_one_conversation_has_no_interval() -> None:
    """Its four responses are drawn together or not at all: all draws are the same."""
    rated_RA = np.array([[0], [1], [3], [4]])
    found = evaluated(rated_RA, np.array([[1], [0], [3], [3]]), answers=4, schema=Schema((Attribute("mood"),)))
    [row] = attribute_figures(found, baselines(found.responses, None), SETTINGS).values()
    for estimate in (*row["overall"]["model"].values(), row["calibration"][0]["rated"]):
        assert np.isfinite(estimate["value"])
        assert np.isnan([estimate["low"], estimate["high"]]).all()
    assert figure(row["overall"]["model"]["pearson"], 3) == "0.852"


def test_levels_of_scales_that_begin_elsewhere() -> None:
    """Ratings of 1, 2, 5 on a scale from 1 and of -1, 0, 0 on one from -1, each predicted one too low but for the
    lowest.
    """
    schema = Schema((Attribute("stars", low=1, high=5), Attribute("mood", low=-1, high=1, default=0)))
    found = evaluated(np.array([[1, -1], [2, 0], [5, 0]]), np.array([[1, -1], [1, -1], [4, -1]]), schema=schema)
    rows = attribute_figures(found, baselines(found.responses, None), SETTINGS)
    assert rows["stars"]["levels"] == [1, 2, 3, 4, 5]
    assert rows["mood"]["levels"] == [-1, 0, 1]
    assert rows["mood"]["confusion"] == [[1, 0, 0], [2, 0, 0], [0, 0, 0]]
    record = {"attributes": rows, "swapped_outputs": swapped_outputs(found, SETTINGS), "unscored": 0}
    record |= {"responses": 3, "conversations": 3, "baselines_fitted_on": "these"}
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(evaluation_view(record))
    text = shown.export_text()
    assert "whether outputs are mixed up is not checked: too few conversations (1 independent" in text
    table = text.partition("Rounded levels")[2].splitlines()
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in table if "│" in line or "┃" in line]
    assert cells[0][2:] == ["-1", "0", "1", "2", "3", "4", "5"]
    assert cells[1] == ["stars", "1", "", "", "1", "0", "0", "0", "0"]
    assert cells[2] == ["", "2", "", "", "1", "0", "0", "0", "0"]
    assert cells[5] == ["", "5", "", "", "0", "0", "0", "1", "0"]
    assert cells[7] == ["", "0", "2", "0", "0", "", "", "", ""]
