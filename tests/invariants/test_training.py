"""What must not change the result of a training: packing, stopping and resuming, the form of attention."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from steerlm.conversation import Conversation
from steerlm.errors import TrainingError
from steerlm.files import write_conversations
from steerlm.training import loop
from steerlm.training.config import AttributeSettings, PolicySettings
from steerlm.training.run import train_attribute_model, train_policy
from tiny import TOKENIZERS, save_base
from tiny_judge import random_tree

SHARED: dict[str, Any] = {
    "context": 96,
    "pack_tokens": 1024,
    "batch_tokens": 400,
    "epochs": 1.5,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "precision": "fp32",
    "validate_every": 4,
    "checkpoint_every": 3,
    "validation_fraction": 0.3,
}
# What a log line says of the machine rather than of the training.
MACHINE = ("seconds", "tokens_per_second", "memory_mb")
TRAIN = {"attributes": (AttributeSettings, train_attribute_model), "policy": (PolicySettings, train_policy)}


def rated_trees(count: int) -> list[Conversation]:
    generator = random.Random(3)
    trees = [random_tree(generator, f"tree-{index}", generator.randint(2, 9)) for index in range(count)]
    assert any(message.ratings for tree in trees for message in tree.messages)
    return trees


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Train on the same data and base; returns the logged steps (without times) and the weights."""
    base = save_base(tmp_path / "base", TOKENIZERS["chatml"]())
    write_conversations(tmp_path / "data.jsonl", rated_trees(40))

    def train(task: str, name: str, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        kind, function = TRAIN[task]
        # A ridge head would be solved from the states, which enlarges their rounding errors at once.
        policy = {"labels": "ratings-first", "contrast": 0.5, "label_dropout": 0.2}
        extra = policy if task == "policy" else {"head": "random"}
        out = tmp_path / name
        settings = kind(
            **{**SHARED, **extra, "data": [tmp_path / "data.jsonl"], "base": str(base), "out": out, **changes}
        )
        model = function(settings)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        steps = [{key: value for key, value in line.items() if key not in MACHINE} for line in lines]
        return steps, {key: value.clone() for key, value in model.network.state_dict().items()}

    return train


def trajectory(steps: list[dict[str, Any]], key: str) -> torch.Tensor:
    return torch.tensor([line[key] for line in steps if line["kind"] == "train"], dtype=torch.float64)


@pytest.mark.parametrize("task", TRAIN)
def test_pack_size_changes_nothing(run: Any, task: str) -> None:
    """Steps are made of conversations, losses are divided by the step's counts: packs of 192 or 1,024 tokens give
    the same losses and gradients up to rounding.
    """
    small, _ = run(task, "small", pack_tokens=192)
    large, _ = run(task, "large", pack_tokens=1024)
    assert max(line["packs"] for line in small if line["kind"] == "train") > 1
    assert all(line["packs"] == 1 for line in large if line["kind"] == "train")
    for key in ("loss", "gradient_norm"):
        torch.testing.assert_close(trajectory(small, key), trajectory(large, key), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("task", TRAIN)
def test_form_of_attention_changes_nothing(run: Any, task: str) -> None:
    segments, _ = run(task, "segments", attention="segments")
    dense, _ = run(task, "dense", attention="dense")
    for key in ("loss", "gradient_norm"):
        torch.testing.assert_close(trajectory(segments, key), trajectory(dense, key), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("task", TRAIN)
def test_gradient_checkpointing_changes_nothing(run: Any, task: str) -> None:
    plain, _ = run(task, "plain")
    checkpointed, _ = run(task, "checkpointed", gradient_checkpointing=True)
    torch.testing.assert_close(trajectory(plain, "loss"), trajectory(checkpointed, "loss"), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("task", TRAIN)
def test_stopped_and_resumed_is_bit_identical(run: Any, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_steps, whole = run(task, "whole")
    taken = loop._Run._step
    for stop_at in (2, 5, 4):  # counted anew in each life: the run dies three times
        count = 0

        def step(self: Any, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count > stop_at:  # noqa: B023
                raise KeyboardInterrupt
            return taken(self, *arguments)

        monkeypatch.setattr(loop._Run, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            run(task, "parts")
    monkeypatch.setattr(loop._Run, "_step", taken)
    part_steps, parts = run(task, "parts")
    assert part_steps == whole_steps
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_same_seed_same_weights(run: Any) -> None:
    _, first = run("policy", "first")
    _, second = run("policy", "second")
    _, other = run("policy", "other", seed=1)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_finished_run_is_kept_and_another_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = run("policy", "out")

    def never(*arguments: Any) -> Any:
        raise AssertionError("a finished run must not train again")

    taken = loop._Run._step
    monkeypatch.setattr(loop._Run, "_step", never)
    _, again = run("policy", "out")
    assert all(torch.equal(first[key], again[key]) for key in first)

    def dies(self: Any, step: Any, number: int, rate: float) -> Any:
        if number == 4:
            raise KeyboardInterrupt
        return taken(self, step, number, rate)

    monkeypatch.setattr(loop._Run, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run("policy", "half")
    with pytest.raises(TrainingError, match="other settings or data"):
        run("policy", "half", learning_rate=1e-4)


def test_non_finite_loss_stops_with_its_conversations(run: Any) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: loss (nan|inf).*tree-\d+"):
        run("policy", "hot", learning_rate=1e12, min_learning_rate=1e12, clip=1e12, epochs=20)


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
    for key in ("loss", "gradient_norm"):
        torch.testing.assert_close(trajectory(compiled, key), trajectory(eager, key), rtol=2e-4, atol=1e-6)
