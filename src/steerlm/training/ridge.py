"""The start of an attribute model's head: a ridge regression of the ratings on the untrained backbone's states.

Shapes: R responses, D hidden, A attributes, P penalties, K eigenvectors.
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
        for columns in _rated_alike(rated_RA):
            present_R = ~torch.isnan(rated_RA[:, columns[0]])
            if not present_R.any():
                head.weight[columns] = 0.0
                continue
            x_RD, y_RA = states_RD[present_R], rated_RA[present_R][:, columns].double()
            errors_PA = _cross_validated(x_RD, y_RA, fold_R[present_R], constant_D)
            ridge = _Ridge(x_RD, y_RA, constant_D)
            for place, column in enumerate(columns):
                best = int(errors_PA[:, place].argmin())
                head.weight[column] = ridge.weights_DA(PENALTIES[best])[:, place].to(head.weight)
                chosen[column] = RidgeFit(PENALTIES[best], errors_PA[best, place].item())
    return chosen


def _rated_alike(rated_RA: Tensor) -> list[list[int]]:
    """The columns, those with ratings of the same responses together: they share all but the ratings themselves."""
    columns: dict[bytes, list[int]] = {}
    for column, present_R in enumerate(~torch.isnan(rated_RA.T)):
        columns.setdefault(present_R.numpy().tobytes(), []).append(column)
    return list(columns.values())


def _constant_direction(states_RD: Tensor) -> Tensor:
    """A vector whose product with every state is as near to 1 as a little shrinkage allows, [D]."""
    gram_DD = states_RD.T @ states_RD
    shrinkage = 1e-4 * gram_DD.diagonal().mean() * torch.eye(len(gram_DD), dtype=gram_DD.dtype)
    direction_D: Tensor = torch.linalg.solve(gram_DD + shrinkage, states_RD.sum(dim=0))
    return direction_D


def _cross_validated(x_RD: Tensor, y_RA: Tensor, fold_R: Tensor, constant_D: Tensor) -> Tensor:
    """Mean squared error of each penalty on the responses of the fold left out, [P, A]."""
    squared = []
    for fold in range(_FOLDS):
        held_out_R = fold_R == fold
        if held_out_R.all() or not held_out_R.any():
            continue
        ridge = _Ridge(x_RD[~held_out_R], y_RA[~held_out_R], constant_D)
        predicted_PRA = torch.stack([x_RD[held_out_R] @ ridge.weights_DA(penalty) for penalty in PENALTIES])
        squared.append((predicted_PRA - y_RA[held_out_R]).square())
    if not squared:
        return y_RA.new_zeros(len(PENALTIES), y_RA.shape[1])
    return torch.cat(squared, dim=1).mean(dim=1)


class _Ridge:
    """Regressions of some ratings on the same states that shrink towards always predicting the mean.

    One eigendecomposition of the centred states' normal equations, of the smaller of their two forms, serves every
    penalty and every attribute.
    """

    def __init__(self, x_RD: Tensor, y_RA: Tensor, constant_D: Tensor) -> None:
        self._mean_D, self._mean_A, self._constant_D = x_RD.mean(dim=0), y_RA.mean(dim=0), constant_D
        x_RD, y_RA = x_RD - self._mean_D, y_RA - self._mean_A
        # Mean squared length of the states: what a penalty of 1 stands for; above 0 even for a lone state.
        self._scale = x_RD.square().sum(dim=1).mean().clamp_min(1e-9)
        if len(x_RD) <= x_RD.shape[1]:
            values_K, basis_RK = torch.linalg.eigh(x_RD @ x_RD.T)
            self._along_KA, self._basis_DK = basis_RK.T @ y_RA, x_RD.T @ basis_RK
        else:
            values_K, self._basis_DK = torch.linalg.eigh(x_RD.T @ x_RD)
            self._along_KA = self._basis_DK.T @ (x_RD.T @ y_RA)
        self._values_K = values_K.clamp_min(0)  # rounding may leave less

    def weights_DA(self, penalty: float) -> Tensor:
        shrunk_KA = self._along_KA / (self._values_K + penalty * self._scale)[:, None]
        weights_DA: Tensor = self._basis_DK @ shrunk_KA
        weights_DA += torch.outer(self._constant_D, self._mean_A - self._mean_D @ weights_DA)
        return weights_DA
