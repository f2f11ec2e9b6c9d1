"""What the loop asks of a task, and the tensors it hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from steerlm.attention import TreeLayout
from steerlm.conversation import Conversation
from steerlm.losses import LossSum
from steerlm.models.load import SteerModel
from steerlm.packing import Pack, padded
from steerlm.tokens import TokenTree
from steerlm.training.survey import Survey

T = TypeVar("T")
# Tokens, of which packs are padded to a multiple.
_PADDED_TO = 64
Passes = Callable[[Iterable[TokenTree], Callable[["Batch"], T]], list[T]]
"""Runs a function over all packs of some trees, without gradients, and gives its results."""
OnMain = Callable[[Callable[[], T]], T]
"""Runs a function on one of the processes of a training, and gives its (picklable) result to all."""


@dataclass(frozen=True)
class Batch:
    """A pack on its device, ready for the network."""

    pack: Pack
    layout: TreeLayout
    device: torch.device

    @classmethod
    def of(cls, pack: Pack, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
        """For a network that computes in `dtype`.

        On CPUs products in bfloat16 are built for each length of a pack that is new, and kept: packs are therefore
        padded to one of few lengths.
        """
        if device.type == "cpu" and dtype == torch.bfloat16:
            pack = padded(pack, -(-pack.size // _PADDED_TO) * _PADDED_TO)
        return cls(pack, TreeLayout(pack, device), device)

    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for a network with tree attention."""
        return {
            "input_ids": self.tensor(self.pack.ids_T)[None],
            "position_ids": self.tensor(self.pack.positions_T)[None],
            "tree": self.layout,
        }

    def tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, device=self.device)


@dataclass(frozen=True)
class Term:
    """One term of the objective: `weight` times the sum over the whole step divided by the step's `count`."""

    weight: float
    count: float


class Task(Protocol):
    """A training task: how conversations become trees, what the loss is, how good the model is."""

    model: SteerModel
    higher_is_better: bool
    """Of the validation figure by which the best weights are chosen, if any."""
    best_by: str | None
    """The name of that figure; without one the saved model is the last one, not the best."""

    def remember(self, survey: Survey) -> None:
        """Told what the data to train on hold, before anything else and on resuming too.

        Raises `DataError` where nothing can be learnt from them.
        """

    def prepare(
        self, conversations: Sequence[Conversation], passes: Passes[Any], on_main: OnMain[Any]
    ) -> dict[str, Any]:
        """Done once before the first step (never on resuming); returns figures to log."""

    def tree(self, conversation: Conversation, epoch: int) -> TokenTree:
        """Render a conversation for training in this epoch."""

    def terms(self, packs: Sequence[Pack]) -> Mapping[str, Term]:
        """The objective's terms with their counts over some packs, known before any forward pass."""

    def losses(self, batch: Batch) -> Mapping[str, LossSum]:
        """Sum and count of each term over one pack; of a term without any part in it, nothing."""

    def held_out_tree(self, conversation: Conversation) -> TokenTree:
        """Render a conversation for validation."""

    def measure(self, batch: Batch) -> Any:
        """What validation takes from one pack; it can be pickled."""

    def figures(self, measured: Sequence[Any]) -> dict[str, Any]:
        """The figures of validation from what was measured of all held-out packs."""
