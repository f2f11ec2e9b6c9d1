"""Which tokens to compute once for several prompts: prompts that arrive together, as a tree of parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from steerlm.engines.states import States, StateStore, length

# Tokens that must be saved for a part of its own to be worth a pass through the network.
_WORTH = 32


@dataclass(eq=False, slots=True)
class Part:
    """The beginning of one prompt or of several: `ids` from the first token on, of which `parent` has the first.

    states     of the tokens computed so far
    cached     how many of them others computed
    """

    ids: tuple[int, ...]
    parent: Part | None = None
    states: States = ()
    cached: int = 0
    followed: bool = False
    """Whether a part took over from this one, and with it the tokens that were computed for both."""

    @property
    def done(self) -> int:
        return length(self.states)

    @property
    def finished(self) -> bool:
        return self.done == len(self.ids)

    def next(self) -> Part:
        """What must be computed next for this part: itself, or the first unfinished of those before it."""
        part = self
        while part.parent is not None and not part.parent.finished:
            part = part.parent
        return part

    def start(self, store: StateStore) -> None:
        """Take over what is known, from the part before or from the store."""
        found = store.longest(self.ids)
        parent, self.parent = self.parent, None
        if parent is not None and length(found) <= len(parent.ids):
            self.states = parent.states
            self.cached = len(parent.ids) if parent.followed else parent.cached
            parent.followed = True
        else:
            self.states, self.cached = found, length(found)


def share(prompts: Sequence[tuple[int, ...]]) -> list[Part]:
    """A part for each prompt. What several of them begin with is a part of its own, which theirs go on from."""
    leaves: dict[int, Part] = {}
    order = sorted(range(len(prompts)), key=lambda number: prompts[number])
    todo: list[tuple[list[int], Part | None]] = [(order, None)]
    while todo:
        numbers, parent = todo.pop()
        first, last = prompts[numbers[0]], prompts[numbers[-1]]
        # The last token of a prompt is its own: what is chosen next is read there.
        most = min(len(prompts[number]) for number in numbers) - 1
        shared = next((place for place in range(most) if first[place] != last[place]), most)
        before = len(parent.ids) if parent else 0
        if (shared - before) * (len(numbers) - 1) >= _WORTH:
            parent = Part(first[:shared], parent)
        groups = [list(group) for _, group in groupby(numbers, key=lambda number: prompts[number][shared])]
        if len(groups) == 1:
            groups = [[number] for number in numbers]
        for group in groups:
            if len(group) == 1:
                leaves[group[0]] = Part(prompts[group[0]], parent)
            else:
                todo.append((group, parent))
    return [leaves[number] for number in range(len(prompts))]
