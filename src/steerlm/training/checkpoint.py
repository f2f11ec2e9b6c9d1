"""Checkpoints from which a killed run goes on: whole or absent, checked by digests, the last few kept.

A checkpoint is a directory in the format of `torch.distributed.checkpoint`, so that one saved by some number of ranks
can be read by any other number, and a `manifest.json` with the digest of every file.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from steerlm import __version__
from steerlm.errors import ConfigError, TrainingError
from steerlm.files import sync
from steerlm.packing import Report
from steerlm.parallel.ranks import Ranks, first_cause
from steerlm.training.manifest import START_OVER, TORN, fault_of, listed_files, read_manifest, seal_of, write_manifest
from steerlm.training.plan import Position

_STEP, _BEST = "step", "best"
# The best weights, and the best before them in case these are damaged.
_KEEP_BEST = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands beside its weights.

    step       optimiser steps taken
    position   the conversation at which the next step begins
    validated  the step of the last validation, -1 before the first
    best       the figure by which the best weights so far were chosen, where the best are kept
    figures    of the validation of the weights that are to be saved: the best, or else the last
    report     what fitting did to the conversations of the first epoch so far; before the first step, to those that
               the model was prepared with
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    validated: int = -1
    best: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Progress:
        return cls(**{**record, "position": Position(**record["position"]), "report": Report(**record["report"])})


class Checkpoints:
    """The checkpoints of one run under `directory`. `key` identifies settings and data; another run's are refused.

    All ranks call the same methods together, and must see the same file system. Only what is trained is stored:
    frozen weights come from the base model.
    """

    def __init__(self, directory: Path, key: str, keep: int, ranks: Ranks) -> None:
        self.directory = directory
        self.key = key
        self.keep = keep
        self.ranks = ranks

    def path(self, step: int) -> Path:
        """Where the state after `step` steps is kept."""
        return self._path(_STEP, step)

    def _path(self, kind: str, step: int) -> Path:
        return self.directory / f"{kind}-{step:08d}"

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, or None where there are none. Warns of those passed over.

        Raises `TrainingError` where all are damaged, for one of another version, and for one that cannot be read.
        """
        path, damaged = self._newest(_STEP)
        if path is None:
            _require_none(damaged)
        self._warn(damaged, path)
        return path

    def peek(self) -> Path | None:
        """The checkpoint that `resume` would load, told by the manifests alone. No weights are read and nothing is
        swept up: a training may be at work on them. Raises what `resume` raises.
        """
        damaged = []
        for path in reversed(self._found(_STEP)):
            listed = listed_files(path)
            if not isinstance(listed, str):
                self._require_own(path, read_manifest(path))
                return path
            damaged.append(_damaged(path, listed))
        _require_none(damaged)
        return None

    def _newest(self, kind: str) -> tuple[Path | None, list[str]]:
        """The newest that is whole, if one is, and what is wrong with those after it."""
        damaged: list[str] = []
        for path in self.ranks.on_main(lambda: self._candidates(kind)):
            fault = self._damage(path)
            if fault is None:
                return path, damaged
            damaged.append(_damaged(path, fault))
        return None, damaged

    def _warn(self, damaged: list[str], path: Path | None) -> None:
        """Tell of those that are passed over for `path`, or for none."""
        instead = f"; going on from {path.name}" if path else ""
        for fault in damaged if self.ranks.is_main else ():
            warnings.warn(f"{fault}{instead}", stacklevel=3)

    def save(self, network: nn.Module, optimizer: Optimizer, progress: Progress) -> Path:
        """Write the state after `progress.step` steps, then let go of the oldest beyond `keep`."""
        path = self.path(progress.step)
        self._write(path, {"network": trained(network), "optimizer": optimizer_state(network, optimizer)}, progress)
        self._let_go(_STEP, path, self.keep)
        return path

    def resume(self, network: nn.Module, optimizer: Optimizer) -> Progress | None:
        """Load the newest checkpoint that is whole, or return None where there are none; a damaged one is passed over
        with a warning.

        Raises `ConfigError` where it belongs to another run, and what `newest` raises.
        """
        path = self.newest()
        if path is None:
            return None
        manifest = read_manifest(path)
        self._require_own(path, manifest)
        self._read(path, {"network": trained(network), "optimizer": optimizer_state(network, optimizer)})
        return Progress.from_dict(manifest["progress"])

    def _require_own(self, path: Path, manifest: dict[str, Any]) -> None:
        """Raise `ConfigError` where a checkpoint is another run's."""
        if manifest["key"] == self.key:
            return
        # The key holds the version too; the first manifests do not name theirs.
        version = manifest.get("version", __version__)
        if version != __version__:
            raise ConfigError(
                f"{path} belongs to a run of steerlm {version}, and this is {__version__}; go on with that version, "
                f"choose another --out, or {START_OVER}"
            )
        raise ConfigError(
            f"{path} belongs to a run with other settings or data; choose another --out, or {START_OVER}. If it began "
            "on another machine, where auto means another precision, name that one"
        )

    def save_best(self, network: nn.Module, progress: Progress) -> None:
        """Keep these weights as the best so far; `progress` has their figures."""
        path = self._path(_BEST, progress.step)
        self._write(path, {"network": trained(network)}, progress)
        self._let_go(_BEST, path, _KEEP_BEST)

    def best(self) -> Progress | None:
        """What `save_best` was told of the newest best weights that are whole, if there are any; damaged ones are
        passed over with a warning, and removed.
        """
        path, damaged = self._newest(_BEST)
        self._warn(damaged, path)
        if path is None:
            return None
        self._let_go(_BEST, path, _KEEP_BEST)
        return Progress.from_dict(read_manifest(path)["progress"])

    def load_best(self, network: nn.Module) -> None:
        """Put back the weights of which `best` told."""
        path = self.ranks.on_main(lambda: self._found(_BEST)[-1])
        self._read(path, {"network": trained(network)})

    def clear(self) -> None:
        """Remove all of them: the run is done, or starts over."""
        self.ranks.on_main(lambda: shutil.rmtree(self.directory, ignore_errors=True))

    def clear_own(self) -> bool:
        """Remove all of them, unless they are another run's; returns whether they are gone."""
        is_own = self.ranks.on_main(lambda: self._runs() <= {self.key})
        if is_own:
            self.clear()
        return is_own

    def _runs(self) -> set[str]:
        """The keys of the runs that wrote them; what is damaged is nobody's."""
        found = set()
        for path in [*self._found(_STEP), *self._found(_BEST)]:
            with contextlib.suppress(*TORN):
                found.add(str(read_manifest(path)["key"]))
        return found

    def _found(self, kind: str) -> list[Path]:
        """Oldest first. Raises `OSError` where the directory is there and cannot be read."""
        name = re.compile(rf"{kind}-(\d+)")
        try:
            there = list(self.directory.iterdir())
        except FileNotFoundError:
            return []
        found = [(int(match[1]), path) for path in there if (match := name.fullmatch(path.name))]
        return [path for _, path in sorted(found) if path.is_dir()]

    def _let_go(self, kind: str, path: Path, keep: int) -> None:
        """Of those up to `path` leave the last `keep`. Those of later steps are damaged: resuming passed them over."""
        if self.ranks.is_main:
            found = self._found(kind)
            until = found.index(path) + 1
            for other in found[: max(0, until - keep)] + found[until:]:
                shutil.rmtree(other, ignore_errors=True)

    def _candidates(self, kind: str) -> list[Path]:
        """Newest first."""
        for torn in self.directory.glob(".*.partial"):  # of a process that was killed while it wrote
            shutil.rmtree(torn, ignore_errors=True)
        return self._found(kind)[::-1]

    def _damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, or None; every rank reads a share of its files.

        Raises `TrainingError` on all of them where one cannot read its share.
        """
        listed = self.ranks.on_main(lambda: listed_files(path))
        if isinstance(listed, str):
            return listed
        own = list(listed.items())[self.ranks.rank :: self.ranks.world]
        found: list[str] = []
        unread: TrainingError | None = None
        try:
            found = [fault for name, seal in own if (fault := fault_of(path / name, *seal))]
        except TrainingError as error:
            unread = error
        shares = self.ranks.gather_from_all((found, unread))
        for _, told in shares:
            if told is not None:
                raise told
        return next((fault for share, _ in shares for fault in share), None)

    def _write(self, path: Path, state: dict[str, Any], progress: Progress) -> None:
        partial = path.with_name(f".{path.name}.partial")

        def begin() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

        def finish() -> None:
            # Looked up by name: a network file system may be slow to list what another node wrote.
            unseen = sorted(name for name in written if not (partial / name).is_file())
            if unseen:
                drop()
                raise TrainingError(
                    f"{path}: the main process does not see {unseen[0]}, which another process wrote; the directory is "
                    "not the same on all nodes: choose an --out on a file system that they share"
                )
            found = sorted({*written, *(file.name for file in partial.iterdir())})
            files = {name: written.get(name) or seal_of(partial / name) for name in found}
            try:
                write_manifest(partial, self.key, asdict(progress), files)
                replace_directory(partial, path)
            except OSError:
                drop()
                raise

        def drop() -> None:
            """Half a checkpoint is of no use, and a full disk may have room without it."""
            shutil.rmtree(partial, ignore_errors=True)

        self.ranks.on_main(begin)
        try:
            with _alone():
                save(state, storage_writer=FileSystemWriter(partial))
        except CheckpointException as error:  # on all ranks
            self.ranks.on_main(drop)
            raise OSError(f"{path}: cannot write the checkpoint: {first_cause(error)}") from error
        # Each rank reads again what it wrote itself, by the name that PyTorch gives its files.
        own = {file.name: seal_of(file) for file in partial.glob(f"__{self.ranks.rank}_*")}
        written = {name: seal for share in self.ranks.gather_from_all(own) for name, seal in share.items()}
        self.ranks.on_main(finish)

    def _read(self, path: Path, state: dict[str, Any]) -> None:
        """Fill the tensors of `state`, in place, with those of the checkpoint."""
        with torch.no_grad(), _alone():
            load(state, storage_reader=FileSystemReader(path))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A single process may save and load too; PyTorch warns that it does so alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def trained(network: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: parameter.data for name, parameter in network.named_parameters() if parameter.requires_grad}


def optimizer_state(network: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """AdamW's state of each trained parameter by name; where there is none yet, a zero one is made."""
    found = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state[parameter]
            if not state:
                device = parameter.device if optimizer.defaults.get("fused") else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(parameter.data)
                state["exp_avg_sq"] = torch.zeros_like(parameter.data)
            found[name] = dict(state)
    return found


def _damaged(path: Path, fault: str) -> str:
    return f"{path} is damaged ({fault})"


def _require_none(damaged: list[str]) -> None:
    """Raise `TrainingError` where there are checkpoints, all of which are damaged."""
    if damaged:
        raise TrainingError(
            f"none of the checkpoints is whole: {'; '.join(damaged)}. Put back what is missing or another copy of "
            f"them, and give the same command again; or {START_OVER}, which removes them"
        )


def replace_directory(source: Path, target: Path) -> None:
    """Give a finished directory the name `target`; its bytes are on the disk before."""
    for file in source.iterdir():
        sync(file)
    old = target.with_name(f".{target.name}.old.partial")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    shutil.rmtree(old, ignore_errors=True)
