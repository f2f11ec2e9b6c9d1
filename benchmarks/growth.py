"""Does our training stay as fast and as small when the data grow? From 1,000 to 1,000,000 conversations.

    python -m benchmarks.growth [--sizes 1000 10000 100000 1000000]

A tiny random network (so that data, not arithmetic, is what counts) trains the same number of steps at each size,
each in a process of its own. Start-up is all that comes before the first forward pass.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import Field
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.command import run_benchmark
from benchmarks.measure import StepClock, apart, bytes_read, resident_mb, set_threads, surroundings
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.files import read_records, write_conversations, write_json
from steerlm.memory import PeakMemory
from steerlm.models.base import load_tokenizer
from steerlm.settings import Settings
from steerlm.training.config import PolicySettings
from steerlm.training.run import train_policy

_NEVER = 10**9
_WORDS = ("sea", "salt", "river", "rock", "rain", "water", "mineral", "leaves", "carries", "stays", "slowly", "so")


class GrowthSettings(Settings):
    """Settings of the benchmark."""

    sizes: tuple[Annotated[int, Field(ge=1)], ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Numbers of conversations."""
    steps: Annotated[int, Field(ge=2)] = 50
    """Optimiser steps at each size; the first is part of no rate."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tree tokens in one step."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Cores to compute on."""
    folder: Path | None = None
    """Where the data files go (about 0.7 GB for a million conversations); without it, a temporary folder."""
    out: Path = Path(__file__).parent / "results" / "growth.json"
    """File of the results."""


@dataclass(frozen=True)
class Growth:
    """What training on one size took.

    conversations, file_mb   the data
    startup_seconds          from the call to the first forward pass
    startup_read_mb          read from files until then: the data, the model and the tokenizer (0: not known here)
    tokens_per_second        of the steps after the first
    startup_mb, resident_mb  memory at the first forward pass, and after the last step
    peak_mb                  the most it ever was, with the saving of the model
    seconds                  all of it
    """

    conversations: int
    file_mb: float
    startup_seconds: float
    startup_read_mb: float
    tokens_per_second: float
    startup_mb: int
    resident_mb: int
    peak_mb: int
    seconds: float


def conversations(count: int) -> Iterator[Conversation]:
    """`count` small trees, each with an id and a text of its own: a prompt with two answers, one of them answered."""
    values = dict.fromkeys(STEERLM.names, 2.0)
    for number in range(count):
        words = random.Random(number)

        def text(length: int, words: random.Random = words) -> str:
            return " ".join(words.choice(_WORDS) for _ in range(length))

        yield Conversation(
            f"grown-{number:09d}",
            (
                Message("user", f"{number}: {text(8)}?"),
                Message("assistant", text(20), 0, predicted=values),
                Message("assistant", text(12), 0, predicted=values | {"verbosity": 1.0}),
                Message("user", text(6), 1),
                Message("assistant", text(16), 3, predicted=values),
            ),
        )


def save_base(folder: Path) -> Path:
    """A network of two small layers with random weights, and SmolLM2's tokenizer."""
    tokenizer = load_tokenizer("smollm2")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class _Watch(StepClock):
    """A clock that also notes memory and bytes read at the first forward pass, and memory after each step."""

    startup_mb = 0
    startup_bytes = 0
    resident_mb = 0

    def _first_forward(self, *arguments: Any) -> None:
        self.startup_mb, self.startup_bytes = resident_mb(), bytes_read()
        super()._first_forward(*arguments)

    def _step(self, *arguments: Any) -> None:
        super()._step(*arguments)
        self.resident_mb = resident_mb()


def grow(settings: GrowthSettings, data: Path, count: int, base: Path, out: Path) -> Growth:
    """Train on `data`."""
    training = PolicySettings(
        data=[data],
        out=out,
        base=str(base),
        validation_fraction=0.0,
        epochs=1,
        max_steps=settings.steps,
        batch_tokens=settings.batch_tokens,
        pack_tokens=max(settings.batch_tokens, 1024),
        precision="fp32",
        validate_every=_NEVER,
        checkpoint_every=_NEVER,
    )
    read = bytes_read()
    began = time.perf_counter()
    with PeakMemory() as memory, _Watch() as watch:
        train_policy(training)
    seconds = time.perf_counter() - began
    steps = [record for _, record in read_records(out / "metrics.jsonl") if record["kind"] == "train"]
    assert watch.began is not None
    return Growth(
        conversations=count,
        file_mb=data.stat().st_size / 2**20,
        startup_seconds=watch.began - began,
        startup_read_mb=(watch.startup_bytes - read) / 2**20,
        tokens_per_second=sum(step["tokens"] for step in steps[1:]) / (watch.ends[-1] - watch.ends[0]),
        startup_mb=watch.startup_mb,
        resident_mb=watch.resident_mb,
        peak_mb=memory.peak_mb,
        seconds=seconds,
    )


def main(*, settings: Annotated[GrowthSettings | None, Parameter(name="*")] = None) -> None:
    """Train the same number of steps on more and more conversations; print a table, write the result."""
    settings = settings or GrowthSettings()
    set_threads(settings.threads)
    grown = []
    with tempfile.TemporaryDirectory(dir=settings.folder, prefix="steerlm-growth-") as name:
        folder = Path(name)
        base = save_base(folder / "base")
        for count in settings.sizes:
            data = folder / "grown.jsonl"
            write_conversations(data, conversations(count))
            grown.append(apart(settings.threads, grow, settings, data, count, base, folder / f"model-{count}"))
            print(f"{count:,} conversations: {grown[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    record = {
        "sizes": [asdict(item) for item in grown],
        "settings": settings.model_dump(mode="json", exclude={"out", "folder"}),
        **surroundings(),
    }
    write_json(settings.out, record)
    _table(grown)


def _table(grown: list[Growth]) -> None:
    lines = Table("conversations", title="The same steps on more and more data")
    for heading in ("file MB", "start-up s", "MB read", "tokens/s", "MB at start", "MB after", "peak MB"):
        lines.add_column(heading, justify="right")
    for item in grown:
        lines.add_row(
            f"{item.conversations:,}",
            f"{item.file_mb:.1f}",
            f"{item.startup_seconds:.1f}",
            f"{item.startup_read_mb:.1f}",
            f"{item.tokens_per_second:.0f}",
            f"{item.startup_mb:,}",
            f"{item.resident_mb:,}",
            f"{item.peak_mb:,}",
        )
    Console(width=120).print(lines)


if __name__ == "__main__":
    run_benchmark("growth", main)
