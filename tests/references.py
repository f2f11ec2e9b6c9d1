"""Slow, plain second implementations that the fast code is compared with, written from the definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steerlm.conversation import Conversation
from steerlm.tokens import TokenTree


def level(value: float, low: int, high: int) -> int:
    """Clamped, then rounded half to even, in exact decimal arithmetic."""
    exact = min(max(Decimal(value), Decimal(low)), Decimal(high))
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def thread_to(conversation: Conversation, index: int) -> Conversation:
    """The flattened thread that ends with message `index`."""
    path = conversation.path(index)
    messages = tuple(
        replace(conversation.messages[old], parent=new - 1 if new else None) for new, old in enumerate(path)
    )
    return replace(conversation, messages=messages)


@dataclass(frozen=True)
class DenseLayout:
    """What a pack must hold, token by token: `place[t]` is (tree, segment, offset)."""

    ids: list[int]
    positions: list[int]
    visible: list[list[bool]]
    place: list[tuple[int, int, int]]


def dense_layout(trees: Sequence[TokenTree], window: int | None = None) -> DenseLayout:
    """Depth first; a token sees its own segment up to itself, and what each ancestor shares."""
    place: list[tuple[int, int, int]] = []

    def visit(number: int, segment: int) -> None:
        place.extend((number, segment, offset) for offset in range(len(trees[number].segments[segment].ids)))
        for child, item in enumerate(trees[number].segments):
            if item.parent == segment:
                visit(number, child)

    for number, tree in enumerate(trees):
        for segment, item in enumerate(tree.segments):
            if item.parent == -1:
                visit(number, segment)

    def ancestors(number: int, segment: int) -> list[int]:
        parent = trees[number].segments[segment].parent
        return [] if parent == -1 else [*ancestors(number, parent), parent]

    def position(number: int, segment: int, offset: int) -> int:
        return offset + sum(trees[number].segments[item].shared for item in ancestors(number, segment))

    positions = [position(*item) for item in place]
    visible = [[False] * len(place) for _ in place]
    for row, (tree, segment, offset) in enumerate(place):
        above = ancestors(tree, segment)
        for column, (other_tree, other_segment, other_offset) in enumerate(place):
            if tree != other_tree:
                continue
            own = segment == other_segment and other_offset <= offset
            before = other_segment in above and other_offset < trees[tree].segments[other_segment].shared
            near = window is None or positions[row] - positions[column] < window
            visible[row][column] = (own or before) and near
    ids = [trees[tree].segments[segment].ids[offset] for tree, segment, offset in place]
    return DenseLayout(ids, positions, visible, place)


def path_tokens(tree: TokenTree, index: int) -> list[int]:
    """The flattened thread that segment `index` ends."""
    segment = tree.segments[index]
    before: list[int] = []
    at = segment.parent
    while at != -1:
        before = [*tree.segments[at].ids[: tree.segments[at].shared], *before]
        at = tree.segments[at].parent
    return [*before, *segment.ids]


def thread_nll(network: PreTrainedModel, tree: TokenTree, index: int) -> Tensor:
    """-log p of the trained tokens of response `index`, from its flattened thread and with plain attention."""
    ids = torch.tensor(path_tokens(tree, index))
    trained = sum(span.length for span in tree.segments[index].spans if span.role in ("response", "end"))
    logits = network(input_ids=ids[None, :-1], use_cache=False).logits[0].float()
    chosen = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return -chosen[len(chosen) - trained :]


def nemo_trained_text(record: dict[str, object]) -> list[str]:
    """The stretches of text that NeMo's GPTSFTChatDataset trains on, for a VALUE_TO_TEXT record, on characters.

    NEMO gpt_sft_chat_dataset.py: the header and the first turn are masked; of a later turn of a masked role only
    the leading turn start is trained; a turn of another role is trained after its name line and its label line;
    where the last turn is trained, a turn start is put after it, trained too.
    """
    turn_start, label_start, end = "<extra_id_1>", "<extra_id_2>", "\n"
    turns: list[dict[str, str]] = record["conversations"]  # type: ignore[assignment]
    text = "<extra_id_0>System" + end + str(record["system"]) + end
    mask = [False] * len(text)
    for number, turn in enumerate(turns):
        label = label_start + turn["label"] + end if turn.get("label") else ""
        piece = turn_start + turn["from"] + end + label + turn["value"] + end
        trained = [False] * len(piece)
        if number == 0:
            pass
        elif turn["from"] in str(record["mask"]):
            if number > 1:
                trained[: len(turn_start)] = [True] * len(turn_start)
        else:
            head = len(turn_start + turn["from"] + end) + len(label)
            trained[head:] = [True] * (len(piece) - head)
        text += piece
        mask += trained
    if turns[-1]["from"] not in str(record["mask"]):
        text += turn_start
        mask += [True] * len(turn_start)
    stretches: list[str] = []
    for character, on, before in zip(text, mask, [False, *mask], strict=False):
        if on and not before:
            stretches.append("")
        if on:
            stretches[-1] += character
    return stretches
