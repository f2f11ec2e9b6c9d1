"""Attributes by which a response is rated and steered, and the label line that carries their values."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from steerlm.errors import SchemaError
from steerlm.yaml_files import YAML_ERRORS, read_yaml

Desirable = Literal["high", "low", "choice"]
Value = TypeVar("Value")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One rated dimension of a response.

    `low` and `high` are the ends of the scale (both included, whole numbers), `default` is the value asked for
    when a user sets none, and `desirable` says which end is better, or that it is the user's `choice`.
    """

    name: str
    low: int = 0
    high: int = 4
    default: int = 4
    description: str = ""
    desirable: Desirable = "choice"

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise SchemaError(f"attribute name {self.name!r}: use lower-case letters, digits and '_', a letter first")
        if not self.low < self.high:
            raise SchemaError(f"attribute {self.name}: low={self.low} must be below high={self.high}")
        if not self.low <= self.default <= self.high:
            raise SchemaError(f"attribute {self.name}: default={self.default} is outside {self.low}..{self.high}")
        if self.desirable not in ("high", "low", "choice"):
            raise SchemaError(f"attribute {self.name}: desirable={self.desirable!r} must be high, low or choice")

    @property
    def levels(self) -> range:
        """All values of the scale, lowest first."""
        return range(self.low, self.high + 1)

    def level(self, value: float) -> int:
        """The whole number that stands for `value` in a label line: clamped, rounded half to even."""
        return round(min(max(value, self.low), self.high))

    def fault(self, value: object) -> str | None:
        """Why `value` is no rating on this scale, or None where it is one."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{self.name}={value!r} is not a number"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.name}={value} is not finite; leave the attribute out where it is unrated"
        if not self.low <= value <= self.high:
            return f"{self.name}={_shown(value)} is outside {self.low}..{self.high}"
        return None


def _shown(value: float) -> str:
    try:
        return f"{value:g}"
    except OverflowError:  # a whole number beyond all floats
        return "a number of hundreds of digits"


@dataclass(frozen=True)
class Schema:
    """The ordered attributes of a data set and of a model. The order is that of label lines and of score columns."""

    attributes: tuple[Attribute, ...]

    def __post_init__(self) -> None:
        if not self.attributes:
            raise SchemaError("a schema needs at least one attribute")
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise SchemaError(f"attributes declared twice: {', '.join(sorted(twice))}")

    def __iter__(self) -> Iterator[Attribute]:
        return iter(self.attributes)

    def __len__(self) -> int:
        return len(self.attributes)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Attribute:
        try:
            return self._by_name[name]
        except KeyError:
            raise SchemaError(f"unknown attribute {name!r}; this schema has {', '.join(self.names)}") from None

    @cached_property
    def _by_name(self) -> dict[str, Attribute]:
        return {attribute.name: attribute for attribute in self.attributes}

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self.attributes)

    @property
    def defaults(self) -> dict[str, int]:
        return {attribute.name: attribute.default for attribute in self.attributes}

    def with_defaults(self, values: Mapping[str, int]) -> Schema:
        """The same schema that asks for `values` when a user sets none. Raises `SchemaError` on unfit ones."""
        self.check(values)
        changed = (replace(item, default=values.get(item.name, item.default)) for item in self.attributes)
        return Schema(tuple(changed))

    def only(self, names: Collection[str]) -> Schema:
        """The attributes among `names`, in the order of this schema."""
        return Schema(tuple(item for item in self.attributes if item.name in names))

    def known(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Those of `values` that belong to an attribute of this schema."""
        return {name: value for name, value in values.items() if name in self}

    def faults(self, values: Mapping[str, object]) -> list[str]:
        """Everything wrong with `values` as ratings; empty where nothing is."""
        found = []
        for name, value in values.items():
            if name not in self:
                found.append(f"{name} is not an attribute of the schema ({', '.join(self.names)})")
            elif fault := self[name].fault(value):
                found.append(fault)
        return found

    def check(self, values: Mapping[str, object]) -> None:
        """Raise `SchemaError` with all faults of `values` at once."""
        if found := self.faults(values):
            raise SchemaError("; ".join(found))

    def label_line(self, values: Mapping[str, float]) -> str:
        """`quality:4,toxicity:0,...` in schema order, for the attributes present in `values`."""
        unknown = [name for name in values if name not in self]
        if unknown:
            raise SchemaError(f"unknown attribute {unknown[0]!r}; this schema has {', '.join(self.names)}")
        return ",".join(
            f"{attribute.name}:{attribute.level(values[attribute.name])}"
            for attribute in self.attributes
            if attribute.name in values
        )

    def parse_label_line(self, line: str) -> dict[str, int]:
        """The values of a label line, in any order. Raises `SchemaError` on anything else."""
        values: dict[str, int] = {}
        for item in filter(None, (part.strip() for part in line.strip().split(","))):
            name, colon, digits = item.partition(":")
            if not colon or not re.fullmatch(r"-?[0-9]{1,9}", digits):
                raise SchemaError(f"label line {line!r}: {item!r} is not of the form attribute:integer")
            if name in values:
                raise SchemaError(f"label line {line!r}: {name} is given twice")
            if fault := self[name].fault(int(digits)):
                raise SchemaError(f"label line {line!r}: {fault}")
            values[name] = int(digits)
        return values

    def to_list(self) -> list[dict[str, Any]]:
        """Plain data for JSON and YAML; `from_list` reads it back."""
        return [asdict(attribute) for attribute in self.attributes]

    @classmethod
    def from_list(cls, items: object, where: str = "schema") -> Schema:
        """Build a schema from plain data. Unknown keys are errors."""
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise SchemaError(f"{where}: expected a list of attributes, each with a name")
        known = set(Attribute.__dataclass_fields__)
        attributes = []
        for item in items:
            if extra := set(item) - known:
                first = min(extra, key=str)
                raise SchemaError(f"{where}: unknown key {first!r}; an attribute has {', '.join(sorted(known))}")
            if not isinstance(item.get("name"), str):
                raise SchemaError(f"{where}: an attribute without a name: {item}")
            if not isinstance(item.get("description", ""), str):
                raise SchemaError(f"{where}: attribute {item['name']}: the description is not a string")
            for key in ("low", "high", "default"):
                if key in item and (isinstance(item[key], bool) or not isinstance(item[key], int)):
                    raise SchemaError(f"{where}: attribute {item['name']}: {key}={item[key]!r} is not a whole number")
            # A scale that ends elsewhere than at 4 has its own top as the natural default.
            default = item.get("default", item.get("low", 0) if item.get("desirable") == "low" else item.get("high", 4))
            attributes.append(Attribute(**{**item, "default": default}))
        return cls(tuple(attributes))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Schema:
        """Read `attributes: [{name, low, high, default, description, desirable}, ...]`."""
        try:
            data = read_yaml(path)
        except YAML_ERRORS as error:
            raise SchemaError(f"{path}: cannot read the schema: {error}") from error
        if not isinstance(data, dict) or set(data) != {"attributes"}:
            raise SchemaError(f"{path}: expected one key, 'attributes', with a list")
        return cls.from_list(data["attributes"], where=str(path))


# Canonical order and defaults of Llama2-70B-SteerLM-Chat; descriptions paraphrase the reward model's card.
STEERLM = Schema(
    (
        Attribute("quality", default=4, desirable="high", description="how good the response is overall"),
        Attribute("toxicity", default=0, desirable="low", description="vulgar, harmful or biased content"),
        Attribute("humor", default=0, description="sense of humor"),
        Attribute("creativity", default=0, description="willingness to answer in an unconventional way"),
        Attribute("helpfulness", default=4, desirable="high", description="how well the prompt is served"),
        Attribute("correctness", default=4, desirable="high", description="all pertinent facts, and no errors"),
        Attribute("coherence", default=4, desirable="high", description="consistent and clear expression"),
        Attribute("complexity", default=4, description="intellectual depth, from basic words to expert language"),
        Attribute("verbosity", default=4, description="amount of detail relative to what was asked"),
    )
)
