"""The ways of asking that are compared: the policy, the base in words, guidance, verified steering."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from steerlm.annotation import Scorer
from steerlm.conversation import Conversation, Message
from steerlm.engines import Completion, Engine, Guidance, Request, Sampling, completions
from steerlm.errors import ConfigError
from steerlm.evaluation.answers import Answer
from steerlm.evaluation.asks import Ask, Ways, frozen
from steerlm.evaluation.words import in_words
from steerlm.models.directory import ModelInfo
from steerlm.models.load import SteerModel, new_model
from steerlm.models.prompting import Prompting
from steerlm.steering import nearest, prompt_ids

_DRAW_TEMPERATURE = 0.8
_CHOSEN_TOGETHER = 64
"""Asks among whose answers verified steering chooses at once: packs of so many are full."""

Answered = tuple[Ask, Answer]
"""What was asked, and what came back."""


class Condition(Protocol):
    """A way of asking."""

    def key(self, ask: Ask) -> Hashable:
        """What the answer depends on: asks with the same key are answered once."""

    def longest(self, prompt: str) -> int:
        """Tokens of a prompt at its longest."""

    def answers(
        self, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling
    ) -> Generator[Answered, None, None]:
        """The answer to each ask, in the order in which they come."""


@dataclass(frozen=True)
class PolicyCondition:
    """The policy under label lines; with `guidance` other than 1, pushed away from the defaults by that factor."""

    policy: Prompting
    guidance: float = 1.0

    def key(self, ask: Ask) -> Hashable:
        return ask.prompt, ask.paraphrase, frozen(ask.values(self.policy.schema))

    def longest(self, prompt: str) -> int:
        return len(prompt_ids(self.policy, prompt, self.policy.schema.defaults))

    def answers(
        self, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling
    ) -> Generator[Answered, None, None]:
        for ask, _, answer in self.draw(engine, asks, prompts, sampling, 1):
            yield ask, answer

    def draw(
        self, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling, draws: int
    ) -> Iterator[tuple[Ask, int, Answer]]:
        """So many answers to each ask, each with its number among them, in the order in which they come."""
        schema = self.policy.schema
        requests = []
        for ask in asks:
            text = prompts[ask.prompt][ask.paraphrase]
            ids = tuple(prompt_ids(self.policy, text, ask.values(schema)))
            guidance = None
            if self.guidance != 1:
                guidance = Guidance(tuple(prompt_ids(self.policy, text, schema.defaults)), self.guidance)
            requests += [Request(ids, _seeded(sampling, self.key(ask), draw), guidance) for draw in range(draws)]
        for number, found in completions(engine, requests):
            yield asks[number // draws], number % draws, _answer(found)


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

    def answers(
        self, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling
    ) -> Generator[Answered, None, None]:
        requests = []
        for ask in asks:
            wish = in_words(self.asked_of.schema, dict(ask.named))
            ids = self._ids(f"{prompts[ask.prompt][ask.paraphrase]}\n\n{wish}")
            requests.append(Request(tuple(ids), _seeded(sampling, self.key(ask))))
        for number, found in completions(engine, requests):
            yield asks[number], _answer(found)

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

    def answers(
        self, engine: Engine, asks: Sequence[Ask], prompts: Sequence[Ways], sampling: Sampling
    ) -> Generator[Answered, None, None]:
        warm = replace(sampling, temperature=sampling.temperature or _DRAW_TEMPERATURE)
        drawn: dict[Ask, dict[int, Answer]] = {ask: {} for ask in asks}
        whole: dict[Ask, dict[int, Answer]] = {}
        for ask, draw, answer in self.policy.draw(engine, asks, prompts, warm, self.draws):
            drawn[ask][draw] = answer
            if len(drawn[ask]) == self.draws:
                whole[ask] = drawn.pop(ask)
            if len(whole) == _CHOSEN_TOGETHER:
                yield from self._chosen(whole, prompts)
                whole.clear()
        yield from self._chosen(whole, prompts)

    def _chosen(self, drawn: Mapping[Ask, Mapping[int, Answer]], prompts: Sequence[Ways]) -> Iterator[Answered]:
        """The nearest of the answers to each ask."""
        info, schema = self.policy.policy.info, self.policy.policy.schema
        trees = [
            answer_tree(info.system, prompts[ask.prompt][ask.paraphrase], [own[k].text for k in range(self.draws)])
            for ask, own in drawn.items()
        ]
        for (ask, own), values in zip(drawn.items(), self.judge.score(trees).values, strict=True):
            yield ask, own[nearest(schema, dict(ask.named), [values.get(k + 1) for k in range(self.draws)])]


def answer_tree(system: str, prompt: str, texts: Sequence[str]) -> Conversation:
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


def distinct(condition: Condition, asks: Iterable[Ask]) -> list[Ask]:
    """Of asks that have the same answer the first."""
    found: dict[Hashable, Ask] = {}
    for ask in asks:
        found.setdefault(condition.key(ask), ask)
    return list(found.values())


def _seeded(sampling: Sampling, key: Hashable, draw: int = 0) -> Sampling:
    """With a seed that is the ask's own, so that its answer does not depend on what else is asked."""
    digest = hashlib.sha256(repr((sampling.seed, key, draw)).encode()).digest()
    return replace(sampling, seed=int.from_bytes(digest[:6], "big"))


def _answer(found: Completion) -> Answer:
    return Answer(found.text, len(found.tokens), found.finish == "length")
