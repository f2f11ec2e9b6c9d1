"""The ways of asking that are compared: the policy, the base in words, guidance, verified steering."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from steerlm.annotation import Scorer
from steerlm.conversation import Conversation, Message
from steerlm.engines import Completion, Engine, Guidance, Request, Sampling, batch, complete
from steerlm.errors import ConfigError
from steerlm.evaluation.answers import Answer
from steerlm.evaluation.asks import Ask, Ways, frozen
from steerlm.evaluation.words import in_words
from steerlm.models.directory import ModelInfo
from steerlm.models.load import SteerModel, new_model
from steerlm.models.prompting import Prompting
from steerlm.steering import nearest, prompt_ids

_DRAW_TEMPERATURE = 0.8


class Condition(Protocol):
    """A way of asking."""

    def key(self, ask: Ask) -> Hashable:
        """What the answer depends on: asks with the same key are answered once."""

    def longest(self, prompt: str) -> int:
        """Tokens of a prompt at its longest."""

    def answer(self, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling) -> list[Answer]:
        """Answers, in order."""


@dataclass(frozen=True)
class PolicyCondition:
    """The policy under label lines; with `guidance` other than 1, pushed away from the defaults by that factor."""

    policy: Prompting
    guidance: float = 1.0

    def key(self, ask: Ask) -> Hashable:
        return ask.prompt, ask.paraphrase, frozen(ask.values(self.policy.schema))

    def longest(self, prompt: str) -> int:
        return len(prompt_ids(self.policy, prompt, self.policy.schema.defaults))

    def answer(self, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling) -> list[Answer]:
        defaults = self.policy.schema.defaults
        requests = []
        for number, ask in enumerate(asks):
            text = prompts[ask.prompt][ask.paraphrase]
            own = batch([prompt_ids(self.policy, text, ask.values(self.policy.schema))], _seeded(sampling, number))[0]
            if self.guidance == 1:
                requests.append(own)
            else:
                other = tuple(prompt_ids(self.policy, text, defaults))
                requests.append(Request(own.prompt, own.sampling, Guidance(other, self.guidance)))
        return [_answer(found) for found in complete(engine, requests)]


@dataclass(frozen=True)
class WordsCondition:
    """The untuned base, which is asked in a sentence for each attribute that the request names."""

    base: SteerModel
    asked_of: Prompting

    def key(self, ask: Ask) -> Hashable:
        return ask.prompt, ask.paraphrase, ask.named

    def longest(self, prompt: str) -> int:
        schema = self.asked_of.schema
        return len(self._ids(f"{prompt}\n\n{in_words(schema, schema.defaults)}"))

    def answer(self, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling) -> list[Answer]:
        ids = [
            self._ids(f"{prompts[ask.prompt][ask.paraphrase]}\n\n{in_words(self.asked_of.schema, dict(ask.named))}")
            for ask in asks
        ]
        return [_answer(found) for found in complete(engine, batch(ids, sampling))]

    def _ids(self, text: str) -> list[int]:
        return prompt_ids(self.base, text, {}, system=self.asked_of.info.system)


@dataclass(frozen=True)
class VerifiedCondition:
    """Verified steering: of `draws` answers the one whose scores are nearest to what the request names."""

    policy: PolicyCondition
    judge: Scorer
    draws: int

    def key(self, ask: Ask) -> Hashable:
        return self.policy.key(ask), ask.named

    def longest(self, prompt: str) -> int:
        return self.policy.longest(prompt)

    def answer(self, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling) -> list[Answer]:
        drawn = _seeded(sampling, 0, sampling.temperature or _DRAW_TEMPERATURE)
        found = self.policy.answer(engine, [ask for ask in asks for _ in range(self.draws)], prompts, drawn)
        groups = [found[start : start + self.draws] for start in range(0, len(found), self.draws)]
        system = self.policy.policy.info.system
        trees = [
            answered(system, prompts[ask.prompt][ask.paraphrase], [answer.text for answer in group])
            for ask, group in zip(asks, groups, strict=True)
        ]
        scores = self.judge.score(trees).values
        return [
            group[nearest(self.policy.policy.schema, dict(ask.named), [values.get(k + 1) for k in range(self.draws)])]
            for ask, group, values in zip(asks, groups, scores, strict=True)
        ]


def answered(system: str, prompt: str, texts: Sequence[str]) -> Conversation:
    """A prompt with its answers, as a tree under the system text that they were given under."""
    answers = (Message("assistant", text, 0) for text in texts)
    return Conversation("answers", (Message("user", prompt), *answers), system)


def untuned_base(info: ModelInfo) -> SteerModel:
    """The model that a policy was made from, with its own prompt format and no label lines. Raises `ConfigError` where
    the policy does not say what it was made from, `ModelError` where it cannot be loaded.
    """
    return new_model(
        "policy", base_of(info), info.schema, as_level_tokens=False, system=info.system, marker_tokens=False
    )


def base_of(info: ModelInfo) -> str:
    """What a policy was made from. Raises `ConfigError` where it does not say."""
    name = info.base.name if info.base else info.provenance.get("base")
    if not isinstance(name, str):
        raise ConfigError("the policy does not say what base model it was made from; leave out what needs the base")
    return name


def answer_all(
    condition: Condition, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling
) -> dict[Hashable, Answer]:
    """Answers by key, each key once."""
    wanted: dict[Hashable, Ask] = {}
    for ask in asks:
        wanted.setdefault(condition.key(ask), ask)
    return dict(zip(wanted, condition.answer(engine, list(wanted.values()), prompts, sampling), strict=True))


def _seeded(sampling: Sampling, number: int, temperature: float | None = None) -> Sampling:
    chosen = sampling.temperature if temperature is None else temperature
    return replace(sampling, seed=sampling.seed + number, temperature=chosen)


def _answer(found: Completion) -> Answer:
    return Answer(found.text, len(found.tokens), found.finish == "length")
