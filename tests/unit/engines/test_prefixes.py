"""Shared beginnings: every prompt whole, every saving worth it, and what was computed before found again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steerlm.engines.prefixes import Known, Part, share

PROMPTS = st.lists(
    st.builds(
        lambda stem, size, tail: (*([stem] * size), *tail),
        st.integers(0, 2),
        st.integers(0, 90),
        st.lists(st.integers(0, 3), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=8,
)


def chain(part: Part[None] | None) -> list[Part[None]]:
    return [part, *chain(part.parent)] if part else []


@given(PROMPTS)
def test_parts_are_beginnings_of_beginnings(prompts: list[tuple[int, ...]]) -> None:
    leaves: list[Part[None]] = share(prompts)
    assert [leaf.ids for leaf in leaves] == prompts
    for leaf in leaves:
        for part, before in zip(chain(leaf), chain(leaf)[1:], strict=False):
            assert part.ids[: len(before.ids)] == before.ids
            assert len(before.ids) < len(part.ids)


@given(PROMPTS)
def test_no_more_is_computed_than_alone(prompts: list[tuple[int, ...]]) -> None:
    parts = {part for leaf in share(prompts) for part in chain(leaf)}
    computed = sum(len(part.ids) - len(part.parent.ids if part.parent else ()) for part in parts)
    assert computed <= sum(map(len, prompts))


def test_a_sweep_computes_its_conversation_once() -> None:
    talk = tuple(range(800))
    prompts = [(*talk, 900 + level, 7) for level in range(25)]
    leaves: list[Part[None]] = share(prompts)
    assert len({leaf.parent for leaf in leaves}) == 1
    assert leaves[0].parent is not None
    assert leaves[0].parent.ids == talk


def test_questions_under_a_common_opening_at_several_levels() -> None:
    opening, questions = tuple(range(40)), [tuple(range(100 * k, 100 * k + 50)) for k in range(1, 4)]
    prompts = [(*opening, *question, level) for level in (5, 6) for question in questions]
    stems = [[part.ids for part in chain(leaf)[1:]] for leaf in share(prompts)]
    assert stems == [[(*opening, *question), opening] for question in questions] * 2


def test_equal_prompts_share_all_but_their_last_token() -> None:
    leaves: list[Part[None]] = share([tuple(range(64))] * 4)
    assert {leaf.parent.ids for leaf in leaves if leaf.parent} == {tuple(range(63))}


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=6), st.lists(st.integers(0, 2), min_size=1)
)
def test_the_longest_known_beginning(sequences: list[list[int]], wanted: list[int]) -> None:
    known: Known[tuple[int, ...]] = Known()
    for ids in sequences:
        if not known.holds(ids):
            for shorter in known.put(ids, tuple(ids)):
                assert ids[: len(shorter)] == list(shorter)
    size, found = known.longest(wanted)
    begun = {k for ids in sequences for k in range(len(ids) + 1) if ids[:k] == wanted[:-1][:k]}
    assert size == max((k for k in begun if k < len(wanted)), default=0)
    assert found is None if size == 0 else list(found or ())[:size] == wanted[:size]


def test_the_least_recently_used_is_forgotten_first() -> None:
    known: Known[str] = Known()
    for name, ids in (("a", [1, 2]), ("b", [3, 4]), ("c", [5, 6])):
        known.put(ids, name)
    assert known.longest([1, 9]) == (1, "a")
    assert [known.pop(), known.pop()] == ["b", "c"]
    assert known.tokens == 2
