"""A benchmark in FastChat's layout with questions, references and judge prompts of its own, one a category."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steerlm.evaluation.mt_bench.questions import CATEGORIES, REFERENCED

IDS = {name: 81 + 10 * index for index, name in enumerate(CATEGORIES)}
_SINGLE = "Q {question} A {answer}"
_PAIR = "Q {question} A {answer_a} B {answer_b}"
_SINGLE_2 = "Q1 {question_1} A1 {answer_1} Q2 {question_2} A2 {answer_2}"
_PAIR_2 = "Q1 {question_1} Q2 {question_2} A {answer_a_1} then {answer_a_2} B {answer_b_1} then {answer_b_2}"
TEMPLATES = {
    "single-v1": _SINGLE,
    "single-math-v1": "R {ref_answer_1} " + _SINGLE,
    "single-v1-multi-turn": _SINGLE_2,
    "single-math-v1-multi-turn": "R1 {ref_answer_1} R2 {ref_answer_2} " + _SINGLE_2,
    "pair-v2": _PAIR,
    "pair-math-v1": "R {ref_answer_1} " + _PAIR,
    "pair-v2-multi-turn": _PAIR_2,
    "pair-math-v1-multi-turn": "R1 {ref_answer_1} R2 {ref_answer_2} " + _PAIR_2,
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def question_rows(per_category: int = 1) -> list[dict[str, Any]]:
    """Questions whose texts name them: `81.1?` and `81.2?`."""
    return [
        {"question_id": first + k, "category": name, "turns": [f"{first + k}.1?", f"{first + k}.2?"]}
        for name, first in IDS.items()
        for k in range(per_category)
    ]


def reference_rows(per_category: int = 1, mark: str = "r") -> list[dict[str, Any]]:
    """References whose texts name them: `r111.1`."""
    return [
        answer_row(row["question_id"], "gpt-4", [f"{mark}{row['question_id']}.{turn}" for turn in (1, 2)])
        for row in question_rows(per_category)
        if row["category"] in REFERENCED
    ]


def answer_row(number: int, model: str, turns: list[str]) -> dict[str, Any]:
    """A row of FastChat's `model_answer`."""
    choices = [{"index": 0, "turns": turns}]
    return {"question_id": number, "answer_id": "x", "model_id": model, "choices": choices, "tstamp": 1.0}


def prompt_rows() -> list[dict[str, Any]]:
    """Judge prompts, whose system text is their name."""
    return [
        {
            "name": name,
            "type": "single" if name.startswith("single") else "pairwise",
            "system_prompt": name,
            "prompt_template": template,
            "output_format": "[[rating]]" if name.startswith("single") else "[[A]]",
        }
        for name, template in TEMPLATES.items()
    ]


def write_bench(root: Path, per_category: int = 1) -> Path:
    """The folder `data` of a FastChat checkout."""
    write_rows(root / "judge_prompts.jsonl", prompt_rows())
    write_rows(root / "mt_bench" / "question.jsonl", question_rows(per_category))
    write_rows(root / "mt_bench" / "reference_answer" / "gpt-4.jsonl", reference_rows(per_category))
    return root


def judgment_row(
    number: int, model: str, turn: int, score: float, text: str | None = None, judge: str = "gpt-4", **more: Any
) -> dict[str, Any]:
    """A row of FastChat's `model_judgment`; its text says the score where no other is given."""
    math = 101 <= number <= 130
    name = f"single{'-math' if math else ''}-v1{'-multi-turn' if turn == 2 else ''}"
    said = f"Rating: [[{score}]]" if text is None else text
    row = {"question_id": number, "model": model, "judge": [judge, name], "user_prompt": "", "judgment": said}
    return {**row, "score": score, "turn": turn, "tstamp": 1.0, **more}
