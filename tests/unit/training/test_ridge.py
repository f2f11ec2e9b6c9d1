"""The start of the head against ridge regressions by NumPy's least squares."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from steerlm.training.ridge import PENALTIES, RidgeFit, start_ridge

Floats = NDArray[np.float64]
NAN = math.nan


def least_squares(x: Floats, y: Floats, ridge: float) -> Floats:
    """Argmin |x w - y|^2 + ridge |w|^2, as ordinary least squares with one more row for each weight."""
    rows = np.vstack([x, math.sqrt(ridge) * np.eye(x.shape[1])])
    solution: Floats = np.linalg.lstsq(rows, np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0]
    return solution


def reference(x: Floats, y: Floats, penalty: float, constant: Floats) -> Floats:
    """The deviations from the mean are shrunk; the mean rides on the direction along which states are alike."""
    centred = x - x.mean(axis=0)
    w = least_squares(centred, y - y.mean(), penalty * (centred**2).sum(axis=1).mean())
    return w + (y.mean() - x.mean(axis=0) @ w) * constant


def data(responses: int, hidden: int, seed: int = 0) -> tuple[Floats, Floats, list[str]]:
    """States with an offset that all share, ratings that depend on two of their dimensions, conversations of three."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(responses, hidden)) + 30 * np.sin(1 + np.arange(hidden))
    y = 2 + 0.5 * x[:, 0] - 0.25 * x[:, 1] + 0.1 * random.normal(size=responses)
    return x, y, [f"conversation-{index // 3}" for index in range(responses)]


def started(x: Floats, ratings: Floats, groups: list[str]) -> tuple[nn.Linear, dict[int, RidgeFit]]:
    head = nn.Linear(x.shape[1], ratings.shape[1], bias=False).double()
    return head, start_ridge(head, torch.from_numpy(x), torch.from_numpy(ratings), groups)


@pytest.mark.parametrize(("responses", "hidden"), [(9, 12), (12, 12), (60, 12)])
def test_weights_and_chosen_penalty(responses: int, hidden: int) -> None:
    """Fewer responses than dimensions, as many, and more: the same regression from either normal equation."""
    x, y, groups = data(responses, hidden)
    head, chosen = started(x, y[:, None], groups)
    gram_mean = (x**2).sum() / hidden
    constant = least_squares(x, np.ones(responses), 1e-4 * gram_mean)
    fold = np.array([sorted(set(groups)).index(name) % 5 for name in groups])
    errors = {}
    for penalty in PENALTIES:
        squared = [
            (x[fold == k] @ reference(x[fold != k], y[fold != k], penalty, constant) - y[fold == k]) ** 2
            for k in set(fold)
        ]
        errors[penalty] = np.concatenate(squared).mean()
    best = min(errors, key=lambda penalty: errors[penalty])
    assert chosen[0].penalty == best
    assert chosen[0].error == pytest.approx(errors[best])
    np.testing.assert_allclose(head.weight.detach().numpy()[0], reference(x, y, best, constant), rtol=1e-6, atol=1e-8)


def test_the_start_is_better_than_the_mean() -> None:
    x, y, groups = data(60, 12)
    head, chosen = started(x[:45], y[:45, None], groups[:45])
    error = ((head(torch.from_numpy(x[45:])).detach().numpy()[:, 0] - y[45:]) ** 2).mean()
    assert error < 0.2 * y[45:].var()
    assert chosen[0].error < 0.2 * y[:45].var()


def test_noise_is_shrunk_to_the_mean() -> None:
    """Ratings that have nothing to do with the states: the largest penalty wins, predictions stay near the mean."""
    x, _, groups = data(40, 30)
    y = 3 + np.random.default_rng(5).normal(size=40)
    head, chosen = started(x, y[:, None], groups)
    assert chosen[0].penalty == max(PENALTIES)
    predicted = head(torch.from_numpy(x)).detach().numpy()[:, 0]
    assert abs(predicted.mean() - y.mean()) < 0.1
    assert predicted.std() < 0.5 * y.std()


def test_each_attribute_learns_from_its_own_ratings() -> None:
    x, y, groups = data(30, 8)
    ratings = np.stack([y, np.where(np.arange(30) % 2, y + 1, NAN), np.full(30, NAN)], axis=1)
    head, chosen = started(x, ratings, groups)
    assert sorted(chosen) == [0, 1]
    assert not head.weight[2].any()
    half = np.arange(30) % 2 == 1
    weights = head.weight.detach().numpy()
    constant = least_squares(x, np.ones(30), 1e-4 * (x**2).sum() / 8)
    expected = reference(x[half], y[half] + 1, chosen[1].penalty, constant)
    np.testing.assert_allclose(weights[1], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("responses", "hidden"), [(12, 15), (30, 8)])
def test_attributes_rated_alike_are_each_as_if_alone(responses: int, hidden: int) -> None:
    x, y, groups = data(responses, hidden)
    ratings = np.stack([y, np.full(responses, NAN), 4 - y + np.sin(np.arange(responses))], axis=1)
    head, chosen = started(x, ratings, groups)
    for column in (0, 2):
        alone, fits = started(x, ratings[:, [column]], groups)
        torch.testing.assert_close(head.weight[column], alone.weight[0], rtol=1e-9, atol=1e-12)
        assert astuple(chosen[column]) == pytest.approx(astuple(fits[0]))


def test_penalties_and_attributes_share_decompositions(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each of the five folds and one for all responses, whatever the number of penalties and attributes."""
    calls = []
    real = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda gram: calls.append(gram) or real(gram))
    x, y, groups = data(30, 8)
    started(x, np.stack([y, y + 1, y**2], axis=1), groups)
    assert len(calls) == 6


@pytest.mark.parametrize("rated", [1, 2])
def test_an_attribute_that_was_rated_once_or_twice(rated: int) -> None:
    """With nothing to compare, the head says the mean."""
    x, _, groups = data(12, 6)
    ratings = np.full((12, 1), NAN)
    ratings[:rated, 0] = 3.0
    head, _ = started(x, ratings, groups)
    predicted = head(torch.from_numpy(x)).detach().numpy()[:, 0]
    np.testing.assert_allclose(predicted, 3.0, atol=0.2)


def test_one_conversation_cannot_be_cross_validated() -> None:
    x, y, _ = data(12, 6)
    head, chosen = started(x, y[:, None], ["only"] * 12)
    assert head.weight.isfinite().all()
    assert chosen[0].penalty in PENALTIES


def test_equal_states_tell_nothing() -> None:
    x = np.tile(np.random.default_rng(0).normal(size=5), (8, 1))
    head, _ = started(x, np.arange(8.0)[:, None], [f"{k}" for k in range(8)])
    np.testing.assert_allclose(head(torch.from_numpy(x)).detach().numpy(), 3.5, rtol=1e-3)
