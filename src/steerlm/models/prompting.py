"""What is needed to prompt a trained policy, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steerlm.attributes import Schema
from steerlm.dialects import DIALECTS, Renderer
from steerlm.models.base import load_tokenizer
from steerlm.models.directory import Kind, ModelInfo


@dataclass(frozen=True)
class Prompting:
    """The description and the renderer of a model; an engine may have the weights elsewhere, or in another form."""

    info: ModelInfo
    renderer: Renderer

    @property
    def schema(self) -> Schema:
        return self.info.schema


def load_prompting(directory: str | Path, kind: Kind = "policy") -> Prompting:
    """Read a model directory but for its weights. Raises `ModelError` where it is not one of that kind."""
    info = ModelInfo.load(directory, kind)
    return Prompting(info, Renderer(DIALECTS[info.dialect], load_tokenizer(directory), info.schema))
