"""The operator's policy applied to a model's schema: which values a user gets, and which are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from steerlm.attributes import Attribute, Schema
from steerlm.errors import ConfigError
from steerlm.server.errors import ApiError
from steerlm.server.policy import AttributeRule, OperatorPolicy, Values

Verbosity = Literal["low", "medium", "high"]


class Asked(NamedTuple):
    """Values that a request asks for, and the field in which it does."""

    field: str
    values: Mapping[str, int | None]


@dataclass(frozen=True)
class Rules:
    """A schema and the operator's rules over it. Values are complete: every attribute, None where it is unset."""

    schema: Schema
    policy: OperatorPolicy

    def check_policy(self) -> None:
        """Raise `ConfigError` with everything in the policy that does not fit the schema or itself."""
        faults = [f"attributes.{name}: {self._unknown(name)}" for name in self.policy.attributes if not self._has(name)]
        for item in self.schema:
            low, high = self.bounds(item.name)
            rule = self._rule(item.name)
            if not item.low <= low <= high <= item.high:
                faults.append(f"attributes.{item.name}: {low}..{high} is no range within {item.low}..{item.high}")
            elif rule.default is not None and not low <= rule.default <= high:
                faults.append(f"attributes.{item.name}: default={rule.default} is outside {low}..{high}")
        if not faults:
            for preset, values in self.policy.presets.items():
                try:
                    self.check(Asked(f"presets.{preset}", values))
                except ApiError as error:
                    faults.append(str(error))
        if faults:
            raise ConfigError("operator policy: " + "; ".join(faults))

    def bounds(self, name: str) -> tuple[int, int]:
        """Lowest and highest value that a user may ask for."""
        item, rule = self.schema[name], self._rule(name)
        if rule.locked is not None:
            return rule.locked, rule.locked
        return item.low if rule.low is None else rule.low, item.high if rule.high is None else rule.high

    def is_locked(self, name: str) -> bool:
        return self._rule(name).locked is not None

    @cached_property
    def defaults(self) -> dict[str, int]:
        """What is asked for where a user asks for nothing."""
        found = {}
        for item in self.schema:
            low, high = self.bounds(item.name)
            rule = self._rule(item.name)
            found[item.name] = min(max(item.default, low), high) if rule.default is None else rule.default
        return found

    def check(self, asked: Asked) -> None:
        """Raise `ApiError` where an attribute is unknown, a value is none of its scale, or a rule forbids it."""
        for name, value in asked.values.items():
            field = f"{asked.field}.{name}"
            if not self._has(name):
                raise ApiError(f"{field}: {self._unknown(name)}", param=field, code="unknown_attribute")
            item = self.schema[name]
            if value is not None and value not in item.levels:
                raise ApiError(
                    f"{field}: {_shown(value)} is not one of the levels {item.low} to {item.high} of {name}",
                    param=field,
                    code="invalid_value",
                )
            self._check_rule(item, value, field)

    def _check_rule(self, item: Attribute, value: int | None, field: str) -> None:
        rule = self._rule(item.name)
        low, high = self.bounds(item.name)
        if not rule.restricts or (value is not None and low <= value <= high):
            return
        shown = "unset" if value is None else value
        if rule.locked is not None:
            raise forbidden(f"{item.name} is locked at {low}, not {shown}", f"attributes.{item.name}.locked", field)
        end = "low" if rule.high is None or (value is not None and value < low) else "high"
        raise forbidden(
            f"{item.name} may be set from {low} to {high}, not {shown}", f"attributes.{item.name}.{end}", field
        )

    def labels(self, asked: Asked) -> Asked:
        """Labels of a message on the model's scale: those on the operator's `labels_scale` are moved there linearly.

        Raises `ApiError` for a value that is none of that scale.
        """
        if self.policy.labels_scale is None:
            return asked
        low, high = self.policy.labels_scale
        moved = {}
        for name, value in asked.values.items():
            if value is not None and not low <= value <= high:
                field = f"{asked.field}.{name}"
                told = f"{field}: {_shown(value)} is not one of the levels {low} to {high} of labels"
                raise ApiError(told, param=field, code="invalid_value")
            if value is not None and self._has(name):
                item = self.schema[name]
                value = item.level(item.low + (value - low) / (high - low) * (item.high - item.low))
            moved[name] = value
        return Asked(asked.field, moved)

    def settle(self, sources: Iterable[Asked], base: Mapping[str, int | None] | None = None) -> Values:
        """The values under all `sources`, over `base` (the defaults where None).

        Raises `ApiError` where one is refused, or two ask for different values of one attribute.
        """
        found: dict[str, tuple[int | None, str]] = {}
        for asked in sources:
            self.check(asked)
            for name, value in asked.values.items():
                before, field = found.setdefault(name, (value, asked.field))
                if before != value:
                    two = f"{field} asks for {name}={_null(before)}, {asked.field} for {name}={_null(value)}"
                    raise ApiError(
                        f"{two}; give it once",
                        param=asked.field,
                        code="contradiction",
                    )
        merged = {**self.defaults, **(base or {}), **{name: value for name, (value, _) in found.items()}}
        return {name: merged[name] for name in self.schema.names}

    def preset(self, name: str) -> dict[str, int | None]:
        """The values of a preset, over the defaults."""
        return {**self.defaults, **self.policy.presets[name]}

    def spoken(self, verbosity: Verbosity) -> Asked:
        """OpenAI's `verbosity` as values: the ends and the middle of what a user may ask for."""
        if not self._has("verbosity"):
            raise ApiError(f"verbosity: {self._unknown('verbosity')}", param="verbosity", code="unknown_attribute")
        item = self.schema["verbosity"]
        # Of a locked attribute the whole scale is meant, so that another value is refused rather than ignored.
        low, high = (item.low, item.high) if self.is_locked("verbosity") else self.bounds("verbosity")
        return Asked("verbosity", {"verbosity": {"low": low, "medium": (low + high) // 2, "high": high}[verbosity]})

    def _rule(self, name: str) -> AttributeRule:
        return self.policy.attributes.get(name, AttributeRule())

    def _has(self, name: str) -> bool:
        return name in self.schema

    def _unknown(self, name: str) -> str:
        return f"unknown attribute {_shown(name)}; this model was trained on labels of {', '.join(self.schema.names)}"


def labels_of(values: Mapping[str, int | None]) -> dict[str, int]:
    """What stands in the label line: the attributes that are set."""
    return {name: value for name, value in values.items() if value is not None}


def forbidden(message: str, rule: str, param: str) -> ApiError:
    """A refusal by the operator's policy, which names its rule."""
    return ApiError(
        f"{param}: {message} (the operator's rule {rule})", 403, "permission_error", param, "operator_policy"
    )


def _null(value: int | None) -> str:
    return "null" if value is None else str(value)


def _shown(value: object) -> str:
    """A value as an error repeats it: not all of a long one."""
    text = str(value) if not isinstance(value, int) or abs(value) < 10**12 else "a number of many digits"
    return repr(text[:64]) if isinstance(value, str) else text
