"""Does a policy do what it is asked: answers are generated under every condition, measured, and reckoned up."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from steerlm import __version__
from steerlm.annotation import Scorer
from steerlm.engines import Engine, LocalEngine, Precision, Sampling, TorchEngine, engine_for
from steerlm.errors import ConfigError, DataError
from steerlm.evaluation.answers import Answer, Measured
from steerlm.evaluation.answers_file import AnswersFile, ConditionAnswers, digest_of
from steerlm.evaluation.asks import Ask, Ways, goals, paraphrased, sweep, ways_of
from steerlm.evaluation.conditions import (
    Condition,
    PolicyCondition,
    VerifiedCondition,
    WordsCondition,
    base_of,
    distinct,
    untuned_base,
)
from steerlm.evaluation.measuring import Instruments, measure
from steerlm.evaluation.prompts import PromptSource
from steerlm.evaluation.records import read_record, write_record
from steerlm.evaluation.response_curves import RULE
from steerlm.evaluation.steering_record import TITLES, condition_records
from steerlm.evaluation.steering_settings import ConditionName, SteeringSettings
from steerlm.evaluation.text_measures import TOXIC_WORDS, text_measures
from steerlm.models.base import weights_digest
from steerlm.models.load import SteerModel
from steerlm.provenance import environment
from steerlm.steering import require_same_scales

_FORMAT = 4
"""Of results; those of another one are made anew."""
_ANSWERS_FORMAT = 2
"""Of the seeds that answers are drawn with; those of another one are made anew."""
_OF_ANSWERS = ("max_tokens", "temperature", "repetition_penalty", "seed")
"""The settings that every answer depends on, beside the engine that was taken."""
_OF_CONDITION: dict[ConditionName, str] = {"guidance": "guidance", "verified": "draws"}
"""The setting that only the answers of one condition depend on."""
_KEPT_ANSWERS, _KEPT_SECONDS = 256, 30
"""Answers that come are kept when there are so many, or so long after the last were."""
_FRAME_TOKENS = 32
"""The longest frame of a paraphrase and an instruction in words for one attribute, on the safe side."""
NAME = "steering"
"""Of the result's file, without its suffix."""


@dataclass(frozen=True)
class Judges:
    """The attribute models that measure: `judge`, and `second`, another one, which the policy did not learn from.

    Raises `ConfigError` where both are the same.
    """

    judge: SteerModel | None = None
    second: SteerModel | None = None

    def __post_init__(self) -> None:
        if self.judge and self.second and self.judge.info.fingerprint == self.second.info.fingerprint:
            raise ConfigError(
                f"judge and second judge are the same attribute model, {self.judge.info.fingerprint}; give another one "
                "with --second-judge, or leave it out"
            )


@dataclass(frozen=True, slots=True)
class _Answering:
    """The engine that is taken, by the name of its class where it was given, and the most tokens of prompt and answer
    that it has room for: `guided_context` where they are computed twice.
    """

    name: str
    precision: Precision | None
    context: int
    guided_context: int

    @classmethod
    def of(cls, engine: Engine, settings: SteeringSettings) -> _Answering:
        if isinstance(engine, TorchEngine):
            return cls("torch", None, engine.context, engine.guided_context)
        return cls("openvino", settings.precision, engine.context, engine.guided_context)

    @property
    def identity(self) -> dict[str, str]:
        """What answers depend on."""
        return {"name": self.name, **({"precision": self.precision} if self.precision else {})}


def evaluate_steering(
    policy: SteerModel,
    prompts: Sequence[str | Ways],
    settings: SteeringSettings,
    folder: Path,
    judges: Judges = Judges(),
    directory: Path | None = None,
    engine: Engine | None = None,
    say: Callable[[str], None] = lambda _: None,
    source: PromptSource | None = None,
) -> dict[str, Any]:
    """Measure a policy on prompts, from `source`; returns the result, and writes it to `folder`/steering.json, with the
    answers beside it in answers.jsonl. Answers that are there already, made under the same circumstances, are used. A
    prompt that is a tuple is followed by the same in other words.

    `directory` is where the policy lies, whose form for OpenVINO is then kept there. `engine` answers for it in place
    of the one that the settings name. A result made under the same circumstances is read back.

    Raises `SchemaError` for an attribute that the policy does not know, or that it knows on another scale than a judge,
    `DataError` where no prompt is left, `ConfigError` for a condition that lacks what it needs.
    """
    return _Evaluation(
        policy, list(map(ways_of, prompts)), settings, folder, judges, directory, engine, say, source
    ).run()


class _Evaluation:
    def __init__(
        self,
        policy: SteerModel,
        prompts: list[Ways],
        settings: SteeringSettings,
        folder: Path,
        judges: Judges,
        directory: Path | None,
        engine: Engine | None,
        say: Callable[[str], None],
        source: PromptSource | None,
    ) -> None:
        settings = settings.model_copy(update={"attributes": settings.attributes or list(policy.schema.names)})
        self.policy, self.settings, self.folder, self.say = policy, settings, folder, say
        self.directory, self.given_engine = directory, engine
        for name in settings.attributes:
            policy.schema[name]
        if "verified" in settings.conditions and judges.judge is None:
            raise ConfigError("verified steering needs an attribute model to choose by; give --judge, or leave it out")
        for model in (judges.judge, judges.second):
            if model is not None:
                require_same_scales(policy.schema, model.schema)
        self.judge, self.second = (Scorer(model) if model else None for model in (judges.judge, judges.second))
        self.base: SteerModel | None = None
        self.base_digest: str | None = None
        self.sampling = Sampling(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            repetition_penalty=settings.repetition_penalty,
            seed=settings.seed,
        )
        self.answering = self._answering()
        self.conditions: dict[ConditionName, Measured] = {}
        self.prompts, self.source = prompts, asdict(source) if source else None

    @property
    def _needs_base(self) -> bool:
        return self.settings.perplexity or "words" in self.settings.conditions

    def _digest_on_disk(self) -> str | None:
        """Of the untuned base, where it is on this disk."""
        try:
            return weights_digest(base_of(self.policy.info))
        except (OSError, ValueError):
            return None

    def _base(self) -> SteerModel | None:
        """The untuned base, where anything needs it."""
        if not self._needs_base:
            return None
        base = untuned_base(self.policy.info)
        base.network.to(self.policy.device)  # type: ignore[arg-type]
        base.network.train(mode=False)
        return base

    def _answering(self) -> _Answering:
        """What answers, known only once it has been made: not every model goes with every engine."""
        if (given := self.given_engine) is not None:
            return _Answering(type(given).__name__, None, given.context, given.context)
        settings = self.settings
        with engine_for(
            self.policy, self.directory, settings.engine, self.say, settings.precision, self._cache_bytes()
        ) as engine:
            return _Answering.of(engine, settings)

    def _cache_bytes(self) -> int | None:
        return None if self.settings.cache_gb is None else int(self.settings.cache_gb * (1 << 30))

    def run(self) -> dict[str, Any]:
        settings, schema = self.settings, self.policy.schema
        kept_record = read_record(self.folder, NAME)
        if kept_record:
            if self._needs_base:
                self.base_digest = self._digest_on_disk() or kept_record.get("base_digest")
            if kept_record.get("key") == self._key():
                return kept_record
        self.base = self._base()
        # Once it is loaded, since what the hub has is on this disk only then.
        self.base_digest = weights_digest(base_of(self.policy.info)) if self.base else None
        key = self._key()
        left_out = self._choose_prompts()
        if not self.prompts:
            raise DataError(
                "no prompt is short enough for the model or its memory; give shorter ones, lower max_tokens, or raise "
                "cache_gb where it is set"
            )
        count = len(self.prompts)
        asks = [
            *sweep(schema, settings.attributes, count),
            *goals(
                schema, settings.attributes, count, settings.goals if len(settings.attributes) > 1 else 0, settings.seed
            ),
            *paraphrased(schema, settings.attributes, self.prompts[: settings.paraphrases]),
        ]
        context = getattr(self.policy.network.config, "max_position_embeddings", 2048)
        instruments = Instruments(
            self.judge, self.second, self.base if settings.perplexity else None, min(2048, context)
        )
        if TOXIC_WORDS not in text_measures():
            self.say("toxic words are not counted: their lexicon is not installed (pip install 'steerlm[report]')")
        with closing(AnswersFile(self.folder / "answers.jsonl")) as kept:
            for name in settings.conditions:
                condition = self._condition(name)
                of_condition = kept.of(self._made(name), name, condition, self.prompts)
                answers = self._answers(name, of_condition, asks)
                self.say(f"measuring {len(answers)} answers: {TITLES[name]}")
                self.conditions[name] = measure(
                    condition, asks, answers, self.prompts, self.policy.info.system, instruments
                )
                of_condition.note(self.conditions[name])
            write_record(self.folder, NAME, {"key": key, **self._record(left_out)})
        written = read_record(self.folder, NAME)
        assert written is not None
        return written

    def _key(self) -> str:
        """A digest of all that the result depends on."""
        models = [scorer.model.info.fingerprint if scorer else None for scorer in (self.judge, self.second)]
        info = self.policy.info
        # What can be measured depends on what is installed.
        measures = [item.name for item in text_measures()]
        known = [
            _FORMAT,
            info.fingerprint,
            info.system,
            info.schema.to_list(),
            info.provenance.get("annotated_by"),
            *models,
            self.base_digest,
            self.prompts,
            self.source,
            measures,
            self.answering.identity,
        ]
        return digest_of(known, self.settings.model_dump(mode="json"), __version__)

    def _choose_prompts(self) -> int:
        """Keep the first prompts that are short enough under every condition; how many longer ones stood before."""
        conditions = [(self._condition(name), self._room(name)) for name in self.settings.conditions]
        fitting = (
            number
            for number, ways in enumerate(self.prompts)
            if all(
                condition.longest(text) <= room
                for condition, room in conditions
                for text in ways[: None if self.settings.paraphrases else 1]
            )
        )
        chosen = list(islice(fitting, self.settings.max_prompts))
        seen = chosen[-1] + 1 if len(chosen) == self.settings.max_prompts else len(self.prompts)
        self.prompts = [self.prompts[number] for number in chosen]
        if left_out := seen - len(chosen):
            self.say(f"{left_out} prompts are too long for the model or its memory and left out")
        return left_out

    def _room(self, name: ConditionName) -> int:
        """Most tokens of a prompt under a condition."""
        context = getattr(self.policy.network.config, "max_position_embeddings", 1 << 30)
        memory = self.answering.guided_context if name == "guidance" else self.answering.context
        return min(context, memory) - self.settings.max_tokens - _FRAME_TOKENS

    def _condition(self, name: ConditionName) -> Condition:
        if name == "words":
            assert self.base is not None
            return WordsCondition(self.base, self.policy)
        plain = PolicyCondition(self.policy)
        if name == "guidance":
            return PolicyCondition(self.policy, self.settings.guidance)
        if name == "verified":
            assert self.judge is not None
            return VerifiedCondition(plain, self.judge, self.settings.draws)
        return plain

    def _engine(self, name: ConditionName) -> AbstractContextManager[Engine]:
        """What answers under a condition; closed after it unless it was given."""
        if name == "words":
            assert self.base is not None
            model, directory = self.base, None
        elif self.given_engine is not None:
            return nullcontext(self.given_engine)
        else:
            model, directory = self.policy, self.directory
        if (taken := self.answering).name == "torch":
            return engine_for(model, directory, "torch", self.say)
        # Of an engine that was given nothing is known that could answer for the base.
        engine: LocalEngine = "openvino" if taken.name == "openvino" else self.settings.engine
        return engine_for(model, directory, engine, self.say, self.settings.precision, self._cache_bytes())

    def _answers(self, name: ConditionName, kept: ConditionAnswers, asks: Sequence[Ask]) -> dict[Hashable, Answer]:
        known, condition = kept.get(asks), kept.condition
        missing = distinct(condition, (ask for ask in asks if condition.key(ask) not in known))
        if missing:
            self.say(f"answering {len(self.prompts)} prompts under {len(missing)} requests in all: {TITLES[name]}")
            unkept: list[Ask] = []
            saved = time.monotonic()
            try:
                with (
                    self._engine(name) as engine,
                    closing(condition.answers(engine, missing, self.prompts, self.sampling)) as answers,
                ):
                    for ask, answer in answers:
                        known[condition.key(ask)] = answer
                        unkept.append(ask)
                        if len(unkept) >= _KEPT_ANSWERS or time.monotonic() - saved > _KEPT_SECONDS:
                            kept.add(unkept, known)
                            unkept.clear()
                            saved = time.monotonic()
            finally:
                # Whatever stops it, the next run goes on from here.
                kept.add(unkept, known)
            kept.complete(asks, known)
        return known

    def _made(self, name: ConditionName) -> str:
        """A digest of all that the answers of a condition depend on, but for other words, which stand in their rows."""
        own = {_OF_CONDITION[name]} if name in _OF_CONDITION else set()
        return digest_of(
            _ANSWERS_FORMAT,
            name,
            self.answering.identity,
            self.policy.info.fingerprint,
            self.policy.info.system,
            self.policy.schema.to_list(),
            [ways[0] for ways in self.prompts],
            self.settings.model_dump(mode="json", include={*_OF_ANSWERS, *own}),
            self.judge.model.info.fingerprint if self.judge and name == "verified" else None,
            *([self.base_digest] if name == "words" else []),
        )

    def _record(self, left_out: int) -> dict[str, Any]:
        settings, info, schema = self.settings, self.policy.info, self.policy.schema
        texts = [ways[0] for ways in self.prompts]
        return {
            "kind": "steering",
            "model": info.fingerprint,
            "base": info.base_name,
            "base_digest": info.base.digest if info.base else self.base_digest,
            "judge": self.judge.model.info.fingerprint if self.judge else None,
            "second_judge": self.second.model.info.fingerprint if self.second else None,
            "annotated_by": info.provenance.get("annotated_by"),
            "engine": self.answering.identity,
            "rule": RULE,
            "prompts": {
                "used": len(self.prompts),
                "left_out": left_out,
                "digest": digest_of(texts),
                "source": self.source,
            },
            "schema": schema.to_list(),
            "conditions": condition_records(self.conditions, schema, settings, texts),
            "settings": settings.model_dump(mode="json"),
            **environment(*(["openvino"] if self.answering.name == "openvino" else [])),
        }
