"""Which tokens to compute once: what prompts begin with, be they submitted together or apart, and what was computed
before.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic, NamedTuple, TypeVar

from steerlm.engines.base import Request, TokenLogprob

S = TypeVar("S")
# Tokens that must be saved for a part of its own to be worth a pass through the network.
_WORTH = 32


@dataclass(eq=False, slots=True)
class Part(Generic[S]):
    """The beginning of one prompt or of several: `ids` from the first token on, of which `parent` has the first.

    salt       of its requests: it goes on from nothing of another salt
    states     what the network computed for the first `done` tokens
    cached     how many of them others computed
    likeliest  how many tokens to list at each place of a prompt that is scored; such a one is computed whole
    scored     the log-probabilities of such a prompt's tokens from the second one on, as far as it is computed
    """

    ids: tuple[int, ...]
    parent: Part[S] | None = None
    salt: str = ""
    states: S | None = None
    done: int = 0
    cached: int = 0
    followed: bool = False
    """Whether a part took over from this one, and with it the tokens that were computed for both."""
    likeliest: int | None = None
    scored: list[TokenLogprob] = field(default_factory=list)

    def score(self, likeliest: int | None) -> None:
        """Have the tokens of this prompt scored, where `likeliest` is not None."""
        if likeliest is not None:
            self.likeliest, self.parent = likeliest, None

    @property
    def finished(self) -> bool:
        return self.done == len(self.ids)

    def next(self) -> Part[S]:
        """What must be computed next for this part: itself, or the first unfinished of those before it."""
        part = self
        while part.parent is not None and not part.parent.finished:
            part = part.parent
        return part

    def start(self, known: Known[S]) -> bool:
        """Take over what is known, from the part before or from earlier prompts; whether there is any."""
        done, states = known.longest(self.ids, self.salt) if self.likeliest is None else (0, None)
        parent, self.parent = self.parent, None
        if parent is not None and done <= parent.done:
            self.states, self.done = parent.states, parent.done
            self.cached = parent.done if parent.followed else parent.cached
            parent.followed = True
        else:
            self.states, self.done, self.cached = states, done, done
        return self.done > 0

    def forget(self) -> None:
        """Give up what was computed; who goes on from this part has it computed again."""
        self.states, self.done, self.cached, self.followed = None, 0, 0, False


def parts_of(requests: Sequence[Request]) -> list[list[Part[S]]]:
    """A part for each prompt of each request, see `share`."""
    rows = [(ids, request.salt) for request in requests for ids in request.prompts]
    parts: Iterator[Part[S]] = iter(share([ids for ids, _ in rows], [salt for _, salt in rows]))
    found = [[next(parts) for _ in request.prompts] for request in requests]
    for own, request in zip(found, requests, strict=True):
        own[0].score(request.prompt_logprobs)
    return found


def share(prompts: Sequence[tuple[int, ...]], salts: Sequence[str]) -> list[Part[S]]:
    """A part for each prompt. What several of one salt begin with is a part of its own, which theirs go on from."""
    leaves: dict[int, Part[S]] = {}
    order = sorted(range(len(prompts)), key=lambda number: (salts[number], prompts[number]))
    todo: list[tuple[list[int], Part[S] | None]] = [
        (list(group), None) for _, group in groupby(order, key=lambda number: salts[number])
    ]
    while todo:
        numbers, parent = todo.pop()
        first, last, salt = prompts[numbers[0]], prompts[numbers[-1]], salts[numbers[0]]
        # The last token of a prompt is its own: what is chosen next is read there.
        most = min(len(prompts[number]) for number in numbers) - 1
        shared = next((place for place in range(most) if first[place] != last[place]), most)
        before = len(parent.ids) if parent else 0
        if (shared - before) * (len(numbers) - 1) >= _WORTH:
            parent = Part(first[:shared], parent, salt)
        groups = [list(group) for _, group in groupby(numbers, key=lambda number: prompts[number][shared])]
        if len(groups) == 1:
            groups = [[number] for number in numbers]
        for group in groups:
            if len(group) == 1:
                leaves[group[0]] = Part(prompts[group[0]], parent, salt)
            else:
                todo.append((group, parent))
    return [leaves[number] for number in range(len(prompts))]


@dataclass(eq=False, slots=True)
class _Node:
    """A stretch of ids that some known sequences have in common, after those of the nodes above it.

    stop  how many ids there are up to the end of this stretch
    name  of the sequence that ends here, if one does
    """

    ids: tuple[int, ...]
    above: _Node | None
    stop: int
    below: dict[int, _Node] = field(default_factory=dict)
    name: int | None = None


class _Entry(NamedTuple, Generic[S]):
    node: _Node
    salt: str
    states: S


class Known(Generic[S]):
    """What was computed for earlier sequences of ids, to be taken up again; the least recently used comes first.

    The sequences are kept as a radix tree for each salt, so that finding one takes time for its own ids, not for all
    others, and what has another salt is as if it were not there.

    most    tokens of all of them together, beyond which the first are forgotten
    """

    def __init__(self, most: float = math.inf) -> None:
        self.most = most
        self._entries: OrderedDict[int, _Entry[S]] = OrderedDict()
        self._roots: dict[str, _Node] = {}
        self._next = 0
        self.tokens = 0
        """Of all sequences together."""

    def __len__(self) -> int:
        return len(self._entries)

    def holds(self, ids: Sequence[int], salt: str) -> bool:
        """Whether a sequence begins with these."""
        return self._reach(tuple(ids), salt)[1] == len(ids)

    def put(self, ids: Sequence[int], salt: str, states: S) -> None:
        """Note a sequence that none begins with (see `holds`). For it those are forgotten that it goes on from, and the
        first of all where there are too many.
        """
        assert not self.holds(ids, salt)
        node = self._place(tuple(ids), salt)
        shorter, above = [], node.above
        while above is not None:
            if above.name is not None:
                shorter.append(above.name)
            above = above.above
        node.name, self._next = self._next, self._next + 1
        self._entries[node.name] = _Entry(node, salt, states)
        self.tokens += node.stop
        for name in shorter:
            self._forget(name)
        while self.tokens > self.most:
            self.pop()

    def longest(self, ids: Sequence[int], salt: str) -> tuple[int, S | None]:
        """How many tokens, short of the last, some sequence begins with, and the states of that sequence."""
        node, size = self._reach(tuple(ids[:-1]), salt)
        if not size:
            return 0, None
        while node.name is None:
            node = next(reversed(node.below.values()))
        self._entries.move_to_end(node.name)
        return size, self._entries[node.name].states

    def pop(self) -> S:
        """Forget the sequence that was not used for longest."""
        return self._forget(next(iter(self._entries)))

    def _reach(self, ids: tuple[int, ...], salt: str) -> tuple[_Node, int]:
        """The last node of which these ids have a part, and how many of them the tree has."""
        node, size = self._roots.get(salt) or _Node((), None, 0), 0
        while size < len(ids) and (below := node.below.get(ids[size])) is not None:
            node, before = below, size
            size += _shared(node.ids, ids[size : size + len(node.ids)])
            if size - before < len(node.ids):
                break
        return node, size

    def _place(self, ids: tuple[int, ...], salt: str) -> _Node:
        """The node at which these ids end, made where there is none."""
        self._roots.setdefault(salt, _Node((), None, 0))
        node, size = self._reach(ids, salt)
        if size < node.stop:
            node = _split(node, size)
        if size == len(ids):
            return node
        made = _Node(ids[size:], node, len(ids))
        node.below[ids[size]] = made
        return made

    def _forget(self, name: int) -> S:
        node, salt, states = self._entries.pop(name)
        self.tokens -= node.stop
        node.name = None
        while node.above is not None and node.name is None and not node.below:
            del node.above.below[node.ids[0]]
            node = node.above
        if node.above is not None and node.name is None and len(node.below) == 1:
            (below,) = node.below.values()
            below.ids, below.above = node.ids + below.ids, node.above
            node.above.below[below.ids[0]] = below
        if node.above is None and not node.below:
            del self._roots[salt]
        return states


def _split(node: _Node, stop: int) -> _Node:
    """A node of its own for the ids of this one before `stop`."""
    assert node.above is not None
    size = len(node.ids) - (node.stop - stop)
    upper = _Node(node.ids[:size], node.above, stop)
    node.above.below[upper.ids[0]] = upper
    node.ids, node.above = node.ids[size:], upper
    upper.below[node.ids[0]] = node
    return upper


def in_turn(parts: Iterable[Part[S]], known: Known[S]) -> Iterator[Part[S]]:
    """The parts to compute now, in their order: not those that will have more to go on from, when one before them is
    computed, than they have now.
    """
    ahead: list[Part[S]] = []
    for part in parts:
        # One that is scored goes on from nothing.
        if part.done or part.likeliest is not None or not _gains(part, ahead, known):
            yield part
        if len(part.ids) <= known.most:
            ahead.append(part)


def _gains(part: Part[S], ahead: Sequence[Part[S]], known: Known[S]) -> bool:
    similar = [other for other in ahead if other.salt == part.salt and other.ids[:_WORTH] == part.ids[:_WORTH]]
    if not similar:
        return False
    have = max(known.longest(part.ids, part.salt)[0], len(part.parent.ids) if part.parent else 0)
    worth = have + _WORTH
    return worth < len(part.ids) and any(
        other.ids[have:worth] == part.ids[have:worth] and other.ids[:have] == part.ids[:have] for other in similar
    )


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many ids two sequences have in common at their beginning."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(place for place in range(size) if one[place] != other[place])
