"""Losses as pure functions. Each is a sum and its count, never a mean: the caller divides once, by the global
count, so that neither micro-batches nor packing nor the number of ranks can change it.

Shapes: N trained tokens, C tokens of a chunk, D hidden, V vocabulary, K rows of it, R responses, A attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of an output matrix that stand in another one: those of `tokens_K` are `values_KD`."""

    tokens_K: Tensor
    values_KD: Tensor


def token_nll(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log p(target) of each token in nats, in float32. Returns [N]."""
    return functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def linear_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int, rows: Rows | None = None) -> Tensor:
    """`token_nll` of the logits `hidden @ weight.T`, which never exist for more than `chunk` tokens at a time; where
    `rows` are given, they stand in place of the weight's own.

    The backward pass computes each chunk's logits again. Returns [N].
    """
    tokens_K, values_KD = (rows.tokens_K, rows.values_KD) if rows else (None, None)
    return _LinearNLL.apply(hidden_ND, weight_VD, values_KD, tokens_K, targets_N, chunk)  # type: ignore[no-any-return, no-untyped-call]


def linear_weighted_nll(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor, chunk: int, rows: Rows | None = None
) -> LossSum:
    """`weighted_nll` of `linear_nll`, for less: as the weights are known, the forward pass makes the gradients of
    each chunk while its logits exist, and the backward pass only scales them.
    """
    tokens_K, values_KD = (rows.tokens_K, rows.values_KD) if rows else (None, None)
    total = _LinearWeightedNLL.apply(hidden_ND, weight_VD, values_KD, tokens_K, targets_N, weights_N, chunk)  # type: ignore[no-untyped-call]
    return LossSum(total, weights_N.sum())


def _chunks(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, count)) for start in range(0, count, chunk))


class _Head:
    """Logits of chunks of tokens, and the gradients of sum_i scale_i * nll_i, of which d nll / d logits is
    p - onehot(target). Products are computed as autocast wants them, sums in the parameters' own type.
    """

    def __init__(
        self,
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        values_KD: Tensor | None,
        tokens_K: Tensor | None,
        targets_N: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.hidden_ND, self.weight_VD, self.targets_N = hidden_ND.to(dtype), weight_VD.to(dtype), targets_N
        self.values_KD, self.tokens_K = None if values_KD is None else values_KD.to(dtype), tokens_K
        needs_hidden, needs_weight, needs_values = ctx.needs_input_grad[:3]
        self.hidden_grad_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        self.weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        self.values_grad_KD = (
            torch.zeros_like(values_KD, dtype=torch.float32) if values_KD is not None and needs_values else None
        )

    @property
    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """By the hidden states, the weight, and the rows in its place; None for what is not trained."""
        return self.hidden_grad_ND, self.weight_grad_VD, self.values_grad_KD

    def log_probabilities(self, part: slice) -> tuple[Tensor, Tensor]:
        """Log p of the whole vocabulary, [C, V], and -log p(target), [C], in float32."""
        logits_CV = self.hidden_ND[part] @ self.weight_VD.T
        if self.values_KD is not None:
            logits_CV[:, self.tokens_K] = self.hidden_ND[part] @ self.values_KD.T
        logp_CV = functional.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
        return logp_CV, -logp_CV.gather(1, self.targets_N[part, None]).squeeze(1)

    def add_gradients(self, part: slice, logp_CV: Tensor, scale_C: Tensor) -> None:
        """Add what the tokens of `part` contribute. Uses `logp_CV` up."""
        if all(gradient is None for gradient in self.gradients):
            return
        error_CV = logp_CV.exp_()
        error_CV[torch.arange(len(scale_C), device=scale_C.device), self.targets_N[part]] -= 1.0
        error_CV = error_CV.mul_(scale_C[:, None]).to(self.hidden_ND.dtype)
        if self.values_KD is not None:
            error_CK = error_CV[:, self.tokens_K]
            error_CV[:, self.tokens_K] = 0.0  # the weight's own rows have no part in it
            _add_product(self.values_grad_KD, error_CK, self.hidden_ND[part])
        if self.hidden_grad_ND is not None:
            self.hidden_grad_ND[part] = error_CV @ self.weight_VD
            if self.values_KD is not None:
                self.hidden_grad_ND[part] += error_CK @ self.values_KD
        _add_product(self.weight_grad_VD, error_CV, self.hidden_ND[part])


def _add_product(total_VD: Tensor | None, error_CV: Tensor, hidden_CD: Tensor) -> None:
    if total_VD is None:
        return
    if error_CV.dtype == torch.float32:
        total_VD.addmm_(error_CV.T, hidden_CD)
    else:
        total_VD += error_CV.T @ hidden_CD


def _product_type(hidden_ND: Tensor) -> torch.dtype:
    device = hidden_ND.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype


class _LinearNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        values_KD: Tensor | None,
        tokens_K: Tensor | None,
        targets_N: Tensor,
        chunk: int,
    ) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, values_KD, tokens_K, targets_N)
        ctx.chunk, ctx.dtype = chunk, _product_type(hidden_ND)
        head = _Head(ctx, hidden_ND, weight_VD, values_KD, tokens_K, targets_N, ctx.dtype)
        parts = [head.log_probabilities(part)[1] for part in _chunks(len(targets_N), chunk)]
        return torch.cat(parts) if parts else hidden_ND.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale_N,) = gradients
        hidden_ND, weight_VD, values_KD, tokens_K, targets_N = ctx.saved_tensors
        head = _Head(ctx, hidden_ND, weight_VD, values_KD, tokens_K, targets_N, ctx.dtype)
        for part in _chunks(len(targets_N), ctx.chunk):
            head.add_gradients(part, head.log_probabilities(part)[0], scale_N[part])
        return *head.gradients, None, None, None


class _LinearWeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        values_KD: Tensor | None,
        tokens_K: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor,
        chunk: int,
    ) -> Tensor:
        head = _Head(ctx, hidden_ND, weight_VD, values_KD, tokens_K, targets_N, _product_type(hidden_ND))
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        for part in _chunks(len(targets_N), chunk):
            logp_CV, nll_C = head.log_probabilities(part)
            total += (nll_C * weights_N[part]).sum()  # autocast would round a product of vectors
            head.add_gradients(part, logp_CV, weights_N[part])
        ctx.gradients = head.gradients
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        found = [None if gradient is None else gradient.mul_(scale) for gradient in ctx.gradients]
        del ctx.gradients  # scaled in place: good for one backward pass
        return *found, None, None, None, None


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
