"""What each way of asking sends to its engine, and which of several answers it takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripted_policy import PROMPTS, QUICK, Scripted
from steerlm.annotation import Scored, Scorer
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.engines import Request, Sampling
from steerlm.engines.base import Deliver
from steerlm.evaluation.asks import Ask, Ways, sweep
from steerlm.evaluation.conditions import PolicyCondition, VerifiedCondition, WordsCondition, untuned_base
from steerlm.evaluation.steering import evaluate_steering
from steerlm.evaluation.words import in_words
from steerlm.models.load import SteerModel, new_model
from steerlm.packing import Report

WAYS: list[Ways] = [(PROMPTS[0], "What makes the sea salty?"), (PROMPTS[1],)]


class Mute(Scripted):
    """Answers nothing."""

    def text(self, request: Request) -> str:
        return ""


def prompts_in_words(policy: SteerModel, asks: Sequence[Ask]) -> list[str]:
    """What the untuned base of a policy is sent, in the order of the asks."""
    base = untuned_base(policy.info)
    engine = Mute(base, lambda asked: asked)
    answered = [ask for ask, _ in WordsCondition(base, policy).answers(engine, asks, WAYS, Sampling())]
    assert answered == asks
    assert not any(request.guidance for request in engine.requests)
    return [base.renderer.tokenizer.decode(request.prompt) for request in engine.requests]


@pytest.fixture(scope="module", params=["chatml", "nemo"])
def kind_policy(request: pytest.FixtureRequest, chatml_base: Path) -> SteerModel:
    """A policy with a system text, in the format of its base and in another one."""
    model = new_model("policy", chatml_base, STEERLM, request.param)
    return replace(model, info=replace(model.info, system="Be kind.", provenance={"base": str(chatml_base)}))


def test_the_base_is_asked_in_its_own_format_without_labels(kind_policy: SteerModel) -> None:
    """The whole prompt but for the wish; of a policy in another format there is no marker."""
    asks = [*sweep(STEERLM, STEERLM.names, len(WAYS)), Ask(0, (("verbosity", 0),), paraphrase=1)]
    wishes: dict[Ask, str] = {}
    for ask, text in zip(asks, prompts_in_words(kind_policy, asks), strict=True):
        opening = f"<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{WAYS[ask.prompt][ask.paraphrase]}\n\n"
        closing = "<|im_end|>\n<|im_start|>assistant\n"
        assert text.startswith(opening)
        assert text.endswith(closing)
        wishes[ask] = text.removeprefix(opening).removesuffix(closing)
    for ask, wish in wishes.items():
        ((name, level),) = ask.named
        assert wish == in_words(STEERLM, {name: level})
        assert not re.search(r":\d|<|\n", wish)
    assert len(set(wishes.values())) == len(STEERLM.names) * 5


def test_verbosity_goes_from_a_short_answer_to_one_in_detail(policy: SteerModel) -> None:
    texts = prompts_in_words(policy, sweep(STEERLM, ["verbosity"], 1))
    assert [level for level, text in enumerate(texts) if "short sentence" in text] == [0]
    assert [level for level, text in enumerate(texts) if "much detail" in text] == [4]


def test_only_what_a_request_names_is_put_in_words(policy: SteerModel) -> None:
    """An attribute that is not named is at its default for the policy, and left to itself by the base; one that is
    named at its default is put in words.
    """
    [text] = prompts_in_words(policy, [Ask(0, (("humor", 4), ("verbosity", 4)))])
    for name, value in {**STEERLM.defaults, "humor": 4}.items():
        assert (in_words(STEERLM, {name: value}) in text) is (name in ("humor", "verbosity"))


def test_guidance_is_from_the_defaults_under_the_same_words(policy: SteerModel, tmp_path: Path) -> None:
    """The defaults have no humor; at that level the two prompts are one."""
    settings = QUICK.model_copy(
        update={"conditions": ["guidance"], "attributes": ["humor"], "guidance": 2.5, "paraphrases": 1}
    )
    engine = Scripted(policy, lambda asked: asked)
    evaluate_steering(policy, WAYS, settings, tmp_path, engine=engine)
    decode, levels = policy.renderer.tokenizer.decode, []
    for request in engine.requests:
        assert request.guidance
        assert request.guidance.factor == 2.5
        own, other = decode(request.prompt), decode(request.guidance.prompt)
        assert other == re.sub(r"humor:\d", "humor:0", own)
        assert (request.guidance.prompt == request.prompt) is (engine.asked(request, "humor") == 0)
        levels.append(engine.asked(request, "humor"))
    assert sorted(levels) == sorted([*range(5), *range(5), 0, 4])


def test_the_plain_policy_has_no_guidance(policy: SteerModel, tmp_path: Path) -> None:
    engine = Scripted(policy, lambda asked: asked)
    settings = QUICK.model_copy(update={"guidance": 2.5})
    evaluate_steering(policy, WAYS, settings, tmp_path, engine=engine)
    assert [request.guidance for request in engine.requests] == [None] * 10


class Drawing(Scripted):
    """Draws five answers of 0 to 4 words, for each prompt from another number on; the last asked for ends first."""

    def __init__(self, model: SteerModel) -> None:
        super().__init__(model, lambda asked: asked)
        self.drawn: dict[tuple[int, ...], list[int]] = {}

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        pieces: list[Any] = []
        cancel = super().submit(requests, pieces.append)
        for piece in reversed(pieces):
            deliver(piece)
        return cancel

    def text(self, request: Request) -> str:
        own = self.drawn.setdefault(request.prompt, [])
        own.append((list(self.drawn).index(request.prompt) + len(own)) % 5)
        return "salt " * own[-1]


class Counting(Scorer):
    """Scores verbosity by the number of words, 0 to 4, and humor 0, 3, 1, 4 and 2 for these; cannot read `unread`."""

    def __init__(self, model: SteerModel, unread: Sequence[int] = ()) -> None:
        super().__init__(model)
        self.unread = unread

    def score(self, conversations: Sequence[Conversation], watch: object = None) -> Scored:
        return Scored([self._scores(tree) for tree in conversations], Report())

    def _scores(self, tree: Conversation) -> dict[int, dict[str, float]]:
        counts = {place: len(tree.messages[place].text.split()) for place in tree.responses}
        return {
            place: {"verbosity": float(count), "humor": float([0, 3, 1, 4, 2][count])}
            for place, count in counts.items()
            if count not in self.unread
        }


def words_taken(policy: SteerModel, judge: Scorer, asks: Sequence[Ask]) -> tuple[list[int], list[list[int]]]:
    """How many words the answer to each ask has, and how many each draw for it had."""
    engine = Drawing(policy)
    condition = VerifiedCondition(PolicyCondition(policy), judge, draws=5)
    taken = {ask: len(answer.text.split()) for ask, answer in condition.answers(engine, asks, WAYS, Sampling())}
    return [taken[ask] for ask in asks], list(engine.drawn.values())


def test_the_answer_nearest_to_what_was_asked_is_taken(policy: SteerModel, judge: SteerModel) -> None:
    """Of five draws one has as many words as were asked for, and each of the five is that one for some ask. Humor is
    not named and does not count: with it, nearest to verbosity 1 and no humor would be the answer without a word.
    """
    asks = sweep(STEERLM, ["verbosity"], 2)
    taken, drawn = words_taken(policy, Counting(judge), asks)
    assert taken == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {own.index(words) for own, words in zip(drawn, taken, strict=True)} == {0, 1, 2, 3, 4}


def test_the_nearest_to_all_that_was_asked_is_taken(policy: SteerModel, judge: SteerModel) -> None:
    """From verbosity 0 and humor 4, answers of 0 to 4 words are 0 + 4, 1 + 1, 2 + 3, 3 + 0 and 4 + 2 away."""
    assert words_taken(policy, Counting(judge), [Ask(0, (("verbosity", 0), ("humor", 4)))])[0] == [1]


def test_an_answer_that_the_judge_cannot_read_is_taken_only_where_it_reads_none(
    policy: SteerModel, judge: SteerModel
) -> None:
    asks = sweep(STEERLM, ["verbosity"], 1)[::-1]
    assert words_taken(policy, Counting(judge, unread=[0, 4]), asks)[0] == [3, 3, 2, 1, 1]
    taken, drawn = words_taken(policy, Counting(judge, unread=range(5)), asks)
    assert taken == [own[0] for own in drawn] == [0, 1, 2, 3, 4]
