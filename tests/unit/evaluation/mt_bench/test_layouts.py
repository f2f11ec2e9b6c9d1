"""Rows of FastChat's files as they are published, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from small_bench import answer_row, judgment_row, write_rows
from steerlm.errors import DataError
from steerlm.evaluation.mt_bench.layouts import file_name, read_answers, read_judgments

PAIR = {
    "question_id": 81,
    "model_1": "a",
    "model_2": "b",
    "g1_winner": "model_1",
    "g2_winner": "tie",
    "judge": ["gpt-4", "pair-v2"],
    "g1_user_prompt": "",
    "g1_judgment": "[[A]]",
    "g2_user_prompt": "",
    "g2_judgment": "[[C]]",
    "turn": 1,
    "tstamp": 1.0,
}


def test_judgments_of_both_kinds_from_several_files(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "1.jsonl", [judgment_row(81, "m", 1, 7), PAIR])
    two = write_rows(tmp_path / "2.jsonl", [judgment_row(101, "m", 2, -1, "")])
    singles, pairs = read_judgments([one, two])
    assert [(item.question_id, item.turn, item.score, item.prompt) for item in singles] == [
        (81, 1, 7, "single-v1"),
        (101, 2, -1, "single-math-v1-multi-turn"),
    ]
    assert [(item.models, item.winners) for item in pairs] == [(("a", "b"), ("model_1", "tie"))]


def test_of_several_answers_to_a_question_the_last_counts(tmp_path: Path) -> None:
    rows = [answer_row(81, "m", ["old", "old"]), answer_row(82, "m", ["x", "y"]), answer_row(81, "m", ["new", "new"])]
    answers = read_answers(write_rows(tmp_path / "m.jsonl", rows))
    assert {answer.question_id: answer.turns for answer in answers} == {81: ("new", "new"), 82: ("x", "y")}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({**PAIR, "judge": "gpt-4"}, "too many values"),
        ({**PAIR, "g2_winner": None}, "None is no text"),
        ({key: value for key, value in PAIR.items() if key != "g1_winner"}, "'g1_winner' is missing"),
        (judgment_row(81, "m", 3, 5), "turn 3 is neither 1 nor 2"),
        ({**judgment_row(81, "m", 1, 5), "score": "high"}, "could not convert"),
        ({"question_id": 81}, "'judge' is missing"),
    ],
)
def test_faults_have_a_place(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    path = write_rows(tmp_path / "x.jsonl", [PAIR, row])
    with pytest.raises(DataError, match=rf"x\.jsonl: line 2: .*{fault}"):
        read_judgments([path])


def test_an_answer_without_choices(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"question_id": 81, "model_id": "m", "choices": []}])
    with pytest.raises(DataError, match=r"line 1: .*no choice"):
        read_answers(path)


def test_names_of_the_hub_make_no_folders() -> None:
    assert file_name("nvidia/Llama2-70B-SteerLM-Chat") == "nvidia--Llama2-70B-SteerLM-Chat"
