"""Generation with transformers: any architecture, any device; the reference of the other engines.

Shapes: B requests of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steerlm.engines.base import Finish, Piece, Sampling
from steerlm.engines.text import TextStream
from steerlm.errors import ConfigError
from steerlm.models.load import SteerModel


class TorchEngine:
    """See `steerlm.engines.base.Engine`. Batches are padded on the left; finished requests leave the batch."""

    def __init__(self, model: SteerModel, max_batch: int = 64) -> None:
        self.model = model
        self.max_batch = max_batch
        self.context = int(getattr(model.network.config, "max_position_embeddings", 1 << 30))
        stops = model.network.generation_config.eos_token_id
        self._end_ids = frozenset([stops] if isinstance(stops, int) else stops or [])

    @torch.inference_mode()
    def stream(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Piece]:
        longest = max(map(len, prompts), default=0)
        if longest + sampling.max_tokens > self.context:
            raise ConfigError(
                f"a prompt of {longest} tokens and {sampling.max_tokens} to generate exceed the model's context of "
                f"{self.context}; shorten the conversation or lower max_tokens"
            )
        for start in range(0, len(prompts), self.max_batch):
            for piece in self._batch(prompts[start : start + self.max_batch], sampling, sampling.seed + start):
                yield piece._replace(request=piece.request + start)

    def _batch(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> Iterator[Piece]:
        device = self.model.device
        renderer = self.model.renderer
        stop = sampling.stop if renderer.end_is_token else (*sampling.stop, renderer.dialect.end)
        texts = [TextStream(renderer.tokenizer, stop) for _ in prompts]
        generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts], device=device)
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        alive = list(range(len(prompts)))
        cache = DynamicCache(config=self.model.network.config)
        new_BT = ids_BT
        processors = _processors(sampling, width)
        for count in range(1, sampling.max_tokens + 1):
            positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)[:, -new_BT.shape[1] :]
            logits_BV = self.model.network(
                input_ids=new_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            scores_BV = processors(cast(torch.LongTensor, ids_BT), cast(torch.FloatTensor, logits_BV.float()))
            chosen_B = _choose(scores_BV, sampling, [generators[index] for index in alive])
            going: list[int] = []
            for row, (index, token) in enumerate(zip(alive, chosen_B.tolist(), strict=True)):
                piece = self._piece(index, token, texts[index], count == sampling.max_tokens)
                if piece.finish is None:
                    going.append(row)
                yield piece
            if not going:
                return
            new_BT = chosen_B[:, None]
            ids_BT = torch.cat([ids_BT, new_BT], dim=1)
            mask_BT = torch.cat([mask_BT, torch.ones_like(new_BT)], dim=1)
            if len(going) < len(alive):
                kept_B = torch.tensor(going, device=device)
                cache.batch_select_indices(kept_B)
                new_BT, ids_BT, mask_BT = new_BT[kept_B], ids_BT[kept_B], mask_BT[kept_B]
                alive = [alive[row] for row in going]

    def _piece(self, index: int, token: int, text: TextStream, is_last: bool) -> Piece:
        if token in self._end_ids:
            return Piece(index, token, text.finish(), "stop")
        shown = text.push(token)
        finish: Finish | None = "stop" if text.stopped else "length" if is_last else None
        return Piece(index, token, shown + (text.finish() if finish == "length" else ""), finish)


def _processors(sampling: Sampling, width: int) -> LogitsProcessorList:
    """What changes the scores, in the order of the field. `width` is that of the padded prompts."""
    found = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        # The prompt is left out: it holds the end signal of earlier turns, and padding that depends on the batch.
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty, prompt_ignore_length=width))
    if sampling.temperature > 0:
        if sampling.temperature != 1:
            found.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            found.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            found.append(TopPLogitsWarper(sampling.top_p))
    return found


def _choose(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of each request, [B]."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    chances_BV = logits_BV.softmax(dim=-1).cpu()
    drawn = [torch.multinomial(row, 1, generator=draw) for row, draw in zip(chances_BV, generators, strict=True)]
    return torch.cat(drawn).to(logits_BV.device)
