"""From token trees to packs: token budgets, exact splits of big trees, cuts of paths that are too long.

Shapes: T tokens of a pack, N trained tokens, R responses, S segments in a row that attend as one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steerlm.errors import ConfigError
from steerlm.tokens import Segment, TokenTree

Ints = NDArray[np.int64]
_NAMED = 100


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens `start:stop` of a pack that attend causally to themselves and wholly to `prefix`.

    `prefix` lists the `(start, stop)` ranges of the path before the run, root first.
    """

    start: int
    stop: int
    prefix: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class PackedResponse:
    """One response of a pack. `foil_of` is the index in `Pack.responses` of the response whose text this one
    repeats under other labels, -1 for ordinary responses. `ratings` are those of people, where it is to be scored.
    """

    conversation: str
    message: int
    score_at: int
    foil_of: int = -1
    ratings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """Trees laid side by side for one forward pass.

    ids_T, positions_T   tokens and their positions along their own path
    runs                 the attention table; runs partition 0..T in order
    rows_N               positions whose output predicts a trained token
    targets_N, weights_N those tokens and their loss weights
    owner_N              index into `responses` of each trained token
    responses            what is trained or scored here; `score_at` is the position of its leaf's last token
    """

    ids_T: Ints
    positions_T: Ints
    runs: tuple[Run, ...]
    rows_N: Ints
    targets_N: Ints
    weights_N: NDArray[np.float32]
    owner_N: Ints
    responses: tuple[PackedResponse, ...]

    @property
    def size(self) -> int:
        return len(self.ids_T)


@dataclass(slots=True)
class Report:
    """What fitting did to the data; `truncated` and `dropped` count responses."""

    trees: int = 0
    responses: int = 0
    tokens: int = 0
    split: int = 0
    truncated: int = 0
    dropped: int = 0
    foils_dropped: int = 0
    dropped_where: list[str] = field(default_factory=list)

    def __iadd__(self, other: Report) -> Report:
        for name in ("trees", "responses", "tokens", "split", "truncated", "dropped", "foils_dropped"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        # Enough to look into; all of them are counted.
        self.dropped_where += other.dropped_where[: _NAMED - len(self.dropped_where)]
        return self

    def __str__(self) -> str:
        return (
            f"{self.trees} trees, {self.responses} responses, {self.tokens} tokens; {self.split} trees split, "
            f"{self.truncated} responses with older turns cut off, {self.dropped} responses too long and dropped"
        )


def fit(trees: Iterable[TokenTree], context: int, budget: int | None = None) -> tuple[list[TokenTree], Report]:
    """Make every tree fit: no path beyond `context` tokens, no tree beyond `budget` tokens.

    Every active response of the input is active in exactly one tree of the output, with the same tokens on its
    path wherever that path is no longer than `context`. A longer path loses its oldest turns but keeps the system
    text and the last prompt and response; where even these do not fit, the response is dropped. Branches without
    an active response are left out. Raises `ConfigError` where the budget is below the context.
    """
    budget = budget or context
    if budget < context:
        raise ConfigError(
            f"a pack of {budget} tokens cannot hold a path of {context}; raise the pack size or lower the context"
        )
    fitted: list[TokenTree] = []
    report = Report()
    for tree in trees:
        tree = _drop_big_foils(tree, context, budget, report)
        whole, cut = _cut_long_paths(tree, context, report)
        parts = _split(_subtree(whole, whole.active), budget) if whole and whole.active else []
        report.split += len(parts) > 1
        fitted += parts + cut
    report.trees = len(fitted)
    report.responses = sum(len(tree.active) for tree in fitted)
    report.tokens = sum(tree.size for tree in fitted)
    return fitted, report


def _drop_big_foils(tree: TokenTree, context: int, budget: int, report: Report) -> TokenTree:
    """Take away the foils of responses that do not fit together with them; the response itself stays."""
    foils = _foils(tree)
    too_big: set[int] = set()
    for index, members in foils.items():
        path = sum(tree.segments[ancestor].shared for ancestor in tree.path(index)[:-1])
        sizes = [len(tree.segments[member].ids) for member in (index, *members)]
        if path + max(sizes) > context or path + sum(sizes) > budget:
            too_big.update(members)
    if not too_big:
        return tree
    report.foils_dropped += len(too_big)
    # A foil has no children, so leaving it out moves only the numbers of what follows.
    kept = [index for index in range(len(tree.segments)) if index not in too_big]
    return _renumbered(tree, kept, set(kept))


def _cut_long_paths(tree: TokenTree, context: int, report: Report) -> tuple[TokenTree | None, list[TokenTree]]:
    """Split off the responses whose path is too long, each as a chain of its own with its oldest turns gone."""
    long = tree.beyond(context)
    if not long:
        return tree, []
    turns = [_Turn(segment.as_context(), segment.is_response) for segment in tree.segments]
    chains = []
    for index in long:
        chain = _chain(tree, turns, index, context)
        if chain is None:
            report.dropped += 1
            report.dropped_where.append(f"{tree.conversation}, message {tree.segments[index].message}")
        else:
            report.truncated += 1
            chains.append(chain)
    cut = set(long)
    short = [index for index in tree.active if index not in cut]
    return (_subtree(tree, short) if short else None), chains


def _foils(tree: TokenTree) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for index, segment in enumerate(tree.segments):
        if segment.foil_of >= 0:
            found[segment.foil_of] = (*found.get(segment.foil_of, ()), index)
    return found


class _Turn(NamedTuple):
    """A segment as what follows it sees it, which may no longer show that it `answers`: a response may be empty."""

    seen: Segment
    answers: bool


def _chain(tree: TokenTree, turns: Sequence[_Turn], index: int, context: int) -> TokenTree | None:
    """The path to response `index`, which is too long, with as many whole exchanges cut from its head as it takes, or
    None. `turns` are all segments of the tree.
    """
    *ancestors, _ = tree.path(index)
    system = ancestors[:1] if ancestors and tree.segments[ancestors[0]].message < 0 else []
    opening = [turns[member].seen for member in system]
    before = [turns[member] for member in ancestors[len(system) :]]
    response = tree.segments[index]
    room = context - sum(segment.shared for segment in opening)
    kept = _last_exchanges(before, room - len(response.ids))
    if not kept:
        # Only where nobody asked anything is a response kept without what it follows.
        response = response.without_glue()
        if len(response.ids) > room or not all(turn.answers for turn in before):
            return None
    segments = [*opening, *kept, response]
    return TokenTree(tree.conversation, tuple(replace(segment, parent=k - 1) for k, segment in enumerate(segments)))


def _last_exchanges(turns: Sequence[_Turn], room: int) -> list[Segment]:
    """What is left of turns that lose their oldest exchanges, at least one, until `room` holds the rest: it begins with
    a user turn after a response, without its glue.
    """
    start, size = len(turns), 0
    for k in range(len(turns) - 1, 0, -1):
        size += turns[k].seen.shared
        if size - turns[k].seen.glue <= room and turns[k - 1].answers and not turns[k].answers:
            start = k
        if size > room:
            break
    left = [turn.seen for turn in turns[start:]]
    return [left[0].without_glue(), *left[1:]] if left else []


def _subtree(tree: TokenTree, responses: Sequence[int]) -> TokenTree:
    """The tree that holds these responses, their foils and their paths, with nothing else active."""
    foils = _foils(tree)
    active = {member for index in responses for member in (index, *foils.get(index, ()))}
    needed = sorted({member for index in active for member in tree.path(index)})
    return _renumbered(tree, needed, active)


def _renumbered(tree: TokenTree, kept: Sequence[int], active: set[int]) -> TokenTree:
    """The segments `kept` (in order, closed under parents); those outside `active` become mere context."""
    place = {old: new for new, old in enumerate(kept)}
    place[-1] = -1
    segments = []
    for old in kept:
        segment = tree.segments[old] if old in active else tree.segments[old].as_context()
        segments.append(replace(segment, parent=place[segment.parent], foil_of=place[segment.foil_of]))
    return TokenTree(tree.conversation, tuple(segments))


def _split(tree: TokenTree, budget: int) -> list[TokenTree]:
    """Cut a tree into parts of at most `budget` tokens, depth first so that parts share as little as may be."""
    if tree.size <= budget:
        return [tree]
    foils = _foils(tree)
    active = set(tree.active)
    parts: list[list[int]] = []
    held: set[int] = set()
    size = 0
    for index in _depth_first(tree):
        if index not in active:
            continue
        wanted = {member for end in (index, *foils.get(index, ())) for member in tree.path(end)}
        extra = sum(len(tree.segments[member].ids) for member in wanted - held)
        if parts and size + extra <= budget:
            parts[-1].append(index)
            held |= wanted
            size += extra
        else:
            parts.append([index])
            held = wanted
            size = sum(len(tree.segments[member].ids) for member in wanted)
    return [_subtree(tree, part) for part in parts]


def _depth_first(tree: TokenTree) -> list[int]:
    children: dict[int, list[int]] = {}
    for index, segment in enumerate(tree.segments):
        children.setdefault(segment.parent, []).append(index)
    order, stack = [], list(reversed(children.get(-1, [])))
    while stack:
        index = stack.pop()
        order.append(index)
        stack.extend(reversed(children.get(index, [])))
    return order


def pack(trees: Sequence[TokenTree], budget: int) -> list[Pack]:
    """Lay trees into packs of at most `budget` tokens, first fit by decreasing size. Trees must fit (see `fit`)."""
    sizes = [tree.size for tree in trees]
    require_fitting(trees, sizes, budget)
    return [lay_out([trees[index] for index in sorted(members)]) for members in first_fit(sizes, budget)]


def require_fitting(trees: Sequence[TokenTree], sizes: Sequence[int], budget: int) -> None:
    """Raise `ConfigError` for the first tree that no pack can hold."""
    for tree, size in zip(trees, sizes, strict=True):
        if size > budget:
            raise ConfigError(
                f"conversation {tree.conversation}: a tree of {size} tokens in packs of {budget}; fit it first"
            )


def by_decreasing_size(sizes: Sequence[int]) -> list[int]:
    """Indices of `sizes`, the largest first, and of equal ones the first."""
    return sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))


def first_fit(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Put each size, largest first, into the first bin that has room. Returns the indices in each bin.

    No size may be above `budget`. A tournament over the bins' room finds that bin in the logarithm of their number.
    """
    # No two bins of a first fit would fit into one.
    most = min(len(sizes), 2 * sum(sizes) // budget + 1)
    leaves = 1 << max(0, most - 1).bit_length()
    room = [budget] * (2 * leaves)
    bins: list[list[int]] = []
    for index in by_decreasing_size(sizes):
        node, size = 1, sizes[index]
        while node < leaves:
            node *= 2
            node += room[node] < size
        if node - leaves == len(bins):
            bins.append([])
        bins[node - leaves].append(index)
        room[node] -= size
        while node > 1:
            node //= 2
            best = max(room[2 * node], room[2 * node + 1])
            if room[node] == best:
                break
            room[node] = best
    return bins


def lay_out(trees: Sequence[TokenTree]) -> Pack:
    """Lay whole trees side by side, depth first, and merge segments that follow their parent into one run."""
    ids: list[int] = []
    positions: list[int] = []
    runs: list[Run] = []
    rows: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    owner: list[int] = []
    responses: list[PackedResponse] = []
    for tree in trees:
        # Where each segment's shared tokens end: as a position of the path, and as ranges of the pack.
        ends: dict[int, int] = {-1: 0}
        paths: dict[int, tuple[tuple[int, int], ...]] = {-1: ()}
        packed: dict[int, int] = {}
        for index in _depth_first(tree):
            segment = tree.segments[index]
            start, stop = len(ids), len(ids) + len(segment.ids)
            path = paths[segment.parent]
            ids.extend(segment.ids)
            positions.extend(range(ends[segment.parent], ends[segment.parent] + len(segment.ids)))
            if stop > start:
                if path and path[-1][1] == start and runs[-1].stop == start:
                    runs[-1] = replace(runs[-1], stop=stop)
                else:
                    runs.append(Run(start, stop, path))
            ends[index] = ends[segment.parent] + segment.shared
            paths[index] = _joined(path, start, start + segment.shared)
            if segment.is_response and segment.weight > 0:
                packed[index] = len(responses)
                foil_of = packed.get(segment.foil_of, -1)
                responses.append(PackedResponse(tree.conversation, segment.message, stop - 1, foil_of, segment.ratings))
                for offset in segment.trained():
                    rows.append(start + offset - 1)
                    targets.append(segment.ids[offset])
                    weights.append(segment.weight)
                    owner.append(packed[index])
    return Pack(
        ids_T=np.asarray(ids, dtype=np.int64),
        positions_T=np.asarray(positions, dtype=np.int64),
        runs=tuple(runs),
        rows_N=np.asarray(rows, dtype=np.int64),
        targets_N=np.asarray(targets, dtype=np.int64),
        weights_N=np.asarray(weights, dtype=np.float32),
        owner_N=np.asarray(owner, dtype=np.int64),
        responses=tuple(responses),
    )


def _joined(path: tuple[tuple[int, int], ...], start: int, stop: int) -> tuple[tuple[int, int], ...]:
    if start == stop:
        return path
    if path and path[-1][1] == start:
        return (*path[:-1], (path[-1][0], stop))
    return (*path, (start, stop))


def padded(pack: Pack, size: int) -> Pack:
    """`pack` with a last run of tokens up to `size`, which no other run sees and which nothing counts of."""
    if size == pack.size:
        return pack
    ends = (0, size - pack.size)
    return replace(
        pack,
        ids_T=np.pad(pack.ids_T, ends),
        positions_T=np.pad(pack.positions_T, ends),  # all at the first, which every model has
        runs=(*pack.runs, Run(pack.size, size, ())),
    )
