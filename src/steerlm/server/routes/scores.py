"""POST /v1/score and /pooling: what the attribute model says of answers that are there already."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from steerlm.conversation import Conversation, Message, Role
from steerlm.server.dialogue import ChatMessage, check_amount
from steerlm.server.envelope import Usage, reading
from steerlm.server.errors import ApiError
from steerlm.server.fields import ApiModel, IgnoredFields, Items, Only, Text, joined
from steerlm.server.judge import Bound, Judge, Scores
from steerlm.server.routes import State
from steerlm.server.state import ServerState
from steerlm.server.streaming import unless_gone
from steerlm.server.work import scored

router = APIRouter(tags=["measuring"])


class TreeMessage(ApiModel):
    """A message of a conversation tree."""

    role: Role
    text: Text
    parent: int | None = None
    """Number of the message that this one answers; null opens the conversation."""


class Tree(ApiModel):
    """A conversation as the conversation files hold it."""

    messages: Annotated[Items[TreeMessage], Field(min_length=1)]
    """Parents come before their children; several answers to one message are read together."""
    system: Text = ""
    id: Text | None = None


class ScoreRequest(IgnoredFields):
    """Conversations whose answers are to be scored: one as for /v1/chat/completions, or several trees."""

    model: Text | None = None
    """Accepted, since clients send it; there is one attribute model."""
    messages: Items[ChatMessage] | None = None
    """One conversation in its order."""
    conversations: Items[Tree] | None = None
    """Several conversations."""


class MessageScores(BaseModel):
    """Scores of one assistant message, on each attribute's scale; null where it was too long to be read. `truncated`
    says that the oldest turns before it were left out, which do not fit the attribute model's context.
    """

    message: int
    scores: dict[str, float] | None
    truncated: bool


class ConversationScores(BaseModel):
    """Scores of all assistant messages of one conversation."""

    object: Literal["score"] = "score"
    index: int
    id: str | None
    answers: list[MessageScores]


class ScoreList(BaseModel):
    """Scores in the order of the conversations."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    attributes: list[str]
    data: list[ConversationScores]
    usage: Usage


class PoolingRequest(IgnoredFields):
    """A conversation whose last answer is scored, in the form of vLLM's /pooling."""

    model: Text | None = None
    messages: Items[ChatMessage]
    encoding_format: Literal["float"] | None = None
    add_generation_prompt: Annotated[Any, Only(False)] = None
    truncate_prompt_tokens: Annotated[Any, Only()] = None


class Pooled(BaseModel):
    """The scores of one answer, in the order of the attributes."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float]


class PoolingList(BaseModel):
    """vLLM's form of an answer."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Pooled]
    usage: Usage


def _judge(state: ServerState) -> Judge:
    if state.judge is None:
        raise ApiError(
            "this server has no attribute model to score with; start it with --attribute-model",
            501,
            "server_error",
            code="no_attribute_model",
        )
    return state.judge


def _thread(state: ServerState, messages: Sequence[ChatMessage]) -> tuple[Conversation, list[int]]:
    """A conversation of messages in their order, and the number that each of its messages has among them."""
    check_amount(state, len(messages), sum(len(joined(item.content)) for item in messages), "messages")
    system: list[str] = []
    found: list[Message] = []
    numbers: list[int] = []
    for number, item in enumerate(messages):
        text = joined(item.content)
        if item.role in ("system", "developer"):
            if found:
                place = f"messages.{number}.role"
                raise ApiError(f"{place}: {item.role} messages belong at the beginning", param=place)
            system.append(text)
            continue
        found.append(Message("user" if item.role == "user" else "assistant", text, len(found) - 1 if found else None))
        numbers.append(number)
    if not any(item.role == "assistant" for item in found):
        raise ApiError("messages: there is no assistant message to score", param="messages")
    return Conversation("request", tuple(found), "\n\n".join(system)), numbers


def _trees(state: ServerState, trees: Sequence[Tree]) -> list[Conversation]:
    limit = state.limits.score_conversations
    if not 0 < len(trees) <= limit:
        raise ApiError(f"conversations: give 1 to {limit}, not {len(trees)}", param="conversations")
    characters = sum(len(tree.system) + sum(len(item.text) for item in tree.messages) for tree in trees)
    check_amount(state, max(len(tree.messages) for tree in trees), characters, "conversations")
    return [
        Conversation(
            str(number), tuple(Message(item.role, item.text, item.parent) for item in tree.messages), tree.system
        )
        for number, tree in enumerate(trees)
    ]


def _listed(
    index: int, name: str | None, tree: Conversation, scores: Scores, cut: Collection[int], numbers: Sequence[int]
) -> ConversationScores:
    answers = [
        MessageScores(message=numbers[item], scores=scores.get(item), truncated=item in cut) for item in tree.responses
    ]
    return ConversationScores(index=index, id=name, answers=answers)


@router.post("/v1/score")
async def score(body: ScoreRequest, request: Request, state: State) -> ScoreList:
    """Score every assistant message of one or several conversations."""
    judge = _judge(state)
    if (body.messages is None) == (body.conversations is None):
        raise ApiError("give either messages or conversations", param="messages", code="contradiction")
    if body.messages is not None:
        tree, numbers = _thread(state, body.messages)
        trees, places = [tree], [numbers]
        names: list[str | None] = [None]
    else:
        given = body.conversations or []
        trees = _trees(state, given)
        names = [item.id for item in given]
        places = [list(range(len(tree.messages))) for tree in trees]
    bound = Bound(state.limits.score_tokens, "messages" if body.messages is not None else "conversations")
    found = await unless_gone(request, scored(judge, state.scoring, trees, bound))
    return ScoreList(
        id=f"score-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=judge.name,
        attributes=list(judge.schema.names),
        data=[
            _listed(index, *item)
            for index, item in enumerate(zip(names, trees, found.scores, found.cut, places, strict=True))
        ],
        usage=reading(found.tokens),
    )


@router.post("/pooling")
async def pooling(body: PoolingRequest, request: Request, state: State) -> PoolingList:
    """Score the last answer of a conversation, as a vector in the order of the attributes."""
    judge = _judge(state)
    tree, _ = _thread(state, body.messages)
    last = len(tree.messages) - 1
    if tree.messages[last].role != "assistant":
        raise ApiError("messages: the last message must be the assistant's, which is scored", param="messages")
    bound = Bound(state.limits.score_tokens, "messages")
    judged = await unless_gone(request, scored(judge, state.scoring, [tree], bound, [last]))
    [found] = judged.scores
    if last not in found:
        raise ApiError("messages: the conversation is longer than the attribute model can read", param="messages")
    return PoolingList(
        id=f"pool-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=judge.name,
        data=[Pooled(index=0, data=[found[last][name] for name in judge.schema.names])],
        usage=reading(judged.tokens),
    )
