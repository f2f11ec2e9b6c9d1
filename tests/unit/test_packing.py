"""Fitting and packing on small trees whose result one can see."""

from __future__ import annotations

import numpy as np
import pytest

from steerlm.errors import ConfigError
from steerlm.packing import Run, fit, lay_out, pack, padded
from steerlm.tokens import Segment, Span, TokenTree


def user(ids: list[int], parent: int, message: int, glue: int = 0) -> Segment:
    return Segment(tuple(ids), (Span("user", len(ids)),), parent, message, len(ids), glue)


def response(
    ids: list[int], parent: int, message: int, weight: float = 1.0, foil_of: int = -1, glue: int = 0
) -> Segment:
    """One token opens the turn, one ends it; what is between is the text."""
    spans = (Span("marker", 1 + glue), Span("response", len(ids) - 2 - glue), Span("end", 1))
    return Segment(tuple(ids), spans, parent, message, len(ids) - 1, glue, weight, foil_of)


SYSTEM = Segment((1, 2), (Span("system", 2),), -1, -1, 2)
# system > user 0 > response 1 > user 2 > response 3
#                \ response 4
TREE = TokenTree(
    "tree",
    (
        SYSTEM,
        user([10, 11, 12], 0, 0),
        response([20, 21, 22, 29], 1, 1),
        user([28, 30, 31], 2, 2, glue=1),
        response([40, 41, 49], 3, 3, weight=0.5),
        response([50, 51, 52, 53, 59], 1, 4),
    ),
)


def test_layout_of_a_tree() -> None:
    """Depth first; a branch sees its path, and runs go on over children that follow at once."""
    made = lay_out([TREE])
    # Place:             0  1  2   3   4   5   6   7   8   9   10  11  12  13  14  15  16  17  18  19
    assert list(made.ids_T) == [1, 2, 10, 11, 12, 20, 21, 22, 29, 28, 30, 31, 40, 41, 49, 50, 51, 52, 53, 59]
    assert list(made.positions_T) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 5, 6, 7, 8, 9]
    assert made.runs == (Run(0, 9, ()), Run(9, 15, ((0, 8),)), Run(15, 20, ((0, 5),)))
    # The row before each trained token predicts it: response 1 trains 21, 22 and its end 29, and so on.
    assert list(made.targets_N) == [21, 22, 29, 41, 49, 51, 52, 53, 59]
    assert list(made.rows_N) == [5, 6, 7, 12, 13, 15, 16, 17, 18]
    assert list(made.weights_N) == [1, 1, 1, 0.5, 0.5, 1, 1, 1, 1]
    assert list(made.owner_N) == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [(item.message, item.score_at, item.foil_of) for item in made.responses] == [
        (1, 8, -1),
        (3, 14, -1),
        (4, 19, -1),
    ]


def test_trees_side_by_side_do_not_see_each_other() -> None:
    made = lay_out([TREE, TREE])
    second = made.runs[3:]
    assert [(run.start - 20, run.stop - 20) for run in second] == [(run.start, run.stop) for run in made.runs[:3]]
    assert all(start >= 20 for run in second for start, _ in run.prefix)
    assert list(made.positions_T[20:]) == list(made.positions_T[:20])


def test_foils_point_to_their_response_in_the_pack() -> None:
    tree = TokenTree(
        "t",
        (
            user([1], -1, 0),
            response([2, 3, 4], 0, 1),
            response([2, 5, 4], 0, 1, foil_of=1),
            user([7], 1, 2),
            response([8, 9, 10], 3, 3),
            response([8, 11, 10], 3, 3, foil_of=4),
        ),
    )
    made = lay_out([tree, tree])
    # Depth first: response 1, its later turn with response 3 and foil, and only then the foil of 1.
    assert [(item.message, item.foil_of) for item in made.responses[:4]] == [(1, -1), (3, -1), (3, 1), (1, 0)]
    assert [(item.message, item.foil_of) for item in made.responses[4:]] == [(1, -1), (3, -1), (3, 5), (1, 4)]


def test_padding_is_seen_by_nothing_and_counts_for_nothing() -> None:
    made = lay_out([TREE])
    longer = padded(made, made.size + 3)
    assert longer.ids_T.tolist() == [*made.ids_T, 0, 0, 0]
    assert longer.positions_T.tolist() == [*made.positions_T, 0, 0, 0]
    assert longer.runs == (*made.runs, Run(made.size, made.size + 3, ()))
    assert longer.responses == made.responses
    for name in ("rows_N", "targets_N", "weights_N", "owner_N"):
        assert getattr(longer, name) is getattr(made, name)
    assert padded(made, made.size) is made


def test_an_empty_pack() -> None:
    made = lay_out([])
    assert made.size == 0
    assert made.rows_N.dtype == np.int64
    assert pack([], 8) == []


def chain(*lengths: int, system: int = 0) -> TokenTree:
    """Alternating turns of so many tokens, the last one a response; every later user turn begins with glue."""
    segments = []
    if system:
        segments.append(Segment(tuple(range(900, 900 + system)), (Span("system", system),), -1, -1, system))
    for message, length in enumerate(lengths):
        ids = list(range(100 * (message + 1), 100 * (message + 1) + length))
        parent = len(segments) - 1
        if message % 2:
            segments.append(response(ids, parent, message))
        else:
            segments.append(user(ids, parent, message, glue=1 if message else 0))
    return TokenTree("chain", tuple(segments))


def test_a_long_path_loses_its_oldest_exchanges() -> None:
    tree = chain(4, 4, 4, 4, 4, 4, system=2)
    # The whole: 2 + 4+3 + 4+3 + 4+4 = 24 tokens. Without the first exchange and the glue after it: 16.
    fitted, report = fit([tree], context=17)
    paths = {made.segments[made.active[-1]].message: made.path_ids(made.active[-1]) for made in fitted}
    assert paths[5] == [900, 901, *range(301, 304), *range(400, 403), *range(500, 504), *range(600, 604)]
    assert paths[3] == [900, 901, *range(100, 104), *range(200, 203), *range(300, 304), *range(400, 404)]
    assert (report.truncated, report.dropped, report.responses) == (1, 0, 3)


def test_what_is_built_to_cut_paths_grows_with_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with all the beginnings that do not fit: of 200 turns there are up to 100 for each of 98 responses."""
    tree = chain(*[4] * 200)
    built = 0
    check = Segment.__post_init__

    def counted(segment: Segment) -> None:
        nonlocal built
        built += 1
        check(segment)

    monkeypatch.setattr(Segment, "__post_init__", counted)
    fitted, report = fit([tree], context=20)
    assert report.truncated == 98
    assert built <= 4 * (len(tree.segments) + sum(len(made.segments) for made in fitted))


def test_at_least_the_last_prompt_is_kept() -> None:
    tree = chain(4, 4, 4, 4, 4, 4, system=2)
    fitted, _ = fit([tree], context=9)
    last = next(made for made in fitted if made.segments[made.active[-1]].message == 5)
    assert last.path_ids(last.active[0]) == [900, 901, 501, 502, 503, *range(600, 604)]
    assert last.active == (len(last.segments) - 1,)


def test_a_response_that_does_not_fit_with_its_prompt_is_dropped_and_named() -> None:
    fitted, report = fit([chain(4, 4, 4, 9, system=2)], context=13)
    assert [made.segments[index].message for made in fitted for index in made.active] == [1]
    assert report.dropped == 1
    assert report.dropped_where == ["chain, message 3"]
    assert "1 responses too long and dropped" in str(report)
    nothing, report = fit([chain(4, 4)], context=7)
    assert nothing == []
    assert (report.trees, report.responses, report.tokens, report.dropped) == (0, 0, 0, 1)


def test_two_user_turns_in_a_row_are_one_prompt() -> None:
    """An exchange begins with the first of them; to cut between them would keep half a prompt."""
    tree = TokenTree(
        "t",
        (
            user([1, 2, 3], -1, 0),
            response([4, 5, 6], 0, 1),
            user([7, 8, 9], 1, 2, glue=1),
            user([10, 11], 2, 3),
            response([12, 13, 14], 3, 4),
        ),
    )
    fitted, report = fit([tree], context=7)
    assert [made.path_ids(made.active[-1]) for made in fitted] == [[1, 2, 3, 4, 5, 6], [8, 9, 10, 11, 12, 13, 14]]
    _, report = fit([tree], context=6)
    assert report.dropped == 1


def test_an_exchange_begins_after_a_response_that_says_nothing() -> None:
    """Its shared tokens do not show that it is a response."""
    tree = chain(4, 2, 4, 4)
    fitted, report = fit([tree], context=7)
    assert [made.path_ids(made.active[-1]) for made in fitted] == [
        [*range(100, 104), *range(200, 202)],
        [*range(301, 304), *range(400, 404)],
    ]
    assert report.dropped == 0


def test_a_path_of_responses_only_begins_without_glue() -> None:
    """The glue closes the turn before; where that is cut off, it would open the path with an end marker."""
    tree = TokenTree("t", (response([1, 2, 3, 4, 5, 6], -1, 0), response([90, 7, 8, 9], 0, 1, glue=1)))
    fitted, report = fit([tree], context=6)
    assert [made.path_ids(made.active[0]) for made in fitted] == [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    assert report.truncated == 1


def test_a_big_tree_is_split_into_exact_parts() -> None:
    tree = TokenTree("wide", (user([1, 2, 3], -1, 0), *(response([10 * k, 1, 2, 3], 0, k) for k in range(1, 6))))
    fitted, report = fit([tree], context=8, budget=12)
    assert [made.active for made in fitted] == [(1, 2), (1, 2), (1,)]
    assert all(made.path_ids(index)[:3] == [1, 2, 3] for made in fitted for index in made.active)
    assert (report.split, report.trees, report.responses, report.tokens) == (1, 3, 5, 11 + 11 + 7)


def test_branches_without_an_active_response_are_left_out() -> None:
    tree = TokenTree(
        "t",
        (
            user([1], -1, 0),
            response([2, 3, 4], 0, 1, weight=0.0),
            response([5, 6, 7], 0, 2),
            user([8], 2, 3),
            response([9, 10, 11], 1, 4, weight=0.0),
        ),
    )
    fitted, report = fit([tree], context=20)
    assert [segment.message for segment in fitted[0].segments] == [0, 2]
    assert (report.trees, report.tokens) == (1, 4)


def test_an_inactive_response_is_context_without_its_leaf() -> None:
    tree = TokenTree(
        "t", (user([1], -1, 0), response([2, 3, 4], 0, 1, weight=0.0), user([5], 1, 2), response([6, 7, 8], 2, 3))
    )
    fitted, _ = fit([tree], context=20)
    assert list(lay_out(fitted).ids_T) == [1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize(("context", "dropped"), [(8, 0), (7, 1)])
def test_foils_that_do_not_fit_are_dropped_but_not_their_response(context: int, dropped: int) -> None:
    long_foil = response([2, 30, 31, 32, 4], 0, 1, foil_of=1)
    tree = TokenTree("t", (user([1, 1, 1], -1, 0), response([2, 3, 4], 0, 1), long_foil, user([9], 1, 2)))
    fitted, report = fit([tree], context=context, budget=20)
    assert report.foils_dropped == dropped
    assert report.responses == 1
    assert sum(segment.foil_of >= 0 for segment in fitted[0].segments) == 1 - dropped


def test_a_response_and_its_foils_share_a_pack() -> None:
    tree = TokenTree(
        "t", (user([1], -1, 0), *(response([2, 3, 4], 0, 1, foil_of=-1 if k == 0 else 1) for k in range(4)))
    )
    assert fit([tree], context=8, budget=13)[1].foils_dropped == 0
    fitted, report = fit([tree], context=8, budget=12)
    assert (report.foils_dropped, [len(made.segments) for made in fitted]) == (3, [2])


def test_packs_below_the_context_are_refused() -> None:
    with pytest.raises(ConfigError, match="a pack of 7 tokens cannot hold a path of 8"):
        fit([TREE], context=8, budget=7)


def test_trees_that_were_not_fitted_are_refused() -> None:
    with pytest.raises(ConfigError, match="conversation tree: a tree of 20 tokens in packs of 19"):
        pack([TREE], 19)


def test_first_fit_by_decreasing_size() -> None:
    trees = [TokenTree(f"{size}", (response([0] * size, -1, 0),)) for size in (3, 5, 4, 6, 2)]
    packs = pack(trees, 10)
    assert [[item.conversation for item in made.responses] for made in packs] == [["4", "6"], ["3", "5", "2"]]
