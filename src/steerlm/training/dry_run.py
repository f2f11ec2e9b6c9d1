"""What a training would do, found out without its model's weights: its packs, tokens and steps, and one example."""

from __future__ import annotations

from dataclasses import dataclass

from steerlm.attention import default_form, use_plain_attention, use_tree_attention
from steerlm.attributes import Schema
from steerlm.devices import pick_device, pick_precision
from steerlm.errors import DataError
from steerlm.models.directory import FILE
from steerlm.models.load import SteerModel
from steerlm.packing import Pack, Report
from steerlm.parallel.balance import all_packs
from steerlm.parallel.ranks import Ranks, require_divisor
from steerlm.planning.footprint import Footprint, footprint
from steerlm.tokens import TokenTree
from steerlm.training.checkpoint import Checkpoints
from steerlm.training.config import PolicySettings, TrainSettings, kind_of
from steerlm.training.corpus import TrainingData, training_data
from steerlm.training.output import CHECKPOINTS, is_finished, require_replaceable
from steerlm.training.policy import weights_of_own
from steerlm.training.run import (
    Resume,
    blank_task,
    choose_trained,
    require_begun,
    require_possible,
    run_key,
    schema_of_labels,
    schema_to_learn,
)
from steerlm.training.steps import require_positions, steps_of
from steerlm.training.task import Task
from steerlm.training.trackers import require_dashboards


@dataclass(frozen=True)
class DryRun:
    """One pass over the data, counted.

    report     what fitting does to the conversations of one epoch
    steps      optimiser steps of the whole training
    exact      whether these are counted, or reckoned from those of the first pass, as every epoch is cut anew
    packs      forward passes of one epoch, and of their `pack_tokens` the share that is filled
    trained    tokens (policy) or responses (attribute model) of one epoch that the loss falls on
    memory     what each process takes for the largest pack
    example    the first conversation as it is trained on
    """

    model: SteerModel
    conversations: int
    held_out: int
    report: Report
    steps: int
    exact: bool
    packs: int
    fill: float
    trained: int
    largest_pack: int
    memory: Footprint
    example: TokenTree


def dry_run(settings: TrainSettings, resume: Resume = "auto", world: int = 1) -> DryRun:
    """Read and render the data of one epoch, for a training by `world` processes. Raises what the training itself would
    raise, before its first step, for bad data and settings, for a model that is in its place and for checkpoints; but
    their digests are left unread.
    """
    settings.require_consistent()
    require_possible(settings, pick_device(settings.device), world)
    if world > 1:  # one process splits nothing
        require_divisor(settings.tensor_parallel, world)
    require_dashboards(settings.track)
    schema = schema_to_learn(settings)
    with training_data(settings, schema) as data:
        _require_place(settings, data, schema, resume)
        task = blank_task(settings, schema, data.survey)
        # Each raises where it does not fit the base model.
        choose_trained(task.model, settings)
        use_tree_attention(task.model.network, "segments", settings.context)
        use_plain_attention(task.model.network)
        require_positions(task.model.network, settings)
        task.remember(data.survey)
        _require_figures(task, data)
        return _counted(task, settings, data, world)


def _require_place(settings: TrainSettings, data: TrainingData, schema: Schema, resume: Resume) -> None:
    """Raise what the training would for a model that is in its place, and for checkpoints that it cannot go on from."""
    place, key = settings.out / CHECKPOINTS, ""
    if resume != "never" and (place.is_dir() or (settings.out / FILE).is_file()):  # the key costs a reading of the base
        known = schema_of_labels(settings, schema, data.survey)
        key = run_key(settings, data, known, pick_device(settings.device))
        if is_finished(settings.out, key, kind_of(settings)):
            return
    require_replaceable(settings.out, overwrite=resume == "never")
    if resume != "never":
        found = Checkpoints(place, key, settings.keep_checkpoints, Ranks.alone(settings.device)).peek()
        if resume == "must":
            require_begun(settings.out, found)


def _require_figures(task: Task, data: TrainingData) -> None:
    """Raise what validation would raise where nothing that is held out can be measured."""
    if data.held_out and not any(task.held_out_tree(conversation).active for conversation in data.held_out):
        task.figures([])


def _counted(task: Task, settings: TrainSettings, data: TrainingData, world: int) -> DryRun:
    if world == 1:  # which splits no matrix
        settings = settings.model_copy(update={"tensor_parallel": 1})
    report = Report()
    steps = packs = trained = 0
    largest: Pack | None = None
    part = min(1.0, settings.epochs)
    for step in steps_of(task, settings, data, epochs=part):
        steps += 1
        for _, found in step.items:
            report += found
        trees = [tree for fitted, _ in step.items for tree in fitted]
        for item in all_packs(trees, settings.pack_tokens, world // settings.tensor_parallel):
            packs += 1
            own = weights_of_own(item) > 0
            trained += int(own.sum()) if isinstance(settings, PolicySettings) else len(item.responses)
            largest = item if largest is None or item.size > largest.size else largest
    if largest is None:
        raise DataError("no response of the data can be trained on: none has labels or ratings, or all are too long")
    whole = round(steps * settings.epochs / part)
    total = whole if settings.max_steps is None else min(whole, settings.max_steps)
    # Steps of so many conversations each are as many in each epoch.
    alike = settings.batch_conversations is not None and float(settings.epochs).is_integer()
    return DryRun(
        model=task.model,
        conversations=len(data.train),
        held_out=len(data.held_out),
        report=report,
        steps=total,
        exact=total <= steps or alike,
        packs=packs,
        fill=report.tokens / (packs * settings.pack_tokens),
        trained=trained,
        largest_pack=largest.size,
        memory=_memory(task, settings, largest, world),
        example=task.tree(data.train[0], 0),
    )


def _memory(task: Task, settings: TrainSettings, largest: Pack, world: int) -> Footprint:
    device = pick_device(settings.device)
    form = default_form(device) if settings.attention == "auto" else settings.attention
    dtype = pick_precision(settings.precision, device)
    config = task.model.network.config
    return footprint(config, settings, largest, world, dtype, "fused" if form == "flex" else form)
