"""What an engineer would otherwise train with: TRL's `SFTTrainer` and transformers' `Trainer`, on flattened threads.

Both take the same weights, tokens, optimiser and learning rate as ours, and sort their batches by length, which is
their best setting on a CPU. Shapes: B sequences of a batch, A attributes.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.measure import PeakWhereComputed, StepClock, resident_mb
from benchmarks.training.data import IGNORED, read_sequences
from benchmarks.training.options import Contender, Options, Prepared
from benchmarks.training.ours import BETAS, CLIP, WEIGHT_DECAY
from benchmarks.training.results import Run
from steerlm.errors import ConfigError
from steerlm.models.base import load_causal_lm, load_tokenizer, loading


def train(options: Options, prepared: Prepared, contender: Contender, folder: Path) -> Run:
    """Train for one epoch, measured."""
    resident = resident_mb()
    began = time.perf_counter()
    with PeakWhereComputed() as memory, StepClock() as clock:
        trainer = make_trainer(options, prepared, contender, folder)
        counted = _Counted(trainer.data_collator)
        trainer.data_collator = counted
        trainer.remove_callback(PrinterCallback)
        outcome = trainer.train()
    return Run(
        seconds=time.perf_counter() - began,
        epoch_seconds=clock.epoch_seconds,
        first_step_seconds=clock.first_step_seconds,
        steps=len(clock.ends),
        passes=counted.batches,
        tokens=counted.tokens,
        computed_tokens=counted.computed_tokens,
        loss=outcome.training_loss,
        peak_mb=memory.peak_mb,
        resident_before_mb=resident,
    )


def require(contenders: Sequence[Contender]) -> None:
    """Raise `ConfigError` where a contender is not installed."""
    if {"trl", "trl-packed"} & set(contenders) and not importlib.util.find_spec("trl"):
        raise ConfigError(
            "TRL is not installed; install it with `pip install --constraint constraints.txt --editable '.[bench]'`, "
            "or leave it out with --contenders"
        )


def make_trainer(
    options: Options,
    prepared: Prepared,
    contender: Contender,
    folder: Path,
    conversations: Sequence[str] | None = None,
) -> Trainer:
    """The trainer of a contender on the prepared sequences, of all conversations or of some."""
    rows = read_sequences(prepared.rows, conversations)
    make = _attribute_trainer if contender == "transformers" else _sft_trainer
    return make(options, prepared, rows, contender, folder)


def summed_loss(trainer: Trainer) -> float:
    """The loss of the trainer's own computation, summed over all that it trains, without any update."""
    total = 0.0
    network: Any = trainer.model
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            batch = trainer._prepare_inputs(batch)
            loss: Any = trainer.compute_loss(network, batch, num_items_in_batch=torch.tensor(1))
            total += loss.item()
    return total


def _sft_trainer(
    options: Options, prepared: Prepared, rows: list[dict[str, Any]], contender: Contender, folder: Path
) -> Trainer:
    from datasets import Dataset, disable_progress_bars
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    disable_progress_bars()
    packed = contender == "trl-packed"
    common = _arguments(options, folder)
    if packed:
        # A packed sequence holds as many tokens as the context allows: about what a batch of threads holds.
        common["per_device_train_batch_size"] = 1
    arguments = SFTConfig(
        **common,
        gradient_checkpointing=options.peer_checkpointing,
        max_length=options.context,
        packing=packed,
    )
    return SFTTrainer(
        model=load_causal_lm(prepared.start),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(prepared.start),
    )


def _attribute_trainer(
    options: Options, prepared: Prepared, rows: list[dict[str, Any]], contender: Contender, folder: Path
) -> Trainer:
    with loading(prepared.start):
        network = AutoModelForSequenceClassification.from_pretrained(prepared.start, dtype=torch.float32)
    return _AttributeTrainer(
        model=network,
        args=TrainingArguments(**_arguments(options, folder), activation_checkpointing=options.peer_checkpointing),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(load_tokenizer(prepared.start)),
    )


def _arguments(options: Options, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "peer"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": options.accumulation,
        "train_sampling_strategy": "group_by_length",
        "optim": "adamw_torch_fused",
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": WEIGHT_DECAY,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "max_grad_norm": CLIP,
        "bf16": options.precision == "bf16",
        "seed": options.seed,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class _AttributeTrainer(Trainer):
    """A regression of several attributes at once, of which any may be unrated."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels_BA = inputs.pop("labels")
        outputs = model(**inputs)
        rated_BA = labels_BA != IGNORED
        errors_BA = torch.where(rated_BA, outputs.logits.float() - labels_BA, 0.0)
        # The ratings of the whole step, which `Trainer` counts as the labels that are not `IGNORED`.
        loss = errors_BA.square().sum() / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class _Counted:
    """A data collator that counts what passes through it: tokens, and tokens with the padding."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate
        self.batches = 0
        self.tokens = 0
        self.computed_tokens = 0

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        self.batches += 1
        self.tokens += sum(len(feature["input_ids"]) for feature in features)
        batch: dict[str, Any] = self._collate(features)
        self.computed_tokens += batch["input_ids"].numel()
        return batch
