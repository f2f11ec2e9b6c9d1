"""An engine over a server whose answers are written by the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from completions_server import CompletionsServer
from steerlm.engines.base import Piece, Request, Sampling, stream
from steerlm.engines.upstream import UpstreamEngine
from tiny import renderer

RENDERER = renderer("chatml", "chatml")
END = RENDERER.end_ids[0]
ANSWER = "Because rivers carry minerals.  Hello, hello!"
IDS: list[int] = RENDERER.tokenizer(ANSWER)["input_ids"]
Start = Callable[..., tuple[UpstreamEngine, CompletionsServer]]


def ask(engine: UpstreamEngine, **sampling: Any) -> list[Piece]:
    """All pieces of one answer."""
    return list(stream(engine, [Request((1, 2, 3), Sampling(**{"max_tokens": 50, **sampling}))]))
