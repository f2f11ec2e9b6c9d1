"""Generation: token-id prompts and sampling parameters in, pieces of the answers out as they come."""

from steerlm.engines.base import (
    Completion,
    Engine,
    Guidance,
    Piece,
    Request,
    Sampling,
    batch,
    complete,
    stream,
    stream_async,
)
from steerlm.engines.torch import TorchEngine

__all__ = [
    "Completion",
    "Engine",
    "Guidance",
    "Piece",
    "Request",
    "Sampling",
    "TorchEngine",
    "batch",
    "complete",
    "stream",
    "stream_async",
]
