"""Public clients against a server that listens on a port."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI
from llm.default_plugins.openai_models import Chat
from openai.types.responses import ResponseErrorEvent

from served import HELLO, LOCKED, PRESETS, Scripted, judge_of, listening, make_state
from steerlm.engines.base import Piece
from steerlm.errors import EngineError
from steerlm.models.load import SteerModel
from steerlm.server.policy import OperatorPolicy

PROMPT = HELLO[0]["content"]


@pytest.fixture(scope="module")
def address(served_policy: SteerModel, served_judge: SteerModel) -> Iterator[str]:
    judge = judge_of(served_judge)
    state = make_state(served_policy, judge, policy=OperatorPolicy(presets=PRESETS))
    with listening(state) as url:
        yield f"{url}/v1"
    state.engine.close()
    judge.close()


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def text(client: openai.OpenAI) -> str:
    """The greedy answer under verbosity 0, as the plainest call gives it."""
    found = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, extra_body={"attributes": {"verbosity": 0}}
    )
    return found.choices[0].message.content


def test_openai_chat(client: openai.OpenAI, text: str) -> None:
    found = client.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=12, temperature=0, verbosity="low", logprobs=True,
        top_logprobs=2, extra_body={"measure": True},
    )  # fmt: skip
    assert found.choices[0].message.content == text
    assert found.choices[0].finish_reason == "length"
    assert len(found.choices[0].logprobs.content) == found.usage.completion_tokens == 12
    assert found.model_extra["steering"]["attributes"]["verbosity"] == 0
    assert set(found.model_extra["steering"]["measured"][0]) >= {"verbosity", "humor"}
    # A message that is sent back as it came says under which values it was given.
    assert found.choices[0].message.model_extra["attributes"]["verbosity"] == 0
    again = client.chat.completions.create(
        model="tiny", messages=[*HELLO, found.choices[0].message, {"role": "user", "content": "So?"}], max_tokens=2
    )
    assert again.usage.prompt_tokens_details.cached_tokens > found.usage.prompt_tokens


def test_openai_streams(client: openai.OpenAI, text: str) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, verbosity="low", stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == 12
    stop = text[6:10]
    with client.chat.completions.stream(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, verbosity="low", stop=stop
    ) as run:
        message = run.get_final_completion().choices[0].message
    assert message.content == text[: text.index(stop)].rstrip()
    # A message put together from a stream says under which values it was given, like one that came whole.
    whole = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1, verbosity="low")
    assert message.model_extra["attributes"] == whole.choices[0].message.model_extra["attributes"]
    parsed = client.chat.completions.parse(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, verbosity="low", stop=stop
    )
    for past in (message, parsed.choices[0].message):
        history = [*HELLO, past.model_dump(), {"role": "user", "content": "Go on."}]
        assert client.chat.completions.create(model="tiny", messages=history, max_tokens=1).choices


def test_openai_async(address: str, text: str) -> None:
    async def go() -> None:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
            how: dict[str, Any] = {
                "model": "tiny",
                "messages": HELLO,
                "max_tokens": 12,
                "temperature": 0,
                "verbosity": "low",
            }
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**how), client.chat.completions.create(**how, stream=True)
            )
            assert whole.choices[0].message.content == text
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text

    asyncio.run(go())


def test_openai_raw(client: openai.OpenAI, text: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, verbosity="low"
    )
    assert raw.status_code == 200
    assert raw.parse().choices[0].message.content == text
    assert json.loads(raw.text)["object"] == "chat.completion"


def test_openai_completions(client: openai.OpenAI) -> None:
    found = client.completions.create(model="tiny", prompt=["Rivers", "Salt"], max_tokens=6, seed=1, n=2, logprobs=1)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    echo = client.completions.create(model="tiny", prompt="Salt", max_tokens=0, logprobs=0, echo=True)
    assert (echo.choices[0].text, echo.choices[0].logprobs.token_logprobs[0]) == ("Salt", None)
    stream = client.completions.create(model="tiny", prompt="Salt", max_tokens=6, seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == found.choices[2].text


def test_openai_responses(client: openai.OpenAI, text: str) -> None:
    how: dict[str, Any] = {"model": "tiny", "input": PROMPT, "max_output_tokens": 12, "temperature": 0}
    found = client.responses.create(**how, text={"verbosity": "low"})
    assert found.output_text == text
    assert found.usage.output_tokens == 12
    kinds, deltas = [], []
    for told in client.responses.create(**how, text={"verbosity": "low"}, stream=True):
        kinds.append(type(told).__name__)
        if told.type == "response.output_text.delta":
            deltas.append(told.delta)
    assert "".join(deltas) == text
    assert kinds[0] == "ResponseCreatedEvent"
    assert kinds[-1] == "ResponseIncompleteEvent"
    with client.responses.stream(**how, text={"verbosity": "low"}) as run:
        assert [event.type for event in run][-1] == "response.incomplete"
    follow = client.responses.create(
        model="tiny", input=[*HELLO, *found.output, {"role": "user", "content": "So?"}], max_output_tokens=2
    )
    assert follow.usage.input_tokens > found.usage.input_tokens


def test_openai_responses_that_break_off(served_policy: SteerModel) -> None:
    state = make_state(served_policy, engine=Scripted(Piece(0, 70, "Salt"), EngineError("the cable came out")))
    with listening(state) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        raw = client.responses.with_raw_response.create(model="tiny", input=PROMPT, stream=True).http_response.read()
        *_, last = client.responses.create(model="tiny", input=PROMPT, stream=True)
    assert isinstance(last, ResponseErrorEvent)
    assert (last.code, last.message, last.param) == ("engine_error", "the cable came out", None)
    told = raw.decode().strip().split("\n\n")
    assert told[-1].startswith("event: error\n")
    assert last.sequence_number == len(told) - 1


def test_openai_models_and_presets(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:concise", "tiny:free"]
    assert client.models.retrieve("tiny:concise").model_extra["preset"] == "concise"
    found = client.chat.completions.create(model="tiny:concise", messages=HELLO, max_tokens=1)
    assert found.model_extra["steering"]["attributes"]["verbosity"] == 0


def test_openai_errors(client: openai.OpenAI, served_policy: SteerModel) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"attributes": {"humor": 9}})
    assert (caught.value.param, caught.value.code) == ("attributes.humor", "invalid_value")
    with pytest.raises(openai.BadRequestError, match="context") as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=10**6)
    assert caught.value.code == "context_length_exceeded"
    state = make_state(served_policy, policy=LOCKED)
    refused = pytest.raises(openai.PermissionDeniedError, match=r"rule attributes\.toxicity\.locked")
    with listening(state) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as strict, refused:
        strict.chat.completions.create(model="tiny", messages=HELLO, extra_body={"attributes": {"toxicity": 4}})
    state.engine.close()


def test_langchain(address: str, text: str) -> None:
    how: dict[str, Any] = {"base_url": address, "api_key": "none", "model": "tiny", "temperature": 0, "max_tokens": 12}
    chat = ChatOpenAI(**how, extra_body={"attributes": {"verbosity": 0}})
    answer = chat.invoke([("user", PROMPT)])
    assert answer.content == text
    assert answer.usage_metadata["output_tokens"] == 12
    assert "".join(part.content for part in chat.stream(PROMPT)) == text
    assert asyncio.run(chat.ainvoke(PROMPT)).content == text
    assert ChatOpenAI(**how, use_responses_api=True, verbosity="low").invoke(PROMPT).text == text
    plain = OpenAI(**how, extra_body={"attributes": {"verbosity": 0}})
    assert plain.invoke(PROMPT) == text


def test_llm(address: str, client: openai.OpenAI) -> None:
    expected = client.chat.completions.create(model="tiny:concise", messages=HELLO, max_tokens=12, temperature=0)
    model = Chat("steered", model_name="tiny:concise", api_base=address)
    model.key = "none"
    for stream in (True, False):
        answer = model.prompt(PROMPT, stream=stream, temperature=0, max_tokens=12)
        assert answer.text() == expected.choices[0].message.content


def test_curl(address: str, text: str) -> None:
    body = {"messages": HELLO, "max_tokens": 12, "temperature": 0, "attributes": {"verbosity": 0}}
    found = subprocess.run(
        ["curl", "-sS", f"{address}/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body)],
        capture_output=True,
        check=True,
    )
    assert json.loads(found.stdout)["choices"][0]["message"]["content"] == text
