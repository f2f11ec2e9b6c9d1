"""What stops a training, and what is left of it: signals, deaths, numbers that are not finite, damage, a full disk."""

from __future__ import annotations

import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import launch
from steerlm.errors import ConfigError, StoppedError, TrainingError
from steerlm.models.directory import ModelInfo
from steerlm.models.load import load_model
from steerlm.training import learner, loop
from tiny_runs import (
    TRAIN,
    OnlyGradientIsNaN,
    assert_same,
    interrupted_at,
    logged,
    prepare,
    stop_on_ranks,
    train_on_ranks,
    train_on_ranks_with_a_nan,
    train_on_ranks_without_room,
)


def test_stopped_on_two_ranks_and_resumed_on_one_and_on_four(run: Any, tmp_path: Path) -> None:
    """SIGTERM to one process stops both, after a step whose checkpoint would not have been due."""
    changes = {"pack_tokens": 192}
    whole, _ = run("policy", "whole", **changes)
    told = launch(2, stop_on_ranks, tmp_path, "policy", "stopped", changes, 4)
    for said in told:
        assert said.startswith("15: stopped after step 4, saved in ")
        assert said.endswith("step-00000004; run the same command again to go on")
    assert [line["step"] for line in logged(tmp_path / "stopped") if line["kind"] == "train"] == [1, 2, 3, 4]
    for name in ("one", "four"):
        shutil.copytree(tmp_path / "stopped", tmp_path / name)
    one, _ = run("policy", "one", **changes)
    launch(4, train_on_ranks, tmp_path, "policy", "four", changes)
    for found in (one, logged(tmp_path / "four")):
        assert len(found) == len(whole)
        assert_same(found, whole, rtol=1e-4)


@pytest.mark.parametrize("task", TRAIN)
@pytest.mark.parametrize("when", ["before the first step", "last validation"])
def test_stopped_where_nothing_is_learnt(run: Any, task: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal while the run prepares itself, or while it validates for the last time: what is left is done later."""
    changes = {"max_steps": 5, "validate_every": 50} | ({"head": "ridge"} if task == "attributes" else {})
    whole_steps, whole = run(task, "whole", **changes)
    passes = loop._Run._passes

    def signalled(self: Any, *arguments: Any) -> Any:
        if when.startswith("before") or self.saved is not None:
            signal.raise_signal(signal.SIGTERM)
        return passes(self, *arguments)

    monkeypatch.setattr(loop._Run, "_passes", signalled)
    with pytest.raises(StoppedError) as stopped:
        run(task, "parts", **changes)
    monkeypatch.undo()
    assert stopped.value.signal == signal.SIGTERM
    assert str(stopped.value).endswith("run the same command again to go on")
    first = "stopped before the first step, with nothing to save yet" if when.startswith("before") else "after step "
    assert first in str(stopped.value)
    part_steps, parts = run(task, "parts", **changes)
    assert part_steps == whole_steps
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize("task", TRAIN)
def test_stopped_and_resumed_is_bit_identical(run: Any, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_steps, whole = run(task, "whole")
    taken = loop._Run._step
    for stop_at in (2, 5, 4):  # counted anew in each life: the run dies three times
        count = 0

        def step(self: Any, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count > stop_at:  # noqa: B023
                raise KeyboardInterrupt
            return taken(self, *arguments)

        monkeypatch.setattr(loop._Run, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            run(task, "parts")
    monkeypatch.setattr(loop._Run, "_step", taken)
    part_steps, parts = run(task, "parts")
    assert part_steps == whole_steps
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_finished_run_is_kept_and_another_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = run("policy", "out")

    def never(*arguments: Any) -> Any:
        raise AssertionError("a finished run must not train again")

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", never)
        _, again = run("policy", "out")
    assert all(torch.equal(first[key], again[key]) for key in first)
    with interrupted_at(4), pytest.raises(KeyboardInterrupt):
        run("policy", "half")
    with pytest.raises(ConfigError, match="other settings or data"):
        run("policy", "half", learning_rate=1e-4)


def test_non_finite_loss_stops_with_its_conversations(run: Any) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the loss is not finite.*tree-\d+"):
        run("policy", "hot", learning_rate=1e12, min_learning_rate=1e12, clip=1e12, epochs=20)


@pytest.mark.parametrize(
    ("number", "last"), [(4, r"the last good checkpoint is .*step-00000003"), (1, "there is no checkpoint yet")]
)
@pytest.mark.parametrize("culprits", [1, 2])
def test_a_non_finite_gradient_stops_with_the_conversations_of_its_packs_and_the_last_checkpoint(
    run: Any, monkeypatch: pytest.MonkeyPatch, number: int, last: str, culprits: int
) -> None:
    losses, taken = learner.Learner._losses, loop._Run._step
    given: list[Any] = []

    def step(self: Any, ready: Any, *arguments: Any) -> Any:
        given.append(ready.packs)
        return taken(self, ready, *arguments)

    def poisoned(self: Any, pack: Any) -> Any:
        found = losses(self, pack)
        if len(given) <= number or not any(pack is item for item in given[-1][1 : 1 + culprits]):
            return found
        return {name: replace(loss, total=OnlyGradientIsNaN.apply(loss.total)) for name, loss in found.items()}

    monkeypatch.setattr(loop._Run, "_step", step)
    monkeypatch.setattr(learner.Learner, "_losses", poisoned)
    says = rf"step {number + 1}: gradient norm nan.*; {last}\. Lower learning_.*: give it another --out, or"
    with pytest.raises(TrainingError, match=says) as caught:
        run("policy", "hot", pack_tokens=192, batch_tokens=900, epochs=4)
    packs = given[-1]
    assert len(packs) > culprits
    names = {response.conversation for pack in packs[1 : 1 + culprits] for response in pack.responses}
    assert set(re.findall(r"tree-\d+", str(caught.value).split(";")[0])) == names


def test_a_non_finite_gradient_on_one_of_two_ranks_is_found_by_both(tmp_path: Path) -> None:
    """Ranks look for it together, pack by pack, so that the packs of the other ranks at its place are named too."""
    prepare(tmp_path)
    culprit = "tree-7"
    changes = {"pack_tokens": 192, "batch_tokens": 2000, "contrast": 0.0, "validation_fraction": 0.0}
    told, packs = zip(*launch(2, train_on_ranks_with_a_nan, tmp_path, "policy", "hot", changes, culprit), strict=True)
    places = [sorted({*one, *other}) for one, other in zip(*packs, strict=True)]
    assert len(places) > 1
    [found] = [names for names in places if culprit in names]
    assert told[0] == told[1]
    assert f"gradient norm nan, with the conversations {', '.join(found)}; there is no checkpoint yet" in told[0]


def test_the_best_weights_are_kept(run: Any) -> None:
    """At a rate at which it gets worse again, what is saved is what was best on the way, and its figures are noted."""
    steps, _ = run("policy", "out", best_by="loss", learning_rate=1.0, schedule="constant", validate_every=2)
    seen = [(line["loss"], line["step"]) for line in steps if line["kind"] == "validation"]
    assert min(seen)[1] != seen[-1][1]
    metrics = load_model(run.folder / "out", "policy").info.metrics
    assert (metrics["loss"], metrics["step"]) == min(seen)


@pytest.mark.parametrize("harmed", [1, 2])
@pytest.mark.parametrize("when", ["before resuming", "at the end"])
def test_damaged_best_weights_give_way_to_those_before_them(
    run: Any, monkeypatch: pytest.MonkeyPatch, when: str, harmed: int
) -> None:
    """Or, where these are damaged too, to those of the validations to come, of which there is one at the end."""
    changes = {"best_by": "loss", "validate_every": 1, "max_steps": 6}
    folder, steps, seen = run.folder / "out" / "checkpoints", loop._Run._steps, {}

    def damage() -> None:
        for path in sorted(folder.glob("best-*"))[-harmed:]:
            for file in path.glob("*.distcp"):
                file.write_bytes(file.read_bytes()[:-1])

    def train_then_damage(self: Any, *arguments: Any) -> Any:
        progress = steps(self, *arguments)
        if when == "at the end":
            damage()
        return progress

    monkeypatch.setattr(loop._Run, "_steps", train_then_damage)
    validate = loop._Run._validate

    def note(self: Any, progress: Any, *arguments: Any) -> Any:
        seen[progress.step] = {name: value.clone() for name, value in self.network.state_dict().items()}
        if when == "before resuming" and progress.step == 4 and len(seen) == 5:
            seen.clear()
            raise KeyboardInterrupt
        return validate(self, progress, *arguments)

    monkeypatch.setattr(loop._Run, "_validate", note)
    if when == "before resuming":  # from step 3, whose best are of steps 2 and 3
        with pytest.raises(KeyboardInterrupt):
            run("policy", "out", **changes)
        damage()
    with pytest.warns(UserWarning, match=r"is damaged|no best weights are left") as told:
        logged_steps, weights = run("policy", "out", **changes)
    assert len(told) == (1 if harmed == 1 else 3)
    losses = {line["step"]: line["loss"] for line in logged_steps if line["kind"] == "validation"}
    assert sorted(losses, key=losses.__getitem__) == [6, 5, 4, 3, 2, 1, 0]  # each is better than those before
    wanted = 5 if (when, harmed) == ("at the end", 1) else 6
    metrics = load_model(run.folder / "out", "policy").info.metrics
    assert (metrics["step"], metrics["loss"]) == (wanted, losses[wanted])
    assert all(torch.equal(weights[name], value) for name, value in seen[wanted].items())


def test_a_disk_too_full_for_the_last_checkpoint_keeps_no_rank_from_saving_the_model(tmp_path: Path) -> None:
    """The main process alone meets it, and all go on together."""
    changes = {"max_steps": 2, "checkpoint_every": 50}
    prepare(tmp_path)
    told = launch(2, train_on_ranks_without_room, tmp_path, "policy", "out", changes)
    assert [len(warned) for warned in told] == [1, 0]
    assert "step 2, the last, could not be saved as a checkpoint" in told[0][0]
    assert ModelInfo.load(tmp_path / "out", "policy").provenance["steps"] == 2
    assert not (tmp_path / "out" / "checkpoints").exists()
