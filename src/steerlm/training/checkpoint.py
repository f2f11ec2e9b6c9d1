"""Checkpoints from which a killed run goes on: whole or absent, the last few kept."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from steerlm.errors import TrainingError
from steerlm.files import replacing

_NAME = re.compile(r"step-(\d+)\.pt\Z")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands beside its weights: `best` is the criterion of the best weights so far, if any."""

    step: int
    best: float | None
    best_figures: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run under `directory`. `key` identifies settings and data; another run's are refused."""

    def __init__(self, directory: Path, key: str, keep: int) -> None:
        self.directory = directory
        self.key = key
        self.keep = keep

    def _found(self) -> list[tuple[int, Path]]:
        found = [
            (int(match[1]), path) for path in self.directory.glob("step-*.pt") if (match := _NAME.match(path.name))
        ]
        return sorted(found)

    def save(self, network: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
        """Write the state after `progress.step` steps, then let go of the oldest beyond `keep`."""
        state = {
            "key": self.key,
            "step": progress.step,
            "best": progress.best,
            "best_figures": progress.best_figures,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["random_cuda"] = torch.cuda.get_rng_state_all()
        self._write(state, f"step-{progress.step:08d}.pt")
        for _, old in self._found()[: -self.keep]:
            old.unlink(missing_ok=True)

    def resume(self, network: nn.Module, optimizer: Optimizer) -> Progress | None:
        """Load the newest checkpoint, if there is one. Raises `TrainingError` where it belongs to another run."""
        for torn in self.directory.glob(".*.partial"):  # of a process that was killed while it wrote
            torn.unlink(missing_ok=True)
        found = self._found()
        if not found:
            return None
        path = found[-1][1]
        device = next(network.parameters()).device
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["key"] != self.key:
            raise TrainingError(
                f"{path} belongs to a run with other settings or data; "
                "choose another --out, or pass --fresh to start over"
            )
        network.load_state_dict(state["network"])
        network.to(device)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if "random_cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        return Progress(state["step"], state["best"], state["best_figures"])

    def save_best(self, network: nn.Module) -> None:
        """Keep these weights as the best so far."""
        self._write({"key": self.key, "network": network.state_dict()}, "best.pt")

    def _write(self, state: dict[str, Any], name: str) -> None:
        with replacing(self.directory / name) as path:
            try:
                torch.save(state, path)
            except RuntimeError as error:  # how PyTorch reports a full disk
                raise OSError(f"{self.directory / name}: cannot write the checkpoint: {error}") from error

    def load_best(self, network: nn.Module) -> None:
        """Put the best weights back, where any were kept."""
        path = self.directory / "best.pt"
        if path.is_file():
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["key"] == self.key:
                network.load_state_dict(state["network"])

    def clear(self) -> None:
        """Remove all of them: the run is done, or starts over."""
        shutil.rmtree(self.directory, ignore_errors=True)
