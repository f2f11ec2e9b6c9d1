"""What the operator of a server allows: attributes locked, ranges narrowed, defaults, presets, system text."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, StrictInt, ValidationError, model_validator

from steerlm.errors import ConfigError
from steerlm.settings import Settings
from steerlm.yaml_files import YAML_ERRORS, read_yaml

Values = dict[str, int | None]
_PRESET = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")


class AttributeRule(Settings):
    """What the operator says of one attribute."""

    locked: StrictInt | None = None
    """The one value that it has; a user can neither change nor unset it."""
    low: StrictInt | None = None
    """Lowest value that a user may ask for."""
    high: StrictInt | None = None
    """Highest value that a user may ask for."""
    default: StrictInt | None = None
    """The value where a user asks for none; without it the model's own, moved into the range."""

    @model_validator(mode="after")
    def _consistent(self) -> AttributeRule:
        if self.locked is not None and (self.low, self.high, self.default) != (None, None, None):
            raise ValueError("locked excludes low, high and default")
        return self

    @property
    def restricts(self) -> bool:
        return (self.locked, self.low, self.high) != (None, None, None)


class SystemRule(Settings):
    """What the operator says of the system text."""

    text: str
    """The system text of conversations that bring none."""
    fixed: bool = False
    """Refuse conversations that bring their own."""


class OperatorPolicy(Settings):
    """The operator's rules; a user can never pass them."""

    attributes: dict[str, AttributeRule] = Field(default_factory=dict)
    """Rules by attribute."""
    presets: dict[str, dict[str, StrictInt | None]] = Field(default_factory=dict)
    """Settings with a name; MODEL:NAME as the model of a request asks for them. null leaves an attribute unset."""
    system: SystemRule | None = None
    """The system text; without it the model's own, which a user may replace."""
    guidance: bool | None = None
    """Whether users may ask for guidance; without it, where no attribute is restricted, since it exceeds the range."""
    verified: bool = True
    """Whether users may have the best of several answers chosen for them; several may be asked for by n anyway."""

    labels_scale: tuple[StrictInt, StrictInt] | None = None
    """Ends of the scale that `labels` of messages are on, such as NVIDIA's [0, 9]; without it the model's own."""

    @property
    def restricts(self) -> bool:
        """Whether there is anything that a prompt written by hand could pass."""
        fixed = self.system is not None and self.system.fixed
        return fixed or any(rule.restricts for rule in self.attributes.values())

    @property
    def allows_guidance(self) -> bool:
        if self.guidance is None:
            return not any(rule.restricts for rule in self.attributes.values())
        return self.guidance

    @model_validator(mode="after")
    def _rising(self) -> OperatorPolicy:
        if self.labels_scale is not None and not self.labels_scale[0] < self.labels_scale[1]:
            raise ValueError(f"labels_scale {list(self.labels_scale)}: its first end must be below its second")
        return self

    @model_validator(mode="after")
    def _named(self) -> OperatorPolicy:
        for name in self.presets:
            if not _PRESET.match(name):
                raise ValueError(f"preset {name!r}: use lower-case letters, digits, '.', '_' and '-' in its name")
        return self

    @classmethod
    def load(cls, path: str | Path) -> OperatorPolicy:
        """Read a YAML file. Raises `ConfigError` with every fault of it."""
        try:
            record = read_yaml(path)
            if not record:  # cut off or the wrong file: whoever names one wants rules
                raise ConfigError(f"{path}: has no rules; write some, or leave --policy out")
            return cls.model_validate(record)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; check --policy") from None
        except YAML_ERRORS as error:
            raise ConfigError(f"{path}: not readable as YAML: {error}") from error
        except ValidationError as error:
            faults = (".".join(map(str, item["loc"])) + ": " + item["msg"] for item in error.errors())
            raise ConfigError(f"{path}: " + "; ".join(faults)) from error
