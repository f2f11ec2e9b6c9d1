"""Adapters against plain weights: peft's own loading, merging by hand, and the network as it was trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from steerlm.attributes import STEERLM
from steerlm.checkpoints.huggingface import export_hf
from steerlm.models.adapters import Lora, Variant
from steerlm.models.base import load_causal_lm, quiet
from steerlm.models.directory import ModelInfo
from steerlm.models.load import SteerModel, load_model, new_model
from tiny_lora import KINDS, logits, save_lora_base, train_lora, with_lora, without_adapter

# peft asks transformers for a name that it has given up.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
VARIANTS: tuple[Variant, ...] = ("lora", "rslora", "dora")

Trained = tuple[SteerModel, Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, bool], Trained]:
    """Trains each adapter once: the model as training leaves it, and the folder with `base` and `out`."""
    done: dict[tuple[str, str, bool], Trained] = {}

    def get(kind: str, variant: str, tied: bool) -> Trained:
        key = (kind, variant, tied)
        if key not in done:
            folder = tmp_path_factory.mktemp("lora")
            save_lora_base(folder, tie_word_embeddings=tied)
            done[key] = train_lora(folder, kind, "out", lora_variant=variant), folder
        return done[key]

    return get


def base_network(kind: str, folder: Path) -> PreTrainedModel:
    """The base in bare transformers, with room for the tokens that were added."""
    if kind == "policy":
        network = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    else:
        labels = len(ModelInfo.load(folder / "out").schema)
        network = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=labels)
        network.config.pad_token_id = 0
    network.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder / "out")))
    return network.eval()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_to_load_agree(
    trained: Callable[[str, str, bool], Trained], tmp_path: Path, kind: str, variant: str, tied: bool
) -> None:
    """As trained, merged when loaded, in peft on a bare base, and exported into bare transformers."""
    model, folder = trained(kind, variant, tied)
    expected = logits(model.network)
    with quiet():
        untrained = base_network(kind, folder)
        assert not torch.allclose(logits(untrained), expected, atol=0.1)
        in_peft = PeftModel.from_pretrained(untrained, folder / "out").eval()
    loaded = load_model(folder / "out", model.info.kind)
    export_hf(folder / "out", tmp_path / "plain")
    auto = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    plain = auto.from_pretrained(tmp_path / "plain").eval()
    assert {"model.safetensors", "config.json"} <= {path.name for path in (tmp_path / "plain").iterdir()}
    for network in (in_peft, loaded.network, plain):
        torch.testing.assert_close(logits(network), expected, atol=2e-5, rtol=1e-5)
    assert not any("lora" in name or "adapter" in name for name in loaded.network.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_peft_finds_base_and_tokens_by_itself(trained: Callable[[str, str, bool], Trained], kind: str) -> None:
    """As model cards load adapters; how many scores there are is not in the adapter's configuration."""
    model, folder = trained(kind, "lora", True)
    with quiet():
        if kind == "policy":
            network = AutoPeftModelForCausalLM.from_pretrained(folder / "out").eval()
        else:
            labels = len(model.schema)
            network = AutoPeftModelForSequenceClassification.from_pretrained(folder / "out", num_labels=labels).eval()
    torch.testing.assert_close(logits(network), logits(model.network), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_by_hand(trained: Callable[[str, str, bool], Trained], variant: str) -> None:
    """W + s B A, with s = alpha / rank or alpha / sqrt(rank); DoRA gives each row of it the learnt length."""
    _, folder = trained("policy", variant, False)
    adapter = load_file(folder / "out" / "adapter_model.safetensors")
    config = json.loads((folder / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    scale = 8 / math.sqrt(4) if variant == "rslora" else 8 / 4
    merged = load_model(folder / "out", "policy").network.state_dict()
    base = load_causal_lm(folder / "base").state_dict()
    seen = 0
    for name, weight in base.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in adapter:
            seen += 1
            expected = weight + scale * adapter[f"{prefix}.lora_B.weight"] @ adapter[f"{prefix}.lora_A.weight"]
            if variant == "dora":
                lengths = adapter[f"{prefix}.lora_magnitude_vector"]
                expected = lengths[:, None] * expected / expected.norm(dim=1, keepdim=True)
            torch.testing.assert_close(merged[name], expected, atol=1e-6, rtol=1e-5)
            assert (merged[name] - weight).abs().max() > 1e-3
        elif f"{prefix}.token_adapter.trainable_tokens_delta" in adapter:
            assert torch.equal(merged[name][: len(weight)], weight)
            assert torch.equal(merged[name][len(weight) :], adapter[f"{prefix}.token_adapter.trainable_tokens_delta"])
        else:
            assert torch.equal(merged[name], weight)
    assert seen == 3 * 7
    assert {"model.embed_tokens", "lm_head"} == {
        name.removeprefix("base_model.model.").removesuffix(".token_adapter.trainable_tokens_delta")
        for name in adapter
        if "token_adapter" in name
    }


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_learns(trained: Callable[[str, str, bool], Trained], kind: str) -> None:
    """The base is bit for bit what it was, and has no gradients; all that is trained has them, and has moved."""
    model, folder = trained(kind, "lora", True)
    with quiet():
        base = base_network(kind, folder).state_dict()
    fresh = with_lora(new_model(model.info.kind, folder / "base", STEERLM), folder / "base", Lora(4, 8.0)).network
    fresh(torch.tensor([[5, 80, *range(450, 453)]])).logits.sum().backward()
    untrained = dict(fresh.named_parameters())
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad:
            assert untrained[name].grad is not None, name
            assert not torch.equal(parameter, untrained[name]), name
        else:
            assert untrained[name].grad is None, name
            if "original_module" not in name:
                rows = 450 if "embed_tokens" in name else len(parameter)
                assert torch.equal(parameter[:rows], base[without_adapter(name)][:rows]), name


def test_an_adapter_of_full_rank_is_any_change_of_weights(tmp_path: Path) -> None:
    """With A the identity and B a change of weights, the adapted network is the one whose weights are changed."""
    base = save_lora_base(tmp_path)
    plain = new_model("policy", base, STEERLM)
    adapted = with_lora(
        new_model("policy", base, STEERLM), base, Lora(rank=32, alpha=32.0, targets=("q_proj", "v_proj"))
    )
    weights, inside = plain.network.state_dict(), adapted.network.state_dict()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in range(3):
            for target in ("q_proj", "v_proj"):
                name = f"model.layers.{layer}.self_attn.{target}"
                change = torch.randn(weights[f"{name}.weight"].shape, generator=generator) * 0.1
                weights[f"{name}.weight"] += change
                inside[f"{name}.lora_A.default.weight"].copy_(torch.eye(32))
                inside[f"{name}.lora_B.default.weight"].copy_(change)
        new = torch.randn(len(plain.new_tokens), 32, generator=generator)
        for matrix in ("model.embed_tokens", "lm_head"):
            weights[f"{matrix}.weight"][list(plain.new_tokens)] = new
            inside[f"{matrix}.token_adapter.trainable_tokens_delta.default"].copy_(new)
    torch.testing.assert_close(logits(adapted.network), logits(plain.network), atol=2e-5, rtol=1e-5)
