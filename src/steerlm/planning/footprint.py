"""The memory of one rank, counted rather than reckoned: the code that trains is run on fake tensors.

All decoder blocks being alike, networks of a few and of one more tell what each further one adds.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from steerlm.packing import Pack
from steerlm.planning.rehearsal import Attention, pretended_ranks, rehearse
from steerlm.training.config import TrainSettings

_STEADY_ALONE = 2
"""Blocks after which each adds the same; below an adapter's first block there may be nothing to train."""
_STEADY = 3
"""Sharded blocks after which each adds the same: while one computes, the next is gathered and the last one reduced."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on one rank, when a step has packs to compute after others.

    weights    this rank's shards, in the type they are kept in
    gradients  the same for what is trained
    moments    AdamW's two running means
    gathered   weights outside the blocks, which sharding keeps whole from the forward to the backward pass
    kept       these and all else that is alive when the blocks have computed: what the backward pass needs
    forward    the most alive beside the first three while the last block computes
    loss       the same while the loss and its gradient are computed
    backward   the same while the blocks' gradients are
    end        the same while those of the embeddings are, and what is outside the blocks is reduced
    """

    weights: int
    gradients: int
    moments: int
    gathered: int
    kept: int
    forward: int
    loss: int
    backward: int
    end: int

    @property
    def steady(self) -> int:
        """Alive all the time."""
        return self.weights + self.gradients + self.moments

    @property
    def logits(self) -> int:
        """What the loss adds to what is kept: logits of one chunk, their gradients and those of the head."""
        return self.loss - self.kept

    @property
    def peak(self) -> int:
        """The most alive at any moment."""
        return self.steady + max(self.forward, self.loss, self.backward, self.end)


def footprint(
    config: PretrainedConfig,
    settings: TrainSettings,
    pack: Pack,
    gpus: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    attention: Attention = "fused",
) -> Footprint:
    """The footprint of training on packs like `pack`, with products in `dtype`.

    Raises `ConfigError` where the settings do not fit the model or the number of GPUs.
    """
    # Plans try the same again and again: with other numbers of GPUs, and to say what else could be done.
    told = settings.model_dump_json(exclude={"data", "validation", "out"})
    key = (
        config.to_json_string(),
        type(settings).__name__,
        told,
        hashlib.sha256(pickle.dumps(pack)).digest(),
        gpus,
        dtype,
        attention,
    )
    if key not in _KNOWN:
        _KNOWN[key] = _measured(config, settings, pack, gpus, dtype, attention)
    return _KNOWN[key]


_KNOWN: dict[Hashable, Footprint] = {}


def _measured(
    config: PretrainedConfig, settings: TrainSettings, pack: Pack, gpus: int, dtype: torch.dtype, attention: Attention
) -> Footprint:
    depth = config.get_text_config().num_hidden_layers
    # Frozen layers are not like the others.
    few = _STEADY if gpus > 1 else _STEADY_ALONE
    depths = [depth] if settings.frozen_layers else sorted({min(depth, few), min(depth, few + 1)})
    with pretended_ranks(settings, gpus) as ranks:
        first, *more = [rehearse(_cut(config, blocks), settings, pack, ranks, dtype, attention) for blocks in depths]
    each = {name: more[0][name] - first[name] if more else 0 for name in first}
    return Footprint(**{name: first[name] + (depth - depths[0]) * each[name] for name in first})


def _cut(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """The same architecture with fewer blocks."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = blocks
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:blocks]
    return config
