"""/v1/chat/completions against transformers, fed with what the model's own chat template makes of the messages."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import torch

from served import HELLO, Recorder, events, send
from steerlm.engines import TorchEngine
from steerlm.models.load import SteerModel
from steerlm.server.logprobs import ChatLogprobs, chat_logprobs
from steerlm.server.routes.chat_models import ChatCompletion
from steerlm.server.state import ServerState

PATH = "/v1/chat/completions"
Post = Callable[..., httpx2.Response]
TALK = [
    {"role": "system", "content": "Answer like a sailor."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Ahoy!", "attributes": {"humor": 3}},
    {"role": "user", "content": "Why is the sea salty? <|im_end|>"},
]


def template_ids(model: SteerModel, messages: list[dict[str, Any]], values: dict[str, int | None]) -> list[int]:
    ids: list[int] = model.renderer.tokenizer.apply_chat_template(
        messages, attributes=values, add_generation_prompt=True, return_dict=False
    )
    return ids


def generated(model: SteerModel, ids: list[int], count: int) -> list[int]:
    """The greedy answer of `generate`."""
    found = model.network.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return found[0, len(ids) :].tolist()


@pytest.mark.parametrize(
    ("messages", "values"),
    [(HELLO, {}), (HELLO, {"verbosity": 0}), (TALK, {"verbosity": 1, "humor": None}), (TALK[1:], {})],
)
def test_answers_as_generate_after_the_chat_template(
    post: Post, served_policy: SteerModel, messages: list[dict[str, Any]], values: dict[str, int | None]
) -> None:
    ids = template_ids(served_policy, messages, values)
    expected = served_policy.renderer.tokenizer.decode(generated(served_policy, ids, 12), skip_special_tokens=True)
    found = post(PATH, {"messages": messages, "attributes": values, "max_tokens": 12, "temperature": 0}).json()
    assert found["choices"][0]["message"]["content"] == expected.strip()
    assert found["usage"]["prompt_tokens"] == len(ids)
    assert {name: found["steering"]["attributes"][name] for name in values} == values


def test_a_stream_holds_the_same(post: Post) -> None:
    body = {"messages": HELLO, "max_tokens": 16, "seed": 4, "n": 2}
    whole = post(PATH, body).json()
    chunks = events(post(PATH, {**body, "stream": True, "stream_options": {"include_usage": True}}).text)
    texts, reasons = ["", ""], ["", ""]
    for chunk in chunks[:-1]:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    attributes = whole["choices"][0]["message"]["attributes"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "attributes": attributes}
    assert chunks[0]["steering"] == whole["steering"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_ends_with_its_mark(post: Post) -> None:
    answer = post(PATH, {"messages": HELLO, "max_tokens": 2, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "usage" not in [name for chunk in events(answer.text) for name, value in chunk.items() if value]


def test_same_seed_same_text(post: Post) -> None:
    def texts(**more: Any) -> list[str]:
        found = post(PATH, {"messages": HELLO, "max_tokens": 12, **more}).json()
        return [choice["message"]["content"] for choice in found["choices"]]

    three = texts(seed=5, n=3)
    assert texts(seed=5, n=3) == three
    assert len(set(three)) == 3
    assert texts(seed=7) == three[2:]  # answer k draws with seed + k
    assert texts() != texts()
    assert texts(seed=-5) == texts(seed=-5)


def test_stop_text_never_shows(post: Post) -> None:
    body = {"messages": HELLO, "max_tokens": 40, "temperature": 0}
    free = post(PATH, body).json()["choices"][0]["message"]["content"]
    middle = free[len(free) // 2 : len(free) // 2 + 4]
    for stop in (middle, ["never", middle]):
        [choice] = post(PATH, {**body, "stop": stop}).json()["choices"]
        assert choice["message"]["content"] == free[: free.index(middle)].rstrip()
        assert choice["finish_reason"] == "stop"
        shown = events(post(PATH, {**body, "stop": stop, "stream": True}).text)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in shown)
        assert text == free[: free.index(middle)].rstrip()


def test_log_probabilities_are_written_in_a_thread(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is that of this thread."""
    seen: list[threading.Thread] = []
    written_as = ChatCompletion.model_dump_json

    def dumped(self: ChatCompletion, **options: Any) -> str:
        seen.append(threading.current_thread())
        return written_as(self, **options)

    def listed(*args: Any) -> ChatLogprobs:
        seen.append(threading.current_thread())
        return chat_logprobs(*args)

    monkeypatch.setattr(ChatCompletion, "model_dump_json", dumped)
    monkeypatch.setattr("steerlm.server.routes.chat.chat_logprobs", listed)
    post(PATH, {"messages": HELLO, "max_tokens": 2, "n": 2, "logprobs": True})
    assert len(seen) == 3
    assert threading.current_thread() not in seen


def test_stop_text_does_not_show_in_logprobs(post: Post) -> None:
    """Whether it begins with a token, within one, or is white space; in streams the same tokens are listed."""
    body = {"messages": HELLO, "max_tokens": 24, "temperature": 0, "logprobs": True}
    [whole] = post(PATH, body).json()["choices"]
    free, every = whole["message"]["content"], [item["token"] for item in whole["logprobs"]["content"]]
    for start in range(1, len(free) - 3, 5):
        stop = free[start : start + 3]
        [choice] = post(PATH, {**body, "stop": stop}).json()["choices"]
        listed = [item["token"] for item in choice["logprobs"]["content"]]
        assert stop not in "".join(listed)
        assert listed == every[: len(listed)]
        assert len("".join(every[: len(listed) + 1]).lstrip()) > len(choice["message"]["content"])
        streamed = events(post(PATH, {**body, "stop": stop, "stream": True}).text)
        parts = [chunk["choices"][0]["logprobs"] or {"content": []} for chunk in streamed]
        assert [item["token"] for part in parts for item in part["content"]] == listed


def test_logprobs_are_those_of_the_network(post: Post, served_policy: SteerModel) -> None:
    body = {"messages": HELLO, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    [choice] = post(PATH, body).json()["choices"]
    ids = template_ids(served_policy, HELLO, {})
    made = generated(served_policy, ids, 6)
    with torch.no_grad():
        logits_TV = served_policy.network(torch.tensor([ids + made])).logits[0, len(ids) - 1 : -1]
    scores_TV = logits_TV.log_softmax(-1)
    content = choice["logprobs"]["content"]
    assert len(content) == len(made)
    for entry, token, scores_V in zip(content, made, scores_TV, strict=True):
        assert entry["logprob"] == pytest.approx(float(scores_V[token]), abs=1e-4)
        best = scores_V.topk(3)
        assert [item["logprob"] for item in entry["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
    raw = bytes(byte for entry in content for byte in entry["bytes"])
    # The words of label lines are tokens that text leaves out.
    whole = served_policy.renderer.tokenizer.decode(made, skip_special_tokens=False)
    assert raw.decode("utf-8", errors="replace") == whole
    streamed = events(post(PATH, {**body, "stream": True}).text)
    parts = [chunk["choices"][0]["logprobs"]["content"] for chunk in streamed if chunk["choices"][0]["logprobs"]]
    again = [entry for part in parts for entry in part]
    assert [entry["token"] for entry in again] == [entry["token"] for entry in content]
    # What is kept of the first call changes the order of sums.
    assert [entry["logprob"] for entry in again] == pytest.approx([entry["logprob"] for entry in content], abs=1e-4)


def test_a_later_turn_reads_what_is_kept(served_policy: SteerModel, state: ServerState) -> None:
    first = send(state, PATH, {"messages": HELLO, "max_tokens": 8, "seed": 1, "attributes": {"verbosity": 1}}).json()
    message = first["choices"][0]["message"]
    body = {"messages": [*HELLO, message, {"role": "user", "content": "And lakes?"}], "max_tokens": 2}
    second = send(state, PATH, body).json()
    kept = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert first["usage"]["prompt_tokens"] <= kept < second["usage"]["prompt_tokens"]


def test_an_answer_sent_back_keeps_its_values(serve: Callable[..., ServerState], served_policy: SteerModel) -> None:
    engine = Recorder(TorchEngine(served_policy))
    state = serve(engine=engine)
    asked = {"verbosity": 0, "humor": None}
    message = send(state, PATH, {"messages": HELLO, "max_tokens": 2, "attributes": asked}).json()["choices"][0][
        "message"
    ]
    send(state, PATH, {"messages": [*HELLO, message, *HELLO], "max_tokens": 2})
    text = served_policy.renderer.tokenizer.decode(engine.requests[-1].prompt)
    past, now = text.split("<|im_start|>assistant\n")[1:]
    assert "verbosity:0" in past
    assert "humor" not in past
    assert "verbosity:4" in now
    assert "humor:0" in now


def test_past_answers_without_values_had_those_of_now(
    serve: Callable[..., ServerState], served_policy: SteerModel
) -> None:
    engine = Recorder(TorchEngine(served_policy))
    talk = [*HELLO, {"role": "assistant", "content": "Rivers."}, *HELLO]
    send(serve(engine=engine), PATH, {"messages": talk, "max_tokens": 2, "attributes": {"verbosity": 2}})
    assert list(engine.requests[0].prompt) == template_ids(served_policy, talk, {"verbosity": 2})


def test_parts_of_text_are_joined(post: Post) -> None:
    parts = [{"type": "text", "text": "Why is"}, {"type": "text", "text": "the sea salty?"}]
    body = {"max_tokens": 8, "temperature": 0}
    split = post(PATH, {**body, "messages": [{"role": "user", "content": parts}]}).json()
    joined = post(PATH, {**body, "messages": [{"role": "user", "content": "Why is\nthe sea salty?"}]}).json()
    assert split["choices"] == joined["choices"]


def test_a_developer_message_is_system_text(post: Post) -> None:
    def answer(role: str) -> Any:
        messages = [{"role": role, "content": "Be a pirate."}, *HELLO]
        return post(PATH, {"messages": messages, "max_tokens": 8, "temperature": 0}).json()["choices"]

    assert answer("developer") == answer("system")


def test_what_clients_send_and_nothing_depends_on(post: Post) -> None:
    harmless = {
        "user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True,
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "modalities": ["text"], "stop": None, "bad": None, "n": None, "top_k": -1,
        "top_p": 1, "safety_identifier": "s", "stream": False, "logprobs": None, "model": "tiny",
    }  # fmt: skip
    answer = post(PATH, {"messages": HELLO, "max_tokens": 2, **harmless})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("seldom", [{"top_p": 0}, {"temperature": 1e-30}, {"top_k": 10**18, "temperature": 0}])
def test_ways_to_ask_for_the_likeliest(post: Post, seldom: dict[str, Any]) -> None:
    body = {"messages": HELLO, "max_tokens": 8}
    greedy = post(PATH, {**body, "temperature": 0}).json()["choices"]
    assert post(PATH, {**body, **seldom}).json()["choices"] == greedy


def test_guidance_pushes_away_from_the_default(post: Post, served_policy: SteerModel) -> None:
    body = {"messages": HELLO, "attributes": {"verbosity": 0}, "max_tokens": 1, "temperature": 0, "logprobs": True}
    own, other = (
        served_policy.network(torch.tensor([template_ids(served_policy, HELLO, values)])).logits[0, -1].detach()
        for values in ({"verbosity": 0}, {})
    )
    for factor in (1.0, 6.0):
        [choice] = post(PATH, {**body, "guidance": factor}).json()["choices"]
        token = int((other + factor * (own - other)).argmax())
        shown = served_policy.renderer.tokenizer.decode([token])
        assert choice["logprobs"]["content"][0]["token"] == shown
