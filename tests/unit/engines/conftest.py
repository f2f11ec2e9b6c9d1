from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from completions_server import Call, CompletionsServer, serving
from steerlm.dialects import Renderer
from steerlm.engines.openvino_network import PagedNetwork, prepared
from steerlm.engines.upstream import UpstreamEngine, UpstreamSettings
from tiny_openvino import saved
from upstream import RENDERER, Start


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Makes an engine over a server with this script: `start(script, renderer=..., **settings)`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as stack:

        def make(
            script: Callable[[Call], None],
            made: Renderer = RENDERER,
            models: Callable[[Call], None] | None = None,
            **settings: Any,
        ) -> tuple[UpstreamEngine, CompletionsServer]:
            server = stack.enter_context(serving(script))
            server.models = models or server.models
            engine = UpstreamEngine(UpstreamSettings(url=server.url, **settings), made, made.end_ids)
            stack.callback(engine.close)
            return engine, server

        yield make


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that OpenVINO reads."""
    folder = tmp_path_factory.mktemp("openvino")
    saved(folder, request.param)
    return folder / "policy"


@pytest.fixture(scope="module")
def network(directory: Path) -> PagedNetwork:
    return PagedNetwork(prepared(directory), 1 << 22)
