"""Files are streamed in with every fault placed, and written whole or not at all."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from steerlm import files
from steerlm.conversation import Conversation, Message
from steerlm.errors import DataError
from steerlm.files import (
    load_conversations,
    read_conversations,
    read_records,
    read_rows,
    replacing,
    write_conversations,
    write_json,
    write_jsonl,
    write_text,
)

MADE = [
    Conversation(f"c{k}", (Message("user", "Why? ☃"), Message("assistant", "So.", 0, {"humor": 1.0, "quality": 2.5})))
    for k in range(3)
]
LINES = b"".join(json.dumps(item.to_dict()).encode() + b"\n" for item in MADE)


def compressed(suffix: str, data: bytes) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    return zstandard.compress(data) if suffix == ".zst" else data


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_reading_each_compression(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(compressed(suffix, LINES))
    assert load_conversations(path) == MADE
    assert load_conversations(str(path)) == MADE


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_other_programs_read_what_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    assert write_conversations(path, iter(MADE)) == 3
    data = path.read_bytes()
    if suffix == ".gz":
        data = gzip.decompress(data)
    elif suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    assert [json.loads(line) for line in data.decode().splitlines()] == [item.to_dict() for item in MADE]
    assert "☃".encode() in data  # readable by people too


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_frames_in_one_file(tmp_path: Path, suffix: str) -> None:
    """As `cat a.gz b.gz` and parallel compressors make them."""
    path = tmp_path / f"data.jsonl{suffix}"
    middle = LINES.index(b"\n") + 5
    path.write_bytes(compressed(suffix, LINES[:middle]) + compressed(suffix, b"") + compressed(suffix, LINES[middle:]))
    assert load_conversations(path) == MADE


def parquet(path: Path, records: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def test_parquet_has_no_absent_keys_but_nulls(tmp_path: Path) -> None:
    path = parquet(tmp_path / "data.parquet", [item.to_dict() for item in MADE])
    assert load_conversations(path) == MADE
    assert [row.line for row in read_rows(path)] == [1, 2, 3]


def test_parquet_larger_than_a_batch(tmp_path: Path) -> None:
    messages = [{"role": "user", "text": "x"}]
    path = parquet(tmp_path / "data.parquet", [{"id": f"{k}", "messages": messages} for k in range(700)])
    assert [conversation.id for conversation in read_conversations(path)] == [f"{k}" for k in range(700)]


def test_faults_in_parquet_have_their_row(tmp_path: Path) -> None:
    good = {"id": "a", "messages": [{"role": "user", "text": "x"}]}
    path = parquet(tmp_path / "data.parquet", [good, {"id": "b", "messages": [{"role": "bot", "text": "x"}]}])
    with pytest.raises(DataError, match="line 2: conversation 'b': message 0: role='bot'"):
        list(read_conversations(path))


@pytest.mark.parametrize("damage", ["head", "pages", "tail", "empty"])
def test_damaged_parquet(tmp_path: Path, damage: str) -> None:
    messages = [{"role": "user", "text": "x"}]
    path = parquet(tmp_path / "data.parquet", [{"id": f"{k}" * 50, "messages": messages} for k in range(99)])
    data = bytearray(path.read_bytes())
    if damage == "pages":
        data[4:60] = bytes(random.Random(0).randbytes(56))
    data = {"head": data[8:], "tail": data[:-20], "empty": bytearray()}.get(damage, data)
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(read_rows(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("keep", [1, 9, 0.5, 0.9, -1])
def test_cut_off_compressed_files(tmp_path: Path, suffix: str, keep: float) -> None:
    """What could be read is yielded; then the damage is told, also where only the last byte is gone."""
    lines = [json.dumps({"id": f"c{k}", "noise": random.Random(k).randbytes(200).hex()}) for k in range(400)]
    data = compressed(suffix, "\n".join(lines).encode())
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else keep])  # type: ignore[misc]
    read: list[files.Row] = []
    with pytest.raises(DataError, match="damaged or cut short after line") as caught:
        read.extend(read_rows(path))
    whole = [row for row in read if row.fault is None]
    assert [row.record["id"] for row in whole] == [f"c{k}" for k in range(len(whole))]
    assert f"after line {len(read)}:" in str(caught.value)
    if keep == 0.9:
        assert len(whole) > 100


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_files_that_are_not_what_their_name_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(LINES)
    with pytest.raises(DataError, match="damaged or cut short after line 0"):
        list(read_rows(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_flipped_bits(tmp_path: Path, suffix: str) -> None:
    data = bytearray(compressed(suffix, random.Random(0).randbytes(4000).hex().encode()))
    if suffix == ".zst":  # `zstandard.compress` writes no checksum
        data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(b"x" * 100 + bytes(data)))
    data[len(data) // 2] ^= 0x55
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged or cut short"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", ""])
def test_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"no such file|a directory, where a file is needed"):
        list(read_rows(tmp_path / name))


def rows(tmp_path: Path, data: bytes) -> list[files.Row]:
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    return list(read_rows(path))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"a": 1', "not valid JSON at column"),
        (b"{'a': 1}", "not valid JSON at column 2"),
        (b'{"a": 1}}', "not valid JSON at column 9: Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not usable JSON"),
    ],
)
def test_lines_that_are_no_json_become_rows_with_a_fault(tmp_path: Path, line: bytes, says: str) -> None:
    found = rows(tmp_path, b'{"b": 1}\n' + line + b'\n{"b": 2}\n')
    assert [row.line for row in found] == [1, 2, 3]
    assert [row.record for row in found] == [{"b": 1}, None, {"b": 2}]
    assert says in (found[1].fault or "")
    assert found[1].raw == line + b"\n"
    with pytest.raises(DataError, match=f"data.jsonl: line 2: .*{says}"):
        list(read_records(tmp_path / "data.jsonl"))
    rows(tmp_path, b"\n" + line)
    with pytest.raises(DataError, match=f"data.jsonl: line 2: .*{says}"):
        list(read_conversations(tmp_path / "data.jsonl"))


def test_blank_lines_are_passed_over_but_counted(tmp_path: Path) -> None:
    found = rows(tmp_path, b'\n{"a": 1}\n  \n\r\n{"a": 2}')
    assert [(row.line, row.record) for row in found] == [(2, {"a": 1}), (5, {"a": 2})]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"marked.jsonl{suffix}"
    path.write_bytes(compressed(suffix, b"\xef\xbb\xbf" + LINES))
    assert load_conversations(path) == MADE
    content = b"\xef\xbb\xbf" + LINES
    assert all(content[row.offset : row.offset + len(row.raw)] == row.raw for row in read_rows(path))
    path.write_bytes(compressed(suffix, b"\xef\xbb\xbf\n" + LINES))
    assert [row.line for row in read_rows(path)] == [2, 3, 4]


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    found = rows(tmp_path, '{"a": "x\u2028y\u0085z"}\r\n{"a": 2}\n'.encode())
    assert [row.record for row in found] == [{"a": "x\u2028y\u0085z"}, {"a": 2}]


def test_records_must_be_objects(tmp_path: Path) -> None:
    rows(tmp_path, b'{"a": 1}\n[1]\n')
    with pytest.raises(DataError, match="line 2: expected a JSON object, found list"):
        list(read_records(tmp_path / "data.jsonl"))


def test_nan_ratings_are_found(tmp_path: Path) -> None:
    """Python's JSON reads NaN, which is in no standard."""
    rows(tmp_path, b'{"id":"a","messages":[{"role":"assistant","text":"x","ratings":{"humor":NaN}}]}')
    with pytest.raises(DataError, match="line 1: conversation 'a': message 0: rating: humor=nan is not finite"):
        list(read_conversations(tmp_path / "data.jsonl"))


def test_ids_are_unique_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_conversations(path, [MADE[0], MADE[1], MADE[0]])
    with pytest.raises(DataError, match="line 3: conversation 'c0': id 'c0' was already used on line 1"):
        list(read_conversations(path))


def test_conversations_before_a_fault_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(LINES + b"{}\n")
    stream = read_conversations(path)
    assert [next(stream) for _ in range(3)] == MADE
    with pytest.raises(DataError, match="line 4"):
        next(stream)


def test_an_empty_file_holds_no_conversations(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n\n")
    assert list(read_conversations(path)) == []
    with pytest.raises(DataError, match="the file holds no conversations"):
        load_conversations(path)


def test_a_message_of_a_megabyte(tmp_path: Path) -> None:
    big = Conversation("big", (Message("user", random.Random(0).randbytes(500_000).hex() + "☃\n"),))
    for suffix in ("", ".gz", ".zst"):
        path = tmp_path / f"big.jsonl{suffix}"
        write_conversations(path, [big])
        assert load_conversations(path) == [big]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for suffix in ("", ".gz", ".zst"):
        for name in ("a", "b"):
            write_conversations(tmp_path / f"{name}.jsonl{suffix}", MADE)
        assert (tmp_path / f"a.jsonl{suffix}").read_bytes() == (tmp_path / f"b.jsonl{suffix}").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("existed", [True, False])
def test_a_writer_that_fails_leaves_everything_as_it_was(tmp_path: Path, suffix: str, existed: bool) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    if existed:
        path.write_bytes(b"old")
    before = contents(tmp_path)

    def failing() -> Iterator[dict[str, Any]]:
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, failing())
    assert contents(tmp_path) == before


def test_a_record_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": object()}])
    with pytest.raises(UnicodeEncodeError):
        write_jsonl(path, [{"a": "\ud83d"}])
    with pytest.raises(TypeError):
        write_json(path, object())
    assert contents(tmp_path) == {"data.jsonl": b"old"}


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_full_disk_on_sync(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_conversations(path, MADE)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 1})
    assert contents(tmp_path) == {path.name: b"old"}


class FullDisk(io.RawIOBase):
    """A file on a disk without room."""

    def writable(self) -> bool:
        return True

    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_full_disk_on_write(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data fit into buffers; the error only comes with the last flush, and may not be lost."""
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(b"old")
    plain_open = Path.open

    def on_full_disk(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return io.BufferedWriter(FullDisk()) if "w" in mode else plain_open(self, mode, *rest, **named)

    def zstd_on_full_disk(_: Path, mode: str) -> Any:
        return zstandard.ZstdCompressor().stream_writer(io.BufferedWriter(FullDisk()), closefd=True)

    monkeypatch.setattr(Path, "open", on_full_disk)
    monkeypatch.setattr(zstandard, "open", zstd_on_full_disk)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_conversations(path, MADE)
    monkeypatch.undo()
    assert contents(tmp_path) == {path.name: b"old"}


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"old")

    def watching() -> Iterator[dict[str, Any]]:
        yield {"a": "x" * 100_000}
        assert path.read_bytes() == b"old"

    write_jsonl(path, watching())
    assert len(path.read_bytes()) > 100_000
    assert list(contents(tmp_path)) == ["data.jsonl"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_folders_are_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "new" / "folder" / "file") as temporary:
        assert temporary.parent == tmp_path / "new" / "folder"
        temporary.write_bytes(b"x")
    assert contents(tmp_path / "new" / "folder") == {"file": b"x"}


def test_json_and_digest(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ä": [\n    1,\n    null\n  ]\n}\n'
    write_text(tmp_path / "abc", "abc")
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
