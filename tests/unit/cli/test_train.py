"""`steerlm train`: how a run goes on or starts over, what it never replaces, and what it says in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steerlm.cli.main import run
from steerlm.cli.train import _deafness
from steerlm.conversation import Conversation, Message
from steerlm.errors import ConfigError
from steerlm.files import write_conversations
from steerlm.training import loop
from steerlm.training.config import PolicySettings
from steerlm.training.dry_run import dry_run
from steerlm.training.output import sole_writer
from steerlm.training.run import train_policy
from tiny_runs import interrupted_at


def test_a_run_goes_on_or_starts_over(train_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = loop._Run._step
    numbers: list[int] = []
    dies_at = 3

    def step(self: Any, ready: Any, number: int, rate: float) -> Any:
        if number == dies_at:
            raise KeyboardInterrupt
        numbers.append(number)
        return taken(self, ready, number, rate)

    monkeypatch.setattr(loop._Run, "_step", step)

    def train(*flags: str) -> tuple[int, list[int], str]:
        numbers.clear()
        code, _, told = train_command(*flags)
        return code, list(numbers), told

    code, steps, told = train("--resume", "must")
    assert (code, steps) == (1, [])
    assert "out holds no checkpoint to go on from; leave out --resume must" in told
    code, steps, told = train()
    assert (code, steps) == (130, [0, 1, 2])
    assert "run the same command again to go on" in told
    assert train("--resume", "never")[:2] == (130, [0, 1, 2])
    dies_at = -1
    code, steps, told = train("--resume", "must", "--learning-rate", "0.1")
    assert (code, steps) == (2, [])
    assert "belongs to a run with other settings or data" in told
    code, steps, told = train("--resume", "must")
    assert code == 0
    assert steps[0] == 2
    assert "saved policy" in told
    last = steps[-1]
    for resume in ("auto", "must"):
        assert train("--resume", resume)[:2] == (0, [])
    assert train("--resume", "never")[:2] == (0, list(range(last + 1)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_finished_model_is_replaced_only_when_told(train_command: Any, tmp_path: Path) -> None:
    assert train_command("--max-steps", "1")[0] == 0
    first = contents(tmp_path / "out")
    for kind in ("auto", "must"):
        code, _, told = train_command("--max-steps", "1", "--seed", "2", "--resume", kind)
        assert code == 2
        assert "out holds a finished model of other settings or data; choose another --out, or pass --resume" in told
        assert "where auto means another precision" in told
        assert contents(tmp_path / "out") == first
    assert train_command("--max-steps", "1", "--seed", "2", "--resume", "never")[0] == 0
    second = contents(tmp_path / "out")
    assert second.keys() == first.keys()
    assert second["model.safetensors"] != first["model.safetensors"]


def test_a_run_that_was_begun_in_place_of_a_finished_model_goes_on(train_command: Any, tmp_path: Path) -> None:
    assert train_command("--max-steps", "1")[0] == 0
    with interrupted_at(2):
        assert train_command("--max-steps", "3", "--resume", "never")[0] == 130
    assert train_command("--max-steps", "3")[0] == 0
    assert json.loads((tmp_path / "out" / "steerlm.json").read_text())["provenance"]["steps"] == 3


def test_the_command_of_a_finished_model_spares_the_run_that_was_begun_in_its_place(
    train_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_command("--max-steps", "1")[0] == 0
    taken = loop._Run._step
    steps: list[int] = []

    def step(self: Any, ready: Any, number: int, rate: float) -> Any:
        steps.append(number)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return taken(self, ready, number, rate)

    monkeypatch.setattr(loop._Run, "_step", step)
    assert train_command("--max-steps", "3", "--resume", "never")[0] == 130
    code, _, told = train_command("--max-steps", "1")
    assert code == 0
    assert "checkpoints are of a run with other settings or data, and stay" in told
    assert train_command("--max-steps", "3")[0] == 0
    assert steps == [0, 1, 2, 2]
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_checkpoints_of_a_finished_model_go_when_a_kill_left_them(train_command: Any, tmp_path: Path) -> None:
    assert train_command("--max-steps", "1")[0] == 0
    model = json.loads((tmp_path / "out" / "steerlm.json").read_text())
    left = tmp_path / "out" / "checkpoints" / "step-00000001"
    left.mkdir(parents=True)
    manifest = {"format": 2, "key": model["provenance"]["run"], "progress": {}, "files": {}}
    (left / "manifest.json").write_text(json.dumps(manifest))
    code, _, told = train_command("--max-steps", "1")
    assert code == 0
    assert "checkpoints are of" not in told
    assert not left.parent.exists()


def test_a_program_may_say_that_a_finished_model_is_to_go(
    training_values: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = training_values(out=tmp_path / "out", labels="ratings-first", max_steps=1)
    first = train_policy(PolicySettings(**shared))
    capsys.readouterr()
    model = train_policy(PolicySettings(**shared, seed=2), overwrite=True)
    assert model.info.provenance["settings"]["seed"] == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"the finished policy {first.info.fingerprint} in {tmp_path / 'out'} is replaced when" in told
    (tmp_path / "out" / "steerlm.json").write_text("{")
    train_policy(PolicySettings(**shared), "never")
    assert f"the finished model in {tmp_path / 'out'} is replaced when" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "pytorch_model.bin", "config.json"])
def test_a_model_of_another_origin_is_never_replaced(train_command: Any, tmp_path: Path, file: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text("of somebody else")
    code, _, told = train_command("--resume", "never")
    assert code == 2
    assert f"out holds {file} of a model that was not trained here; choose another --out" in told
    assert contents(tmp_path / "out") == {file: b"of somebody else"}


def test_the_base_is_never_replaced(
    training_folder: Path, training_values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(training_folder)
    settings = PolicySettings(**training_values(out=Path("base"), labels="ratings-first"))
    for function in (dry_run, train_policy):
        with pytest.raises(ConfigError, match="out=base is the base model"):
            function(settings)


def test_one_training_at_a_time_in_a_directory(train_command: Any, tmp_path: Path) -> None:
    with sole_writer(tmp_path / "out"):
        code, _, told = train_command("--max-steps", "1", "--resume", "never")
        assert code == 1
        assert "out: another process is training into the same directory; wait for it" in told
    assert train_command("--max-steps", "1")[0] == 0
    assert not [name for name in contents(tmp_path / "out") if name.startswith(".")]


def test_an_unknown_way_to_resume(train_command: Any) -> None:
    code, _, told = train_command("--resume", "maybe")
    assert code == 2
    assert "maybe" in told


def test_a_policy_that_heeds_nothing_is_told_of(
    training_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step at a tiny rate teaches nothing; the words of an answer that are its label are learnt in a few dozen."""
    write_conversations(tmp_path / "plain.jsonl", [_echo(k) for k in range(40)])
    write_conversations(tmp_path / "held-out.jsonl", [_echo(k) for k in range(40, 60)])
    arguments = [
        *("train", "policy", "--data", str(tmp_path / "plain.jsonl"), "--base", str(training_folder / "base")),
        *("--labels", "ratings-first", "--context", "128", "--pack-tokens", "256", "--batch-conversations", "4"),
        *("--validation", str(tmp_path / "held-out.jsonl"), "--precision", "fp32"),
    ]
    assert run([*arguments, "--out", str(tmp_path / "deaf"), "--max-steps", "1", "--learning-rate", "1e-9"]) == 0
    told = capsys.readouterr().err
    assert "does not seem to heed its labels" in told
    assert "or with --contrast 0.5" in told
    heeding = ["--learning-rate", "5e-3", "--epochs", "12", "--contrast", "0.5"]
    assert run([*arguments, "--out", str(tmp_path / "listens"), *heeding]) == 0
    assert "heed its labels" not in capsys.readouterr().err


def test_few_pairs_say_nothing_of_deafness_and_advice_is_not_what_was_done() -> None:
    """Of four pairs even four that are won are no evidence, by the sign test; of five all have to be won."""
    for pairs in range(5):
        for won in range(pairs + 1):
            assert _deafness({"gap_pairs": pairs, "gap_won": won / max(pairs, 1)}, contrast=0.0) is None
    assert _deafness({"gap_pairs": 5, "gap_won": 1.0}, contrast=0.0) is None
    told = _deafness({"gap_pairs": 5, "gap_won": 0.8}, contrast=0.0)
    assert told is not None
    assert "--contrast 0.5" in told
    told = _deafness({"gap_pairs": 5, "gap_won": 0.8}, contrast=0.5)
    assert told is not None
    assert "4 of 5" in told
    assert "--contrast" not in told


def test_brackets_in_a_path_are_no_markup(
    training_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data", str(training_folder / "data.jsonl"), "--base", str(training_folder / "base")]
    out = tmp_path / "exp[v2]"
    flags = ["--labels", "ratings-first", "--max-steps", "0", "--out", str(out)]
    assert run(["train", "policy", *places, *flags]) == 0
    assert f"to {out}; go on with: steerlm chat {out}" in " ".join(capsys.readouterr().err.split())


def _echo(number: int) -> Conversation:
    """A prompt with two answers that say by their words what they are rated."""
    answers = [Message("assistant", word * 4, 0, {"humor": level}) for word, level in (("dry ", 0.0), ("fun ", 4.0))]
    return Conversation(f"c{number}", (Message("user", f"Say {number}."), *answers))
