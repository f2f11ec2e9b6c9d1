"""One optimiser step: the gradients of all its packs, divided once by counts of all ranks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from steerlm.losses import LossSum
from steerlm.packing import Pack
from steerlm.parallel.balance import is_blank
from steerlm.parallel.ranks import Ranks
from steerlm.parallel.shard import Root, clip_grad_norm
from steerlm.training.config import TrainSettings
from steerlm.training.new_tokens import NewTokens
from steerlm.training.plan import random_for
from steerlm.training.task import Batch, Task, Term


class NotFiniteError(Exception):
    """A step came to a loss or a gradient that is not finite; `packs` are those of this rank at fault."""

    def __init__(self, what: str, packs: Sequence[Pack]) -> None:
        super().__init__(what)
        self.packs = packs


class Learner:
    """Takes the steps of one task, whose network `root` holds, sharded over `ranks`."""

    def __init__(self, task: Task, root: Root, settings: TrainSettings, ranks: Ranks, dtype: torch.dtype) -> None:
        self.task = task
        self.root = root
        self.settings = settings
        self.ranks = ranks
        self.device = ranks.device
        self.dtype = dtype
        self.network = task.model.network
        self.optimizer = make_optimizer(self.network, settings)
        self.new_tokens = NewTokens(task.model, settings.new_token_rate, settings.level_spread)

    def step(self, packs: Sequence[Pack], number: int, rate: float) -> dict[str, Any]:
        """Take step `number` at this learning rate; returns what the log says of it.

        Raises `NotFiniteError` on all ranks together, with nothing learnt.
        """
        self.network.train()
        self._seed(number)
        terms = self._global(self.task.terms(packs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys(terms, 0.0)
        wrong: list[Pack] = []
        for item in packs:
            objective, parts = self._learn(item, terms)
            if not math.isfinite(objective):
                wrong.append(item)
            for name, total in parts.items():
                sums[name] += total
        # All ranks learn of it together: one that left alone would keep the others waiting.
        if self.ranks.any(bool(wrong)):
            raise NotFiniteError("the loss is not finite", wrong)
        norm = clip_grad_norm(self.network.parameters(), self.settings.clip, self.ranks)
        if not math.isfinite(norm):
            raise NotFiniteError(f"gradient norm {norm}", self._at_fault(packs, terms, number))
        with self.new_tokens.step():
            self.optimizer.step()
        own = [item for item in packs if not is_blank(item)]
        counts = [float(sum(item.size for item in own)), float(len(own))]
        counted = self.ranks.sum(torch.tensor([*sums.values(), *counts], dtype=torch.float64))
        *totals, tokens, filled = counted.tolist()
        means = {name: total / terms[name].count for name, total in zip(sums, totals, strict=True) if terms[name].count}
        return {
            "loss": sum(terms[name].weight * mean for name, mean in means.items()),
            **means,
            "gradient_norm": norm,
            "tokens": int(tokens),
            "packs": int(filled),
            "fill": tokens / (filled * self.settings.pack_tokens),
        }

    def _seed(self, number: int) -> None:
        """Dropout is a function of the seed, the step and the rank, so that resuming needs no state of it."""
        torch.manual_seed(random_for(self.settings.seed, "step", number, self.ranks.data_rank).getrandbits(63))

    def _learn(self, pack: Pack, terms: Mapping[str, Term]) -> tuple[float, dict[str, float]]:
        """Add a pack's gradients to those there; returns its part of the objective, and the sums that make it."""
        losses = self._losses(pack)
        parts = [
            terms[name].weight * loss.total / terms[name].count for name, loss in losses.items() if terms[name].count
        ]
        if not parts:  # nothing of this step counts, on no rank
            return 0.0, {}
        objective = torch.stack(parts).sum()
        objective.backward()
        return objective.item(), {name: loss.total.item() for name, loss in losses.items()}

    def _at_fault(self, packs: Sequence[Pack], terms: Mapping[str, Term], number: int) -> Sequence[Pack]:
        """The packs whose gradients are not finite, computed again one by one (on many ranks together with those of
        the others at the same place); all of them where only their sum is not.
        """
        self._seed(number)
        found = []
        for item in packs:
            self.optimizer.zero_grad(set_to_none=True)
            self._learn(item, terms)
            if not math.isfinite(clip_grad_norm(self.network.parameters(), self.settings.clip, self.ranks)):
                found.append(item)
        return found or packs

    def _losses(self, pack: Pack) -> Mapping[str, LossSum]:
        with self.computing():
            return self.root(self.task.losses, Batch.of(pack, self.device, self.dtype))  # type: ignore[no-any-return]

    def _global(self, terms: Mapping[str, Term]) -> dict[str, Term]:
        """The terms with their counts over all ranks."""
        counts = self.ranks.sum(torch.tensor([term.count for term in terms.values()], dtype=torch.float64))
        return {name: replace(terms[name], count=count) for name, count in zip(terms, counts.tolist(), strict=True)}

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """What the network computes in the block has the precision of the training."""
        # A sharded network has its weights gathered in the type to compute in.
        enabled = self.dtype != torch.float32 and self.ranks.mesh is None
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            yield


def make_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and none on norms and biases."""
    parameters: list[Tensor] = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
