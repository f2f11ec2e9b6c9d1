"""The benchmark of the attribute model on a tiny one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.attribute_model import Judged, agreement, compute_states, cross_validate, folds, kept_states
from tiny_judge import random_tree


def judged(responses: int, hidden: int = 6) -> Judged:
    """States of which the first dimension tells the quality; humor is noise, the others are not rated."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(responses, hidden)) + 5
    ratings = np.full((responses, 9), np.nan)
    ratings[:, 0] = np.clip(2 + states[:, 0] - 5, 0, 4)
    ratings[::2, 2] = rng.integers(0, 5, len(ratings[::2]))
    names = np.array([f"c{k}" for k in range(responses // 3)])
    return Judged(states.astype(np.float32), ratings, np.arange(responses) % len(names), names, 0, 0.0)


def test_folds_are_of_equal_size_and_whole_conversations() -> None:
    names = [f"c{k}" for k in range(57)]
    found = folds(names)
    assert set(np.bincount(found)) == {5, 6}
    assert dict(zip(names, found, strict=True)) == dict(zip(reversed(names), folds(names[::-1]), strict=True))


def test_what_states_tell_is_found_and_noise_is_not() -> None:
    made = judged(180)
    predicted, means = cross_validate(made)
    figures = agreement(made, predicted, means, resamples=100)
    assert list(figures) == ["quality", "humor"]
    assert (figures["quality"]["n"], figures["humor"]["n"]) == (180, 90)
    assert figures["quality"]["pearson"]["low"] > 0.9
    assert figures["quality"]["mae_minus_baseline"]["high"] < 0
    assert figures["humor"]["pearson"]["low"] < 0.2
    difference = figures["humor"]["mae"]["value"] - figures["humor"]["baseline_mae"]["value"]
    assert figures["humor"]["mae_minus_baseline"]["value"] == pytest.approx(difference)


def test_nobody_is_judged_by_a_head_that_saw_their_conversation() -> None:
    """A rating that is changed changes the predictions of other folds only."""
    made = judged(60)
    before, _ = cross_validate(made)
    changed = np.where(made.conversation_R == 0, 4.0, made.rated_RA[:, 0])
    after, _ = cross_validate(Judged(**{**made.__dict__, "rated_RA": np.c_[changed, made.rated_RA[:, 1:]]}))
    own = folds(made.names_C)[made.conversation_R] == folds(made.names_C)[0]
    np.testing.assert_array_equal(before[own, 0], after[own, 0])
    assert not np.allclose(before[~own, 0], after[~own, 0])


def test_states_are_computed_once(chatml_base: Path, tmp_path: Path) -> None:
    generator = random.Random(1)
    trees = [random_tree(generator, f"tree-{k}", 8) for k in range(6)]
    calls = []

    def compute() -> Judged:
        calls.append(1)
        return compute_states(trees, str(chatml_base), 512, torch.float32)

    first = kept_states(tmp_path / "new" / "states.npz", "key", compute)
    again = kept_states(tmp_path / "new" / "states.npz", "key", compute)
    assert len(calls) == 1
    rated = sorted((k, m.ratings["quality"]) for k, c in enumerate(trees) for m in c.messages if m.ratings)
    assert sorted(zip(first.conversation_R, first.rated_RA[:, 0], strict=True)) == rated
    for name, value in first.__dict__.items():
        np.testing.assert_array_equal(getattr(again, name), value)
    kept_states(tmp_path / "new" / "states.npz", "another key", compute)
    assert len(calls) == 2
