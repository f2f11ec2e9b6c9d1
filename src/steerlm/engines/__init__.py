"""Generation: token-id prompts and sampling parameters in, a stream of tokens with text and finish reason out."""

from steerlm.engines.base import Completion, Engine, Piece, Sampling, complete
from steerlm.engines.torch import TorchEngine

__all__ = ["Completion", "Engine", "Piece", "Sampling", "TorchEngine", "complete"]
