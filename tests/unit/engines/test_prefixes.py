"""Shared beginnings: every prompt whole, every saving worth it, and what was computed before found again."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from steerlm.engines.prefixes import Known, Part, share

SALT = ""
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


def leaves_of(prompts: Sequence[tuple[int, ...]], salts: Sequence[str] | None = None) -> list[Part[None]]:
    return share(prompts, salts or [""] * len(prompts))


def chain(part: Part[None] | None) -> list[Part[None]]:
    return [part, *chain(part.parent)] if part else []


@given(PROMPTS)
def test_parts_are_beginnings_of_beginnings(prompts: list[tuple[int, ...]]) -> None:
    leaves = leaves_of(prompts)
    assert [leaf.ids for leaf in leaves] == prompts
    for leaf in leaves:
        for part, before in zip(chain(leaf), chain(leaf)[1:], strict=False):
            assert part.ids[: len(before.ids)] == before.ids
            assert len(before.ids) < len(part.ids)


@given(PROMPTS)
def test_no_more_is_computed_than_alone(prompts: list[tuple[int, ...]]) -> None:
    parts = {part for leaf in leaves_of(prompts) for part in chain(leaf)}
    computed = sum(len(part.ids) - len(part.parent.ids if part.parent else ()) for part in parts)
    assert computed <= sum(map(len, prompts))


def test_a_sweep_computes_its_conversation_once() -> None:
    talk = tuple(range(800))
    prompts = [(*talk, 900 + level, 7) for level in range(25)]
    leaves = leaves_of(prompts)
    assert len({leaf.parent for leaf in leaves}) == 1
    assert leaves[0].parent is not None
    assert leaves[0].parent.ids == talk


def test_questions_under_a_common_opening_at_several_levels() -> None:
    opening, questions = tuple(range(40)), [tuple(range(100 * k, 100 * k + 50)) for k in range(1, 4)]
    prompts = [(*opening, *question, level) for level in (5, 6) for question in questions]
    stems = [[part.ids for part in chain(leaf)[1:]] for leaf in leaves_of(prompts)]
    assert stems == [[(*opening, *question), opening] for question in questions] * 2


def test_equal_prompts_share_all_but_their_last_token() -> None:
    leaves = leaves_of([tuple(range(64))] * 4)
    assert {leaf.parent.ids for leaf in leaves if leaf.parent} == {tuple(range(63))}


def test_prompts_of_other_salts_have_nothing_in_common() -> None:
    prompts = [tuple(range(64))] * 4
    leaves = leaves_of(prompts, ["a", "b", "a", "b"])
    assert [leaf.ids for leaf in leaves] == prompts
    assert leaves[0].parent is leaves[2].parent is not None
    assert leaves[1].parent is leaves[3].parent is not None
    assert leaves[0].parent is not leaves[1].parent
    assert [part.salt for leaf in leaves for part in chain(leaf)] == ["a", "a", "b", "b"] * 2


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=6), st.lists(st.integers(0, 2), min_size=1)
)
def test_the_longest_known_beginning(sequences: list[list[int]], wanted: list[int]) -> None:
    known: Known[tuple[int, ...]] = Known()
    for ids in sequences:
        if not known.holds(ids, SALT):
            known.put(ids, SALT, tuple(ids))
    size, found = known.longest(wanted, SALT)
    begun = {k for ids in sequences for k in range(len(ids) + 1) if ids[:k] == wanted[:-1][:k]}
    assert size == max((k for k in begun if k < len(wanted)), default=0)
    assert found is None if size == 0 else list(found or ())[:size] == wanted[:size]


def test_the_least_recently_used_is_forgotten_first() -> None:
    known: Known[str] = Known()
    for name, ids in (("a", [1, 2]), ("b", [3, 4]), ("c", [5, 6])):
        known.put(ids, SALT, name)
    assert known.longest([1, 9], SALT) == (1, "a")
    assert [known.pop(), known.pop()] == ["b", "c"]
    assert known.tokens == 2


SEQUENCES = st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple))


@given(st.lists(st.one_of(st.none(), SEQUENCES), max_size=25))
def test_what_is_known_is_what_a_list_of_it_says(steps: list[tuple[str, tuple[int, ...]] | None]) -> None:
    """Sequences of two salts put and (None) forgotten in any order, against going through all of them."""
    known: Known[tuple[str, tuple[int, ...]]] = Known()
    held: list[tuple[str, tuple[int, ...]]] = []
    for step in steps:
        if step is None:
            if held:
                held.remove(known.pop())
            continue
        salt, ids = step
        if any(its == salt and other[: len(ids)] == ids for its, other in held):
            assert known.holds(ids, salt)
        else:
            known.put(ids, salt, step)
            held = [(its, other) for its, other in held if its != salt or ids[: len(other)] != other] + [step]
        assert len(known) == len(held)
        assert known.tokens == sum(len(ids) for _, ids in held)
        for salt in "abc":
            own = [ids for its, ids in held if its == salt]
            for wanted in [*(ids for _, ids in held), *(ids[:-1] for _, ids in held), (0, 1, 2, 0), (2, 2)]:
                assert known.holds(wanted, salt) == (not wanted or any(ids[: len(wanted)] == wanted for ids in own))
                size, found = known.longest((*wanted, 9), salt)
                ends = [k for k in range(len(wanted) + 1) if any(ids[:k] == wanted[:k] for ids in own)]
                assert size == max(ends, default=0)
                if size:
                    assert found in held
                    assert found == (salt, found[1])
                    assert found[1][:size] == wanted[:size]
                else:
                    assert found is None


def test_no_more_tokens_are_held_than_may_be() -> None:
    known: Known[str] = Known(most=5)
    for name, ids in (("a", [1, 2]), ("b", [3, 4]), ("c", [5, 6, 7])):
        known.put(ids, SALT, name)
    assert [known.holds(ids, SALT) for ids in ([1], [3, 4], [5, 6, 7])] == [False, True, True]
    assert (len(known), known.tokens) == (2, 5)
