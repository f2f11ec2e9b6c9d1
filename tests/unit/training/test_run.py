"""What a training is made of, before its first step."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from traceback import StackSummary
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from benchmarks.measure import PassLengths
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.errors import ConfigError, DataError, StoppedError
from steerlm.files import write_conversations
from steerlm.models.directory import ModelInfo
from steerlm.models.load import TEMPORARY, SteerModel, load_model
from steerlm.training import checkpoint, loop, run
from steerlm.training.checkpoint import Checkpoints
from steerlm.training.run import _base_state
from tiny_lora import KINDS, logits, save_lora_base, train_lora
from tiny_runs import logged, prepare, stop_on_ranks, train


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_4_bits_needs_a_cuda_device(tmp_path: Path, kind: str) -> None:
    """And says so before any file is read."""
    with pytest.raises(ConfigError, match="quantize=4bit needs a CUDA device"):
        train_lora(tmp_path, kind, "out", quantize="4bit", device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_layers_stay_bit_for_bit_what_they_were(tmp_path: Path, kind: str) -> None:
    """Markers are added to this base, so that the embeddings are trained."""
    save_lora_base(tmp_path)
    settings = {"lora_rank": None, "lora_alpha": 32.0}
    before = train_lora(tmp_path, kind, "untrained", **settings, max_steps=0).network.state_dict()
    after = train_lora(tmp_path, kind, "out", **settings, frozen_layers="0:2").network.state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same == {name for name in before if name.startswith(("model.layers.0.", "model.layers.1."))}


def test_adapters_are_trained_above_frozen_layers(tmp_path: Path) -> None:
    save_lora_base(tmp_path)
    model = train_lora(tmp_path, "policy", "out", frozen_layers=":2", lora_targets=["q_proj"])
    names = {name for name, item in model.network.named_parameters() if item.requires_grad and "lora" in name}
    assert names == {f"model.layers.2.self_attn.q_proj.lora_{side}.default.weight" for side in "AB"}
    assert torch.isfinite(logits(model.network)).all()


def test_a_run_is_known_by_what_its_base_is_and_not_by_where_or_when(tmp_path: Path) -> None:
    base = save_lora_base(tmp_path)
    shutil.copytree(base, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    state = _base_state(str(base))
    assert _base_state(str(tmp_path / "copy")) == state
    for name, change in (("config.json", b" "), ("model.safetensors", b"\0")):
        changed = tmp_path / name.replace(".", "-")
        shutil.copytree(base, changed)
        content = (changed / name).read_bytes()
        (changed / name).write_bytes(content + change)
        assert _base_state(str(changed)) != state
    assert _base_state("someone/model-of-the-hub") == []


def test_a_run_keeps_the_precision_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine `auto` may mean another one; named, it goes on there."""

    def move(has_bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_bfloat16)

    prepare(tmp_path)
    move(has_bfloat16=False)
    assert "stopped after step 2" in stop_on_ranks(tmp_path, "policy", "out", {"precision": "auto", "device": "cpu"}, 2)
    move(has_bfloat16=True)
    with pytest.raises(ConfigError, match=r"other settings or data.*auto means another precision"):
        train(tmp_path, "policy", "out", precision="auto", device="cpu")
    train(tmp_path, "policy", "out", precision="fp32", device="cpu")


@pytest.mark.parametrize("task", ["policy", "attributes"])
def test_passes_in_bfloat16_are_of_few_lengths_on_a_cpu(tmp_path: Path, task: str) -> None:
    """Those of validation too."""
    prepare(tmp_path)
    for precision, all_even in (("fp32", False), ("bf16", True)):
        with PassLengths() as passes:
            train(tmp_path, task, precision, precision=precision, device="cpu", max_steps=2, validation_fraction=0.2)
        assert all(length % 64 == 0 for length in passes.lengths) is all_even


@pytest.fixture
def sigterm_fails() -> Iterator[None]:
    """A signal that nobody notes is to fail the test, not to end its process."""

    def fail(*arguments: Any) -> None:
        raise AssertionError("SIGTERM was not noted")

    before = signal.signal(signal.SIGTERM, fail)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm_fails")
def test_a_signal_while_the_model_is_saved_does_not_keep_it_from_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = SteerModel.complete

    def interrupted(self: SteerModel, *arguments: Any) -> SteerModel:
        signal.raise_signal(signal.SIGTERM)
        return complete(self, *arguments)

    prepare(tmp_path)
    monkeypatch.setattr(SteerModel, "complete", interrupted)
    weights = train(tmp_path, "policy", "out", max_steps=1)
    saved = load_model(tmp_path / "out", "policy").network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in saved.items())


@pytest.mark.usefixtures("sigterm_fails")
@pytest.mark.parametrize(
    ("owner", "name"), [(run, "training_data"), (run, "make_model"), (Checkpoints, "resume"), (run, "refresh_card")]
)
def test_a_signal_outside_of_the_steps_ends_the_run_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """Though what it meets takes any error for one of its own."""
    prepare(tmp_path)
    changes = {"max_steps": 3}
    whole = train(tmp_path, "policy", "whole", **changes)
    assert "stopped after step 2" in stop_on_ranks(tmp_path, "policy", "out", changes, 2)
    handler = signal.getsignal(signal.SIGTERM)

    def signalled(*arguments: Any, **keywords: Any) -> Any:
        with contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        with pytest.raises(StoppedError, match=r"^stopped outside of .*; run the same command again to go on$") as told:
            train(tmp_path, "policy", "out", **changes)
    assert told.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler
    found = train(tmp_path, "policy", "out", **changes)
    assert all(torch.equal(whole[key], value) for key, value in found.items())


def test_a_run_that_died_while_it_saved_its_model_takes_no_step_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    prepare(tmp_path)
    changes = {"max_steps": 2, "checkpoint_every": 50}
    whole = train(tmp_path, "policy", "whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(SteerModel, "complete", dies)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "policy", "out", **changes)
    torn = tmp_path / "out" / f"{TEMPORARY}torn"  # as a kill leaves it
    torn.mkdir()
    (torn / "model.safetensors").write_text("half of it")
    monkeypatch.setattr(loop._Run, "_step", dies)
    found = train(tmp_path, "policy", "out", **changes)
    assert all(torch.equal(whole[name], value) for name, value in found.items())
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        file.name for file in (tmp_path / "whole").iterdir()
    }
    assert {file.name for file in tmp_path.iterdir()} == {"base", "data.jsonl", "out", "whole"}


@pytest.mark.parametrize("task", ["policy", "attributes"])
def test_where_no_held_out_response_fits_the_error_names_the_context(tmp_path: Path, task: str) -> None:
    prepare(tmp_path)
    with pytest.raises(DataError, match=r"beyond context=16; .*raise context$"):
        train(tmp_path, task, "out", context=16)


def test_going_on_from_a_policy_keeps_its_format_and_defaults(tmp_path: Path) -> None:
    prepare(tmp_path)
    first = {"dialect": "nemo", "system": "Be kind.", "defaults": {"humor": 2, "quality": 3}}
    train(tmp_path, "policy", "first", max_steps=1, **first)
    train(tmp_path, "policy", "second", max_steps=1, base=str(tmp_path / "first"), defaults={"quality": 1})
    info = ModelInfo.load(tmp_path / "second")
    assert (info.dialect, info.system) == ("nemo", "Be kind.")
    assert info.schema.defaults == {"quality": 1, "humor": 2}


def test_a_policy_names_who_annotated_what_it_and_its_base_learnt_from(tmp_path: Path) -> None:
    """All are rated: of the predictions beside the ratings only those teach that are the labels."""
    prepare(tmp_path)
    answers = [
        Message("assistant", "It is " * n, 0, {"humor": n % 5.0}, {"humor": 1.0 + n % 2}, "judge") for n in range(1, 9)
    ]
    talks = [Conversation(f"t{n}", (Message("user", "Why?"), answer)) for n, answer in enumerate(answers)]
    write_conversations(tmp_path / "data.jsonl", talks)

    def annotated_by(out: str, base: str, labels: str) -> list[str] | None:
        changes = {"contrast": 0.0, "validation_fraction": 0.0, "max_steps": 1}
        train(tmp_path, "policy", out, base=str(tmp_path / base), labels=labels, **changes)
        return ModelInfo.load(tmp_path / out).provenance["annotated_by"]

    assert annotated_by("by people", "base", "ratings-first") == []
    assert annotated_by("by the judge", "base", "predicted") == ["judge"]
    assert annotated_by("by both", "by the judge", "ratings-first") == ["judge"]
    info = ModelInfo.load(tmp_path / "by both")
    del info.provenance["annotated_by"]
    info.save(tmp_path / "by both")
    assert annotated_by("by whom", "by both", "ratings-first") is None
    assert "Which attribute models annotated the data" in (tmp_path / "by whom" / "README.md").read_text()


def test_defaults_of_a_file_of_attributes_go_over_those_of_the_base(tmp_path: Path) -> None:
    prepare(tmp_path)
    train(tmp_path, "policy", "first", max_steps=1, defaults={"humor": 2, "quality": 3})
    file = tmp_path / "attributes.yaml"
    file.write_text(json.dumps({"attributes": STEERLM.with_defaults({"humor": 1}).to_list()}))
    changes = {"base": str(tmp_path / "first"), "attribute_schema": file, "defaults": {"quality": 0}}
    train(tmp_path, "policy", "second", max_steps=1, **changes)
    assert ModelInfo.load(tmp_path / "second").schema.defaults == {"quality": 0, "humor": 1}


def test_a_full_disk_before_the_end_does_not_lose_a_short_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the checkpoint wrote before it failed is gone by the time the model is saved."""
    prepare(tmp_path)
    changes = {"max_steps": 2, "checkpoint_every": 50}
    whole = train(tmp_path, "policy", "whole", **changes)

    def full(state: Any, storage_writer: Any) -> None:
        (Path(storage_writer.path) / "__0_0.distcp").write_bytes(b"half of it")
        raise CheckpointException("local step", {0: (OSError(errno.ENOSPC, "No space left on device"), StackSummary())})

    complete = SteerModel.complete

    def save(self: SteerModel, temporary: Path) -> SteerModel:
        assert not list((tmp_path / "out").rglob("*.distcp"))
        return complete(self, temporary)

    monkeypatch.setattr(checkpoint, "save", full)
    monkeypatch.setattr(SteerModel, "complete", save)
    with pytest.warns(UserWarning, match=r"step-00000002.*No space left on device.*the model is saved all the same"):
        found = train(tmp_path, "policy", "out", **changes)
    assert all(torch.equal(whole[name], value) for name, value in found.items())
    assert ModelInfo.load(tmp_path / "out").kind == "policy"


@pytest.mark.parametrize("steps", [0, 1])
def test_responses_that_are_cut_or_dropped_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    """Of three responses to learn from one loses its older turns and one does not fit; of three held-out ones too."""
    prepare(tmp_path)

    def rated(name: str, *texts: str) -> Conversation:
        turns = [Message("assistant" if k % 2 else "user", text, k - 1 if k else None) for k, text in enumerate(texts)]
        return Conversation(name, (*turns[:-1], replace(turns[-1], ratings={"humor": 1.0})))

    for file in ("data", "held-out"):
        trees = [rated(f"{file}-whole", "a", "b"), rated(f"{file}-long", "a", "b" * 900)]
        write_conversations(tmp_path / f"{file}.jsonl", [*trees, rated(f"{file}-old", "a" * 900, "b", "a", "b")])
    changes = {"head": "ridge", "max_steps": steps, "batch_tokens": 4000, "validation": [tmp_path / "held-out.jsonl"]}
    train(tmp_path, "attributes", "out", **changes)
    start, *rest = logged(tmp_path / "out")
    assert (start["truncated"], start["dropped"]) == (1, 1)
    validations = [line for line in rest if line["kind"] == "validation"]
    assert [(line["truncated"], line["dropped"]) for line in validations] == [(1, 1)] * (steps + 1)
    said = " ".join(capsys.readouterr().err.split())
    learnt = ModelInfo.load(tmp_path / "out").provenance["learnt_from"]
    for report in (learnt, *([said.split("held out", 1)[1]] if steps else [])):
        assert "2 trees, 2 responses" in report
        assert "1 responses with older turns cut off, 1 responses too long and dropped" in report
    assert f"learnt from {learnt}" in said
