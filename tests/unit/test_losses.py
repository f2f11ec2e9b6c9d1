"""Losses with numbers derived by hand. Shapes as in `steerlm.losses`."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from steerlm.losses import (
    Rows,
    contrast,
    linear_nll,
    linear_weighted_nll,
    masked_squared_error,
    token_nll,
    weighted_nll,
)

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


HIDDEN, VOCABULARY, TOKENS = 6, 11, 7


def head(count: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [N, D], a weight [V, D] and targets [N]."""
    generator = torch.Generator().manual_seed(count)
    hidden_ND = torch.randn(count, HIDDEN, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    targets_N = torch.randint(VOCABULARY, (count,), generator=generator)
    return hidden_ND.to(dtype).requires_grad_(), weight_VD.to(dtype).requires_grad_(), targets_N


@pytest.mark.parametrize("chunk", [1, 3, TOKENS, 2 * TOKENS])
@pytest.mark.parametrize("count", [TOKENS, 0])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_without_all_logits_is_that_of_all_logits(chunk: int, count: int, weighted: bool) -> None:
    """Values and gradients against PyTorch's cross entropy in float64; ours makes its sums in float32."""
    hidden_ND, weight_VD, targets_N = head(count)
    scale_N = torch.linspace(0.0, 2.0, count)
    nll_N = functional.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="none")
    expected = torch.autograd.grad(3 * (nll_N * scale_N).sum(), (hidden_ND, weight_VD))

    hidden_ND, weight_VD = (tensor.detach().float().requires_grad_() for tensor in (hidden_ND, weight_VD))
    if weighted:
        loss = linear_weighted_nll(hidden_ND, weight_VD, targets_N, scale_N, chunk)
        assert loss.count.item() == scale_N.sum().item()
        total = loss.total
    else:
        found_N = linear_nll(hidden_ND, weight_VD, targets_N, chunk)
        torch.testing.assert_close(found_N.double(), nll_N.detach(), rtol=1e-6, atol=1e-6)
        total = (found_N * scale_N).sum()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx((nll_N * scale_N).sum().item(), rel=1e-6)
    found = torch.autograd.grad(3 * total, (hidden_ND, weight_VD))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("trained", ["hidden", "weight", "neither"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_made_for_what_is_trained_alone(trained: str, weighted: bool) -> None:
    hidden_ND, weight_VD, targets_N = head(TOKENS, torch.float32)
    nll_N = functional.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="sum")
    expected = dict(zip(("hidden", "weight"), torch.autograd.grad(nll_N, (hidden_ND, weight_VD)), strict=True))
    hidden_ND.requires_grad_(trained == "hidden")
    weight_VD.requires_grad_(trained == "weight")
    if weighted:
        total = linear_weighted_nll(hidden_ND, weight_VD, targets_N, torch.ones(TOKENS), 3).total
    else:
        total = linear_nll(hidden_ND, weight_VD, targets_N, 3).sum()
    assert total.requires_grad == (trained != "neither")
    if total.requires_grad:
        total.backward()
    for name, tensor in (("hidden", hidden_ND), ("weight", weight_VD)):
        if name == trained:
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, expected[name])
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("weighted", [False, True])
def test_under_autocast_products_are_in_bfloat16_as_those_of_all_logits(weighted: bool) -> None:
    """To bfloat16's 8 bits; gradients come in the type of the parameters."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(64, HIDDEN, generator=generator).requires_grad_()
    weight_VD = torch.randn(VOCABULARY, HIDDEN, generator=generator).requires_grad_()
    targets_N = torch.randint(VOCABULARY, (64,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        expected = functional.cross_entropy(functional.linear(hidden_ND, weight_VD), targets_N, reduction="sum")
        if weighted:
            found = linear_weighted_nll(hidden_ND, weight_VD, targets_N, torch.ones(64), 10).total
        else:
            found = linear_nll(hidden_ND, weight_VD, targets_N, 10).sum()
    exact = functional.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.item() != pytest.approx(exact.item(), rel=1e-6)
    theirs = torch.autograd.grad(expected, (hidden_ND, weight_VD))
    for ours, other in zip(torch.autograd.grad(found, (hidden_ND, weight_VD)), theirs, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, other, rtol=2e-2, atol=2e-2 * other.abs().max().item())


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_do_not_change_the_result_beyond_rounding(chunk: int) -> None:
    hidden_ND, weight_VD, targets_N = head(50, torch.float32)
    whole_N = linear_nll(hidden_ND, weight_VD, targets_N, 50)
    torch.testing.assert_close(linear_nll(hidden_ND, weight_VD, targets_N, chunk), whole_N, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_stand_in_the_weights_place(weighted: bool, frozen: bool) -> None:
    """The same as a weight into which they were copied, and the weight's own rows there have no gradient."""
    hidden_ND, weight_VD, targets_N = head(TOKENS)
    values_KD = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    tokens_K = torch.tensor([2, int(targets_N[0]), VOCABULARY - 1])
    assert len(set(tokens_K.tolist())) == 3
    weight_VD.requires_grad_(not frozen)
    trained = (hidden_ND, values_KD.requires_grad_(), *([] if frozen else [weight_VD]))
    logits_NV = hidden_ND @ weight_VD.index_copy(0, tokens_K, values_KD).T
    nll_N = functional.cross_entropy(logits_NV, targets_N, reduction="none")
    expected = torch.autograd.grad(2 * nll_N.sum(), trained)

    trained = tuple(tensor.detach().float().requires_grad_() for tensor in trained)
    rows = Rows(tokens_K, trained[1])
    weight_VD = weight_VD.detach().float() if frozen else trained[2]
    if weighted:
        total = linear_weighted_nll(trained[0], weight_VD, targets_N, torch.ones(TOKENS), 3, rows).total
    else:
        total = linear_nll(trained[0], weight_VD, targets_N, 3, rows).sum()
    assert total.item() == pytest.approx(nll_N.sum().item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(2 * total, trained), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-6)
