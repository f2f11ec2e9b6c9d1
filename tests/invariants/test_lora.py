"""What must not change the training of an adapter: packing, recomputing, stopping and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from processes import launch
from steerlm.models.load import load_model
from steerlm.training.attribute_model import AttributeTask
from steerlm.training.policy import PolicyTask
from tiny_lora import KINDS, logits, save_lora_base, train_lora
from tiny_runs import prepare, stop_on_ranks, train, train_on_ranks

TASKS = {"policy": PolicyTask, "attribute-model": AttributeTask}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_lora_base(tmp_path, tie_word_embeddings=True)
    return tmp_path


def losses(folder: Path, out: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("kind", KINDS)
def test_packs_and_recomputing_change_nothing(folder: Path, kind: str) -> None:
    settings: list[dict[str, Any]] = [{}, {"pack_tokens": 1024}, {"gradient_checkpointing": True}]
    found = []
    for number, changes in enumerate(settings):
        # A ridge head would be solved from the states, which enlarges their rounding errors at once.
        extra = {"head": "random"} if kind == "attribute-model" else {}
        train_lora(folder, kind, f"out-{number}", **extra, **changes)
        found.append(torch.tensor(losses(folder, f"out-{number}")))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_is_bit_identical(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout in the adapter, which the checkpoint's random state must carry on."""
    changes = {"lora_dropout": 0.2, "lora_variant": "dora"}
    train_lora(folder, kind, "whole", **changes)
    terms = TASKS[kind].terms
    for steps in (4, 2):  # the run dies twice
        count = 0

        def dying(self: Any, packs: Any) -> Any:
            nonlocal count
            count += 1
            if count > steps:  # noqa: B023
                raise KeyboardInterrupt
            return terms(self, packs)

        monkeypatch.setattr(TASKS[kind], "terms", dying)
        with pytest.raises(KeyboardInterrupt):
            train_lora(folder, kind, "parts", **changes)
    monkeypatch.undo()
    train_lora(folder, kind, "parts", **changes)
    assert losses(folder, "parts") == losses(folder, "whole")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / "parts" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    assert load_file(folder / "whole" / "adapter_model.safetensors")


@pytest.mark.parametrize(("task", "kind"), [("policy", "policy"), ("attributes", "attribute-model")])
def test_the_number_of_ranks_changes_nothing(tmp_path: Path, task: str, kind: Any) -> None:
    """Alone, on two ranks, and stopped on two to go on alone: the same losses, and adapters that say the same."""
    prepare(tmp_path)
    changes = {"lora_rank": 4, "lora_alpha": 8.0, "learning_rate": 1e-2, "pack_tokens": 192}
    train(tmp_path, task, "alone", **changes)
    launch(2, train_on_ranks, tmp_path, task, "two", changes)
    told = launch(2, stop_on_ranks, tmp_path, task, "stopped", changes, 4)
    assert all("stopped after step 4" in said for said in told)
    train(tmp_path, task, "stopped", **changes)
    launch(2, train_on_ranks, tmp_path, task, "two", changes)  # finished: nothing is done again
    wanted = torch.tensor(losses(tmp_path, "alone"))
    alone = load_model(tmp_path / "alone", kind)
    for name in ("two", "stopped"):
        torch.testing.assert_close(torch.tensor(losses(tmp_path, name)), wanted, rtol=1e-4, atol=1e-6)
        found = load_model(tmp_path / name, kind)
        torch.testing.assert_close(logits(found.network, 0), logits(alone.network, 0), rtol=1e-3, atol=1e-3)
        config = (tmp_path / name / "adapter_config.json").read_bytes()
        assert config == (tmp_path / "alone" / "adapter_config.json").read_bytes()
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            path.name for path in (tmp_path / "alone").iterdir()
        }


def test_a_finished_run_is_loaded_again(folder: Path) -> None:
    model = train_lora(folder, "policy", "out")
    again = train_lora(folder, "policy", "out")
    assert again.info.fingerprint == model.info.fingerprint
    other = train_lora(folder, "policy", "other", lora_alpha=16.0)
    assert other.info.fingerprint != model.info.fingerprint
