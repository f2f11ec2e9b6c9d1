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


@given(st.lists(st.one_of(st.none(), st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)), max_size=25))
def test_what_is_known_is_what_a_list_of_it_says(steps: list[tuple[int, ...] | None]) -> None:
    """Sequences put and (None) forgotten in any order, against going through all of them."""
    known: Known[tuple[int, ...]] = Known()
    held: list[tuple[int, ...]] = []
    for ids in steps:
        if ids is None:
            if held:
                held.remove(known.pop())
        elif not any(other[: len(ids)] == ids for other in held):
            gone = known.put(ids, ids)
            assert sorted(gone) == sorted(other for other in held if ids[: len(other)] == other)
            held = [other for other in held if other not in gone] + [ids]
        else:
            assert known.holds(ids)
        assert len(known) == len(held)
        assert known.tokens == sum(map(len, held))
        for wanted in [*held, *(other[:-1] for other in held), (0, 1, 2, 0), (2, 2)]:
            assert known.holds(wanted) == (not wanted or any(other[: len(wanted)] == wanted for other in held))
            size, found = known.longest((*wanted, 9))
            ends = [k for k in range(len(wanted) + 1) if any(other[:k] == wanted[:k] for other in held)]
            assert size == max(ends, default=0)
            assert found is None if size == 0 else found in held and found[:size] == wanted[:size]


def test_an_equal_sequence_takes_the_place_of_the_one_before() -> None:
    known: Known[str] = Known()
    known.put([1, 2, 3], "old")
    assert known.put([1, 2, 3], "new") == ["old"]
    assert (len(known), known.tokens) == (1, 3)
    assert known.longest([1, 2, 3, 4]) == (3, "new")
    assert known.pop() == "new"
    assert not known.holds([1])
