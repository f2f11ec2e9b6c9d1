"""Annotating files: what is written, and what is put aside."""

from __future__ import annotations

import gzip
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from rich.console import Console

from steerlm.annotation import AnnotateSettings, Scored, Scorer, annotate
from steerlm.annotation.progress import Extent
from steerlm.annotation.run import data_schema
from steerlm.annotation.scorer import on_scale
from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.conversation import Conversation
from steerlm.errors import ConfigError, DataError, ModelError, SchemaError
from steerlm.files import json_line, load_conversations, read_rows, write_conversations
from steerlm.models.load import SteerModel
from tiny_judge import SMALL_WINDOWS, random_trees


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_every_response_gets_its_scores(judge: SteerModel, data: Path, out: Path, trees: list[Conversation]) -> None:
    report = annotate(data, out, judge, SMALL_WINDOWS)
    annotated = load_conversations(out)
    expected = Scorer(judge, SMALL_WINDOWS).score(trees).values
    for before, after, values in zip(trees, annotated, expected, strict=True):
        assert (after.id, after.system, after.source) == (before.id, before.system, before.source)
        for index, (old, new) in enumerate(zip(before.messages, after.messages, strict=True)):
            assert replace(new, predicted={}, predicted_by=None) == old, "ratings and text stay"
            if new.role == "assistant":
                assert new.predicted == pytest.approx(on_scale(STEERLM, values[index]), abs=2e-4)
                assert new.predicted_by == judge.info.fingerprint
            else:
                assert (new.predicted, new.predicted_by) == ({}, None)
    assert report.totals.conversations == 40
    assert report.totals.scored == report.totals.responses == sum(len(c.responses) for c in trees)
    assert report.to_dict()["responses_per_second"] > 0
    assert names(out.parent) == {"in.jsonl", "out.jsonl", "out.jsonl.report.json"}


def test_predictions_of_another_model_are_replaced(
    judge: SteerModel, tmp_path: Path, out: Path, trees: list[Conversation]
) -> None:
    old = [
        replace(
            tree,
            messages=tuple(
                replace(m, predicted={"quality": 1.5}, predicted_by="other") if m.role == "assistant" else m
                for m in tree.messages
            ),
        )
        for tree in trees
    ]
    write_conversations(tmp_path / "old.jsonl", old)
    write_conversations(tmp_path / "bare.jsonl", trees)
    annotate(tmp_path / "old.jsonl", out, judge, SMALL_WINDOWS)
    annotate(tmp_path / "bare.jsonl", tmp_path / "out2.jsonl", judge, SMALL_WINDOWS)
    assert out.read_bytes() == (tmp_path / "out2.jsonl").read_bytes()


def test_a_finished_run_is_not_repeated(
    judge: SteerModel, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = annotate(data, out, judge, SMALL_WINDOWS)
    calls: list[int] = []
    score = Scorer.score

    def counted(self: Scorer, *rest: Any) -> Scored:
        calls.append(1)
        return score(self, *rest)

    monkeypatch.setattr(Scorer, "score", counted)
    again = annotate(data, out, judge, SMALL_WINDOWS)
    assert not calls
    assert (again.totals, again.resumed, again.responses_per_second) == (first.totals, 40, 0.0)
    assert "40 conversations were done before" in str(again)
    annotate(data, out, judge, SMALL_WINDOWS, fresh=True)
    assert calls
    calls.clear()
    out.write_bytes(out.read_bytes() + b"\n")
    annotate(data, out, judge, SMALL_WINDOWS)
    assert calls, "a file that was changed is made anew"
    calls.clear()
    (out.parent / "out.jsonl.report.json").write_text("{}")
    annotate(data, out, judge, SMALL_WINDOWS)
    assert calls, "a report that says nothing proves nothing"


HOSTILE: list[tuple[bytes, str]] = [
    (b"not json\n", "not valid JSON"),
    (b'{"id": "bad bytes \xff"}\n', "not valid UTF-8"),
    (b"[1, 2]\n", "expected a JSON object"),
    (b'{"id": "x", "messages": []}\n', "non-empty list"),
    (b'{"id": "x1", "messages": [{"role": "user", "text": "a"}], "extra": 1}\n', "unknown key 'extra'"),
    (b'{"id": "x2", "messages": [{"role": "bot", "text": "a"}]}\n', "role='bot'"),
    (b'{"id": "x3", "messages": [{"role": "assistant", "text": "a", "ratings": {"humor": 7}}]}\n', "outside 0..4"),
    (b'{"id": "x4", "messages": [{"role": "assistant", "text": "a", "ratings": {"humor": NaN}}]}\n', "not finite"),
    (
        b'{"id": "x5", "messages": [{"role": "assistant", "text": "a", "ratings": {"humor": 1%s}}]}\n' % (b"0" * 400),
        "outside 0..4",
    ),
    (
        b'{"id": "x6", "messages": [{"role": "assistant", "text": "a", "ratings": {"humor": 1%s}}]}\n' % (b"0" * 5000),
        "not usable JSON",
    ),
    (b'{"id": "x7", "messages": [{"role": "user", "text": "half \\ud800"}]}\n', "unpaired surrogate"),
    (b'{"id": "\\ud800", "messages": [{"role": "user", "text": "a"}]}\n', "unpaired surrogate"),
    (
        b'{"id": "x8", "messages": [{"role": "assistant", "text": "a", "ratings": {"\\ud800": 1}}]}\n',
        "not an attribute of the schema",
    ),
    (b'{"id": "x9", "messages": [{"role": "assistant", "text": "a", "parent": 5}]}\n', "must come before it"),
    (b'{"id": "tree-0", "messages": [{"role": "user", "text": "a"}]}\n', "already used on line 1"),
    (b"[" * 100_000 + b"\n", "nested too deeply"),
]


def test_malformed_lines_are_put_aside(judge: SteerModel, tmp_path: Path, trees: list[Conversation]) -> None:
    """The good lines around them come out as if the bad ones were not there."""
    good = [json_line(tree.to_dict()) for tree in trees[: len(HOSTILE) + 1]]
    mixed = [line for pair in zip(good, (raw for raw, _ in HOSTILE), strict=False) for line in pair] + [good[-1]]
    (tmp_path / "mixed.jsonl").write_bytes(b"\n".join([b"".join(mixed), b"  ", b""]))
    report = annotate(tmp_path / "mixed.jsonl", tmp_path / "out.jsonl", judge, SMALL_WINDOWS)
    assert report.totals.rejected == len(HOSTILE)
    assert report.rejects == tmp_path / "out.jsonl.rejects.jsonl"
    assert f"{len(HOSTILE)} malformed lines put aside in" in str(report)
    rejects = [json.loads(line) for line in report.rejects.read_bytes().splitlines()]
    assert [item["line"] for item in rejects] == [2 * k + 2 for k in range(len(HOSTILE))]
    named = [None] * 3 + ["x", *(f"x{k}" for k in range(1, 6)), None, "x7", "\\ud800", "x8", "x9", "tree-0", None]
    assert [item["conversation"] for item in rejects] == named
    for item, (raw, why) in zip(rejects, HOSTILE, strict=True):
        assert why in "; ".join(item["faults"])
        assert item["raw"] == raw.decode("utf-8", "backslashreplace").rstrip("\n")
    assert [c.id for c in load_conversations(tmp_path / "out.jsonl")] == [c.id for c in trees[: len(good)]]
    again = annotate(tmp_path / "mixed.jsonl", tmp_path / "out.jsonl", judge, SMALL_WINDOWS)
    assert (again.rejects, again.resumed) == (report.rejects, len(good))


def test_rejects_of_an_earlier_run_do_not_stay(judge: SteerModel, data: Path, out: Path) -> None:
    rejects = out.with_name("out.jsonl.rejects.jsonl")
    rejects.write_text("old\n")
    assert annotate(data, out, judge, SMALL_WINDOWS).rejects is None
    assert not rejects.exists()


def test_strict_stops_at_the_first(judge: SteerModel, data: Path, out: Path) -> None:
    with data.open("ab") as stream:
        stream.write(b'{"id": "x", "messages": []}\n{\n')
    strict = SMALL_WINDOWS.model_copy(update={"strict": True})
    with pytest.raises(DataError, match=r"in.jsonl: line 41: conversation 'x': messages must be a non-empty list"):
        annotate(data, out, judge, strict)
    assert not out.exists()
    report = annotate(data, out, judge, SMALL_WINDOWS)
    assert report.resumed > 0, "what was scored before the bad line is of use without --strict"
    with pytest.raises(DataError, match="line 41"):
        annotate(data, out, judge, strict)


def test_strict_without_work_done_leaves_nothing_in_the_way(
    judge: SteerModel, data: Path, out: Path, trees: list[Conversation]
) -> None:
    good = data.read_bytes()
    data.write_bytes(b"{\n" + good)
    with pytest.raises(DataError, match="line 1"):
        annotate(data, out, judge, SMALL_WINDOWS.model_copy(update={"strict": True}))
    data.write_bytes(good)
    assert annotate(data, out, judge, SMALL_WINDOWS).totals.conversations == len(trees)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_other_containers(
    judge: SteerModel, data: Path, tmp_path: Path, trees: list[Conversation], suffix: str
) -> None:
    source = tmp_path / f"in{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([tree.to_dict() for tree in trees]), source)
    else:
        write_conversations(source, trees)
    annotate(data, tmp_path / "plain.jsonl", judge, SMALL_WINDOWS)
    target = tmp_path / (f"out{suffix}" if suffix != ".parquet" else "out.jsonl")
    annotate(source, target, judge, SMALL_WINDOWS)
    assert load_conversations(target) == load_conversations(tmp_path / "plain.jsonl")
    expected = sum(len(line) for line in data.read_bytes().splitlines(keepends=True))
    extent = Extent(source)
    assert extent.total == pytest.approx(len(trees) if suffix == ".parquet" else expected, rel=0.01)
    assert sum(extent.of(row) for row in read_rows(source)) == pytest.approx(extent.total, rel=0.01)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_torn_compressed_file(judge: SteerModel, tmp_path: Path, out: Path, suffix: str) -> None:
    lines = b"".join(json_line(tree.to_dict()) for tree in random_trees(300))
    whole = gzip.compress(lines) if suffix == ".gz" else zstandard.compress(lines)
    source = tmp_path / f"in.jsonl{suffix}"
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"in.jsonl\.(gz|zst): the compressed file is damaged or cut short after line"):
        annotate(source, out, judge, AnnotateSettings(precision="fp32"))
    assert not out.exists()
    source.write_bytes(whole[1:])
    with pytest.raises(DataError, match="damaged"):
        annotate(source, out, judge, AnnotateSettings(precision="fp32"), fresh=True)


def test_zstandard_file_of_several_frames(judge: SteerModel, tmp_path: Path, out: Path) -> None:
    lines = [json_line(tree.to_dict()) for tree in random_trees(3)]
    (tmp_path / "in.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, lines)))
    assert annotate(tmp_path / "in.jsonl.zst", out, judge, SMALL_WINDOWS).totals.conversations == 3


def test_damaged_parquet_file(judge: SteerModel, tmp_path: Path, out: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        annotate(tmp_path / "in.parquet", out, judge, SMALL_WINDOWS)
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_input(judge: SteerModel, tmp_path: Path, out: Path, content: bytes) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="holds no conversations"):
        annotate(tmp_path / "in.jsonl", out, judge, SMALL_WINDOWS)
    assert names(tmp_path) == {"in.jsonl"}


def test_no_conversation_among_the_lines(judge: SteerModel, tmp_path: Path, out: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "why", "response": "because"}\n' * 3)
    with pytest.raises(DataError, match=r"no line of the file is a conversation; line 1: .*\(all 3 in .*data import"):
        annotate(tmp_path / "in.jsonl", out, judge, SMALL_WINDOWS)
    assert names(tmp_path) == {"in.jsonl", "out.jsonl.rejects.jsonl"}


def test_paths_are_checked_before_anything(judge: SteerModel, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.jsonl: no such file"):
        annotate(tmp_path / "nowhere.jsonl", tmp_path / "out.jsonl", judge)
    with pytest.raises(ConfigError, match="is the input itself"):
        annotate(data, data, judge)
    with pytest.raises(ConfigError, match="is a directory"):
        annotate(data, tmp_path, judge)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is no ordinary file"):
        annotate(data, tmp_path / "pipe", judge)
    (tmp_path / "pipe").unlink()
    with pytest.raises(ConfigError, match="the result is JSONL"):
        annotate(data, tmp_path / "out.parquet", judge)
    with pytest.raises(ModelError, match="save it first"):
        annotate(data, tmp_path / "out.jsonl", replace(judge, info=replace(judge.info, fingerprint="")))
    assert names(tmp_path) == {"in.jsonl"}


def test_too_long_responses_are_counted(judge: SteerModel, data: Path, out: Path, trees: list[Conversation]) -> None:
    settings = SMALL_WINDOWS.model_copy(update={"context": 70})
    report = annotate(data, out, judge, settings)
    assert report.totals.truncated > 3
    assert report.totals.dropped > 0
    bare = [m for c in load_conversations(out) for m in c.messages if m.role == "assistant" and not m.predicted]
    assert len(bare) == report.totals.dropped == report.totals.responses - report.totals.scored
    assert all(message.predicted_by is None for message in bare)
    assert "too long and left without predicted" in str(report)


def test_schema_of_data_and_model() -> None:
    model = Schema((Attribute("quality", high=9, default=9), Attribute("warmth")))
    merged = data_schema(model, None)
    assert merged.names == ("quality", "warmth", *STEERLM.names[1:])
    assert merged["quality"].high == 9
    declared = Schema((Attribute("warmth"), Attribute("style")))
    assert data_schema(model, declared).names == ("quality", "warmth", "style")
    with pytest.raises(SchemaError, match=r"declares quality on 0..4, the model predicts it on 0..9"):
        data_schema(model, STEERLM)


def test_progress_lines_in_a_log_file(
    judge: SteerModel, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerlm.annotation.progress._QUIET_SECONDS", 0.0)
    log = io.StringIO()
    annotate(data, out, judge, SMALL_WINDOWS, console=Console(file=log, width=200))
    last = log.getvalue().splitlines()[-1]
    assert last.startswith("annotate in.jsonl: 100%")
    assert "responses/s" in last
    assert "0:00:00 left" in last


def test_progress_on_a_terminal(judge: SteerModel, data: Path, out: Path) -> None:
    screen = io.StringIO()
    annotate(data, out, judge, SMALL_WINDOWS, console=Console(file=screen, width=200, force_terminal=True))
    assert "tokens/s" in screen.getvalue()
