"""How likely the untuned base finds answers. Shapes: N trained tokens of a pack, T those of one response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steerlm.annotation.scorer import tree_attention
from steerlm.attention import default_form
from steerlm.conversation import Conversation
from steerlm.devices import pick_precision
from steerlm.models.load import SteerModel
from steerlm.packing import fit, pack
from steerlm.training.policy import response_nll
from steerlm.training.task import Batch

_CHUNK = 256


class Perplexity(NamedTuple):
    """exp of the mean negative log-likelihood of a response's tokens: `ended` of those of its text and what closes it,
    `cut` of those of its text alone, which is all that an answer cut at the limit of tokens wrote; NaN of no text. A
    newline that closes a response and is joined to its last token counts in both.
    """

    ended: float
    cut: float


@torch.no_grad()
def perplexities(base: SteerModel, conversations: Sequence[Conversation], context: int) -> list[dict[int, Perplexity]]:
    """For each conversation, by message, the perplexity of a response. Prompts that several responses share are
    computed once; what is longer than the context is absent.
    """
    dtype = pick_precision("auto", base.device)
    trees = [
        base.renderer.tree(Conversation(str(number), item.messages, item.system), "policy")
        for number, item in enumerate(conversations)
    ]
    fitted, _ = fit(trees, context)
    found: list[dict[int, Perplexity]] = [{} for _ in conversations]
    closing = {
        (tree.conversation, segment.message): base.renderer.closing(segment)
        for tree in trees
        for segment in tree.segments
        if segment.is_response
    }
    with (
        tree_attention(base.network, default_form(base.device), context),
        torch.autocast(base.device.type, dtype, enabled=dtype != torch.float32),
    ):
        for item in pack(fitted, context):
            nll_N = response_nll(base, Batch.of(item, base.device, dtype), _CHUNK).double().cpu()
            for number, response in enumerate(item.responses):
                own_T = nll_N[torch.from_numpy(item.owner_N == number)]
                text_T = own_T[: -closing[response.conversation, response.message]]
                found[int(response.conversation)][response.message] = Perplexity(_of(own_T), _of(text_T))
    return found


def _of(nll_T: Tensor) -> float:
    return math.exp(min(nll_T.mean().item(), 50.0)) if len(nll_T) else math.nan
