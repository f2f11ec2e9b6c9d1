"""The processes of a training: which of them this is, and what they say to each other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from steerlm.devices import pick_device
from steerlm.errors import ConfigError, SteerLMError, StoppedError, TrainingError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
_BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
# Reading the first weights of a large model from a slow disk keeps ranks apart for longer than the usual ten minutes.
_PATIENCE = timedelta(hours=1)
_ANSWER = timedelta(seconds=5)


@dataclass(frozen=True)
class Ranks:
    """One process among `world`. Without a mesh it is the only one, and every exchange is a no-op.

    The mesh has the dimensions `data` (ranks that see different packs; weights are sharded over them) and `tensor`
    (ranks that share a pack and split its matrices). Ranks of one `tensor` group are neighbours, so that they fall
    on one node.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    mesh: DeviceMesh | None = None

    @classmethod
    def alone(cls, device: str = "auto") -> Ranks:
        """A single process, whatever the environment says."""
        return cls(0, 1, 0, pick_device(device))

    @classmethod
    def start(cls, device: str = "auto", tensor_parallel: int = 1) -> Ranks:
        """Join the processes that `torchrun` started, as told by its environment variables.

        `device` is `auto`, `cpu`, `cuda` or, for a single process, any torch device. Raises `ConfigError` where the
        environment is incomplete, the device cannot be used, or the ranks cannot be divided by `tensor_parallel`.
        """
        rank, world = launched()
        require_divisor(tensor_parallel, world)
        if world == 1:
            return cls.alone(device)
        local_rank = _whole_number(os.environ, "LOCAL_RANK")
        place = _device_of_rank(device, local_rank)
        from torch.distributed.device_mesh import init_device_mesh

        if not distributed.is_initialized():
            distributed.init_process_group(
                _BACKENDS[place.type], timeout=_PATIENCE, device_id=place if place.type == "cuda" else None
            )
        mesh = init_device_mesh(
            place.type, (world // tensor_parallel, tensor_parallel), mesh_dim_names=("data", "tensor")
        )
        return cls(rank, world, local_rank, place, mesh)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of the packs is this process's."""
        return self.mesh.get_local_rank("data") if self.mesh else 0

    @property
    def data_world(self) -> int:
        """Among how many the packs are shared."""
        return self.mesh["data"].size() if self.mesh else 1

    @property
    def tensor_rank(self) -> int:
        """Which part of each split matrix is this process's."""
        return self.mesh.get_local_rank("tensor") if self.mesh else 0

    @property
    def tensor_world(self) -> int:
        """Into how many parts matrices are split."""
        return self.mesh["tensor"].size() if self.mesh else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all data ranks' tensors, the same everywhere; on the device that the tensor came from."""
        if self.mesh is None:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        distributed.all_reduce(total, group=self.mesh.get_group("data"))
        return total.to(tensor.device)

    def gather(self, value: T) -> list[T]:
        """What each data rank passed (anything that can be pickled), in their order, on every rank."""
        if self.mesh is None:
            return [value]
        found: list[Any] = [None] * self.data_world
        distributed.all_gather_object(found, value, group=self.mesh.get_group("data"))
        return found

    def gather_from_all(self, value: T) -> list[T]:
        """What each process passed, of whatever group, in their order, on every process."""
        if self.mesh is None:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    def any(self, flag: bool) -> bool:
        """Whether any process says yes. All must ask, and at the same point of the program."""
        if self.mesh is None:
            return flag
        said = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(said, distributed.ReduceOp.MAX)
        return bool(said.item())

    def on_main(self, work: Callable[[], T]) -> T:
        """Let the main process do something while the others wait; all get its (picklable) result.

        Where it fails, all fail: the main process with its own error, the others with a `SteerLMError` that names it.
        """
        if self.mesh is None:
            return work()
        result: T | None = None
        failure: Exception | None = None
        if self.is_main:
            try:
                result = work()
            except Exception as error:
                failure = error
        told = [result, None if failure is None else _tellable(failure)]
        distributed.broadcast_object_list(told, src=0, device=self.device)
        if failure is not None:
            raise failure
        if isinstance(told[1], SteerLMError):
            raise told[1]
        return cast(T, told[0])

    def close(self) -> None:
        """Leave the group of processes; nothing can be exchanged after it."""
        if self.mesh is not None and distributed.is_initialized():
            distributed.destroy_process_group()


def launched() -> tuple[int, int]:
    """Which process this is, of how many that `torchrun` started; the only one without it.

    Raises `ConfigError` where the environment is incomplete.
    """
    world = _whole_number(os.environ, "WORLD_SIZE", 1)
    return (_whole_number(os.environ, "RANK") if world > 1 else 0), world


def require_divisor(tensor_parallel: int, world: int) -> None:
    """Raise `ConfigError` where `world` processes cannot be divided by `tensor_parallel`."""
    if world % tensor_parallel:
        raise ConfigError(
            f"tensor_parallel={tensor_parallel} does not divide the {world} processes of this run; "
            "choose a divisor, or start another number with torchrun"
        )


def first_cause(error: CheckpointException) -> BaseException:
    """What went wrong on the first of the ranks that failed to save or load together."""
    return next((failure for failure, _ in error.failures.values()), error)


def is_first_to_tell(error: Exception) -> bool:
    """Whether this process is to tell the user of an error, which other processes of its run may have met too.

    What the loop raises it raises on all ranks together, of which the first one speaks. Of errors with the same message
    the process does that was the first to ask, so that a fault of one node is told by that node.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    if isinstance(error, TrainingError | StoppedError):
        return os.environ.get("RANK") == "0"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = hashlib.sha256(f"{attempt} {error}".encode()).hexdigest()
    try:
        place = (os.environ["MASTER_ADDR"], _whole_number(os.environ, "MASTER_PORT"))
        store = distributed.TCPStore(*place, is_master=False, timeout=_ANSWER, wait_for_workers=False)  # type: ignore[attr-defined]
        return store.add(f"steerlm/told/{key}", 1) == 1
    except (KeyError, ConfigError, RuntimeError):  # nobody to ask yet, or any more
        return True


def _device_of_rank(name: str, local_rank: int) -> torch.device:
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if kind not in _BACKENDS:
        raise ConfigError(f"device={name!r} is not for several processes; use auto, cuda or cpu")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigError(
            f"process {local_rank} of this node has no GPU of its own: there are {count}; lower --nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _whole_number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, default)
    if value is None:
        raise ConfigError(f"WORLD_SIZE is set but {name} is not; start several processes with torchrun")
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"environment variable {name}={value!r} is no number; start with torchrun") from error


def _tellable(error: Exception) -> SteerLMError:
    if isinstance(error, SteerLMError):
        return error
    return TrainingError(f"the main process failed: {type(error).__name__}: {error}")
