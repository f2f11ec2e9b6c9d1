"""What all kinds of sources share: options, files, books, ids, and our own form as a source."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest

from steerlm.conversation import Conversation, Message
from steerlm.errors import ConfigError, DataError
from steerlm.files import write_conversations, write_jsonl
from steerlm.sources import SOURCES, Imported, ImportOptions, Kind, import_conversations

Load = Callable[..., Imported]
ROWS = [
    {"prompt": "p", "response": "short", "helpfulness": 1},
    {"prompt": "p", "response": "a long response", "helpfulness": 2},
    {"prompt": "a long prompt", "response": "short", "helpfulness": 3},
    {"prompt": "q", "response": "short", "helpfulness": 4},
]


def own(name: str, *texts: str, **ratings: float) -> Conversation:
    messages = tuple(
        Message("assistant" if index % 2 else "user", text, index - 1 if index else None, ratings if index % 2 else {})
        for index, text in enumerate(texts)
    )
    return Conversation(name, messages)


def test_the_registry_and_the_type_name_the_same_kinds() -> None:
    assert tuple(SOURCES) == get_args(Kind)
    names = {item.name for item in fields(ImportOptions)}
    assert all(source.refuses <= names for source in SOURCES.values())


def test_long_messages_go_with_what_answers_them(load: Load) -> None:
    imported = load("helpsteer", ROWS, max_characters=8)
    assert [[item.text for item in found.messages] for found in imported.conversations] == [
        ["p", "short"],
        ["q", "short"],
    ]
    assert imported.report.left_out["messages"] == {"longer than 8 characters": 2, "below a message left out": 1}
    assert imported.report.left_out["conversations"] == {"no response left": 1}
    assert imported.report.left_out["ratings"] == {"of messages left out": 2}


def test_a_prompt_whose_responses_are_all_too_long_is_left_out(load: Load) -> None:
    imported = load("helpsteer", ROWS[1:2], max_characters=8)
    assert imported.conversations == ()
    assert imported.report.left_out["messages"] == {"longer than 8 characters": 1, "of conversations left out": 1}


def test_only_the_first_conversations_are_kept_up_to_the_maximum(load: Load) -> None:
    imported = load("helpsteer", ROWS, max_conversations=1)
    assert [item.messages[0].text for item in imported.conversations] == ["p"]
    assert imported.report.left_out["conversations"] == {"beyond the first 1": 2}
    # A conversation that is too long does not use the allowance up.
    assert len(load("helpsteer", ROWS[2:], max_conversations=1, max_characters=8).conversations) == 1


def test_a_system_text_of_ones_own(load: Load) -> None:
    assert {item.system for item in load("helpsteer", ROWS, system="").conversations} == {""}
    with_system = Conversation("a", (Message("user", "x"),), system="old")
    assert load("jsonl", [with_system.to_dict()]).conversations[0].system == "old"
    assert load("jsonl", [with_system.to_dict()], system="new").conversations[0].system == "new"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"min_labels": 0}, "min_labels=0 must be at least 1"),
        ({"max_characters": 0}, "max_characters=0"),
        ({"max_conversations": -1}, "max_conversations=-1"),
        ({"languages": ("en", " ")}, "a language is empty"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ImportOptions(**options)


@pytest.mark.parametrize("kind", ["helpsteer", "nemo", "responses", "jsonl"])
def test_options_for_open_assistant_are_refused_elsewhere(kind: str) -> None:
    flags = ({name: True} for name in ("keep_deleted", "keep_rejected", "drop_unreviewed"))
    for option in ({"languages": ("en",)}, {"min_labels": 2}, *flags):
        with pytest.raises(ConfigError, match=f"{next(iter(option))} means nothing for {kind} data"):
            import_conversations(kind, "unread.jsonl", ImportOptions(**option))  # type: ignore[arg-type]


def test_sources_that_are_none() -> None:
    with pytest.raises(ConfigError, match="unknown kind of source 'csv'; choose one of oasst, helpsteer"):
        import_conversations("csv", "x")
    with pytest.raises(ConfigError, match="no source given"):
        import_conversations("oasst", [])
    with pytest.raises(ConfigError, match="x is given twice"):
        import_conversations("oasst", ["x", "x"])
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        import_conversations("oasst", "gone.jsonl")


def test_compressed_files_and_parquet_read_alike(tmp_path: Path, load: Load) -> None:
    wanted = load("helpsteer", ROWS).conversations
    lines = "".join(json.dumps(item) + "\n" for item in ROWS)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write(lines)
    write_jsonl(tmp_path / "a.jsonl.zst", ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        assert import_conversations("helpsteer", tmp_path / name).conversations == wanted


def test_flat_open_assistant_messages_in_parquet_keep_their_nulls_apart(tmp_path: Path) -> None:
    labels = {"name": ["quality"], "value": [0.5], "count": [3]}
    rows: list[dict[str, Any]] = [
        {"message_id": "a", "parent_id": None, "text": "u", "role": "prompter", "labels": None, "review_result": None},
        {
            "message_id": "b",
            "parent_id": "a",
            "text": "r",
            "role": "assistant",
            "labels": labels,
            "review_result": True,
        },
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    [conversation] = import_conversations("oasst", tmp_path / "m.parquet").conversations
    assert conversation.messages[1].ratings == {"quality": 2.0}
    assert conversation.id == "a"


def test_several_files_are_one_source(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "1.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "2.jsonl", ROWS[1:])
    imported = import_conversations("helpsteer", [tmp_path / "1.jsonl", tmp_path / "2.jsonl"])
    assert len(imported.conversations[0].responses) == 2
    assert imported.report.read["records"] == 4


def test_lines_that_are_no_json_or_no_object(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "p", "response": "r"}\n\n{"prompt": \n[1]\n"\xff"\n')
    with pytest.raises(DataError, match=r"a\.jsonl: line 3: not valid JSON at column"):
        import_conversations("helpsteer", path)
    report = import_conversations("helpsteer", path, ImportOptions(skip_faulty=True)).report
    assert (report.read["records"], report.left_out["records"]["faulty"]) == (4, 3)
    assert [fault.split(": ", 1)[1] for fault in report.faults][1:] == [
        "line 4: expected a JSON object, found a list",
        "line 5: not valid UTF-8 at byte 1 of the line",
    ]


def test_only_the_first_faults_are_told_but_all_are_counted(load: Load) -> None:
    report = load("helpsteer", [{}] * 30, skip_faulty=True).report
    assert (len(report.faults), report.left_out["records"]["faulty"]) == (20, 30)


def test_the_books_say_it_in_words_and_in_json(load: Load) -> None:
    report = load("helpsteer", [*ROWS, {}], max_characters=8, skip_faulty=True).report
    lines = str(report).splitlines()
    assert lines[:3] == [
        "read 5 records, 8 messages, 4 ratings",
        "kept 2 conversations, 4 messages, 2 responses, 2 rated responses, 2 ratings",
        "joined 1 messages with equal ones",
    ]
    assert "left out 1 records: faulty" in lines
    assert lines[-1].startswith("faulty: ")
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["left_out"]["messages"] == {"longer than 8 characters": 2, "below a message left out": 1}


def test_our_own_form_goes_through_with_all_it_holds(load: Load) -> None:
    before = Conversation(
        "a",
        (Message("user", "x"), Message("assistant", "y", 0, {"quality": 1.5}, {"humor": 2.25}, "f00")),
        "system",
        "somewhere",
    )
    assert load("jsonl", [before.to_dict()]).conversations == (before,)
    imported = load("jsonl", [before.to_dict()], attributes=("humor",))
    assert imported.conversations[0].messages[1].ratings == {}
    assert imported.conversations[0].messages[1].predicted == {"humor": 2.25}
    assert imported.report.left_out["ratings"] == {"of attributes not taken": 1}


def test_our_own_form_may_hold_prompts_without_responses(load: Load) -> None:
    assert len(load("jsonl", [own("a", "only a prompt").to_dict()]).conversations) == 1


def test_an_id_that_two_files_use_is_a_fault(tmp_path: Path) -> None:
    write_conversations(tmp_path / "1.jsonl", [own("a", "x", "y")])
    write_conversations(tmp_path / "2.jsonl", [own("b", "x", "y"), own("a", "z", "y")])
    with pytest.raises(
        DataError, match=r"2\.jsonl: line 2: conversation 'a': the id was already used at .*1\.jsonl: line 1"
    ):
        import_conversations("jsonl", [tmp_path / "1.jsonl", tmp_path / "2.jsonl"])


def test_faults_of_our_own_form_are_told_all_at_once(load: Load) -> None:
    record = {
        "id": "a",
        "messages": [{"role": "robot", "text": "x"}, {"role": "user", "text": "y", "ratings": {"humor": 7}}],
    }
    with pytest.raises(DataError, match=r"line 1: conversation 'a': .*role='robot'.*humor=7 is outside"):
        load("jsonl", [record])
