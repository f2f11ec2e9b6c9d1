"""Which judgments of a scripted judge are kept, and which are made again."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from chat_server import ChatServer
from judging import judge, settings, seven, singles, write_answers
from small_bench import answer_row, judgment_row, question_rows, write_rows
from steerlm.errors import DataError
from steerlm.evaluation.mt_bench.layouts import read_judgments
from steerlm.evaluation.mt_bench.questions import Benchmark


def test_judgments_are_made_of_what_was_answered(bench: Benchmark, tmp_path: Path) -> None:
    """Answers made anew under the same name are not given the old ones' grades."""
    write_answers(tmp_path, "m", "n")
    with ChatServer(seven) as server:
        judge(bench, settings(server), tmp_path)
        again = judge(bench, settings(server), tmp_path)
        assert (again.made, again.kept, len(server.requests)) == (0, 32, 32)
        write_answers(tmp_path, "m", mark="new ")
        with pytest.raises(
            DataError, match=r"16 judgments, the first of question 81, turn 1, of m, are of other answers"
        ):
            judge(bench, settings(server), tmp_path)
        report = judge(bench, settings(server), tmp_path, fresh=True)
    assert (report.made, report.kept) == (16, 16)
    found = singles(report.file)
    assert len(found) == 32
    assert all(("new " in item.row["user_prompt"]) == (item.model == "m") for item in found)


@pytest.mark.parametrize("mode", ["single", "pair-all"])
def test_judgments_are_made_of_what_the_judge_was_asked(bench: Benchmark, tmp_path: Path, mode: str) -> None:
    """In the second turn MT-Bench's instruction stands in the system prompt, which rows do not hold."""
    write_answers(tmp_path, "m", "n")
    name = {"single": "single-v1-multi-turn", "pair-all": "pair-v2-multi-turn"}[mode]
    strict = replace(bench.prompts[name], system="Be strict.")
    other = replace(bench, prompts={**bench.prompts, name: strict})
    with ChatServer(seven) as server:
        made = judge(bench, settings(server, mode=mode), tmp_path).made
        changes = [
            (bench, settings(server, mode=mode, judge_max_tokens=9), made),
            (bench, settings(server, mode=mode, judge_body='{"reasoning_effort": "low"}'), made),
            (other, settings(server, mode=mode), 5 * made // 16),
        ]
        for prompts, chosen, stale in changes:
            with pytest.raises(DataError, match=rf"{stale} judgments, .* settings of the judge than these"):
                judge(prompts, chosen, tmp_path)
        again = judge(other, settings(server, mode=mode), tmp_path, fresh=True)
    assert (again.made, again.kept) == (5 * made // 16, 11 * made // 16)
    assert sum(body["messages"][0]["content"] == "Be strict." for body in server.requests[-again.made :]) == again.made


def test_published_judgments_are_known_by_their_text(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "m")
    row = judgment_row(81, "m", 1, 3, judge="j", user_prompt="Q 81.1? A m81.1")
    write_rows(tmp_path / "model_judgment" / "j_single.jsonl", [row])
    with ChatServer(seven) as server:
        report = judge(bench, settings(server), tmp_path)
    assert (report.made, report.kept) == (15, 1)


def test_another_judge_has_a_file_of_its_own_and_does_not_disturb(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "m")
    path = tmp_path / "model_judgment" / "j_single.jsonl"
    write_rows(path, [judgment_row(81, "m", 1, 3, judge="gpt-4"), judgment_row(81, "absent", 1, 3, judge="j")])
    with ChatServer(seven) as server:
        report = judge(bench, settings(server), tmp_path)
    assert (report.made, report.kept) == (16, 0)
    assert len(singles(path)) == 18


def test_unrated_judgments_are_asked_for_again_on_request(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "m")
    with ChatServer(lambda body: "I refuse.") as server:
        first = judge(bench, settings(server), tmp_path)
        assert (first.made, first.unrated) == (16, 16)
        assert judge(bench, settings(server), tmp_path).made == 0
    with ChatServer(seven) as server:
        again = judge(bench, settings(server, retry_unrated=True), tmp_path)
        assert (again.made, again.unrated) == (16, 0)
        assert judge(bench, settings(server, retry_unrated=True), tmp_path).made == 0
    assert Counter(item.score for item in singles(again.file)) == {-1: 16, 7: 16}


def test_a_judgment_of_an_answer_that_is_no_more(bench: Benchmark, tmp_path: Path) -> None:
    """The second turn of a question was answered and judged; answered anew, it was refused."""
    write_answers(tmp_path, "m")
    with ChatServer(seven) as server:
        chosen = settings(server)
        judge(bench, chosen, tmp_path)
        rows = [answer_row(row["question_id"], "m", [f"m{row['question_id']}.1"]) for row in question_rows()]
        write_rows(tmp_path / "model_answer" / "m.jsonl", rows)
        with pytest.raises(DataError, match=r"8 judgments, .* 81, turn 2, of m, are of answers that are not.*--fresh"):
            judge(bench, chosen, tmp_path)
        report = judge(bench, chosen, tmp_path, fresh=True)
    assert (report.made, report.kept) == (0, 8)
    assert {item.turn for item in singles(report.file)} == {1}


def test_a_comparison_with_an_answer_that_is_no_more(bench: Benchmark, tmp_path: Path) -> None:
    """Of one of two models, the answers to all questions but one are gone; what others judged is left alone."""
    write_answers(tmp_path, "m", "n")
    with ChatServer(lambda body: "[[C]]") as server:
        chosen = settings(server, mode="pair-all")
        path = judge(bench, chosen, tmp_path).file
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        published = {key: value for key, value in rows[-1].items() if key != "asked"}
        write_rows(path, [*rows[:-1], published])
        assert published["question_id"] != 81
        write_rows(tmp_path / "model_answer" / "n.jsonl", [answer_row(81, "n", ["n81.1", "n81.2"])])
        with pytest.raises(DataError, match=r"13 judgments, .*, of m and n, are of answers that are not"):
            judge(bench, chosen, tmp_path)
        report = judge(bench, chosen, tmp_path, fresh=True)
    assert (report.made, report.kept) == (0, 2)
    assert read_judgments([path])[1][-1].row == published


def test_rows_that_name_the_pair_the_other_way_round_are_kept(bench: Benchmark, tmp_path: Path) -> None:
    """FastChat names the baseline second; its first text has model_1 as assistant A."""
    write_answers(tmp_path, "a", "b")
    row = {
        "question_id": 81,
        "model_1": "b",
        "model_2": "a",
        "g1_winner": "tie",
        "g2_winner": "tie",
        "judge": ["j", "pair-v2"],
        "g1_user_prompt": "Q 81.1? A b81.1 B a81.1",
        "g1_judgment": "[[C]]",
        "g2_user_prompt": "Q 81.1? A a81.1 B b81.1",
        "g2_judgment": "[[C]]",
        "turn": 1,
    }
    write_rows(tmp_path / "model_judgment" / "j_pair.jsonl", [row])
    with ChatServer(lambda body: "[[C]]") as server:
        report = judge(bench, settings(server, mode="pair-all"), tmp_path)
        assert (report.made, report.kept) == (15, 1)
        write_answers(tmp_path, "b", mark="new ")
        with pytest.raises(DataError, match=r"16 judgments, .* are of other answers"):
            judge(bench, settings(server, mode="pair-all"), tmp_path)
