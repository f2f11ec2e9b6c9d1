"""The loop that trains either model: steps of whole conversations, accumulated, divided once by global counts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steerlm import __version__
from steerlm.attention import default_form, use_plain_attention, use_tree_attention
from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.errors import ConfigError, DataError, TrainingError
from steerlm.models.directory import ModelInfo
from steerlm.models.load import SteerModel
from steerlm.packing import Pack, fit, pack
from steerlm.training.checkpoint import Checkpoints, Progress
from steerlm.training.config import TrainSettings
from steerlm.training.log import Display, MetricsLog
from steerlm.training.new_tokens import NewTokens
from steerlm.training.plan import Step, learning_rate, plan_steps
from steerlm.training.task import Batch, Task

# Settings that say where and how often, not what: a run resumes whatever they are.
_INCIDENTAL = {
    "out",
    "pack_tokens",
    "checkpoint_every",
    "keep_checkpoints",
    "device",
    "attention",
    "data",
    "validation",
}


@dataclass(frozen=True)
class TrainingData:
    """Conversations to learn from and held-out ones, with a digest of their contents."""

    train: Sequence[Conversation]
    held_out: Sequence[Conversation]
    digest: str


def train(
    make_task: Callable[[torch.device], Task],
    settings: TrainSettings,
    data: TrainingData,
    key: str,
    fresh: bool = False,
) -> SteerModel:
    """Run a task to its end, from its last checkpoint where there is one, and save the model to `settings.out`.

    `key` (see `run_key`) tells this run from others that use the same directory.
    Raises `DataError` where no response can be trained, `TrainingError` for a non-finite loss or a checkpoint of
    another run.
    """
    torch.manual_seed(settings.seed)
    device = pick_device(settings.device)
    checkpoints = Checkpoints(settings.out / "checkpoints", key, settings.keep_checkpoints)
    if fresh:
        checkpoints.clear()
    task = make_task(device)
    return _Run(task, settings, data, checkpoints, device).run()


def run_key(settings: TrainSettings, data: TrainingData, schema: Schema) -> str:
    """A digest of all that determines the result of a run: settings, data, attributes, base model, version."""
    kept = settings.model_dump(mode="json", exclude=_INCIDENTAL)
    parts = [type(settings).__name__, kept, data.digest, schema.to_list(), _base_state(settings.base), __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _base_state(base: str) -> list[Any]:
    """What tells one state of a local base model from another, without reading gigabytes of weights."""
    files = sorted(path for path in Path(base).glob("*") if path.suffix in (".json", ".safetensors"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def is_finished(settings: TrainSettings, key: str, kind: str) -> bool:
    """Whether `settings.out` already holds the model that this run would make."""
    if not (settings.out / "steerlm.json").is_file():
        return False
    info = ModelInfo.load(settings.out)
    return info.kind == kind and info.provenance.get("run") == key


class _Run:
    def __init__(
        self, task: Task, settings: TrainSettings, data: TrainingData, checkpoints: Checkpoints, device: torch.device
    ) -> None:
        self.task = task
        self.settings = settings
        self.data = data
        self.checkpoints = checkpoints
        self.device = device
        self.network = task.model.network
        positions = getattr(self.network.config, "max_position_embeddings", settings.context)
        if settings.context > positions:
            raise ConfigError(f"context={settings.context} is beyond the base model's {positions} positions; lower it")
        self.dtype = pick_precision(settings.precision, device)
        use_tree_attention(self.network, default_form(device) if settings.attention == "auto" else settings.attention)
        if settings.gradient_checkpointing:
            self.network.activation_checkpointing_enable({"use_reentrant": False})
        self.optimizer = make_optimizer(self.network, settings)
        self.new_tokens = NewTokens(task.model, settings.new_token_rate)

    def run(self) -> SteerModel:
        settings = self.settings
        steps, notes = self._plan()
        progress = self.checkpoints.resume(self.network, self.optimizer)
        log = MetricsLog(settings.out / "metrics.jsonl", progress.step if progress else None)
        try:
            if progress is None:
                self.new_tokens.straighten()
                with self._computing():
                    figures = self.task.prepare(self.data.train)
                progress = Progress(0, None, {})
                log.write({"step": 0, "kind": "start", "steps": len(steps), **notes, **figures})
                progress = self._validate(progress, log)
            with Display(f"train {self.task.model.info.kind}", len(steps), progress.step) as display:
                display.say(f"{len(steps)} steps over {notes['report']}")
                progress = self._steps(steps, progress, log, display)
        finally:
            log.close()
        return self._finish(progress, len(steps))

    def _plan(self) -> tuple[list[Step], dict[str, Any]]:
        trees = [self.task.tree(conversation, 0) for conversation in self.data.train]
        fitted, report = fit(trees, self.settings.context, self.settings.pack_tokens)
        if report.responses == 0:
            raise DataError(
                "no response of the data can be trained on: none has labels or ratings, or all are too long"
            )
        # Whether a conversation is used depends on the context alone, and so does its size: never on the packs.
        kept = {tree.conversation for tree in fitted}
        sizes = [tree.size if tree.conversation in kept else 0 for tree in trees]
        used = [index for index, size in enumerate(sizes) if size]
        steps = plan_steps(
            [sizes[index] for index in used],
            self.settings.epochs,
            self.settings.seed,
            self.settings.batch_tokens,
            self.settings.batch_conversations,
            self.settings.max_steps,
        )
        steps = [Step(step.epoch, tuple(used[member] for member in step.members)) for step in steps]
        return steps, {"report": str(report), "dropped": report.dropped_where}

    def _steps(self, steps: list[Step], progress: Progress, log: MetricsLog, display: Display) -> Progress:
        settings = self.settings
        for number in range(progress.step, len(steps)):
            began = time.perf_counter()
            rate = learning_rate(
                number,
                len(steps),
                settings.learning_rate,
                settings.min_learning_rate,
                settings.warmup_steps,
                settings.schedule,
            )
            figures = self._step(steps[number], number, rate)
            progress = replace(progress, step=number + 1)
            seconds = time.perf_counter() - began
            log.write({"step": number + 1, "kind": "train", **figures, "learning_rate": rate, "seconds": seconds})
            note = f"loss {figures['loss']:.4f}  {figures['tokens'] / seconds:.0f} tokens/s"
            display.step(number + 1, note)
            last = number + 1 == len(steps)
            if last or (number + 1) % settings.validate_every == 0:
                progress = self._validate(progress, log, display)
            if not last and (number + 1) % settings.checkpoint_every == 0:
                self.checkpoints.save(self.network, self.optimizer, progress)
        return progress

    def _step(self, step: Step, number: int, rate: float) -> dict[str, Any]:
        self.network.train()
        packs = self._packs(step)
        terms = self.task.terms(packs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys(terms, 0.0)
        for item in packs:
            with self._computing():
                losses = self.task.losses(Batch.of(item, self.device))
            parts = [
                terms[name].weight * loss.total / terms[name].count
                for name, loss in losses.items()
                if terms[name].count
            ]
            if parts:
                torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]
            for name, loss in losses.items():
                sums[name] += loss.total.item()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip).item()
        means = {name: sums[name] / term.count for name, term in terms.items() if term.count}
        objective = sum(terms[name].weight * mean for name, mean in means.items())
        if not (math.isfinite(objective) and math.isfinite(norm)):
            names = sorted({response.conversation for item in packs for response in item.responses})
            raise TrainingError(
                f"step {number + 1}: loss {objective}, gradient norm {norm}; the conversations of this step: "
                f"{', '.join(names)}. Lower the learning rate or look at these; it resumes from its last checkpoint"
            )
        with self.new_tokens.step():
            self.optimizer.step()
        return {
            "loss": objective,
            **means,
            "gradient_norm": norm,
            "tokens": sum(item.size for item in packs),
            "packs": len(packs),
        }

    def _packs(self, step: Step) -> list[Pack]:
        trees = [self.task.tree(self.data.train[member], step.epoch) for member in step.members]
        fitted, _ = fit(trees, self.settings.context, self.settings.pack_tokens)
        return pack(fitted, self.settings.pack_tokens)

    def _validate(self, progress: Progress, log: MetricsLog, display: Display | None = None) -> Progress:
        if not self.data.held_out:
            return progress
        self.network.eval()  # type: ignore[no-untyped-call]
        with self._computing():
            figures = self.task.validate(self.data.held_out)
        log.write({"step": progress.step, "kind": "validation", **figures})
        value = figures[self.task.criterion]
        shown = "  ".join(f"{name} {figure:.4f}" for name, figure in figures.items() if isinstance(figure, float))
        if display:
            display.say(f"step {progress.step}: held out: {shown}")
        better = progress.best is None or (value < progress.best) == (self.task.better == "lower")
        if not self.task.keep_best:
            return replace(progress, best=value, best_figures={"step": progress.step, **figures})
        if better and math.isfinite(value):
            self.checkpoints.save_best(self.network)
            return replace(progress, best=value, best_figures={"step": progress.step, **figures})
        return progress

    def _finish(self, progress: Progress, steps: int) -> SteerModel:
        if self.task.keep_best:
            self.checkpoints.load_best(self.network)
        use_plain_attention(self.network)
        if self.settings.gradient_checkpointing:
            self.network.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
        self.network.eval()  # type: ignore[no-untyped-call]
        model = self.task.model
        provenance = {
            **model.info.provenance,
            "run": self.checkpoints.key,
            "data": self.data.digest,
            "steps": steps,
            "settings": self.settings.model_dump(mode="json"),
        }
        info = replace(model.info, provenance=provenance, metrics=progress.best_figures)
        saved = replace(model, info=info).save(self.settings.out)
        self.checkpoints.clear()
        return saved

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield


def make_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and none on norms and biases."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises `ConfigError` for a device that cannot be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type to compute in. `auto` takes bfloat16 only where the hardware multiplies it natively."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return (
        torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else torch.float32
    )
