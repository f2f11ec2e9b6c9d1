"""/v1/completions: raw prompts against `generate`, prompts under attributes against /v1/chat/completions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import torch

from served import Recorder, Scripted, events, send
from steerlm.engines.base import Piece, TokenLogprob
from steerlm.models.load import SteerModel
from steerlm.server.logprobs import CompletionLogprobs, prompt_logprobs
from steerlm.server.routes.completions_models import TextCompletion
from steerlm.server.state import ServerState

PATH = "/v1/completions"
TEXT = "Why is the sea salty?\n\nBecause"
Post = Callable[..., httpx2.Response]


def likeliest(model: SteerModel, ids: list[int], count: int) -> list[int]:
    found = model.network.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[int] = found[0, len(ids) :].tolist()
    return tokens


def continued(model: SteerModel, ids: list[int], count: int) -> str:
    text: str = model.renderer.tokenizer.decode(likeliest(model, ids, count), skip_special_tokens=True)
    return text


def test_raw_prompts_are_continued(post: Post, served_policy: SteerModel) -> None:
    ids = served_policy.renderer.tokenizer.encode(TEXT, add_special_tokens=False)
    other = served_policy.renderer.tokenizer.encode("Rivers", add_special_tokens=False)
    expected = [continued(served_policy, prompt, 10) for prompt in (ids, other)]
    body = {"max_tokens": 10, "temperature": 0}
    for prompt, texts in (
        (TEXT, expected[:1]),
        ([TEXT, "Rivers"], expected),
        (ids, expected[:1]),
        ([ids, other], expected),
    ):
        found = post(PATH, {**body, "prompt": prompt}).json()
        assert [choice["text"] for choice in found["choices"]] == texts
        assert found["steering"] is None


def test_prompts_under_attributes_are_answered_as_in_chat(post: Post) -> None:
    body = {"max_tokens": 10, "seed": 3, "n": 2, "attributes": {"verbosity": 1}}
    chat = post("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": TEXT}]}).json()
    found = post(PATH, {**body, "prompt": [TEXT, "Hi"], "measure": True}).json()
    assert [choice["text"] for choice in found["choices"][:2]] == [
        choice["message"]["content"] for choice in chat["choices"]
    ]
    assert found["steering"]["attributes"] == chat["steering"]["attributes"]
    assert len(found["steering"]["measured"]) == 4
    plain = post(PATH, {"prompt": TEXT, "max_tokens": 10, "seed": 3, "raw": False}).json()
    default = post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 10, "seed": 3}
    )
    assert plain["choices"][0]["text"] == default.json()["choices"][0]["message"]["content"]


def test_an_answer_does_not_depend_on_its_company(post: Post) -> None:
    body = {"max_tokens": 8, "seed": 1, "n": 2}
    together = post(PATH, {**body, "prompt": ["Rivers", "Hello"]}).json()["choices"]
    alone = post(PATH, {**body, "prompt": "Hello"}).json()["choices"]
    assert [choice["text"] for choice in together[2:]] == [choice["text"] for choice in alone]
    assert [choice["index"] for choice in together] == [0, 1, 2, 3]


def test_a_stream_holds_the_same(post: Post) -> None:
    body = {"prompt": ["Rivers", "Hello"], "max_tokens": 10, "seed": 2, "logprobs": 2}
    whole = post(PATH, body).json()
    chunks = events(post(PATH, {**body, "stream": True, "stream_options": {"include_usage": True}}).text)
    for index, choice in enumerate(whole["choices"]):
        parts = [item for chunk in chunks for item in chunk["choices"] if item["index"] == index]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts][-1] == choice["finish_reason"]
        scores = [part["logprobs"] for part in parts if part["logprobs"]]
        for name, values in choice["logprobs"].items():
            again = [value for part in scores for value in part[name]]
            if name == "token_logprobs":  # what is kept of the first call changes the order of sums
                assert again == pytest.approx(values, abs=1e-4)
            elif name == "top_logprobs":
                assert [set(top) for top in again] == [set(top) for top in values]
            else:
                assert again == values
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_logprobs_in_their_form(post: Post) -> None:
    found = post(PATH, {"prompt": TEXT, "max_tokens": 5, "temperature": 0, "logprobs": 2}).json()["choices"][0]
    scores = found["logprobs"]
    assert [len(values) for values in scores.values()] == [5] * 4
    for token, logprob, top in zip(scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True):
        assert top[token] == logprob == max(top.values())
    assert scores["text_offset"] == [sum(map(len, scores["tokens"][:k])) for k in range(5)]


def test_stop_text_does_not_show_in_logprobs(post: Post) -> None:
    body = {"prompt": TEXT, "max_tokens": 24, "temperature": 0, "logprobs": 0}
    free = post(PATH, body).json()["choices"][0]["text"]
    body["stop"] = free[len(free) // 2 : len(free) // 2 + 3]
    [whole] = post(PATH, body).json()["choices"]
    scores = whole["logprobs"]
    assert body["stop"] not in "".join(scores["tokens"])
    streamed = [item["choices"][0]["logprobs"] for item in events(post(PATH, {**body, "stream": True}).text)]
    assert [at for part in streamed if part for at in part["text_offset"]] == scores["text_offset"]


def scores_of(model: SteerModel, ids: list[int]) -> list[float]:
    """The log-probability of each token from the second one on, by one forward pass."""
    with torch.no_grad():
        found_TV = model.network(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    values: list[float] = found_TV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return values


@pytest.mark.parametrize("greedy", [True, False])
def test_given_text_is_scored_as_evaluation_harnesses_do(post: Post, served_policy: SteerModel, greedy: bool) -> None:
    """By what EleutherAI's harness sends to completion servers, and how it reads the answer."""
    tokenizer = served_policy.renderer.tokenizer
    context = tokenizer.encode(TEXT, add_special_tokens=False)
    after = likeliest(served_policy, context, 3) if greedy else tokenizer.encode(" rivers", add_special_tokens=False)
    body = {"prompt": [context + after, context], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
            "echo": True, "model": "tiny"}  # fmt: skip
    first, second = post(PATH, body).json()["choices"]
    values = first["logprobs"]["token_logprobs"][len(context) : -1]
    tops = first["logprobs"]["top_logprobs"][len(context) : -1]
    assert values == pytest.approx(scores_of(served_policy, context + after)[-len(after) :], abs=1e-4)
    assert all(value == max(top.values()) for value, top in zip(values, tops, strict=True)) == greedy
    assert len(second["logprobs"]["tokens"]) == len(context) + 1


@pytest.mark.parametrize("as_ids", [True, False])
def test_an_echo_begins_the_text(post: Post, served_policy: SteerModel, as_ids: bool) -> None:
    ids = served_policy.renderer.tokenizer.encode(TEXT, add_special_tokens=False)
    body = {"prompt": ids if as_ids else TEXT, "temperature": 0, "n": 2}
    plain = post(PATH, {**body, "max_tokens": 6, "logprobs": 2}).json()
    for choice, alone in zip(
        post(PATH, {**body, "max_tokens": 6, "logprobs": 2, "echo": True}).json()["choices"],
        plain["choices"],
        strict=True,
    ):
        assert choice["text"] == TEXT + alone["text"]
        scores = choice["logprobs"]
        assert scores["tokens"][len(ids) :] == alone["logprobs"]["tokens"]
        assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
        assert scores["token_logprobs"][1 : len(ids)] == pytest.approx(scores_of(served_policy, ids), abs=1e-4)
        assert "".join(scores["tokens"][: len(ids)]) == TEXT
        assert scores["text_offset"] == [sum(map(len, scores["tokens"][:k])) for k in range(len(scores["tokens"]))]
    assert post(PATH, {**body, "max_tokens": 6, "echo": True}).json()["choices"][0]["logprobs"] is None
    only = post(PATH, {**body, "max_tokens": 0, "logprobs": 0, "echo": True}).json()
    assert [choice["text"] for choice in only["choices"]] == [TEXT] * 2
    assert [len(choice["logprobs"]["tokens"]) for choice in only["choices"]] == [len(ids)] * 2
    assert (only["usage"]["completion_tokens"], only["choices"][0]["finish_reason"]) == (0, "length")


@pytest.mark.parametrize("max_tokens", [0, 6])
def test_a_stream_echoes_the_same(post: Post, max_tokens: int) -> None:
    body = {"prompt": [TEXT, "Rivers"], "max_tokens": max_tokens, "seed": 2, "logprobs": 2, "echo": True}
    whole = post(PATH, body).json()
    chunks = events(post(PATH, {**body, "stream": True, "stream_options": {"include_usage": True}}).text)
    for index, choice in enumerate(whole["choices"]):
        parts = [item for chunk in chunks for item in chunk["choices"] if item["index"] == index]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        for name in ("tokens", "text_offset"):
            assert [value for part in parts for value in (part["logprobs"] or {name: []})[name]] == choice["logprobs"][
                name
            ]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_an_echo_alone_has_one_token_less_than_the_context(
    serve: Callable[..., ServerState], served_policy: SteerModel
) -> None:
    body = {"max_tokens": 0, "logprobs": 0, "echo": True}
    state = serve()
    full = [5 + k % 300 for k in range(state.engine.context)]
    error = send(state, PATH, {**body, "prompt": full}).json()["error"]
    assert "2048 tokens, and an echo may have 2047" in error["message"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    [choice] = send(state, PATH, {**body, "prompt": full[1:]}).json()["choices"]
    assert len(choice["logprobs"]["tokens"]) == 2047


def test_an_echo_comes_once_where_the_end_comes_apart(serve: Callable[..., ServerState]) -> None:
    """As from other servers: text first, and why it ended in a piece of its own."""
    engine = Scripted(Piece(0, -1, "Salt"), Piece(0, -1, "", "length"))
    body = {"prompt": "Why", "max_tokens": 0, "echo": True, "stream": True}
    chunks = events(send(serve(engine=engine), PATH, body).text)
    assert [choice["text"] for chunk in chunks for choice in chunk["choices"]] == ["Why"]


def computed(model: SteerModel, work: Callable[[], httpx2.Response]) -> tuple[httpx2.Response, int]:
    """What `work` returns, and how many tokens the network computed for it."""
    seen: list[int] = []
    hook = model.network.get_input_embeddings().register_forward_hook(lambda _, ids, __: seen.append(ids[0].numel()))
    try:
        return work(), sum(seen)
    finally:
        hook.remove()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_copies_of_a_prompt_are_scored_with_one_pass(
    serve: Callable[..., ServerState], served_policy: SteerModel, stream: bool, known: bool
) -> None:
    """Be they asked for by `n` or given twice; a prompt that is known takes the copies less time than the first."""
    ids = [5 + k * k % 40 for k in range(600)]
    state = serve()
    if known:
        send(state, PATH, {"prompt": ids, "max_tokens": 1})
    body = {"prompt": [ids, ids], "n": 3, "max_tokens": 2, "temperature": 0, "logprobs": 1, "echo": True}
    answer, tokens = computed(served_policy, lambda: send(state, PATH, {**body, "stream": stream}))
    assert 600 <= tokens < 700
    found = events(answer.text) if stream else [answer.json()]
    expected = pytest.approx(scores_of(served_policy, ids), abs=1e-4)
    for index in range(6):
        parts = [item for chunk in found for item in chunk["choices"] if item["index"] == index]
        values = [value for part in parts if part["logprobs"] for value in part["logprobs"]["token_logprobs"]]
        assert values[0] is None
        assert values[1:600] == expected
        assert len(values) == 602
        offsets = [at for part in parts if part["logprobs"] for at in part["logprobs"]["text_offset"]]
        assert offsets == sorted(offsets)
        assert offsets[600] == len(served_policy.renderer.tokenizer.decode(ids))


def test_a_copy_waits_for_the_scores_of_its_prompt(serve: Callable[..., ServerState]) -> None:
    score = TokenLogprob(-0.5, ())
    script = [
        Piece(1, 7, "b", None, score),
        Piece(1, 7, "b", "length", score),
        Piece(0, 8, "a", "length", score, prompt=(TokenLogprob(-1.5, ()),)),
    ]
    body = {"prompt": [5, 6], "n": 2, "max_tokens": 2, "logprobs": 0, "echo": True, "stream": True}
    found = events(send(serve(engine=Scripted(*script)), PATH, body).text)
    choices = [choice for chunk in found for choice in chunk["choices"]]
    assert [choice["index"] for choice in choices] == [0, 0, 1, 1, 1]
    for index in (0, 1):
        first = next(choice for choice in choices if choice["index"] == index)
        assert first["logprobs"]["token_logprobs"] == [None, -1.5]


@pytest.mark.parametrize("stream", [True, False])
def test_log_probabilities_of_a_prompt_are_listed_once_and_written_in_a_thread(
    post: Post, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The event loop is that of this thread."""
    listed: list[threading.Thread] = []
    written: list[threading.Thread] = []
    written_as = TextCompletion.model_dump_json

    def noted(*args: Any) -> CompletionLogprobs:
        listed.append(threading.current_thread())
        return prompt_logprobs(*args)

    def dumped(self: TextCompletion, **options: Any) -> str:
        if any(choice.logprobs and len(choice.logprobs.tokens) > 2 for choice in self.choices):
            written.append(threading.current_thread())
        return written_as(self, **options)

    monkeypatch.setattr("steerlm.server.routes.completions.prompt_logprobs", noted)
    monkeypatch.setattr(TextCompletion, "model_dump_json", dumped)
    post(PATH, {"prompt": TEXT, "n": 4, "max_tokens": 2, "logprobs": 1, "echo": True, "stream": stream})
    assert len(listed) == 1
    assert len(written) == (4 if stream else 1)
    assert threading.current_thread() not in listed + written


def test_the_end_signal_is_listed_after_an_echo(serve: Callable[..., ServerState], served_policy: SteerModel) -> None:
    """The last token is the one that was made, whichever it is: harnesses leave it out."""
    end = served_policy.renderer.end_ids[0]
    last = Piece(0, end, "", "stop", TokenLogprob(-0.5, ()), prompt=(TokenLogprob(-1.5, ()),))
    body = {"prompt": [5, 6], "max_tokens": 1, "logprobs": 0, "echo": True}
    [choice] = send(serve(engine=Scripted(last)), PATH, body).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.5, -0.5]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "an empty text cannot be continued"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**6]}, "beyond the"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "echo": True, "attributes": {"humor": 1}}, "echo: only of prompts that are continued"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: 0 is for an echo"),
        ({"prompt": "a", "max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens=1 is more than max_tokens=0"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "verified": 2}, "verified"),
        ({"prompt": "a", "raw": True, "attributes": {"humor": 1}}, "no place for attributes"),
        ({"prompt": [5], "attributes": {"humor": 1}}, "no place for attributes"),
        ({"prompt": [5], "raw": False}, "always continued"),
        ({"prompt": ["a"] * 1000}, "1000 answers are more than the 32"),
    ],
)
def test_what_cannot_be_done_is_said(serve: Callable[..., ServerState], body: dict[str, Any], complaint: str) -> None:
    engine = Recorder()
    answer = send(serve(engine=engine), PATH, body)
    assert answer.status_code == 400, answer.text
    assert complaint in answer.json()["error"]["message"]
    assert not engine.requests
