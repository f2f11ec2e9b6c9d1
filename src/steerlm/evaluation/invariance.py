"""Whether a response is given the same scores whatever it is scored with, against one response at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steerlm.annotation import Scorer, ScoreSettings
from steerlm.conversation import Conversation
from steerlm.evaluation.records import ROUNDED
from steerlm.models.load import SteerModel

Floats = NDArray[np.float64]
TOLERANCE = 1e-3
"""Most that a score may differ in float32, in points of its scale: sums in another order are rounded otherwise."""
ROUGHNESS = 0.25
"""Most that a score in bfloat16 may differ from it in float32: a sixteenth of the nine attributes' scale."""


@dataclass(frozen=True, slots=True)
class Invariance:
    """The greatest difference of a score from that of the response alone, among `responses`, those within the context;
    infinite where one has a score that is none.
    """

    name: str
    difference: float
    tolerance: float
    responses: int

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def check_invariance(
    model: SteerModel, conversations: Sequence[Conversation], settings: ScoreSettings, most: int
) -> list[Invariance]:
    """Score some `most` responses alone, one to a forward pass, and then in company. No check where no response fits
    into the context, and none of another order where there is one conversation.

    All in float32, in which a fault is no matter of rounding; where the settings compute in bfloat16, what that adds is
    a check of its own.
    """
    rough = Scorer(model, settings)
    scorer = Scorer(model, settings.model_copy(update={"precision": "fp32"}))
    chosen = _some(scorer, conversations, most)
    if not chosen:
        return []
    alone = [_thread(conversation, index) for conversation in chosen for index in conversation.responses]
    reference = np.concatenate([_table(scorer, [thread], last=True) for thread in alone])
    fits_R = np.array([_fits(scorer, thread) for thread in alone])
    small = Scorer(model, settings.model_copy(update={"precision": "fp32", "pack_tokens": scorer.context}))
    checks: dict[str, Callable[[], Floats]] = {
        "packing (whole trees)": lambda: _table(scorer, chosen),
        "packing (smaller packs)": lambda: _table(small, chosen),
        "batch (threads side by side)": lambda: _table(scorer, alone, last=True),
        **({"position in the pack (reversed order)": lambda: _backwards(scorer, chosen)} if len(chosen) > 1 else {}),
        "padding (transformers' own batches)": lambda: _padded(scorer, alone),
    }
    if rough.dtype != torch.float32:
        checks[ROUNDED] = lambda: _table(rough, chosen)
    found = []
    for name, scores in checks.items():
        difference_RA = np.abs(scores() - reference)[fits_R]
        greatest = float(np.where(np.isnan(difference_RA), np.inf, difference_RA).max())
        tolerance = ROUGHNESS if name == ROUNDED else TOLERANCE
        found.append(Invariance(name, greatest, tolerance, len(difference_RA)))
    return found


def _some(scorer: Scorer, conversations: Sequence[Conversation], most: int) -> list[Conversation]:
    """Conversations, the first that fit, with at most `most` responses together; at least one, where one has a response
    that the context has room for.
    """
    answered = [conversation for conversation in conversations if conversation.responses]
    chosen: list[Conversation] = []
    count = 0
    for conversation in answered:
        if count + len(conversation.responses) <= most and _has_room(scorer, conversation):
            chosen.append(conversation)
            count += len(conversation.responses)
    return chosen or list(islice((item for item in answered if _has_room(scorer, item)), 1))


def _has_room(scorer: Scorer, conversation: Conversation) -> bool:
    """Whether the context has room for a response of the conversation."""
    return any(_fits(scorer, _thread(conversation, index)) for index in conversation.responses)


def _fits(scorer: Scorer, thread: Conversation) -> bool:
    """Whether the context has room for all of a thread, which is then read uncut."""
    return len(scorer.model.renderer.thread(thread, "score")) <= scorer.context


def _thread(conversation: Conversation, index: int) -> Conversation:
    """What leads to a response, and it."""
    messages = [conversation.messages[member] for member in conversation.path(index)]
    chain = tuple(replace(message, parent=k - 1 if k else None) for k, message in enumerate(messages))
    return replace(conversation, messages=chain)


def _table(scorer: Scorer, conversations: Sequence[Conversation], last: bool = False) -> Floats:
    """Scores [R, A] of all responses, or of the last of each conversation; NaN where one is too long."""
    names = scorer.model.schema.names
    rows = []
    for conversation, values in zip(conversations, scorer.score(conversations).values, strict=True):
        for index in conversation.responses[-1:] if last else conversation.responses:
            rows.append([values[index][name] if index in values else np.nan for name in names])
    return np.array(rows, dtype=np.float64)


def _backwards(scorer: Scorer, conversations: Sequence[Conversation]) -> Floats:
    backwards = list(reversed(conversations))
    table = _table(scorer, backwards)
    ends = np.cumsum([len(conversation.responses) for conversation in backwards])
    return np.concatenate(list(reversed(np.split(table, ends[:-1]))))


@torch.no_grad()
def _padded(scorer: Scorer, threads: Sequence[Conversation]) -> Floats:
    """As `AutoModelForSequenceClassification` scores them in padded batches, without our packing."""
    model = scorer.model
    ids = [model.renderer.thread(thread, "score") for thread in threads]
    table = np.full((len(ids), len(model.schema)), np.nan)
    fitting = sorted((k for k in range(len(ids)) if len(ids[k]) <= scorer.context), key=lambda k: len(ids[k]))
    pad = model.network.config.pad_token_id
    for start in range(0, len(fitting), 4):
        rows = fitting[start : start + 4]
        width = max(len(ids[k]) for k in rows)
        tokens = [[*ids[k], *[pad] * (width - len(ids[k]))] for k in rows]
        seen = [[1] * len(ids[k]) + [0] * (width - len(ids[k])) for k in rows]
        batch = {"input_ids": tokens, "attention_mask": seen}
        inputs = {name: torch.tensor(value, device=model.device) for name, value in batch.items()}
        table[rows] = model.network(**inputs, use_cache=False).logits.double().cpu().numpy()
    return table
