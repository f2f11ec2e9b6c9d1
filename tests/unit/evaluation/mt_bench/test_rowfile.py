"""Files that grow row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from small_bench import answer_row, write_rows
from steerlm.errors import DataError
from steerlm.evaluation.mt_bench.layouts import Answer
from steerlm.evaluation.mt_bench.rowfile import RowFile

ROWS = [answer_row(number, "m", ["a", "b"]) for number in (83, 81, 82)]


def test_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.jsonl"
    with RowFile(path, Answer.from_row) as file:
        for row in ROWS:
            file.append(row)
        assert path.read_bytes().count(b"\n") == 3
    with RowFile(path, Answer.from_row) as file:
        assert file.rows == ROWS
        file.replace(sorted(ROWS, key=lambda row: row["question_id"]))
        file.append(answer_row(84, "m", []))
    numbers = [json.loads(line)["question_id"] for line in path.read_text().splitlines()]
    assert numbers == [81, 82, 83, 84]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_short_is_taken_away(tmp_path: Path, cut: int) -> None:
    path = write_rows(tmp_path / "m.jsonl", ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[0][:cut])
    with RowFile(path, Answer.from_row) as file:
        assert file.rows == ROWS
    assert path.read_bytes() == whole


def test_a_first_line_cut_short_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"question')
    with RowFile(path, Answer.from_row) as file:
        assert file.rows == []
    assert path.read_bytes() == b""


def test_a_last_line_without_its_end_is_a_row(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", ROWS)
    path.write_bytes(path.read_bytes()[:-1])
    with RowFile(path, Answer.from_row) as file:
        file.append(ROWS[0])
    assert len(path.read_bytes().splitlines()) == 4


def test_numbers_of_questions_are_numbers_however_they_are_spelt(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", [{**row, "question_id": str(row["question_id"])} for row in ROWS])
    with RowFile(path, Answer.from_row) as file:
        assert file.rows == ROWS


def test_what_is_no_row_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", [ROWS[0], {"question_id": 1}])
    with pytest.raises(DataError, match=r"m\.jsonl: line 2: .*'choices' is missing"):
        RowFile(path, Answer.from_row)
    with RowFile(write_rows(path, ROWS), Answer.from_row):  # the lock is free again
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with RowFile(path, Answer.from_row), pytest.raises(DataError, match="another process is writing"):
        RowFile(path, Answer.from_row)
    with RowFile(tmp_path / "m.jsonl", Answer.from_row):
        pass
