"""Tokenizers of every kind that GGUF files have a name for, texts to tokenise, and policies with them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from steerlm.attributes import STEERLM
from steerlm.checkpoints.gguf import GGUFFile, Quantization, export_gguf
from steerlm.models.base import quiet
from steerlm.models.load import SteerModel, new_model
from tiny import CHATML, CORPUS, LLAMA3, LLAMA3_PATTERN, TOKENIZERS, byte_level, save_base

QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "Why is the sea salty?\n\nRivers carry 12345 minerals;  they'd say it's SO.\n",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nverbosity:4,humor:0\nhello",
    "<extra_id_0>System\nBe brief.\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n<extra_id_2>quality:4,humor:1\n",
    "Grüße, 世界 \N{GRINNING FACE} \t x=y+1",
]


def merged_whole(made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer, but whole words of the vocabulary are taken without merging them, as Llama 3's does."""
    form = json.loads(made.backend_tokenizer.to_str())
    form["model"]["ignore_merges"] = True
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(form)), eos_token=made.eos_token)


def trained_sentencepiece() -> tuple[sentencepiece.SentencePieceProcessor, bytes]:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n") if line]),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), model.getvalue()


BYTE_LEVEL: dict[str, tuple[str, Callable[[], PreTrainedTokenizerFast]]] = {
    "smollm2": ("smollm", TOKENIZERS["digits"]),
    "llama3": ("llama-bpe", lambda: merged_whole(byte_level(["<|end_of_text|>", *LLAMA3], LLAMA3_PATTERN))),
    "llama3, merging": ("smaug-bpe", TOKENIZERS["llama3"]),
    "qwen2": ("qwen2", lambda: byte_level(["<|endoftext|>", *CHATML], QWEN2_PATTERN, normalizers.NFC())),
    "gpt2": ("gpt-2", TOKENIZERS["gpt2"]),
}


def exported(
    folder: Path, tokenizer: Any, quantization: Quantization = "q8_0", network: str = "llama", **changes: Any
) -> tuple[SteerModel, GGUFFile]:
    """A policy in the folder `policy` and the file `out.gguf` made of it."""
    with quiet():
        base = save_base(folder / "base", tokenizer, network, **changes)
    policy = new_model("policy", base, STEERLM).save(folder / "policy")
    return policy, export_gguf(folder / "policy", folder / "out.gguf", quantization)
