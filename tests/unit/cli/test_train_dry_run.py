"""`steerlm train --dry-run`: what it tells of the training to come, and what it refuses in its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from processes import launch
from steerlm.conversation import Conversation, Message
from steerlm.errors import ConfigError, SteerLMError
from steerlm.files import write_conversations
from steerlm.training.config import AttributeSettings, PolicySettings
from steerlm.training.dry_run import DryRun, dry_run
from steerlm.training.run import train_attribute_model, train_policy
from tiny_runs import interrupted_at, logged, train_on_ranks


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in logged(out) if line["kind"] == kind]


def assert_told(found: DryRun, out: Path) -> None:
    """The dry run of one epoch against the log of the real training."""
    steps = lines(out, "train")
    assert found.steps == len(steps) > 1
    assert found.packs == sum(step["packs"] for step in steps)
    assert found.report.tokens == sum(step["tokens"] for step in steps)
    assert found.fill == pytest.approx(found.report.tokens / (found.packs * 192))
    assert all(step["fill"] == step["tokens"] / (step["packs"] * 192) for step in steps)
    assert found.conversations == lines(out, "start")[0]["conversations"]
    assert found.conversations + found.held_out == 40


def test_a_dry_run_of_a_policy_counts_what_the_training_does(training_values: Any, tmp_path: Path) -> None:
    settings = PolicySettings(**training_values(out=tmp_path / "out", labels="ratings-first", contrast=0.5))
    found = dry_run(settings)
    assert not (tmp_path / "out").exists()
    train_policy(settings)
    assert_told(found, tmp_path / "out")
    assert found.packs > found.steps
    assert found.largest_pack <= 192
    assert 0 < found.trained < found.report.tokens


def test_a_dry_run_of_an_attribute_model_counts_what_the_training_does(training_values: Any, tmp_path: Path) -> None:
    settings = AttributeSettings(**training_values(out=tmp_path / "out", head="random"))
    found = dry_run(settings)
    train_attribute_model(settings)
    assert_told(found, tmp_path / "out")
    assert found.trained == found.report.responses


def test_a_dry_run_for_many_processes_counts_what_they_do_and_one_of_them_tells(
    train_command: Any, training_folder: Path, training_values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, alone, _ = train_command("--dry-run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert train_command("--dry-run")[:2] == (0, "")
    monkeypatch.setenv("RANK", "0")
    _, out, _ = train_command("--dry-run")
    assert "GiB in each of 2 processes" in out

    monkeypatch.setenv("WORLD_SIZE", "1")
    plain = {"contrast": 0.0, "label_dropout": 0.0, "validation_fraction": 0.1}
    changes = {**training_values(out=training_folder / "two"), **plain}
    launch(2, train_on_ranks, training_folder, "policy", "two", changes)
    packs = sum(step["packs"] for step in lines(training_folder / "two", "train"))
    assert re.search(rf"^packs +{packs} an epoch", out, re.MULTILINE)
    assert not re.search(rf"^packs +{packs} an epoch", alone, re.MULTILINE)
    settings = PolicySettings(**training_values(out=tmp_path / "out", labels="ratings-first"))
    one, two = (dry_run(settings, world=world).memory for world in (1, 2))
    assert two.weights == pytest.approx(one.weights / 2, rel=0.01)
    with pytest.raises(ConfigError, match="tensor_parallel=4 does not divide the 2 processes"):
        dry_run(settings.model_copy(update={"tensor_parallel": 4}), world=2)


def test_steps_of_many_epochs_and_at_most_so_many(training_values: Any, tmp_path: Path) -> None:
    def steps(**changes: Any) -> int:
        """Of so many conversations each, which are as many in every epoch."""
        made = training_values(out=tmp_path / "out", labels="ratings-first", batch_conversations=4, **changes)
        del made["batch_tokens"]
        found = dry_run(PolicySettings(**made))
        assert found.exact
        return found.steps

    one = steps()
    assert steps(epochs=3.0) == 3 * one
    assert steps(epochs=3.0, max_steps=2) == 2


def test_steps_of_many_epochs_are_reckoned(training_values: Any, tmp_path: Path) -> None:
    def exact(**changes: Any) -> bool:
        return dry_run(PolicySettings(**training_values(out=tmp_path, labels="ratings-first", **changes))).exact

    assert exact()
    assert not exact(epochs=3.0)
    assert exact(epochs=3.0, max_steps=2)


def test_a_dry_run_refuses_what_the_training_refuses(training_values: Any, tmp_path: Path) -> None:
    unrated = tmp_path / "unrated.jsonl"
    write_conversations(unrated, [Conversation("c", (Message("user", "Why?"), Message("assistant", "So.", 0)))])
    for changes, says in (
        ({"context": 4096, "pack_tokens": 4096}, "context=4096 is beyond the base model's 2048 positions"),
        ({"context": 96, "pack_tokens": 64}, "cannot hold a path of context=96"),
        ({"lora_rank": 4, "lora_targets": ["w_q"]}, "no layer to adapt with lora_targets w_q"),
        ({"frozen_layers": "0:9"}, "frozen_layers=0:9: give a range"),
        ({"kernels": "liger"}, "kernels=liger needs a CUDA device"),
        ({"track": ["wandb"]}, "track=wandb needs the package wandb"),
        ({"validation": [unrated]}, "no held-out response carries labels"),
    ):
        settings = PolicySettings(**training_values(out=tmp_path / "out", labels="ratings-first", **changes))
        for function in (dry_run, train_policy):
            with pytest.raises(SteerLMError, match=says):
                function(settings)


def test_dry_run_on_the_command_line(train_command: Any, training_values: Any, tmp_path: Path) -> None:
    code, out, _ = train_command("--dry-run")
    assert code == 0
    assert not (tmp_path / "out").exists()
    found = dry_run(PolicySettings(**training_values(out=tmp_path / "out", labels="ratings-first")))
    assert re.search(rf"^steps +{found.steps} *$", out, re.MULTILINE)
    assert re.search(rf"^conversations +{found.conversations} to train on, {found.held_out} held out *$", out, re.M)
    assert f"{found.packs} an epoch" in out
    assert f"{found.trained} tokens an epoch" in out


def test_a_dry_run_tells_of_a_finished_model_in_the_way(train_command: Any) -> None:
    assert train_command("--max-steps", "1")[0] == 0
    assert train_command("--max-steps", "1", "--dry-run")[0] == 0
    code, _, told = train_command("--max-steps", "1", "--seed", "2", "--dry-run")
    assert code == 2
    assert "out holds a finished model of other settings or data" in told
    assert train_command("--max-steps", "1", "--seed", "2", "--dry-run", "--resume", "never")[0] == 0


def test_a_dry_run_tells_of_checkpoints_that_the_training_would_refuse(train_command: Any, tmp_path: Path) -> None:
    """And leaves them alone, also what a training beside it is writing."""
    code, _, told = train_command("--dry-run", "--resume", "must")
    assert code == 1
    assert "out holds no checkpoint to go on from; leave out --resume must" in told
    with interrupted_at(3):
        assert train_command()[0] == 130
    checkpoints = tmp_path / "out" / "checkpoints"
    (checkpoints / ".step-00000004.partial").mkdir()
    assert train_command("--dry-run", "--resume", "must")[0] == train_command("--dry-run")[0] == 0
    code, _, told = train_command("--dry-run", "--seed", "2")
    assert code == 2
    assert "step-00000002 belongs to a run with other settings or data" in told
    assert train_command("--dry-run", "--seed", "2", "--resume", "never")[0] == 0
    (checkpoints / "step-00000002" / "manifest.json").unlink()
    code, _, told = train_command("--dry-run")
    assert code == 1
    assert "none of the checkpoints is whole" in told
    assert sorted(path.name for path in checkpoints.iterdir()) == [".step-00000004.partial", "step-00000002"]
