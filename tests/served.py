"""Servers over tiny models, for tests of the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import torch
import uvicorn

from steerlm.annotation.scorer import Scorer
from steerlm.annotation.settings import ScoreSettings
from steerlm.attributes import STEERLM
from steerlm.engines import TorchEngine
from steerlm.engines.base import Deliver, Engine, Request
from steerlm.models.load import SteerModel, load_model, new_model
from steerlm.server.app import create_app
from steerlm.server.judge import Judge
from steerlm.server.policy import OperatorPolicy
from steerlm.server.state import ServerState
from tiny import TOKENIZERS, save_base, spread

HELLO = [{"role": "user", "content": "Why is the sea salty?"}]
PRESETS = {"concise": {"verbosity": 0, "complexity": 1}, "free": {"humor": None}}
LOCKED = OperatorPolicy.model_validate(
    {
        "attributes": {"toxicity": {"locked": 0}, "verbosity": {"low": 1, "high": 3}},
        "presets": {"concise": {"verbosity": 1}},
        "system": {"text": "Be kind.", "fixed": True},
    }
)


class Recorder:
    """An engine that notes what it is asked for, and passes it on where there is another behind it."""

    def __init__(self, behind: Engine | None = None, context: int = 2048) -> None:
        self.context = behind.context if behind else context
        self.guides = behind.guides if behind else True
        self.guided_context = behind.guided_context if behind else context
        self.requests: list[Request] = []
        self.cancelled = 0
        self._behind = behind

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        self.requests += requests
        stop = self._behind.submit(requests, deliver) if self._behind else lambda: None

        def cancel() -> None:
            self.cancelled += 1
            stop()

        return cancel

    def close(self) -> None:
        if self._behind:
            self._behind.close()


class Scripted(Recorder):
    """An engine that delivers what it is told, and then nothing."""

    def __init__(self, *script: Any) -> None:
        super().__init__()
        self.script = script

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        cancel = super().submit(requests, deliver)
        for item in self.script:
            deliver(item)
        return cancel


def make_policy(directory: Path) -> SteerModel:
    """A policy with random weights that answer to the label line."""
    model = new_model("policy", save_base(directory / "base", TOKENIZERS["chatml"]()), STEERLM, system="Be brief.")
    spread(model.network)
    model.save(directory / "policy")
    return load_model(directory / "policy", "policy")


def make_judge(directory: Path) -> SteerModel:
    """An attribute model whose scores differ from answer to answer."""
    model = new_model("attribute-model", save_base(directory / "judge-base", TOKENIZERS["chatml"]()), STEERLM)
    with torch.no_grad():
        model.network.score.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
    return model


def make_state(model: SteerModel, judge: Judge | None = None, **changes: Any) -> ServerState:
    engine = changes.pop("engine", None) or TorchEngine(model)
    return ServerState(model, engine, "tiny", judge=judge, **changes)


def judge_of(model: SteerModel) -> Judge:
    return Judge(Scorer(model, ScoreSettings(precision="fp32")), "judge")


@asynccontextmanager
async def client_of(state: ServerState) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server in this process."""
    transport = httpx2.ASGITransport(create_app(state))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
        yield client


@contextmanager
def listening(state: ServerState) -> Iterator[str]:
    """The address of a server on a port of this machine."""
    # Logging stays as it is: setting it up closes all handlers there are, and absl's takes the captured stderr with it.
    config = uvicorn.Config(create_app(state), port=0, log_config=None, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


def send(state: ServerState, path: str, body: Any = None, **how: Any) -> httpx2.Response:
    """One request to a server in this process: POST with a body, else GET."""

    async def go() -> httpx2.Response:
        async with client_of(state) as client:
            if body is None and not how:
                return await client.get(path)
            return await client.post(path, **({} if body is None else {"json": body}), **how)

    return asyncio.run(go())


def events(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events, without the closing mark."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
