"""What is shown of scores."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from small_bench import judgment_row
from steerlm.errors import ConfigError
from steerlm.evaluation.mt_bench.layouts import SingleJudgment
from steerlm.evaluation.mt_bench.report import Report, radar
from steerlm.evaluation.mt_bench.scores import scores

ROWS = [
    judgment_row(81, "m", 1, 8),
    judgment_row(111, "m", 2, 3),
    judgment_row(111, "m", 2, 5),
    judgment_row(91, "m", 1, -1, "?"),
    judgment_row(81, "n", 1, 10),
]
SCORES = scores([SingleJudgment.from_row(row) for row in ROWS])


def report() -> Report:
    return Report(SCORES, [], [], [], [], {})


def shown(made: Report, width: int) -> str:
    """The tables."""
    text = io.StringIO()
    Console(file=text, width=width).print(*made.tables())
    return text.getvalue()


def cells(text: str) -> list[list[str]]:
    """Of all lines."""
    assert "nan" not in text
    assert "…" not in text
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_tables_fit_a_narrow_terminal_and_have_blanks_where_nothing_was_judged() -> None:
    lines = cells(shown(report(), 80))
    [total] = [line for line in lines if line[:2] == ["m", "gpt-4"]]
    assert total[2:] == ["5.33", "8.00", "4.00", "3"]
    [categories] = [line for line in lines if line[0] == "m" and line[1] != "gpt-4"]
    assert categories == ["m", "8.00", "4.00"]


def test_an_interval_stands_where_there_are_questions_enough() -> None:
    rows = [judgment_row(81 + k, "much-longer-model-name@verbosity=4", 1, 1 + k % 9) for k in range(40)]
    many = Report(scores([SingleJudgment.from_row(row) for row in rows]), [], [], [], [], {})
    assert re.search(r"4\.\d\d \[\d\.\d\d, \d\.\d\d\]", shown(many, 80))


def test_notes_tell_what_the_table_does_not() -> None:
    [note_n, note_m] = report().notes()
    assert note_n == "n by gpt-4, 1 judgments: 159 missing"
    assert note_m == (
        "m by gpt-4, 3 judgments: 1 without a rating, left out; 158 missing; 1 duplicates; "
        "2 with a reference answer known to be wrong (total without them 8.00)"
    )


def test_a_radar_plot(tmp_path: Path) -> None:
    radar(SCORES, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
    radar(SCORES, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "<svg" in text


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"steerlm\[report\]"):
        radar(SCORES, tmp_path / "plot.png")
