"""Tokenizers and models made in code: small enough for any test, shaped like those that people use."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steerlm.attributes import STEERLM, Schema
from steerlm.dialects import DIALECTS, Renderer, level_tokens

# Enough text for merges across words, digits, markup and blank lines, among them one of "\n\n".
CORPUS = [
    "Why is the sea salty?\n\nBecause rivers carry minerals from the rocks into the sea.\n\n",
    "quality:4,toxicity:0,humor:0,creativity:0,helpfulness:4,correctness:4,coherence:4,complexity:4,verbosity:4\n",
    "<extra_id_0>System\n<extra_id_1>User\n<extra_id_1>Assistant\n<extra_id_2>\n\n\n",
    "<|im_start|>system <|im_end|> user assistant <|eot_id|> 2024 12345\n\n",
    "A chat between a curious user and an artificial intelligence assistant. Hello, hello!  Two  spaces.\n",
    "def f(x):\n    return x + 1\n\n\n    # four spaces\n",
] * 4
CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# Llama 3's splitting keeps newlines together whatever follows them; GPT-2's does not.
LLAMA3_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def byte_level(
    special: list[str], pattern: str | None = None, normalizer: object = None, digits: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of GPT-2's kind, or with another splitting pattern."""
    tokenizer = Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    steps: list[object] = []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[-1])


def sentencepiece(prepend: bool = True) -> PreTrainedTokenizerFast:
    """Llama 2's tokenizer in small: whole-text BPE over '▁' with bytes for what it does not know.

    With `prepend` every piece of text gets a dummy space (the normaliser of older conversions), without it only
    the first one does (`Metaspace`).
    """
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    learner.train_from_iterator([line for text in CORPUS for line in text.split("\n")], trainer)
    pieces = [piece for piece, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1])]
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    ranks = {piece: rank for rank, piece in enumerate(vocabulary)}
    # The merges that make each learnt piece, in the order learnt.
    merges = [tuple(merge) for merge in _merges(learner)]
    tokenizer = Tokenizer(models.BPE(vocab=ranks, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": lambda: byte_level(["<|endoftext|>", *CHATML]),
    "qwen": lambda: byte_level(["<|endoftext|>", *CHATML], LLAMA3_PATTERN, normalizers.NFC()),
    "digits": lambda: byte_level(["<|endoftext|>", *CHATML], digits=True),
    "llama3": lambda: byte_level(["<|end_of_text|>", *LLAMA3], LLAMA3_PATTERN),
    "gpt2": lambda: byte_level(["<|endoftext|>"]),
    "llama2": sentencepiece,
    "metaspace": lambda: sentencepiece(prepend=False),
}

Markers = Literal["plain", "special", "levels"]


@cache
def renderer(tokenizer: str, dialect: str, markers: Markers = "special", schema: Schema = STEERLM) -> Renderer:
    """A renderer whose tokenizer spells the markers out (`plain`), has them as tokens, or has label words too."""
    made = TOKENIZERS[tokenizer]()
    new = {"plain": [], "special": list(DIALECTS[dialect].markers)}.get(markers)
    if new is None:
        new = [*DIALECTS[dialect].markers, *level_tokens(schema)]
    made.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    return Renderer(DIALECTS[dialect], made, schema)


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PLAIN = {"max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": None}


def llama(vocabulary: int, **changes: Any) -> PreTrainedModel:
    config = LlamaConfig(**{"vocab_size": vocabulary, **SHAPE, **PLAIN, "num_key_value_heads": 2, **changes})
    return LlamaForCausalLM(config).eval()


def qwen2(vocabulary: int, **changes: Any) -> PreTrainedModel:
    """Qwen2's attention has biases on queries, keys and values."""
    config = Qwen2Config(**{"vocab_size": vocabulary, **SHAPE, **PLAIN, "num_key_value_heads": 1, **changes})
    return Qwen2ForCausalLM(config).eval()


def qwen3(vocabulary: int, **changes: Any) -> PreTrainedModel:
    """Qwen3 normalises queries and keys, in heads of their own size."""
    config = Qwen3Config(**{"vocab_size": vocabulary, **SHAPE, **PLAIN, "num_key_value_heads": 2, **changes})
    return Qwen3ForCausalLM(config).eval()


def mistral(vocabulary: int, **changes: Any) -> PreTrainedModel:
    """Mistral's attention sees only the last few tokens."""
    window = {"sliding_window": 7, "num_key_value_heads": 4}
    config = MistralConfig(**{"vocab_size": vocabulary, **SHAPE, **PLAIN, **window, **changes})
    return MistralForCausalLM(config).eval()


def gemma2(vocabulary: int, **changes: Any) -> PreTrainedModel:
    """Gemma 2 caps attention scores and logits, and every other layer sees only the last few tokens."""
    capped = {
        "sliding_window": 7,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "pad_token_id": 0,
    }
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 20.0}
    config = Gemma2Config(**{"vocab_size": vocabulary, **SHAPE, **PLAIN, **capped, **caps, **changes})
    return Gemma2ForCausalLM(config).eval()


NETWORKS: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "mistral": mistral,
    "gemma2": gemma2,
}


def spread(network: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The same network with larger random weights, so that a token that is wrongly seen changes what comes out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim == 2 or name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return network


def save_base(directory: Path, tokenizer: PreTrainedTokenizerBase, network: str = "llama", **changes: Any) -> Path:
    """A base model on disk, as `new_model` takes one."""
    tokenizer.save_pretrained(directory)
    spread(NETWORKS[network](len(tokenizer), **changes)).save_pretrained(directory)
    return directory
