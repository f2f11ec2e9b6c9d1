"""Losses with numbers derived by hand. Shapes as in `steerlm.losses`."""

from __future__ import annotations

import math

import pytest
import torch

from steerlm.losses import contrast, masked_squared_error, token_nll, weighted_nll

NAN = math.nan


def test_token_nll() -> None:
    """Logits log(1), log(2), log(5) are the probabilities 1/8, 2/8, 5/8: -log p is log 8, log 4, log 1.6."""
    logits_NV = torch.tensor([[1.0, 2.0, 5.0]]).log().repeat(3, 1)
    nll_N = token_nll(logits_NV, torch.tensor([0, 1, 2]))
    assert nll_N.tolist() == pytest.approx([math.log(8), math.log(4), math.log(1.6)])


def test_token_nll_is_computed_in_float32() -> None:
    """In bfloat16 a vocabulary of 1000 equal logits would give log 1000 = 6.9078 with two correct digits only."""
    nll_N = token_nll(torch.zeros(1, 1000, dtype=torch.bfloat16), torch.tensor([7]))
    assert nll_N.dtype == torch.float32
    assert nll_N.item() == pytest.approx(math.log(1000), rel=1e-6)


def test_weighted_nll() -> None:
    """1 * 2 + 0.5 * 4 + 0 * 100 = 4, count 1 + 0.5 + 0 = 1.5."""
    loss = weighted_nll(torch.tensor([2.0, 4.0, 100.0]), torch.tensor([1.0, 0.5, 0.0]))
    assert (loss.total.item(), loss.count.item()) == (4.0, 1.5)


def test_sums_do_not_depend_on_how_tokens_are_batched() -> None:
    """The reason for sums: parts add up to the whole, where means of unequal parts would not."""
    nll_N, weights_N = torch.rand(10), torch.rand(10)
    whole = weighted_nll(nll_N, weights_N)
    parts = [weighted_nll(nll_N[a:b], weights_N[a:b]) for a, b in ((0, 1), (1, 7), (7, 10))]
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item())
    assert sum(part.count.item() for part in parts) == pytest.approx(whole.count.item())


def test_masked_squared_error() -> None:
    """(3 - 1)^2 + (0 - 0.5)^2 + (2 - 4)^2 = 4 + 0.25 + 4 over three ratings present; NaN is none."""
    predicted_RA = torch.tensor([[3.0, 9.0], [0.0, 2.0]])
    rated_RA = torch.tensor([[1.0, NAN], [0.5, 4.0]])
    loss = masked_squared_error(predicted_RA, rated_RA)
    assert (loss.total.item(), loss.count.item()) == (8.25, 3.0)


def test_masked_squared_error_with_weights() -> None:
    """Attribute weights 2 and 0.5, response weights 1 and 3: 2*1*4 + 2*3*0.25 + 0.5*3*4 = 8 + 1.5 + 6 = 15.5 over
    2*1 + 2*3 + 0.5*3 = 9.5; the missing rating has no share in the count.
    """
    predicted_RA = torch.tensor([[3.0, 9.0], [0.0, 2.0]])
    rated_RA = torch.tensor([[1.0, NAN], [0.5, 4.0]])
    weights_RA = torch.tensor([2.0, 0.5]) * torch.tensor([[1.0], [3.0]])
    loss = masked_squared_error(predicted_RA, rated_RA, weights_RA)
    assert (loss.total.item(), loss.count.item()) == (15.5, 9.5)


def test_the_gradient_of_a_missing_rating_is_zero_and_not_nan() -> None:
    """d/dp (p - r)^2 = 2 (p - r): 4 for the first, 0 for the missing one."""
    predicted_RA = torch.tensor([[3.0, 9.0]], requires_grad=True)
    masked_squared_error(predicted_RA, torch.tensor([[1.0, NAN]])).total.backward()
    assert predicted_RA.grad is not None
    assert predicted_RA.grad.tolist() == [[4.0, 0.0]]


def test_no_ratings_at_all() -> None:
    loss = masked_squared_error(torch.ones(2, 3), torch.full((2, 3), NAN))
    assert (loss.total.item(), loss.count.item()) == (0.0, 0.0)


def test_contrast() -> None:
    """-log sigmoid(x) = log(1 + e^-x). Gaps log 3 and 0 at sharpness 1: log(1 + 1/3) + log 2 = log(8/3).
    At sharpness 2: log(1 + 1/9) + log 2 = log(20/9).
    """
    own_R, other_R = torch.tensor([math.log(3) - 5, -7.0]), torch.tensor([-5.0, -7.0])
    loss = contrast(own_R, other_R, sharpness=1.0)
    assert loss.total.item() == pytest.approx(math.log(8 / 3))
    assert loss.count.item() == 2.0
    assert contrast(own_R, other_R, sharpness=2.0).total.item() == pytest.approx(math.log(20 / 9))


def test_contrast_of_far_apart_likelihoods() -> None:
    """A gap of -1000 nats costs 1000 nats, not infinity; one of 1000 costs nothing."""
    loss = contrast(torch.tensor([0.0, 1000.0]), torch.tensor([1000.0, 0.0]), sharpness=1.0)
    assert loss.total.item() == pytest.approx(1000.0)


def test_contrast_raises_the_own_likelihood_and_lowers_the_other() -> None:
    """At gap 0 the derivative by the own log-likelihood is -sharpness / 2."""
    own_R = torch.tensor([-3.0], requires_grad=True)
    other_R = torch.tensor([-3.0], requires_grad=True)
    contrast(own_R, other_R, sharpness=0.5).total.backward()
    assert own_R.grad is not None
    assert other_R.grad is not None
    assert (own_R.grad.item(), other_R.grad.item()) == (-0.25, 0.25)
