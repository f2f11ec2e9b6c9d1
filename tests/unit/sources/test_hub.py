"""References to the Hugging Face hub, with a stand-in for the network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from steerlm.errors import DataError
from steerlm.sources import import_conversations
from steerlm.sources.hub import HubReference, fetch, parse_reference


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hub:a/b", HubReference("a/b")),
        ("hub:nvidia/HelpSteer2:validation", HubReference("nvidia/HelpSteer2", split="validation")),
        ("hub:a/b@v1.0:test", HubReference("a/b", "v1.0", "test")),
        ("hub:a/b@0f3e/x/y.jsonl.gz", HubReference("a/b", "0f3e", "train", "x/y.jsonl.gz")),
        ("hub:Open-Assistant/oasst_1.0/f.jsonl", HubReference("Open-Assistant/oasst_1.0", file="f.jsonl")),
    ],
)
def test_references(text: str, wanted: HubReference) -> None:
    assert parse_reference(text) == wanted


@pytest.mark.parametrize("text", ["hub:", "hub:a", "hub:a/b:", "hub:a/b@", "hub:a b/c", "hub:a/b:x/y"])
def test_what_is_no_reference_says_how_to_write_one(text: str) -> None:
    with pytest.raises(DataError, match="write hub:OWNER/NAME"):
        parse_reference(text)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a data set of the hub; downloads take only what their patterns name."""
    held = tmp_path / "held"
    taken = tmp_path / "taken"
    (held / "data").mkdir(parents=True)
    asked: dict[str, Any] = {"repo_type": "dataset", "revision": None}

    def snapshot(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        assert (name, options) == ("a/b", asked)
        for file in held.rglob("*.*"):
            inner = file.relative_to(held)
            if any(inner.match(pattern) and len(inner.parts) == len(Path(pattern).parts) for pattern in allow_patterns):
                (taken / inner).parent.mkdir(parents=True, exist_ok=True)
                (taken / inner).write_bytes(file.read_bytes())
        taken.mkdir(exist_ok=True)
        return str(taken)

    def download(name: str, file: str, **options: Any) -> str:
        assert (name, options) == ("a/b", asked)
        if not (held / file).is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such entry\nand more")
        return str(held / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        huggingface_hub, "list_repo_files", lambda *_, **__: [str(p.relative_to(held)) for p in held.rglob("*.*")]
    )
    return held


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_conversations_of_a_data_set_have_its_name(repository: Path, tmp_path: Path) -> None:
    """Those of a file have that of the layout, and so have those of several sources, of which some share a tree."""
    row = {"prompt": "p", "response": "r", "helpfulness": 1}
    write(repository / "train.jsonl", row)
    write(tmp_path / "mine.jsonl", {**row, "prompt": "q"})
    for names, wanted in (
        (["hub:a/b"], {"hub:a/b"}),
        (["hub:a/b:train"], {"hub:a/b"}),
        ([str(tmp_path / "mine.jsonl")], {"helpsteer"}),
        (["hub:a/b", str(tmp_path / "mine.jsonl")], {"helpsteer"}),
    ):
        assert {c.source for c in import_conversations("helpsteer", names).conversations} == wanted


def test_a_split_is_its_files_in_order_and_no_others(repository: Path) -> None:
    row = {"prompt": "p", "response": "r", "helpfulness": 1}
    write(repository / "data" / "train-00001-of-00002.jsonl", {**row, "response": "second"})
    write(repository / "data" / "train-00000-of-00002.jsonl", {**row, "response": "first"})
    write(repository / "validation.jsonl", {**row, "response": "held out"})
    write(repository / "training_notes.jsonl", {"not": "data"})
    (repository / "train.csv").write_text("no")
    [conversation] = import_conversations("helpsteer", "hub:a/b").conversations
    assert [item.text for item in conversation.messages] == ["p", "first", "second"]
    [conversation] = import_conversations("helpsteer", "hub:a/b:validation").conversations
    assert [item.text for item in conversation.messages] == ["p", "held out"]


def test_faults_name_the_reference_and_the_file(repository: Path) -> None:
    write(repository / "train-0.jsonl", {"prompt": "p", "response": "r"})
    write(repository / "train-1.jsonl", {"prompt": "p"})
    with pytest.raises(DataError, match=r"hub:a/b \(train-1\.jsonl\): line 1: response is missing"):
        import_conversations("helpsteer", "hub:a/b")


def test_a_file_by_name(repository: Path) -> None:
    write(repository / "data" / "x.jsonl", {"prompt": "p", "response": "r"})
    assert fetch("hub:a/b/data/x.jsonl") == [repository / "data" / "x.jsonl"]
    with pytest.raises(
        DataError, match=r"hub:a/b/y\.jsonl: cannot fetch it from the hub: no such entry; check the name"
    ):
        fetch("hub:a/b/y.jsonl")


def test_a_split_that_is_not_there_lists_what_is(repository: Path) -> None:
    write(repository / "data" / "x.jsonl", {})
    (repository / "README.md").write_text("")
    with pytest.raises(
        DataError, match=r"no files of the split 'train'; name one with hub:a/b/FILE \(files there: data/x"
    ):
        fetch("hub:a/b")


def test_offline_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataError, match=r"hub:a/b: .*offline mode is enabled.*download the files yourself"):
        fetch("hub:a/b")


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match="pip install huggingface_hub"):
        fetch("hub:a/b")
