"""What a training's data ask of it: tokens a conversation, tokens trained, tokens seen by each."""

from __future__ import annotations

from dataclasses import dataclass

from steerlm.models.directory import Kind


@dataclass(frozen=True)
class Workload:
    """Means over the data.

    tokens    of a conversation tree, all branches, each token once
    trained   the share of tokens that the loss is taken of
    seen      tokens that a token attends to, itself included
    source    where these figures come from
    """

    tokens: float
    trained: float
    seen: float
    source: str
