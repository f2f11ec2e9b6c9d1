"""Interruptions leave no trace: kills, full disks, and what another run left behind."""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from steerlm.annotation import annotate
from steerlm.annotation.journal import Journal
from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.errors import DataError
from steerlm.files import load_conversations, sha256
from steerlm.models.load import SteerModel
from tiny_judge import SMALL_WINDOWS


class Killed(BaseException):
    """Stands for SIGKILL inside the test process: nothing catches it."""


def kill_after(windows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Journal.append
    left = [windows]

    def appending(self: Journal, *rest: Any) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        append(self, *rest)

    monkeypatch.setattr(Journal, "append", appending)


def test_interrupted_after_any_window(judge: SteerModel, data: Path, tmp_path: Path) -> None:
    annotate(data, tmp_path / "whole.jsonl", judge, SMALL_WINDOWS)
    expected = (tmp_path / "whole.jsonl").read_bytes()
    for windows in (0, 1, 4, 7):
        out = tmp_path / f"out-{windows}.jsonl"
        with pytest.MonkeyPatch.context() as patch:
            kill_after(windows, patch)
            with pytest.raises(Killed):
                annotate(data, out, judge, SMALL_WINDOWS)
        assert not out.exists()
        report = annotate(data, out, judge, SMALL_WINDOWS)
        assert out.read_bytes() == expected
        assert report.totals.conversations == 40
        assert (report.resumed > 0) == (windows > 0)
        assert report.here.conversations == 40 - report.resumed


@pytest.mark.parametrize("step", ["write_jsonl", "write_json", "sha256"])
def test_interrupted_while_finishing(
    judge: SteerModel, data: Path, out: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the journal's last window and its removal; what is then there is finished, not scored again."""
    with data.open("ab") as stream:
        stream.write(b"torn {\n")

    def stop(*rest: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        stopping = stop if step != "sha256" else lambda path: sha256(path) if path == data else stop()
        patch.setattr(f"steerlm.annotation.run.{step}", stopping)
        with pytest.raises(Killed):
            annotate(data, out, judge, SMALL_WINDOWS)
    assert (out.parent / "out.jsonl.journal").exists()
    report = annotate(data, out, judge, SMALL_WINDOWS)
    assert (report.resumed, report.here.conversations) == (40, 0)
    assert len(load_conversations(out)) == 40
    assert (out.parent / "out.jsonl.rejects.jsonl").read_bytes().count(b"\n") == 1
    assert not (out.parent / "out.jsonl.journal").exists()


def test_torn_journal(judge: SteerModel, data: Path, out: Path) -> None:
    """Cut at random bytes, as a kill within a write leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        annotate(data, out, judge, SMALL_WINDOWS)
    journal = out.with_name("out.jsonl.journal")
    expected, whole = out.read_bytes(), journal.read_bytes()
    generator = random.Random(7)
    for _ in range(12):
        journal.write_bytes(whole[: generator.randrange(len(whole))])
        out.unlink(missing_ok=True)
        annotate(data, out, judge, SMALL_WINDOWS)
        assert out.read_bytes() == expected


class FullDisk(io.RawIOBase):
    """A file on a disk with room for some more bytes."""

    def __init__(self, stream: IO[bytes], room: int) -> None:
        self.stream = stream
        self.room = room

    def write(self, data: Any) -> int:
        count = self.stream.write(bytes(data)[: self.room])
        self.stream.flush()
        self.room -= count
        if count < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return count

    def __getattribute__(self, name: str) -> Any:
        if name in ("stream", "room", "write"):
            return super().__getattribute__(name)
        return getattr(super().__getattribute__("stream"), name)

    def __iter__(self) -> Any:
        return iter(self.stream)


def test_full_disk_while_scoring(judge: SteerModel, data: Path, tmp_path: Path) -> None:
    annotate(data, tmp_path / "whole.jsonl", judge, SMALL_WINDOWS)
    out = tmp_path / "out.jsonl"
    opening = Journal._open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_open", lambda self: FullDisk(opening(self), 9000))
        with pytest.raises(DataError, match=r"journal: cannot be written: No space left.*conversations are safe"):
            annotate(data, out, judge, SMALL_WINDOWS)
    assert not out.exists()
    report = annotate(data, out, judge, SMALL_WINDOWS)
    assert report.resumed > 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_full_disk_while_finishing(judge: SteerModel, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.write_text("an earlier file\n")
    import steerlm.files as files

    class Stream(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opening = files._open_compressed
    with monkeypatch.context() as patch:
        patch.setattr(
            files, "_open_compressed", lambda path, mode, **rest: Stream() if mode == "wb" else opening(path, mode)
        )
        with pytest.raises(DataError, match=r"out.jsonl: cannot be written: No space left.*40 conversations are safe"):
            annotate(data, out, judge, SMALL_WINDOWS)
    assert out.read_text() == "an earlier file\n"
    assert {path.name for path in out.parent.iterdir()} == {"in.jsonl", "out.jsonl", "out.jsonl.journal"}
    assert annotate(data, out, judge, SMALL_WINDOWS).resumed == 40


def test_strict_also_sees_lines_of_the_journal(judge: SteerModel, tmp_path: Path, data: Path, out: Path) -> None:
    data.write_bytes(b"{\n" + data.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        kill_after(3, patch)
        with pytest.raises(Killed):
            annotate(data, out, judge, SMALL_WINDOWS)
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        annotate(data, out, judge, SMALL_WINDOWS.model_copy(update={"strict": True}))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data, _: data.write_bytes(data.read_bytes() + b"\n"), "the input file"),
        (lambda _, kept: kept.update(settings=SMALL_WINDOWS.model_copy(update={"context": 300})), "context"),
        (lambda _, kept: kept.update(settings=SMALL_WINDOWS.model_copy(update={"precision": "bf16"})), "precision"),
        (lambda _, kept: kept.update(schema=Schema((*STEERLM, Attribute("warmth")))), "the schema"),
    ],
)
def test_journal_of_another_run(
    judge: SteerModel, data: Path, out: Path, change: Callable[[Path, dict[str, Any]], object], what: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(3, patch)
        with pytest.raises(Killed):
            annotate(data, out, judge, SMALL_WINDOWS)
    options: dict[str, Any] = {"settings": SMALL_WINDOWS}
    change(data, options)
    with pytest.raises(DataError, match=f"annotated by another run; different: {what}. .*--fresh"):
        annotate(data, out, judge, **options)
    assert annotate(data, out, judge, **options, fresh=True).resumed == 0


def test_starting_over_waits_for_the_process_that_is_at_work(judge: SteerModel, data: Path, out: Path) -> None:
    """Had it taken the other's journal away, both would write the same file."""
    journal = out.with_name("out.jsonl.journal")
    with Journal(journal, {"input": "of the process at work"}):
        held = journal.read_bytes()
        with pytest.raises(DataError, match="another process is annotating into the same file"):
            annotate(data, out, judge, SMALL_WINDOWS, fresh=True)
        assert journal.read_bytes() == held
    assert annotate(data, out, judge, SMALL_WINDOWS, fresh=True).totals.conversations == 40
