"""Steerable language models: train on rated conversations, steer by attributes at inference time."""

__version__ = "0.1.0"
