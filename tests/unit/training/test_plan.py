"""The plan of a training: each conversation once an epoch, the same plan from the same seed."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlm.training.plan import Step, learning_rate, plan_steps, random_for

SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@given(SIZES, st.integers(1, 120), st.integers(0, 5), st.integers(1, 3))
def test_each_conversation_once_an_epoch(sizes: list[int], batch: int, seed: int, epochs: int) -> None:
    steps = plan_steps(sizes, epochs, seed, batch)
    for epoch in range(epochs):
        members = [index for step in steps if step.epoch == epoch for index in step.members]
        assert sorted(members) == list(range(len(sizes)))
    assert [step.epoch for step in steps] == sorted(step.epoch for step in steps)


@given(SIZES, st.integers(1, 120))
def test_steps_are_full_but_not_beyond_the_batch(sizes: list[int], batch: int) -> None:
    steps = plan_steps(sizes, 1, 0, batch)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        tokens = sum(sizes[index] for index in step.members)
        assert tokens <= batch or len(step.members) == 1
        if following:  # the next conversation would not have fitted
            assert tokens + sizes[following.members[0]] > batch


@given(SIZES, st.integers(1, 8))
def test_batches_of_conversations(sizes: list[int], batch: int) -> None:
    lengths = [len(step.members) for step in plan_steps(sizes, 1, 0, batch_tokens=1, batch_conversations=batch)]
    assert lengths[:-1] == [batch] * (len(lengths) - 1)
    assert 1 <= lengths[-1] <= batch


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    sizes = list(range(1, 40))
    assert plan_steps(sizes, 2, 7, 100) == plan_steps(sizes, 2, 7, 100)
    assert plan_steps(sizes, 2, 7, 100) != plan_steps(sizes, 2, 8, 100)


def test_epochs_are_shuffled_anew() -> None:
    steps = plan_steps([1] * 20, 2, 0, 100)
    assert len(steps) == 2
    assert steps[0].members != steps[1].members != tuple(range(20)) != steps[0].members


def test_a_longer_training_begins_like_a_shorter_one() -> None:
    short, long = plan_steps([3] * 10, 1, 0, 7), plan_steps([3] * 10, 3, 0, 7)
    assert long[: len(short)] == short


@pytest.mark.parametrize(
    ("epochs", "counts"),
    # A tenth of ten is one: 1.1 - 1 is a little more in floating point, and must not make it two.
    [(0.5, [5]), (0.1, [1]), (0.01, [1]), (1.1, [10, 1]), (2.2, [10, 10, 2]), (2.25, [10, 10, 3]), (3.0, [10, 10, 10])],
)
def test_fractions_of_an_epoch(epochs: float, counts: list[int]) -> None:
    steps = plan_steps([1] * 10, epochs, 0, 1000)
    assert [len(step.members) for step in steps] == counts
    # The fraction is the beginning of that epoch's order.
    whole = plan_steps([1] * 10, math.ceil(epochs), 0, 1000)
    assert steps[-1].members == whole[len(steps) - 1].members[: counts[-1]]


def test_max_steps_cuts_the_plan() -> None:
    assert plan_steps([1] * 10, 5, 0, 2, max_steps=3) == plan_steps([1] * 10, 5, 0, 2)[:3]
    assert plan_steps([1] * 10, 5, 0, 2, max_steps=0) == []
    assert plan_steps([], 2, 0, 10) == []


def test_a_plan_by_hand() -> None:
    steps = plan_steps([5, 5, 5, 20], 1, 0, 10)
    assert Counter(index for step in steps for index in step.members) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert Step(0, (3,)) in steps


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    """Warm-up of 3 steps in quarters; half way down a cosine is the mean of peak and low."""
    rates = [learning_rate(step, 13, 1.0, 0.2, 3, "cosine") for step in range(13)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[8] == pytest.approx(0.6)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(0.9 * math.pi)))


def test_a_constant_learning_rate_warms_up_too() -> None:
    rates = [learning_rate(step, 5, 2.0, 0.0, 1, "constant") for step in range(5)]
    assert rates == [1.0, 2.0, 2.0, 2.0, 2.0]


def test_warm_up_beyond_the_training() -> None:
    assert [learning_rate(step, 2, 1.0, 0.0, 10, "cosine") for step in range(2)] == pytest.approx([1 / 11, 2 / 11])


def test_random_for_depends_on_its_key_alone() -> None:
    assert random_for(0, 1, "c").random() == random_for(0, 1, "c").random()
    keys = [(0, 1, "c"), (1, 0, "c"), (0, 1, "d"), (0, "1", "c"), (0, 1)]
    assert len({random_for(*key).random() for key in keys}) == len(keys)
