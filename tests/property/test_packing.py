"""Fitting and packing lose nothing, change no path and keep within their budget, whatever the trees."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from references import dense_layout, path_tokens
from steerlm.packing import Report, first_fit, fit, lay_out, pack
from steerlm.tokens import Segment, TokenTree
from strategies import examples, token_trees


@st.composite
def forests(draw: st.DrawFn) -> list[TokenTree]:
    return [draw(token_trees(name=f"tree-{number}")) for number in range(draw(st.integers(1, 4)))]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[TokenTree], int, int]:
    context = draw(st.integers(3, 40))
    return draw(forests()), context, draw(st.integers(context, 2 * context + 20))


def expected_path(tree: TokenTree, index: int, context: int) -> list[int] | None:
    """The tokens that response `index` must be seen with: the definition, by trying every cut."""
    whole = path_tokens(tree, index)
    if len(whole) <= context:
        return whole
    *above, last = tree.path(index)
    system = [k for k in above if tree.segments[k].message < 0]
    turns = [k for k in above if tree.segments[k].message >= 0]
    head = [token for k in system for token in tree.segments[k].ids]

    def shared(k: int) -> list[int]:
        return list(tree.segments[k].ids[: tree.segments[k].shared])

    openings = [
        at
        for at, k in enumerate(turns)
        if not tree.segments[k].is_response and (at == 0 or tree.segments[turns[at - 1]].is_response)
    ]
    for at in openings:
        if at == 0:
            continue  # cuts nothing
        first, *rest = turns[at:]
        path = [*head, *shared(first)[tree.segments[first].glue :], *(t for k in rest for t in shared(k))]
        path += tree.segments[last].ids
        if len(path) <= context:
            return path
    if not openings:  # responses only
        path = [*head, *tree.segments[last].ids[tree.segments[last].glue if turns else 0 :]]
        return path if len(path) <= context else None
    return None


def actives(trees: list[TokenTree]) -> list[tuple[str, int, TokenTree, int]]:
    return [(tree.conversation, tree.segments[k].message, tree, k) for tree in trees for k in tree.active]


@given(cases())
def test_every_response_is_active_once_with_the_tokens_it_should_see(case: tuple[list[TokenTree], int, int]) -> None:
    trees, context, budget = case
    fitted, report = fit(trees, context, budget)
    wanted = {(name, message): expected_path(tree, k, context) for name, message, tree, k in actives(trees)}
    found = [((name, message), tree.path_ids(k)) for name, message, tree, k in actives(fitted)]
    assert len(found) == len(dict(found))
    assert dict(found) == {key: path for key, path in wanted.items() if path is not None}
    weights = {(n, m): tree.segments[k].weight for n, m, tree, k in actives(trees)}
    assert all(tree.segments[k].weight == weights[n, m] for n, m, tree, k in actives(fitted))
    # The books.
    too_long = {(n, m): len(path_tokens(tree, k)) > context for n, m, tree, k in actives(trees)}
    assert report.dropped == sum(path is None for path in wanted.values()) == len(report.dropped_where)
    assert report.truncated == sum(too_long[key] and path is not None for key, path in wanted.items())
    assert report.responses == len(found)
    assert report.tokens == sum(tree.size for tree in fitted)
    assert report.trees == len(fitted)


@given(cases())
def test_sizes_of_paths_are_those_of_flattened_threads(case: tuple[list[TokenTree], int, int]) -> None:
    trees, context, _ = case
    for tree in trees:
        paths = [path_tokens(tree, k) for k in range(len(tree.segments))]
        assert tree.path_sizes() == [len(path) for path in paths]
        assert tree.beyond(context) == [k for k in tree.active if len(paths[k]) > context]


def roles(segment: Segment) -> dict[int, str]:
    """What each token of a segment is; of trees in which no token is there twice."""
    return dict(zip(segment.ids, (role for role, length in segment.spans for _ in range(length)), strict=True))


@examples(200)
@given(cases())
def test_a_path_that_is_cut_is_a_chain_of_what_its_segments_share(case: tuple[list[TokenTree], int, int]) -> None:
    trees, context, budget = case
    whole = {(name, message): (tree, k) for name, message, tree, k in actives(trees)}
    for name, message, made, active in actives(fit(trees, context, budget)[0]):
        tree, k = whole[name, message]
        if len(path_tokens(tree, k)) <= context:
            continue
        *before, response = made.segments
        assert [segment.parent for segment in made.segments] == list(range(-1, active))
        assert made.active == (active,) == (len(before),)
        own = {tree.segments[at].message: tree.segments[at] for at in tree.path(k)}
        opening = sum(segment.message < 0 for segment in made.segments)
        assert opening == sum(number < 0 for number in own)
        assert [segment.message for segment in made.segments[opening:]] == list(own)[-len(made.segments) + opening :]
        for place, segment in enumerate(made.segments):
            origin = own[segment.message]
            stop = len(origin.ids) if segment is response else origin.shared
            glue = 0 if place == opening else origin.glue
            ids = origin.ids[origin.glue - glue : stop]
            assert (segment.ids, segment.glue) == (ids, glue)
            assert segment.shared == min(origin.shared - origin.glue + glue, len(ids))
            assert segment.weight == (origin.weight if segment is response else 0)
            assert roles(segment) == {token: roles(origin)[token] for token in ids}
            assert (segment.foil_of, segment.ratings) == (-1, origin.ratings)


@given(cases())
def test_everything_keeps_within_its_limits(case: tuple[list[TokenTree], int, int]) -> None:
    trees, context, budget = case
    fitted, _ = fit(trees, context, budget)
    for tree in fitted:
        assert tree.size <= budget
        assert all(size <= context for size in tree.path_sizes())
        leaves = set(range(len(tree.segments))) - {segment.parent for segment in tree.segments}
        assert all(tree.segments[leaf].weight > 0 for leaf in leaves)
    packs = pack(fitted, budget)
    assert all(0 < made.size <= budget for made in packs)
    assert sum(made.size for made in packs) == sum(tree.size for tree in fitted)
    # First fit: no two packs could be one.
    sizes = sorted(made.size for made in packs)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > budget


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(30, 60))
def test_first_fit_is_the_first_that_fits(sizes: list[int], budget: int) -> None:
    """As one would do it by hand: try the bins in order."""
    bins: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        for members in bins:
            if sum(sizes[k] for k in members) + sizes[index] <= budget:
                members.append(index)
                break
        else:
            bins.append([index])
    assert first_fit(sizes, budget) == bins


@given(cases())
def test_foils_stay_with_their_response_or_are_counted(case: tuple[list[TokenTree], int, int]) -> None:
    trees, context, budget = case
    fitted, report = fit(trees, context, budget)

    def foils(trees: list[TokenTree]) -> Counter[tuple[str, int, tuple[int, ...]]]:
        return Counter(
            (tree.conversation, segment.message, segment.ids)
            for tree in trees
            for segment in tree.segments
            if segment.foil_of >= 0 and segment.weight > 0
        )

    before, after = foils(trees), foils(fitted)
    assert not after - before
    assert report.foils_dropped == (before - after).total()
    for tree in fitted:
        for segment in tree.segments:
            if segment.foil_of >= 0:
                own = tree.segments[segment.foil_of]
                assert (own.parent, own.message, own.foil_of) == (segment.parent, segment.message, -1)
    # None goes that would have fitted together with its response.
    for tree in trees:
        for k in tree.active:
            group = [k, *(j for j, segment in enumerate(tree.segments) if segment.foil_of == k)]
            paths = [path_tokens(tree, j) for j in group]
            above = len(paths[0]) - len(tree.segments[k].ids)
            fits = max(map(len, paths)) <= context and above + sum(len(p) - above for p in paths) <= budget
            kept = sum(n for key, n in after.items() if key[:2] == (tree.conversation, tree.segments[k].message))
            assert kept == (len(group) - 1 if fits else 0)


@examples(80)
@given(forests())
def test_layout_is_the_dense_reference(trees: list[TokenTree]) -> None:
    made = lay_out(trees)
    reference = dense_layout(trees)
    assert list(made.ids_T) == reference.ids
    assert list(made.positions_T) == reference.positions
    # The attention table: each token sees the prefix of its run, and its run up to itself.
    visible = np.zeros((made.size, made.size), dtype=bool)
    covered: list[int] = []
    for run in made.runs:
        covered += range(run.start, run.stop)
        for row in range(run.start, run.stop):
            visible[row, run.start : row + 1] = True
            for start, stop in run.prefix:
                visible[row, start:stop] = True
    assert covered == list(range(made.size))
    assert np.array_equal(visible, np.array(reference.visible).reshape(visible.shape))
    # Targets: in the order of the pack, every trained token of every weighted response, predicted from the one before.
    place = {where: at for at, where in enumerate(reference.place)}
    wanted = []
    for number, tree in enumerate(trees):
        for index, segment in enumerate(tree.segments):
            if segment.is_response and segment.weight > 0:
                for k in segment.trained():
                    row = place[number, index, k - 1]
                    wanted.append((row, segment.ids[k], segment.weight, tree.conversation, segment.message))
    owners = [made.responses[owner] for owner in made.owner_N]
    assert sorted(wanted) == sorted(
        (row, target, weight, owner.conversation, owner.message)
        for row, target, weight, owner in zip(
            made.rows_N.tolist(), made.targets_N.tolist(), made.weights_N.tolist(), owners, strict=True
        )
    )
    assert sorted((item.conversation, item.message, item.score_at) for item in made.responses) == sorted(
        (tree.conversation, segment.message, place[number, index, len(segment.ids) - 1])
        for number, tree in enumerate(trees)
        for index, segment in enumerate(tree.segments)
        if segment.is_response and segment.weight > 0
    )


@given(forests())
def test_packing_a_tree_that_fits_shares_every_prefix(trees: list[TokenTree]) -> None:
    """With room enough, each segment on the way to a response is there once."""
    fitted, report = fit(trees, 10**6)
    assert report.split == report.truncated == report.dropped == 0
    for tree in trees:
        needed = {k for j, s in enumerate(tree.segments) if s.is_response and s.weight > 0 for k in tree.path(j)}
        made = [other for other in fitted if other.conversation == tree.conversation]
        assert len(made) == (1 if needed else 0)
        assert sum(len(other.segments) for other in made) == len(needed)


def test_a_report_counts_from_nothing() -> None:
    assert str(Report()) == (
        "0 trees, 0 responses, 0 tokens; 0 trees split, 0 responses with older turns cut off, "
        "0 responses too long and dropped"
    )
