"""GGUF files, read back with the gguf package and with transformers' own loader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from steerlm.attributes import STEERLM
from steerlm.checkpoints.gguf import Quantization, export_gguf
from steerlm.checkpoints.huggingface import export_hf
from steerlm.cli.main import run
from steerlm.errors import ConfigError, ModelError
from steerlm.models.adapters import Lora
from steerlm.models.base import quiet
from steerlm.models.load import SteerModel, load_model, new_model
from tiny import TOKENIZERS, save_base
from tiny_lora import save_lora_base, with_lora

# Rows of 96 are whole blocks of q8_0; those of 48 are not, and are kept in float16.
WIDE = {"intermediate_size": 96}


def saved_policy(folder: Path, network: str = "llama", tokenizer: str = "chatml", **changes: Any) -> SteerModel:
    """A policy in the folder `policy`; its network has larger random weights."""
    with quiet():
        base = save_base(folder / "base", TOKENIZERS[tokenizer](), network, **changes)
    return new_model("policy", base, STEERLM, system="Be brief.").save(folder / "policy")


def rounded(weight: Tensor, quantization: Quantization) -> Tensor:
    """What a matrix is after it was stored, by the definition of the formats."""
    if quantization == "f16" or weight.shape[-1] % 32:
        return weight.half().float()
    blocks = weight.reshape(-1, 32)
    scales = blocks.abs().amax(dim=1, keepdim=True) / 127
    return ((blocks / scales).round() * scales.half().float()).reshape(weight.shape)


@torch.no_grad()
def logits(network: PreTrainedModel) -> Tensor:
    count = network.config.vocab_size
    ids = torch.tensor([[5, 80, 200, 310, 17, *range(count - 6, count)]])
    found: Tensor = network(input_ids=ids).logits
    return found


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
@pytest.mark.parametrize(
    ("network", "tokenizer", "changes"),
    [
        ("llama", "chatml", {}),
        ("llama", "llama2", {**WIDE, "tie_word_embeddings": True}),
        ("llama", "digits", {**WIDE, "head_dim": 16}),
        ("qwen2", "qwen", WIDE),
        ("qwen3", "qwen", {"head_dim": 128, "tie_word_embeddings": True}),
    ],
)
def test_transformers_reads_the_same_network(
    tmp_path: Path, network: str, tokenizer: str, changes: dict[str, Any], quantization: Quantization
) -> None:
    policy = saved_policy(tmp_path, network, tokenizer, **changes)
    steps: list[tuple[int, int]] = []
    written = export_gguf(tmp_path / "policy", tmp_path / "out.gguf", quantization, lambda *step: steps.append(step))
    with quiet():
        read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="out.gguf", dtype=torch.float32)
    with torch.no_grad():
        for weight in policy.network.parameters():
            if weight.ndim == 2:
                weight.copy_(rounded(weight, quantization))
    torch.testing.assert_close(logits(read), logits(policy.network), rtol=0, atol=2e-4)
    assert steps == [(number, written.tensors) for number in range(1, written.tensors + 1)]
    assert written.bytes == (tmp_path / "out.gguf").stat().st_size
    types = {item.tensor_type.name for item in gguf.GGUFReader(tmp_path / "out.gguf").tensors if len(item.shape) == 2}
    mixed = {"Q8_0"} if changes.get("intermediate_size") == 96 else {"Q8_0", "F16"}
    assert types == ({"F16"} if quantization == "f16" else mixed)


def test_what_a_file_says(tmp_path: Path) -> None:
    changes = {"max_position_embeddings": 777, "rms_norm_eps": 1e-5, "head_dim": 16}
    rope = {"rope_type": "default", "rope_theta": 5e5}
    policy = saved_policy(tmp_path, rope_parameters=rope, **changes)
    export_gguf(tmp_path / "policy", tmp_path / "out.gguf")
    found = fields(tmp_path / "out.gguf")
    count = len(policy.renderer.tokenizer)
    assert {name.removeprefix("llama."): found[name] for name in found if name.startswith("llama.")} == {
        "vocab_size": count,
        "context_length": 777,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "block_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "rope.dimension_count": 16,
        "rope.freq_base": 5e5,
    }
    assert (found["general.architecture"], found["general.file_type"], found["general.name"]) == ("llama", 7, "policy")
    assert found["steerlm.fingerprint"] == policy.info.fingerprint
    assert found["tokenizer.chat_template"] == policy.renderer.chat_template("policy", "Be brief.")


def test_biases_of_llama_are_reordered_with_their_rows(tmp_path: Path) -> None:
    policy = saved_policy(tmp_path, attention_bias=True)
    export_gguf(tmp_path / "policy", tmp_path / "out.gguf", "f16")
    tensors = {item.name: item.data for item in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    undo = LlamaTensorProcessor({"num_attention_heads": 4, "num_key_value_heads": 2})
    attention = policy.network.model.layers[1].self_attn
    for name, layer in (("attn_q", attention.q_proj), ("attn_k", attention.k_proj), ("attn_v", attention.v_proj)):
        bias = undo.process(tensors[f"blk.1.{name}.bias"], f"blk.1.{name}.bias").weights
        np.testing.assert_array_equal(bias, layer.bias.detach().numpy())


def test_scaled_rotary_embeddings(tmp_path: Path) -> None:
    """Llama 3's scaling is stored as divisors of the frequencies, here by the rule that Meta published."""
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
    rope = {"rope_type": "llama3", "rope_theta": 1e4, **scaling}
    saved_policy(tmp_path, head_dim=16, rope_parameters=rope)
    export_gguf(tmp_path / "policy", tmp_path / "out.gguf")
    [found] = [item.data for item in gguf.GGUFReader(tmp_path / "out.gguf").tensors if item.name == "rope_freqs.weight"]
    expected = []
    for index in range(8):
        length = 2 * math.pi * 1e4 ** (2 * index / 16)
        smooth = (256 / length - 1) / (4 - 1)
        expected.append(1.0 if length < 64 else 8.0 if length > 256 else 1 / ((1 - smooth) / 8 + smooth))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(set(expected)) > 2, "some frequencies lie between the two ends"


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_other_scalings_are_named(tmp_path: Path, kind: str) -> None:
    more = {"original_max_position_embeddings": 512} if kind == "yarn" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **more}
    saved_policy(tmp_path, rope_parameters=rope)
    export_gguf(tmp_path / "policy", tmp_path / "out.gguf")
    found = fields(tmp_path / "out.gguf")
    assert (found["llama.rope.scaling.type"], found["llama.rope.scaling.factor"]) == (kind, 4.0)
    assert found.get("llama.rope.scaling.original_context_length") == more.get("original_max_position_embeddings")


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    base = save_lora_base(tmp_path)
    model = with_lora(new_model("policy", base, STEERLM), base, Lora(2, 4.0))
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.network.named_parameters():
        if "lora_B" in name:  # zero at first, which would change nothing
            weight.data.copy_(torch.randn(weight.shape, generator=generator))
    model.save(tmp_path / "adapter")
    export_hf(tmp_path / "adapter", tmp_path / "merged")
    for name in ("adapter", "merged"):
        export_gguf(tmp_path / name, tmp_path / f"{name}.gguf")
    one, other = (
        {item.name: item.data for item in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
        for name in ("adapter", "merged")
    )
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_policy(tmp_path)
    out = tmp_path / "new" / "p.gguf"
    assert run(["export", "gguf", str(tmp_path / "policy"), "--out", str(out), "--type", "f16"]) == 0
    assert fields(out)["general.file_type"] == 1
    assert "saved 21 tensors, 0.1 MB, to" in capsys.readouterr().err
    assert run(["export", "gguf", str(tmp_path / "policy"), "--out", str(out)]) == 0
    assert fields(out)["general.file_type"] == 7, "an older file is replaced"


def test_what_cannot_be_exported(tmp_path: Path, attribute_model: SteerModel, sentencepiece_base: Path) -> None:
    attribute_model.save(tmp_path / "judge")
    new_model("policy", sentencepiece_base, STEERLM).save(tmp_path / "mistral")
    saved_policy(tmp_path)
    out = tmp_path / "out" / "p.gguf"
    for name, says in (
        ("judge", "is an attribute model"),
        ("mistral", "is a mistral model; GGUF files are written of llama, qwen2, qwen3"),
        ("base", "is no steerlm model"),
    ):
        with pytest.raises(ModelError, match=says):
            export_gguf(tmp_path / name, out)
    for wrong in (tmp_path / "p.bin", tmp_path):
        with pytest.raises(ConfigError, match=r"name a file that ends in \.gguf"):
            export_gguf(tmp_path / "policy", wrong)
    assert not out.exists()


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path) -> None:
    saved_policy(tmp_path)
    policy = load_model(tmp_path / "policy", "policy")
    with torch.no_grad():
        policy.network.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    policy.save(tmp_path / "policy")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight are beyond the range of float16 .* use q8_0"):
        export_gguf(tmp_path / "policy", tmp_path / "out" / "p.gguf", "f16")
    assert list((tmp_path / "out").iterdir()) == []
    export_gguf(tmp_path / "policy", tmp_path / "out" / "p.gguf")
