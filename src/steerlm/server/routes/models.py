"""What can be asked for: models and their presets, and the attributes with their scales."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from steerlm.server.errors import ApiError
from steerlm.server.routes import State
from steerlm.server.state import ServerState

router = APIRouter(tags=["models"])


class AttributeCard(BaseModel):
    """An attribute: its scale, what a user may ask for, and what is asked for where a user asks for nothing."""

    name: str
    description: str
    low: int
    high: int
    desirable: str
    min: int
    max: int
    locked: bool
    default: int | None


class Capabilities(BaseModel):
    """What a model offers beyond OpenAI's API, so that a client can draw its sliders."""

    attributes: list[AttributeCard]
    measured: list[str]
    guidance: bool
    verified: bool
    system: Literal["free", "fixed"]


class ModelCard(BaseModel):
    """A model as clients list it; `preset` where the name asks for the settings of one."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "steerlm"
    max_model_len: int
    preset: str | None = None
    capabilities: Capabilities


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class AttributeList(Capabilities):
    """The attributes of the model, and the presets."""

    model: str
    presets: dict[str, dict[str, int | None]]


def capabilities(state: ServerState, preset: str | None = None) -> Capabilities:
    """What the model offers, with the defaults of a preset."""
    rules = state.rules
    defaults = rules.preset(preset) if preset else rules.defaults
    cards = []
    for item in rules.schema:
        low, high = rules.bounds(item.name)
        cards.append(
            AttributeCard(
                name=item.name,
                description=item.description,
                low=item.low,
                high=item.high,
                desirable=item.desirable,
                min=low,
                max=high,
                locked=rules.is_locked(item.name),
                default=defaults[item.name],
            )
        )
    policy = state.policy
    return Capabilities(
        attributes=cards,
        measured=list(state.judge.schema.names) if state.judge else [],
        guidance=policy.allows_guidance and state.engine.guides,
        verified=policy.verified and state.judge is not None,
        system="fixed" if policy.system and policy.system.fixed else "free",
    )


def _cards(state: ServerState) -> list[ModelCard]:
    return [
        ModelCard(
            id=f"{state.name}:{preset}" if preset else state.name,
            created=state.created,
            max_model_len=state.engine.context,
            preset=preset,
            capabilities=capabilities(state, preset),
        )
        for preset in (None, *state.policy.presets)
    ]


@router.get("/v1/models")
async def list_models(state: State) -> ModelList:
    """The model, and one name more for each preset."""
    return ModelList(data=_cards(state))


@router.get("/v1/models/{model:path}")
async def get_model(model: str, state: State) -> ModelCard:
    """One of the names."""
    for card in _cards(state):
        if card.id == model:
            return card
    raise ApiError(f"there is no model {model[:200]!r}; /v1/models lists those there are", 404, code="model_not_found")


@router.get("/v1/attributes")
async def list_attributes(state: State) -> AttributeList:
    """The attributes with their scales, limits and defaults, and the presets."""
    return AttributeList(model=state.name, presets=state.policy.presets, **capabilities(state).model_dump())
