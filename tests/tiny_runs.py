"""Tiny trainings of both kinds, in a module of its own so that processes started elsewhere can import it."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerlm.conversation import Conversation
from steerlm.errors import ConfigError, StoppedError, TrainingError
from steerlm.files import write_conversations
from steerlm.training import checkpoint, corpus, learner, loop
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
Steps = list[dict[str, Any]]


def rated_trees(count: int) -> list[Conversation]:
    generator = random.Random(3)
    trees = [random_tree(generator, f"tree-{index}", generator.randint(2, 9)) for index in range(count)]
    assert any(message.ratings for tree in trees for message in tree.messages)
    return trees


def prepare(folder: Path, network: str = "llama", **changes: Any) -> Path:
    """Make the base model and the data."""
    save_base(folder / "base", TOKENIZERS["chatml"](), network, **changes)
    write_conversations(folder / "data.jsonl", rated_trees(40))
    return folder


def train(folder: Path, task: str, name: str, **changes: Any) -> dict[str, Tensor]:
    """Train in `folder / name`; returns the weights."""
    kind, function = TRAIN[task]
    # A ridge head would be solved from the states, which enlarges their rounding errors at once.
    policy = {"labels": "ratings-first", "contrast": 0.5, "label_dropout": 0.2}
    extra = policy if task == "policy" else {"head": "random"}
    places = {"data": [folder / "data.jsonl"], "base": str(folder / "base"), "out": folder / name}
    settings = kind(**{**SHARED, **extra, **places, **changes})
    model = function(settings)  # type: ignore[operator]
    return {key: value.clone() for key, value in model.network.state_dict().items()}


def logged(out: Path) -> Steps:
    """The lines of metrics.jsonl, without times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MACHINE} for line in lines]


def trajectory(steps: Steps, key: str) -> Tensor:
    return torch.tensor([line[key] for line in steps if line["kind"] == "train"], dtype=torch.float64)


def assert_same(found: Steps, wanted: Steps, rtol: float) -> None:
    for key in ("loss", "gradient_norm"):
        torch.testing.assert_close(trajectory(found, key), trajectory(wanted, key), rtol=rtol, atol=1e-6)


@contextmanager
def interrupted_at(number: int) -> Iterator[None]:
    """What trains meanwhile is interrupted before the step of this number, counted from 0."""
    taken = loop._Run._step

    def step(self: Any, ready: Any, at: int, rate: float) -> Any:
        if at == number:
            raise KeyboardInterrupt
        return taken(self, ready, at, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_step", step)
        yield


def train_on_ranks(folder: Path, task: str, name: str, changes: dict[str, Any]) -> None:
    """The same as one of several processes."""
    train(folder, task, name, **changes)


def train_on_ranks_without_room(folder: Path, task: str, name: str, changes: dict[str, Any]) -> list[str]:
    """The main process cannot write the list of a checkpoint's files; returns what each process is warned of."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(checkpoint, "write_manifest", full)
        train(folder, task, name, **changes)
    return [str(warning.message) for warning in caught if "could not be saved" in str(warning.message)]


def train_on_ranks_with_data_of_their_own(folder: Path, task: str, name: str) -> str:
    """Each process finds other conversations under the same path; returns what it says."""
    read = corpus.Library.add

    def add(self: Any, path: Path, *arguments: Any) -> str:
        return read(self, path.with_name(f"data-{os.environ['RANK']}.jsonl"), *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus.Library, "add", add)
        with pytest.raises(ConfigError) as caught:
            train(folder, task, name)
    return str(caught.value)


class OnlyGradientIsNaN(torch.autograd.Function):
    """Of which the forward pass shows nothing."""

    @staticmethod
    def forward(context: Any, total: Tensor) -> Tensor:
        return total.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


def train_on_ranks_with_a_nan(
    folder: Path, task: str, name: str, changes: dict[str, Any], culprit: str
) -> tuple[str, list[list[str]]]:
    """The gradients of packs with a response of the conversation `culprit` are not finite. Returns what a process says
    of it, and the conversations of each of its packs in that step, in order.
    """
    losses, taken = learner.Learner._losses, loop._Run._step
    given: list[Any] = []

    def step(self: Any, ready: Any, *arguments: Any) -> Any:
        given[:] = ready.packs
        return taken(self, ready, *arguments)

    def poisoned(self: Any, pack: Any) -> Any:
        found = losses(self, pack)
        if culprit not in {response.conversation for response in pack.responses}:
            return found
        return {name: replace(loss, total=OnlyGradientIsNaN.apply(loss.total)) for name, loss in found.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_step", step)
        patch.setattr(learner.Learner, "_losses", poisoned)
        with pytest.raises(TrainingError) as caught:
            train(folder, task, name, **changes)
    return str(caught.value), [[response.conversation for response in pack.responses] for pack in given]


def stop_on_ranks(folder: Path, task: str, name: str, changes: dict[str, Any], after: int) -> str:
    """The last process gets SIGTERM in step `after`; returns what each of them says."""
    taken = loop._Run._step

    def step(self: Any, ready: Any, number: int, rate: float) -> Any:
        figures = taken(self, ready, number, rate)
        if number + 1 == after and self.ranks.rank == self.ranks.world - 1:
            signal.raise_signal(signal.SIGTERM)
        return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_step", step)
        try:
            train(folder, task, name, **changes)
        except StoppedError as error:
            return f"{error.signal}: {error}"
    return "not stopped"
