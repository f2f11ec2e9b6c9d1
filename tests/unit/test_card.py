"""Model cards, read by the library of the hub that shows them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from steerlm.attributes import STEERLM, Schema
from steerlm.card import FILE, MARK, prompt_text, refresh_card, write_card
from steerlm.dialects import DIALECTS
from steerlm.errors import ConfigError, ModelError
from steerlm.evaluation.records import evaluation_folder, write_record
from steerlm.models.directory import Base, Kind, ModelInfo
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


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def check(name: str, holds: bool, tolerance: float = 0.001) -> dict[str, Any]:
    """A difference of 0.9 or 1.1 times what is tolerated."""
    difference = tolerance * (0.9 if holds else 1.1)
    return {"name": name, "responses": 9, "difference": difference, "tolerance": tolerance, "holds": holds}


def rated() -> dict[str, Any]:
    """What `steerlm eval attributes` finds on rated data."""
    figures = {"pearson": 0.5, "spearman": 0.4, "mae": 0.7, "rmse": 0.9}
    part = {
        "n": 90,
        "model": {name: estimate(value) for name, value in figures.items()},
        "mean": {"rmse": 0.95},
        "ridge": {"rmse": 0.8},
    }
    row = {
        "overall": part,
        "sources": {},
        "calibration": [
            {"level": 0, "n": 70, "predicted": 0.1, "rated": estimate(0.5)},
            {"level": 1, "n": 20, "predicted": 1.1, "rated": estimate(1.2)},
        ],
        "ranking": {
            "pairs": 40,
            "model": estimate(0.6),
            "length": estimate(0.7),
            "verdict": "does not beat length alone",
        },
        "verdict": "does not beat a ridge regression on length and text statistics",
    }
    return {
        "responses": 90,
        "conversations": 30,
        "baselines_fitted_on": "the training data",
        "attributes": {"humor": row},
        "swapped_outputs": {"found": False, "order": {}, "gain": None},
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


@pytest.mark.parametrize("kind", ["policy", "attribute-model"])
def test_how_to_run_an_adapter(tmp_path: Path, kind: Kind) -> None:
    """Its directory has no weights of the base, so that what takes plain weights cannot load it."""
    directory = tmp_path / "adapter"
    directory.mkdir()
    replace(INFO, kind=kind, base=Base("org/base", "b" * 16)).save(directory)
    text = write_card(directory).read_text()
    assert ModelCard(text).data.to_dict()["library_name"] == "peft"
    assert "AutoModelFor" not in text
    assert "vllm serve adapter`" not in text
    if kind == "policy":
        assert 'model = AutoPeftModelForCausalLM.from_pretrained("adapter")\n' in text
        assert "steerlm export hf adapter --out adapter-merged\nvllm serve adapter-merged\n" in text
        assert 'model="adapter-merged"' in text
    else:
        loaded = 'AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=len(names))'
        assert f"model = {loaded}\n" in text
        assert '"humor", "creativity"' in text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "card", "exec")


@pytest.mark.parametrize(
    ("source", "called", "kind"),
    [
        ({}, "prompts", "prompts"),
        ({"source": {"name": "mine.jsonl", "held_out": False}}, "prompts (mine.jsonl)", "prompts"),
        ({"source": {"name": "of the data", "held_out": True}}, "held-out prompts (of the data)", "held-out-prompts"),
    ],
)
def test_only_prompts_that_are_held_out_are_called_so(
    model: Path, source: dict[str, Any], called: str, kind: str
) -> None:
    record = steering(INFO.fingerprint)
    record["prompts"] |= source
    write_record(evaluation_folder(model), "steering", record)
    text = write_card(model).read_text()
    assert f"\n5 {called}, each answered" in text
    (found,) = ModelCard(text).data.eval_results or []
    assert (found.dataset_type, found.dataset_name) == (kind, called)


def test_the_data_are_named(tmp_path: Path) -> None:
    """Only what was imported from the hub is a data set there; a path or a name of one's own may look like one."""
    sources = ["../secret", "data/train.jsonl", "hub:OpenAssistant/oasst1", "hub:no set", "mine", "team/forum"]
    named = {"sources": sources, "annotated_by": ["a77e"]}
    replace(INFO, provenance=INFO.provenance | named).save(tmp_path)
    text = write_card(tmp_path).read_text()
    assert ModelCard(text).data.datasets == ["OpenAssistant/oasst1"]
    assert "Sources of the data: ../secret, data/train.jsonl, hub:OpenAssistant/oasst1" in text
    assert "Annotated by the attribute model `a77e`." in text
    assert cited(text) == ["2310.05344", "2311.09528", "2304.07327"]


def cited(text: str) -> list[str]:
    """The papers in the card's BibTeX, whose braces are balanced."""
    (entries,) = re.findall(r"```bibtex\n(.*?)```", text, re.DOTALL)
    assert entries.count("{") == entries.count("}")
    return re.findall(r"eprint = \{(.*?)\}", entries)


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
    record = {"model": info.fingerprint, **rated(), "invariance": [check("packing", True)]}
    info.save(tmp_path)
    write_record(evaluation_folder(tmp_path), "attributes", record)
    text = write_card(tmp_path, license_="llama2").read_text()
    card = ModelCard(text)
    assert card.data.license == "llama2"
    assert card.data.base_model is None
    assert card.data.pipeline_tag == "text-classification"
    assert "/data/models" not in text
    assert "made from llama by regression" in " ".join(text.split())
    figures = "0.50 [0.40, 0.60] | 0.40 [0.30, 0.50] | 0.70 [0.60, 0.80] | 0.90 [0.80, 1.00] | 0.95 | 0.80"
    assert f"| humor | 90 | {figures} | does not beat a ridge regression on length and text statistics |" in text
    assert "| humor | 0: 0.50 (70), 1: 1.20 (20) |" in text
    assert "| humor | 40 | 0.60 [0.50, 0.70] | – | 0.70 [0.60, 0.80] | does not beat length alone |" in text
    said = "In float32 a response is given the same scores, to within 0.001, whatever is scored beside it."
    assert said in text
    assert "bfloat16" not in text
    record["invariance"].append(check("rounding (bfloat16)", True, 0.25))
    write_record(evaluation_folder(tmp_path), "attributes", record)
    text = write_card(tmp_path).read_text()
    assert f"{said}\nIn bfloat16 they differ from those by up to 0.2250.\n" in text
    record["invariance"][-1] = check("rounding (bfloat16)", False, 0.25)
    write_record(evaluation_folder(tmp_path), "attributes", record)
    text = write_card(tmp_path).read_text()
    assert "up to 0.2750, **which is more than the 0.25 that rounding may make**.\n" in text
    assert "mixed up" not in text


def test_an_attribute_model_with_faults(tmp_path: Path) -> None:
    info = replace(INFO, kind="attribute-model")
    swapped = {"found": True, "order": {"humor": "quality", "quality": "humor"}, "gain": estimate(0.3)}
    record = {
        "model": info.fingerprint,
        **rated(),
        "swapped_outputs": swapped,
        "invariance": [check("packing", False), check("order", True)],
    }
    info.save(tmp_path)
    write_record(evaluation_folder(tmp_path), "attributes", record)
    text = write_card(tmp_path).read_text()
    assert "(humor by the output of quality, quality by the output of humor)" in text
    assert "**Scores depend on what is scored beside a response**: packing, by up to 0.0011.\n" in text
    record["invariance"][0]["difference"] = math.inf
    write_record(evaluation_folder(tmp_path), "attributes", record)
    assert "beside a response**: packing, where some have no score.\n" in write_card(tmp_path).read_text()


def test_an_attribute_model_that_was_compared_with_preferences_only(tmp_path: Path) -> None:
    info = replace(INFO, kind="attribute-model")
    accuracy = {"weighted sum": estimate(0.4), "humor": estimate(0.5), "length": estimate(0.9)}
    found = {"pairs": 12, "accuracy": accuracy, "verdict": "does not beat length alone"}
    info.save(tmp_path)
    record = {"model": info.fingerprint, "preferences": {"p.jsonl": found}}
    write_record(evaluation_folder(tmp_path), "attributes", record)
    text = write_card(tmp_path).read_text()
    row = "| p.jsonl | 12 | 0.40 [0.30, 0.50] | – | 0.90 [0.80, 1.00] | does not beat length alone |"
    assert row in text
    assert "Not yet evaluated" not in text


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
    assert cited(text) == ["2310.05344", "2311.09528", "2306.05685"]
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


def test_no_text_of_a_model_breaks_its_card(tmp_path: Path) -> None:
    """As a reader of Markdown sees it: the table has its rows and cells, the prompts their blocks."""
    described = [
        replace(item, description="dry | wet\nhumour \\") if item.name == "humor" else item for item in STEERLM
    ]
    system = "Answer so:\n```\n# Injected\n```"
    (tmp_path / "model").mkdir()
    replace(INFO, schema=Schema(tuple(described)), system=system).save(tmp_path / "model")
    write_card(tmp_path / "model")
    text = ModelCard.load(tmp_path / "model" / FILE).text
    read = MarkdownIt("commonmark").enable("table").parse(text)
    assert not [token for token in read if token.type == "inline" and "Injected" in token.content]
    assert len([token for token in read if token.type == "fence" and "# Injected" in token.content]) == 2
    table = read[: next(place for place, token in enumerate(read) if token.type == "table_close")]
    cells = [table[place + 1].content for place, token in enumerate(table) if token.type == "td_open"]
    assert len(cells) == 5 * len(STEERLM)
    assert [cell for cell in cells if cell.startswith("dry")] == ["dry | wet humour \\\\"]
