"""Preference files of both layouts, and what the weights do."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steerlm.errors import DataError
from steerlm.evaluation.preferences import is_preference_file, read_preferences

HELPSTEER = [
    {"prompt": "Hi", "response_1": "one", "response_2": "two", "preference_strength": -3},
    {"prompt": "Hi", "response_1": "one", "response_2": "two", "preference_strength": 1},
    {"prompt": "Hi", "response_1": "one", "response_2": "two", "preference_strength": 0},
    {
        "prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAnd?",
        "response_1": "a",
        "response_2": "b",
        "preference_strength": 2,
    },
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_helpsteer2_preference(tmp_path: Path) -> None:
    path = write(tmp_path / "preference.jsonl", HELPSTEER)
    assert is_preference_file(path)
    found = read_preferences(path)
    assert found.ties == 1
    texts = [[pair.conversation.messages[index].text for index in pair.pair] for pair in found.pairs]
    assert texts == [["one", "two"], ["two", "one"], ["b", "a"]]
    assert [message.text for message in found.pairs[2].conversation.messages[:3]] == ["Hi", "Hello", "And?"]
    assert {pair.subset for pair in found.pairs} == {"unnamed"}


def test_rewardbench_in_parquet(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "prompt": "Hi", "chosen": "good", "rejected": "bad", "subset": "alpacaeval-easy"},
        {"id": 2, "prompt": "Ho", "chosen": "fine", "rejected": "no", "subset": "hep-python"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bench.parquet")
    assert is_preference_file(tmp_path / "bench.parquet")
    found = read_preferences(tmp_path / "bench.parquet")
    assert [pair.subset for pair in found.pairs] == ["alpacaeval-easy", "hep-python"]
    assert [message.text for message in found.pairs[0].conversation.messages] == ["Hi", "good", "bad"]
    assert found.pairs[0].conversation.children[0] == (1, 2)


def test_lists_of_messages(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, friend"}],
        "rejected": [{"role": "assistant", "content": "What?"}],
    }
    (pair,) = read_preferences(write(tmp_path / "lists.jsonl", [row])).pairs
    assert pair.conversation.system == "Be kind."
    assert [message.text for message in pair.conversation.messages] == ["Hi", "Hello, friend", "What?"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "chosen": "a"}, "line 1: rejected is missing"),
        ({"prompt": "Hi", "chosen": "a", "rejected": 3}, "line 1: rejected must be a string, found a number"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "line 1: prompt must be a string, found a number"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "must end with a turn of the user"),
        ({"prompt": "Hi", "response_1": "a", "response_2": "b"}, "preference_strength must be a number from -3"),
        ({**HELPSTEER[0], "preference_strength": 0}, "no row prefers one of its responses"),
        ({"prompt": [{"role": "bot", "content": ""}], "chosen": "a", "rejected": "b"}, "role='bot' must be user or"),
    ],
)
def test_faulty_rows(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_preferences(write(tmp_path / "faulty.jsonl", [row]))


def test_rated_rows_are_no_preferences(tmp_path: Path) -> None:
    assert not is_preference_file(write(tmp_path / "rated.jsonl", [{"prompt": "Hi", "response": "a", "humor": 1}]))
