"""Which parameters are trained, what is saved of them, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

from steerlm.attributes import STEERLM
from steerlm.errors import ConfigError, ModelError
from steerlm.models.adapters import (
    Lora,
    add_lora,
    embedding_rows,
    four_bit,
    freeze_layers,
    layer_range,
)
from steerlm.models.base import decoder_layers, identify, load_causal_lm, weights_digest
from steerlm.models.directory import ModelInfo
from steerlm.models.load import SteerModel, head_of, load_model, new_model
from steerlm.training.checkpoint import trained
from steerlm.training.new_tokens import NewTokens
from tiny import TOKENIZERS, llama, save_base, spread
from tiny_lora import KINDS, logits, save_lora_base, with_lora

LORA = Lora(rank=2, alpha=4.0)
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_lora_base(tmp_path, tie_word_embeddings=request.param)


def adapted(kind: str, base: Path, lora: Lora = LORA, frozen_layers: str | None = None, **changes: Any) -> SteerModel:
    torch.manual_seed(0)
    return with_lora(new_model(kind, base, STEERLM, **changes), base, lora, frozen_layers)  # type: ignore[arg-type]


def trained_names(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def in_layers(names: set[str], target: str = "") -> set[int]:
    return {int(found[1]) for name in names if (found := re.match(rf"model\.layers\.(\d+)\..*{target}", name))}


def shake(network: nn.Module, seed: int = 0) -> None:
    """Give all that is trained other values, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_the_head_and_new_tokens_are_trained(base: Path, kind: str) -> None:
    model = adapted(kind, base)
    names = trained_names(model.network)
    tied = model.network.config.tie_word_embeddings
    matrices = {"model.embed_tokens"} | ({"lm_head"} if kind == "policy" and not tied else set())
    others = {f"{matrix}.token_adapter.trainable_tokens_delta.default" for matrix in matrices}
    if kind == "attribute-model":
        others.add("score.modules_to_save.default.weight")
    assert {name for name in names if "lora_" not in name} == others
    assert all(in_layers(names, target) == {0, 1, 2} for target in LINEAR)
    assert sum("lora_" in name for name in names) == 3 * len(LINEAR) * 2
    rows = {model.network.get_parameter(name).shape for name in others if "token" in name}
    assert rows == {(len(model.new_tokens), 32)}
    assert len(model.new_tokens) == (48 if kind == "policy" else 3)


def test_without_new_tokens_no_embedding_is_trained(tmp_path: Path) -> None:
    names = trained_names(adapted("attribute-model", save_base(tmp_path, TOKENIZERS["chatml"]())).network)
    assert {name for name in names if "lora_" not in name} == {"score.modules_to_save.default.weight"}


def test_targets_are_ends_of_names(base: Path) -> None:
    names = trained_names(adapted("attribute-model", base, Lora(2, 4.0, targets=("q_proj", "mlp.up_proj"))).network)
    found = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in names if "lora_" in name}
    assert found == {"q_proj", "up_proj"}


def test_a_new_adapter_changes_nothing(base: Path) -> None:
    plain = new_model("policy", base, STEERLM)
    torch.testing.assert_close(logits(adapted("policy", base).network), logits(plain.network))


@pytest.mark.parametrize(
    ("lora", "frozen", "says"),
    [
        (Lora(2, 4.0, targets=("w_qkv",)), None, "no layer to adapt with lora_targets w_qkv: "),
        (LORA, ":", "no layer to adapt with lora_targets all-linear outside of frozen_layers :: "),
        (LORA, "2:9", "frozen_layers=2:9: give a range START:END within the base model's layers, 0:3"),
    ],
)
def test_nothing_to_adapt(base: Path, lora: Lora, frozen: str | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        adapted("attribute-model", base, lora, frozen)


def test_an_output_layer_with_a_bias(base: Path) -> None:
    model = new_model("policy", base, STEERLM)
    model.network.set_output_embeddings(nn.Linear(32, 498))
    with pytest.raises(ModelError, match="LlamaForCausalLM's output layer has a bias"):
        add_lora(model.network, LORA, str(base), model.new_tokens)
    add_lora(model.network, LORA, str(base))


@pytest.mark.parametrize(
    ("span", "found"), [("0:2", [0, 1]), (":1", [0]), ("1:", [1, 2]), (":", [0, 1, 2]), ("2:3", [2])]
)
def test_layer_ranges(span: str, found: list[int]) -> None:
    assert list(layer_range(span, 3)) == found


@pytest.mark.parametrize("span", ["0:4", "2:2", "2:1", "3:", ":0"])
def test_layer_ranges_that_hold_nothing_or_too_much(span: str) -> None:
    with pytest.raises(ConfigError, match=f"frozen_layers={span}: give a range START:END .*, 0:3"):
        layer_range(span, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_layers_get_no_adapter(base: Path, kind: str) -> None:
    assert in_layers(trained_names(adapted(kind, base, frozen_layers="0:2").network)) == {2}


@pytest.mark.parametrize(
    ("span", "new_tokens", "layers", "embeddings"),
    [("0:2", (), {2}, False), ("0:2", (450,), {2}, True), ("1:2", (), {0, 2}, True), (":", (), set(), False)],
)
def test_frozen_layers(span: str, new_tokens: tuple[int, ...], layers: set[int], embeddings: bool) -> None:
    """With layer 0 the embeddings are frozen, unless new tokens must be learnt; norm and head are trained always."""
    network = llama(500, num_hidden_layers=3)
    freeze_layers(network, span, new_tokens)
    names = trained_names(network)
    assert in_layers(names) == layers
    assert ("model.embed_tokens.weight" in names) == embeddings
    assert {"model.norm.weight", "lm_head.weight"} <= names


def test_decoder_layers() -> None:
    name, layers = decoder_layers(llama(500, num_hidden_layers=3))
    assert (name, len(layers)) == ("model.layers", 3)
    network = llama(500)
    network.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of 7 decoder layers"):
        decoder_layers(network)


@pytest.mark.parametrize("kind", KINDS)
def test_new_tokens_learn_as_they_do_without_an_adapter(base: Path, kind: str) -> None:
    """The same gradients, the same steps of the same optimiser: the same embeddings of new tokens."""
    embeddings = []
    for lora in (False, True):
        model = adapted(kind, base) if lora else new_model(kind, base, STEERLM)  # type: ignore[arg-type]
        tokens = NewTokens(model, times=30.0)
        tokens.straighten()
        weight, rows = embedding_rows(model.network, torch.tensor(model.new_tokens))
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            with tokens.step(), torch.no_grad():
                weight[rows] -= torch.randn(len(rows), 32, generator=generator) * 1e-3
        embeddings.append(model.network.get_input_embeddings()(torch.tensor(model.new_tokens)).detach())
    torch.testing.assert_close(*embeddings)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_hold_what_is_trained(base: Path, kind: str) -> None:
    model = adapted(kind, base)
    assert trained(model.network).keys() == trained_names(model.network)
    network = load_causal_lm(base)
    assert trained(network).keys() == dict(network.named_parameters()).keys()
    freeze_layers(network, "0:1")
    assert in_layers(set(trained(network))) == {1, 2}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_files(base: Path, tmp_path: Path, kind: str) -> None:
    """The adapter alone, with what is needed to talk to it; equal models give equal files."""
    for name in ("first", "second"):
        model = adapted(kind, base)
        shake(model.network)
        saved = model.save(tmp_path / name)
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "steerlm.json"} <= names
    assert not {"model.safetensors", "config.json"} & names
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    tensors = load_file(tmp_path / "first" / "adapter_model.safetensors")
    assert sum(value.numel() for value in tensors.values()) == sum(
        value.numel() for value in trained(model.network).values()
    )
    info = ModelInfo.load(tmp_path / "first")
    assert info == saved.info
    assert info.base == identify(base)
    loaded = load_model(tmp_path / "first", model.info.kind)
    assert trained_names(loaded.network) == dict(loaded.network.named_parameters()).keys()
    if kind == "policy":
        assert loaded.network.generation_config.eos_token_id == model.network.generation_config.eos_token_id
    else:
        assert loaded.network.config.pad_token_id == model.network.config.pad_token_id
        assert torch.equal(head_of(loaded.network).weight, head_of(model.network).weight)
        assert list(loaded.network.config.id2label.values()) == list(STEERLM.names)


def test_a_directory_holds_one_form_of_weights(base: Path, tmp_path: Path) -> None:
    """A plain model saved over an adapter is no adapter any more, and the other way round."""
    plain = new_model("policy", base, STEERLM)
    with_adapter = adapted("policy", base)
    shake(with_adapter.network)
    for model in (with_adapter, plain, with_adapter):
        model.save(tmp_path / "out")
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert ("adapter_config.json" in names) == ("model.safetensors" not in names) == (model is with_adapter)
        torch.testing.assert_close(
            logits(load_model(tmp_path / "out", "policy").network), logits(model.network), atol=2e-5, rtol=1e-5
        )
    # What is loaded is plain, and so is what is saved of it.
    saved = load_model(tmp_path / "out", "policy").save(tmp_path / "again")
    assert saved.info.base is None
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_the_fingerprint_covers_adapter_and_base(base: Path, tmp_path: Path) -> None:
    prints = set()
    shutil.copytree(base, tmp_path / "elsewhere")
    spread(load_causal_lm(base), seed=3).save_pretrained(tmp_path / "other")
    for item in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / item, tmp_path / "other" / item)
    for place, lora in ((base, LORA), (tmp_path / "other", LORA), (base, Lora(2, 8.0)), (base, Lora(2, 4.0, 0.1))):
        model = adapted("policy", place, lora)
        shake(model.network)
        prints.add(model.save(tmp_path / "out").info.fingerprint)
    assert len(prints) == 4
    model = adapted("policy", tmp_path / "elsewhere")
    shake(model.network)
    assert model.save(tmp_path / "out").info.fingerprint in prints


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    model = adapted("attribute-model", base)
    shake(model.network)
    model.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_base_that_is_gone_or_another(saved: Path, base: Path) -> None:
    network = load_causal_lm(base)
    base.rename(base.parent / "moved")
    with pytest.raises(
        ModelError, match=r"saved is an adapter, and its base model cannot be loaded: .*put the base back"
    ):
        load_model(saved, "attribute-model")
    shutil.copytree(base.parent / "moved", base)
    spread(network, seed=4).save_pretrained(base)
    with pytest.raises(ModelError, match=r"saved is an adapter of another base model than what is now at .*base"):
        load_model(saved, "attribute-model")
    record = json.loads((saved / "steerlm.json").read_text())
    record["base"]["name"] = str(base.parent / "moved")
    (saved / "steerlm.json").write_text(json.dumps(record))
    assert load_model(saved, "attribute-model").info.base == identify(base.parent / "moved")


def test_damaged_adapters_are_refused(saved: Path) -> None:
    file = saved / "adapter_model.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if "q_proj.lora_B" in name)
    config = (saved / "adapter_config.json").read_text()
    for tensors, says in (
        (
            {key: value for key, value in whole.items() if key != name},
            "is not what adapter_config.json says: it differs",
        ),
        ({**whole, "more": torch.ones(1)}, "is not what adapter_config.json says: it differs in more"),
        (
            {**whole, name: whole[name][:, :1].contiguous()},
            "does not fit its base model: it differs in .*q_proj.lora_B",
        ),
    ):
        save_file(tensors, file)
        with pytest.raises(ModelError, match=says):
            load_model(saved, "attribute-model")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(saved, "attribute-model")
    save_file(whole, file)
    for text in (None, config[:100], "{}"):
        (saved / "adapter_config.json").unlink(missing_ok=True)
        if text is not None:
            (saved / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"cannot load the model|is not what adapter_config.json says"):
            load_model(saved, "attribute-model")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_no_base(saved: Path, kind: str) -> None:
    with pytest.raises(ModelError, match=r"is an adapter, no base model; merge it first: steerlm export hf .*saved"):
        new_model(kind, saved, STEERLM)  # type: ignore[arg-type]


def test_packages_that_are_not_installed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model("policy", base, STEERLM)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"LoRA needs the package peft; .*pip install 'steerlm\[lora\]'"):
        add_lora(model.network, LORA, str(base))
    with pytest.raises(ConfigError, match=r"4bit needs the package bitsandbytes; .*'steerlm\[quantize\]'"):
        four_bit(torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_4_bits(base: Path, tmp_path: Path, kind: str) -> None:
    """On the CPU, where it is slow but works. The layers are small numbers, what is trained is float32."""
    cpu = torch.device("cpu")
    model = adapted(kind, base, Lora(2, 4.0, variant="dora"), quantize_on=cpu)
    full = adapted(kind, base, Lora(2, 4.0, variant="dora"))
    assert trained_names(model.network) == trained_names(full.network)
    layers = [item for item in model.network.modules() if type(item).__name__ == "Linear4bit"]
    assert len(layers) >= 3 * len(LINEAR)
    for name, parameter in model.network.named_parameters():
        assert parameter.dtype == (torch.uint8 if "_proj.base_layer" in name else torch.float32), name
    ids = torch.tensor([[5, 80, 200, 450]])
    if kind == "attribute-model":
        model.network.config.pad_token_id = 0
    model.network(input_ids=ids).logits.square().sum().backward()
    gradients = {name for name, item in model.network.named_parameters() if item.grad is not None}
    assert gradients == trained_names(model.network)
    shake(model.network)
    full.network.load_state_dict(trained(model.network), strict=False)
    model.save(tmp_path / "out")
    loaded = load_model(tmp_path / "out", model.info.kind)
    torch.testing.assert_close(logits(loaded.network), logits(full.network), atol=2e-5, rtol=1e-5)


def test_what_tells_bases_apart(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is the same base, wherever it is; paths are made absolute; hub models are read from their cache."""
    first = weights_digest(base)
    snapshot = tmp_path / "hub" / "models--someone--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(base / "model.safetensors", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = identify("someone/model")
    assert (found.name, found.digest) == ("someone/model", first)
    monkeypatch.chdir(base.parent)
    assert identify("base") == identify(base)
    assert identify("base").name == str(base.resolve())
    with (base / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert weights_digest(base) != first
