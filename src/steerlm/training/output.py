"""The directory that a training writes to: one process at a time, and nothing in it destroyed without being told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steerlm.errors import ConfigError, TrainingError
from steerlm.files import open_locked
from steerlm.models.directory import ADAPTER_CONFIG, FILE, Kind, ModelInfo
from steerlm.models.load import TEMPORARY

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
# By which a model of whatever origin is known, and which a saved model would replace.
_MODEL_FILES = ("*.safetensors", "pytorch_model*.bin", "config.json", ADAPTER_CONFIG, "tokenizer.json")


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Keep other trainings out of the directory while the block runs, and clear away what a killed one left half-saved.

    Raises `TrainingError` where another process is at work in it.
    """
    path = out / ".lock"
    stream = open_locked(path)
    if stream is None:
        raise TrainingError(
            f"{out}: another process is training into the same directory; wait for it, or choose another --out"
        )
    with stream:
        try:
            for torn in out.glob(f"{TEMPORARY}*"):
                shutil.rmtree(torn, ignore_errors=True)
            yield
        finally:
            path.unlink(missing_ok=True)


def is_finished(out: Path, key: str, kind: Kind) -> bool:
    """Whether the directory already holds the model that the run of this key would make."""
    if not (out / FILE).is_file():
        return False
    info = ModelInfo.load(out)
    return info.kind == kind and info.provenance.get("run") == key


def require_replaceable(out: Path, overwrite: bool) -> None:
    """Raise `ConfigError` where a training would destroy a model that is no unfinished work of its own.

    With `overwrite` a finished model of ours may go, but never one that we did not make.
    """
    if (out / FILE).is_file():
        # Whoever began a run in its place has said so; whose checkpoints they are is seen on resuming.
        is_begun = any((out / CHECKPOINTS).glob("step-*"))
        if not (overwrite or is_begun):
            raise ConfigError(
                f"{out} holds a finished model of other settings or data; choose another --out, or pass --resume never "
                "to train anew in its place. If it was trained on another machine, where auto means another precision, "
                "name that one"
            )
    elif not (out / METRICS).is_file():  # which is there from the start of a training
        found = sorted(file.name for pattern in _MODEL_FILES for file in out.glob(pattern))
        if found:
            raise ConfigError(f"{out} holds {found[0]} of a model that was not trained here; choose another --out")
