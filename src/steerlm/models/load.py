"""Creating, saving and loading the two trained models with all that belongs to them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from steerlm.attributes import Schema
from steerlm.dialects import DIALECTS, Renderer, detect_dialect, level_tokens
from steerlm.errors import ModelError
from steerlm.files import writing
from steerlm.losses import Rows
from steerlm.models.adapters import (
    four_bit,
    has_adapter,
    merge_adapter,
    own_copy,
    save_adapter,
    without_new_rows,
)
from steerlm.models.base import (
    Spellings,
    description,
    load_causal_lm,
    load_tokenizer,
    loading,
    make_room,
    name_tokens,
    quiet,
    resolve,
    start_rows,
    weights_digest,
)
from steerlm.models.directory import ADAPTER_CONFIG, Base, Kind, ModelInfo, weights_fingerprint
from steerlm.models.prompting import Prompting, load_prompting

# What an earlier save may have left in a directory, of which a new one may have other files.
_WEIGHTS = (
    *("model*.safetensors", "model*.safetensors.index.json", "adapter_model*.safetensors"),
    *(ADAPTER_CONFIG, "config.json", "generation_config.json"),
)
TEMPORARY = ".saving-"
"""How the name of a directory begins in which a model directory keeps what is not all written yet."""


@dataclass(frozen=True)
class SteerModel(Prompting):
    """A network with its renderer and its description; what training yields and every later step loads."""

    network: PreTrainedModel
    new_tokens: tuple[int, ...] = ()
    """Ids of tokens that were just added and know nothing yet."""

    @property
    def device(self) -> torch.device:
        return self.network.device

    def save(self, directory: str | Path) -> SteerModel:
        """Write the model directory, whole or not at all. Returns the model with its fingerprint filled in.

        Raises `OSError` where the disk has no room for it.
        """
        temporary = begin_saving(directory)
        try:
            with quiet(), writing(directory):
                if has_adapter(self.network):
                    save_adapter(self.network, temporary)
                else:
                    self.network.save_pretrained(temporary)
                return self.complete(temporary)
        finally:
            end_saving(temporary)

    def complete(self, temporary: Path) -> SteerModel:
        """Add to the weights and the configuration in `temporary` (see `begin_saving`) all else, and move it to its
        model directory.
        """
        base = self.info.base if has_adapter(self.network) else None
        tokenizer = self.renderer.tokenizer
        tokenizer.chat_template = self.renderer.chat_template(
            "policy" if self.info.kind == "policy" else "score", self.info.system
        )
        tokenizer.save_pretrained(temporary)
        fingerprint = weights_fingerprint(temporary, self.schema, self.info.dialect, base)
        info = replace(self.info, fingerprint=fingerprint, base=base)
        info.save(temporary)
        directory = temporary.parent
        # steerlm.json goes last: a directory that has it is complete.
        (directory / "steerlm.json").unlink(missing_ok=True)
        for pattern in _WEIGHTS:
            for old in directory.glob(pattern):
                old.unlink()
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == "steerlm.json"):
            file.chmod(0o644)
            shutil.move(file, directory / file.name)
        return replace(self, info=info)


def begin_saving(directory: str | Path) -> Path:
    """A place to write a model to before it goes to its directory, on the same disk: inside it."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=directory, prefix=TEMPORARY))


def end_saving(temporary: Path) -> None:
    """Remove what `begin_saving` made: all of it where nothing was saved."""
    shutil.rmtree(temporary, ignore_errors=True)
    with contextlib.suppress(OSError):
        temporary.parent.rmdir()  # unless it holds something


def new_model(
    kind: Kind,
    base: str | Path,
    schema: Schema,
    dialect: str | None = None,
    as_level_tokens: bool = True,
    system: str | None = None,
    marker_tokens: bool = True,
    quantize_on: torch.device | None = None,
) -> SteerModel:
    """A model to be trained, made from a base model: with a fresh regression head for an attribute model.

    Markers that the base model's tokenizer does not know are added to it as special tokens (unless `marker_tokens`
    is off: then they are spelled out); so are, for a policy with `as_level_tokens`, the words of label lines
    (`quality:4`). With `quantize_on` the layers of the base are held in 4 bits on that device, for an adapter alone
    to be trained. Where the base is a model of ours, its dialect and its system text are the new one's unless others
    are given.

    Raises `ModelError` where the base cannot be loaded, or the schema contradicts what it was trained on.
    """
    make_network = partial(_from_base, **(four_bit(quantize_on) if quantize_on else {}))
    model, spelled = start_model(make_network, kind, base, schema, dialect, as_level_tokens, system, marker_tokens)
    start_rows(model.network, spelled)
    return model


def start_model(
    make_network: Callable[[Kind, str | Path, Schema], PreTrainedModel],
    kind: Kind,
    base: str | Path,
    schema: Schema,
    dialect: str | None = None,
    as_level_tokens: bool = True,
    system: str | None = None,
    marker_tokens: bool = True,
) -> tuple[SteerModel, Spellings]:
    """All of `new_model` but the embeddings of added tokens; their rows are there, without a value.

    Returns with the model how its added tokens were spelled before.
    """
    tokenizer = load_tokenizer(base)
    if before := description(base):
        _require_same_labels(before, kind, schema, base)
        dialect = dialect or before.dialect
        system = before.system if system is None else system
    dialect = dialect or detect_dialect(tokenizer)
    if dialect not in DIALECTS:
        raise ModelError(f"unknown dialect {dialect!r}; choose one of {', '.join(DIALECTS)}")
    network = make_network(kind, base, schema)
    new = list(DIALECTS[dialect].markers) if marker_tokens else []
    if kind == "policy" and as_level_tokens:
        new += level_tokens(schema)
    spelled = name_tokens(network, tokenizer, new)
    renderer = Renderer(DIALECTS[dialect], tokenizer, schema)
    _set_special_tokens(network, renderer, kind)
    info = ModelInfo(kind=kind, schema=schema, dialect=dialect, system=system or "")
    return SteerModel(info, renderer, network, tuple(spelled)), spelled


def _require_same_labels(before: ModelInfo, kind: Kind, schema: Schema, base: str | Path) -> None:
    """Raise `ModelError` where labels or score columns that the base has learnt would mean something else."""
    for item in before.schema:
        if item.name in schema and schema[item.name].levels != item.levels:
            new = schema[item.name]
            raise ModelError(
                f"{base} was trained with {item.name} on {item.low}..{item.high}, and the schema now declares it on "
                f"{new.low}..{new.high}; keep its scale, or give the attribute another name"
            )
    if kind == before.kind == "attribute-model" and before.schema.names != schema.names:
        raise ModelError(
            f"{base} scores {', '.join(before.schema.names)}, and its head cannot be that of a model of "
            f"{', '.join(schema.names)}; train on data with the same attributes, or start from another base"
        )


def load_model(directory: str | Path, kind: Kind, device: str | torch.device = "cpu") -> SteerModel:
    """Load a trained model; an adapter is merged into its base, so that what is loaded is always a plain network.

    Raises `ModelError` where the directory is not one of that kind, or the base of an adapter is missing or another.
    """
    prompting = load_prompting(directory, kind)
    info, renderer = prompting.info, prompting.renderer
    if info.base is not None:
        network = _merged(Path(directory), info, info.base, renderer)
    elif kind == "policy":
        network = load_causal_lm(directory)
    else:
        with loading(directory):
            network = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    network.to(device)  # type: ignore[arg-type]
    network.train(mode=False)
    return SteerModel(info, renderer, network)


def _merged(directory: Path, info: ModelInfo, base: Base, renderer: Renderer) -> PreTrainedModel:
    try:
        network = _from_base(info.kind, base.name, info.schema)
    except ModelError as error:
        raise ModelError(
            f"{directory} is an adapter, and its base model cannot be loaded: {error}; put the base back, or write its "
            f"new place under base.name in {directory / 'steerlm.json'}"
        ) from error
    if weights_digest(base.name) != base.digest:
        raise ModelError(
            f"{directory} is an adapter of another base model than what is now at {base.name}; put the base back that "
            f"it was trained on, or write its place under base.name in {directory / 'steerlm.json'}"
        )
    make_room(network, renderer.tokenizer)
    with loading(directory):
        network = merge_adapter(network, directory)
    _set_special_tokens(network, renderer, info.kind)
    return network


def _from_base(kind: Kind, base: str | Path, schema: Schema, **how: Any) -> PreTrainedModel:
    if (Path(base) / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{base} is an adapter, no base model; merge it first: steerlm export hf {base} --out DIR")
    return load_causal_lm(base, **how) if kind == "policy" else _with_head(base, schema, **how)


def head_of(network: PreTrainedModel) -> nn.Linear:
    """The regression head of an attribute model: [attributes, hidden], no bias."""
    head = own_copy(getattr(network, "score", None))
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{type(network).__name__} has no linear score head")
    return head


def hidden_states(network: PreTrainedModel, **inputs: Any) -> Tensor:
    """The last hidden states [1, T, D] of the backbone, below the head."""
    backbone = getattr(network, network.base_model_prefix)
    return backbone(use_cache=False, **inputs).last_hidden_state  # type: ignore[no-any-return]


def plain_head(network: PreTrainedModel) -> tuple[Tensor, Rows | None] | None:
    """The weight [V, D] of a language model whose logits are the hidden states times it, and no more; else None.

    With it come the rows of added tokens, where an adapter trains them apart from it.
    """
    head, rows = without_new_rows(network.get_output_embeddings())
    config = network.config.get_text_config()
    # What the models that transformers knows do to logits.
    changes = [getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")]
    has_bias = getattr(head, "bias", None) is not None
    if not isinstance(head, nn.Linear) or has_bias or any(change not in (None, 1) for change in changes):
        return None
    return head.weight, rows


def _with_head(base: str | Path, schema: Schema, **how: Any) -> PreTrainedModel:
    with loading(base):
        network: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            resolve(base), dtype=torch.float32, **head_settings(schema), **how
        )
    return network


def head_settings(schema: Schema) -> dict[str, Any]:
    """What the configuration of an attribute model says of its head."""
    return {
        "num_labels": len(schema),
        "id2label": dict(enumerate(schema.names)),
        "label2id": {name: index for index, name in enumerate(schema.names)},
        "problem_type": "regression",
    }


def _set_special_tokens(network: PreTrainedModel, renderer: Renderer, kind: Kind) -> None:
    """Let bare transformers stop at the end signal, and never take the score position for padding."""
    tokenizer: PreTrainedTokenizerBase = renderer.tokenizer
    if kind == "policy":
        network.generation_config.eos_token_id = list(renderer.stop_ids)
        return
    # AutoModelForSequenceClassification reads its scores at the last token that is not padding.
    reserved = set(tokenizer(renderer.dialect.score, add_special_tokens=False)["input_ids"])
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in reserved:
        special = [token for token in tokenizer.added_tokens_decoder if token not in reserved]
        tokenizer.pad_token = str(tokenizer.added_tokens_decoder[special[0]]) if special else tokenizer.unk_token
    network.config.pad_token_id = tokenizer.pad_token_id
