"""Checkpoints: whole or absent, refused where another run's, and passed over where damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader

from steerlm import __version__
from steerlm.errors import ConfigError, TrainingError
from steerlm.files import write_conversations
from steerlm.packing import Report
from steerlm.parallel.ranks import Ranks
from steerlm.training import checkpoint, loop
from steerlm.training.checkpoint import Checkpoints, Progress
from steerlm.training.plan import Position
from steerlm.training.run import train_policy
from tiny import TOKENIZERS, save_base
from tiny_judge import random_trees
from tiny_policy import policy_settings


class Training:
    """A small network with its optimiser, some steps of training, and checkpoints of them."""

    def __init__(self, directory: Path, seed: int = 0, key: str = "key", keep: int = 2) -> None:
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.network[0].requires_grad_(False)
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.1)
        self.checkpoints = Checkpoints(directory, key, keep, Ranks.alone("cpu"))

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.network(torch.ones(1, 3)).square().sum().backward()
        self.optimizer.step()

    def save(self, step: int, **progress: Any) -> Path:
        return self.checkpoints.save(self.network, self.optimizer, Progress(step, **progress))

    def resume(self) -> Progress | None:
        return self.checkpoints.resume(self.network, self.optimizer)

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_was_saved_comes_back_and_goes_on_the_same(tmp_path: Path) -> None:
    saved = Training(tmp_path)
    assert saved.resume() is None
    saved.step()
    report = Report(trees=3, tokens=40, dropped=1, dropped_where=["c, message 1"])
    progress = {"position": Position(1, 7), "validated": 1, "best": 0.1 + 0.2, "report": report}
    saved.save(1, figures={"step": 1, "loss": 2.5}, **progress)
    resumed = Training(tmp_path, seed=1)
    assert resumed.resume() == Progress(1, figures={"step": 1, "loss": 2.5}, **progress)
    assert equal(
        {k: v for k, v in resumed.state().items() if k[0] == "1"},
        {k: v for k, v in saved.state().items() if k[0] == "1"},
    )
    resumed.network[0].load_state_dict(saved.network[0].state_dict())  # frozen: it comes from the base model
    for training in (saved, resumed):
        training.step()
    assert equal(saved.state(), resumed.state())


def test_only_what_is_trained_is_stored(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.step()
    path = training.save(1)
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    trained = {"1.weight", "1.bias"}
    moments = {f"optimizer.{name}.{what}" for name in trained for what in ("step", "exp_avg", "exp_avg_sq")}
    assert set(stored) == {f"network.{name}" for name in trained} | moments


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    training = Training(tmp_path, keep=3)
    for step in (2, 4, 9, 10, 100):
        training.save(step)
    assert names(tmp_path) == ["step-00000009", "step-00000010", "step-00000100"]
    (progress,) = (Training(tmp_path).resume(),)
    assert progress is not None
    assert progress.step == 100


def test_those_of_another_run_are_refused(tmp_path: Path) -> None:
    Training(tmp_path, key="one").save(1)
    other = Training(tmp_path, key="two")
    with pytest.raises(ConfigError, match=r"step-00000001 belongs to a run with other settings or data; choose"):
        other.resume()
    other.checkpoints.clear()
    assert other.resume() is None


@pytest.mark.parametrize("call", ["save", "write_manifest", "replace_directory"])
def test_what_was_not_finished_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """However far writing got, the checkpoint before it is the newest, and what was begun is swept up."""
    training = Training(tmp_path)
    training.save(1)

    def dies(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, call, dies)
    with pytest.raises(KeyboardInterrupt):
        training.save(2)
    monkeypatch.undo()
    assert names(tmp_path) == [".step-00000002.partial", "step-00000001"]
    progress = Training(tmp_path).resume()
    assert progress is not None
    assert progress.step == 1
    assert names(tmp_path) == ["step-00000001"]


def truncate(path: Path) -> None:
    file = weights(path)
    file.write_bytes(file.read_bytes()[:-1])


def flip(path: Path) -> None:
    raw = bytearray(weights(path).read_bytes())
    raw[len(raw) // 2] ^= 1
    weights(path).write_bytes(raw)


def weights(path: Path) -> Path:
    return max(path.glob("*.distcp"), key=lambda file: file.stat().st_size)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated file": (truncate, r"distcp has \d+ of \d+ bytes"),
    "flipped bit": (flip, r"distcp does not have its digest"),
    "missing file": (lambda path: weights(path).unlink(), r"distcp is missing"),
    "missing manifest": (lambda path: (path / "manifest.json").unlink(), r"manifest\.json: .*No such file"),
    "torn manifest": (
        lambda path: (path / "manifest.json").write_text('{"format": 3, "files": {'),
        r"manifest\.json: ",
    ),
    "manifest of something else": (lambda path: (path / "manifest.json").write_text("[]"), r"manifest\.json: "),
    "empty directory": (
        lambda path: (shutil.rmtree(path), path.mkdir())[1],  # type: ignore[func-returns-value]
        r"manifest\.json: .*No such file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    training = Training(tmp_path)
    training.step()
    training.save(1)
    wanted = training.state()
    training.step()
    path = training.save(2)
    harm, says = DAMAGES[damage]
    harm(path)
    with pytest.warns(UserWarning, match=rf"step-00000002 is damaged \(.*{says}.*\); going on from step-00000001"):
        progress = training.resume()
    assert progress is not None
    assert progress.step == 1
    assert equal(training.state(), wanted)


def test_one_of_another_version_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    """It is whole, and days of work: another version can go on from it."""
    training = Training(tmp_path)
    training.step()
    training.save(1)
    path = training.save(2)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    says = r"step-00000002 was written by another version of steerlm \(its format is 1, here it is 3\); go on with"
    with pytest.raises(TrainingError, match=says):
        training.resume()
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_where_the_version_alone_may_differ_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a part of every run's key."""
    with monkeypatch.context() as patch:
        patch.setattr("steerlm.training.manifest.__version__", "0.0.9")
        path = Training(tmp_path, key="one").save(1)
    says = rf"step-00000001 belongs to a run of steerlm 0\.0\.9, and this is {__version__}; go on with that"
    with pytest.raises(ConfigError, match=says):
        Training(tmp_path, key="two").resume()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["version"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="with other settings or data"):
        Training(tmp_path, key="two").resume()


def test_a_damaged_one_does_not_outlive_a_good_one(tmp_path: Path) -> None:
    """After those of later steps were passed over, the checkpoints of the steps before them are the ones to keep."""
    training = Training(tmp_path, keep=3)
    training.save(2)
    for step in (6, 8):
        truncate(training.save(step))
    training.checkpoints.keep = 2
    with pytest.warns(UserWarning, match="is damaged") as told:
        assert training.resume() == Progress(2)
    assert len(told) == 2
    training.save(3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    training.save(4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_where_all_are_damaged_none_goes_unasked(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Nobody goes on from the first step, and removes them, without having said so."""
    training = Training(tmp_path)
    flip(training.save(1))
    truncate(training.save(2))
    says = (
        r"none of the checkpoints is whole: \S+step-00000002 is damaged \(.* bytes\); "
        r"\S+step-00000001 is damaged \(.*digest\)\. Put back .* --resume never"
    )
    with pytest.raises(TrainingError, match=says):
        training.resume()
    assert not recwarn.list  # that another one is gone on from
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_kill_in_the_first_one_leaves_a_clean_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "replace_directory", dies)
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path).save(1)
    assert names(tmp_path) == [".step-00000001.partial"]
    assert Training(tmp_path).resume() is None
    assert not names(tmp_path)


@pytest.mark.parametrize("fault", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("what", ["manifest.json", "distcp"])
def test_what_cannot_be_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, fault: int
) -> None:
    training = Training(tmp_path)
    training.save(1)
    training.save(2)
    opened = Path.open

    def fails(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.name.endswith(what) and path.parent.name == "step-00000002":
            raise OSError(fault, os.strerror(fault), str(path))
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", fails)
    says = rf"step-00000002/\S*{what} cannot be read \({os.strerror(fault)}\).* move step-00000002 away"
    with pytest.raises(TrainingError, match=says):
        training.resume()
    monkeypatch.undo()
    assert training.resume() == Progress(2)


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)
    training.save(1)

    def fails(path: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, fails)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        training.resume()


def test_the_best_weights_are_kept_and_restored_and_where_damaged_those_before_them(tmp_path: Path) -> None:
    training = Training(tmp_path)
    assert training.checkpoints.best() is None
    best = {}
    for step in (1, 2, 3):
        training.step()
        training.checkpoints.save_best(training.network, Progress(step, best=1 / step, figures={"loss": 1 / step}))
        best[step] = training.state()
    for step in (3, 4, 5):
        training.step()
        training.save(step)
    assert names(tmp_path) == ["best-00000002", "best-00000003", "step-00000004", "step-00000005"]

    def restored() -> int:
        found = training.checkpoints.best()
        assert found is not None
        assert found.figures == {"loss": found.best}
        training.checkpoints.load_best(training.network)
        assert equal(training.state(), best[found.step])
        return found.step

    assert restored() == 3
    truncate(tmp_path / "best-00000003")
    with pytest.warns(UserWarning, match=r"best-00000003 is damaged \(.* bytes\); going on from best-00000002"):
        assert restored() == 2
    assert restored() == 2  # and nothing is said of it again
    flip(tmp_path / "best-00000002")
    with pytest.warns(UserWarning, match=r"best-00000002 is damaged \(.* digest\)$"):
        assert training.checkpoints.best() is None


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """A run that died after step 7, with checkpoints of steps 4 and 6, and the weights of a whole one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as tests have: sums over more of them are rounded otherwise
    folder = tmp_path_factory.mktemp("stopped")
    save_base(folder / "base", TOKENIZERS["chatml"]())
    write_conversations(folder / "data.jsonl", random_trees(60, seed=5))
    whole = train_policy(policy_settings(folder, "whole")).network.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        taken = loop._Run._step

        def step(self: Any, ready: Any, number: int, rate: float) -> Any:
            if number == 7:
                raise KeyboardInterrupt
            return taken(self, ready, number, rate)

        patch.setattr(loop._Run, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            train_policy(policy_settings(folder, "out"))
    assert names(folder / "out" / "checkpoints") == ["step-00000004", "step-00000006"]
    yield folder, whole
    torch.set_num_threads(threads)


@pytest.mark.parametrize("damage", ["truncated file", "flipped bit", "missing file", "missing manifest"])
def test_a_run_that_resumes_past_a_damaged_one_ends_with_the_same_weights(
    stopped: tuple[Path, dict[str, Tensor]], damage: str
) -> None:
    folder, whole = stopped
    shutil.copytree(folder / "out", folder / damage)
    DAMAGES[damage][0](folder / damage / "checkpoints" / "step-00000006")
    with pytest.warns(UserWarning, match="is damaged"):
        model = train_policy(policy_settings(folder, damage))
    assert equal(model.network.state_dict(), whole)


def test_a_run_without_a_whole_one_starts_over_only_when_told(stopped: tuple[Path, dict[str, Tensor]]) -> None:
    folder, whole = stopped
    shutil.copytree(folder / "out", folder / "again")
    for name in ("step-00000004", "step-00000006"):
        flip(folder / "again" / "checkpoints" / name)
    for resume in ("auto", "must"):
        with pytest.raises(TrainingError, match="none of the checkpoints is whole"):
            train_policy(policy_settings(folder, "again"), resume=resume)
    assert names(folder / "again" / "checkpoints") == ["step-00000004", "step-00000006"]
    model = train_policy(policy_settings(folder, "again"), resume="never")
    assert equal(model.network.state_dict(), whole)
