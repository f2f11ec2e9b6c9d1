"""What dashboards are told. TensorBoard's files are read back; of the others, a stand-in notes the calls."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steerlm.errors import ConfigError
from steerlm.training.log import MetricsLog
from steerlm.training.trackers import open_dashboards, scalars

Calls = list[tuple[Any, ...]]
START = {"step": 0, "kind": "start", "conversations": 7}
TRAIN = {"step": 1, "kind": "train", "loss": 0.5, "tokens": 12}
VALIDATION = {"step": 1, "kind": "validation", "loss": 0.25, "attributes": {"humor": {"mae": 1.5, "pearson": math.nan}}}


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []

    class Run:
        def log(self, figures: dict[str, float], step: int) -> None:
            calls.append(("log", figures, step))

        def finish(self) -> None:
            calls.append(("finish",))

    def init(**keywords: Any) -> Run:
        calls.append(("init", keywords))
        return Run()

    module = ModuleType(name)
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_is_told_its_settings_each_step_and_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls = stand_in(name, monkeypatch)
    log = MetricsLog(tmp_path / "mine" / "metrics.jsonl", None, [name], {"learning_rate": 0.1})
    log.write(TRAIN)
    log.write(VALIDATION)
    log.close()
    (what, keywords), train, (_, validation, step), finish = calls
    assert what == "init"
    identity = keywords.pop("id" if name == "wandb" else "name")
    assert re.fullmatch("mine-[0-9a-f]{8}", identity)
    place = {"name": "mine", "dir": str(tmp_path / "mine")} if name == "wandb" else {}
    assert keywords == {"project": "steerlm", "resume": "allow", "config": {"learning_rate": 0.1}, **place}
    assert train == ("log", {"train/loss": 0.5, "train/tokens": 12.0}, 1)
    assert validation["validation/attributes/humor/mae"] == 1.5
    assert step == 1
    assert finish == ("finish",)


@pytest.mark.parametrize(("name", "key"), [("wandb", "id"), ("trackio", "name")])
def test_only_a_run_that_resumes_goes_on_as_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    """Both take a run with what they know it by for the same one, and put its steps into one curve."""
    calls = stand_in(name, monkeypatch)
    for folder, resume_at in (("a", None), ("a", 5), ("a", None), ("b", None)):
        MetricsLog(tmp_path / folder / "run" / "metrics.jsonl", resume_at, [name]).close()
    first, resumed, anew, elsewhere = [keywords[key] for what, *(keywords,) in calls[::2]]
    assert first == resumed
    assert len({first, anew, elsewhere}) == 3


def test_tensorboard(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", None, ["tensorboard"])
    for record in (START, TRAIN, VALIDATION, {**TRAIN, "step": 2, "loss": 0.125}):
        log.write(record)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.125)]
    assert [(event.step, event.value) for event in events.Scalars("validation/attributes/humor/mae")] == [(1, 1.5)]
    assert [(event.step, event.value) for event in events.Scalars("start/conversations")] == [(0, 7.0)]


def test_tensorboard_shows_nothing_of_a_run_before(tmp_path: Path) -> None:
    for resume_at, steps in ((None, 5), (None, 3), (2, 4)):
        log = MetricsLog(tmp_path / "metrics.jsonl", resume_at, ["tensorboard"])
        for step in range((resume_at or -1) + 1, steps):
            log.write({"step": step, "kind": "train", "loss": float(steps)})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 3), (1, 3), (2, 3), (3, 4)]


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_package_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"track={name} needs the package {name}; install it with `pip install"):
        open_dashboards([name], tmp_path)


def test_scalars_are_the_numbers_of_a_nested_record() -> None:
    record = {"loss": 1, "name": "x", "done": True, "ridge": {"humor": {"penalty": 0.5, "kind": "y"}}, "none": None}
    assert scalars(record, "train/") == {"train/loss": 1.0, "train/ridge/humor/penalty": 0.5}
    assert scalars({}) == {}
