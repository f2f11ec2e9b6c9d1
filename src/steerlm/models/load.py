"""Creating, saving and loading the two trained models with all that belongs to them."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from steerlm.attributes import Schema
from steerlm.dialects import DIALECTS, Renderer, detect_dialect, level_tokens
from steerlm.errors import ModelError
from steerlm.models.base import add_tokens, load_causal_lm, load_tokenizer, loading, quiet, resolve
from steerlm.models.directory import Kind, ModelInfo, weights_fingerprint

# Where transformers looks for weights, in one file or in several; other sets beside a new one would be read, or hashed.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")


@dataclass(frozen=True)
class SteerModel:
    """A network with its renderer and its description; what training yields and every later step loads."""

    network: PreTrainedModel
    renderer: Renderer
    info: ModelInfo
    new_tokens: tuple[int, ...] = ()
    """Ids of tokens that were just added and know nothing yet."""

    @property
    def schema(self) -> Schema:
        return self.info.schema

    @property
    def device(self) -> torch.device:
        return self.network.device

    def save(self, directory: str | Path) -> SteerModel:
        """Write the model directory, whole or not at all. Returns the model with its fingerprint filled in."""
        directory = Path(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as name, quiet():
            temporary = Path(name)
            self.network.save_pretrained(temporary)
            tokenizer = self.renderer.tokenizer
            tokenizer.chat_template = self.renderer.chat_template(
                "policy" if self.info.kind == "policy" else "score", self.info.system
            )
            tokenizer.save_pretrained(temporary)
            fingerprint = weights_fingerprint(temporary, self.schema, self.info.dialect)
            info = replace(self.info, fingerprint=fingerprint)
            info.save(temporary)
            directory.mkdir(exist_ok=True)
            # steerlm.json goes first and comes last: a directory that has it is complete, and holds nothing older.
            (directory / "steerlm.json").unlink(missing_ok=True)
            for pattern in _WEIGHTS:
                for stale in directory.glob(pattern):
                    stale.unlink()
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == "steerlm.json"):
                file.chmod(0o644)
                shutil.move(file, directory / file.name)
        return replace(self, info=info)


def new_model(
    kind: Kind,
    base: str | Path,
    schema: Schema,
    dialect: str | None = None,
    as_level_tokens: bool = True,
    system: str = "",
    marker_tokens: bool = True,
) -> SteerModel:
    """A model to be trained, made from a base model: with a fresh regression head for an attribute model.

    Markers that the base model's tokenizer does not know are added to it as special tokens (unless `marker_tokens`
    is off: then they are spelled out); so are, for a policy with `as_level_tokens`, the words of label lines
    (`quality:4`).
    """
    tokenizer = load_tokenizer(base)
    dialect = dialect or detect_dialect(tokenizer)
    if dialect not in DIALECTS:
        raise ModelError(f"unknown dialect {dialect!r}; choose one of {', '.join(DIALECTS)}")
    network = load_causal_lm(base) if kind == "policy" else _with_head(base, schema)
    new = list(DIALECTS[dialect].markers) if marker_tokens else []
    if kind == "policy" and as_level_tokens:
        new += level_tokens(schema)
    added = add_tokens(network, tokenizer, new)
    renderer = Renderer(DIALECTS[dialect], tokenizer, schema)
    _set_special_tokens(network, renderer, kind)
    info = ModelInfo(kind=kind, schema=schema, dialect=dialect, system=system)
    return SteerModel(network, renderer, info, added)


def load_model(directory: str | Path, kind: Kind, device: str | torch.device = "cpu") -> SteerModel:
    """Load a trained model. Raises `ModelError` where the directory is not one of that kind."""
    info = ModelInfo.load(directory, kind)
    tokenizer = load_tokenizer(directory)
    if kind == "policy":
        network = load_causal_lm(directory)
    else:
        with loading(directory):
            network = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    network.to(device)  # type: ignore[arg-type]
    network.train(mode=False)
    return SteerModel(network, Renderer(DIALECTS[info.dialect], tokenizer, info.schema), info)


def head_of(network: PreTrainedModel) -> nn.Linear:
    """The regression head of an attribute model: [attributes, hidden], no bias."""
    head = getattr(network, "score", None)
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{type(network).__name__} has no linear score head")
    return head


def hidden_states(network: PreTrainedModel, **inputs: Any) -> Tensor:
    """The last hidden states [1, T, D] of the backbone of an attribute model."""
    backbone = getattr(network, network.base_model_prefix)
    return backbone(use_cache=False, **inputs).last_hidden_state  # type: ignore[no-any-return]


def _with_head(base: str | Path, schema: Schema) -> PreTrainedModel:
    with loading(base):
        network: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            resolve(base),
            num_labels=len(schema),
            id2label=dict(enumerate(schema.names)),
            label2id={name: index for index, name in enumerate(schema.names)},
            problem_type="regression",
            dtype=torch.float32,
        )
    return network


def _set_special_tokens(network: PreTrainedModel, renderer: Renderer, kind: Kind) -> None:
    """Let bare transformers stop at the end signal, and never take the score position for padding."""
    tokenizer: PreTrainedTokenizerBase = renderer.tokenizer
    end = renderer.end_ids
    if kind == "policy":
        stops = [*end, tokenizer.eos_token_id] if len(end) == 1 else [tokenizer.eos_token_id]
        network.generation_config.eos_token_id = list(dict.fromkeys(stop for stop in stops if stop is not None))
        return
    # AutoModelForSequenceClassification reads its scores at the last token that is not padding.
    reserved = set(tokenizer(renderer.dialect.score, add_special_tokens=False)["input_ids"])
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in reserved:
        special = [token for token in tokenizer.added_tokens_decoder if token not in reserved]
        tokenizer.pad_token = str(tokenizer.added_tokens_decoder[special[0]]) if special else tokenizer.unk_token
    network.config.pad_token_id = tokenizer.pad_token_id
