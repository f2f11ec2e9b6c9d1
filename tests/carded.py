"""A policy to make a card of, and what of cards more than one test looks at."""

from __future__ import annotations

import re
from typing import Any

from steerlm.attributes import STEERLM
from steerlm.models.directory import ModelInfo

INFO = ModelInfo(
    "policy",
    STEERLM,
    "nemo",
    system="Be kind.",
    fingerprint="0123456789abcdef",
    provenance={
        "base": "smollm2",
        "steps": 7,
        "learnt_from": "3 trees",
        "data": "d" * 16,
        "settings": {"epochs": 2.0, "out": "/home/me/secret", "labels": "predicted"},
        "steerlm": "1.0",
    },
    metrics={"loss": 1.25, "gap": 3.0, "attributes": {}},
)
ROW = {
    "verdict": "steers",
    "against_words": {"verdict": "better"},
    "own": "score:humor",
    "within_prompt": {"value": 0.9, "low": 0.8, "high": 1.0},
    "slope": {"value": 0.7, "low": 0.6, "high": 0.8},
    "miss": {"value": 0.5, "low": 0.4, "high": 0.6},
    "ratio_of_length": {"value": 3.0, "low": 2.0, "high": 4.0},
}


def steering(fingerprint: str) -> dict[str, Any]:
    conditions = {"policy": {"attributes": {"humor": ROW}}}
    return {
        "model": fingerprint,
        "rule": "The rule.",
        "prompts": {"used": 5},
        "conditions": conditions,
        "settings": {"attributes": ["humor"]},
    }


def silent(text: str) -> None:
    raise AssertionError(f"nothing is to be said, but was: {text}")


def cited(text: str) -> list[str]:
    """The papers in the card's BibTeX, whose braces are balanced."""
    (entries,) = re.findall(r"```bibtex\n(.*?)```", text, re.DOTALL)
    assert entries.count("{") == entries.count("}")
    return re.findall(r"eprint = \{(.*?)\}", entries)
