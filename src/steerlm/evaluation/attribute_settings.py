"""Settings of the evaluation of attribute models."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from steerlm.annotation import ScoreSettings
from steerlm.evaluation.preferences import SCALAR_WEIGHTS


class AttributeEvaluationSettings(ScoreSettings):
    """How an attribute model is evaluated."""

    weights: dict[str, float] = Field(default_factory=lambda: dict(SCALAR_WEIGHTS))
    """Weights of the attributes in the one figure that ranks the two responses of a preference row; those of
    Llama3-70B-SteerLM-RM unless given."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Draws of conversations behind each interval."""
    seed: int = 0
    """Seed of the draws."""
    invariance: Annotated[int, Field(ge=0)] = 24
    """Responses to check for scores that change with what is scored beside them; 0 leaves the check out."""
