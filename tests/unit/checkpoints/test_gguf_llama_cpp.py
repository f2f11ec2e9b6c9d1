"""GGUF files in llama.cpp itself: `pip install cyllama` and set STEERLM_TEST_LLAMA_CPP=1 to run these."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaTokenizer, PreTrainedModel

from steerlm.attributes import STEERLM
from steerlm.checkpoints.gguf import Quantization, export_gguf
from steerlm.models.load import new_model
from steerlm.sources.bundled import held_out_prompts
from tiny import TOKENIZERS
from tiny_gguf import BYTE_LEVEL, TEXTS, exported, trained_sentencepiece

pytestmark = pytest.mark.skipif(
    not os.environ.get("STEERLM_TEST_LLAMA_CPP"), reason="asked for with STEERLM_TEST_LLAMA_CPP=1"
)


class LlamaCpp:
    """A file opened with llama.cpp."""

    def __init__(self, path: Path) -> None:
        from cyllama.llama import llama_cpp

        class Model(llama_cpp.LlamaModel):  # type: ignore[misc]
            n_vocab = property(lambda model: model.get_vocab().n_vocab)  # which its own logits need and lack

        llama_cpp.disable_logging()
        self._library = llama_cpp
        self._model = Model(str(path))
        self.vocabulary = self._model.get_vocab()

    def tokenize(self, text: str) -> list[int]:
        found: list[int] = self.vocabulary.tokenize(text, add_special=True, parse_special=True)
        return found

    def logits(self, ids: Sequence[int]) -> Tensor:
        params = self._library.LlamaContextParams()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = 1
        context = self._library.LlamaContext(self._model, params)
        batch = self._library.LlamaBatch(n_tokens=512, embd=0, n_seq_max=1)
        for position, token in enumerate(ids):
            batch.add(token, position, [0], True)
        context.decode(batch)
        return torch.tensor([context.get_logits_ith(position) for position in range(len(ids))])


@torch.no_grad()
def logits(network: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    found: Tensor = network(torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "llama2"])
def test_tokens(tmp_path: Path, name: str) -> None:
    if name == "llama2":
        (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece()[1])
        made: Any = LlamaTokenizer.from_pretrained(tmp_path)
    else:
        made = BYTE_LEVEL[name][1]()
    policy, _ = exported(tmp_path, made)
    tokenizer = policy.renderer.tokenizer
    read = LlamaCpp(tmp_path / "out.gguf")
    # Text that begins a prompt without a marker gets SentencePiece's dummy space only from transformers.
    texts = TEXTS if name != "llama2" else [text for text in TEXTS if text.startswith("<extra")]
    assert [read.tokenize(text) for text in texts] == [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
    ]
    ends = {*policy.renderer.end_ids, tokenizer.eos_token_id}
    assert all(read.vocabulary.is_eog(token) for token in ends)


SCALED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "head_dim": 16, "tie_word_embeddings": True}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **SCALED}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 64}),
    ],
)
def test_logits(tmp_path: Path, network: str, changes: dict[str, Any]) -> None:
    policy, _ = exported(tmp_path, TOKENIZERS["chatml"](), "f16", network, **changes)
    ids = [(7 * place) % 450 for place in range(100)]
    found = LlamaCpp(tmp_path / "out.gguf").logits(ids)
    torch.testing.assert_close(found, logits(policy.network, ids), rtol=0, atol=0.05)


@pytest.mark.slow
def test_log_probabilities_of_real_text(tmp_path: Path) -> None:
    """With f16 they are nearly ours; with q8_0 llama.cpp rounds activations to 8 bits as well."""
    policy = new_model("policy", "smollm2", STEERLM).save(tmp_path / "policy")
    ids = policy.renderer.tokenizer("\n".join(held_out_prompts()))["input_ids"][:201]
    assert len(ids) == 201
    following = torch.tensor(ids[1:])[:, None]
    kinds: tuple[tuple[Quantization, float], ...] = (("f16", 0.005), ("q8_0", 0.1))
    for quantization, most in kinds:
        export_gguf(tmp_path / "policy", tmp_path / "out.gguf", quantization)
        found, expected = (
            each[:-1].log_softmax(dim=-1).gather(1, following)
            for each in (LlamaCpp(tmp_path / "out.gguf").logits(ids), logits(policy.network, ids))
        )
        assert float((found - expected).abs().mean()) < most
        assert abs(float((found - expected).mean())) < most / 5, "no text gets likelier or less likely"
