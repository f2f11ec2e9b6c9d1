"""What the benchmark is told: typed like all settings, the same for every contender."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from steerlm.models.directory import Kind
from steerlm.settings import Settings
from steerlm.sources.bundled import SAMPLE

_SHARED = Path(os.environ.get("STEERLM_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
DATA = {
    "oasst1": _SHARED / "oasst1" / "messages.jsonl",
    "helpsteer": _SHARED / "helpsteer" / "train.jsonl",
    "sample": SAMPLE,
}

Work = Literal[
    "policy-oasst1",
    "policy-helpsteer",
    "attributes-oasst1",
    "attributes-helpsteer",
    "peak",
    "policy-sample",
    "attributes-sample",
]
Contender = Literal["steerlm", "steerlm-threads", "trl", "trl-packed", "transformers"]

TASKS: dict[Work, tuple[Kind, str]] = {
    "policy-oasst1": ("policy", "oasst1"),
    "policy-helpsteer": ("policy", "helpsteer"),
    "attributes-oasst1": ("attribute-model", "oasst1"),
    "attributes-helpsteer": ("attribute-model", "helpsteer"),
    "peak": ("policy", "oasst1"),
    "policy-sample": ("policy", "sample"),
    "attributes-sample": ("attribute-model", "sample"),
}
CONTENDERS: dict[Kind, tuple[Contender, ...]] = {
    "policy": ("steerlm", "steerlm-threads", "trl", "trl-packed"),
    "attribute-model": ("steerlm", "steerlm-threads", "transformers"),
}


class Options(Settings):
    """Settings of the benchmark. What is not named here is the same fixed value for all (see `ours` and `peers`)."""

    work: tuple[Work, ...] = (
        "policy-oasst1",
        "policy-helpsteer",
        "attributes-oasst1",
        "attributes-helpsteer",
        "peak",
    )
    """What to measure. `peak` is the policy on the conversations with the longest threads and the largest trees of
    oasst1: the memory that an epoch needs, in minutes. The bundled `sample` needs no data of yours."""
    contenders: tuple[Contender, ...] = ("steerlm", "trl", "transformers")
    """Who trains: steerlm on trees, steerlm on flattened threads, TRL, TRL with packing, transformers' Trainer."""
    out: Path = Path(__file__).parents[1] / "results" / "training.json"
    """File of the results; other work in it stays."""
    base: str = "smollm2"
    """Base model: a Hugging Face id, a path, or smollm2."""
    conversations: Annotated[int, Field(ge=1)] | None = None
    """Train on a random sample of this many conversations of each data set; without it, on all."""
    seed: int = 0
    """Seed of the sample, of the attribute model's head and of the order of the data."""
    repeat: Annotated[int, Field(ge=1)] = 1
    """How often each contender trains; they take turns, and medians are compared."""
    threads: Annotated[int, Field(ge=1)] = os.cpu_count() or 1
    """Cores to compute on."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type to compute in (bf16: autocast, weights stay fp32)."""
    context: Annotated[int, Field(ge=16)] = 2048
    """Longest path in tokens. Messages beyond it are left out for all, so that nobody cuts anything."""
    pack_tokens: Annotated[int, Field(ge=16)] = 2048
    """Tokens in one forward pass of ours."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Sequences in one forward pass of the others."""
    accumulation: Annotated[int, Field(ge=1)] = 4
    """Forward passes in one optimiser step of the others."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens in one optimiser step of ours; without it, as many as make about as many steps as the others'."""
    flatten: Literal["root-to-leaf", "trained"] = "root-to-leaf"
    """Which threads trees are flattened into: all from root to leaf, as NeMo-Aligner's script does, or those that are
    left when branches without a trained response are cut off for everyone."""
    level_tokens: bool = False
    """Make each word of a label line one token, for everyone."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-5
    """Learning rate, constant."""
    compile: bool = False
    """Compile the blocks of ours (see `steerlm train --compile`)."""
    peer_checkpointing: bool = False
    """Let the others recompute activations: less memory, more time."""
    check_conversations: Annotated[int, Field(ge=0)] = 3
    """Conversations on which the losses of both forms are compared before any update; 0 leaves it out."""
    profile_steps: Annotated[int, Field(ge=0)] = 3
    """Steps to profile (apart from what is timed) to say where our time goes; 0 leaves it out."""

    def contenders_of(self, kind: Kind) -> list[Contender]:
        """Those asked for that can train this kind of model."""
        return [name for name in CONTENDERS[kind] if name in self.contenders]


@dataclass(frozen=True)
class Prepared:
    """What all contenders of one work item start from.

    start    model directory with the weights and the tokenizer
    trees    conversations as trees
    threads  the same, flattened into conversations of one thread each
    rows     the threads as tokens: see `sequence`
    batch_tokens  tokens in one optimiser step of ours, for each of our contenders
    figures  counts and floating-point operations, for the result
    """

    kind: Kind
    start: Path
    trees: Path
    threads: Path
    rows: Path
    batch_tokens: dict[Contender, int]
    figures: dict[str, Any]
