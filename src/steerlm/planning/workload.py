"""What the data of a training ask of it: sizes of conversations, tokens trained, tokens that each one sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np

from steerlm.errors import DataError, ModelError
from steerlm.models.base import load_tokenizer
from steerlm.models.directory import Kind
from steerlm.packing import fit, lay_out
from steerlm.tokens import TokenTree
from steerlm.training.config import PolicySettings, TrainSettings, kind_of
from steerlm.training.corpus import training_data
from steerlm.training.run import blank_task

_SAMPLE = 500
_WHOLE = 1 << 40


@dataclass(frozen=True)
class Workload:
    """The conversations of a training.

    sizes           tree tokens of some of them, each token counted once however many branches it is in
    trained         the share of the tokens that the loss falls on
    seen            tokens that a token attends to on average, itself included
    source          where these figures are from
    conversations   how many there are, where the data are at hand
    """

    sizes: tuple[int, ...]
    trained: float
    seen: float
    source: str
    conversations: int | None = None

    @property
    def tokens(self) -> float:
        """Tokens of a conversation on average."""
        return float(np.mean(self.sizes))

    def scaled(self, tokens: float) -> Workload:
        """The same with conversations of `tokens` tokens on average."""
        factor = tokens / self.tokens
        sizes = tuple(max(1, round(size * factor)) for size in self.sizes)
        return replace(self, sizes=sizes, seen=self.seen * factor, source=f"{tokens:,.0f} as given")

    def with_foils(self) -> Workload:
        """The same with each response once more, under other labels."""
        sizes = tuple(round(size * (1 + self.trained)) for size in self.sizes)
        trained = 2 * self.trained / (1 + self.trained)
        return replace(
            self, sizes=sizes, trained=trained, source=f"{self.source}, each response twice for the contrast"
        )

    def step(self, settings: TrainSettings) -> list[int]:
        """Sizes of the conversations of one optimiser step."""
        count = settings.batch_conversations or max(1, round(settings.batch_tokens / self.tokens))
        return list(islice(cycle(self.sizes), count))

    def steps(self, settings: TrainSettings) -> int | None:
        """Optimiser steps of the whole training, where they can be told."""
        if self.conversations is None:
            return settings.max_steps
        passed: int = math.ceil(self.conversations * settings.epochs / len(self.step(settings)))
        return passed if settings.max_steps is None else min(passed, settings.max_steps)


# Means of the deciles of the 157 English conversations with answers in Open Assistant's validation rows, rendered in
# the dialect nemo with SmolLM2's tokenizer and all nine labels, paths cut at 4,096 tokens. The judge reads no labels.
_ASSUMED: dict[Kind, Workload] = {
    "policy": Workload(
        (557, 900, 1114, 1336, 1485, 1652, 1866, 2109, 2652, 4104), 0.70, 444, "assumed, as Open Assistant's"
    ),
    "attribute-model": Workload(
        (385, 635, 806, 972, 1151, 1303, 1516, 1745, 2261, 3720), 0.86, 411, "assumed, as Open Assistant's"
    ),
}


def find_workload(settings: TrainSettings) -> Workload:
    """Measured on up to 500 conversations where the data are at hand; else that of Open Assistant, with foils where
    the contrastive term asks for them.
    """
    assumed = _ASSUMED[kind_of(settings)]
    if isinstance(settings, PolicySettings) and settings.contrast > 0:
        assumed = assumed.with_foils()
    if not settings.data or not all(path.is_file() for path in settings.data):
        return assumed
    try:
        load_tokenizer(settings.base)
    except ModelError as error:
        return replace(assumed, source=f"{assumed.source}: {error}")
    return _measured(settings)


def _measured(settings: TrainSettings) -> Workload:
    schema = settings.schema_of_attributes
    with training_data(settings, schema) as data:
        task = blank_task(settings, schema, data.survey)
        task.remember(data.survey)
        chosen = np.random.default_rng(settings.seed).permutation(len(data.train))[:_SAMPLE]
        fitted = [_fitted(task.tree(data.train[int(index)], 0), settings.context) for index in np.sort(chosen)]
        count = len(data.train)
    used = [trees for trees in fitted if trees]
    if not used:
        raise DataError("no response of the data can be trained on: none has labels or ratings, or all are too long")
    pack = lay_out([tree for trees in used for tree in trees])
    seen = 0
    for run in pack.runs:
        length, before = run.stop - run.start, sum(stop - start for start, stop in run.prefix)
        seen += length * before + length * (length + 1) // 2
    return Workload(
        sizes=tuple(sum(tree.size for tree in trees) for trees in used),
        trained=len(pack.rows_N) / pack.size,
        seen=seen / pack.size,
        source=f"measured on {len(used)} conversations of the data",
        conversations=round(count * len(used) / len(fitted)),
    )


def _fitted(tree: TokenTree, context: int) -> Sequence[TokenTree]:
    trees, _ = fit([tree], context, _WHOLE)
    return trees
