"""Model cards, read by the library of the hub that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from steerlm.attributes import STEERLM
from steerlm.card import FILE, MARK, prompt_text, refresh_card, write_card
from steerlm.dialects import DIALECTS
from steerlm.errors import ConfigError, ModelError
from steerlm.evaluation.records import evaluation_folder, write_record
from steerlm.models.directory import ModelInfo
from tiny import renderer

INFO = ModelInfo(
    "policy",
    STEERLM,
    "nemo",
    system="Be kind.",
    fingerprint="0123456789abcdef",
    provenance={
        "base": "smollm2",
        "steps": 7,
        "learnt_from": "3 trees",
        "data": "d" * 16,
        "settings": {"epochs": 2.0, "out": "/home/me/secret", "labels": "predicted"},
        "steerlm": "1.0",
    },
    metrics={"loss": 1.25, "gap": 3.0, "attributes": {}},
)
ROW = {
    "verdict": "steers",
    "against_words": {"verdict": "better"},
    "own": "score:humor",
    "within_prompt": {"value": 0.9, "low": 0.8, "high": 1.0},
    "slope": {"value": 0.7, "low": 0.6, "high": 0.8},
    "miss": {"value": 0.5, "low": 0.4, "high": 0.6},
    "ratio_of_length": {"value": 3.0, "low": 2.0, "high": 4.0},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "my-policy"
    directory.mkdir()
    INFO.save(directory)
    return directory


def steering(fingerprint: str) -> dict[str, Any]:
    conditions = {"policy": {"attributes": {"humor": ROW}}}
    return {
        "model": fingerprint,
        "rule": "The rule.",
        "prompts": {"used": 5},
        "conditions": conditions,
        "settings": {"attributes": ["humor"]},
    }


def silent(text: str) -> None:
    raise AssertionError(f"nothing is to be said, but was: {text}")


def test_a_policy(model: Path) -> None:
    text = write_card(model).read_text()
    card = ModelCard(text)
    data = card.data.to_dict()
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data["license"] == "apache-2.0"
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert "steerlm" in data["tags"]
    assert "model-index" not in data
    assert "| verbosity | 0 to 4 | 4 |" in text
    assert "Not yet evaluated" in text
    assert "loss 1.2500" in text
    assert "| epochs | 2.0 |" in text
    assert "secret" not in text
    assert str(model.parent) not in text


def test_results_are_shown_and_those_of_another_state_are_not(model: Path) -> None:
    write_record(evaluation_folder(model), "steering", steering("another"))
    write_card(model)
    assert "Not yet evaluated" in (model / FILE).read_text()
    write_record(evaluation_folder(model), "steering", steering(INFO.fingerprint))
    (evaluation_folder(model) / "figures").mkdir()
    (evaluation_folder(model) / "figures" / "humor.png").write_bytes(b"")
    (evaluation_folder(model) / "figures" / "an_earlier_one.png").write_bytes(b"")
    refresh_card(model, silent)
    text = (model / FILE).read_text()
    figures = "0.90 [0.80, 1.00] | 0.70 [0.60, 0.80] | 0.50 [0.40, 0.60] | 3.0 [2.0, 4.0]"
    assert f"| humor | steers | better | {figures} |" in text
    assert "![response curves](evaluation/figures/humor.png)" in text
    assert "an_earlier_one" not in text
    (found,) = ModelCard(text).data.eval_results
    assert found.metric_value == 0.9
    assert found.metric_name.startswith("humor")


def test_an_attribute_model(tmp_path: Path) -> None:
    info = replace(INFO, kind="attribute-model", provenance={"base": "/data/models/llama"})
    figures = {"pearson": {"value": 0.5, "low": 0.4, "high": 0.6}, "spearman": {"value": 0.4, "low": 0.3, "high": 0.5}}
    part = {"n": 90, "model": {**figures, "mae": {"value": 0.7, "low": 0.6, "high": 0.8}}}
    record = {
        "model": info.fingerprint,
        "responses": 90,
        "conversations": 30,
        "baselines_fitted_on": "the training data",
        "attributes": {"humor": {"overall": part, "sources": {}, "verdict": "beats both baselines"}},
    }
    info.save(tmp_path)
    write_record(evaluation_folder(tmp_path), "attributes", record)
    text = write_card(tmp_path, license_="llama2").read_text()
    card = ModelCard(text)
    assert card.data.license == "llama2"
    assert card.data.base_model is None
    assert card.data.pipeline_tag == "text-classification"
    assert "/data/models" not in text
    assert "made from llama by regression" in " ".join(text.split())
    assert "| humor | 90 | 0.50 [0.40, 0.60] | 0.40 [0.30, 0.50] | 0.70 [0.60, 0.80] | beats both baselines |" in text


def test_a_card_of_somebody_else_stays(model: Path) -> None:
    (model / FILE).write_text("My own words.")
    said: list[str] = []
    refresh_card(model, said.append)
    assert (model / FILE).read_text() == "My own words."
    assert said == [
        f"{model / FILE} was not made by steerlm and stays as it is; `steerlm card {model} --overwrite` makes it anew"
    ]
    with pytest.raises(ModelError, match="was not made by steerlm; move it away, or pass --overwrite"):
        write_card(model)
    assert MARK in write_card(model, overwrite=True).read_text()


def test_a_card_in_another_encoding_stays(model: Path) -> None:
    theirs = "Für mich".encode("latin-1")
    (model / FILE).write_bytes(theirs)
    said: list[str] = []
    refresh_card(model, said.append)
    assert (model / FILE).read_bytes() == theirs
    assert "was not made by steerlm and stays as it is" in said[0]
    assert MARK in write_card(model, overwrite=True).read_text()


def test_a_card_without_a_digest_stays(model: Path) -> None:
    """Earlier versions wrote none, so that nobody knows whether it was edited."""
    (model / FILE).write_text(f"{MARK}. -->\n\n# my-policy\n")
    with pytest.raises(ModelError, match=r"was made by an earlier version, .*; move it away, or pass --overwrite"):
        write_card(model)


@pytest.mark.parametrize("name", ["mit\nor apache-2.0", "mit\r", "mit\n"])
def test_a_licence_is_one_line(model: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a licence is one line"):
        write_card(model, license_=name)
    assert not (model / FILE).exists()


def test_an_edited_card_stays(model: Path) -> None:
    write_card(model)
    refresh_card(model, silent)
    mine = (model / FILE).read_text() + "\n## A section of mine\n"
    (model / FILE).write_text(mine)
    said: list[str] = []
    refresh_card(model, said.append)
    assert (model / FILE).read_text() == mine
    assert "was edited after steerlm made it and stays as it is" in said[0]
    with pytest.raises(ModelError, match="was edited after steerlm made it; move it away, or pass --overwrite"):
        write_card(model)
    assert "A section of mine" not in write_card(model, overwrite=True).read_text()


def test_a_licence_that_was_given_stays_when_the_card_is_made_anew(model: Path) -> None:
    write_card(model, license_="mit")
    write_record(evaluation_folder(model), "steering", steering(INFO.fingerprint))
    refresh_card(model, silent)
    text = (model / FILE).read_text()
    assert "| humor | steers |" in text
    assert ModelCard(text).data.license == "mit"
    assert ModelCard(write_card(model, license_="llama2").read_text()).data.license == "llama2"


@pytest.mark.parametrize(("names", "shown"), [(["words", "policy"], True), (["words"], False)])
def test_the_base_is_not_taken_for_the_policy(model: Path, names: list[str], shown: bool) -> None:
    deaf = {**ROW, "verdict": "does not steer", "within_prompt": {"value": 0.1, "low": 0.0, "high": 0.2}}
    conditions = {name: {"attributes": {"humor": ROW if name == "policy" else deaf}} for name in names}
    write_record(evaluation_folder(model), "steering", {**steering(INFO.fingerprint), "conditions": conditions})
    text = write_card(model).read_text()
    assert "does not steer" not in text
    assert ("| humor | steers |" in text) == shown
    assert [item.metric_value for item in ModelCard(text).data.eval_results or []] == ([0.9] if shown else [])


def test_scores_of_mt_bench(model: Path) -> None:
    score = {
        "model": "m@humor=4",
        "judge": "j",
        "total": {"value": 6.5, "low": 6.0, "high": 7.0},
        "turns": {"1": {"value": 7.0, "low": 6.0, "high": 8.0}, "2": {"value": None, "low": None, "high": None}},
        "counts": {"rated": 9, "missing": 151, "questions": 5},
    }
    write_record(evaluation_folder(model), "mt_bench", {"model": INFO.fingerprint, "scores": [score]})
    text = write_card(model).read_text()
    assert "| m@humor=4 | j | 6.50 [6.00, 7.00] | 7.00 [6.00, 8.00] | – | 5 | 9 | 151 |" in text
    assert "80 questions" not in text
    assert "for comparison" not in text
    others = [score, {**score, "model": "m"}, {**score, "model": "gpt-4"}]
    write_record(evaluation_folder(model), "mt_bench", {"model": INFO.fingerprint, "scores": others})
    assert "Other models are there for comparison." in " ".join(write_card(model).read_text().split())
    write_record(evaluation_folder(model), "mt_bench", {"model": "another", "scores": [score]})
    assert "MT-Bench" not in write_card(model).read_text()


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("turns", [1, 2])
def test_the_prompt_is_that_of_the_chat_template(dialect: str, turns: int) -> None:
    made = renderer("chatml" if dialect == "chatml" else "llama3", dialect)
    line = STEERLM.label_line(STEERLM.defaults)
    messages: list[dict[str, str]] = []
    for turn in range(1, turns + 1):
        number = f" {turn}" if turns > 1 else ""
        messages.append({"role": "user", "content": f"{{prompt{number}}}"})
        if turn < turns:
            messages.append({"role": "assistant", "content": f"{{response{number}}}"})
    shown = made.tokenizer.apply_chat_template(
        messages,
        chat_template=made.chat_template("policy", "Be kind."),
        tokenize=False,
        add_generation_prompt=True,
    )
    assert prompt_text(DIALECTS[dialect], "Be kind.", line, turns) == shown
