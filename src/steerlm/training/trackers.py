"""Dashboards that follow a training beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from steerlm.errors import ConfigError
from steerlm.files import write_text

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
_ID = "track_id.txt"


class Dashboard(Protocol):
    """What is told the figures of a step."""

    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class _TensorBoard:
    def __init__(self, module: Any, folder: Path, resume_at: int | None) -> None:
        # What is shown of these steps is of a run before, or of what came after the checkpoint.
        purge = 0 if resume_at is None else resume_at + 1
        self._writer = module.SummaryWriter(folder / "tensorboard", purge_step=purge)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class _Run:
    """wandb and trackio have the same few functions. A resumed run goes on as what it was, and one that starts is new,
    even in the same folder; runs of the same name in other folders are others.
    """

    def __init__(self, module: Any, folder: Path, resume_at: int | None, settings: Mapping[str, Any]) -> None:
        number = _number(folder, resume_at)
        name = f"{folder.name}-{number}"
        # trackio knows runs by their names alone.
        own = {"name": folder.name, "id": name, "dir": str(folder)} if module.__name__ == "wandb" else {"name": name}
        self._run = module.init(project="steerlm", resume="allow", config=dict(settings), **own)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def finish(self) -> None:
        self._run.finish()


def _number(folder: Path, resume_at: int | None) -> str:
    """What tells the run in a folder from all others; kept in it."""
    file = folder / _ID
    if resume_at is None or not file.is_file():
        write_text(file, secrets.token_hex(4) + "\n")
    return file.read_text(encoding="utf-8").strip()


def open_dashboards(
    names: Sequence[str], folder: Path, resume_at: int | None = None, settings: Mapping[str, Any] | None = None
) -> list[Dashboard]:
    """Start the dashboards for the run in `folder`, which goes on after step `resume_at`, or starts without one.

    `settings` are shown beside its curves. Raises `ConfigError` where a dashboard is not installed.
    """
    return [
        _TensorBoard(module, folder, resume_at)
        if name == "tensorboard"
        else _Run(module, folder, resume_at, settings or {})
        for name, module in require_dashboards(names).items()
    ]


def require_dashboards(names: Sequence[str]) -> dict[str, Any]:
    """The modules of these dashboards. Raises `ConfigError` where one is not installed."""
    modules = {}
    for name in names:
        try:
            modules[name] = importlib.import_module(_MODULES[name])
        except ImportError as error:
            raise ConfigError(f"track={name} needs the package {name}; install it with `pip install {name}`") from error
    return modules


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested record under names such as `validation/attributes/humor/mae`."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found
