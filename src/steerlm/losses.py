"""Losses as pure functions. Each is a sum and its count, never a mean: the caller divides once, by the global
count, so that neither micro-batches nor packing nor the number of ranks can change it.

Shapes: N trained tokens, V vocabulary, R responses, A attributes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import register_dataclass
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss before its division: scalar `total` (differentiable) and scalar `count`."""

    total: Tensor
    count: Tensor


# FSDP looks for the tensors that a backward pass starts from in what a module returns.
register_dataclass(LossSum)


def token_nll(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log p(target) of each token in nats, in float32. Returns [N]."""
    return functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def weighted_nll(nll_N: Tensor, weights_N: Tensor) -> LossSum:
    """sum_i w_i * nll_i with count sum_i w_i: the attribute-conditioned SFT loss (arXiv 2310.05344, step 3)."""
    return LossSum((nll_N * weights_N).sum(), weights_N.sum())


def masked_squared_error(predicted_RA: Tensor, rated_RA: Tensor, weights: Tensor | None = None) -> LossSum:
    """Sum w (predicted - rated)^2 over the ratings present (NaN marks a missing one), with count sum w.

    `weights` broadcasts to [R, A]: one for each attribute, each response, or both.
    """
    present_RA = ~torch.isnan(rated_RA)
    error_RA = predicted_RA.float() - torch.where(present_RA, rated_RA, predicted_RA.detach().float())
    mask_RA = present_RA.float() if weights is None else present_RA.float() * weights
    return LossSum((mask_RA * error_RA.square()).sum(), mask_RA.sum())


def contrast(own_R: Tensor, other_R: Tensor, sharpness: float) -> LossSum:
    """-sum log sigmoid(sharpness * (own - other)) with count R.

    `own` and `other` are log-likelihoods of the same response under its own labels and under those of a sibling.
    By Bayes' rule their difference is the log-odds with which the policy, used as a classifier, tells the right
    labels from the wrong ones; the loss is that classifier's logistic loss.
    """
    gap_R = own_R - other_R
    return LossSum(-functional.logsigmoid(sharpness * gap_R).sum(), gap_R.new_tensor(float(gap_R.numel())))
