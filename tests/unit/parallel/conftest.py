"""Bases for the tests of sharding: sizes that do not divide evenly, tied embeddings, biases."""

from __future__ import annotations

import pytest

from sharded import Case
from steerlm.models.adapters import Lora
from tiny import TOKENIZERS, save_base


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("sharded")
    llama = save_base(folder / "llama", TOKENIZERS["chatml"](), intermediate_size=50)
    qwen2 = save_base(folder / "qwen2", TOKENIZERS["gpt2"](), "qwen2", tie_word_embeddings=True, num_key_value_heads=2)
    return {
        "llama policy": Case(llama),
        "qwen2 policy": Case(qwen2, checkpointing=True),
        "llama judge": Case(llama, "attribute-model"),
        "qwen2 adapter": Case(qwen2, checkpointing=True, lora=Lora(3, 6.0, variant="rslora")),
        "judge's adapter": Case(llama, "attribute-model", lora=Lora(5, 10.0)),
    }
