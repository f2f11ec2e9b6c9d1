"""Weights and optimiser state on disk, each process writing its part; read by any number of processes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from steerlm.parallel.ranks import Ranks
from steerlm.parallel.shard import Root

# By the name of each weight, so that neither the order of weights nor their groups matter.
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_state(root: Root, optimizer: Optimizer, folder: Path, ranks: Ranks) -> None:
    """Write weights, moments and the optimiser's settings to `folder`, which all ranks see; all must call."""
    with _alone_if_so():
        save(_state(root, optimizer), checkpoint_id=folder, no_dist=ranks.mesh is None)


def load_state(root: Root, optimizer: Optimizer, folder: Path, ranks: Ranks) -> None:
    """Read what `save_state` wrote, on whatever number of ranks, into a model sharded in whatever way."""
    state = _state(root, optimizer)
    with _alone_if_so():
        load(state, checkpoint_id=folder, no_dist=ranks.mesh is None)
    set_state_dict(
        root, optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"], options=_FLAT
    )


def _state(root: Root, optimizer: Optimizer) -> dict[str, Any]:
    weights, moments = get_state_dict(root, optimizer, options=_FLAT)
    return {"weights": weights, "optimizer": moments}


def _alone_if_so() -> warnings.catch_warnings[None]:
    """PyTorch warns a single process that it is one."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
