"""The plan of a training: each conversation once an epoch, the same plan from the same seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlm.training.plan import Position, Step, fraction_done, learning_rate, plan_steps, random_for

SIZES = st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any)


def plan(sizes: Sequence[int], epochs: float, seed: int, batch_tokens: int, **options: Any) -> list[Step[int]]:
    """A plan whose conversations are rendered to their own indices."""
    return list(plan_steps(len(sizes), lambda index, _: (sizes[index], index), epochs, seed, batch_tokens, **options))


def used(sizes: Sequence[int], step: Step[int]) -> list[int]:
    return [sizes[index] for index in step.items if sizes[index]]


@given(SIZES, st.integers(1, 120), st.integers(0, 5), st.integers(1, 3))
def test_each_conversation_once_an_epoch(sizes: list[int], batch: int, seed: int, epochs: int) -> None:
    """Those that cannot be trained on are handed over too, so that they can be counted."""
    steps = plan(sizes, epochs, seed, batch)
    for epoch in range(epochs):
        members = [index for step in steps if step.epoch == epoch for index in step.items]
        assert sorted(members) == list(range(len(sizes)))
    assert [step.epoch for step in steps] == sorted(step.epoch for step in steps)
    assert all(used(sizes, step) for step in steps)


@given(SIZES, st.integers(1, 120))
def test_steps_are_full_but_not_beyond_the_batch(sizes: list[int], batch: int) -> None:
    steps = plan(sizes, 1, 0, batch)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        tokens = sum(used(sizes, step))
        assert tokens <= batch or len(used(sizes, step)) == 1
        if following:  # the next conversation would not have fitted
            assert tokens + used(sizes, following)[0] > batch


@given(SIZES, st.integers(1, 8))
def test_batches_of_conversations(sizes: list[int], batch: int) -> None:
    lengths = [len(used(sizes, step)) for step in plan(sizes, 1, 0, 1, batch_conversations=batch)]
    assert lengths[:-1] == [batch] * (len(lengths) - 1)
    assert 1 <= lengths[-1] <= batch


@given(SIZES, st.integers(1, 120), st.integers(1, 3))
def test_a_plan_goes_on_from_any_of_its_steps(sizes: list[int], batch: int, epochs: int) -> None:
    steps = plan(sizes, epochs, 0, batch)
    for number, step in enumerate(steps):
        assert plan(sizes, epochs, 0, batch, start=step.after) == steps[number + 1 :]


def test_nothing_is_rendered_before_it_is_needed() -> None:
    seen: list[int] = []

    def render(index: int, epoch: int) -> tuple[int, int]:
        seen.append(index)
        return 10, index

    steps = plan_steps(1000, render, 3, 0, batch_tokens=20)
    next(steps)
    assert len(seen) == 3


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    sizes = list(range(1, 40))
    assert plan(sizes, 2, 7, 100) == plan(sizes, 2, 7, 100)
    assert plan(sizes, 2, 7, 100) != plan(sizes, 2, 8, 100)


def test_epochs_are_shuffled_anew() -> None:
    steps = plan([1] * 20, 2, 0, 100)
    assert len(steps) == 2
    assert steps[0].items != steps[1].items != list(range(20)) != steps[0].items


def test_a_longer_training_begins_like_a_shorter_one() -> None:
    short, long = plan([3] * 10, 1, 0, 7), plan([3] * 10, 3, 0, 7)
    assert long[: len(short)] == short


@pytest.mark.parametrize(
    ("epochs", "counts"),
    # A tenth of ten is one: 1.1 - 1 is a little more in floating point, and must not make it two.
    [(0.5, [5]), (1.5, [10, 5]), (2, [10, 10]), (0.01, [1]), (1.1, [10, 1])],
)
def test_part_of_an_epoch(epochs: float, counts: list[int]) -> None:
    steps = plan([1] * 10, epochs, 0, 1000)
    assert [len(step.items) for step in steps] == counts
    assert max(Counter(steps[-1].items).values()) == 1
    whole = plan([1] * 10, math.ceil(epochs), 0, 1000)
    assert steps[-1].items == whole[-1].items[: counts[-1]]


def test_no_data_no_steps() -> None:
    assert plan([], 2, 0, 10) == []
    assert plan([0, 0], 2, 0, 10) == []


def test_a_conversation_beyond_the_batch_is_a_step_of_its_own() -> None:
    steps = plan([5, 5, 5, 20], 1, 0, 10)
    assert [3] in [step.items for step in steps]


def test_the_fraction_done() -> None:
    assert fraction_done(Position(), 10, 1.5) == 0
    assert fraction_done(Position(1, 2), 10, 1.5) == pytest.approx(12 / 15)
    assert fraction_done(Position(2), 10, 1.5) == 1
    assert fraction_done(Position(), 0, 1) == 0


def test_the_rate_rises_and_falls() -> None:
    """Warm-up over 4 steps takes fifths of the rate; a cosine is halfway down when half is done."""
    rates = [learning_rate(step, 0.0, 1.0, 0.1, 4, "constant") for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    falling = [learning_rate(100, done, 1.0, 0.1, 4, "cosine") for done in (0.0, 0.25, 0.5, 1.0)]
    assert falling == pytest.approx([1.0, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1])
    assert learning_rate(0, 0.0, 2.0, 0.0, 0, "constant") == 2.0


def test_random_for_is_a_function_of_its_key() -> None:
    assert random_for(0, 1, "a").random() == random_for(0, 1, "a").random()
    assert random_for(0, 1, "a").random() != random_for(0, 1, "b").random()
    assert random_for(0, 11).random() != random_for(0, 1, 1).random()
