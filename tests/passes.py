"""Packs and passes of a task outside the loop, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from steerlm.conversation import Conversation
from steerlm.packing import Pack, fit, pack
from steerlm.tokens import TokenTree
from steerlm.training.task import Batch, Task


def make_packs(trees: Iterable[TokenTree], context: int, pack_tokens: int) -> list[Pack]:
    fitted, _ = fit(trees, context, pack_tokens)
    return pack(fitted, pack_tokens)


def passes_of(task: Any) -> Callable[[Iterable[TokenTree], Callable[[Batch], Any]], list[Any]]:
    """What the loop offers a task: a function over all packs of some trees."""

    def passes(trees: Iterable[TokenTree], work: Callable[[Batch], Any]) -> list[Any]:
        packs = make_packs(trees, task.settings.context, task.settings.pack_tokens)
        with torch.no_grad():
            return [work(Batch.of(item, task.model.device)) for item in packs]

    return passes


def on_main(work: Callable[[], Any]) -> Any:
    """What the loop offers a task where its process is the only one."""
    return work()


def validate(task: Task, conversations: Sequence[Conversation]) -> dict[str, Any]:
    """The figures of validation on these conversations."""
    return task.figures(passes_of(task)([task.held_out_tree(item) for item in conversations], task.measure))
