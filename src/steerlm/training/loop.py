"""The loop that trains either model: steps of whole conversations, accumulated, divided once by global counts."""

from __future__ import annotations

import contextlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from steerlm.attention import default_form, use_plain_attention, use_tree_attention
from steerlm.devices import pick_precision
from steerlm.errors import ConfigError, DataError, StoppedError, TrainingError
from steerlm.memory import memory_mb
from steerlm.models.kernels import interpret_blocks
from steerlm.models.load import SteerModel
from steerlm.packing import Report, fit
from steerlm.parallel.balance import is_blank, share_packs
from steerlm.parallel.export import save_sharded
from steerlm.parallel.ranks import Ranks
from steerlm.parallel.shard import Root, restore_blocks
from steerlm.tokens import TokenTree
from steerlm.training.checkpoint import Checkpoints, Progress
from steerlm.training.config import TrainSettings
from steerlm.training.corpus import TrainingData
from steerlm.training.learner import Learner, NotFiniteError
from steerlm.training.log import Display, MetricsLog
from steerlm.training.manifest import START_OVER
from steerlm.training.output import METRICS
from steerlm.training.plan import fraction_done, learning_rate
from steerlm.training.prefetch import Prefetch
from steerlm.training.steps import Ready, require_positions, steps_of
from steerlm.training.stopping import StopRequest
from steerlm.training.task import Batch, Task

T = TypeVar("T")
# Conversations that are rendered together where nothing is trained.
_WINDOW = 64


def train(
    task: Task, root: Root, settings: TrainSettings, data: TrainingData, checkpoints: Checkpoints, ranks: Ranks
) -> SteerModel:
    """Run a task to its end, from its last checkpoint where there is one, and save the model to `settings.out`.

    `root` holds the task's network, sharded over `ranks`.
    Raises `DataError` where no response can be trained, `ConfigError` for a checkpoint of another run, `TrainingError`
    for a non-finite loss, and `StoppedError` after SIGTERM or SIGINT, with a checkpoint saved.
    """
    return _Run(task, root, settings, data, checkpoints, ranks).run()


class _StopAskedError(Exception):
    """A signal asks to stop, between two packs that nothing is learnt from."""


class _Run:
    def __init__(
        self,
        task: Task,
        root: Root,
        settings: TrainSettings,
        data: TrainingData,
        checkpoints: Checkpoints,
        ranks: Ranks,
    ) -> None:
        self.task = task
        self.root = root
        self.settings = settings
        self.data = data
        self.checkpoints = checkpoints
        self.ranks = ranks
        self.device = ranks.device
        self.network = task.model.network
        require_positions(self.network, settings)
        self.dtype = pick_precision(settings.precision, self.device)
        form = default_form(self.device) if settings.attention == "auto" else settings.attention
        use_tree_attention(self.network, form, settings.context)
        self.learner = Learner(task, root, settings, ranks, self.dtype)
        self.saved: Path | None = None
        self.stop = StopRequest()

    def run(self) -> SteerModel:
        settings = self.settings
        progress = self.checkpoints.resume(self.network, self.learner.optimizer)
        self.saved = self.checkpoints.path(progress.step) if progress else None
        main = self.ranks.is_main
        path = settings.out / METRICS if main else None
        log = MetricsLog(path, progress.step if progress else None, settings.track, settings.model_dump(mode="json"))
        with contextlib.closing(log), self.stop:
            progress = self._start(log) if progress is None else self._with_best(progress)
            title = f"train {self.task.model.info.kind}"
            total = math.ceil(len(self.data.train) * settings.epochs)
            with Display(title, total, settings.max_steps, quiet=not main) as display:
                progress = self._steps(progress, log, display)
                if progress.step == 0 and settings.max_steps != 0:
                    raise DataError(
                        "no response of the data can be trained on: none has labels or ratings, or all are too long"
                    )
                progress = self._with_best(progress)
                if progress.validated != progress.step:
                    progress = self._validate(progress, log, display)
                if progress.report.trees:
                    display.say(f"learnt from {progress.report}")
            if self._save_before_end(progress) and self._is_asked_to_stop():
                raise self._stopped(progress)
            # From here on a signal changes nothing: what is left to do is to save the model.
            return self._finish(progress)

    def _start(self, log: MetricsLog) -> Progress:
        self.checkpoints.clear()  # of a run that did not come to its first checkpoint
        self.learner.new_tokens.straighten()
        report = Report()
        try:
            figures = self.task.prepare(self.data.train, partial(self._passes, report), self.ranks.on_main)
        except _StopAskedError:
            raise self._stopped(Progress()) from None
        survey = self.data.survey
        data = {"conversations": survey.conversations, "responses": survey.responses}
        log.write({"step": 0, "kind": "start", **data, **figures, **_left_out(report)})
        return self._validate(Progress(report=report), log)

    def _steps(self, progress: Progress, log: MetricsLog, display: Display) -> Progress:
        settings = self.settings
        if self._is_due(progress):  # stopped before it
            progress = self._validate(progress, log, display)
        with Prefetch(self._ready(progress)) as prepared:
            began = time.perf_counter()
            for ready in prepared:
                if progress.step == settings.max_steps:
                    break
                done = fraction_done(progress.position, len(self.data.train), settings.epochs)
                if settings.max_steps:
                    done = max(done, progress.step / settings.max_steps)
                rate = learning_rate(
                    progress.step,
                    done,
                    settings.learning_rate,
                    settings.min_learning_rate,
                    settings.warmup_steps,
                    settings.schedule,
                )
                figures = self._step(ready, progress.step, rate)
                progress = self._advance(progress, ready)
                seconds = time.perf_counter() - began
                speed = {
                    "seconds": seconds,
                    "tokens_per_second": figures["tokens"] / seconds,
                    "memory_mb": memory_mb(self.device),
                }
                log.write({"step": progress.step, "kind": "train", **figures, "learning_rate": rate, **speed})
                seen = progress.position.epoch * len(self.data.train) + progress.position.at
                display.step(seen, progress.step, figures["loss"], speed)
                if self._is_asked_to_stop():
                    raise self._stopped(progress)
                if self._is_due(progress):
                    progress = self._validate(progress, log, display)
                if progress.step % settings.checkpoint_every == 0:
                    self.saved = self.checkpoints.save(self.network, self.learner.optimizer, progress)
                began = time.perf_counter()  # waiting for data is part of a step
        return progress

    def _is_asked_to_stop(self) -> bool:
        """Whether any rank got a signal; all ask at the same point."""
        return self.ranks.any(self.stop.signal != 0)

    def _stopped(self, progress: Progress) -> StoppedError:
        """Save where the run stands, unless it stands at the beginning or is saved already; returns what to raise."""
        self._save(progress)
        where = "stopped before the first step, with nothing to save yet"
        if progress.step:
            where = f"stopped after step {progress.step}, saved in {self.saved}"
        # Another rank may have got the signal.
        return StoppedError(f"{where}; run the same command again to go on", self.stop.signal or signal.SIGTERM)

    def _save(self, progress: Progress) -> None:
        """Save where the run stands, unless it stands at the beginning or is saved already."""
        if progress.step and self.saved != self.checkpoints.path(progress.step):
            self.saved = self.checkpoints.save(self.network, self.learner.optimizer, progress)

    def _save_before_end(self, progress: Progress) -> bool:
        """As `_save`; returns whether that went well. All that is left is to save the model, for which a disk may have
        room that has none for a checkpoint, which with the optimiser's state is three times as large.
        """
        fault: Exception | None = None
        try:
            self._save(progress)
        except (OSError, TrainingError) as error:  # the second where the main process alone could not write
            fault = error
        if not self.ranks.any(fault is not None):
            return True
        if self.ranks.is_main:
            warnings.warn(
                f"step {progress.step}, the last, could not be saved as a checkpoint ({fault}); the model is saved all "
                "the same, but a kill before that loses the steps since the last checkpoint",
                stacklevel=2,
            )
        return False

    def _is_due(self, progress: Progress) -> bool:
        return progress.validated < progress.step and progress.step % self.settings.validate_every == 0

    def _ready(self, progress: Progress) -> Iterator[Ready]:
        steps = steps_of(self.task, self.settings, self.data, self.settings.epochs, progress.position)
        return (Ready.of(step, self.settings.pack_tokens, self.ranks) for step in steps)

    def _advance(self, progress: Progress, ready: Ready) -> Progress:
        report = replace(progress.report) if progress.step else Report()
        if ready.step.epoch == 0:
            for _, found in ready.step.items:
                report += found
        return replace(progress, step=progress.step + 1, position=ready.step.after, report=report)

    def _step(self, ready: Ready, number: int, rate: float) -> dict[str, Any]:
        try:
            return self.learner.step(ready.packs, number, rate)
        except NotFiniteError as error:
            raise self._not_finite(number, error) from None

    def _not_finite(self, number: int, error: NotFiniteError) -> TrainingError:
        own = [response.conversation for item in error.packs for response in item.responses]
        names = sorted({name for share in self.ranks.gather(own) for name in share})
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        last = f"the last good checkpoint is {self.saved}" if self.saved else "there is no checkpoint yet"
        return TrainingError(
            f"step {number + 1}: {error}, with the conversations {shown}; {last}. "
            "Lower learning_rate, use precision fp32, or look into these conversations. Any of these makes it another "
            f"run, to which no checkpoint belongs: give it another --out, or {START_OVER}"
        )

    def _passes(self, report: Report, trees: Iterable[TokenTree], work: Callable[[Batch], T]) -> list[T]:
        """See `steerlm.training.task.Passes`: the results of all ranks, the same on each.

        What fitting did to the trees is added to `report`. Raises `_StopAskedError` after a signal.
        """
        found: list[T] = []
        self.network.eval()
        trees = iter(trees)
        budget = self.settings.validation_pack_tokens
        while window := list(islice(trees, _WINDOW)):
            fitted, done = fit(window, self.settings.context, budget)
            report += done
            for item in share_packs(fitted, budget, self.ranks):
                with torch.no_grad(), self.learner.computing():
                    result = self.root(work, Batch.of(item, self.device, self.dtype))
                if not is_blank(item):
                    found.append(result)
                if self._is_asked_to_stop():
                    raise _StopAskedError
        return [result for share in self.ranks.gather(found) for result in share]

    def _validate(self, progress: Progress, log: MetricsLog, display: Display | None = None) -> Progress:
        before, progress = progress, replace(progress, validated=progress.step)
        if not self.data.held_out:
            return progress
        report = Report()
        try:
            measured = self._passes(report, map(self.task.held_out_tree, self.data.held_out), self.task.measure)
        except _StopAskedError:
            raise self._stopped(before) from None
        figures = {**self.task.figures(measured), **_left_out(report)}
        log.write({"step": progress.step, "kind": "validation", **figures})
        shown = "  ".join(f"{name} {figure:.4f}" for name, figure in figures.items() if isinstance(figure, float))
        if report.truncated or report.dropped:
            shown += f"  of {report}"
        if display:
            display.say(f"step {progress.step}: held out: {shown}")
        kept = {"step": progress.step, **figures}
        if self.task.best_by is None:
            return replace(progress, figures=kept)
        if self.task.best_by not in figures:
            raise ConfigError(
                f"best_by={self.task.best_by}: no held-out response can be compared with another one's labels; "
                "hold out more conversations, or choose best_by=loss"
            )
        value = figures[self.task.best_by]
        is_better = progress.best is None or (value > progress.best) == self.task.higher_is_better
        if not (is_better and math.isfinite(value)):
            return progress
        progress = replace(progress, best=value, figures=kept)
        self.checkpoints.save_best(self.network, progress)
        return progress

    def _with_best(self, progress: Progress) -> Progress:
        """The same with the best weights that are whole: where the best are damaged, those before them, or where none
        are left, those that are to be validated next.
        """
        if progress.best is None:
            return progress
        kept = self.checkpoints.best()
        if kept is not None:
            return replace(progress, best=kept.best, figures=kept.figures)
        if self.ranks.is_main:
            warnings.warn(
                f"no best weights are left of the steps before; the best are chosen from step {progress.step} on",
                stacklevel=2,
            )
        return replace(progress, validated=-1, best=None)

    def _finish(self, progress: Progress) -> SteerModel:
        if progress.best is not None:
            self.checkpoints.load_best(self.network)
        use_plain_attention(self.network)
        restore_blocks(self.network)
        interpret_blocks(self.network)
        self.network.eval()
        model = self.task.model
        provenance = {
            **model.info.provenance,
            "run": self.checkpoints.key,
            "data": self.data.digest,
            "steps": progress.step,
            "learnt_from": str(progress.report),
            "sources": sorted(self.data.survey.sources),
            "annotated_by": self.data.survey.annotators_after(model.info.provenance["annotated_by"]),
            "settings": self.settings.model_dump(mode="json"),
        }
        info = replace(model.info, provenance=provenance, metrics=progress.figures)
        saved = save_sharded(replace(model, info=info), self.settings.out, self.ranks)
        self.checkpoints.clear()
        return saved


def _left_out(report: Report) -> dict[str, int]:
    """Of how many responses the model did not see all."""
    return {"truncated": report.truncated, "dropped": report.dropped}
