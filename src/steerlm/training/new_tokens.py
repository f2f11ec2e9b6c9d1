"""How the embeddings of newly added tokens learn: faster than trained weights, and the levels of an attribute as one
line rather than as unrelated words. Shapes: L levels, D hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steerlm.dialects import level_tokens
from steerlm.models.adapters import embedding_rows
from steerlm.models.base import token_id
from steerlm.models.load import SteerModel
from steerlm.parallel.local import read_rows, write_rows


class NewTokens:
    """The added tokens of a model in training.

    A new token starts knowing nothing, while a rate fit for trained weights moves its embedding by a small part of
    its length over a whole run; prompt tuning (arXiv 2104.08691) uses rates hundreds of times higher for this
    reason. So each optimiser step moves these rows `times` as far.

    The levels of an attribute are steps on a scale, and data seldom show its ends: predictions lean to the mean.
    The embedding of level k is therefore kept at a + b * k. What the common levels teach moves the rare ones too.

    Levels that begin alike are told apart late: what the network can learn of b is in proportion to b, and the other
    way round. So each attribute begins with a direction of its own, in which the ends of its scale lie `spread` times
    the length of the middle away from it; 0 leaves the levels where their spelling puts them.
    """

    def __init__(self, model: SteerModel, times: float, spread: float = 0.0) -> None:
        self._network: PreTrainedModel = model.network
        self._times = times
        self._spread = spread
        self._rows = torch.tensor(model.new_tokens, dtype=torch.long)
        place = {token: index for index, token in enumerate(model.new_tokens)}
        tokenizer = model.renderer.tokenizer
        names = iter(level_tokens(model.schema))
        self._groups: list[Tensor] = []
        for attribute in model.schema:
            ids = [token_id(tokenizer, next(names)) for _ in attribute.levels]
            if all(token in place for token in ids):
                self._groups.append(torch.tensor([place[token] for token in ids]))

    def straighten(self) -> None:
        """Put the levels of each attribute on a line, once, before training."""
        if not len(self._rows):
            return
        weight, rows = embedding_rows(self._network, self._rows)
        values = self._on_lines(read_rows(weight, rows))
        for number, group in enumerate(self._groups if self._spread else ()):
            middle_D = values[group].mean(dim=0)
            direction_D = torch.randn(len(middle_D), generator=torch.Generator().manual_seed(number)).to(values)
            reach_D = direction_D / direction_D.norm() * middle_D.norm() * self._spread
            values[group] = middle_D + torch.linspace(-1, 1, len(group)).to(values)[:, None] * reach_D
        write_rows(weight, rows, values)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around an optimiser step: scale what it does to the new rows, and keep the lines lines."""
        if not len(self._rows):
            yield
            return
        weight, rows = embedding_rows(self._network, self._rows)
        before = read_rows(weight, rows)
        yield
        write_rows(weight, rows, before + self._times * self._on_lines(read_rows(weight, rows) - before))

    def _on_lines(self, rows: Tensor) -> Tensor:
        rows = rows.clone()
        for group in self._groups:
            rows[group] = line_projection(len(group)).to(rows) @ rows[group]
        return rows


def line_projection(levels: int) -> Tensor:
    """[L, L], the orthogonal projection of L values onto those that are linear in their index."""
    basis_L2 = torch.stack([torch.ones(levels), torch.arange(levels) - (levels - 1) / 2], dim=1)
    basis_L2 = basis_L2 / basis_L2.norm(dim=0)
    projection_LL: Tensor = basis_L2 @ basis_L2.T
    return projection_LL
