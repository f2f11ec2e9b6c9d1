"""The machines that a training is planned for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gpu = Literal["a100", "h100", "h200"]
GIB = 1 << 30


@dataclass(frozen=True)
class Hardware:
    """What a plan takes for granted of each GPU.

    memory        GiB of memory that programs see
    tflops        dense bfloat16 matrix products at the maker's rate, in 10^12 operations a second
    utilisation   the part of that rate which training reaches, communication and all else included
    reserve       GiB that CUDA, NCCL and gaps between the allocator's blocks take
    """

    gpus: int
    memory: float
    tflops: float
    utilisation: float
    reserve: float


# Makers' data sheets: (TFLOP/s, GiB), of the 80 GB and 141 GB cards on SXM boards.
GPUS: dict[Gpu, tuple[float, float]] = {"a100": (312.0, 79.0), "h100": (989.0, 79.0), "h200": (989.0, 139.0)}
