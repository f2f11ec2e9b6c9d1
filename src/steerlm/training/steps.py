"""The steps of a training: conversations rendered, cut to the context and packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedModel

from steerlm.errors import ConfigError
from steerlm.packing import Pack, Report, fit
from steerlm.parallel.balance import share_packs
from steerlm.parallel.ranks import Ranks
from steerlm.tokens import TokenTree
from steerlm.training.config import TrainSettings
from steerlm.training.corpus import TrainingData
from steerlm.training.plan import Position, Step, plan_steps
from steerlm.training.task import Task

Fitted = tuple[list[TokenTree], Report]
"""What a conversation was rendered and cut to, and what that did to it."""


@dataclass(frozen=True)
class Ready:
    """A step whose packs are made: those of this rank."""

    step: Step[Fitted]
    packs: list[Pack]

    @classmethod
    def of(cls, step: Step[Fitted], pack_tokens: int, ranks: Ranks) -> Ready:
        trees = [tree for fitted, _ in step.items for tree in fitted]
        return cls(step, share_packs(trees, pack_tokens, ranks))


def require_positions(network: PreTrainedModel, settings: TrainSettings) -> None:
    """Raise `ConfigError` where the base model has fewer positions than the context."""
    positions = getattr(network.config, "max_position_embeddings", settings.context)
    if settings.context > positions:
        raise ConfigError(f"context={settings.context} is beyond the base model's {positions} positions; lower it")


def steps_of(
    task: Task, settings: TrainSettings, data: TrainingData, epochs: float, start: Position | None = None
) -> Iterator[Step[Fitted]]:
    """The steps of a training from `start` on, rendered as they are asked for."""

    def render(index: int, epoch: int) -> tuple[int, Fitted]:
        tree = task.tree(data.train[index], epoch)
        fitted, report = fit([tree], settings.context, settings.pack_tokens)
        # Whether a conversation is used depends on the context alone, and so does its size: never on the packs.
        return (tree.size if fitted else 0), (fitted, report)

    batch = (settings.batch_tokens, settings.batch_conversations)
    return plan_steps(len(data.train), render, epochs, settings.seed, *batch, start or Position())
