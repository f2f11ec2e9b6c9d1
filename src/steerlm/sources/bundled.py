"""The sample that comes with the package: see `sample/README.md` for what it is."""

from __future__ import annotations

from pathlib import Path

from steerlm.files import read_records

_FOLDER = Path(__file__).parent / "sample"
SAMPLE = _FOLDER / "conversations.jsonl"
"""Rated conversations, the last quarter without ratings."""


def held_out_prompts() -> list[str]:
    """Prompts of the same kinds that no conversation of the sample answers."""
    return [record["prompt"] for _, record in read_records(_FOLDER / "prompts.jsonl")]
