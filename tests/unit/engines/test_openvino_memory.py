"""Continuous batching in a few blocks, over a network that knows what stands in each of them.

What follows a sequence is a function of the whole of it as read from the row's blocks, so that a block which is
overwritten, missing or not copied shows in the answer.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from steerlm.engines.base import Guidance, Request, Sampling, TokenLogprob
from steerlm.engines.blocks import BLOCK
from steerlm.engines.openvino import OpenVinoCore
from steerlm.engines.openvino_network import PagedNetwork, Row
from steerlm.engines.runner import Token
from steerlm.errors import ConfigError

VOCABULARY = 50
Ids = tuple[int, ...]


def scores_after(ids: Sequence[int]) -> NDArray[np.float32]:
    digest = zlib.crc32(np.asarray(ids, dtype=np.int64).tobytes())
    return np.random.default_rng(digest).standard_normal(VOCABULARY).astype(np.float32)


class Blocks:
    """A network whose keys and values are the token ids themselves."""

    context = 4096
    vocabulary = VOCABULARY

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.computed = 0
        self._ids = np.full((blocks, BLOCK), -1, dtype=np.int64)

    def copy(self, source: int, target: int) -> None:
        self._ids[target] = self._ids[source]

    def run(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        for row in rows:
            self.computed += len(row.ids)
            for place, token in enumerate(row.ids, start=row.past):
                self._ids[row.blocks[place // BLOCK], place % BLOCK] = token
        seen = [self._ids[list(row.blocks)].ravel()[: row.past + len(row.ids)].tolist() for row in rows]
        scores = [
            scores_after(ids[:end])
            for row, ids in zip(rows, seen, strict=True)
            for end in range(len(ids) - row.wanted + 1, len(ids) + 1)
        ]
        return np.array(scores, dtype=np.float32).reshape(-1, VOCABULARY)


def core_of(blocks: int, max_batch: int = 64, chunk: int = 256) -> OpenVinoCore:
    return core_over(Blocks(blocks), max_batch, chunk)


def core_over(network: Blocks, max_batch: int = 64, chunk: int = 256) -> OpenVinoCore:
    return OpenVinoCore(cast(PagedNetwork, network), [], max_batch, chunk)


def expected(request: Request) -> list[int]:
    made: list[int] = []
    while len(made) < request.sampling.max_tokens:
        scores = scores_after([*request.prompt, *made])
        if request.guidance:
            other = scores_after([*request.guidance.prompt, *made])
            scores = other + np.float32(request.guidance.factor) * (scores - other)
        made.append(int(scores.argmax()))
    return made


def expected_prompt(request: Request) -> list[TokenLogprob]:
    """Of the prompt's tokens from the second one on."""
    found: list[TokenLogprob] = []
    for place, token in enumerate(request.prompt[1:] if request.prompt_logprobs is not None else (), start=1):
        scores = scores_after(request.prompt[:place]).astype(np.float64)
        logprobs = scores - np.log(np.exp(scores).sum())
        best = np.argsort(-logprobs)[: request.prompt_logprobs].tolist()
        top = tuple((other, float(logprobs[other])) for other in best)
        found.append(TokenLogprob(float(logprobs[token]), top))
    return found


def assert_scored(made: Token, request: Request) -> None:
    for found, wanted in zip(made.prompt, expected_prompt(request), strict=True):
        assert found.logprob == pytest.approx(wanted.logprob, abs=1e-5)
        assert dict(found.top) == pytest.approx(dict(wanted.top), abs=1e-5)


class Answers:
    """Requests under way in a core; every answer is compared as it ends."""

    def __init__(self, core: OpenVinoCore) -> None:
        self.core = core
        self.going: dict[int, tuple[Request, list[int]]] = {}
        self.ended: list[Ids] = []
        self._keys = 0

    def add(self, requests: Sequence[Request]) -> None:
        keys = range(self._keys, self._keys + len(requests))
        self._keys += len(requests)
        self.going |= {key: (request, []) for key, request in zip(keys, requests, strict=True)}
        self.core.add(list(zip(keys, requests, strict=True)))

    def cancel(self, key: int) -> None:
        del self.going[key]
        self.core.drop(key)

    def step(self) -> None:
        for made in self.core.step():
            request, tokens = self.going[made.key]
            if tokens:
                assert made.prompt == ()
            else:
                assert_scored(made, request)
            tokens.append(made.token)
            if len(tokens) == request.sampling.max_tokens:
                assert tokens == expected(request)
                self.ended.append((*request.prompt, *tokens))
                self.cancel(made.key)

    def finish(self) -> None:
        for _ in range(20_000):
            if not self.going:
                return
            self.step()
        pytest.fail(f"{len(self.going)} answers did not end")


def ids_of(start: int, count: int) -> Ids:
    return tuple(start * place % VOCABULARY for place in range(1, count + 1))


def test_blocks_of_a_remembered_sequence_make_room_for_the_copy_of_one_of_them() -> None:
    """Of 11 blocks 7 hold the first prompt; the second fills 4, the third shares 40 tokens with the first."""
    answers = Answers(core_of(11))
    long = ids_of(3, 200)
    answers.add([Request(long, Sampling(max_tokens=1))])
    answers.finish()
    answers.add([Request(ids_of(7, 97), Sampling(max_tokens=30))])
    answers.add([Request((*long[:40], *ids_of(9, 10)), Sampling(max_tokens=50))])
    answers.finish()
    assert len(answers.ended) == 3


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_a_beginning_is_computed_once_for_requests_that_come_apart(steps: int) -> None:
    """The second and third come some steps after the first, whose prompt takes four; another has nothing in common."""
    network = Blocks(400)
    answers = Answers(core_over(network))
    talk = ids_of(3, 1000)
    first, *rest = ([Request((*talk, last, 1), Sampling(max_tokens=5))] for last in (4, 5, 6))
    answers.add(first)
    for _ in range(steps):
        answers.step()
    for group in rest:
        answers.add(group)
    answers.add([Request(ids_of(7, 100), Sampling(max_tokens=5))])
    answers.finish()
    assert network.computed == 1002 + 2 + 2 + 100 + 4 * 4


def test_copies_of_a_scored_prompt_are_not_computed_again() -> None:
    """But for the last token of what they share, the last one of each, and what follows the first token made."""
    network = Blocks(400)
    answers = Answers(core_over(network))
    talk = ids_of(3, 1000)
    plain = [Request(talk, Sampling(max_tokens=2))] * 3
    answers.add([Request(talk, Sampling(max_tokens=2), prompt_logprobs=2), *plain])
    answers.finish()
    assert network.computed == 1000 + 1 + 3 + 4


def test_who_waited_for_a_beginning_goes_on_when_it_is_cancelled() -> None:
    network = Blocks(400)
    answers = Answers(core_over(network))
    talk = ids_of(3, 1000)
    for last in (4, 5, 6):
        answers.add([Request((*talk, last, 1), Sampling(max_tokens=5))])
    answers.step()
    answers.cancel(0)
    answers.finish()
    assert network.computed == 1002 + 2 + 2 * 4


def some_request(draw: random.Random, known: Sequence[Ids]) -> Request:
    stem = draw.choice(known)
    stem = stem[: draw.randrange(len(stem) + 1)]

    def prompt() -> Ids:
        return (*stem, *(draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 40))))

    guidance = Guidance(prompt(), 2.0) if draw.random() < 0.2 else None
    scored = draw.choice([0, 3]) if draw.random() < 0.2 else None
    return Request(prompt(), Sampling(max_tokens=draw.randrange(1, 60)), guidance, prompt_logprobs=scored)


@pytest.mark.parametrize("seed", range(40))
def test_any_requests_are_answered_in_any_memory(seed: int) -> None:
    """Groups that share beginnings with each other and with what was before, cancelled now and then."""
    draw = random.Random(seed)
    core = core_of(draw.choice([8, 12, 20, 40]), draw.choice([1, 2, 4, 16]), draw.choice([1, 7, 40, 256]))
    answers = Answers(core)
    bases = [tuple(draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 150))) for _ in range(3)]
    for _ in range(150):
        if draw.random() < 0.2 and len(answers.going) < 30:
            group = [some_request(draw, [*bases, *answers.ended[-3:]]) for _ in range(draw.choice([1, 1, 2, 5, 12]))]
            if wanted := [request for request in group if fits(core, request)]:
                answers.add(wanted)
        for key in list(answers.going):
            if draw.random() < 0.02:
                answers.cancel(key)
        answers.step()
    answers.finish()


def fits(core: OpenVinoCore, request: Request) -> bool:
    try:
        core.check(request)
    except ConfigError:
        return False
    return True
