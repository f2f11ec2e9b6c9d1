"""A tiny attribute model, and conversations for it."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from steerlm.annotation import AnnotateSettings
from steerlm.attributes import STEERLM
from steerlm.cli.annotate import annotate_command
from steerlm.conversation import Conversation, Message, Role
from steerlm.models.base import quiet
from steerlm.models.load import head_of, new_model
from tiny import TOKENIZERS, save_base

WORDS = "why is the sea salty because rivers carry minerals from rock ä € 🙂 into it".split()  # noqa: SIM905

# Windows of a few conversations, so that a small file has many.
SMALL_WINDOWS = AnnotateSettings(window_bytes=600, window_conversations=5, precision="fp32")


def save_tiny_base(directory: Path) -> Path:
    """A random Llama of two layers, as `new_model` takes one."""
    with quiet():
        return save_base(directory, TOKENIZERS["gpt2"]())


def save_tiny_judge(directory: Path) -> Path:
    """An attribute model on it, whose scores spread over the scale and beyond both ends."""
    model = new_model("attribute-model", save_tiny_base(directory / "base"), STEERLM)
    torch.manual_seed(1)
    with torch.no_grad():
        head_of(model.network).weight.normal_(0, 0.3)
    model.save(directory / "judge")
    return directory / "judge"


def random_tree(generator: random.Random, name: str, messages: int) -> Conversation:
    """Turns alternate; any message may have several answers."""
    made: list[Message] = []
    for index in range(messages):
        parent = generator.randrange(index) if index else None
        role: Role = "user" if parent is None or made[parent].role == "assistant" else "assistant"
        text = " ".join(generator.choices(WORDS, k=generator.randint(1, 12)))
        rated = role == "assistant" and generator.random() < 0.3
        made.append(Message(role, text, parent, {"quality": 3.0, "humor": 0.25} if rated else {}))
    return Conversation(name, tuple(made), system=generator.choice(["", "Be brief."]), source="test")


def random_trees(count: int, seed: int = 0) -> list[Conversation]:
    """Small trees, some without any response."""
    generator = random.Random(seed)
    return [random_tree(generator, f"tree-{index}", generator.randint(1, 7)) for index in range(count)]


def annotate_process(data: Path, model: Path, out: Path) -> None:
    """`steerlm annotate` with small windows, in a process of its own."""
    torch.set_num_threads(1)
    settings = AnnotateSettings(window_bytes=400, precision="fp32")
    annotate_command(data, model=model, out=out, settings=settings, device="cpu")
