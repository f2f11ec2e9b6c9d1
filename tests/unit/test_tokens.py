"""Segments and token trees."""

from __future__ import annotations

import pytest

from steerlm.tokens import Segment, Span, TokenTree

USER = Segment((1, 2, 3), (Span("marker", 1), Span("user", 2)), -1, 0, shared=3)
RESPONSE = Segment(
    (10, 11, 12, 13, 14, 15),
    (Span("marker", 2), Span("label", 1), Span("response", 2), Span("end", 1)),
    parent=0,
    message=1,
    shared=5,
    glue=1,
    weight=2.0,
)


def test_trained_tokens_are_the_response_and_its_end() -> None:
    assert [RESPONSE.ids[k] for k in RESPONSE.trained()] == [13, 14, 15]
    assert list(USER.trained()) == []
    assert RESPONSE.is_response
    assert not USER.is_response


def test_an_empty_response_still_has_its_end() -> None:
    empty = Segment((10, 15), (Span("marker", 1), Span("end", 1)), -1, 0, shared=1)
    assert empty.is_response
    assert list(empty.trained()) == [1]


def test_as_context_loses_leaf_and_weight() -> None:
    context = RESPONSE.as_context()
    assert context.ids == (10, 11, 12, 13, 14)
    assert context.spans == (("marker", 2), ("label", 1), ("response", 2))
    assert (context.shared, context.glue, context.weight, context.foil_of) == (5, 1, 0.0, -1)
    assert (context.parent, context.message) == (0, 1)


def test_without_glue_opens_a_path() -> None:
    opening = RESPONSE.without_glue()
    assert opening.ids == (11, 12, 13, 14, 15)
    assert opening.spans == (("marker", 1), ("label", 1), ("response", 2), ("end", 1))
    assert (opening.shared, opening.glue, opening.weight) == (4, 0, 2.0)
    assert [opening.ids[k] for k in opening.trained()] == [13, 14, 15]


@pytest.mark.parametrize(
    ("spans", "shared", "glue"),
    [((Span("user", 2),), 3, 0), ((Span("user", 3),), 4, 0), ((Span("user", 3),), 2, 3), ((Span("user", 3),), 3, -1)],
)
def test_segments_that_contradict_themselves(spans: tuple[Span, ...], shared: int, glue: int) -> None:
    with pytest.raises(ValueError, match="must"):
        Segment((1, 2, 3), spans, -1, 0, shared, glue)


def test_parents_come_first() -> None:
    with pytest.raises(ValueError, match="parent must come before"):
        TokenTree("c", (Segment((1,), (Span("user", 1),), 0, 0, 1),))
    with pytest.raises(ValueError, match="parent must come before"):
        TokenTree("c", (Segment((1,), (Span("user", 1),), -2, 0, 1),))


def test_paths_of_a_tree() -> None:
    follow_up = Segment((20, 21), (Span("user", 2),), parent=1, message=2, shared=2, glue=1)
    foil = Segment((10, 16, 15), (Span("marker", 2), Span("end", 1)), 0, 1, shared=2, weight=2.0, foil_of=1)
    tree = TokenTree("c", (USER, RESPONSE, foil, follow_up))
    assert tree.size == 3 + 6 + 3 + 2
    assert tree.path(3) == [0, 1, 3]
    assert tree.path_ids(3) == [1, 2, 3, 10, 11, 12, 13, 14, 20, 21]
    assert tree.path_ids(1) == [1, 2, 3, 10, 11, 12, 13, 14, 15]
    assert tree.active == (1,)
