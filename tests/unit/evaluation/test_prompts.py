"""Prompts to measure steering on, from the files that have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerlm.errors import DataError
from steerlm.evaluation.prompts import read_prompts


def test_prompts_of_files(tmp_path: Path) -> None:
    own = {"id": "c", "messages": [{"role": "user", "text": "Own?"}, {"role": "assistant", "text": "Yes", "parent": 0}]}
    for name, row, found in (
        ("plain", {"prompt": "Hi", "category": "x"}, ["Hi"]),
        ("pool", {"prompt": "Hi", "responses": ["a", "b"]}, ["Hi"]),
        ("own", own, ["Own?"]),
    ):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        assert read_prompts(tmp_path / f"{name}.jsonl") == found
    rows = [{"prompt": "Hi", "paraphrases": ["Hello", "Good day"]}, {"prompt": "Ho", "paraphrases": None}]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_prompts(tmp_path / "other.jsonl") == [("Hi", "Hello", "Good day"), "Ho"]
    for other in ("Hello", [""], [3]):
        (tmp_path / "faulty.jsonl").write_text(json.dumps({"prompt": "Hi", "paraphrases": other}) + "\n")
        with pytest.raises(DataError, match="line 1: paraphrases must be a list of strings with text in them"):
            read_prompts(tmp_path / "faulty.jsonl")
    (tmp_path / "faulty.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": ""}\n')
    with pytest.raises(DataError, match="line 2: prompt must be a string with text in it"):
        read_prompts(tmp_path / "faulty.jsonl")
