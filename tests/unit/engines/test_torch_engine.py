"""The torch engine against transformers' own `generate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from steerlm.attributes import STEERLM
from steerlm.engines import Sampling, TorchEngine, batch, complete, stream
from steerlm.errors import ConfigError
from steerlm.models.load import SteerModel, load_model, new_model
from steerlm.steering import asked_values, prompt_ids
from tiny import TOKENIZERS, save_base, spread

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
    ],
)
def test_sampling_is_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad)).split("_")[0]):
        Sampling(**bad)  # type: ignore[arg-type]
