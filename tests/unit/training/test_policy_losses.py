"""The sums over a pack of policy trees: losses, likelihoods, figures of validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from allocations import peak_bytes
from passes import make_packs, validate
from policy_trees import task
from steerlm.attention import use_plain_attention
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.losses import token_nll, weighted_nll
from steerlm.models.adapters import Lora
from steerlm.models.load import SteerModel, new_model
from steerlm.packing import Pack, lay_out
from steerlm.training.policy import (
    PolicyTask,
    foil_pairs,
    likelihoods,
    response_nll,
    weights_of_own,
)
from steerlm.training.task import Batch, Term
from tiny_lora import save_lora_base, with_lora


@pytest.fixture
def packed(policy: SteerModel, conversations: Callable[..., list[Conversation]]) -> tuple[PolicyTask, list[Pack]]:
    made = conversations(5, seed=2)
    task_ = task(policy, made, contrast=0.5, contrast_sharpness=0.1)
    return task_, make_packs([task_.tree(item, 0) for item in made], 512, 600)


def test_terms_count_own_tokens_and_pairs(packed: tuple[PolicyTask, list[Pack]]) -> None:
    task_, packs = packed
    assert len(packs) > 1
    pairs = tokens = 0
    for pack in packs:
        for number, response in enumerate(pack.responses):
            pairs += response.foil_of >= 0
            tokens += int((pack.owner_N == number).sum()) if response.foil_of < 0 else 0
    assert task_.terms(packs) == {"nll": Term(1.0, float(tokens)), "contrast": Term(0.5, float(pairs))}
    assert pairs > 3


def test_there_is_no_contrast_term_without_pairs(
    policy: SteerModel, conversations: Callable[..., list[Conversation]]
) -> None:
    made = conversations(3)
    task_ = task(policy, made)
    packs = make_packs([task_.tree(item, 0) for item in made], 512, 2048)
    assert list(task_.terms(packs)) == ["nll"]
    assert list(task_.losses(Batch.of(packs[0], policy.device))) == ["nll"]


def test_losses_by_hand(packed: tuple[PolicyTask, list[Pack]], policy: SteerModel) -> None:
    """Against one loop over tokens: foils count in the contrast only."""
    task_, packs = packed
    for pack in packs:
        batch = Batch.of(pack, policy.device)
        with torch.no_grad():
            nll = response_nll(policy, batch, 7).tolist()
            losses = task_.losses(batch)
        own_nll, sums = 0.0, [0.0] * len(pack.responses)
        for value, owner in zip(nll, pack.owner_N, strict=True):
            sums[owner] -= value
            own_nll += value if pack.responses[owner].foil_of < 0 else 0.0
        assert losses["nll"].total.item() == pytest.approx(own_nll, rel=1e-5)
        gaps = [sums[r.foil_of] - sums[k] for k, r in enumerate(pack.responses) if r.foil_of >= 0]
        expected = sum(math.log1p(math.exp(-0.1 * gap)) for gap in gaps)
        assert losses["contrast"].total.item() == pytest.approx(expected, rel=1e-3)
        assert losses["contrast"].count.item() == len(gaps)
        own, other = foil_pairs(pack)
        assert [pack.responses[k].message for k in own] == [pack.responses[k].message for k in other]


def test_packs_in_bfloat16_are_of_few_lengths_on_a_cpu(
    packed: tuple[PolicyTask, list[Pack]], policy: SteerModel
) -> None:
    task_, packs = packed
    for pack in packs:
        plain = Batch.of(pack, policy.device)
        longer = Batch.of(pack, policy.device, torch.bfloat16)
        assert plain.pack is pack
        assert longer.pack.size % 64 == 0
        assert 0 <= longer.pack.size - pack.size < 64
        with torch.no_grad():
            expected, found = task_.losses(plain), task_.losses(longer)
        for name, loss in expected.items():
            assert found[name].total.item() == pytest.approx(loss.total.item(), rel=1e-5)
            assert found[name].count == loss.count


def test_response_nll_is_that_of_all_logits(packed: tuple[PolicyTask, list[Pack]], policy: SteerModel) -> None:
    """Logits are made for the rows before trained tokens only; they are those of the whole."""
    batch = Batch.of(packed[1][0], policy.device)
    with torch.no_grad():
        logits_TV = policy.network(**batch.inputs(), use_cache=False).logits[0]
        nll_N = response_nll(policy, batch, 7)
    rows = torch.as_tensor(batch.pack.rows_N)
    expected = -logits_TV.log_softmax(-1)[rows, torch.as_tensor(batch.pack.targets_N)]
    torch.testing.assert_close(nll_N, expected)


def test_likelihoods_are_sums_over_responses() -> None:
    pack = Pack(
        ids_T=np.arange(4),
        positions_T=np.arange(4),
        runs=(),
        rows_N=np.array([0, 1, 2]),
        targets_N=np.array([1, 2, 3]),
        weights_N=np.array([1, 1, 1], dtype=np.float32),
        owner_N=np.array([1, 0, 1]),
        responses=(None, None, None),  # type: ignore[arg-type]
    )
    batch = Batch.of(pack, torch.device("cpu"))
    assert likelihoods(torch.tensor([1.0, 2.0, 4.0]), batch).tolist() == [-2.0, -5.0, 0.0]


def test_weights_of_own_without_responses() -> None:
    assert len(weights_of_own(lay_out([]))) == 0


def test_validation_figures(policy: SteerModel, conversations: Callable[..., list[Conversation]]) -> None:
    """Loss and gap do not depend on packing, and the labels are not dropped."""
    made = conversations(6, seed=4)
    figures = validate(task(policy, made, label_dropout=0.9), made)
    small = validate(task(policy, made, pack_tokens=512), made)
    assert figures.keys() == {"loss", "tokens", "gap", "gap_won", "gap_pairs"}
    for name, value in figures.items():
        assert small[name] == pytest.approx(value, rel=1e-4)
    task_ = task(policy, made)
    packs = make_packs([task_.tree(item, 0) for item in made], 512, 2048)
    with torch.no_grad():
        total = sum(task_.losses(Batch.of(pack, policy.device))["nll"].total.item() for pack in packs)
    assert figures["tokens"] == task_.terms(packs)["nll"].count
    assert figures["loss"] == pytest.approx(total / figures["tokens"], rel=1e-5)
    use_plain_attention(policy.network)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("contrast", [0.0, 0.5])
def test_logits_are_made_in_chunks_where_an_adapter_trains_added_tokens(
    tmp_path: Path, conversations: Callable[..., list[Conversation]], tied: bool, contrast: float
) -> None:
    """The loss and gradients of all logits at once, without the memory of all logits."""
    base = save_lora_base(tmp_path, tie_word_embeddings=tied, vocab_size=4000)
    model = with_lora(new_model("policy", base, STEERLM), base, Lora(4, 8.0))
    made = conversations(8, seed=4)
    few, all_ = (task(model, made, contrast=contrast, loss_chunk=chunk) for chunk in (16, 100_000))
    (item,) = make_packs([few.tree(one, 0) for one in made], 512, 4096)
    batch = Batch.of(item, model.device)
    rows_N, targets_N = batch.tensor(item.rows_N), batch.tensor(item.targets_N)
    logits_NV = model.network(**batch.inputs(), logits_to_keep=rows_N, use_cache=False).logits[0]
    expected = weighted_nll(token_nll(logits_NV, targets_N), batch.tensor(weights_of_own(item))).total
    trained = {name: weight for name, weight in model.network.named_parameters() if weight.requires_grad}
    wanted = torch.autograd.grad(expected, list(trained.values()))
    found = few.losses(batch)["nll"].total
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, _), ours, theirs in zip(
        trained.items(), torch.autograd.grad(found, list(trained.values())), wanted, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")

    def peak(made: PolicyTask) -> int:
        return peak_bytes(lambda: sum(loss.total for loss in made.losses(batch).values()).backward())  # type: ignore[union-attr]

    # At once there are the logits and their logarithms, beside which there is less of all else.
    assert peak(all_) - peak(few) > 4 * len(rows_N) * logits_NV.shape[1]
