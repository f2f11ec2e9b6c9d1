"""What the benchmarks share: processes of their own, a clock on optimiser steps, memory, the machine."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from steerlm.errors import TrainingError
from steerlm.memory import PeakMemory
from steerlm.provenance import environment

_PROCESS = Path("/proc/self")
P = ParamSpec("P")
R = TypeVar("R")


def set_threads(count: int) -> None:
    """Let this process and those that it starts compute on `count` cores, and never ask a model hub."""
    os.environ |= {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    torch.set_num_threads(count)


def apart(threads: int, function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
    """Call `function` in a process of its own that computes on `threads` cores, so that nothing that one call leaves
    behind reaches the next. Raises `TrainingError` where the system kills that process.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=set_threads, initargs=(threads,)) as pool:
        try:
            return pool.submit(function, *arguments, **keywords).result()
        except BrokenProcessPool as error:
            raise TrainingError(f"{function.__name__} was killed; it may need more memory than there is") from error


class StepClock:
    """Times the steps of any training loop through PyTorch's own hooks, so that all loops are timed alike.

    An epoch lasts from the first forward pass of any network to the end of the last optimiser step, on a GPU until
    it has computed that.
    """

    def __init__(self, on_step: Callable[[int], None] | None = None) -> None:
        self.began: float | None = None
        self.ends: list[float] = []
        self._on_step = on_step

    def __enter__(self) -> Self:
        self._hooks = [
            register_module_forward_pre_hook(self._first_forward),
            register_optimizer_step_post_hook(self._step),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _first_forward(self, *_: Any) -> None:
        self.began = time.perf_counter()
        self._hooks[0].remove()

    def _step(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if self._on_step:
            self._on_step(len(self.ends))

    @property
    def epoch_seconds(self) -> float:
        """Seconds of all steps. Raises `TrainingError` where there was none."""
        return self._until(-1)

    @property
    def first_step_seconds(self) -> float:
        """Seconds of the first step. Raises `TrainingError` where there was none."""
        return self._until(0)

    def _until(self, step: int) -> float:
        if self.began is None or not self.ends:
            raise TrainingError("the training made no step; give it more conversations")
        return self.ends[step] - self.began


class PassLengths:
    """Notes how many tokens, with padding, networks are given in each forward pass while the block runs."""

    def __enter__(self) -> Self:
        self.lengths: list[int] = []
        self._hook = register_module_forward_pre_hook(self._forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    def _forward(self, module: nn.Module, inputs: Any) -> None:
        if isinstance(module, nn.Embedding):
            self.lengths.append(inputs[0].numel())


class PeakWhereComputed:
    """The most memory in use where PyTorch computes while the block runs, in megabytes (2^20 bytes): that of the GPU's
    tensors where there is a GPU, else of this process.
    """

    peak_mb: int = 0

    def __enter__(self) -> Self:
        self._process = PeakMemory().__enter__()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)
        on_gpu = torch.cuda.is_available()
        self.peak_mb = torch.cuda.max_memory_allocated() >> 20 if on_gpu else self._process.peak_mb


def resident_mb() -> int:
    """Memory that this process holds now, in megabytes (2^20 bytes); 0 where the system does not say (not Linux)."""
    status = _PROCESS / "statm"
    if not status.is_file():
        return 0
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def bytes_read() -> int:
    """Bytes that this process has read from files so far; 0 where the system does not say (not Linux)."""
    status = _PROCESS / "io"
    if not status.is_file():
        return 0
    return int(status.read_text().split()[1])


def surroundings(*packages: str) -> dict[str, Any]:
    """Versions of our code, its libraries and `packages`, and the machine (nothing that identifies it)."""
    record = environment()
    record["libraries"] |= {name: _version(name) for name in packages}
    record["machine"] |= {"processor": _processor(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        record["machine"]["gpu"] = torch.cuda.get_device_name()
    return record


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
