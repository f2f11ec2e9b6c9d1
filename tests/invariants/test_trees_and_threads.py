"""A tree is trained as its flattened threads would be, once each response counts as often as threads repeat it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from passes import make_packs
from references import thread_to
from steerlm.attention import use_tree_attention
from steerlm.conversation import Conversation
from steerlm.files import write_conversations
from steerlm.models.load import SteerModel
from steerlm.training.attribute_model import AttributeTask
from steerlm.training.config import AttributeSettings, PolicySettings
from steerlm.training.policy import PolicyTask
from steerlm.training.survey import Survey
from steerlm.training.task import Batch
from strategies import random_conversation
from tiny_runs import TRAIN, logged, prepare, rated_trees, train

SHARED: dict[str, Any] = {"context": 1024, "pack_tokens": 1024}


def flattened(conversations: list[Conversation]) -> list[Conversation]:
    """Every root-to-leaf thread as a conversation of its own, as other trainers read trees."""
    return [thread_to(conversation, path[-1]) for conversation in conversations for path in conversation.threads()]


def numbered(conversations: list[Conversation]) -> list[Conversation]:
    return [Conversation(f"{k}", c.messages, c.system) for k, c in enumerate(conversations)]


def objective(
    model: SteerModel, kind: str, conversations: list[Conversation], thread_weights: bool, pack_tokens: int = 1024
) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Sum, count and gradient of the loss over all packs."""
    options = {**SHARED, "pack_tokens": pack_tokens, "thread_weights": thread_weights}
    task: Any = (
        PolicyTask(model, PolicySettings(**options))
        if kind == "policy"
        else AttributeTask(model, AttributeSettings(**options))
    )
    task.remember(Survey.of(conversations))
    use_tree_attention(model.network, "segments")
    model.network.zero_grad()
    packs = make_packs([task.tree(item, 0) for item in conversations], 1024, pack_tokens)
    terms = task.terms(packs)
    name = "nll" if kind == "policy" else "squared_error"
    total = count = 0.0
    for pack in packs:
        loss = task.losses(Batch.of(pack, torch.device("cpu")))[name]
        loss.total.backward()
        total, count = total + loss.total.item(), count + loss.count.item()
    assert count == pytest.approx(terms[name].count)
    named = model.network.named_parameters()
    return total, count, {key: weight.grad.clone() for key, weight in named if weight.grad is not None}


@pytest.mark.parametrize("kind", ["policy", "attribute-model"])
def test_thread_weights_reproduce_training_on_threads(
    kind: str, policy: SteerModel, attribute_model: SteerModel
) -> None:
    model = policy if kind == "policy" else attribute_model
    generator = random.Random(6)
    trees = [random_conversation(generator, f"{number}", 10) for number in range(3)]
    threads = numbered(flattened(trees))
    assert len(threads) > len(trees)
    tree = objective(model, kind, trees, thread_weights=True)
    flat = objective(model, kind, threads, thread_weights=False)
    assert tree[0] == pytest.approx(flat[0], rel=1e-5)
    assert tree[1] == pytest.approx(flat[1])
    assert tree[2].keys() == flat[2].keys()
    scale = max(gradient.abs().max().item() for gradient in flat[2].values())
    for name, gradient in flat[2].items():
        torch.testing.assert_close(tree[2][name], gradient, rtol=1e-3, atol=1e-5 * scale)
    # Without the weights the objective is another one: each response counts once.
    once = objective(model, kind, trees, thread_weights=False)
    assert once[1] < flat[1]


@pytest.mark.parametrize("task", TRAIN)
def test_whole_trainings_on_trees_and_on_threads_go_the_same_way(tmp_path: Path, task: str) -> None:
    """On the data of the trajectory, of which each step takes all."""
    prepare(tmp_path)
    plain = {"contrast": 0.0, "label_dropout": 0.0} if task == "policy" else {}
    trees = rated_trees(40)
    steps = {}
    for name, data in (("trees", trees), ("threads", numbered(flattened(trees)))):
        write_conversations(tmp_path / "data.jsonl", data)
        train(
            tmp_path,
            task,
            name,
            context=512,
            batch_tokens=4096,
            batch_conversations=len(data),
            epochs=5,
            validation_fraction=0.0,
            thread_weights=name == "trees",
            **plain,
        )
        steps[name] = [line for line in logged(tmp_path / name) if line["kind"] == "train"]
    assert len(steps["trees"]) == len(steps["threads"]) == 5
    for tree, thread in zip(steps["trees"], steps["threads"], strict=True):
        assert tree["tokens"] < 0.8 * thread["tokens"]
        for key in ("loss", "gradient_norm"):
            assert tree[key] == pytest.approx(thread[key], rel=2e-4)


@pytest.mark.parametrize("kind", ["policy", "attribute-model"])
def test_a_tree_needs_fewer_tokens(kind: str, policy: SteerModel, attribute_model: SteerModel) -> None:
    """What it is all for."""
    model = policy if kind == "policy" else attribute_model
    trees = [random_conversation(random.Random(6), "0", 12)]
    task = "policy" if kind == "policy" else "score"
    whole = sum(model.renderer.tree(item, task).size for item in trees)  # type: ignore[arg-type]
    flat = sum(model.renderer.tree(item, task).size for item in flattened(trees))  # type: ignore[arg-type]
    assert whole < 0.75 * flat
