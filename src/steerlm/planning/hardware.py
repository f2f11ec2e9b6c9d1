"""The machines that a training is planned for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steerlm.training.config import Precision

Gpu = Literal["a100", "h100", "h200"]
GIB = 1 << 30


@dataclass(frozen=True)
class Hardware:
    """What a plan takes for granted of each GPU.

    memory        GiB of memory that programs see
    tflops        dense matrix products in the training's precision at the maker's rate, in 10^12 operations a second
    utilisation   the part of that rate which training reaches, communication and all else included
    reserve       GiB that CUDA, NCCL and gaps between the allocator's blocks take
    """

    gpus: int
    memory: float
    tflops: float
    utilisation: float
    reserve: float


@dataclass(frozen=True)
class Card:
    """A kind of GPU, by NVIDIA's data sheet of the card on an SXM board.

    memory   GiB that programs see, of 80 GB and 141 GB
    bf16     dense matrix products in bfloat16, in 10^12 operations a second
    fp32     the same in float32, without TF32, which PyTorch leaves off and nothing here turns on
    """

    memory: float
    bf16: float
    fp32: float

    def rate(self, precision: Precision) -> float:
        """Operations a second, in 10^12; every card here computes bfloat16 natively, which `auto` then is."""
        return self.fp32 if precision == "fp32" else self.bf16


GPUS: dict[Gpu, Card] = {
    "a100": Card(memory=79.0, bf16=312.0, fp32=19.5),
    "h100": Card(memory=79.0, bf16=989.0, fp32=67.0),
    "h200": Card(memory=139.0, bf16=989.0, fp32=67.0),
}
