"""The one hierarchy of errors a user can meet. Every message says where, what, and what to do."""

from __future__ import annotations


class SteerLMError(Exception):
    """Base of all errors raised for bad input or circumstances (never for bugs); the CLI exits with 2."""


class DataError(SteerLMError):
    """A data file or a record in it cannot be used."""


class SchemaError(SteerLMError):
    """An attribute, a value or a label line does not fit the schema."""


class ConfigError(SteerLMError):
    """A recipe or an option contradicts another or is unknown."""


class ModelError(SteerLMError):
    """A model directory is missing, incomplete or of the wrong kind."""


class TrainingError(SteerLMError):
    """A training run cannot go on: a non-finite loss, a checkpoint that does not match."""


class EngineError(SteerLMError):
    """Generation failed, was closed, or a server behind it does not answer.

    public        what users of a server may know, where the message is for its operator only
    retry_after   seconds after which it may be tried again, where it was too busy
    """

    def __init__(self, message: str, public: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.public = public
        self.retry_after = retry_after


class StoppedError(SteerLMError):
    """A run ended early because it was asked to, by the signal of that number; what it did is saved."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
