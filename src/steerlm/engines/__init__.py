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
    completions,
    stream,
    stream_async,
)
from steerlm.engines.make import EngineName, LocalEngine, Precision, engine_for, make_engine
from steerlm.engines.torch import TorchEngine

__all__ = [
    "Completion",
    "Engine",
    "EngineName",
    "Guidance",
    "LocalEngine",
    "Piece",
    "Precision",
    "Request",
    "Sampling",
    "TorchEngine",
    "batch",
    "complete",
    "completions",
    "engine_for",
    "make_engine",
    "stream",
    "stream_async",
]
