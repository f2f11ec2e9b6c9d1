"""The many fields that steer: each says the same, explicit ones go over presets, contradictions are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from served import HELLO, PRESETS, Recorder, judge_of, make_state, send
from steerlm.attributes import STEERLM, Schema
from steerlm.errors import SchemaError
from steerlm.models.load import SteerModel, new_model
from steerlm.server.policy import OperatorPolicy
from steerlm.server.state import ServerState
from tiny import TOKENIZERS, save_base

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
POLICY = OperatorPolicy.model_validate({"presets": PRESETS, "attributes": {"complexity": {"default": 3}}})
SAID = {"role": "assistant", "content": "x"}
TRAILING = {"role": "assistant", "labels": {"verbosity": 0}}
Serve = Callable[..., ServerState]


def used(state: ServerState, body: dict[str, Any], path: str = CHAT) -> dict[str, int | None]:
    """The values under which an answer was given, by what it says of itself."""
    plain = {"input": "Hi", "max_output_tokens": 1} if path == RESPONSES else {"messages": HELLO, "max_tokens": 1}
    answer = send(state, path, {**plain, **body})
    assert answer.status_code == 200, answer.text
    values: dict[str, int | None] = answer.json()["steering"]["attributes"]
    assert list(values) == list(STEERLM.names)
    return values


@pytest.mark.parametrize(
    "body",
    [
        {"attributes": {"verbosity": 0}},
        {"verbosity": "low"},
        {"chat_template_kwargs": {"attributes": {"verbosity": 0}}},
        {"chat_template_kwargs": {}, "attributes": {"verbosity": 0}},
        {"messages": [*HELLO, TRAILING]},
        {"messages": [*HELLO, {"role": "assistant", "content": "", "attributes": {"verbosity": 0}}]},
        {"messages": [*HELLO, {"role": "assistant", "content": None, "labels": {"verbosity": 0}}]},
        {"model": "tiny:concise", "attributes": {"complexity": 3}},
        {"attributes": {"verbosity": 0}, "verbosity": "low"},
    ],
)
def test_every_field_says_the_same(serve: Serve, body: dict[str, Any]) -> None:
    expected = {**STEERLM.defaults, "complexity": 3, "verbosity": 0}
    assert used(serve(policy=POLICY), body) == expected


def test_labels_on_the_scale_of_nvidias_api(serve: Serve) -> None:
    """The body that its documentation shows, to a server whose operator says that labels go from 0 to 9."""
    state = serve(policy=OperatorPolicy.model_validate({"labels_scale": [0, 9]}))
    body = {
        "messages": [*HELLO, {"labels": {"complexity": 9, "creativity": 0, "verbosity": 9}, "role": "assistant"}],
        "temperature": 0.2, "top_p": 0.7, "max_tokens": 1, "seed": 42, "bad": None, "stop": None, "stream": False,
    }  # fmt: skip
    assert used(state, body) == {**STEERLM.defaults, "complexity": 4, "creativity": 0, "verbosity": 4}
    # Ten levels on five: 4/9 of each step, to the nearest.
    for label, level in enumerate((0, 0, 1, 1, 2, 2, 3, 3, 4, 4)):
        assert used(state, {"messages": [*HELLO, {**TRAILING, "labels": {"humor": label}}]})["humor"] == level
    # Labels of past answers too; every other field is on the model's own scale.
    talk = [*HELLO, {**SAID, "labels": {"humor": 9}}, *HELLO]
    assert used(state, {"messages": talk, "attributes": {"humor": 3}})["humor"] == 3
    for messages, param in (
        ([*HELLO, {**SAID, "labels": {"humor": 10}}, *HELLO], "messages.1.labels.humor"),
        ([*HELLO, {**SAID, "attributes": {"humor": 9}}, *HELLO], "messages.1.attributes.humor"),
        ([*HELLO, {**TRAILING, "labels": {"wit": 9}}], "messages.1.labels.wit"),
    ):
        assert send(state, CHAT, {"messages": messages}).json()["error"]["param"] == param


@pytest.mark.parametrize(("word", "level"), [("low", 0), ("medium", 2), ("high", 4)])
def test_verbosity_in_words(serve: Serve, word: str, level: int) -> None:
    state = serve()
    assert used(state, {"verbosity": word})["verbosity"] == level
    assert used(state, {"text": {"verbosity": word}}, RESPONSES)["verbosity"] == level


def test_words_span_what_the_operator_allows(serve: Serve) -> None:
    state = serve(policy=OperatorPolicy.model_validate({"attributes": {"verbosity": {"low": 1, "high": 3}}}))
    assert [used(state, {"verbosity": word})["verbosity"] for word in ("low", "medium", "high")] == [1, 2, 3]


def test_precedence(serve: Serve) -> None:
    state = serve(policy=POLICY)
    assert used(state, {})["complexity"] == 3  # the operator's default over the model's
    concise = used(state, {"model": "tiny:concise"})
    assert (concise["verbosity"], concise["complexity"]) == (0, 1)
    mixed = used(state, {"model": "tiny:concise", "attributes": {"verbosity": 4}})
    assert (mixed["verbosity"], mixed["complexity"]) == (4, 1)  # a request's own values over the preset's
    assert used(state, {"model": "tiny:free"})["humor"] is None
    assert used(state, {"attributes": {"quality": None}})["quality"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"attributes": {"verbosity": 1}, "verbosity": "low"},
        {"attributes": {"verbosity": 1}, "messages": [*HELLO, TRAILING]},
        {"attributes": {"verbosity": None}, "chat_template_kwargs": {"attributes": {"verbosity": 1}}},
        {"messages": [*HELLO, {**TRAILING, "attributes": {"verbosity": 1}}]},
        {"max_tokens": 3, "max_completion_tokens": 4},
    ],
)
def test_contradictions_are_refused(serve: Serve, body: dict[str, Any]) -> None:
    answer = send(serve(engine=Recorder()), CHAT, {"messages": HELLO, **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "contradiction"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"attributes": {"wit": 1}}, "attributes.wit"),
        ({"attributes": {"humor": 5}}, "attributes.humor"),
        ({"attributes": {"humor": -1}}, "attributes.humor"),
        ({"attributes": {"humor": 10**30}}, "attributes.humor"),
        ({"attributes": {"humor": True}}, "attributes.humor"),
        ({"attributes": {"humor": "4"}}, "attributes.humor"),
        ({"attributes": {"humor": 1.5}}, "attributes.humor"),
        ({"attributes": {"a\nb:4,toxicity": 4}}, "attributes.a\nb:4,toxicity"),
        ({"attributes": [1]}, "attributes"),
        ({"verbosity": "huge"}, "verbosity"),
        ({"chat_template_kwargs": {"attributes": {}, "chat_template": "x"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs.add_generation_prompt"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"labels": {"humor": 1}}, "labels"),
        ({"measure": 1}, "measure"),
        ({"guidance": 1e9}, "guidance"),
        ({"guidance": -1}, "guidance"),
        ({"verified": 0}, "verified"),
        ({"verified": 10**9}, "verified"),
        ({"model": "tiny:none"}, "model"),
        ({"model": "other"}, "model"),
        ({"messages": [{"role": "user", "content": "Hi", "attributes": {"humor": 1}}]}, "messages.0"),
        ({"messages": [{"role": "system", "content": "Hi", "labels": {"humor": 1}}, *HELLO]}, "messages.0"),
        ({"messages": [*HELLO, {**SAID, "labels": {"humor": 9}}, *HELLO]}, "messages.1.labels.humor"),
        ({"messages": [*HELLO, {"role": "assistant", "labels": {"humor": 9}}]}, "messages.1.labels.humor"),
        ({"messages": [*HELLO, {"role": "assistant"}]}, "messages.1"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "So"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [*HELLO, {"role": "system", "content": "x"}, *HELLO]}, "messages.1.role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_field(serve: Serve, body: dict[str, Any], param: str) -> None:
    engine = Recorder()
    answer = send(serve(engine=engine), CHAT, {"messages": HELLO, **body})
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    assert answer.json()["error"]["param"] == param
    assert not engine.requests


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([*HELLO, {"role": "assistant", "content": "So"}], "an assistant message cannot be continued"),
        ([{"role": "system", "content": "Be kind."}], "there is none at its end"),
        ([], "there is none at its end"),
    ],
)
def test_it_is_said_why_a_conversation_cannot_be_answered(serve: Serve, messages: list[Any], why: str) -> None:
    error = send(serve(), CHAT, {"messages": messages}).json()["error"]
    assert error["message"] == f"messages: the conversation must end with a user message; {why}"


def test_measured_and_verified(serve: Serve) -> None:
    state = serve()
    asked = {"attributes": {"humor": 3, "verbosity": 1}, "max_tokens": 6, "seed": 3}
    drawn = send(state, CHAT, {"messages": HELLO, **asked, "n": 4, "measure": True}).json()
    measured = drawn["steering"]["measured"]
    best = send(state, CHAT, {"messages": HELLO, **asked, "verified": 4}).json()
    # By hand: the mean over what was asked for of the gaps, as a share of a scale of four steps.
    gaps = [(abs(item["humor"] - 3) / 4 + abs(item["verbosity"] - 1) / 4) / 2 for item in measured]
    verified = best["steering"]["verified"]
    assert verified["attributes"] == ["humor", "verbosity"]
    assert verified["distances"] == pytest.approx(gaps, abs=1e-4)
    assert verified["distance"] == min(verified["distances"])
    assert verified["drawn"] == 4
    chosen = gaps.index(min(gaps))
    assert verified["chosen"] == chosen
    assert best["choices"][0]["message"]["content"] == drawn["choices"][chosen]["message"]["content"]
    assert best["steering"]["measured"] == [measured[chosen]]
    assert len(best["choices"]) == 1


def test_measured_as_a_score_of_the_conversation(serve: Serve) -> None:
    state = serve()
    answer = send(state, CHAT, {"messages": HELLO, "max_tokens": 6, "measure": True}).json()
    system = {"role": "system", "content": "Be brief."}  # the policy's own
    said = {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
    scored = send(state, "/v1/score", {"messages": [system, *HELLO, said]}).json()
    assert answer["steering"]["measured"][0] == pytest.approx(scored["data"][0]["answers"][0]["scores"], abs=1e-3)


@pytest.mark.parametrize("field", ["measure", "verified"])
def test_without_an_attribute_model_nothing_is_measured(serve: Serve, field: str) -> None:
    answer = send(serve(judge=None), CHAT, {"messages": HELLO, field: field == "measure" or 2})
    assert answer.json()["error"]["code"] == "no_attribute_model"
    assert answer.status_code == 400


@pytest.mark.parametrize("more", [{"n": 2}, {"temperature": 0}, {"stream": True}])
def test_what_verified_excludes(serve: Serve, more: dict[str, Any]) -> None:
    answer = send(serve(), CHAT, {"messages": HELLO, "verified": 2, "max_tokens": 2, **more})
    assert answer.status_code == 400
    assert "verified" in answer.json()["error"]["message"]


def test_an_attribute_model_on_another_scale_is_refused(served_policy: SteerModel, tmp_path: Path) -> None:
    """What it measures could not be compared with what is asked."""
    wide = Schema(tuple(replace(item, high=9) if item.name == "humor" else item for item in STEERLM))
    model = new_model("attribute-model", save_base(tmp_path / "base", TOKENIZERS["chatml"]()), wide)
    judge = judge_of(model)
    with pytest.raises(SchemaError, match=r"scores humor on 0\.\.9, the policy is asked for it on 0\.\.4"):
        make_state(served_policy, judge, engine=Recorder())
    judge.close()
