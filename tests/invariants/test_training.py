"""What must not change the result of a training: packing, the number of ranks, the form of attention."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from make_trajectory import TRAJECTORY, trajectories
from processes import launch
from steerlm.conversation import Conversation, Message
from steerlm.files import write_conversations
from tiny_judge import WORDS
from tiny_runs import (
    TRAIN,
    assert_same,
    logged,
    prepare,
    rated_trees,
    train_on_ranks,
    train_on_ranks_with_data_of_their_own,
    trajectory,
)


@pytest.mark.parametrize("task", TRAIN)
def test_pack_size_changes_nothing(run: Any, task: str) -> None:
    """Steps are made of conversations, losses are divided by the step's counts: packs of 192 or 1,024 tokens give
    the same losses and gradients up to rounding.
    """
    small, _ = run(task, "small", pack_tokens=192)
    large, _ = run(task, "large", pack_tokens=1024)
    assert max(line["packs"] for line in small if line["kind"] == "train") > 1
    assert all(line["packs"] == 1 for line in large if line["kind"] == "train")
    assert_same(small, large, rtol=2e-4)


def test_pack_size_drops_no_pair_of_a_held_out_response_and_its_foil(run: Any) -> None:
    """A pack of one path's length holds no long response together with its foil; the gap is of the same pairs."""
    generator = random.Random(0)

    def answer(quality: int) -> Message:
        return Message("assistant", " ".join(generator.choices(WORDS, k=22)), 0, {"quality": quality})

    pairs = [Conversation(f"pair-{k}", (Message("user", "Why?"), answer(0), answer(4))) for k in range(10)]
    write_conversations(run.folder / "data.jsonl", pairs)

    def validation(pack_tokens: int) -> dict[str, Any]:
        steps, _ = run("policy", f"packs-{pack_tokens}", contrast=0.0, max_steps=1, pack_tokens=pack_tokens)
        return next(line for line in steps if line["kind"] == "validation")

    small, large = validation(96), validation(1024)
    assert small["gap_pairs"] == large["gap_pairs"] > 0
    assert small["gap"] == pytest.approx(large["gap"], abs=1e-3)


@pytest.mark.parametrize("task", TRAIN)
def test_one_pack_of_eight_conversations_is_eight_packs_of_one(run: Any, tmp_path: Path, task: str) -> None:
    """Conversations of about the same size, so that two never share a small pack. Sums of float32 in another order,
    whose differences four steps of AdamW carry on, agree to 2e-4.
    """
    generator = random.Random(0)

    def text(count: int) -> str:
        return " ".join(generator.choices(WORDS, k=count))

    talks = [
        Conversation(
            f"talk-{k}",
            (Message("user", text(5)), Message("assistant", text(30), 0, {"quality": float(k % 5), "humor": 1.0})),
        )
        for k in range(16)
    ]
    write_conversations(tmp_path / "data.jsonl", talks)
    # Nothing is said of tokens, so that the default stands.
    shared = {"batch_conversations": 8, "batch_tokens": 4096, "epochs": 2, "validation_fraction": 0.0, "contrast": 0.0}
    shared = shared if task == "policy" else {k: v for k, v in shared.items() if k != "contrast"}
    eight, _ = run(task, "eight", context=300, pack_tokens=2400, **shared)
    sizes = [line["tokens"] / 8 for line in eight if line["kind"] == "train"]
    room = int(1.4 * max(sizes))
    one, _ = run(task, "one", context=room, pack_tokens=room, **shared)
    assert [line["packs"] for line in eight if line["kind"] == "train"] == [1] * 4
    assert [line["packs"] for line in one if line["kind"] == "train"] == [8] * 4
    assert trajectory(one, "tokens").tolist() == trajectory(eight, "tokens").tolist()
    assert_same(one, eight, rtol=2e-4)


@pytest.mark.parametrize("task", TRAIN)
def test_the_number_of_ranks_changes_nothing(run: Any, tmp_path: Path, task: str) -> None:
    changes = {"pack_tokens": 192}
    alone, _ = run(task, "alone", **changes)
    launch(2, train_on_ranks, tmp_path, task, "two", changes)
    two = logged(tmp_path / "two")
    assert trajectory(two, "tokens").min() > 0
    assert len(two) == len(alone)
    assert_same(two, alone, rtol=1e-4)


def test_ranks_that_read_other_data_do_not_begin(tmp_path: Path) -> None:
    prepare(tmp_path)
    for rank, count in enumerate((40, 39)):
        write_conversations(tmp_path / f"data-{rank}.jsonl", rated_trees(count))
    told = launch(2, train_on_ranks_with_data_of_their_own, tmp_path, "policy", "out")
    assert told[0] == told[1]
    assert told[0].startswith("the data that rank 1 reads under these paths are not those of rank 0; give all nodes")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_the_trajectory_of_training_is_the_one_that_was_written_down(tmp_path: Path) -> None:
    """Across changes of the code and versions of PyTorch: `make_trajectory.py` says how to write it anew."""
    wanted = json.loads(TRAJECTORY.read_text())
    found = trajectories(prepare(tmp_path))
    assert found.keys() == wanted.keys()
    for task, steps in wanted.items():
        assert len(found[task]) == len(steps) >= 5
        for ours, theirs in zip(found[task], steps, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("task", TRAIN)
def test_form_of_attention_changes_nothing(run: Any, task: str) -> None:
    segments, _ = run(task, "segments", attention="segments")
    dense, _ = run(task, "dense", attention="dense")
    assert_same(segments, dense, rtol=2e-4)


@pytest.mark.parametrize("task", TRAIN)
def test_gradient_checkpointing_changes_nothing(run: Any, task: str) -> None:
    plain, _ = run(task, "plain")
    checkpointed, _ = run(task, "checkpointed", gradient_checkpointing=True)
    torch.testing.assert_close(trajectory(plain, "loss"), trajectory(checkpointed, "loss"), rtol=1e-5, atol=1e-7)


def test_same_seed_same_weights(run: Any) -> None:
    _, first = run("policy", "first")
    _, second = run("policy", "second")
    _, other = run("policy", "other", seed=1)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_learning_reduces_the_loss_and_the_judge_beats_the_mean(run: Any) -> None:
    """A tiny model can at least memorise: loss on its own training data falls well below the start."""
    steps, _ = run("policy", "long", epochs=15, contrast=0.0, label_dropout=0.0)
    losses = trajectory(steps, "loss")
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # both within PyTorch's compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("task", TRAIN)
def test_compiling_changes_nothing(run: Any, task: str) -> None:
    """Compiled blocks fuse operations, which rounds otherwise, and no more."""
    eager, _ = run(task, "eager", epochs=0.3)
    compiled, _ = run(task, "compiled", epochs=0.3, compile=True)
    assert_same(compiled, eager, rtol=2e-4)
