"""Reading weights into an empty model, in one process; over several see `test_shard`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.errors import ModelError
from steerlm.models.directory import Kind
from steerlm.models.load import SteerModel, new_model
from steerlm.parallel.load import blank_model
from steerlm.parallel.shard import Root
from tiny import TOKENIZERS, llama, save_base, spread


def filled(kind: Kind, base: Path, schema: Schema = STEERLM, **changes: Any) -> SteerModel:
    blank = blank_model(kind, base, schema, **changes)
    assert {parameter.device.type for parameter in blank.model.network.parameters()} == {"meta"}
    blank.fill(Root(blank.model.network), torch.device("cpu"))
    return blank.model


def assert_same(found: SteerModel, wanted: SteerModel) -> None:
    before, after = wanted.network.state_dict(), found.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    buffers = dict(found.network.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in wanted.network.named_buffers())
    assert found.network.config.to_dict() == wanted.network.config.to_dict()
    assert found.info == wanted.info
    assert found.new_tokens == wanted.new_tokens
    if wanted.info.kind == "policy":
        assert found.network.generation_config.to_dict() == wanted.network.generation_config.to_dict()


@pytest.mark.parametrize("base", ["chatml_base", "gpt2_base", "sentencepiece_base"])
@pytest.mark.parametrize("kind", ["policy", "attribute-model"])
def test_a_filled_model_is_a_new_model(base: str, kind: Kind, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(base)
    torch.manual_seed(2)
    wanted = new_model(kind, path, STEERLM, system="Be brief.")
    torch.manual_seed(2)
    assert_same(filled(kind, path, system="Be brief."), wanted)


def test_it_computes(gpt2_base: Path) -> None:
    """With tied embeddings and the buffers of its positions in place."""
    ids = torch.tensor([[1, 2, 3, 460]])
    wanted = new_model("policy", gpt2_base, STEERLM).network(ids).logits
    network = filled("policy", gpt2_base).network
    assert torch.equal(network(ids).logits, wanted)
    assert network.get_input_embeddings().weight is network.get_output_embeddings().weight


def test_a_trained_judge_keeps_its_head(attribute_model: SteerModel, tmp_path: Path) -> None:
    attribute_model.save(tmp_path / "judge")
    again = filled("attribute-model", tmp_path / "judge")
    assert torch.equal(again.network.score.weight, attribute_model.network.score.weight)


def test_weights_in_several_files_and_in_half_precision(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["chatml"]()
    tokenizer.save_pretrained(tmp_path)
    network = spread(llama(len(tokenizer))).to(torch.bfloat16)
    network.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    wanted = new_model("policy", tmp_path, STEERLM)
    found = filled("policy", tmp_path)
    assert_same(found, wanted)
    assert {weight.dtype for weight in found.network.parameters()} == {torch.float32}


def test_spare_rows_are_used(tmp_path: Path) -> None:
    """Many models pad their vocabulary; the new tokens take the spare rows, and the others keep theirs."""
    tokenizer = TOKENIZERS["gpt2"]()
    tokenizer.save_pretrained(tmp_path)
    spread(llama(512)).save_pretrained(tmp_path)
    assert_same(filled("policy", tmp_path), new_model("policy", tmp_path, STEERLM))


def rewritten(base: Path, to: Path, change: Any) -> Path:
    """A copy of a base model with other weights."""
    to.mkdir()
    for file in base.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    weights = load_file(base / "model.safetensors")
    change(weights)
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_wrong_weights_are_named(chatml_base: Path, tmp_path: Path) -> None:
    def other_names(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.mlp.other.weight"] = weights.pop("model.layers.0.mlp.up_proj.weight")

    broken = rewritten(chatml_base, tmp_path / "names", other_names)
    for kind in ("policy", "attribute-model"):
        told = "it lacks model.layers.0.mlp.up_proj.weight; it has unknown model.layers.0.mlp.other.weight; save the"
        with pytest.raises(ModelError, match=re.escape(told)):
            filled(kind, broken)  # type: ignore[arg-type]

    def many_missing(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "layers.1" in name]:
            del weights[name]

    with pytest.raises(ModelError, match=r"it lacks model.layers.1.*, .*, .*, .*, .* and 4 more; save"):
        filled("policy", rewritten(chatml_base, tmp_path / "missing", many_missing))

    def other_shape(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] = torch.ones(31)

    with pytest.raises(ModelError, match=r"model.norm.weight has the shape \[31\], where \[32\] is needed"):
        filled("policy", rewritten(chatml_base, tmp_path / "shape", other_shape))

    def narrow(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = torch.ones(450, 31)

    with pytest.raises(ModelError, match=r"lm_head.weight has the shape \[450, 31\], where"):
        filled("policy", rewritten(chatml_base, tmp_path / "narrow", narrow))


def test_tokens_without_a_row_are_named(tmp_path: Path) -> None:
    """Where a tokenizer has more tokens than the model has rows, nothing says how the others should start."""
    tokenizer = TOKENIZERS["gpt2"]()
    tokenizer.add_tokens(["one", "two"])
    base = save_base(tmp_path / "base", TOKENIZERS["gpt2"]())
    tokenizer.save_pretrained(base)
    with pytest.raises(ModelError, match=r"embed_tokens.weight has no row for token 450 of the tokenizer"):
        filled("policy", base)


@pytest.mark.parametrize("damage", ["gone", "cut", "no index", "no shard"])
def test_damaged_weights(tmp_path: Path, damage: str) -> None:
    tokenizer = TOKENIZERS["chatml"]()
    tokenizer.save_pretrained(tmp_path)
    network = llama(len(tokenizer))
    if damage in ("gone", "cut"):
        network.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        content = file.read_bytes()
        file.unlink()
        if damage == "cut":
            file.write_bytes(content[:-100])
    else:
        network.save_pretrained(tmp_path, max_shard_size="30KB")
        index = tmp_path / "model.safetensors.index.json"
        shard = json.loads(index.read_text())["weight_map"]["lm_head.weight"]
        (index if damage == "no index" else tmp_path / shard).unlink()
    expected = "no model.safetensors in it" if damage in ("gone", "no index") else "cannot load the model"
    with pytest.raises(ModelError, match=expected):
        filled("policy", tmp_path)


def test_a_schema_of_its_own(chatml_base: Path) -> None:
    network = filled("attribute-model", chatml_base, Schema((Attribute("tone"), Attribute("wit")))).network
    assert network.score.weight.shape == (2, 32)
    assert network.config.id2label == {0: "tone", 1: "wit"}


def test_nothing_is_left_on_the_meta_device(chatml_base: Path) -> None:
    model = filled("policy", chatml_base)
    tensors = [*model.network.parameters(), *model.network.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    assert isinstance(model.network, type(AutoModelForCausalLM.from_pretrained(chatml_base)))
