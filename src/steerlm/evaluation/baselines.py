"""What an attribute model has to beat: the mean rating, and a ridge regression on length and a few text statistics.

Shapes: R responses, A attributes, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerlm.evaluation.responses import RatedResponses
from steerlm.evaluation.text_measures import (
    has_code,
    has_refusal,
    list_share,
    reading_grade,
    repetition,
    type_token_ratio,
    words,
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_FOLDS = 5


@dataclass(frozen=True)
class Baselines:
    """What the baselines predict for the evaluated responses, [R, A] each, and what they were fitted on."""

    mean_RA: Floats
    ridge_RA: Floats
    fitted_on: str


def text_statistics(response: str, prompt: str) -> list[float]:
    """The features of a response, [F]: lengths on a logarithmic scale, and measures of the text (a grade of 0 where it
    has none).
    """
    found, grade = words(response), reading_grade(response)
    return [
        np.log1p(len(response)),
        np.log1p(len(found)),
        np.log1p(len(prompt)),
        sum(map(len, found)) / max(1, len(found)),
        0.0 if math.isnan(grade) else grade,
        type_token_ratio(response),
        list_share(response),
        has_code(response),
        repetition(response),
        has_refusal(response),
        float(response.count("?") > 0),
        float(response.count("!") > 0),
    ]


def baselines(evaluated: RatedResponses, train: RatedResponses | None) -> Baselines:
    """Fit on `train`, or, without it, on the evaluated responses themselves.

    Then the mean is that of all of them, the constant that errs the least on them: means of parts of the data could be
    beaten by a constant. About it the ridge is cross-validated: its weights for a conversation are fitted
    on conversations that share no prompt with it.
    """
    features_RF = _features(evaluated)
    shape = evaluated.rated_RA.shape
    mean_RA, ridge_RA = np.full(shape, np.nan), np.full(shape, np.nan)
    train_RF = features_RF if train is None else _features(train)
    source = evaluated if train is None else train
    # What is predicted, and whether what it is predicted from is all or a part of the source.
    splits: list[tuple[slice | Mask, bool | Mask]] = [(slice(None), True)]
    if train is None:
        fold_R = folds(evaluated.group_R)
        splits = [(fold_R == fold, fold_R != fold) for fold in range(_FOLDS)]
    for column in range(shape[1]):
        rated_R = source.rated_RA[:, column]
        known_R = ~np.isnan(rated_R)
        if not known_R.any():
            continue
        mean = float(rated_R[known_R].mean())
        mean_RA[:, column] = mean
        for target_R, fitting_R in splits:
            source_R = known_R & fitting_R
            if not source_R.any():
                continue
            predict = fit_ridge(train_RF[source_R], rated_R[source_R], folds(source.group_R[source_R]))
            ridge_RA[target_R, column] = predict(features_RF[target_R]) + (mean - rated_R[source_R].mean())
    what = "the training data" if train is not None else f"the evaluated data (ridge: {_FOLDS}-fold cross-validation)"
    return Baselines(mean_RA, ridge_RA, what)


def ridges(train: RatedResponses) -> dict[str, Callable[[Floats], Floats]]:
    """For each attribute that is rated, the ridge regression that is fitted on `train`: from features to ratings."""
    features_RF, fitted = _features(train), {}
    for column, name in enumerate(train.schema.names):
        rated_R = train.rated_RA[:, column]
        known_R = ~np.isnan(rated_R)
        if known_R.any():
            fitted[name] = fit_ridge(features_RF[known_R], rated_R[known_R], folds(train.group_R[known_R]))
    return fitted


def _features(responses: RatedResponses) -> Floats:
    pairs = zip(responses.texts, responses.prompts, strict=True)
    return np.array([text_statistics(text, prompt) for text, prompt in pairs], dtype=np.float64)


def folds(group_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fold of each response; conversations that share a prompt stay together."""
    _, number = np.unique(group_R, return_inverse=True)
    random = np.random.default_rng(0)
    return np.asarray(random.permutation(number.max() + 1 if len(number) else 0)[number] % _FOLDS)


def fit_ridge(features_RF: Floats, rated_R: Floats, fold_R: NDArray[np.int64]) -> Callable[[Floats], Floats]:
    """A ridge regression on standardised features, with the penalty of the least error on the folds left out."""
    errors = [_left_out_error(features_RF, rated_R, fold_R, penalty) for penalty in _PENALTIES]
    return _ridge(features_RF, rated_R, _PENALTIES[int(np.argmin(errors))])


def _left_out_error(features_RF: Floats, rated_R: Floats, fold_R: NDArray[np.int64], penalty: float) -> float:
    total = 0.0
    for fold in np.unique(fold_R):
        held_out_R = fold_R == fold
        if held_out_R.all():
            continue
        predict = _ridge(features_RF[~held_out_R], rated_R[~held_out_R], penalty)
        total += float(np.square(predict(features_RF[held_out_R]) - rated_R[held_out_R]).sum())
    return total


def _ridge(features_RF: Floats, rated_R: Floats, penalty: float) -> Callable[[Floats], Floats]:
    mean_F, mean = features_RF.mean(axis=0), float(rated_R.mean())
    scale_F = features_RF.std(axis=0)
    scale_F[scale_F < 1e-9] = 1.0
    x_RF = (features_RF - mean_F) / scale_F
    weight_F = np.linalg.solve(x_RF.T @ x_RF + penalty * np.eye(x_RF.shape[1]), x_RF.T @ (rated_R - mean))
    return lambda new_RF: (new_RF - mean_F) / scale_F @ weight_F + mean
