"""The two trainings as functions of their settings: read the data, make the model, run the loop."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from steerlm import __version__
from steerlm.attributes import Schema
from steerlm.card import refresh_card
from steerlm.devices import pick_precision
from steerlm.errors import ConfigError, DataError, SteerLMError, TrainingError
from steerlm.files import sha256
from steerlm.memory import keep_freed_memory
from steerlm.models.adapters import Lora, add_lora, freeze_layers
from steerlm.models.base import annotators, description, identify, lasting_name, resolve, weights_digest
from steerlm.models.directory import FILE, Kind, ModelInfo
from steerlm.models.kernels import compile_blocks, require_liger, use_liger
from steerlm.models.load import SteerModel, load_model, new_model
from steerlm.parallel.load import blank_model
from steerlm.parallel.ranks import Ranks
from steerlm.parallel.shard import Root, shard
from steerlm.provenance import environment
from steerlm.training.attribute_model import AttributeTask
from steerlm.training.checkpoint import Checkpoints
from steerlm.training.config import AttributeSettings, PolicySettings, TrainSettings, kind_of
from steerlm.training.corpus import TrainingData, training_data
from steerlm.training.loop import train
from steerlm.training.output import CHECKPOINTS, is_finished, require_replaceable, sole_writer
from steerlm.training.policy import PolicyTask
from steerlm.training.stopping import stop_at_once
from steerlm.training.survey import Survey
from steerlm.training.task import Task

Resume = Literal["auto", "must", "never"]
"""Go on from a checkpoint where there is one, only where there is one, or start over."""

# Settings that say where and how often, or how to compute the same: a run resumes whatever they are.
_INCIDENTAL = {
    "out",
    "pack_tokens",
    "loss_chunk",
    "tensor_parallel",
    "checkpoint_every",
    "keep_checkpoints",
    "gradient_checkpointing",
    "compile",
    "kernels",
    "track",
    "device",
    "attention",
    "data",
    "validation",
}


def train_attribute_model(
    settings: AttributeSettings, resume: Resume = "auto", *, overwrite: bool = False
) -> SteerModel:
    """Train the attribute model and save it to `settings.out`; a finished one is loaded instead.

    A finished one of other settings or data is replaced with `overwrite` or when starting over, and otherwise refused
    with `ConfigError`. Under `torchrun` all processes call this together.
    """
    return _train("attribute-model", settings, resume, overwrite)


def train_policy(settings: PolicySettings, resume: Resume = "auto", *, overwrite: bool = False) -> SteerModel:
    """Train the policy and save it to `settings.out`; a finished one is loaded instead.

    A finished one of other settings or data is replaced with `overwrite` or when starting over, and otherwise refused
    with `ConfigError`. Under `torchrun` all processes call this together.
    """
    return _train("policy", settings, resume, overwrite)


def _train(kind: Kind, settings: AttributeSettings | PolicySettings, resume: Resume, overwrite: bool) -> SteerModel:
    settings.require_consistent()
    ranks = Ranks.start(settings.device, settings.tensor_parallel)
    keep_freed_memory()
    with contextlib.closing(ranks), contextlib.ExitStack() as opened:
        # The others may wait for the main process, where no handler of ours is called; they end as ever.
        if ranks.is_main:
            opened.enter_context(stop_at_once())
        require_possible(settings, ranks.device, ranks.world)
        whole = schema_to_learn(settings)
        data = opened.enter_context(training_data(settings, whole))
        require_same_data(data, ranks)
        schema = schema_of_labels(settings, whole, data.survey)
        # Ranks may see other copies of the base; the main one's word counts.
        key = ranks.on_main(lambda: run_key(settings, data, schema, ranks.device))
        ranks.on_main(lambda: opened.enter_context(sole_writer(settings.out)))
        checkpoints = Checkpoints(settings.out / CHECKPOINTS, key, settings.keep_checkpoints, ranks)
        if resume != "never" and ranks.on_main(lambda: is_finished(settings.out, key, kind)):
            # This run may have been killed just before it cleared them; another may have begun in its place.
            if not checkpoints.clear_own() and ranks.is_main:
                _say(
                    f"{settings.out} holds this run's finished model; its checkpoints are of a run with other settings "
                    "or data, and stay"
                )
            return _finished(settings.out, kind, ranks)
        ranks.on_main(lambda: require_replaceable(settings.out, overwrite or resume == "never"))
        if resume == "must":
            require_begun(settings.out, checkpoints.newest())
        if ranks.is_main and (settings.out / FILE).is_file():
            _say(f"the finished {_name_of(settings.out)} in {settings.out} is replaced when this training is done")
        if ranks.is_main and (missing := [name for name in whole.names if name not in schema]):
            note = f"no label of {', '.join(missing)} in the data; the {kind} will not know what is never labelled"
            _say(note)
        torch.manual_seed(settings.seed)
        model, root = make_model(kind, settings, schema, data.survey.commonest_system, ranks)
        task = make_task(model, settings)
        task.remember(data.survey)
        if resume == "never":
            checkpoints.clear()
        trained = train(task, root, settings, data, checkpoints, ranks)
        if ranks.is_main:
            refresh_card(settings.out, _say)
        return trained


def _name_of(out: Path) -> str:
    """Kind and fingerprint of the model in a directory; starting over may be to be rid of one that cannot be read."""
    with contextlib.suppress(SteerLMError):
        info = ModelInfo.load(out)
        return f"{info.kind} {info.fingerprint}"
    return "model"


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False)


def require_possible(settings: TrainSettings, device: torch.device, world: int = 1) -> None:
    """Raise `ConfigError` for what cannot be done on this device, or by so many processes, or to this base."""
    if lasting_name(settings.base) == str(settings.out.resolve()):
        raise ConfigError(f"out={settings.out} is the base model, which the trained one would replace; choose another")
    if settings.quantize == "4bit" and device.type != "cuda":
        raise ConfigError("quantize=4bit needs a CUDA device, and none is used here; leave quantize out")
    if settings.quantize == "4bit" and world > 1:
        raise ConfigError(
            "a base in 4 bits is held by one process, and cannot be spread over several; leave out quantize, or start "
            "without torchrun"
        )
    if settings.kernels == "liger":
        require_liger(device)


def require_same_data(data: TrainingData, ranks: Ranks) -> None:
    """Raise `ConfigError` on all ranks where one has read other data than the main one: steps would be made of both."""
    digests = ranks.gather_from_all(data.digest)
    others = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise ConfigError(
            f"the data that rank {', '.join(others)} reads under these paths are not those of rank 0; give all nodes "
            "the same files"
        )


def require_begun(out: Path, checkpoint: Path | None) -> None:
    """Raise `TrainingError` where there is no checkpoint, and there must be one."""
    if checkpoint is None:
        raise TrainingError(f"{out} holds no checkpoint to go on from; leave out --resume must")


def _finished(directory: Path, kind: Kind, ranks: Ranks) -> SteerModel:
    """The model that an earlier run made; where many processes ask, without its weights."""
    if ranks.mesh is None:
        return load_model(directory, kind)
    info = ModelInfo.load(directory, kind)
    blank = blank_model(kind, info.base.name if info.base else directory, info.schema, info.dialect)
    return replace(blank.model, info=info)


def schema_to_learn(settings: TrainSettings) -> Schema:
    """The attributes of the settings. What a policy is asked for by default is what the settings or their file of
    attributes say, else what the base was, where it is a policy of ours.
    """
    schema = settings.schema_of_attributes
    if not isinstance(settings, PolicySettings) or settings.attribute_schema is not None:
        return schema
    base = description(settings.base)
    known = list(base.schema) if base and base.kind == "policy" else []
    # One on another scale is refused once the base is loaded.
    inherited = {
        item.name: item.default
        for item in known
        if item.name in schema and schema[item.name].fault(item.default) is None
    }
    return schema.with_defaults({**inherited, **settings.defaults})


def schema_of_labels(settings: TrainSettings, schema: Schema, survey: Survey) -> Schema:
    """The attributes that the data's labels carry; the others, of which a model would learn nothing, are left out.

    Raises `DataError` where the settings weigh an attribute that no response is rated on.
    """
    seen = set(survey.ratings)
    if isinstance(settings, PolicySettings):
        seen = set(survey.predictions) if settings.labels == "predicted" else seen | set(survey.predictions)
    if not seen:
        return schema  # the task says what the data lack
    if isinstance(settings, AttributeSettings):
        for name in settings.loss_weights:
            if schema[name].name not in seen:
                raise DataError(f"loss_weights names {name}, which no response is rated on; take it out")
    return schema.only(seen)


def make_task(model: SteerModel, settings: TrainSettings) -> Task:
    """What the settings train."""
    if isinstance(settings, PolicySettings):
        return PolicyTask(model, settings)
    assert isinstance(settings, AttributeSettings)
    return AttributeTask(model, settings)


def blank_task(settings: TrainSettings, schema: Schema, survey: Survey) -> Task:
    """What the settings train, on a model without weights; it has yet to remember the survey."""
    known = schema_of_labels(settings, schema, survey)
    return make_task(blank_model(*_start(kind_of(settings), settings, known, "")).model, settings)


def _start(
    kind: Kind, settings: TrainSettings, schema: Schema, system: str | None
) -> tuple[Kind, str, Schema, str | None, bool, str | None, bool]:
    """What a new model is made from: the first arguments of `new_model` and of `blank_model`."""
    as_tokens = isinstance(settings, PolicySettings) and settings.level_tokens
    return kind, settings.base, schema, settings.dialect, as_tokens, system, settings.marker_tokens


def make_model(
    kind: Kind, settings: TrainSettings, schema: Schema, system: str, ranks: Ranks
) -> tuple[SteerModel, Root]:
    """The model to train, on its device or sharded over the ranks. `system` is used where neither the settings name one
    nor the base, if it is a model of ours.
    """
    base = description(settings.base)
    chosen = system if settings.system is None and base is None else settings.system
    what = _start(kind, settings, schema, chosen)
    dtype = pick_precision(settings.precision, ranks.device)
    if ranks.mesh is None:
        model = new_model(*what, ranks.device if settings.quantize == "4bit" else None)
        choose_trained(model, settings)
        model.network.to(ranks.device)  # type: ignore[arg-type]
        root = Root(model.network)
        if settings.kernels == "liger":
            use_liger(model.network)
        shard(model.network, root, ranks, dtype, settings.gradient_checkpointing)
    else:
        blank = blank_model(*what)
        model, root = blank.model, Root(blank.model.network)
        choose_trained(model, settings)
        if settings.kernels == "liger":
            use_liger(model.network)
        shard(model.network, root, ranks, dtype, settings.gradient_checkpointing)
        blank.fill(root, ranks.device)
    if settings.compile:
        compile_blocks(model.network)
    provenance: dict[str, Any] = {
        **model.info.provenance,
        "base": settings.base,
        "annotated_by": annotators(settings.base),
        **environment(),
    }
    if ranks.world > 1:
        provenance["ranks"] = {"data": ranks.data_world, "tensor": ranks.tensor_world}
    known = identify(settings.base) if settings.lora_rank is not None else None
    return replace(model, info=replace(model.info, base=known, provenance=provenance)), root


def choose_trained(model: SteerModel, settings: TrainSettings) -> None:
    """Leave to be trained what the settings say, in place: an adapter with what goes with it, or all but the frozen
    layers. The weights need not be there yet.
    """
    if lora := adapter_of(settings):
        base = resolve(lasting_name(settings.base))
        add_lora(model.network, lora, base, model.new_tokens, settings.frozen_layers)
    elif settings.frozen_layers is not None:
        freeze_layers(model.network, settings.frozen_layers, model.new_tokens)


def adapter_of(settings: TrainSettings) -> Lora | None:
    """The adapter that the settings ask for."""
    if settings.lora_rank is None:
        return None
    return Lora(
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=tuple(settings.lora_targets),
        variant=settings.lora_variant,
    )


def run_key(settings: TrainSettings, data: TrainingData, schema: Schema, device: torch.device) -> str:
    """A digest of all that determines the result of a run: settings, data, attributes, base model, version.

    An automatic precision counts as what it is on this device: a run that goes on elsewhere keeps its own.
    """
    kept = settings.model_dump(mode="json", exclude=_INCIDENTAL)
    kept["precision"] = str(pick_precision(settings.precision, device))
    parts = [type(settings).__name__, kept, data.digest, schema.to_list(), _base_state(settings.base), __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _base_state(base: str) -> list[Any]:
    """What tells one state of a base model on this disk from another, wherever it lies and whenever it was written."""
    folder = Path(resolve(base))
    if not folder.is_dir():
        return []
    return [weights_digest(folder), *([file.name, sha256(file)] for file in sorted(folder.glob("*.json")))]
