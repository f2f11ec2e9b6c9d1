"""The journal holds whole windows only, whatever moment its writer died at."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.annotation.journal import Journal
from steerlm.annotation.report import Totals
from steerlm.errors import DataError

KEY = {"input": "abc", "model": "m1", "context": 64}


def totals(window: int) -> Totals:
    return Totals(line=3 * window, conversations=2 * window, rejected=window)


def add(journal: Journal, window: int) -> None:
    journal.append([{"id": f"{window}a"}, {"id": f"{window}ä"}], [{"line": 3 * window}], totals(window))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.journal"


@pytest.fixture
def three_windows(path: Path) -> bytes:
    with Journal(path, KEY) as journal:
        for window in (1, 2, 3):
            add(journal, window)
    return path.read_bytes()


def test_goes_on_with_what_was_kept(path: Path, three_windows: bytes) -> None:
    with Journal(path, KEY) as journal:
        assert journal.totals == totals(3)
        assert [item["id"] for item in journal.results()] == ["1a", "1ä", "2a", "2ä", "3a", "3ä"]
        assert [item["line"] for item in journal.rejects()] == [3, 6, 9]
        add(journal, 4)
        assert len(list(journal.results())) == 8
        journal.remove()
    assert not path.exists()


def test_cut_anywhere_keeps_whole_windows(path: Path, three_windows: bytes) -> None:
    """Each prefix of the file gives a prefix of the windows, and writing the rest gives the same file again."""
    found = set()
    for length in range(len(three_windows) + 1):
        path.write_bytes(three_windows[:length])
        with Journal(path, KEY) as journal:
            kept = journal.totals.line // 3
            assert len(list(journal.results())) == 2 * kept
            for window in range(kept + 1, 4):
                add(journal, window)
        assert path.read_bytes() == three_windows
        found.add(kept)
    assert found == {0, 1, 2, 3}


def test_a_damaged_window_is_cut_with_all_after_it(path: Path, three_windows: bytes) -> None:
    path.write_bytes(three_windows.replace(b"2a", b"2x"))
    with Journal(path, KEY) as journal:
        assert journal.totals == totals(1)


def test_zeroes_at_the_end_are_cut(path: Path, three_windows: bytes) -> None:
    """What some file systems leave of a block after a power failure."""
    path.write_bytes(three_windows[:-30] + bytes(30))
    with Journal(path, KEY) as journal:
        assert journal.totals == totals(2)


def test_work_of_another_run_is_kept(path: Path, three_windows: bytes) -> None:
    with pytest.raises(DataError, match=r"keeps 6 conversations.*different: the input file, context.*--fresh"):
        Journal(path, {**KEY, "input": "xyz", "context": 128})
    assert path.read_bytes() == three_windows


def test_a_journal_without_work_is_taken_over(path: Path) -> None:
    with Journal(path, {**KEY, "input": "a longer digest"}):
        pass
    with Journal(path, KEY) as journal:
        add(journal, 1)
    with Journal(path, KEY) as journal:
        assert journal.totals == totals(1)


@pytest.mark.parametrize("content", [b"hello\n", b'{"id": "x"}\n', b"hello", b'#{"journal":99,"key":{}}\n', b"#[]\n"])
def test_other_files_are_not_touched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a journal"):
        Journal(path, KEY)
    assert path.read_bytes() == content


def test_one_process_at_a_time(path: Path) -> None:
    with Journal(path, KEY), pytest.raises(DataError, match="another process"):
        Journal(path, KEY)
    with Journal(path, KEY):
        pass


def test_starting_over_forgets_what_is_there_but_not_what_another_process_is_at(
    path: Path, three_windows: bytes
) -> None:
    with Journal(path, KEY):
        held = path.read_bytes()
        with pytest.raises(DataError, match="another process"):
            Journal(path, {**KEY, "model": "m2"}, fresh=True)
        assert path.read_bytes() == held == three_windows
    with Journal(path, {**KEY, "model": "m2"}, fresh=True) as journal:
        assert journal.totals == Totals()
        assert not list(journal.results())
        add(journal, 1)
    with Journal(path, {**KEY, "model": "m2"}) as journal:
        assert journal.totals == totals(1)
