"""What a request asks of the answer, from whichever of its fields, settled under the operator's rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel

from steerlm.engines.base import Guidance
from steerlm.server.dialogue import Dialogue
from steerlm.server.errors import ApiError
from steerlm.server.fields import SteeringFields
from steerlm.server.logs import current
from steerlm.server.policy import Values
from steerlm.server.rules import Asked, Verbosity, forbidden, labels_of
from steerlm.server.state import ServerState


@dataclass(frozen=True)
class Steering:
    """Settled: the values of all attributes, those of them that were asked for, and how the answer is made sure of."""

    values: Values
    asked: frozenset[str]
    preset: str | None = None
    guidance: float | None = None
    verified: int | None = None
    measure: bool = False


class Verified(BaseModel):
    """How the answer was chosen among several.

    Distances are means over the attributes asked for of |measured - asked|, as a share of the scale; null for an
    answer that was too long to be measured.
    """

    drawn: int
    chosen: int
    attributes: list[str]
    distance: float | None
    distances: list[float | None]


class SteeringReport(BaseModel):
    """The values under which an answer was given, and what was measured in each choice."""

    attributes: dict[str, int | None]
    preset: str | None = None
    guidance: float | None = None
    measured: list[dict[str, float] | None] | None = None
    verified: Verified | None = None


def preset_of(state: ServerState, model: str | None) -> str | None:
    """The preset that a model name asks for. Raises `ApiError` for a model that is not served."""
    if model is None or model == state.name:
        return None
    name, colon, preset = model.rpartition(":")
    if colon and name == state.name and preset in state.policy.presets:
        return preset
    raise ApiError(
        f"there is no model {model[:200]!r}; /v1/models lists those there are",
        404,
        param="model",
        code="model_not_found",
    )


def sources_of(state: ServerState, fields: SteeringFields, verbosity: Verbosity | None = None) -> list[Asked]:
    """Every field of a request that asks for values."""
    found = []
    if fields.attributes:
        found.append(Asked("attributes", fields.attributes))
    if fields.chat_template_kwargs and fields.chat_template_kwargs.attributes:
        found.append(Asked("chat_template_kwargs.attributes", fields.chat_template_kwargs.attributes))
    if verbosity:
        found.append(state.rules.spoken(verbosity))
    return found


def settled_values(state: ServerState, sources: Iterable[Asked], preset: str | None) -> Values:
    """The values under all sources, over those of a preset or the server's defaults."""
    return state.rules.settle(sources, state.rules.preset(preset) if preset else None)


def settle(
    state: ServerState,
    fields: SteeringFields,
    sources: Iterable[Asked],
    preset: str | None,
    verified: int | None = None,
) -> Steering:
    """The steering of an answer. Raises `ApiError` for what contradicts itself or is not to be had."""
    sources = list(sources)
    values = settled_values(state, sources, preset)
    named = {name for asked in sources for name in asked.values}
    if preset:
        named |= set(state.policy.presets[preset])
    _check_guidance(state, fields.guidance)
    _check_judge(state, verified, bool(fields.measure))
    current().values.append(labels_of(values))
    return Steering(values, frozenset(named), preset, fields.guidance, verified, bool(fields.measure or verified))


def _check_guidance(state: ServerState, factor: float | None) -> None:
    if factor is None:
        return
    if not state.policy.allows_guidance:
        raise forbidden("guidance is not allowed", "guidance", "guidance")
    if not state.engine.guides:
        raise ApiError("guidance: what generates here does not have it; leave it out", param="guidance")
    if not 0 <= factor <= state.limits.guidance:
        raise ApiError(f"guidance={factor} must lie between 0 and {state.limits.guidance:g}", param="guidance")


def _check_judge(state: ServerState, verified: int | None, measure: bool) -> None:
    if verified and not state.policy.verified:
        raise forbidden("the best of several answers is not chosen here", "verified", "verified")
    if verified and verified > state.limits.verified:
        raise ApiError(f"verified={verified} must be at most {state.limits.verified}", param="verified")
    if (measure or verified) and state.judge is None:
        field = "measure" if measure else "verified"
        raise ApiError(
            f"{field}: this server has no attribute model to measure with; start it with --attribute-model",
            param=field,
            code="no_attribute_model",
        )


def prompt_of(state: ServerState, dialogue: Dialogue, values: Values) -> tuple[int, ...]:
    """The token ids after which the policy answers."""
    return tuple(state.prompting.renderer.prompt(dialogue.conversation, dialogue.labels, labels_of(values)))


def guidance_of(state: ServerState, dialogue: Dialogue, factor: float | None) -> Guidance | None:
    """What the answer is pushed away from: the same conversation under the server's defaults."""
    return None if factor is None else Guidance(prompt_of(state, dialogue, dict(state.rules.defaults)), factor)


def report(steering: Steering) -> SteeringReport:
    """What an answer says of its steering, before anything is measured."""
    return SteeringReport(attributes=steering.values, preset=steering.preset, guidance=steering.guidance)
