"""The memory of this process: how large it is, and what becomes of what it frees."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Measures the largest resident size of this process while the block runs, in megabytes (2^20 bytes).

    Linux can start the count anew; elsewhere it is the largest size since the process began.
    """

    peak_mb: int = 0

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # not Linux, or not allowed: then the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peak_mb = _peak_mb()


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next allocation, rather than return it to the system.

    A training step frees gigabytes of activations and asks for them again in the next; getting them from the system,
    page by page, took a tenth of the time. Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # The numbers of M_MMAP_THRESHOLD (32 MiB is its largest), M_TRIM_THRESHOLD and M_TOP_PAD in malloc.h.
    for option, value in ((-3, 32 << 20), (-1, (1 << 31) - 1), (-2, 256 << 20)):
        mallopt(option, value)


def memory_mb(device: torch.device) -> int:
    """What a computation takes where it is done, in megabytes: this process on a CPU, on a GPU the most so far."""
    return torch.cuda.max_memory_reserved(device) >> 20 if device.type == "cuda" else resident_mb()


def resident_mb() -> int:
    """The size of this process in memory now (its largest, where the system does not tell), in megabytes."""
    return _status_mb("VmRSS:") or _peak_mb()


def _status_mb(name: str) -> int:
    lines = _STATUS.read_text().splitlines() if _STATUS.is_file() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(name)), 0)


def _peak_mb() -> int:
    if largest := _status_mb("VmHWM:"):
        return largest
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest // (1 << 20 if sys.platform == "darwin" else 1 << 10)
