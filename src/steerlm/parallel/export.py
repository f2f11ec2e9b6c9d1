"""Saving a sharded model as an ordinary Hugging Face directory, without any process holding it whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from steerlm.files import writing
from steerlm.models.adapters import WEIGHTS, adapter_weights, has_adapter, save_adapter_config
from steerlm.models.base import quiet
from steerlm.models.load import SteerModel, begin_saving, end_saving
from steerlm.parallel.ranks import Ranks, first_cause

FILE_BYTES = 5_000_000_000


def save_sharded(model: SteerModel, directory: str | Path, ranks: Ranks, file_bytes: int = FILE_BYTES) -> SteerModel:
    """`SteerModel.save` by all ranks together, which must see the same file system.

    Every rank writes its shards; the main one then joins them, tensor by tensor, to files of about `file_bytes`.
    Returns the model with its fingerprint filled in. Raises `OSError` where the disk has no room for it.
    """
    if ranks.mesh is None:
        return model.save(directory)
    temporary = ranks.on_main(lambda: begin_saving(directory))
    try:
        adapted = has_adapter(model.network)
        if adapted:
            tensors = adapter_weights(model.network)
            _write(tensors, temporary, dict.fromkeys(tensors, 1))
        else:
            write_weights(model.network, temporary, file_bytes)

        def finish() -> str:
            with quiet(), writing(directory):
                if adapted:
                    _one_file(temporary, WEIGHTS)
                    save_adapter_config(model.network, temporary)
                else:
                    _write_configuration(model.network, temporary)
                return model.complete(temporary).info.fingerprint

        return replace(model, info=replace(model.info, fingerprint=ranks.on_main(finish)))
    finally:
        if ranks.is_main:
            end_saving(temporary)


def write_weights(network: PreTrainedModel, directory: Path, file_bytes: int) -> None:
    """Write the weights as safetensors in files of about `file_bytes`, with an index where there are several."""
    tied = network.all_tied_weights_keys or {}
    weights = {name: tensor for name, tensor in network.state_dict().items() if name not in tied}
    _write(weights, directory, _file_numbers(weights, file_bytes))


def _write(weights: dict[str, Tensor], directory: Path, numbers: dict[str, int]) -> None:
    writer = HuggingFaceStorageWriter(
        str(directory), fqn_to_index_mapping=numbers, save_distributed=True, enable_consolidation=True
    )
    try:
        save(weights, storage_writer=writer)
    except CheckpointException as error:  # on all ranks
        raise OSError(f"{directory.parent}: cannot write the model: {first_cause(error)}") from error


def _file_numbers(weights: dict[str, Tensor], file_bytes: int) -> dict[str, int]:
    """Which file, counted from 1, each tensor goes to: as many as fit, in their order."""
    numbers, number, filled = {}, 1, 0
    for name, tensor in weights.items():
        size = tensor.numel() * tensor.element_size()
        if filled and filled + size > file_bytes:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    return numbers


def _write_configuration(network: PreTrainedModel, directory: Path) -> None:
    """What `save_pretrained` writes beside the weights, and one file where one is enough."""
    if len(list(directory.glob("*.safetensors"))) == 1:
        _one_file(directory, SAFE_WEIGHTS_NAME)
    shutil.rmtree(directory / "sharded", ignore_errors=True)
    network.config.architectures = [type(network).__name__]
    network.config.dtype = str(network.dtype).removeprefix("torch.")
    network.config.save_pretrained(directory)
    if network.can_generate():
        network.generation_config.save_pretrained(directory)


def _one_file(directory: Path, name: str) -> None:
    """Give the only file of weights this name; it needs no index."""
    (file,) = directory.glob("*.safetensors")
    file.rename(directory / name)
    (directory / SAFE_WEIGHTS_INDEX_NAME).unlink()
    shutil.rmtree(directory / "sharded")
