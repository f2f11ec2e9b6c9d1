"""The two trainings as functions of their settings: load the data, make the model, run the loop."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.files import load_conversations, sha256
from steerlm.models.directory import Kind
from steerlm.models.load import SteerModel, load_model, new_model
from steerlm.provenance import environment
from steerlm.sources.split import split_conversations
from steerlm.training.attribute_model import AttributeTask
from steerlm.training.config import AttributeSettings, PolicySettings, TrainSettings
from steerlm.training.loop import TrainingData, is_finished, run_key, train
from steerlm.training.policy import PolicyTask, labels_of
from steerlm.training.task import Task


def train_attribute_model(settings: AttributeSettings, fresh: bool = False) -> SteerModel:
    """Train the attribute model and save it to `settings.out`; a finished one is loaded instead."""
    return _train("attribute-model", settings, fresh)


def train_policy(settings: PolicySettings, fresh: bool = False) -> SteerModel:
    """Train the policy and save it to `settings.out`; a finished one is loaded instead."""
    return _train("policy", settings, fresh)


def _train(kind: Kind, settings: AttributeSettings | PolicySettings, fresh: bool) -> SteerModel:
    settings.require_consistent()
    schema = settings.schema_of_attributes
    if isinstance(settings, PolicySettings):
        schema = schema.with_defaults(settings.defaults)
    data = load_training_data(settings, schema)
    whole, schema = schema, schema_of_labels(settings, schema, data.train)
    key = run_key(settings, data, schema)
    if not fresh and is_finished(settings, key, kind):
        return load_model(settings.out, kind)
    if missing := [name for name in whole.names if name not in schema]:
        note = f"no label of {', '.join(missing)} in the data; the {kind} will not know what is never labelled"
        Console(stderr=True, soft_wrap=True).print(note, highlight=False)

    def make_task(device: torch.device) -> Task:
        as_tokens = isinstance(settings, PolicySettings) and settings.level_tokens
        system = commonest_system(data.train) if settings.system is None else settings.system
        model = new_model(kind, settings.base, schema, settings.dialect, as_tokens, system, settings.marker_tokens)
        model.network.to(device)  # type: ignore[arg-type]
        model.info.provenance.update(base=settings.base, **environment())
        task: Task = (
            PolicyTask(model, settings) if isinstance(settings, PolicySettings) else AttributeTask(model, settings)
        )
        task.remember(data.train)
        return task

    return train(make_task, settings, data, key, fresh)


def schema_of_labels(settings: TrainSettings, schema: Schema, conversations: Sequence[Conversation]) -> Schema:
    """The attributes that the data's labels carry; the others, of which a model would learn nothing, are left out.

    Raises `DataError` where the settings weigh an attribute that no response is rated on.
    """
    responses = (c.messages[index] for c in conversations for index in c.responses)
    seen = {
        name
        for message in responses
        for name in (labels_of(message, settings.labels) if isinstance(settings, PolicySettings) else message.ratings)
    }
    if not seen:
        return schema  # the task says what the data lack
    if isinstance(settings, AttributeSettings):
        for name in settings.loss_weights:
            if schema[name].name not in seen:
                raise DataError(f"loss_weights names {name}, which no response is rated on; take it out")
    return schema.only(seen)


def commonest_system(conversations: Sequence[Conversation]) -> str:
    """The system text that most conversations have; of equally common ones the first."""
    return Counter(conversation.system for conversation in conversations).most_common(1)[0][0]


def load_training_data(settings: TrainSettings, schema: Schema) -> TrainingData:
    """Read the files of the settings and hold out a share where no validation files are named."""
    if not settings.data:
        raise DataError("no data to train on; name conversation files with --data")
    conversations = _load(settings.data, schema)
    held_out: Sequence[Conversation]
    if settings.validation:
        held_out = _load(settings.validation, schema)
        both = {c.id for c in conversations} & {c.id for c in held_out}
        if both:
            raise DataError(f"{len(both)} conversations are both trained on and held out, such as {min(both)!r}")
    else:
        conversations, held_out = split_conversations(conversations, settings.validation_fraction, settings.seed)
        if not conversations:
            raise DataError("holding out left nothing to train on; add data or lower validation_fraction")
    digest = hashlib.sha256()
    for path in [*settings.data, Path("held out"), *settings.validation]:
        digest.update(sha256(path).encode() if path.is_file() else b"|")
    return TrainingData(conversations, held_out, digest.hexdigest())


def _load(paths: Sequence[Path], schema: Schema) -> list[Conversation]:
    conversations: list[Conversation] = []
    where: dict[str, Path] = {}
    for path in paths:
        for conversation in load_conversations(path, schema):
            if conversation.id in where:
                raise DataError(
                    f"{path}: conversation {conversation.id!r} is in {where[conversation.id]} too; ids must be unique"
                )
            where[conversation.id] = path
            conversations.append(conversation)
    return conversations
