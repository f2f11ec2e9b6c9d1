"""Token ids of the pieces of a prompt, each as it comes among the others.

The renderer knows the role of every token since it encodes piece by piece; tokenizers treat the ends of their input
otherwise than what lies within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it takes seconds to load
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PieceEncoder:
    """Encodes pieces as they are encoded in the whole.

    `special` are the tokenizer's special tokens; `markers` are these and the dialect's markers, longest first.
    """

    tokenizer: PreTrainedTokenizerBase
    special: tuple[str, ...]
    markers: tuple[str, ...]

    def encode(self, pieces: Sequence[tuple[str, str, str]]) -> list[list[int]]:
        """Token ids of each middle text as they come between the texts `before` and `after` it.

        Tokenizers of the SentencePiece family put a space before text that opens their input; giving each piece
        the end of what precedes it as an anchor, and taking the anchor's tokens away again, keeps that out.
        """
        anchors = [self._anchor(before) for before, _, _ in pieces]
        # GPT-2's splitting keeps "\n\n" whole at the end of its input and before a special token, not before text.
        tails = [after[0] if text.endswith("\n\n") and self._is_plain(after) else "" for _, text, after in pieces]
        texts = [anchor + text + tail for anchor, (_, text, _), tail in zip(anchors, pieces, tails, strict=True)]
        batch = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        found: list[list[int]] = []
        for anchor, (_, text, _), tail, ids in zip(anchors, pieces, tails, batch, strict=True):
            head = list(self._anchor_ids(anchor))
            if tail:
                # The tail as it is spelled after a newline, as in `text`.
                spelled = list(_cached_ids(self.tokenizer, "\n" + tail)[len(_cached_ids(self.tokenizer, "\n")) :])
                ids = ids[: -len(spelled)] if ids[-len(spelled) :] == spelled else ids
            if not text:
                found.append([])
            elif ids[: len(head)] == head:
                found.append(list(ids[len(head) :]))
            else:
                found.append(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return found

    def _is_plain(self, after: str) -> bool:
        return bool(after) and not after.startswith(self.special)

    def _anchor(self, before: str) -> str:
        if not before:
            return ""
        return next((marker for marker in self.markers if before.endswith(marker)), before[-1])

    def _anchor_ids(self, anchor: str) -> tuple[int, ...]:
        return _cached_ids(self.tokenizer, anchor) if anchor else ()


@lru_cache(maxsize=4096)
def _cached_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
