"""The base of all settings: typed, frozen, one default each, described where they are declared."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, values: Any) -> Any:
        """`none` leaves an optional field without a value, over a recipe or a default that has one: flags are text."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if NoneType in get_args(field.annotation)}
        return {name: None if value == "none" and name in optional else value for name, value in values.items()}
