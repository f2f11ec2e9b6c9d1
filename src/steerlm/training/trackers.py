"""Dashboards that follow a training beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from steerlm.errors import ConfigError

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


class Dashboard(Protocol):
    """What is told the figures of a step."""

    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class _TensorBoard:
    def __init__(self, module: Any, folder: Path, resume_at: int | None) -> None:
        purge = None if resume_at is None else resume_at + 1
        self._writer = module.SummaryWriter(folder / "tensorboard", purge_step=purge)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class _Run:
    """wandb and trackio have the same few functions. A resumed run goes on under its name."""

    def __init__(self, module: Any, folder: Path, resume_at: int | None) -> None:
        self._run = module.init(project="steerlm", name=folder.name, resume="allow", **_identity(module, folder))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def finish(self) -> None:
        self._run.finish()


def _identity(module: Any, folder: Path) -> dict[str, Any]:
    if module.__name__ != "wandb":
        return {}
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return {"id": f"{folder.name}-{place}", "dir": str(folder)}


def open_dashboards(names: Sequence[str], folder: Path, resume_at: int | None = None) -> list[Dashboard]:
    """Start the dashboards for the run in `folder`, which goes on after step `resume_at`.

    Raises `ConfigError` where one is not installed.
    """
    modules = require_dashboards(names)
    return [
        (_TensorBoard if name == "tensorboard" else _Run)(module, folder, resume_at) for name, module in modules.items()
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
