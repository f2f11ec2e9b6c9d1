"""How a request chooses its next token from scores.

Shapes: B requests of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steerlm.engines.base import Sampling, TokenLogprob


class Chooser:
    """The choices of one request: its tokens so far, and a generator of its own."""

    def __init__(self, sampling: Sampling, stop_ids: Iterable[int]) -> None:
        self.made: list[int] = []
        self._sampling = sampling
        self._stop_ids = list(stop_ids)
        self._processors = _processors(sampling)
        self._generator = torch.Generator().manual_seed(sampling.seed)

    @property
    def takes_likeliest(self) -> bool:
        """Whether the next token is simply that of the highest score, and nothing else is asked for."""
        sampling = self._sampling
        is_barred = len(self.made) < sampling.min_tokens
        return not sampling.temperature and not self._processors and not is_barred and sampling.logprobs is None

    def choose(self, logits_V: Tensor) -> tuple[int, TokenLogprob | None]:
        scores_V = logits_V.float()
        if len(self.made) < self._sampling.min_tokens:
            scores_V = scores_V.clone()
            scores_V[self._stop_ids] = -torch.inf
        # The prompt has no part in the repetition penalty: it holds the end signals of earlier turns.
        so_far = torch.tensor([self.made], dtype=torch.long, device=scores_V.device)
        scores_V = self._processors(cast(torch.LongTensor, so_far), cast(torch.FloatTensor, scores_V[None]))[0]
        if self._sampling.temperature:
            chances_V = scores_V.softmax(dim=-1).cpu()
            token = int(torch.multinomial(chances_V, 1, generator=self._generator))
        else:
            token = int(scores_V.argmax())
        return token, _logprob(logits_V, token, self._sampling.logprobs)


def choose(logits_BV: Tensor, choosers: Sequence[Chooser]) -> list[tuple[int, TokenLogprob | None]]:
    """The next token of each request; they are noted in `made`."""
    likeliest = logits_BV.argmax(dim=-1).tolist() if any(one.takes_likeliest for one in choosers) else []
    found: list[tuple[int, TokenLogprob | None]] = []
    for row, one in enumerate(choosers):
        found.append((likeliest[row], None) if one.takes_likeliest else one.choose(logits_BV[row]))
    for one, (token, _) in zip(choosers, found, strict=True):
        one.made.append(token)
    return found


def _logprob(logits_V: Tensor, token: int, count: int | None) -> TokenLogprob | None:
    if count is None:
        return None
    logprobs_V = logits_V.float().log_softmax(dim=-1)
    values, ids = logprobs_V.topk(count)
    return TokenLogprob(float(logprobs_V[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _processors(sampling: Sampling) -> LogitsProcessorList:
    """What changes the scores, in the order of the field."""
    found = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        if sampling.temperature != 1:
            found.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            found.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            found.append(TopPLogitsWarper(sampling.top_p))
    return found
