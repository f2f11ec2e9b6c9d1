"""How packs reach the network when the perplexity of answers is measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.measure import PassLengths
from steerlm.conversation import Conversation
from steerlm.evaluation import perplexity
from steerlm.models.load import SteerModel


def test_passes_in_bfloat16_are_of_few_lengths_on_a_cpu(
    policy: SteerModel, conversations: Callable[..., list[Conversation]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype, all_even in ((torch.float32, False), (torch.bfloat16, True)):
        monkeypatch.setattr(perplexity, "pick_precision", lambda *_, dtype=dtype: dtype)
        with PassLengths() as passes:
            perplexity.perplexities(policy, conversations(4, seed=2), 512)
        assert all(length % 64 == 0 for length in passes.lengths) is all_even
