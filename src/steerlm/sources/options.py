"""What an import takes, leaves out and does, as one frozen set of settings."""

from __future__ import annotations

from dataclasses import dataclass, fields

from steerlm.attributes import Schema
from steerlm.errors import ConfigError


@dataclass(frozen=True)
class ImportOptions:
    """Settings of an import; the same fields are flags of `steerlm data import`."""

    attributes: tuple[str, ...] = ()
    """Take the ratings of these attributes only; without it, those that the SteerLM recipe takes from this kind."""
    languages: tuple[str, ...] = ()
    """Keep messages in these languages only, such as en or pt (pt covers pt-BR); for oasst."""
    keep_deleted: bool = False
    """Keep messages that Open Assistant marks as deleted; for oasst."""
    keep_rejected: bool = False
    """Keep messages that failed Open Assistant's review (review_result false); for oasst."""
    drop_unreviewed: bool = False
    """Leave out messages that Open Assistant never reviewed (no review_result); for oasst."""
    min_labels: int = 1
    """Leave out ratings that are the mean of fewer people's labels than this; for oasst."""
    system: str | None = None
    """System text of every conversation; without it, that of the source, or else of NVIDIA's SteerLM models."""
    max_characters: int | None = None
    """Leave out messages longer than this many characters, with all that answers them."""
    max_conversations: int | None = None
    """Keep at most this many conversations, the first ones."""
    skip_faulty: bool = False
    """Leave faulty records out and count them, where otherwise the first one ends the import."""

    def __post_init__(self) -> None:
        for name, least in (("min_labels", 1), ("max_characters", 1), ("max_conversations", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} must be at least {least}")
        if any(not language.strip() for language in self.languages):
            raise ConfigError("a language is empty; give codes such as en")

    def changed(self) -> set[str]:
        """Names of the options that differ from their defaults."""
        return {field.name for field in fields(self) if getattr(self, field.name) != field.default}

    def attributes_of(self, schema: Schema, usual: tuple[str, ...]) -> tuple[str, ...]:
        """The attributes to take: those asked for, else of the source's `usual` ones those that the schema has.

        Raises `SchemaError` where an attribute that was asked for is not in the schema.
        """
        if self.attributes:
            return tuple(schema[name].name for name in self.attributes)
        return tuple(name for name in usual if name in schema)

    def takes_language(self, language: str) -> bool:
        """Whether a message in `language` is kept; a wanted `pt` takes `pt-BR` too."""
        code = language.lower()
        wanted = [item.lower() for item in self.languages]
        return not wanted or any(code == item or code.startswith(f"{item}-") for item in wanted)
