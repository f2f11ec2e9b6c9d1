"""`steerlm train`: what a dry run tells of the real one, and how a run goes on or starts over."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from processes import launch
from steerlm.cli.main import run
from steerlm.cli.train import _deafness
from steerlm.conversation import Conversation, Message
from steerlm.errors import ConfigError, SteerLMError
from steerlm.files import write_conversations
from steerlm.training import loop
from steerlm.training.config import AttributeSettings, PolicySettings
from steerlm.training.dry_run import DryRun, dry_run
from steerlm.training.output import sole_writer
from steerlm.training.run import train_attribute_model, train_policy
from tiny import TOKENIZERS, save_base
from tiny_judge import random_trees
from tiny_runs import train_on_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("train")
    save_base(made / "base", TOKENIZERS["chatml"]())
    write_conversations(made / "data.jsonl", random_trees(40, seed=5))
    return made


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    shared = {"data": [folder / "data.jsonl"], "base": str(folder / "base"), "precision": "fp32", "epochs": 1.0}
    return {**shared, "context": 96, "pack_tokens": 192, "batch_tokens": 300, **changes}


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


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


def test_a_dry_run_of_a_policy_counts_what_the_training_does(folder: Path, tmp_path: Path) -> None:
    settings = PolicySettings(**values(folder, out=tmp_path / "out", labels="ratings-first", contrast=0.5))
    found = dry_run(settings)
    assert not (tmp_path / "out").exists()
    train_policy(settings)
    assert_told(found, tmp_path / "out")
    assert found.packs > found.steps
    assert found.largest_pack <= 192
    assert 0 < found.trained < found.report.tokens


def test_a_dry_run_of_an_attribute_model_counts_what_the_training_does(folder: Path, tmp_path: Path) -> None:
    settings = AttributeSettings(**values(folder, out=tmp_path / "out", head="random"))
    found = dry_run(settings)
    train_attribute_model(settings)
    assert_told(found, tmp_path / "out")
    assert found.trained == found.report.responses


def test_a_dry_run_for_many_processes_counts_what_they_do_and_one_of_them_tells(
    command: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, alone, _ = command("--dry-run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert command("--dry-run")[:2] == (0, "")
    monkeypatch.setenv("RANK", "0")
    _, out, _ = command("--dry-run")
    assert "GiB in each of 2 processes" in out

    monkeypatch.setenv("WORLD_SIZE", "1")
    plain = {"contrast": 0.0, "label_dropout": 0.0, "validation_fraction": 0.1}
    launch(2, train_on_ranks, folder, "policy", "two", {**values(folder, out=folder / "two"), **plain})
    packs = sum(step["packs"] for step in lines(folder / "two", "train"))
    assert re.search(rf"^packs +{packs} an epoch", out, re.MULTILINE)
    assert not re.search(rf"^packs +{packs} an epoch", alone, re.MULTILINE)
    settings = PolicySettings(**values(folder, out=tmp_path / "out", labels="ratings-first"))
    one, two = (dry_run(settings, world=world).memory for world in (1, 2))
    assert two.weights == pytest.approx(one.weights / 2, rel=0.01)
    with pytest.raises(ConfigError, match="tensor_parallel=4 does not divide the 2 processes"):
        dry_run(settings.model_copy(update={"tensor_parallel": 4}), world=2)


def test_steps_of_many_epochs_and_at_most_so_many(folder: Path, tmp_path: Path) -> None:
    def steps(**changes: Any) -> int:
        """Of so many conversations each, which are as many in every epoch."""
        made = values(folder, out=tmp_path / "out", labels="ratings-first", batch_conversations=4, **changes)
        del made["batch_tokens"]
        found = dry_run(PolicySettings(**made))
        assert found.exact
        return found.steps

    one = steps()
    assert steps(epochs=3.0) == 3 * one
    assert steps(epochs=3.0, max_steps=2) == 2


def test_steps_of_many_epochs_are_reckoned(folder: Path, tmp_path: Path) -> None:
    def exact(**changes: Any) -> bool:
        return dry_run(PolicySettings(**values(folder, out=tmp_path, labels="ratings-first", **changes))).exact

    assert exact()
    assert not exact(epochs=3.0)
    assert exact(epochs=3.0, max_steps=2)


def test_a_dry_run_refuses_what_the_training_refuses(folder: Path, tmp_path: Path) -> None:
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
        settings = PolicySettings(**values(folder, out=tmp_path / "out", labels="ratings-first", **changes))
        for function in (dry_run, train_policy):
            with pytest.raises(SteerLMError, match=says):
                function(settings)


@pytest.fixture
def command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `steerlm train policy` with the flags given; returns exit code, stdout, stderr in one line each."""

    def train(*flags: str) -> tuple[int, str, str]:
        shared = ["--data", str(folder / "data.jsonl"), "--base", str(folder / "base"), "--precision", "fp32"]
        size = ["--context", "96", "--pack-tokens", "192", "--batch-tokens", "300", "--epochs", "1"]
        labels = ["--labels", "ratings-first", "--checkpoint-every", "2"]
        code = run(["train", "policy", *shared, *size, *labels, "--out", str(tmp_path / "out"), *flags])
        told = capsys.readouterr()
        return code, told.out, " ".join(told.err.split())

    return train


def test_dry_run_on_the_command_line(command: Any, folder: Path, tmp_path: Path) -> None:
    code, out, _ = command("--dry-run")
    assert code == 0
    assert not (tmp_path / "out").exists()
    found = dry_run(PolicySettings(**values(folder, out=tmp_path / "out", labels="ratings-first")))
    assert re.search(rf"^steps +{found.steps} *$", out, re.MULTILINE)
    assert re.search(rf"^conversations +{found.conversations} to train on, {found.held_out} held out *$", out, re.M)
    assert f"{found.packs} an epoch" in out
    assert f"{found.trained} tokens an epoch" in out


def test_a_run_goes_on_or_starts_over(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        code, _, told = command(*flags)
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


def test_a_finished_model_is_replaced_only_when_told(command: Any, tmp_path: Path) -> None:
    assert command("--max-steps", "1")[0] == 0
    first = contents(tmp_path / "out")
    for kind in ("auto", "must"):
        code, _, told = command("--max-steps", "1", "--seed", "2", "--resume", kind)
        assert code == 2
        assert "out holds a finished model of other settings or data; choose another --out, or pass --resume" in told
        assert "where auto means another precision" in told
        assert contents(tmp_path / "out") == first
    assert command("--max-steps", "1", "--seed", "2", "--resume", "never")[0] == 0
    second = contents(tmp_path / "out")
    assert second.keys() == first.keys()
    assert second["model.safetensors"] != first["model.safetensors"]


def test_a_dry_run_tells_of_a_finished_model_in_the_way(command: Any) -> None:
    assert command("--max-steps", "1")[0] == 0
    assert command("--max-steps", "1", "--dry-run")[0] == 0
    code, _, told = command("--max-steps", "1", "--seed", "2", "--dry-run")
    assert code == 2
    assert "out holds a finished model of other settings or data" in told
    assert command("--max-steps", "1", "--seed", "2", "--dry-run", "--resume", "never")[0] == 0


def test_a_dry_run_tells_of_checkpoints_that_the_training_would_refuse(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves them alone, also what a training beside it is writing."""
    code, _, told = command("--dry-run", "--resume", "must")
    assert code == 1
    assert "out holds no checkpoint to go on from; leave out --resume must" in told
    taken = loop._Run._step

    def dies(self: Any, ready: Any, number: int, rate: float) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return taken(self, ready, number, rate)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", dies)
        assert command()[0] == 130
    checkpoints = tmp_path / "out" / "checkpoints"
    (checkpoints / ".step-00000004.partial").mkdir()
    assert command("--dry-run", "--resume", "must")[0] == command("--dry-run")[0] == 0
    code, _, told = command("--dry-run", "--seed", "2")
    assert code == 2
    assert "step-00000002 belongs to a run with other settings or data" in told
    assert command("--dry-run", "--seed", "2", "--resume", "never")[0] == 0
    (checkpoints / "step-00000002" / "manifest.json").unlink()
    code, _, told = command("--dry-run")
    assert code == 1
    assert "none of the checkpoints is whole" in told
    assert sorted(path.name for path in checkpoints.iterdir()) == [".step-00000004.partial", "step-00000002"]


def test_a_run_that_was_begun_in_place_of_a_finished_model_goes_on(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("--max-steps", "1")[0] == 0
    taken = loop._Run._step

    def dies(self: Any, ready: Any, number: int, rate: float) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return taken(self, ready, number, rate)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", dies)
        assert command("--max-steps", "3", "--resume", "never")[0] == 130
    assert command("--max-steps", "3")[0] == 0
    assert json.loads((tmp_path / "out" / "steerlm.json").read_text())["provenance"]["steps"] == 3


def test_the_command_of_a_finished_model_spares_the_run_that_was_begun_in_its_place(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("--max-steps", "1")[0] == 0
    taken = loop._Run._step
    steps: list[int] = []

    def step(self: Any, ready: Any, number: int, rate: float) -> Any:
        steps.append(number)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return taken(self, ready, number, rate)

    monkeypatch.setattr(loop._Run, "_step", step)
    assert command("--max-steps", "3", "--resume", "never")[0] == 130
    code, _, told = command("--max-steps", "1")
    assert code == 0
    assert "checkpoints are of a run with other settings or data, and stay" in told
    assert command("--max-steps", "3")[0] == 0
    assert steps == [0, 1, 2, 2]
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_checkpoints_of_a_finished_model_go_when_a_kill_left_them(command: Any, tmp_path: Path) -> None:
    assert command("--max-steps", "1")[0] == 0
    model = json.loads((tmp_path / "out" / "steerlm.json").read_text())
    left = tmp_path / "out" / "checkpoints" / "step-00000001"
    left.mkdir(parents=True)
    manifest = {"format": 2, "key": model["provenance"]["run"], "progress": {}, "files": {}}
    (left / "manifest.json").write_text(json.dumps(manifest))
    code, _, told = command("--max-steps", "1")
    assert code == 0
    assert "checkpoints are of" not in told
    assert not left.parent.exists()


def test_a_program_may_say_that_a_finished_model_is_to_go(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = values(folder, out=tmp_path / "out", labels="ratings-first", max_steps=1)
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
def test_a_model_of_another_origin_is_never_replaced(command: Any, tmp_path: Path, file: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text("of somebody else")
    code, _, told = command("--resume", "never")
    assert code == 2
    assert f"out holds {file} of a model that was not trained here; choose another --out" in told
    assert contents(tmp_path / "out") == {file: b"of somebody else"}


def test_the_base_is_never_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    settings = PolicySettings(**values(folder, out=Path("base"), labels="ratings-first"))
    for function in (dry_run, train_policy):
        with pytest.raises(ConfigError, match="out=base is the base model"):
            function(settings)


def test_one_training_at_a_time_in_a_directory(command: Any, tmp_path: Path) -> None:
    with sole_writer(tmp_path / "out"):
        code, _, told = command("--max-steps", "1", "--resume", "never")
        assert code == 1
        assert "out: another process is training into the same directory; wait for it" in told
    assert command("--max-steps", "1")[0] == 0
    assert not [name for name in contents(tmp_path / "out") if name.startswith(".")]


def test_an_unknown_way_to_resume(command: Any) -> None:
    code, _, told = command("--resume", "maybe")
    assert code == 2
    assert "maybe" in told


def test_a_policy_that_heeds_nothing_is_told_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step at a tiny rate teaches nothing; the words of an answer that are its label are learnt in a few dozen."""
    write_conversations(tmp_path / "plain.jsonl", [_echo(k) for k in range(40)])
    write_conversations(tmp_path / "held-out.jsonl", [_echo(k) for k in range(40, 60)])
    arguments = [
        *("train", "policy", "--data", str(tmp_path / "plain.jsonl"), "--base", str(folder / "base")),
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


def test_brackets_in_a_path_are_no_markup(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--data", str(folder / "data.jsonl"), "--base", str(folder / "base"), "--max-steps", "0"]
    out = tmp_path / "exp[v2]"
    assert run(["train", "policy", *shared, "--labels", "ratings-first", "--out", str(out)]) == 0
    assert f"to {out}; go on with: steerlm chat {out}" in " ".join(capsys.readouterr().err.split())


def _echo(number: int) -> Conversation:
    """A prompt with two answers that say by their words what they are rated."""
    answers = [Message("assistant", word * 4, 0, {"humor": level}) for word, level in (("dry ", 0.0), ("fun ", 4.0))]
    return Conversation(f"c{number}", (Message("user", f"Say {number}."), *answers))
