"""`steerlm annotate` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import cyclopts
import pytest

from steerlm.cli.annotate import annotate_command
from steerlm.errors import ConfigError, ModelError, SchemaError
from steerlm.files import load_conversations, write_conversations
from tiny_judge import random_trees


@pytest.fixture
def app() -> cyclopts.App:
    found = cyclopts.App(name="steerlm", result_action="return_value", exit_on_error=False)
    found.command(annotate_command, name="annotate")
    return found


def test_summary_as_json(
    app: cyclopts.App, judge_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_conversations(tmp_path / "in.jsonl", random_trees(6))
    command = ["annotate", str(tmp_path / "in.jsonl"), "--model", str(judge_directory), "--device", "cpu"]
    app([*command, "--out", str(tmp_path / "out.jsonl.gz"), "--pack-tokens", "1024", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["conversations"] == len(load_conversations(tmp_path / "out.jsonl.gz")) == 6
    app([*command, "--out", str(tmp_path / "out.jsonl.gz"), "--pack-tokens", "1024", "--fresh"])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "6 conversations" in shown.err
    assert "steerlm train policy --data" in shown.err


def test_errors(app: cyclopts.App, judge_directory: Path, tmp_path: Path) -> None:
    write_conversations(tmp_path / "in.jsonl", random_trees(6))
    command = ["annotate", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    with pytest.raises(ModelError, match="no steerlm model"):
        app([*command, "--model", str(tmp_path)])
    with pytest.raises(SchemaError, match="cannot read the schema"):
        app([*command, "--model", str(judge_directory), "--schema", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="device 'nowhere' cannot be used here"):
        app([*command, "--model", str(judge_directory), "--device", "nowhere"])
    with pytest.raises(cyclopts.CycloptsError):
        app([*command, "--model", str(judge_directory), "--context", "3"], print_error=False)


def test_help_teaches(app: cyclopts.App, capsys: pytest.CaptureFixture[str]) -> None:
    app(["annotate", "--help"])
    text = capsys.readouterr().out
    for flag in ("--model", "--out", "--schema", "--strict", "--pack-tokens", "--context", "--precision", "--fresh"):
        assert flag in text
