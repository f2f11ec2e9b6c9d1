"""Choices from scores, against transformers' processors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from steerlm.engines import Request, Sampling
from steerlm.engines.choosing import Chooser

DRAWS = 1000


def drawn(scores: np.ndarray[Any, np.dtype[np.float32]], **how: Any) -> Counter[int]:
    """How often each token is drawn, with as many seeds as draws."""
    requests = (Request((1,), Sampling(seed=seed, **how)) for seed in range(DRAWS))
    return Counter(Chooser(request, ()).choose([scores])[0] for request in requests)


@pytest.mark.parametrize("vocabulary", [12, 700])
@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.5, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 2.0, "top_p": 0.995},
        {"temperature": 0.9, "top_p": 0.8, "top_k": 7},
        {"temperature": 0.9, "top_p": 0.8, "top_k": 700},
    ],
)
def test_chances_are_those_of_transformers(how: dict[str, Any], vocabulary: int) -> None:
    scores = np.random.default_rng(vocabulary).normal(0, 2, vocabulary).astype(np.float32)
    expected: Any = TemperatureLogitsWarper(how["temperature"])(None, torch.from_numpy(scores[None].copy()))
    if "top_k" in how:
        expected = TopKLogitsWarper(how["top_k"])(None, expected)
    if "top_p" in how:
        expected = TopPLogitsWarper(how["top_p"])(None, expected)
    chances = expected.softmax(dim=-1)[0].numpy()
    found = drawn(scores, **how)
    assert set(found) <= set(np.flatnonzero(chances).tolist())
    # Each count is binomial; five standard deviations, and one for the rare.
    for token, chance in enumerate(chances):
        assert abs(found[token] - DRAWS * chance) <= 5 * np.sqrt(DRAWS * chance * (1 - chance)) + 1


def test_ties_go_to_the_first() -> None:
    scores = np.array([1, 3, 3, 3, 0], dtype=np.float32)
    token, logprob = Chooser(Request((1,), Sampling(logprobs=2)), ()).choose([scores])
    assert token == 1
    assert logprob is not None
    assert [place for place, _ in logprob.top] == [1, 2]
    assert set(drawn(scores, temperature=1.0, top_k=2)) == {1, 2}


def test_seeds_may_be_any_number() -> None:
    scores = np.zeros(1000, dtype=np.float32)
    tokens = [
        Chooser(Request((1,), Sampling(temperature=1, seed=seed)), ()).choose([scores])[0] for seed in (-1, 0, 1 << 70)
    ]
    assert len(set(tokens)) > 1
