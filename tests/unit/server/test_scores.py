"""/v1/score and /pooling against `AutoModelForSequenceClassification` on the chat template's own text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx2
import pytest
import torch

from served import HELLO, client_of, send
from steerlm.annotation.scorer import Fitted, Scored, Scorer, on_scale
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.errors import EngineError
from steerlm.models.load import SteerModel
from steerlm.server.admission import Admission
from steerlm.server.errors import ApiError
from steerlm.server.judge import Bound, Judge
from steerlm.server.limits import ServerLimits
from steerlm.server.state import ServerState

Post = Callable[..., httpx2.Response]
TALK = [
    {"role": "system", "content": "Be a sailor."},
    *HELLO,
    {"role": "assistant", "content": "Rivers carry salt."},
    {"role": "user", "content": "And lakes?"},
    {"role": "assistant", "content": [{"type": "text", "text": "They have a way out."}]},
]


def by_template(model: SteerModel, messages: list[dict[str, Any]]) -> dict[str, float]:
    """Scores of the last answer by the network alone, on text that the judge's own chat template wrote."""
    plain = [
        {**item, "content": item["content"] if isinstance(item["content"], str) else item["content"][0]["text"]}
        for item in messages
    ]
    text = model.renderer.chat_template("score", "")
    ids = model.renderer.tokenizer.apply_chat_template(plain, chat_template=text, return_dict=False)
    with torch.no_grad():
        scores_A = model.network(torch.tensor([ids])).logits[0]
    return on_scale(STEERLM, dict(zip(STEERLM.names, scores_A.tolist(), strict=True)))


def tokens_of(model: SteerModel, prompt: str, answer: str) -> int:
    """Tokens of a conversation as the judge's own chat template writes it."""
    talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    text = model.renderer.chat_template("score", "")
    return len(model.renderer.tokenizer.apply_chat_template(talk, chat_template=text, return_dict=False))


def test_every_answer_of_a_conversation_is_scored(post: Post, served_judge: SteerModel) -> None:
    found = post("/v1/score", {"messages": TALK}).json()
    assert found["attributes"] == list(STEERLM.names)
    first, second = found["data"][0]["answers"]
    assert (first["message"], second["message"]) == (2, 4)
    assert first["scores"] == pytest.approx(by_template(served_judge, TALK[:3]), abs=2e-3)
    assert second["scores"] == pytest.approx(by_template(served_judge, TALK), abs=2e-3)


def test_pooling_is_the_last_answer_as_a_vector(post: Post) -> None:
    scores = post("/v1/score", {"messages": TALK}).json()["data"][0]["answers"][-1]["scores"]
    found = post("/pooling", {"model": "judge", "messages": TALK}).json()
    assert found["data"] == [{"index": 0, "object": "pooling", "data": list(scores.values())}]


def test_usage_is_what_the_attribute_model_read(post: Post, served_judge: SteerModel) -> None:
    talk = [*HELLO, {"role": "assistant", "content": "Rivers carry salt."}]
    read = tokens_of(served_judge, HELLO[0]["content"], "Rivers carry salt.")
    usage = post("/v1/score", {"messages": talk}).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (read, 0, read)
    assert post("/pooling", {"messages": talk}).json()["usage"] == usage
    tree = {
        "messages": [
            {"role": "user", "text": HELLO[0]["content"]},
            {"role": "assistant", "text": "Rivers carry salt.", "parent": 0},
        ]
    }
    assert post("/v1/score", {"conversations": [tree] * 3}).json()["usage"]["total_tokens"] == 3 * read


def test_trees_are_scored_together(post: Post) -> None:
    tree = {
        "id": "c1",
        "system": "Be a sailor.",
        "messages": [
            {"role": "user", "text": "Why is the sea salty?"},
            {"role": "assistant", "text": "Rivers carry salt.", "parent": 0},
            {"role": "assistant", "text": "Because the land never waves back.", "parent": 0},
        ],
    }
    found = post("/v1/score", {"conversations": [tree, {"messages": tree["messages"][:2]}]}).json()["data"]
    assert [(item["index"], item["id"], len(item["answers"])) for item in found] == [(0, "c1", 2), (1, None, 1)]
    thread = post("/v1/score", {"messages": TALK[:3]}).json()["data"][0]["answers"][0]["scores"]
    assert found[0]["answers"][0]["scores"] == pytest.approx(thread, abs=2e-3)
    assert found[0]["answers"][1]["scores"] != found[0]["answers"][0]["scores"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", {}),
        ("/v1/score", {"messages": TALK, "conversations": []}),
        ("/v1/score", {"conversations": []}),
        ("/v1/score", {"conversations": [{"messages": []}]}),
        ("/v1/score", {"conversations": [{"messages": [{"role": "user", "text": "a", "parent": 3}]}]}),
        ("/v1/score", {"conversations": [{"messages": [{"role": "bot", "text": "a"}]}]}),
        ("/v1/score", {"conversations": [{"messages": [{"role": "user", "text": "a"}]}] * 1000}),
        ("/v1/score", {"messages": HELLO}),
        ("/v1/score", {"messages": []}),
        ("/v1/score", {"messages": [*TALK, TALK[0]]}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/pooling", {"messages": [*TALK, *HELLO]}),
        ("/pooling", {"input": "a"}),
        ("/pooling", {"messages": TALK, "encoding_format": "base64"}),
    ],
)
def test_what_cannot_be_scored_is_refused(post: Post, path: str, body: dict[str, Any]) -> None:
    answer = post(path, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_without_an_attribute_model(serve: Callable[..., ServerState]) -> None:
    answer = send(serve(judge=None), "/v1/score", {"messages": TALK})
    assert answer.status_code == 501
    assert "--attribute-model" in answer.json()["error"]["message"]


class _Held(Scorer):
    """Waits to be let go, and notes how many conversations come at a time."""

    def __init__(self, model: SteerModel) -> None:
        super().__init__(model)
        self.go = Event()
        self.begun = Event()
        self.sizes: list[int] = []

    def score_fitted(self, fitted: Sequence[Fitted], watch: Any = None) -> Scored:
        self.sizes.append(len(fitted))
        self.begun.set()
        assert self.go.wait(60)
        if any(part.id == "poison" for part in fitted):
            raise RuntimeError("poison")
        return super().score_fitted(fitted, watch)


def _conversation(text: str) -> Conversation:
    return Conversation(text, (Message("user", text), Message("assistant", f"{text}!", 0)))


def test_what_arrives_meanwhile_is_scored_together(served_judge: SteerModel) -> None:
    scorer = _Held(served_judge)
    judge = Judge(scorer)

    async def go() -> None:
        first = asyncio.wrap_future(judge.submit([_conversation("a")]))
        with ThreadPoolExecutor() as threads:
            await asyncio.get_running_loop().run_in_executor(threads, scorer.begun.wait)
        later = [asyncio.wrap_future(judge.submit([_conversation(text)])) for text in ("b", "c", "d")]
        await asyncio.sleep(0)
        later[1].cancel()
        await asyncio.sleep(0)
        scorer.go.set()
        await asyncio.gather(first, later[0], later[2])
        assert later[1].cancelled()
        alone = await asyncio.wrap_future(judge.submit([_conversation("d")]))
        together = later[2].result()
        assert alone.scores[0][1] == pytest.approx(together.scores[0][1], abs=2e-3)
        assert alone.tokens == together.tokens == tokens_of(served_judge, "d", "d!")

    asyncio.run(go())
    judge.close()
    assert scorer.sizes == [1, 2, 1]


def test_one_that_fails_does_not_spoil_the_others(served_judge: SteerModel) -> None:
    scorer = _Held(served_judge)
    judge = Judge(scorer)

    async def go() -> list[Any]:
        tasks = [asyncio.wrap_future(judge.submit([_conversation(text)])) for text in ("a", "poison", "b")]
        await asyncio.sleep(0)
        scorer.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, broken, last = asyncio.run(go())
    judge.close()
    assert isinstance(broken, RuntimeError)
    assert first.scores[0][1].keys() == last.scores[0][1].keys() == set(STEERLM.names)


def _long_talk(turns: int) -> list[dict[str, str]]:
    texts = [f"Why is sea number {number} salty, and who has tasted it?" for number in range(turns)]
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def test_answers_read_without_their_oldest_turns_are_marked(serve: Callable[..., ServerState]) -> None:
    """Those whose text, as the judge's own chat template writes it, is longer than its context."""
    state = serve()
    assert state.judge is not None
    model, context = state.judge._scorer.model, state.judge._scorer.context
    talk = _long_talk(120)
    template = model.renderer.chat_template("score", "")
    lengths = [
        len(model.renderer.tokenizer.apply_chat_template(talk[: k + 1], chat_template=template, return_dict=False))
        for k in range(1, len(talk), 2)
    ]
    assert lengths[0] < context < lengths[-1]
    answers = send(state, "/v1/score", {"messages": talk}).json()["data"][0]["answers"]
    assert [item["truncated"] for item in answers] == [length > context for length in lengths]


def test_no_request_reads_without_end(serve: Callable[..., ServerState]) -> None:
    """Each answer beyond the context is read with what the context holds before it: a long talk many times over."""
    state = serve(limits=ServerLimits(score_tokens=20_000))
    talk = _long_talk(120)
    assert send(state, "/v1/score", {"messages": talk[:20]}).status_code == 200
    answer = send(state, "/v1/score", {"messages": talk})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert "more than 20000 tokens would be read" in answer.json()["error"]["message"]
    # One answer of it is one reading.
    pooled = send(state, "/pooling", {"messages": talk})
    assert pooled.status_code == 200
    assert pooled.json()["usage"]["prompt_tokens"] <= state.judge._scorer.context  # type: ignore[union-attr]


class _Counted(Scorer):
    """Notes which conversations it is given to fit."""

    def __init__(self, model: SteerModel) -> None:
        super().__init__(model)
        self.fitted: list[str] = []

    def fit(self, conversation: Conversation, only: Collection[int] | None = None) -> Fitted:
        self.fitted.append(conversation.id)
        return super().fit(conversation, only)


def test_nothing_more_is_rendered_of_a_request_that_is_too_large(served_judge: SteerModel) -> None:
    scorer = _Counted(served_judge)
    judge = Judge(scorer)
    each = tokens_of(served_judge, "a", "a!")
    talks = [_conversation("a")] * 5
    exact = judge.submit(talks, bound=Bound(5 * each, "conversations"))
    over = judge.submit(talks, bound=Bound(2 * each, "conversations"))
    judge.close()
    assert exact.result().tokens == 5 * each
    with pytest.raises(ApiError, match=f"more than {2 * each} tokens would be read"):
        over.result()
    assert len(scorer.fitted) == 5 + 3


def test_a_stopped_judge_computes_nothing_more(served_judge: SteerModel) -> None:
    scorer = _Held(served_judge)
    judge = Judge(scorer)
    first, second = (judge.submit([_conversation(text)]) for text in ("a", "b"))
    assert scorer.begun.wait(60)
    judge.stop()
    scorer.go.set()
    judge.close()
    for found in (first, second):
        with pytest.raises(EngineError, match="stopping"):
            found.result()
    assert len(scorer.sizes) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "measure": True}),
        ("/v1/chat/completions", {"messages": HELLO, "verified": 2}),
        ("/v1/completions", {"prompt": "Hello", "measure": True}),
        ("/v1/responses", {"input": "Hello", "measure": True}),
        ("/v1/steer/sweep", {"messages": HELLO, "settings": [{}], "measure": True}),
    ],
)
def test_answers_are_not_thrown_away_where_scoring_is_full(
    serve: Callable[..., ServerState], path: str, body: dict[str, Any]
) -> None:
    """Generated answers wait to be measured, however many do."""
    scoring = Admission(running=1, waiting=0)
    state = serve(scoring=scoring)
    short = {"max_output_tokens" if "input" in body else "max_tokens": 2}

    async def go() -> list[httpx2.Response]:
        async with client_of(state) as client:
            ticket = await scoring.enter("another", 1)
            tasks = [asyncio.create_task(client.post(path, json={**body, **short})) for _ in range(2)]
            while scoring.waiting < 2 and not any(task.done() for task in tasks):
                await asyncio.sleep(0.01)
            ticket.leave()
            return await asyncio.gather(*tasks)

    assert [answer.status_code for answer in asyncio.run(go())] == [200, 200]
    assert scoring.running == 0


def test_requests_for_scores_are_refused_where_scoring_is_full(serve: Callable[..., ServerState]) -> None:
    scoring = Admission(running=1, waiting=0)
    state = serve(scoring=scoring)

    async def go() -> list[httpx2.Response]:
        async with client_of(state) as client:
            ticket = await scoring.enter("another", 1)
            refused = await client.post("/v1/score", json={"messages": TALK})
            ticket.leave()
            return [refused, await client.post("/v1/score", json={"messages": TALK})]

    refused, answered = asyncio.run(go())
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_busy")
    assert answered.status_code == 200
    assert scoring.running == 0
