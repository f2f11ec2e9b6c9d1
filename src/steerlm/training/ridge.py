"""The start of an attribute model's head: a ridge regression of the ratings on the untrained backbone's states.

Shapes: R responses, D hidden, A attributes, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Candidates, relative to the mean variance of the states."""
_FOLDS = 5


@dataclass(frozen=True)
class RidgeFit:
    """What was chosen for one attribute: the penalty, and the mean squared error that cross-validation saw with it."""

    penalty: float
    error: float


def start_ridge(head: nn.Linear, states_RD: Tensor, rated_RA: Tensor, groups: Sequence[str]) -> dict[int, RidgeFit]:
    """Set each row of the head to a ridge solution over the responses that carry its rating (NaN: none).

    The penalty of each attribute is the one with the least error in cross-validation over `groups` (responses of one
    conversation stay together). The head has no bias, so that the mean rating rides on a direction along which all
    states are alike: the deviations from it are what is shrunk. Rows of attributes without ratings become zero.
    Returns what was chosen, by column.
    """
    states_RD = states_RD.double()
    constant_D = _constant_direction(states_RD)
    names = sorted(set(groups))
    fold_of = {name: index % _FOLDS for index, name in enumerate(names)}
    fold_R = torch.tensor([fold_of[name] for name in groups])
    chosen: dict[int, RidgeFit] = {}
    with torch.no_grad():
        for column in range(rated_RA.shape[1]):
            present_R = ~torch.isnan(rated_RA[:, column])
            if not present_R.any():
                head.weight[column].zero_()
                continue
            x_RD, y_R, group_R = states_RD[present_R], rated_RA[present_R, column].double(), fold_R[present_R]
            errors = {penalty: _cross_validated(x_RD, y_R, group_R, penalty, constant_D) for penalty in PENALTIES}
            best = min(errors, key=lambda penalty: errors[penalty])
            head.weight[column] = _ridge(x_RD, y_R, best, constant_D).to(head.weight)
            chosen[column] = RidgeFit(best, errors[best])
    return chosen


def _constant_direction(states_RD: Tensor) -> Tensor:
    """A vector whose product with every state is as near to 1 as a little shrinkage allows, [D]."""
    gram_DD = states_RD.T @ states_RD
    ridge = 1e-4 * gram_DD.diagonal().mean()
    return _solve(gram_DD, states_RD.sum(dim=0), ridge)


def _cross_validated(x_RD: Tensor, y_R: Tensor, fold_R: Tensor, penalty: float, constant_D: Tensor) -> float:
    """Mean squared error on the responses of the fold left out."""
    squared = []
    for fold in range(_FOLDS):
        held_out_R = fold_R == fold
        if held_out_R.all() or not held_out_R.any():
            continue
        weight_D = _ridge(x_RD[~held_out_R], y_R[~held_out_R], penalty, constant_D)
        squared.append((x_RD[held_out_R] @ weight_D - y_R[held_out_R]).square())
    return torch.cat(squared).mean().item() if squared else 0.0


def _ridge(x_RD: Tensor, y_R: Tensor, penalty: float, constant_D: Tensor) -> Tensor:
    """Weights that shrink towards always predicting the mean, [D]."""
    mean_D, mean = x_RD.mean(dim=0), y_R.mean()
    centred_RD = x_RD - mean_D
    if len(y_R) <= x_RD.shape[1]:
        weight_D = centred_RD.T @ _solve(centred_RD @ centred_RD.T, y_R - mean, penalty * _scale(centred_RD))
    else:
        weight_D = _solve(centred_RD.T @ centred_RD, centred_RD.T @ (y_R - mean), penalty * _scale(centred_RD))
    return weight_D + (mean - mean_D @ weight_D) * constant_D


def _scale(centred_RD: Tensor) -> Tensor:
    """Mean squared length of the centred states: what a penalty of 1 stands for; above 0 even for a lone state."""
    return centred_RD.square().sum(dim=1).mean().clamp_min(1e-9)


def _solve(gram: Tensor, right: Tensor, ridge: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), right)
    return solution
