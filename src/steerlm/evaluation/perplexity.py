"""How likely the untuned base finds answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from steerlm.annotation.scorer import tree_attention
from steerlm.attention import default_form
from steerlm.conversation import Conversation
from steerlm.devices import pick_precision
from steerlm.models.load import SteerModel
from steerlm.packing import fit, pack
from steerlm.training.policy import response_nll
from steerlm.training.task import Batch

_CHUNK = 256


@torch.no_grad()
def perplexities(base: SteerModel, conversations: Sequence[Conversation], context: int) -> list[dict[int, float]]:
    """For each conversation, by message: exp of the mean negative log-likelihood of a response's tokens, its end signal
    included. Prompts that several responses share are computed once; what is longer than the context is absent.
    """
    dtype = pick_precision("auto", base.device)
    trees = [
        base.renderer.tree(Conversation(str(number), item.messages, item.system), "policy")
        for number, item in enumerate(conversations)
    ]
    fitted, _ = fit(trees, context)
    found: list[dict[int, float]] = [{} for _ in conversations]
    with (
        tree_attention(base.network, default_form(base.device), context),
        torch.autocast(base.device.type, dtype, enabled=dtype != torch.float32),
    ):
        for item in pack(fitted, context):
            nll_N = response_nll(base, Batch.of(item, base.device, dtype), _CHUNK).double().cpu()
            for number, response in enumerate(item.responses):
                own_N = torch.from_numpy(item.owner_N == number)
                found[int(response.conversation)][response.message] = math.exp(min(nll_N[own_N].mean().item(), 50.0))
    return found
