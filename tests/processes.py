"""Several processes that train together, on one machine and without GPUs, for tests.

Each function that runs in them lives in a module that can be imported (`tests` is on the path), takes its arguments
pickled, and hands back what can be pickled.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

# What takes seconds to import, and is imported once for all processes.
_PRELOAD = [
    "steerlm.training.run",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor.parallel",
]


def forkserver() -> ForkServerContext:
    """A source of processes that have the heavy imports behind them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 500) -> list[Any]:
    """Run `function(*arguments)` in `world` processes as `torchrun` would start them; returns their results by rank.

    Fails with the first traceback where one of them fails; the others are then stopped.
    """
    context = forkserver()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        processes = [
            context.Process(target=_run, args=(rank, world, port, Path(folder), function, arguments))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        try:
            waiting = list(processes)
            while waiting:
                ended = multiprocessing.connection.wait([process.sentinel for process in waiting], timeout)
                if not ended:
                    raise TimeoutError(f"{function.__name__}: the processes did not end within {timeout} s")
                waiting = [process for process in waiting if process.is_alive()]
                if any(process.exitcode for process in processes):
                    break
        finally:
            for process in processes:
                process.terminate() if process.is_alive() else None
                process.join()
        failures = sorted(Path(folder).glob("*.failure"), key=lambda path: path.stat().st_mtime_ns)
        if failures or any(process.exitcode for process in processes):
            told = failures[0].read_text() if failures else str([process.exitcode for process in processes])
            raise AssertionError(f"{function.__name__} failed in one of {world} processes:\n{told}")
        return [pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(world)]


def _run(
    rank: int, world: int, port: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    warnings.simplefilter("error")
    try:
        result = function(*arguments)
        (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
    except BaseException:
        (folder / f"{rank}.failure").write_text(f"rank {rank}: {traceback.format_exc()}")
        sys.exit(1)
