"""Settings of the measurement of steering."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from steerlm.engines import LocalEngine, Precision
from steerlm.settings import Settings

ConditionName = Literal["policy", "words", "guidance", "verified"]


class SteeringSettings(Settings):
    """How a policy is measured."""

    attributes: list[str] = Field(default_factory=list)
    """Attributes to set to each of their levels in turn, the others staying at their defaults; all that the policy
    knows unless given."""
    max_prompts: Annotated[int, Field(ge=1)] = 16
    """Most prompts to answer at each level; the first of them are taken."""
    conditions: Annotated[list[ConditionName], Field(min_length=1)] = Field(
        default_factory=lambda: list[ConditionName](["policy", "words"])
    )
    """What to compare: the policy, the untuned base asked in words, the policy with guidance, or with verified steering
    (several answers drawn, the nearest to what was asked taken)."""
    goals: Annotated[int, Field(ge=0)] = 2
    """Settings of all these attributes at once that each prompt is answered at, drawn uniformly from the grid of
    levels; as many as the grid has are the whole grid."""
    paraphrases: Annotated[int, Field(ge=0)] = 0
    """Prompts to put in other words too, to see whether the same request has the same effect: in those that the file of
    prompts has, else in three English frames. Each takes two answers more for each attribute and way of putting it."""
    max_tokens: Annotated[int, Field(ge=1)] = 160
    """Most tokens of an answer."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 always takes the likeliest token. Verified steering draws at 0.8 where this is 0."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 keeps a small model from repeating itself when it answers greedily."""
    engine: LocalEngine = "auto"
    """openvino (CPU, 8-bit weights, fast), torch (any device, any model), or auto: openvino where it can be used."""
    precision: Precision = "f32"
    """What openvino computes in; on CPUs with VNNI int8 is faster, and on those with AMX bf16 still more."""
    cache_gb: Annotated[float, Field(gt=0, lt=1 << 20)] | None = None
    """Memory in GiB for what is remembered of prompts and answers; 2 without it, for torch on a GPU a quarter of what
    is free. Those under way count with openvino: where it is less than the model's context takes, it bounds prompt and
    answer."""
    guidance: Annotated[float, Field(gt=0)] = 1.5
    """Strength of guidance; 1 is none."""
    draws: Annotated[int, Field(ge=2)] = 4
    """Answers drawn by verified steering."""
    perplexity: bool = True
    """Measure how likely the untuned base finds the answers."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Draws of prompts behind each interval."""
    seed: int = 0
    """Seed of sampling, of goals and of the intervals."""

    @field_validator("attributes", "conditions")
    @classmethod
    def _each_once(cls, values: list[str], info: ValidationInfo) -> list[str]:
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(f"{', '.join(twice)} given more than once in {info.field_name}; give each once")
        return values
