"""The tokenizer in a GGUF file, as other programs make it of that file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import openvino_genai
import pytest
from gguf import TokenType
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer

from steerlm.attributes import STEERLM
from steerlm.checkpoints.gguf import export_gguf
from steerlm.models.base import quiet
from steerlm.models.load import new_model
from tiny import TOKENIZERS, save_base
from tiny_gguf import BYTE_LEVEL, TEXTS, exported, trained_sentencepiece


def fields(folder: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(folder / "out.gguf").fields.items()}


@pytest.mark.parametrize("name", list(BYTE_LEVEL))
def test_others_make_the_same_tokens(tmp_path: Path, name: str) -> None:
    """OpenVINO knows how two of these split text, transformers the others."""
    pre, make = BYTE_LEVEL[name]
    policy, written = exported(tmp_path, make())
    assert (written.warnings, fields(tmp_path)["tokenizer.ggml.pre"]) == ((), pre)
    ours = policy.renderer.tokenizer
    if pre in ("smollm", "qwen2"):
        tokenizer = openvino_genai.Tokenizer(str(tmp_path / "out.gguf"))
        found = [tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist() for text in TEXTS]
    else:
        with quiet():
            theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="out.gguf")
        found = [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert found == [ours(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def test_kinds_of_tokens(tmp_path: Path) -> None:
    made = TOKENIZERS["gpt2"]()
    made.add_tokens(["lighthouse"])
    policy, _ = exported(tmp_path, made, num_hidden_layers=1)
    found = fields(tmp_path)
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    for text in ("<extra_id_1>", "verbosity:4", "<|endoftext|>"):
        assert kinds[text] == TokenType.CONTROL
    assert kinds["lighthouse"] == TokenType.USER_DEFINED
    assert kinds["Ġthe"] == TokenType.NORMAL
    tokenizer = policy.renderer.tokenizer
    assert found["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.convert_tokens_to_ids("<extra_id_1>")
    assert found["tokenizer.ggml.eot_token_id"] == tokenizer.eos_token_id
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.bos_token_id" not in found


def test_rows_without_a_token_have_a_name(tmp_path: Path) -> None:
    made = TOKENIZERS["chatml"]()
    with quiet():
        base = save_base(tmp_path / "base", made)
    policy = new_model("policy", base, STEERLM)
    count = len(policy.renderer.tokenizer)
    with quiet():
        policy.network.resize_token_embeddings(count + 3, mean_resizing=False)
    policy.save(tmp_path / "policy")
    export_gguf(tmp_path / "policy", tmp_path / "out.gguf")
    found = fields(tmp_path)
    assert found["tokenizer.ggml.tokens"][-3:] == [f"[PAD{count + k}]" for k in range(3)]
    assert found["tokenizer.ggml.token_type"][-4:] == [TokenType.CONTROL, *[TokenType.UNUSED] * 3]


def test_sentencepiece_has_its_own_scores_in_order(tmp_path: Path) -> None:
    """llama.cpp joins pieces by their scores, as SentencePiece itself; only their order counts."""
    original, model = trained_sentencepiece()
    (tmp_path / "tokenizer.model").write_bytes(model)
    policy, written = exported(tmp_path, LlamaTokenizer.from_pretrained(tmp_path))
    assert written.warnings == ()
    found = fields(tmp_path)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.add_space_prefix"]) == ("llama", False)
    kinds, scores = found["tokenizer.ggml.token_type"], found["tokenizer.ggml.scores"]
    size = original.get_piece_size()
    assert found["tokenizer.ggml.tokens"][:size] == [original.id_to_piece(token) for token in range(size)]
    for token in range(size):
        assert (kinds[token] == TokenType.BYTE) == original.is_byte(token)
        assert (kinds[token] == TokenType.CONTROL) == original.is_control(token)
        assert (kinds[token] == TokenType.UNKNOWN) == original.is_unknown(token)
    joined = [token for token in range(size) if len(original.id_to_piece(token)) > 1 and kinds[token] == 1]
    assert sorted(joined, key=lambda token: -scores[token]) == sorted(joined, key=lambda k: -original.get_score(k))
    assert kinds[policy.renderer.tokenizer.convert_tokens_to_ids("<extra_id_0>")] == TokenType.CONTROL


def test_a_dummy_space_after_every_special_token(tmp_path: Path) -> None:
    exported(tmp_path, TOKENIZERS["llama2"]())
    assert fields(tmp_path)["tokenizer.ggml.add_space_prefix"] is True


def test_what_others_may_do_otherwise_is_said(tmp_path: Path) -> None:
    made = TOKENIZERS["gpt2"]()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    _, written = exported(tmp_path, made)
    assert "no name is known for how this tokenizer splits text" in written.warnings[0]
    assert "normalises text" in written.warnings[1]
    (tmp_path / "second").mkdir()
    _, written = exported(tmp_path / "second", TOKENIZERS["llama2"]())
    assert "joins only some of the pieces" in written.warnings[0]
