"""Models that no process ever holds whole: made without weights, sharded, then read from disk part by part.

blank = blank_model("policy", base, schema)
root = Root(blank.model.network)
shard(blank.model.network, root, ranks)
blank.fill(root, ranks.device)
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from steerlm.attributes import Schema
from steerlm.errors import ModelError
from steerlm.models.adapters import has_adapter, plain_name, start_adapter
from steerlm.models.base import Spellings, loading, resolve
from steerlm.models.directory import Kind
from steerlm.models.load import SteerModel, head_of, head_settings, start_model
from steerlm.parallel.local import local_part, write_rows, write_whole

_HEAD = "score.weight"


@dataclass(frozen=True)
class BlankModel:
    """A model whose weights are on the meta device, with what it takes to fill them.

    base      what the weights are read from
    spelled   of each added token the ids that spelled it
    """

    model: SteerModel
    base: str | Path
    spelled: Spellings

    @torch.no_grad()
    def fill(self, root: nn.Module, device: torch.device) -> None:
        """Read the weights into the (by now perhaps adapted and sharded) network inside `root`, on `device`.

        They are, bit for bit, those that `new_model` gives. So are the fresh head of an attribute model and an adapter
        that was put in, where torch's random numbers start from the same seed; this must be the same on all ranks.
        Raises `ModelError` where the files lack a weight, have one too many, or have one of another shape.
        """
        network = self.model.network
        allocate(root, device)
        targets = _targets(network)
        grown = _embeddings(network)
        with loading(self.base), _opened(self.base) as stored:
            self._require_same_names(targets, stored)
            for name, target in targets.items():
                if name not in stored:
                    continue
                self._require_shape(name, target, stored[name].get_shape(), may_grow=name in grown)
                _read(target, stored[name])
                if name in grown:
                    for token, pieces in self.spelled.items():
                        spelling = torch.cat([stored[name][piece : piece + 1] for piece in pieces])
                        row = spelling.float().mean(dim=0, keepdim=True)
                        write_rows(target, torch.tensor([token], device=device), row.to(device))
            if self.model.info.kind == "attribute-model" and _HEAD not in stored:
                _draw_head(network, targets[_HEAD])
        if has_adapter(network):
            start_adapter(network)

    def _require_same_names(self, targets: Mapping[str, Tensor], stored: Mapping[str, Any]) -> None:
        network = self.model.network
        judge = self.model.info.kind == "attribute-model"
        passed_over = [re.compile(pattern) for pattern in network._keys_to_ignore_on_load_unexpected or ()]
        missing = targets.keys() - stored.keys() - ({_HEAD} if judge else set())
        unexpected = {
            name
            for name in stored.keys() - targets.keys() - (network.all_tied_weights_keys or {}).keys()
            # The head of a language model is no part of a judge.
            if (not judge or name.startswith(f"{network.base_model_prefix}."))
            and not any(pattern.search(name) for pattern in passed_over)
        }
        faults = [
            f"{what} {', '.join(sorted(names)[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
            for what, names in (("it lacks", missing), ("it has unknown", unexpected))
            if names
        ]
        if faults:
            raise ModelError(
                f"{self.base}: these are not the weights of a {type(network).__name__}: {'; '.join(faults)}; "
                "save the model anew with its own save_pretrained"
            )

    def _require_shape(self, name: str, target: Tensor, found: list[int], may_grow: bool) -> None:
        """Embeddings may lack rows for the tokens that were just added, and for no others."""
        needed = list(target.shape)
        if may_grow and found[1:] == needed[1:] and found[0] <= needed[0]:
            unknown = set(range(found[0], needed[0])) - self.spelled.keys()
            unknown |= {piece for pieces in self.spelled.values() for piece in pieces if piece >= found[0]}
            if not unknown:
                return
            raise ModelError(f"{self.base}: {name} has no row for token {min(unknown)} of the tokenizer")
        if found != needed:
            raise ModelError(f"{self.base}: {name} has the shape {found}, where {needed} is needed")


def blank_model(
    kind: Kind,
    base: str | Path,
    schema: Schema,
    dialect: str | None = None,
    as_level_tokens: bool = True,
    system: str | None = None,
    marker_tokens: bool = True,
) -> BlankModel:
    """As `new_model`, but without weights. Only the configuration and the tokenizer are read."""
    model, spelled = start_model(_empty, kind, base, schema, dialect, as_level_tokens, system, marker_tokens)
    return BlankModel(model, base, spelled)


def _empty(kind: Kind, base: str | Path, schema: Schema) -> PreTrainedModel:
    name = resolve(base)
    with loading(base):
        # Buffers are made in full: they are small, and no file has them.
        with init_empty_weights(include_buffers=False):
            if kind == "policy":
                config = AutoConfig.from_pretrained(name)
                network = _from_config(AutoModelForCausalLM, config)
            else:
                config = AutoConfig.from_pretrained(name, **head_settings(schema))
                network = _from_config(AutoModelForSequenceClassification, config)
        if kind == "policy":
            with contextlib.suppress(OSError):  # not every model has one
                network.generation_config = GenerationConfig.from_pretrained(name)
    network.tie_weights()
    return network


def _from_config(kind: Any, config: Any) -> PreTrainedModel:
    return kind.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]


def allocate(root: nn.Module, device: torch.device) -> None:
    """Give all weights memory on `device`, without values; what was one weight stays one, and buffers that have values
    keep them.
    """
    buffers = {name: buffer.clone() for name, buffer in root.named_buffers() if buffer.device.type != "meta"}
    shared: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            shared.setdefault(id(parameter), []).append((module, name))
    root.to_empty(device=device)
    for (first, source), *others in shared.values():
        for module, name in others:
            setattr(module, name, getattr(first, source))
    for name, buffer in root.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])


def _targets(network: PreTrainedModel) -> dict[str, Tensor]:
    """What must come from the files, by its name there; of tied weights the one that the others follow."""
    tied = network.all_tied_weights_keys or {}
    named = ((plain_name(name), tensor) for name, tensor in network.state_dict().items())
    return {name: tensor for name, tensor in named if name is not None and name not in tied}


def _embeddings(network: PreTrainedModel) -> set[str]:
    """The names in the files of the matrices with a row for each token."""
    output = network.get_output_embeddings()
    layers = [network.get_input_embeddings(), *([] if output is None else [output])]
    return {f"{name}.weight" for name, module in network.named_modules() if any(module is layer for layer in layers)}


def _read(target: Tensor, source: Any) -> None:
    """Copy this process's share, of which rows beyond the end of `source` stay as they are."""
    local, where = local_part(target)
    if not target.ndim:
        local.copy_(source[...])
        return
    first, *others = where
    stop = min(first.stop, source.get_shape()[0])
    if local.numel() and stop > first.start:
        local[: stop - first.start].copy_(source[(slice(first.start, stop), *others)])


def _draw_head(network: PreTrainedModel, target: Tensor) -> None:
    """Start a head as transformers does: drawn whole (it is small), so that all ranks have parts of the same one."""
    head = head_of(network)
    fresh = nn.utils.skip_init(nn.Linear, head.in_features, head.out_features, bias=False)
    network._init_weights(fresh)
    write_whole(target, fresh.weight)


@contextlib.contextmanager
def _opened(base: str | Path) -> Iterator[dict[str, Any]]:
    """The stored tensors of a model by name, each of which reads from disk just what is asked of it."""
    name = resolve(base)
    with contextlib.ExitStack() as files:
        stored: dict[str, Any] = {}
        for path in _weight_files(name, base):
            file = files.enter_context(safe_open(path, framework="pt"))
            stored.update({key: file.get_slice(key) for key in file.keys()})  # noqa: SIM118
        yield stored


def _weight_files(name: str, base: str | Path) -> list[str]:
    single = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if single is not None:
        return [single]
    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        raise ModelError(f"{base}: no {SAFE_WEIGHTS_NAME} in it, in one file or several; save it as safetensors")
    files, _ = get_checkpoint_shard_files(name, index)
    return list(files)
