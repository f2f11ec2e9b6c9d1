"""What of a network is trained, done to one without weights as the training does it to one with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from steerlm.models.adapters import add_lora, freeze_layers
from steerlm.models.base import decoder_layers
from steerlm.training.config import PolicySettings, TrainSettings
from steerlm.training.run import adapter_of


def adapt(network: PreTrainedModel, settings: TrainSettings) -> None:
    """Put in the adapter that the settings ask for, hold its base in 4 bits, or freeze layers; in place."""
    if settings.quantize == "4bit":
        _hold_in_4_bits(network)
    # Which tokens are added depends on the tokenizer; for memory it matters whether any are, as they are trained.
    added = (0,) if settings.marker_tokens or (isinstance(settings, PolicySettings) and settings.level_tokens) else ()
    if lora := adapter_of(settings):
        add_lora(network, lora, settings.base, added, settings.frozen_layers)
    elif settings.frozen_layers is not None:
        freeze_layers(network, settings.frozen_layers, added)


def _hold_in_4_bits(network: PreTrainedModel) -> None:
    for layer in decoder_layers(network)[1]:
        for module in list(layer.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, _FourBitLinear(child.in_features, child.out_features))


class _FourBitLinear(nn.Linear):
    """Takes the memory of bitsandbytes' layer: the matrix is spelled out for each product, and forgotten.

    Half a byte a weight, and for each 64 of them a scale of a byte (arXiv 2305.14314).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.weight = nn.Parameter(torch.empty(inputs * outputs * 33 // 64, dtype=torch.uint8), requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        return _Product.apply(states, self.in_features, self.out_features)  # type: ignore[no-any-return, no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, inputs: int, outputs: int) -> Tensor:
        ctx.shape = (outputs, inputs)
        states = states.bfloat16()
        return functional.linear(states, states.new_empty(ctx.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None, None
