"""A tiny attribute model, and conversations for it."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.models.load import new_model

WORDS = "the sea is salty because rivers carry minerals from rock ä € 🙂 into it and why not".split()


def save_tiny_base(directory: Path) -> None:
    """A random two-layer Llama whose tokens are bytes."""
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def save_tiny_judge(directory: Path) -> Path:
    """An attribute model on it, whose scores spread over the scale and beyond both ends."""
    save_tiny_base(directory / "base")
    model = new_model("attribute-model", directory / "base", STEERLM)
    torch.manual_seed(1)
    with torch.no_grad():
        model.network.score.weight.normal_(0, 0.3)
    model.save(directory / "judge")
    return directory / "judge"


def random_tree(generator: random.Random, name: str, messages: int) -> Conversation:
    """Turns alternate; any message may have several answers."""
    made: list[Message] = []
    for index in range(messages):
        parent = generator.randrange(index) if index else None
        role = "user" if parent is None or made[parent].role == "assistant" else "assistant"
        text = " ".join(generator.choices(WORDS, k=generator.randint(1, 12)))
        rated = role == "assistant" and generator.random() < 0.3
        made.append(Message(role, text, parent, {"quality": 3.0, "humor": 0.25} if rated else {}))
    return Conversation(name, tuple(made), system=generator.choice(["", "Be brief."]), source="test")


def random_trees(count: int, seed: int = 0) -> list[Conversation]:
    generator = random.Random(seed)
    return [random_tree(generator, f"tree-{index}", generator.randint(1, 7)) for index in range(count)]
