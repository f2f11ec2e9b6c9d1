"""A rendered conversation: a tree of token segments that knows what is trained and where it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

TokenRole = Literal["system", "marker", "label", "user", "response", "end"]


class Span(NamedTuple):
    """`length` consecutive tokens of a segment that play one role."""

    role: TokenRole
    length: int


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens of one message (or of the system text), continuing those of `parent`.

    ids       token ids, first to last
    spans     what each token is, in order; lengths add up to `len(ids)`
    parent    index of the segment this one continues, -1 where it opens the tree
    message   index of the message in its conversation, -1 for the system text
    shared    how many leading tokens the children continue from; what follows is this response's own leaf
              (its end signal or its score mark), which no later turn sees
    glue      how many leading tokens only close the turn before, and go when that turn is cut off
    weight    loss weight of each trained token; 0 where the segment only serves as context
    foil_of   index of the segment whose response this one repeats under other labels, -1 for ordinary ones
    ratings   what people gave the response, where it is to be scored
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    parent: int
    message: int
    shared: int
    glue: int = 0
    weight: float = 0.0
    foil_of: int = -1
    ratings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(span.length for span in self.spans) != len(self.ids):
            raise ValueError("the spans of a segment must cover its tokens")
        if not 0 <= self.glue <= self.shared <= len(self.ids):
            raise ValueError("glue <= shared <= number of tokens must hold")

    @property
    def is_response(self) -> bool:
        """Whether this is an assistant turn, be it trained or only context."""
        return any(span.role in ("response", "end") for span in self.spans)

    def trained(self) -> range:
        """Positions within the segment that the loss falls on: the response and its end signal."""
        length = sum(span.length for span in self.spans if span.role in ("response", "end"))
        return range(len(self.ids) - length, len(self.ids))

    def without_glue(self) -> Segment:
        """The same segment as the opening of a path."""
        return self._slice(self.glue, len(self.ids))

    def as_context(self) -> Segment:
        """What later turns see of the segment: not trained, not scored, without its own leaf."""
        return replace(self._slice(0, self.shared), weight=0.0, foil_of=-1)

    def _slice(self, start: int, stop: int) -> Segment:
        spans, at = [], 0
        for role, length in self.spans:
            left = min(stop, at + length) - max(start, at)
            if left > 0:
                spans.append(Span(role, left))
            at += length
        return replace(
            self,
            ids=self.ids[start:stop],
            spans=tuple(spans),
            shared=min(self.shared, stop) - start,
            glue=max(self.glue - start, 0),
        )


@dataclass(frozen=True, slots=True)
class TokenTree:
    """The segments of one conversation; parents come before their children."""

    conversation: str
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        for index, segment in enumerate(self.segments):
            if not -1 <= segment.parent < index:
                raise ValueError("a segment's parent must come before it")

    @property
    def size(self) -> int:
        """Number of tokens, each counted once."""
        return sum(len(segment.ids) for segment in self.segments)

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the responses to train or to score (their foils not counted)."""
        return tuple(
            index
            for index, segment in enumerate(self.segments)
            if segment.is_response and segment.weight > 0 and segment.foil_of < 0
        )

    def path(self, index: int) -> list[int]:
        """Indices from the root segment to segment `index`, both included."""
        found = []
        while index >= 0:
            found.append(index)
            index = self.segments[index].parent
        return found[::-1]

    def path_sizes(self) -> list[int]:
        """How many tokens each segment ends: the lengths of `path_ids`, without making these."""
        sizes: list[int] = []
        before = [0]  # of the children of each segment, at its index + 1
        for segment in self.segments:
            start = before[segment.parent + 1]
            sizes.append(start + len(segment.ids))
            before.append(start + segment.shared)
        return sizes

    def beyond(self, context: int) -> list[int]:
        """Those of `active` whose path is longer than `context` tokens."""
        sizes = self.path_sizes()
        return [index for index in self.active if sizes[index] > context]

    def path_ids(self, index: int) -> list[int]:
        """The tokens that segment `index` ends: what a flattened thread to it would hold."""
        *ancestors, last = self.path(index)
        ids = [
            token for ancestor in ancestors for token in self.segments[ancestor].ids[: self.segments[ancestor].shared]
        ]
        return ids + list(self.segments[last].ids)
