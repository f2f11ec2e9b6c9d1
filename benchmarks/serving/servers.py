"""Servers as their users start them: processes of their own, waited for, stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx

from steerlm.errors import EngineError

_PATIENCE = 900.0
"""Seconds that a server may take to answer at all; one that compiles for its first time takes minutes."""


@dataclass(frozen=True)
class Server:
    """A running server: its address, its process, and the seconds it took to be ready."""

    url: str
    pid: int
    startup_seconds: float

    def resident_mb(self) -> int:
        """Memory that the process and those that it started hold, in megabytes (2^20 bytes)."""
        return sum(_resident_bytes(pid) for pid in _family(self.pid)) >> 20


@contextmanager
def serving(command: Sequence[str], log: Path, threads: int) -> Iterator[Server]:
    """Run `command`, in which `{port}` stands for a free port, until the block ends."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",  # left alone vLLM keeps a core for its HTTP server
        "VLLM_CPU_KVCACHE_SPACE": "4",
    }
    began = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [part.format(port=port) for part in command], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _wait(process, url, log)
            yield Server(url, process.pid, time.perf_counter() - began)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ours(model: Path, engine: str, *options: str) -> list[str]:
    """How our server is started; it knows the policy by its path, as vLLM's does."""
    command = [sys.executable, "-m", "steerlm", "serve", str(model), "--engine", engine, "--port", "{port}"]
    return [*command, "--name", str(model), *options]


def vllm(python: Path, model: Path, context: int) -> list[str]:
    """How vLLM's server is started: fp32, prefix caching (its default), all that it needs of the context."""
    return [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--dtype", "float32", "--max-model-len", str(context), "--port", "{port}"),
        "--trust-request-chat-template",
    ]


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineError(f"the server ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            if httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise EngineError(f"no answer within {_PATIENCE:.0f} s: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.is_file() else []
    return [pid, *(member for child in found for member in _family(child))]


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if status.is_file() else 0
