"""The torch engine against transformers' own `generate`."""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

from steerlm.attributes import STEERLM
from steerlm.engines import (
    Guidance,
    LocalEngine,
    Piece,
    Request,
    Sampling,
    TorchEngine,
    batch,
    complete,
    make_engine,
    stream,
)
from steerlm.engines.runner import Core, Token
from steerlm.engines.torch import TorchCore
from steerlm.errors import ConfigError, EngineError, SteerLMError
from steerlm.models.base import decoder_layers
from steerlm.models.load import SteerModel, load_model, new_model
from steerlm.steering import asked_values, prompt_ids
from tiny import TOKENIZERS, save_base, spread

# Keys and values in float32 of two layers with two heads of 8 dimensions.
TOKEN_BYTES = 2 * 4 * 2 * 2 * 8
PROMPTS = ["Why is the sea salty?", "Hi", "Tell me a long story about rivers, rocks and minerals, please."]


@pytest.fixture(params=["chatml", "gpt2"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> SteerModel:
    model = new_model("policy", save_base(tmp_path / "base", TOKENIZERS[request.param]()), STEERLM)
    spread(model.network)
    model.save(tmp_path / "policy")
    return load_model(tmp_path / "policy", "policy")


def token_prompts(policy: SteerModel) -> list[list[int]]:
    return [prompt_ids(policy, prompt, asked_values(policy.schema, {})) for prompt in PROMPTS]


def test_greedy_equals_generate(policy: SteerModel) -> None:
    prompts = token_prompts(policy)
    found = complete(TorchEngine(policy), batch(prompts, Sampling(max_tokens=24)))
    for prompt, completion in zip(prompts, found, strict=True):
        expected = policy.network.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert list(completion.tokens) == expected


def test_batching_changes_nothing(policy: SteerModel) -> None:
    prompts = token_prompts(policy)
    sampling = Sampling(max_tokens=16, temperature=0.8, top_k=40, top_p=0.95, seed=5)
    together = complete(TorchEngine(policy), batch(prompts, sampling))
    assert complete(TorchEngine(policy, max_batch=1), batch(prompts, sampling)) == together
    assert complete(TorchEngine(policy, max_batch=2), batch(prompts, sampling)) == together


def test_seeds(policy: SteerModel) -> None:
    prompts = token_prompts(policy)
    texts = {
        seed: [
            c.tokens
            for c in complete(TorchEngine(policy), batch(prompts, Sampling(max_tokens=12, temperature=1.5, seed=seed)))
        ]
        for seed in (0, 0, 1)
    }
    again = [
        c.tokens
        for c in complete(TorchEngine(policy), batch(prompts, Sampling(max_tokens=12, temperature=1.5, seed=0)))
    ]
    assert texts[0] == again
    assert texts[0] != texts[1]


def test_logprobs_of_prompts_are_those_of_one_forward_pass(policy: SteerModel) -> None:
    """Of a prompt longer than what is computed at a time, known from before, and beside others that share it."""
    text = token_prompts(policy)[2]
    long = tuple((text * 30)[:600])
    engine = TorchEngine(policy)
    complete(engine, [Request(long, Sampling(max_tokens=2))])
    plain = Request(long, Sampling(max_tokens=4))
    requests = [
        plain,
        Request(long, Sampling(max_tokens=4), prompt_logprobs=3),
        Request(tuple(text), prompt_logprobs=0),
    ]
    found: list[list[Piece]] = [[] for _ in requests]
    for piece in stream(engine, requests):
        found[piece.request].append(piece)
    assert [piece.token for piece in found[0]] == [piece.token for piece in found[1]]
    assert not any(piece.prompt for pieces in found for piece in pieces[1:])
    assert found[0][0].prompt == ()
    for ids, pieces, count in ((long, found[1], 3), (tuple(text), found[2], 0)):
        with torch.no_grad():
            expected_TV = policy.network(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        told = pieces[0].prompt
        assert len(told) == len(ids) - 1
        for place, item in enumerate(told):
            assert item.logprob == pytest.approx(expected_TV[place, ids[place + 1]].item(), abs=1e-4)
            best = expected_TV[place].topk(count).values.tolist()
            assert [value for _, value in item.top] == pytest.approx(best, abs=1e-4)
            assert all(expected_TV[place, token].item() == pytest.approx(value, abs=1e-4) for token, value in item.top)
    engine.close()


def test_stop_string_never_shows(policy: SteerModel) -> None:
    prompt = token_prompts(policy)[:1]
    free = complete(TorchEngine(policy), batch(prompt, Sampling(max_tokens=40)))[0].text
    middle = free[len(free) // 2 : len(free) // 2 + 3]
    assert middle.strip()
    pieces = list(stream(TorchEngine(policy), batch(prompt, Sampling(max_tokens=40, stop=(middle,)))))
    text = "".join(piece.text for piece in pieces)
    assert text == free[: free.index(middle)].rstrip()
    assert pieces[-1].finish == "stop"


def test_top_k_one_is_greedy(policy: SteerModel) -> None:
    prompts = token_prompts(policy)
    greedy = complete(TorchEngine(policy), batch(prompts, Sampling(max_tokens=12)))
    assert complete(TorchEngine(policy), batch(prompts, Sampling(max_tokens=12, temperature=1.0, top_k=1))) == greedy


def test_repetition_penalty_is_that_of_generate(policy: SteerModel) -> None:
    prompt = token_prompts(policy)[0]
    found = complete(TorchEngine(policy), batch([prompt], Sampling(max_tokens=20, repetition_penalty=1.3)))[0]
    expected = policy.network.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=20,
        do_sample=False,
        logits_processor=[RepetitionPenaltyLogitsProcessor(1.3, prompt_ignore_length=len(prompt))],
        pad_token_id=0,
    )
    assert list(found.tokens) == expected[0, len(prompt) :].tolist()


def test_too_long_says_the_numbers(policy: SteerModel) -> None:
    with pytest.raises(ConfigError, match=r"a prompt of 2040 tokens and 16 to generate exceed .* 2048"):
        list(stream(TorchEngine(policy), batch([[5] * 2040], Sampling(max_tokens=16))))


def test_what_is_computed_with_it_changes_no_answer(policy: SteerModel) -> None:
    """Requests that come while others are under way, of all kinds, against each of them alone."""
    requests = [
        Request(
            tuple(ids), Sampling(max_tokens=4 + 5 * k, temperature=0.9 * (k % 2), seed=k, repetition_penalty=1 + k / 9)
        )
        for k, ids in enumerate(token_prompts(policy) * 3)
    ]
    alone = [complete(TorchEngine(policy), [request])[0] for request in requests]
    engine = TorchEngine(policy, max_batch=4, chunk=16)
    found: dict[int, list[int]] = {number: [] for number in range(len(requests))}
    over = threading.Semaphore(0)

    def deliver(number: int, piece: Piece | SteerLMError) -> None:
        assert isinstance(piece, Piece)
        found[number].append(piece.token)
        if piece.finish:
            over.release()

    for number, request in enumerate(requests):
        engine.submit([request], partial(deliver, number))
    for _ in requests:
        assert over.acquire(timeout=60)
    assert [tuple(tokens) for tokens in found.values()] == [answer.tokens for answer in alone]


class Counted:
    """How many tokens a network computes."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.tokens = 0
        network.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, network: object, arguments: object, keywords: dict[str, torch.Tensor]) -> None:
        self.tokens += keywords["input_ids"].numel()


def test_what_prompts_begin_with_is_computed_once(policy: SteerModel) -> None:
    talk = [5 + k % 40 for k in range(200)]
    prompts = [[*talk, 60 + level, 7] for level in range(10)]
    requests = batch(prompts, Sampling(max_tokens=3))
    alone = [complete(TorchEngine(policy), [request])[0] for request in requests]
    counted = Counted(policy.network)
    engine = TorchEngine(policy)
    pieces = list(stream(engine, requests))
    assert counted.tokens == 200 + 10 * 2 + 10 * 2
    assert sorted(piece.cached for piece in pieces if piece.finish) == [0] + [200] * 9
    for number, answer in enumerate(alone):
        assert tuple(piece.token for piece in pieces if piece.request == number) == answer.tokens


def test_what_prompts_submitted_apart_begin_with_is_computed_once(policy: SteerModel) -> None:
    """Three come together, each on its own; one comes while they are answered."""
    talk = [5 + k % 40 for k in range(200)]
    requests = batch([[*talk, 60 + level, 7] for level in range(4)], Sampling(max_tokens=4, min_tokens=4))
    alone = [complete(TorchEngine(policy), [request])[0].tokens for request in requests]
    for kept, cached, prompts in ((1000, [0, 200, 200, 200], 202 + 3 * 2), (100, [0] * 4, 4 * 202)):
        counted = Counted(policy.network)
        core = TorchCore(policy, max_batch=8, cache_bytes=kept * TOKEN_BYTES, chunk=256 if kept > 200 else 1024)
        made = answers_of(core, requests)
        assert [tokens[0].cached for tokens in made] == cached
        assert [tuple(token.token for token in tokens) for tokens in made] == alone
        assert counted.tokens == prompts + 4 * 3


def answers_of(core: Core, requests: list[Request]) -> list[list[Token]]:
    """Each is added by itself: all but the last before the first step, the last when the first has a token."""
    made: list[list[Token]] = [[] for _ in requests]
    for key, request in enumerate(requests[:-1]):
        core.add([(key, request)])
    while any(len(tokens) < request.sampling.max_tokens for tokens, request in zip(made, requests, strict=True)):
        for token in core.step():
            made[token.key].append(token)
            if len(made[token.key]) == requests[token.key].sampling.max_tokens:
                core.drop(token.key)
            if token.key == 0 and len(made[0]) == 1:
                core.add([(len(requests) - 1, requests[-1])])
    return made


def test_the_next_turn_goes_on_from_the_last(policy: SteerModel) -> None:
    first = token_prompts(policy)[0]
    engine = TorchEngine(policy)
    answer = complete(engine, batch([first], Sampling(max_tokens=8, min_tokens=8)))[0]
    following = [*first, *answer.tokens, 9, 10, 11]
    pieces = list(stream(engine, batch([following], Sampling(max_tokens=6))))
    # The state of the last token of an answer is never computed.
    assert {piece.cached for piece in pieces} == {len(first) + 7}
    fresh = complete(TorchEngine(policy), batch([following], Sampling(max_tokens=6)))[0]
    assert tuple(piece.token for piece in pieces) == fresh.tokens


@pytest.mark.parametrize("name", ["torch", "auto"])
def test_as_much_is_kept_as_the_cache_has_room_for(
    name: LocalEngine, policy: SteerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two conversations of 300 tokens, with ten for the next turn of one, both, the later, or none."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # auto is then torch
    talks = [[start + k % 40 for k in range(297)] for start in (5, 50)]
    sampling = Sampling(max_tokens=4, min_tokens=4)
    for room, cached in ((610, [300, 300]), (599, [0, 300]), (290, [0, 0])):
        made = make_engine(tmp_path / "policy", policy, name, "cpu", cache_bytes=room * TOKEN_BYTES)
        with closing(made) as engine:
            first = [complete(engine, batch([ids], sampling))[0].tokens for ids in talks]
            following = [[*ids, *tokens, 7] for ids, tokens in zip(talks, first, strict=True)][::-1]
            again = [next(stream(engine, batch([ids], sampling))).cached for ids in following]
        assert again[::-1] == cached


def test_min_tokens_bars_the_end(policy: SteerModel) -> None:
    prompt = token_prompts(policy)[1]
    end = policy.renderer.stop_ids[0]

    def favour_the_end(_network: object, _arguments: object, output: CausalLMOutputWithPast) -> None:
        assert output.logits is not None
        output.logits[..., end] += 1e4

    hook = policy.network.register_forward_hook(favour_the_end)
    answers = [complete(TorchEngine(policy), batch([prompt], Sampling(min_tokens=k)))[0] for k in (0, 5)]
    hook.remove()
    assert [(len(answer.tokens), answer.finish) for answer in answers] == [(1, "stop"), (6, "stop")]


def test_logprobs_are_those_of_the_network(policy: SteerModel) -> None:
    prompt = token_prompts(policy)[0]
    sampling = Sampling(max_tokens=6, temperature=1.3, top_k=30, seed=3, logprobs=4)
    pieces = list(stream(TorchEngine(policy), batch([prompt], sampling)))
    tokens = [piece.token for piece in pieces]
    with torch.no_grad():
        logits_TV = policy.network(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    for piece, expected_V in zip(pieces, logits_TV.log_softmax(dim=-1), strict=True):
        assert piece.logprob is not None
        assert piece.logprob.logprob == pytest.approx(float(expected_V[piece.token]), abs=1e-4)
        best = expected_V.topk(4)
        assert [token for token, _ in piece.logprob.top] == best.indices.tolist()
        assert [value for _, value in piece.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_guidance_pushes_away_from_the_other_prompt(policy: SteerModel) -> None:
    own, other, _ = token_prompts(policy)
    request = Request(tuple(own), Sampling(max_tokens=8), Guidance(tuple(other), 3.0))
    found = complete(TorchEngine(policy), [*batch([own], Sampling(max_tokens=8)), request, *batch([other], Sampling())])
    tokens: list[int] = []
    with torch.no_grad():
        for _ in range(8):
            mine, theirs = (policy.network(torch.tensor([ids + tokens])).logits[0, -1] for ids in (own, other))
            tokens.append(int((theirs + 3 * (mine - theirs)).argmax()))
    assert found[1].tokens == tuple(tokens)
    assert found[0].tokens != found[1].tokens
    unguided = Request(tuple(own), Sampling(max_tokens=8), Guidance(tuple(other), 1.0))
    assert complete(TorchEngine(policy, max_batch=1), [unguided])[0].tokens == found[0].tokens


def test_attention_within_a_window(tmp_path: Path) -> None:
    """Rows of different lengths of a network that sees the last seven tokens only, against transformers' own."""
    save_base(tmp_path / "base", TOKENIZERS["llama2"](), "mistral")
    new_model("policy", tmp_path / "base", STEERLM).save(tmp_path / "policy")
    test_greedy_equals_generate(load_model(tmp_path / "policy", "policy"))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 2},
        {"top_k": -1},
        {"stop": ("",)},
        {"repetition_penalty": 0},
        {"min_tokens": -1},
        {"min_tokens": 600},
        {"logprobs": -1},
        {"logprobs": 21},
    ],
)
def test_sampling_is_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad)).split("_")[0]):
        Sampling(**bad)  # type: ignore[arg-type]


def test_nothing_is_kept_of_what_failed(policy: SteerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that fails after its first layer leaves that layer a token ahead of the others."""
    prompt = token_prompts(policy)[2]
    request = Request(tuple(prompt), Sampling(max_tokens=8, min_tokens=8, logprobs=0))
    expected = [piece.logprob.logprob for piece in stream(TorchEngine(policy), [request]) if piece.logprob]
    engine = TorchEngine(policy)
    _, layers = decoder_layers(policy.network)
    forward, passes = layers[1].forward, 0

    def fail(*args: object, **more: object) -> object:
        nonlocal passes
        passes += 1
        if passes == 4:
            raise torch.OutOfMemoryError("no memory")
        return forward(*args, **more)

    monkeypatch.setattr(layers[1], "forward", fail)
    with pytest.raises(EngineError, match="no memory"):
        complete(engine, [request])
    pieces = list(stream(engine, [request]))
    assert [piece.logprob.logprob for piece in pieces if piece.logprob] == pytest.approx(expected, abs=1e-5)


def test_other_salts_go_on_from_nothing(policy: SteerModel) -> None:
    ids = tuple(token_prompts(policy)[2])
    engine = TorchEngine(policy)
    for salt, cached in (("a", 0), ("a", len(ids) - 1), ("b", 0), ("", 0)):
        *_, last = stream(engine, [Request(ids, Sampling(max_tokens=4), salt=salt)])
        assert last.cached == cached
