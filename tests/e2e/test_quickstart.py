"""The whole method on a tiny model: all stages, then again with every stage kept, then talking to the result."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from steerlm.cli.chat import ChatSession, talk
from steerlm.cli.main import run
from steerlm.conversation import Conversation, Message
from steerlm.engines import Sampling, TorchEngine
from steerlm.files import read_conversations, write_conversations
from steerlm.models.load import load_model
from steerlm.quickstart import QuickstartSettings, _Quickstart
from steerlm.sources.bundled import held_out_prompts
from steerlm.training import loop
from tiny import TOKENIZERS, save_base
from tiny_judge import random_tree

RECIPE = """
out: {out}
base: {base}
held_out: 0.2
attributes: {{context: 2048, pack_tokens: 4096, max_steps: 1}}
policy:
  labels: ratings-first
  context: 2048
  pack_tokens: 4096
  max_steps: 1
  contrast: 0.5
  defaults: {{verbosity: 2, complexity: 2}}
steering: {{attributes: [verbosity, humor], max_prompts: 2, max_tokens: 5}}
"""

TORCH = ["--engine", "torch", "--json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    base = save_base(folder / "base", TOKENIZERS["chatml"]())
    (folder / "recipe.yaml").write_text(RECIPE.format(out=folder / "run", base=base))
    assert run(["quickstart", "--recipe", str(folder / "recipe.yaml")]) == 0
    return folder


def test_summary_has_what_a_program_needs(finished: Path) -> None:
    summary = json.loads((finished / "run" / "summary.json").read_text())
    assert [stage["stage"] for stage in summary["stages"]] == [
        "import",
        "attribute model",
        "annotate",
        "policy",
        "measure",
    ]
    assert all(stage["seconds"] >= 0 and stage["peak_memory_mb"] > 0 for stage in summary["stages"])
    rows = summary["steering"]
    assert [(row["attribute"], row["level"]) for row in rows] == [
        (name, level) for name in ("verbosity", "humor") for level in range(5)
    ]
    assert all(row["n"] == 2 and row["mean_characters"] >= 0 and "mean_reading_grade" in row for row in rows)
    figures = summary["attribute_model"]["attributes"]
    assert set(figures) >= {"quality", "verbosity"}
    assert {"mae", "rmse", "pearson", "spearman", "baseline_mae"} <= set(figures["verbosity"])
    assert summary["libraries"]["torch"]


def test_run_again_keeps_every_stage(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [finished / "run" / name / "model.safetensors" for name in ("attribute-model", "policy")]
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in models]
    first = json.loads((finished / "run" / "summary.json").read_text())
    assert run(["quickstart", "--recipe", str(finished / "recipe.yaml")]) == 0
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in models] == before
    again = json.loads((finished / "run" / "summary.json").read_text())
    assert again["stages"] == first["stages"]
    assert again["steering"] == first["steering"]
    shown = capsys.readouterr().out
    assert "steerlm chat" in shown
    (report,) = re.findall(r"^Report: (.+)$", shown, re.MULTILINE)
    assert Path(report).read_text().startswith("<!doctype html>")


def test_annotations_fill_the_unrated_quarter(finished: Path) -> None:
    lines = (finished / "run" / "annotated.jsonl").read_text().splitlines()
    answers = [m for line in lines for m in json.loads(line)["messages"] if m["role"] == "assistant"]
    assert all(set(answer["predicted"]) == set(answers[0]["predicted"]) for answer in answers)
    assert any("ratings" not in answer for answer in answers)
    judge = load_model(finished / "run" / "attribute-model", "attribute-model").info.fingerprint
    policy = load_model(finished / "run" / "policy", "policy")
    assert policy.info.provenance["annotated_by"] == [judge]
    assert policy.info.provenance["sources"] == ["sample"]
    assert json.loads((finished / "run/policy/evaluation/steering.json").read_text())["annotated_by"] == [judge]
    assert any("ratings" in answer for answer in answers)


def test_generate_sweeps_and_prints_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = str(finished / "run" / "policy")
    assert run(["generate", policy, "Hi", "--sweep", "verbosity", "--set", "humor=4", "--max-tokens", "4", *TORCH]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["attributes"]["verbosity"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["attributes"]["humor"] == 4 and len(row["answers"]) == 1 for row in rows)
    assert run(["generate", policy, "Hi", "--n", "3", "--max-tokens", "4", *TORCH]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["answers"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "verbosity=9"], "levels 0 to 4"),
        (["--set", "wit=1"], "unknown attribute 'wit'"),
        (["--sweep", "wit"], "unknown attribute 'wit'"),
        (["--sweep", "humor", "--set", "humor=1"], "both set and swept"),
        (["--n", "0"], "at least one"),
        (["--n", "2", "--temperature", "0"], "raise --temperature"),
        (["--max-tokens", "99999"], "exceed the model's context"),
    ],
)
def test_generate_refuses(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["generate", str(finished / "run" / "policy"), "Hi", *arguments, *TORCH]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_chat(finished: Path) -> None:
    policy = load_model(finished / "run" / "policy", "policy")
    session = ChatSession(policy, TorchEngine(policy), Sampling(max_tokens=6))
    console = Console(record=True, width=100)
    talk(
        session,
        console,
        ["/set verbosity 0", "Hi", "/set humor=4", "And now?", "/set wit 3", "/nonsense", "/show", "/quit", "no"],
    )
    assert [turn.prompt for turn in session.history] == ["Hi", "And now?"]
    # The labels of the first turn stay what they were when it was answered.
    assert (session.history[0].values["verbosity"], session.history[0].values["humor"]) == (0, 0)
    assert (session.history[1].values["verbosity"], session.history[1].values["humor"]) == (0, 4)
    assert policy.schema.defaults["complexity"] == 2
    text = console.export_text()
    assert "unknown attribute 'wit'" in text
    assert "unknown command /nonsense" in text
    session.command("/reset")
    assert not session.history
    assert not session.asked


def test_chat_forgets_its_oldest_turns_when_the_context_is_full(finished: Path) -> None:
    policy = load_model(finished / "run" / "policy", "policy")
    engine = TorchEngine(policy)
    engine.context = 160
    session = ChatSession(policy, engine, Sampling(max_tokens=4))
    console = Console(record=True, width=100)
    talk(session, console, [f"This is question number {number}, is it not?" for number in range(6)])
    assert 0 < (left := len(session.history)) < 6
    assert session.history[-1].prompt.startswith("This is question number 5")
    told = re.findall(r"the context is full: oldest turns forgotten: (\d+)", console.export_text())
    assert sum(map(int, told)) == 6 - left
    # What does not fit even alone costs nothing.
    talk(session, console, ["much " * 200])
    assert "error: " in (text := console.export_text())
    assert "forgotten" not in text
    assert len(session.history) == left


def test_data_that_rate_some_attributes_only(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest is neither predicted nor asked for nor measured, although the recipe names some of it."""
    generator = random.Random(0)
    write_conversations(finished / "few.jsonl", [random_tree(generator, f"tree-{k}", 6) for k in range(20)])
    arguments = ["--recipe", str(finished / "recipe.yaml"), "--data", str(finished / "few.jsonl")]
    assert run(["quickstart", *arguments, "--out", str(finished / "few")]) == 0
    assert "not measured, as no label of the data names it: verbosity" in " ".join(capsys.readouterr().err.split())
    summary = json.loads((finished / "few" / "summary.json").read_text())
    assert [row["attribute"] for row in summary["steering"]] == ["humor"] * 5
    assert [contrast["attribute"] for contrast in summary["contrasts"]] == ["humor"]
    assert load_model(finished / "few" / "policy", "policy").schema.names == ("quality", "humor")


def test_no_prompt_that_is_learnt_from_is_measured_on(finished: Path, tmp_path: Path) -> None:
    """Every prompt of the data is there twice, and both are on the same side for some only."""
    answers = [Message("assistant", text, 0, {"quality": 3.0}) for text in ("Salt.", "Rivers.")]
    trees = [Conversation(f"c{k}", (Message("user", f"Why {k // 2}?"), *answers)) for k in range(80)]
    write_conversations(tmp_path / "data.jsonl", trees)
    settings = QuickstartSettings(out=tmp_path / "run", data=[tmp_path / "data.jsonl"], held_out=0.5)
    prompts = _Quickstart(settings, lambda _: None, fresh=False)._import()
    learnt = {c.messages[0].text for c in read_conversations(tmp_path / "run" / "everything.jsonl")}
    held_out = {c.messages[0].text for c in read_conversations(tmp_path / "run" / "everything.held-out.jsonl")}
    assert learnt & held_out
    assert set(prompts) == {*(held_out - learnt), *held_out_prompts()}
    assert held_out - learnt
    used = json.loads((finished / "run/policy/evaluation/steering.json").read_text())["prompts"]
    assert used["source"] == {"name": "those that come with steerlm", "held_out": True}


def test_changed_settings_train_anew(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the place of the models that were finished with the old ones, which are named."""
    arguments = ["quickstart", "--recipe", str(finished / "recipe.yaml"), "--out", str(finished / "changed")]
    for seed in ("0", "1"):
        assert run([*arguments, "--seed", seed]) == 0
        for name in ("attribute-model", "policy"):
            model = json.loads((finished / "changed" / name / "steerlm.json").read_text())
            assert model["provenance"]["settings"]["seed"] == int(seed)
    told = capsys.readouterr().err
    for kind in ("attribute-model", "policy"):
        assert re.search(rf"the finished {kind} \w+ in {finished / 'changed' / kind} is replaced when", told)


def test_unfinished_work_of_other_settings_is_kept_until_fresh(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["quickstart", "--recipe", str(finished / "recipe.yaml"), "--out", str(finished / "killed")]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_finish", killed)
        assert run(arguments) == 130
    assert run([*arguments, "--seed", "1"]) == 2
    assert "run with other settings or data" in (told := " ".join(capsys.readouterr().err.split()))
    assert "of quickstart: --fresh" in told
    assert run([*arguments, "--seed", "1", "--fresh"]) == 0


def test_data_without_ratings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pool.jsonl").write_text('{"prompt": "Hi", "responses": [{"text": "Hello"}, {"text": "Good day"}]}\n')
    assert run(["quickstart", "--data", str(tmp_path / "pool.jsonl"), "--out", str(tmp_path / "run")]) == 2
    assert "no response in the data carries human ratings" in " ".join(capsys.readouterr().err.split())


def test_a_recipe_that_says_little_of_the_measurement_still_measures_three_attributes() -> None:
    settings = QuickstartSettings.model_validate({"steering": {"max_prompts": 4}})
    assert settings.steering.attributes == QuickstartSettings().steering.attributes
    assert len(settings.steering.attributes) == 3
