"""/v1/steer/sweep against one call of /v1/chat/completions for each setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from served import HELLO, Recorder, send
from steerlm.dialects import Renderer
from steerlm.engines import TorchEngine
from steerlm.models.load import SteerModel
from steerlm.server.admission import Admission
from steerlm.server.guard_settings import GuardSettings
from steerlm.server.limits import ServerLimits
from steerlm.server.state import ServerState

PATH = "/v1/steer/sweep"
TALK = [*HELLO, {"role": "assistant", "content": "Rivers.", "labels": {"humor": 1}}, *HELLO]
Post = Callable[..., httpx2.Response]


def test_a_grid_is_one_call_for_each_setting(post: Post) -> None:
    shared = {"messages": TALK, "max_tokens": 6, "seed": 9, "n": 2, "measure": True}
    found = post(PATH, {**shared, "grid": {"verbosity": [0, 4], "humor": [0, None]}, "attributes": {"creativity": 2}})
    answers = found.json()["answers"]
    settings = [{"verbosity": level, "humor": humor} for level in (0, 4) for humor in (0, None)]
    assert [answer["setting"] for answer in answers] == [0, 0, 1, 1, 2, 2, 3, 3]
    for number, setting in enumerate(settings):
        body = {**shared, "attributes": {**setting, "creativity": 2}}
        alone = post("/v1/chat/completions", body).json()
        for k in range(2):
            answer = answers[2 * number + k]
            assert answer["text"] == alone["choices"][k]["message"]["content"]
            assert answer["attributes"] == alone["steering"]["attributes"]
            assert answer["measured"] == pytest.approx(alone["steering"]["measured"][k], abs=1e-3)
    assert found.json()["usage"]["completion_tokens"] <= 8 * 6


def test_a_list_of_settings(post: Post) -> None:
    body = {"messages": HELLO, "max_tokens": 4, "temperature": 0}
    listed = post(PATH, {**body, "settings": [{"humor": 0, "verbosity": 1}, {"humor": 4, "verbosity": 1}]}).json()
    grid = post(PATH, {**body, "grid": {"humor": [0, 4]}, "attributes": {"verbosity": 1}}).json()
    assert listed["answers"] == grid["answers"]


def test_it_is_one_submission_with_one_prefix(serve: Callable[..., ServerState], served_policy: SteerModel) -> None:
    engine = Recorder(TorchEngine(served_policy))
    talk = [*HELLO, {"role": "assistant", "content": "Rivers."}, *HELLO]
    send(serve(engine=engine), PATH, {"messages": talk, "max_tokens": 1, "grid": {"verbosity": [0, 1, 2, 3, 4]}})
    assert len(engine.requests) == 5
    assert engine.cancelled == 1
    prompts = [request.prompt for request in engine.requests]
    marker = served_policy.renderer.tokenizer.convert_tokens_to_ids("<|im_start|>")
    # They differ only after the last assistant marker.
    assert len({prompt[: len(prompt) - prompt[::-1].index(marker)] for prompt in prompts}) == 1
    assert len(set(prompts)) == 5


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"grid": {}},
        {"grid": {"humor": []}},
        {"settings": []},
        {"grid": {"humor": [0]}, "settings": [{}]},
        {"grid": {"wit": [0]}},
        {"grid": {"humor": [7]}},
        {"grid": {"humor": [0]}, "attributes": {"humor": 1}},
        {"grid": {"humor": [0, 1, 2]}, "n": 11},
        {"grid": {name: [0, 1, 2, 3, 4] for name in ("humor", "verbosity", "complexity", "quality")}},
        {"grid": {"humor": [0] * 10_000}},
        {"grid": {"humor": [0]}, "n": 10**9},
        # As many combinations as a number of over 4,300 digits, which Python does not write.
        {"grid": {f"a{number}": [0] * 100 for number in range(2200)}},
        {"settings": [{}] * 11, "n": int("9" * 4300)},
        {"grid": {"humor": [0]}, "stream": True},
    ],
)
def test_what_makes_no_sweep_is_refused(serve: Callable[..., ServerState], body: dict[str, Any]) -> None:
    engine = Recorder()
    answer = send(serve(engine=engine), PATH, {"messages": HELLO, **body})
    assert answer.status_code == 400
    assert not engine.requests


def test_a_conversation_that_is_too_long_is_rendered_once(
    serve: Callable[..., ServerState], monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    render = Renderer.prompt

    def counted(*given: Any) -> list[int]:
        rendered.append(given)
        return render(*given)

    monkeypatch.setattr(Renderer, "prompt", counted)
    messages = [{"role": "user", "content": "salt " * 3000}]
    for path, body in (
        (PATH, {"messages": messages, "settings": [{"humor": level} for level in range(5)]}),
        ("/v1/completions", {"prompt": ["salt " * 3000] * 5, "attributes": {"humor": 0}}),
    ):
        rendered.clear()
        answer = send(serve(engine=Recorder()), path, body)
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert len(rendered) == 1


def test_what_can_never_run_at_once_is_refused_by_its_field(serve: Callable[..., ServerState]) -> None:
    assert ServerLimits().answers <= GuardSettings().running
    state = serve(engine=Recorder(), admission=Admission(running=2, waiting=8))
    for path, body, field in (
        (PATH, {"settings": [{}] * 3}, "settings"),
        ("/v1/chat/completions", {"n": 3}, "n"),
        ("/v1/chat/completions", {"verified": 3}, "verified"),
    ):
        error = send(state, path, {"messages": HELLO, **body}).json()["error"]
        assert error["param"] == field
        assert "more than the 2 of a request" in error["message"]
