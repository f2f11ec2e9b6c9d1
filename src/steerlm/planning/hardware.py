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
class GpuSpec:
    """A kind of GPU, by NVIDIA's data sheet of the card on an SXM board.

    memory       GiB that programs see, of 80 GB and 141 GB
    bf16_tflops  dense matrix products in bfloat16, in 10^12 operations a second
    fp32_tflops  the same in float32, without TF32, which PyTorch leaves off and nothing here turns on
    """

    memory: float
    bf16_tflops: float
    fp32_tflops: float

    def tflops(self, precision: Precision) -> float:
        """The rate in a training's precision; all of these compute bfloat16 natively, which `auto` then is."""
        return self.fp32_tflops if precision == "fp32" else self.bf16_tflops


GPUS: dict[Gpu, GpuSpec] = {
    "a100": GpuSpec(memory=79.0, bf16_tflops=312.0, fp32_tflops=19.5),
    "h100": GpuSpec(memory=79.0, bf16_tflops=989.0, fp32_tflops=67.0),
    "h200": GpuSpec(memory=139.0, bf16_tflops=989.0, fp32_tflops=67.0),
}
