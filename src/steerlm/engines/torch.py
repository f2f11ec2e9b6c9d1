"""Generation with transformers: any decoder that attends, any device; the reference of the other engines.

Shapes: B rows of a batch (a request has one, with guidance two), T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionCacheLayerMixin

from steerlm.engines.base import Request, TokenLogprob
from steerlm.engines.choosing import Chooser, choose, prompt_logprobs
from steerlm.engines.make import CACHE_BYTES, MAX_BATCH
from steerlm.engines.prefixes import Known, Part, in_turn, parts_of
from steerlm.engines.runner import Runner, Token
from steerlm.engines.states import States, beginning, copied, row_states, stack, token_bytes
from steerlm.errors import ModelError
from steerlm.models.base import embedding_weight
from steerlm.models.load import SteerModel

_SCORED = 256
"""Most tokens of a scored prompt that are computed at a time."""


@dataclass(eq=False, slots=True)
class _Answer:
    """A request being answered. `parts` are the prompts of its rows, `place` is its first row in the batch."""

    key: int
    parts: list[Part[States]]
    chooser: Chooser
    logits: list[Tensor | None] = field(default_factory=list)
    place: int | None = None

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        """What comes with the first token."""
        return tuple(self.parts[0].scored) if len(self.chooser.made) == 1 else ()

    def ids(self, row: int) -> list[int]:
        """The tokens of a row whose states are known: all but the one chosen last."""
        return [*self.parts[row].ids, *self.chooser.made[:-1]]


class TorchCore:
    """Continuous batching: requests join the batch when their prompts are computed, and leave it when they end.

    Rows of the batch are aligned at their ends. What joins or leaves lays the batch out anew, so that columns which
    are padding for everyone are gone.
    """

    def __init__(self, model: SteerModel, max_batch: int, cache_bytes: int, chunk: int) -> None:
        config = model.network.config.get_text_config()
        layers = DynamicCache(config=config).layers
        if any(
            isinstance(layer, LinearAttentionCacheLayerMixin) or not isinstance(layer, DynamicLayer) for layer in layers
        ):
            raise ModelError(
                f"{type(model.network).__name__} does not only attend, which the torch engine asks of a model"
            )
        self.context = self.guided_context = int(getattr(config, "max_position_embeddings", 1 << 30))
        self.vocabulary = embedding_weight(model.network).shape[0]
        self._network = model.network
        self._device = model.device
        self._stop_ids = model.renderer.stop_ids
        self._max_batch = max_batch
        self._chunk = chunk
        self._cache_bytes = cache_bytes
        self._known: Known[States] = Known()
        self._answers: dict[int, _Answer] = {}
        self._waiting: list[_Answer] = []
        self._starting: list[_Answer] = []
        self._joining: list[_Answer] = []
        self._running: list[_Answer] = []
        self._cache: Cache | None = None

    def check(self, request: Request) -> None:
        """Everything that can be asked for can be done."""

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        parts: list[list[Part[States]]] = parts_of([request for _, request in requests])
        for (key, request), own in zip(requests, parts, strict=True):
            answer = _Answer(key, own, Chooser(request, self._stop_ids), [None] * len(own))
            self._answers[key] = answer
            self._waiting.append(answer)

    def drop(self, key: int, keep: bool = True) -> None:
        answer = self._answers.pop(key, None)
        if answer is None or not keep:
            return
        for row, part in enumerate(answer.parts):
            if answer.place is not None:
                self._keep(answer.ids(row), part.salt, self._row(answer, row))
            elif part.states is not None:
                self._keep(part.ids[: part.done], part.salt, part.states)

    def _keep(self, ids: Sequence[int], salt: str, states: States) -> None:
        """Let later prompts that begin with `ids` go on from them."""
        self._known.most = self._cache_bytes // token_bytes(states)
        if len(ids) <= self._known.most and not self._known.holds(ids, salt):
            self._known.put(ids, salt, copied(states))

    @torch.inference_mode()
    def step(self) -> list[Token]:
        self._waiting = self._still(self._waiting)
        self._starting = self._still(self._starting)
        self._rearrange()
        made = self._decode() if self._running else []
        self._admit()
        return made + self._prefill() if self._starting else made

    def close(self) -> None:
        self._known = Known()
        self._cache = None
        self._answers.clear()
        for answers in (self._waiting, self._starting, self._joining, self._running):
            answers.clear()
        del self._network

    def _still(self, answers: Sequence[_Answer]) -> list[_Answer]:
        return [answer for answer in answers if answer.key in self._answers]

    def _row(self, answer: _Answer, row: int) -> States:
        """The states of a row of the running batch."""
        assert self._cache is not None
        assert answer.place is not None
        width = self._cache.get_seq_length()
        return row_states(self._cache, answer.place + row, width - len(answer.ids(row)), width)

    def _rearrange(self) -> None:
        """Lay the batch out anew where it has lost rows or gets some."""
        kept, new = self._still(self._running), self._still(self._joining)
        if new or len(kept) < len(self._running):
            rows = [self._row(answer, row) for answer in kept for row in range(len(answer.parts))]
            rows += [part.states or () for answer in new for part in answer.parts]
            self._cache = stack(rows) if rows else None
            self._running = [*kept, *new]
            place = 0
            for answer in self._running:
                answer.place = place
                place += len(answer.parts)
            for answer in new:
                for part in answer.parts:
                    part.states = None
        self._joining = []

    def _decode(self) -> list[Token]:
        assert self._cache is not None
        width = self._cache.get_seq_length()
        lengths = [len(answer.ids(row)) for answer in self._running for row in range(len(answer.parts))]
        last = [answer.chooser.made[-1] for answer in self._running for _ in answer.parts]
        lengths_B1 = torch.tensor(lengths, device=self._device)[:, None]
        logits_BV = self._network(
            input_ids=torch.tensor(last, device=self._device)[:, None],
            attention_mask=(torch.arange(width + 1, device=self._device) >= width - lengths_B1).long(),
            position_ids=lengths_B1,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return _chosen(self._running, logits_BV)

    def _admit(self) -> None:
        """Let requests begin that fit in the batch."""
        used = sum(len(answer.parts) for answer in (*self._still(self._running), *self._starting))
        while self._waiting and (not used or used + len(self._waiting[0].parts) <= self._max_batch):
            answer = self._waiting.pop(0)
            used += len(answer.parts)
            self._starting.append(answer)

    def _prefill(self) -> list[Token]:
        """Compute the next tokens of prompts; returns the first token of those that are done."""
        chunks = self._next_chunks()
        parts = list(chunks)
        past = [part.done for part in parts]
        wide, long = max(past), max(chunks.values())
        cache = stack([part.states or () for part in parts])
        ids_BT = torch.tensor(
            [[*part.ids[part.done : part.done + size], *[0] * (long - size)] for part, size in chunks.items()]
        )
        past_B1 = torch.tensor(past)[:, None]
        size_B1 = torch.tensor(list(chunks.values()))[:, None]
        columns = torch.arange(wide + long)
        mask_BT = (columns >= wide - past_B1) & (columns < wide + size_B1)
        ends = sorted({size - 1 for size in chunks.values()})
        if parts[0].likeliest is not None:
            ends = list(range(long))
        logits_BTV = self._network(
            input_ids=ids_BT.to(self._device),
            attention_mask=mask_BT.long().to(self._device),
            position_ids=(past_B1 + torch.arange(long).minimum(size_B1 - 1)).to(self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(ends, device=self._device),
        ).logits
        logits: dict[Part[States], Tensor] = {}
        for row, (part, size) in enumerate(chunks.items()):
            part.states = row_states(cache, row, wide - past[row], wide + size)
            part.done += size
            logits[part] = logits_BTV[row, ends.index(size - 1)]
            if part.likeliest is not None:
                scores_TV = logits_BTV[row].float().cpu().numpy()
                part.scored += prompt_logprobs(scores_TV, part.ids[past[row] + 1 :], part.likeliest)
        for answer in self._starting:
            for number, part in enumerate(answer.parts):
                answer.logits[number] = logits.get(part, answer.logits[number])
        return self._begun()

    def _next_chunks(self) -> dict[Part[States], int]:
        """How many tokens of which parts to compute now."""
        chunks: dict[Part[States], int] = {}
        room = self._chunk
        parts = (part.next() for answer in self._starting for part in answer.parts if not part.finished)
        for part in in_turn(dict.fromkeys(parts), self._known):
            if not part.done and part.start(self._known) and part.states is not None:
                part.states = beginning(part.states, part.done)
            size = min(len(part.ids) - part.done, room)
            if part.likeliest is not None:  # the scores of all its tokens take room
                if not chunks:
                    chunks[part] = min(size, _SCORED)
                break
            # Short rows beside a long one are mostly padding.
            if chunks and max(size, *chunks.values()) * (len(chunks) + 1) > 2 * self._chunk:
                break
            chunks[part] = size
            room -= size
            if not room:
                break
        return chunks

    def _begun(self) -> list[Token]:
        begun = [answer for answer in self._starting if all(part.finished for part in answer.parts)]
        if not begun:
            return []
        self._starting = [answer for answer in self._starting if answer not in begun]
        self._joining += begun
        logits_BV = torch.stack([row for answer in begun for row in answer.logits if row is not None])
        for answer in begun:
            answer.logits = []
            for part in answer.parts:
                self._keep(part.ids, part.salt, part.states or ())
        return _chosen(begun, logits_BV)


def _chosen(answers: Sequence[_Answer], logits_BV: Tensor) -> list[Token]:
    """The next token of each answer, from the scores of its rows."""
    found = choose(logits_BV.float().cpu().numpy(), [answer.chooser for answer in answers])
    return [
        Token(answer.key, token, logprob, answer.parts[0].cached, answer.prompt_logprobs)
        for answer, (token, logprob) in zip(answers, found, strict=True)
    ]


class TorchEngine(Runner):
    """See `steerlm.engines.base.Engine`.

    max_batch     rows computed together; further requests wait
    cache_bytes   most memory for states that are kept of prompts and ended answers, for others and the next turn to go
                  on from; by default a quarter of what a GPU has free, elsewhere `CACHE_BYTES`
    chunk         tokens of prompts computed between two steps of answers under way; by default what suits the device
    """

    def __init__(
        self,
        model: SteerModel,
        max_batch: int = MAX_BATCH,
        cache_bytes: int | None = None,
        chunk: int | None = None,
    ) -> None:
        if cache_bytes is None:
            is_gpu = model.device.type == "cuda"
            cache_bytes = torch.cuda.mem_get_info(model.device)[0] // 4 if is_gpu else CACHE_BYTES
        size = chunk or (512 if model.device.type == "cpu" else 4096)
        super().__init__(TorchCore(model, max_batch, cache_bytes, size), model.renderer)
