"""The evaluation of steering as a whole, with an engine that answers by a script and with the real one."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from scripted_policy import PROMPTS, QUICK, Scripted
from steerlm.annotation import Scorer
from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.cli.main import run
from steerlm.conversation import Conversation
from steerlm.errors import ConfigError, DataError, SchemaError
from steerlm.evaluation import measuring
from steerlm.evaluation.report import report_html
from steerlm.evaluation.steering import Judges, evaluate_steering
from steerlm.evaluation.steering_settings import ConditionName, SteeringSettings
from steerlm.files import write_json
from steerlm.models.base import weights_digest
from steerlm.models.load import SteerModel, load_model, new_model
from tiny import TOKENIZERS, save_base
from tiny_judge import save_tiny_base


def another(judge: SteerModel) -> SteerModel:
    """The same weights under another fingerprint."""
    return replace(judge, info=replace(judge.info, fingerprint="another"))


def test_one_that_obeys_and_one_that_guesses(policy: SteerModel, tmp_path: Path) -> None:
    obedient = evaluate_steering(policy, PROMPTS, QUICK, tmp_path / "a", engine=Scripted(policy, lambda asked: asked))
    row = obedient["conditions"]["policy"]["attributes"]["verbosity"]
    assert row["verdict"] == "steers"
    assert row["within_prompt"]["value"] == pytest.approx(1)
    assert row["curves"]["words"][2]["value"] == 28
    generator = random.Random(0)
    guessing = Scripted(policy, lambda asked: generator.randrange(5))
    row = evaluate_steering(policy, PROMPTS, QUICK, tmp_path / "b", engine=guessing)["conditions"]["policy"]
    assert row["attributes"]["verbosity"]["verdict"] == "does not steer"
    assert obedient["prompts"]["used"] == 6
    assert obedient["steerlm"]


def test_all_attributes_are_measured_unless_some_are_named(chatml_base: Path, tmp_path: Path) -> None:
    """Of a policy that knows neither complexity nor humor."""
    known = new_model("policy", chatml_base, STEERLM.only(["helpfulness", "verbosity"]))
    settings = QUICK.model_copy(update={"attributes": SteeringSettings().attributes})
    record = evaluate_steering(known, PROMPTS, settings, tmp_path, engine=Scripted(known, lambda asked: asked))
    assert set(record["conditions"]["policy"]["attributes"]) == {"helpfulness", "verbosity"}


def test_what_is_drawn_does_not_depend_on_what_else_is_asked(policy: SteerModel, tmp_path: Path) -> None:
    seeds = []
    for attributes in (["verbosity", "humor"], ["humor"]):
        engine = Scripted(policy, lambda asked: asked)
        settings = QUICK.model_copy(update={"attributes": attributes, "temperature": 0.7})
        evaluate_steering(policy, PROMPTS, settings, tmp_path / attributes[0], engine=engine)
        seeds.append(engine.seeds)
    both, humor = seeds
    assert len(humor) == len(set(humor.values())) == len(PROMPTS) * 5
    assert humor.items() <= both.items()


def test_a_result_that_is_read_back_keeps_its_day(
    policy: SteerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_steering(policy, PROMPTS, QUICK, tmp_path, engine=Scripted(policy, lambda asked: asked))
    written = json.loads((tmp_path / "steering.json").read_text())
    assert date.fromisoformat(written["date"]) <= datetime.now(UTC).date()
    write_json(tmp_path / "steering.json", {**written, "date": "2024-02-29"})
    again = evaluate_steering(policy, PROMPTS, QUICK, tmp_path, engine=Scripted(policy, lambda asked: asked))
    assert again["date"] == "2024-02-29"
    assert "2024-02-29" in report_html(again, "x")
    assert str(datetime.now(UTC).date()) not in report_html(again, "x")


def test_a_lexicon_that_is_installed_later_is_used(
    policy: SteerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, find_spec = Scripted(policy, lambda asked: asked), importlib.util.find_spec
    settings, said = QUICK.model_copy(update={"attributes": ["toxicity"]}), list[str]()

    def without_lexicon(name: str, *rest: Any) -> Any:
        return None if name == "glin_profanity" else find_spec(name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", without_lexicon)
        record = evaluate_steering(policy, PROMPTS, settings, tmp_path, engine=engine, say=said.append)
        assert record["conditions"]["policy"]["attributes"]["toxicity"]["verdict"] == "not measured"
        assert any("pip install 'steerlm[report]'" in line for line in said)
        assert "their lexicon was not installed" in report_html(record, "x")
    answered = engine.answered
    said.clear()
    record = evaluate_steering(policy, PROMPTS, settings, tmp_path, engine=engine, say=said.append)
    assert not any("lexicon" in line for line in said)
    assert "their lexicon was not installed" not in report_html(record, "x")
    assert record["conditions"]["policy"]["attributes"]["toxicity"]["own"] == "toxic_words"
    assert engine.answered == answered


def test_long_prompts_make_room_for_later_ones(policy: SteerModel, tmp_path: Path) -> None:
    """The second of eight is too long; the six that are wanted are the first six of the others."""
    prompts = [PROMPTS[0], "word " * 3000, *PROMPTS[1:], "One more?"]
    engine = Scripted(policy, lambda asked: asked)
    record = evaluate_steering(policy, prompts, QUICK.model_copy(update={"max_prompts": 6}), tmp_path, engine=engine)
    assert (record["prompts"]["used"], record["prompts"]["left_out"]) == (6, 1)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {row["prompt_text"] for row in rows} == set(PROMPTS)


def test_the_same_in_words_of_the_file(policy: SteerModel, tmp_path: Path) -> None:
    """The first prompt has one way of its own beside it, the second none and goes in frames, the third is not asked in
    other words; one that is too long in other words makes room.
    """
    prompts = [("Why?", "For what reason?"), ("Long?", "word " * 3000), "Is it?", "What is rock?"]
    settings = QUICK.model_copy(update={"paraphrases": 2, "max_prompts": 3})
    record = evaluate_steering(policy, prompts, settings, tmp_path, engine=Scripted(policy, lambda asked: asked))
    assert record["prompts"]["left_out"] == 1
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    asked = {(row["prompt"], row["prompt_text"]) for row in rows if row["paraphrase"]}
    assert {text for number, text in asked if number == 0} == {"For what reason?"}
    assert len({text for number, text in asked if number == 1}) == 3
    assert all("Is it?" in text for number, text in asked if number == 1)
    assert {number for number, _ in asked} == {0, 1}
    assert record["conditions"]["policy"]["consistency"]["verbosity"]["over_paraphrases"]["value"] == 0


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy on disk that OpenVINO can read."""
    folder = tmp_path_factory.mktemp("readable")
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
    save_base(folder / "base", TOKENIZERS["chatml"](), "llama", **shape)
    new_model("policy", folder / "base", STEERLM).save(folder / "policy")
    return folder / "policy"


def test_answers_of_two_engines_are_not_mixed(readable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO is installed after a first evaluation, and is what `auto` takes from then on."""
    model, said = load_model(readable, "policy"), list[str]()
    settings = QUICK.model_copy(update={"max_tokens": 3, "max_prompts": 1})

    def evaluate(**changes: Any) -> dict[str, Any]:
        said.clear()
        chosen = settings.model_copy(update=changes)
        return evaluate_steering(model, PROMPTS, chosen, tmp_path, directory=readable, say=said.append)

    with monkeypatch.context() as patched:
        patched.setattr("steerlm.engines.make._has_openvino", lambda: False)
        first = evaluate()
    assert first["engine"] == {"name": "torch"}
    assert "openvino" not in first["libraries"]
    second = evaluate()
    assert any("answering" in line for line in said)
    assert second["engine"] == {"name": "openvino", "precision": "f32"}
    assert second["libraries"]["openvino"]
    # The same engine by its name is the same.
    evaluate(engine="openvino")
    assert not any("answering" in line for line in said)


@pytest.mark.parametrize("condition", ["policy", "guidance"])
def test_prompts_that_the_memory_of_the_engine_has_no_room_for_are_left_out(
    readable: Path, tmp_path: Path, condition: ConditionName
) -> None:
    """The first prompt would fit into the model's context, or for guidance once into the memory, but not twice."""
    prompts = ["salt " * {"policy": 800, "guidance": 300}[condition], "Is it?"]
    changes = {"conditions": [condition], "max_tokens": 3, "engine": "openvino"}
    model = load_model(readable, "policy")
    whole = QUICK.model_copy(update=changes)
    record = evaluate_steering(model, prompts, whole, tmp_path / "a", directory=readable)
    assert (record["prompts"]["used"], record["prompts"]["left_out"]) == (2, 0)
    bounded = QUICK.model_copy(update={**changes, "cache_gb": 2**-11})
    record = evaluate_steering(model, prompts, bounded, tmp_path / "b", directory=readable)
    assert (record["prompts"]["used"], record["prompts"]["left_out"]) == (1, 1)


def test_every_condition_and_measure(
    policy: SteerModel, chatml_base: Path, judge_directory: Path, tmp_path: Path
) -> None:
    settings = SteeringSettings(
        attributes=["verbosity", "humor"],
        max_prompts=2,
        conditions=["policy", "words", "guidance", "verified"],
        goals=1,
        paraphrases=1,
        max_tokens=3,
        draws=2,
        resamples=100,
    )
    judge = load_model(judge_directory, "attribute-model")
    said: list[str] = []
    record = evaluate_steering(policy, PROMPTS, settings, tmp_path, Judges(judge, another(judge)), say=said.append)
    assert list(record["conditions"]) == settings.conditions
    for name, condition in record["conditions"].items():
        row = condition["attributes"]["humor"]
        assert row.get("against_words", {}).get("verdict") == (None if name == "words" else "too few prompts")
        assert row["own"] == "second:humor"
        assert {"score:quality", "perplexity", "characters", "reading_grade", "toxic_words"} <= set(row["curves"])
        assert all(point["value"] is None or point["value"] > 0 for point in row["curves"]["perplexity"])
        assert condition["goal_space"]["goals"] <= 2
        assert set(condition["consistency"]) == {"verbosity", "humor"}
        assert len(condition["examples"]["humor"][0]["answers"]) == 5
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {row["condition"] for row in rows} == set(settings.conditions)
    assert all(
        set(row["measured"]) == set(record["conditions"]["words"]["attributes"]["humor"]["curves"]) for row in rows
    )
    swept = [row for row in rows if row["condition"] == "words" and row["asked"] == [["humor", 3]]]
    means = record["conditions"]["words"]["attributes"]["humor"]["curves"]["second:humor"]
    plain = [row["measured"]["second:humor"] for row in swept if row["paraphrase"] == 0]
    assert means[3]["value"] == pytest.approx(np.mean(plain))
    # What the base is, without where it lies.
    assert (record["base"], record["base_digest"]) == (chatml_base.name, weights_digest(chatml_base))
    page = report_html(record, "x")
    assert str(chatml_base) not in page
    assert str(chatml_base.parent) not in (tmp_path / "steering.json").read_text()
    assert any("untuned base" in line for line in said)


def test_a_result_is_read_back_without_its_base(
    chatml_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be large, or gone since."""
    base = shutil.copytree(chatml_base, tmp_path / "base")
    policy = new_model("policy", base, STEERLM)
    policy = replace(policy, info=replace(policy.info, provenance={"base": str(base)}))
    settings = SteeringSettings(attributes=["humor"], max_prompts=1, conditions=["words"], max_tokens=2, resamples=100)
    record = evaluate_steering(policy, PROMPTS[:1], settings, tmp_path / "out")
    monkeypatch.setattr("steerlm.evaluation.steering.untuned_base", lambda info: pytest.fail("the base was loaded"))
    assert evaluate_steering(policy, PROMPTS[:1], settings, tmp_path / "out") == record
    shutil.rmtree(base)
    assert evaluate_steering(policy, PROMPTS[:1], settings, tmp_path / "out") == record


def test_answers_are_measured_under_the_system_text_that_they_were_given_under(
    policy: SteerModel, judge_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both judges, the choice among draws, and the base's perplexity."""
    seen: dict[str, set[str]] = {"scores": set(), "perplexity": set()}
    score, perplexities = Scorer.score, measuring.perplexities

    def scored(self: Scorer, trees: Sequence[Conversation]) -> Any:
        seen["scores"] |= {tree.system for tree in trees}
        return score(self, trees)

    def read(base: SteerModel, trees: Sequence[Conversation], context: int) -> Any:
        seen["perplexity"] |= {tree.system for tree in trees}
        return perplexities(base, trees, context)

    monkeypatch.setattr(Scorer, "score", scored)
    monkeypatch.setattr(measuring, "perplexities", read)
    kind = replace(policy, info=replace(policy.info, system="Be kind."))
    changes = {"conditions": ["policy", "words", "verified"], "max_prompts": 1, "max_tokens": 3, "draws": 2}
    settings = QUICK.model_copy(update={**changes, "perplexity": True})
    judge = load_model(judge_directory, "attribute-model")
    evaluate_steering(kind, PROMPTS, settings, tmp_path, Judges(judge, another(judge)))
    assert seen == {"scores": {"Be kind."}, "perplexity": {"Be kind."}}


def test_answers_too_long_for_a_judge_are_counted(policy: SteerModel, judge_directory: Path, tmp_path: Path) -> None:
    """Of one of two judges, whose context holds the two shortest of the five answers to each prompt."""
    judge = load_model(judge_directory, "attribute-model")
    narrow = replace(another(judge), info=replace(another(judge).info, provenance={"settings": {"context": 80}}))
    engine = Scripted(policy, lambda asked: asked)
    record = evaluate_steering(policy, PROMPTS, QUICK, tmp_path, Judges(judge, narrow), engine=engine)
    row = record["conditions"]["policy"]["attributes"]["verbosity"]
    assert row["unscored"] == {"score:": [0] * 5, "second:": [0, 0, 6, 6, 6], "reading_grade": [0] * 5}
    assert record["conditions"]["policy"]["unscored"] == {"score:": 0, "second:": 18, "reading_grade": 0}
    assert row["verdict"] == "too few prompts"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attributes": ["wit"]}, SchemaError, "unknown attribute 'wit'"),
        ({"conditions": ["verified"]}, ConfigError, "needs an attribute model to choose by; give --judge"),
        ({"max_tokens": 2048}, DataError, "no prompt is short enough"),
    ],
)
def test_refusals(
    policy: SteerModel, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate_steering(policy, PROMPTS, QUICK.model_copy(update=changes), tmp_path)


@pytest.mark.parametrize(
    "given", [{"attributes": ["humor", "verbosity", "humor"]}, {"conditions": ["policy", "words", "policy"]}]
)
def test_nothing_is_measured_twice(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    ((flag, values),) = given.items()
    message = f"{values[0]} given more than once in {flag}; give each once"
    with pytest.raises(ValidationError, match=message):
        SteeringSettings(**given)
    flags = [part for value in values for part in (f"--{flag}", value)]
    assert run(["eval", "steering", "policy", *flags]) != 0
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_second_judge_is_another_one(judge_directory: Path) -> None:
    judge = load_model(judge_directory, "attribute-model")
    with pytest.raises(ConfigError, match=f"the same attribute model, {judge.info.fingerprint}; give another one"):
        Judges(judge, load_model(judge_directory, "attribute-model"))


@pytest.mark.parametrize("place", ["judge", "second"])
def test_a_judge_on_another_scale_is_refused(policy: SteerModel, tmp_path: Path, place: str) -> None:
    """At 9 of 0..9 it would seem to miss the top of 0..4 by five points."""
    wide = Schema((Attribute("humor", high=9), Attribute("wit", high=9)))
    judge = new_model("attribute-model", save_tiny_base(tmp_path / "base"), wide)
    with pytest.raises(SchemaError, match=r"scores humor on 0\.\.9, the policy is asked for it on 0\.\.4; use one"):
        evaluate_steering(policy, PROMPTS, QUICK, tmp_path, Judges(**{place: judge}))


def test_a_base_that_is_not_named(policy: SteerModel, tmp_path: Path) -> None:
    nameless = replace(policy, info=replace(policy.info, provenance={}))
    with pytest.raises(ConfigError, match="does not say what base model it was made from"):
        evaluate_steering(nameless, PROMPTS, QUICK.model_copy(update={"perplexity": True}), tmp_path)


def test_the_command(policy: SteerModel, chatml_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.save(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "Why?"}\n')
    command = ["eval", "steering", str(tmp_path / "policy"), "--prompts", str(tmp_path / "prompts.jsonl")]
    flags = ["--max-tokens", "3", "--attributes", "humor", "--conditions", "policy", "--resamples", "100"]
    assert run([*command, *flags, "--no-perplexity"]) == 0
    folder = tmp_path / "policy" / "evaluation"
    assert "not measured" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"steering.json", "steering.html", "answers.jsonl", "figures"}
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "## Evaluation\n\n2 prompts (prompts.jsonl), each" in card
    assert "2 prompts (prompts.jsonl), each" in (folder / "steering.html").read_text()
    assert "held-out" not in card + (folder / "steering.html").read_text()
    assert run([*command, *flags, "--no-perplexity", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["prompts"]["used"], record["prompts"]["source"]["held_out"]) == (2, False)
    assert run([*command[:3], *flags, "--no-perplexity", "--max-prompts", "1"]) == 0
    assert "## Evaluation\n\n1 prompts (those that come with" in (tmp_path / "policy" / "README.md").read_text()
