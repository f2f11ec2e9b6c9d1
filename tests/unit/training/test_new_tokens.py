"""Embeddings of added tokens: levels on a line, faster steps, everything else untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from steerlm.attributes import STEERLM
from steerlm.models.load import SteerModel, new_model
from steerlm.training.new_tokens import NewTokens, line_projection
from tiny import TOKENIZERS, save_base


@pytest.fixture
def policy(tmp_path: Path) -> SteerModel:
    return new_model("policy", save_base(tmp_path, TOKENIZERS["chatml"]()), STEERLM)


def embeddings(policy: SteerModel) -> torch.Tensor:
    return policy.network.get_input_embeddings().weight.detach().clone()


def test_projection_is_least_squares() -> None:
    values = np.random.default_rng(0).normal(size=7)
    slope, offset = np.polyfit(np.arange(7), values, 1)
    fitted = (line_projection(7).double() @ torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(fitted, offset + slope * np.arange(7), atol=1e-6)


def test_a_rare_level_learns_from_the_common_ones(policy: SteerModel) -> None:
    tokens = NewTokens(policy, times=10.0)
    tokens.straighten()
    before = embeddings(policy)
    ids = [policy.renderer.tokenizer.convert_tokens_to_ids(f"verbosity:{level}") for level in range(5)]
    weight = policy.network.get_input_embeddings().weight
    with tokens.step(), torch.no_grad():
        weight[ids[1]] -= 0.01
        weight[ids[3]] += 0.01
        weight[0] += 0.5  # a token that was there before
    moved = embeddings(policy) - before
    # The line through (1, -0.01) and (3, 0.01) among five points has the slope (2*0.01 + 0)/10 = 0.002; times 10.
    for level, row in enumerate(ids):
        torch.testing.assert_close(moved[row], torch.full_like(moved[row], 0.02 * (level - 2)), atol=1e-6, rtol=0)
    torch.testing.assert_close(moved[0], torch.full_like(moved[0], 0.5))
    others = [row for row in range(1, len(moved)) if row not in ids]
    assert moved[others].abs().max() < 1e-6


def test_levels_begin_apart_on_a_line_with_a_direction_for_each_attribute(policy: SteerModel) -> None:
    before = embeddings(policy)
    NewTokens(policy, times=10.0, spread=1.5).straighten()
    after = embeddings(policy)
    reach = {}
    for attribute in STEERLM:
        ids = [policy.renderer.tokenizer.convert_tokens_to_ids(f"{attribute.name}:{k}") for k in attribute.levels]
        torch.testing.assert_close(after[ids].mean(0), before[ids].mean(0))
        steps = after[ids].diff(dim=0)
        torch.testing.assert_close(steps, steps[:1].expand_as(steps))
        reach[attribute.name] = after[ids[-1]] - after[ids].mean(0)
        assert reach[attribute.name].norm() == pytest.approx(1.5 * before[ids].mean(0).norm().item(), rel=1e-5)
    directions = torch.stack([way / way.norm() for way in reach.values()])
    assert (directions @ directions.T - torch.eye(len(directions))).abs().max() < 0.95


def test_nothing_added_nothing_done(tmp_path: Path) -> None:
    judge = new_model("attribute-model", save_base(tmp_path, TOKENIZERS["chatml"]()), STEERLM)
    tokens = NewTokens(judge, times=10.0)
    before = embeddings(judge)
    with tokens.step(), torch.no_grad():
        judge.network.get_input_embeddings().weight.add_(1.0)
    torch.testing.assert_close(embeddings(judge), before + 1.0)
