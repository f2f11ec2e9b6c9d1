"""What model cards say of evaluations: of which model, in what words, beside what it had to beat."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from carded import INFO, ROW, cited, silent, steering
from steerlm.card import FILE, refresh_card, write_card
from steerlm.evaluation.records import evaluation_folder, write_record


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
        "swapped_outputs": {"found": False, "order": {}, "gain": None, "unchecked": None},
    }


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


@pytest.mark.parametrize(
    ("source", "called", "kind"),
    [
        ({}, "prompts", "prompts"),
        ({"source": {"name": "mine.jsonl", "held_out": False}}, "prompts (mine.jsonl)", "prompts"),
        ({"source": {"name": "of the data", "held_out": True}}, "held-out prompts (of the data)", "held-out-prompts"),
    ],
)
def test_only_prompts_that_are_held_out_are_called_so(
    tmp_path: Path, source: dict[str, Any], called: str, kind: str
) -> None:
    INFO.save(tmp_path)
    record = steering(INFO.fingerprint)
    record["prompts"] |= source
    write_record(evaluation_folder(tmp_path), "steering", record)
    text = write_card(tmp_path).read_text()
    assert f"\n5 {called}, each answered" in text
    (found,) = ModelCard(text).data.eval_results or []
    assert (found.dataset_type, found.dataset_name) == (kind, called)


def test_results_are_shown_and_those_of_another_state_are_not(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    write_record(evaluation_folder(tmp_path), "steering", steering("another"))
    write_card(tmp_path)
    assert "Not yet evaluated" in (tmp_path / FILE).read_text()
    write_record(evaluation_folder(tmp_path), "steering", steering(INFO.fingerprint))
    (evaluation_folder(tmp_path) / "figures").mkdir()
    (evaluation_folder(tmp_path) / "figures" / "humor.png").write_bytes(b"")
    (evaluation_folder(tmp_path) / "figures" / "an_earlier_one.png").write_bytes(b"")
    refresh_card(tmp_path, silent)
    text = (tmp_path / FILE).read_text()
    figures = "0.90 [0.80, 1.00] | 0.70 [0.60, 0.80] | 0.50 [0.40, 0.60] | 3.0 [2.0, 4.0]"
    assert f"| humor | steers | better | {figures} |" in text
    assert "![response curves](evaluation/figures/humor.png)" in text
    assert "an_earlier_one" not in text
    (found,) = ModelCard(text).data.eval_results
    assert found.metric_value == 0.9
    assert found.metric_name.startswith("humor")


@pytest.mark.parametrize(("names", "shown"), [(["words", "policy"], True), (["words"], False)])
def test_the_base_is_not_taken_for_the_policy(tmp_path: Path, names: list[str], shown: bool) -> None:
    INFO.save(tmp_path)
    deaf = {**ROW, "verdict": "does not steer", "within_prompt": {"value": 0.1, "low": 0.0, "high": 0.2}}
    conditions = {name: {"attributes": {"humor": ROW if name == "policy" else deaf}} for name in names}
    write_record(evaluation_folder(tmp_path), "steering", {**steering(INFO.fingerprint), "conditions": conditions})
    text = write_card(tmp_path).read_text()
    assert "does not steer" not in text
    assert ("| humor | steers |" in text) == shown
    assert [item.metric_value for item in ModelCard(text).data.eval_results or []] == ([0.9] if shown else [])


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
    record["swapped_outputs"] |= {"unchecked": "too few conversations"}
    write_record(evaluation_folder(tmp_path), "attributes", record)
    assert "\nWhether outputs are mixed up is not checked: too few conversations.\n" in write_card(tmp_path).read_text()


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


def test_scores_of_mt_bench(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    score = {
        "model": "m@humor=4",
        "judge": "j",
        "total": {"value": 6.5, "low": 6.0, "high": 7.0},
        "turns": {"1": {"value": 7.0, "low": 6.0, "high": 8.0}, "2": {"value": None, "low": None, "high": None}},
        "total_without_doubtful_references": estimate(7.25),
        "counts": {"rated": 9, "missing": 151, "questions": 5, "doubtful": 2},
        "categories": {"writing": estimate(8.25), "math": estimate(math.nan), "stem": estimate(3.5)},
    }
    write_record(evaluation_folder(tmp_path), "mt_bench", {"model": INFO.fingerprint, "scores": [score]})
    text = write_card(tmp_path).read_text()
    assert "| m@humor=4 | j | 6.50 [6.00, 7.00] | 7.00 [6.00, 8.00] | – | 5 | 9 | 151 |" in text
    assert "\n| model | judge | writing | stem |\n|---|---|---|---|\n| m@humor=4 | j | 8.25 | 3.50 |\n" in text
    doubtful = "m@humor=4 by j: grades that go by a reference answer known to be wrong: 2; total without them"
    assert f"\n\n{doubtful}: 7.25 [7.15, 7.35].\n\n" in text
    assert "80 questions" not in text
    assert "mt_bench.png" not in text
    assert cited(text) == ["2310.05344", "2311.09528", "2306.05685"]
    assert "for comparison" not in text
    (evaluation_folder(tmp_path) / "mt_bench.png").write_bytes(b"")
    others = [score, {**score, "model": "m"}, {**score, "model": "gpt-4", "categories": {"math": estimate(9.0)}}]
    write_record(evaluation_folder(tmp_path), "mt_bench", {"model": INFO.fingerprint, "scores": others})
    text = write_card(tmp_path).read_text()
    assert "Other models are there for comparison." in " ".join(text.split())
    assert "![MT-Bench by category](evaluation/mt_bench.png)" in text
    assert "| m | j | 8.25 | 3.50 | – |\n| gpt-4 | j | – | – | 9.00 |\n" in text
    write_record(evaluation_folder(tmp_path), "mt_bench", {"model": "another", "scores": [score]})
    assert "MT-Bench" not in write_card(tmp_path).read_text()
