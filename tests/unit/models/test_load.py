"""The two trained models on disk: whole, complete, and usable by bare transformers."""

from __future__ import annotations

import shutil
import stat
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedModel

from full_disk import room_for
from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.conversation import Conversation, Message
from steerlm.dialects import level_tokens
from steerlm.errors import ModelError
from steerlm.files import replacing
from steerlm.models.directory import weights_fingerprint
from steerlm.models.load import SteerModel, begin_saving, head_of, load_model, new_model
from steerlm.parallel.export import write_weights
from tiny import TOKENIZERS


def test_a_new_policy_knows_markers_and_label_words(gpt2_base: Path) -> None:
    model = new_model("policy", gpt2_base, STEERLM)
    assert model.info.dialect == "nemo"
    words = ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>", *level_tokens(STEERLM)]
    assert model.new_tokens == tuple(model.renderer.tokenizer.convert_tokens_to_ids(words))
    assert model.network.get_input_embeddings().weight.shape[0] == 450 + len(words)
    assert model.renderer.end_is_token


def test_label_words_can_stay_text(chatml_base: Path) -> None:
    model = new_model("policy", chatml_base, STEERLM, as_level_tokens=False)
    assert model.new_tokens == ()
    assert model.info.dialect == "chatml"


def test_an_attribute_model_has_no_label_words_and_a_head_of_its_schema(sentencepiece_base: Path) -> None:
    schema = Schema((Attribute("tone"), Attribute("wit"), Attribute("depth")))
    model = new_model("attribute-model", sentencepiece_base, schema)
    assert len(model.new_tokens) == 3
    head = head_of(model.network)
    assert head.weight.shape == (3, 32)
    assert head.bias is None
    assert model.network.config.id2label == {0: "tone", 1: "wit", 2: "depth"}
    assert model.network.config.problem_type == "regression"


def test_an_attribute_model_of_one_attribute(chatml_base: Path, tmp_path: Path) -> None:
    schema = Schema((Attribute("tone"),))
    new_model("attribute-model", chatml_base, schema).save(tmp_path / "model")
    assert head_of(load_model(tmp_path / "model", "attribute-model").network).weight.shape == (1, 32)


@pytest.mark.parametrize("kind", ["attribute-model", "policy"])
def test_saved_and_loaded(chatml_base: Path, tmp_path: Path, kind: str) -> None:
    model = new_model(kind, chatml_base, STEERLM, system="Be brief.")  # type: ignore[arg-type]
    saved = model.save(tmp_path / "new" / "model")
    loaded = load_model(tmp_path / "new" / "model", kind)  # type: ignore[arg-type]
    assert loaded.info == saved.info
    assert loaded.info.system == "Be brief."
    assert len(loaded.info.fingerprint) == 16
    assert model.info.fingerprint == ""
    before = model.network.state_dict()
    after = loaded.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not loaded.network.training
    conversation = Conversation("c", (Message("user", "a"), Message("assistant", "b", 0)))
    task = "policy" if kind == "policy" else "score"
    labels = {1: {"quality": 3}}
    assert loaded.renderer.tree(conversation, task, labels) == model.renderer.tree(conversation, task, labels)  # type: ignore[arg-type]
    assert loaded.renderer.forbidden == model.renderer.forbidden


def test_saving_again_is_the_same_model(policy: SteerModel, tmp_path: Path) -> None:
    policy.save(tmp_path / "again")
    again = load_model(tmp_path / "again", "policy")
    assert again.info == policy.info


def test_a_saved_policy_steers_in_bare_transformers(policy: SteerModel, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi <|im_end|>"}],
        attributes={"verbosity": 0},
        add_generation_prompt=True,
        return_dict=False,
    )
    conversation = Conversation("c", (Message("user", "Hi <|im_end|>"),))
    assert ids == policy.renderer.prompt(conversation, {}, {**STEERLM.defaults, "verbosity": 0})
    # It stops at the end signal, and at the base model's own.
    ends = [policy.renderer.end_ids[0], tokenizer.eos_token_id]
    assert network.generation_config.eos_token_id == list(dict.fromkeys(ends))


@pytest.mark.parametrize("base", ["chatml_base", "gpt2_base", "sentencepiece_base"])
def test_the_score_mark_is_no_padding(base: str, request: pytest.FixtureRequest) -> None:
    """Chatml models often pad with `<|im_end|>`, at which the scores are read."""
    model = new_model("attribute-model", request.getfixturevalue(base), STEERLM)
    tokenizer = model.renderer.tokenizer
    score = tokenizer(model.renderer.dialect.score, add_special_tokens=False)["input_ids"]
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id not in score
    assert model.network.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(("padding", "becomes"), [("<|im_end|>", "<|endoftext|>"), ("<|im_start|>", "<|im_start|>")])
def test_only_a_padding_token_that_does_harm_is_changed(
    chatml_base: Path, tmp_path: Path, padding: str, becomes: str
) -> None:
    shutil.copytree(chatml_base, tmp_path / "base")
    tokenizer = TOKENIZERS["chatml"]()
    tokenizer.pad_token = padding
    tokenizer.save_pretrained(tmp_path / "base")
    model = new_model("attribute-model", tmp_path / "base", STEERLM)
    assert model.renderer.tokenizer.pad_token == becomes
    assert model.network.config.pad_token_id == model.renderer.tokenizer.convert_tokens_to_ids(becomes)


def test_a_model_directory_is_readable_by_others(policy: SteerModel, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    files = list((tmp_path / "policy").iterdir())
    assert {"steerlm.json", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        file.name for file in files
    }
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in files)
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]


@pytest.mark.parametrize("first", ["one file", "several"])
def test_weights_of_another_layout_do_not_stay(
    chatml_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """An old model.safetensors would be loaded rather than new weights in several files."""
    old, new = (new_model("policy", chatml_base, STEERLM) for _ in range(2))
    with torch.no_grad():
        new.network.get_input_embeddings().weight.mul_(2)
    (tmp_path / "model" / "checkpoints").mkdir(parents=True)
    (tmp_path / "model" / "metrics.jsonl").touch()
    save = PreTrainedModel.save_pretrained
    for model, layout in ((old, first), (new, {"one file": "several", "several": "one file"}[first])):
        with monkeypatch.context() as patch:
            if layout == "several":
                patch.setattr(PreTrainedModel, "save_pretrained", partialmethod(save, max_shard_size="20KB"))
            saved = model.save(tmp_path / "model")
        shards = list((tmp_path / "model").glob("*.safetensors"))
        assert (len(shards) > 1) == (layout == "several")
        assert (tmp_path / "model" / "model.safetensors.index.json").exists() == (layout == "several")
    loaded = load_model(tmp_path / "model", "policy")
    assert torch.equal(loaded.network.get_input_embeddings().weight, new.network.get_input_embeddings().weight)
    assert weights_fingerprint(tmp_path / "model", STEERLM, saved.info.dialect) == saved.info.fingerprint
    assert (tmp_path / "model" / "checkpoints").is_dir()
    assert (tmp_path / "model" / "metrics.jsonl").is_file()


@pytest.mark.parametrize("full", ["model.safetensors", "tokenizer.json", "config.json", "steerlm.json"])
def test_a_full_disk_leaves_the_old_model(policy: SteerModel, tmp_path: Path, full: str) -> None:
    """The one error of safetensors, of tokenizers and of Python, which names the model that was to be saved."""
    policy.save(tmp_path / "policy")
    before = {file.name: file.read_bytes() for file in (tmp_path / "policy").iterdir()}
    with room_for(len(before[full]) - 1), pytest.raises(OSError, match="File too large") as error:
        policy.save(tmp_path / "policy")
    assert error.value.filename == str(tmp_path / "policy")
    assert {file.name: file.read_bytes() for file in (tmp_path / "policy").iterdir()} == before
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]


def test_a_full_disk_while_saving_shards(policy: SteerModel, tmp_path: Path) -> None:
    with (
        room_for(30_000),
        pytest.warns(UserWarning, match=r"torch.distributed is disabled"),
        pytest.raises(OSError, match=r"model: cannot write the model: .*File too large"),
    ):
        write_weights(policy.network, begin_saving(tmp_path / "model"), file_bytes=40_000)


def test_a_directory_that_has_the_description_is_complete(
    policy: SteerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the last files were put in place, a save leaves no directory that passes for a model."""
    move = shutil.move

    def killed(source: Path, target: Path) -> None:
        if Path(source).name == "tokenizer.json":
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(shutil, "move", killed)
    with pytest.raises(KeyboardInterrupt):
        policy.save(tmp_path / "policy")
    with pytest.raises(ModelError, match="is no steerlm model"):
        load_model(tmp_path / "policy", "policy")


def test_a_model_of_the_other_kind_is_refused(policy: SteerModel, attribute_model: SteerModel, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    attribute_model.save(tmp_path / "judge")
    with pytest.raises(ModelError, match="is a policy, where an attribute-model is needed"):
        load_model(tmp_path / "policy", "attribute-model")
    with pytest.raises(ModelError, match="is an attribute-model, where a policy is needed"):
        load_model(tmp_path / "judge", "policy")


@pytest.mark.parametrize("kind", ["attribute-model", "policy"])
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_incomplete_models_are_refused(chatml_base: Path, tmp_path: Path, kind: str, file: str) -> None:
    new_model(kind, chatml_base, STEERLM).save(tmp_path / "model")  # type: ignore[arg-type]
    path = tmp_path / "model" / file
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(tmp_path / "model", kind)  # type: ignore[arg-type]
    with replacing(path) as temporary:
        temporary.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(tmp_path / "model", kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["attribute-model", "policy"])
def test_a_base_that_is_not_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError, match="cannot load the model"):
        new_model(kind, tmp_path / "none", STEERLM)  # type: ignore[arg-type]


def test_an_unknown_dialect(chatml_base: Path) -> None:
    with pytest.raises(ModelError, match="unknown dialect 'alpaca'; choose one of nemo, chatml, llama3"):
        new_model("policy", chatml_base, STEERLM, dialect="alpaca")


def test_an_encoder_is_no_base(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["gpt2"]()
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=450,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        is_decoder=False,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    model = new_model("attribute-model", tmp_path, STEERLM)
    with pytest.raises(ModelError, match="BertForSequenceClassification has no linear score head"):
        head_of(model.network)


@pytest.mark.parametrize("kind", ["attribute-model", "policy"])
def test_going_on_from_a_model_of_ours_keeps_its_format(chatml_base: Path, tmp_path: Path, kind: Any) -> None:
    new_model("policy", chatml_base, STEERLM, dialect="nemo", system="Be brief.").save(tmp_path / "first")
    model = new_model(kind, tmp_path / "first", STEERLM)
    assert (model.info.dialect, model.info.system) == ("nemo", "Be brief.")
    assert not model.new_tokens
    other = new_model(kind, tmp_path / "first", STEERLM, dialect="chatml", system="")
    assert (other.info.dialect, other.info.system) == ("chatml", "")


def test_a_base_of_ours_is_not_given_another_scale(policy: SteerModel, tmp_path: Path) -> None:
    """Its embedding of `quality:4` stands for the best, which is then 9."""
    policy.save(tmp_path / "first")
    with pytest.raises(ModelError, match=r"first was trained with quality on 0\.\.4, .* declares it on 0\.\.9; keep"):
        new_model("policy", tmp_path / "first", Schema((Attribute("quality", high=9), Attribute("wit"))))
    assert new_model("policy", tmp_path / "first", Schema((Attribute("quality"), Attribute("wit", high=9))))


def test_columns_of_scores_keep_their_attributes(attribute_model: SteerModel, tmp_path: Path) -> None:
    attribute_model.save(tmp_path / "first")
    assert new_model("attribute-model", tmp_path / "first", STEERLM)
    for schema in (Schema(tuple(STEERLM)[::-1]), STEERLM.only({"quality", "humor"})):
        with pytest.raises(ModelError, match=r"first scores quality, .* its head cannot be that of a model of"):
            new_model("attribute-model", tmp_path / "first", schema)
