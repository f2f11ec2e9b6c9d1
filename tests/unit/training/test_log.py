"""metrics.jsonl has each step once, whatever happened; the display tells how far a run is."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from steerlm.training.log import Display, MetricsLog


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, resume_at: int | None, *steps: int, loss: float = 1.0) -> None:
    log = MetricsLog(path, resume_at)
    for step in steps:
        log.write({"step": step, "kind": "train", "loss": loss})
    log.close()


def test_one_object_a_line_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    log = MetricsLog(path, None)
    log.write({"step": 1, "kind": "train", "loss": 0.5})
    assert records(path) == [{"step": 1, "kind": "train", "loss": 0.5}]
    log.write({"step": 1, "kind": "validation", "pearson": float("nan")})
    assert records(path)[1] == {"step": 1, "kind": "validation", "pearson": None}
    log.close()


def test_resuming_takes_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, None, 0, 1, 2, 3, 4)
    with path.open("ab") as stream:
        stream.write(b'{"step": 5, "kind": "tr')  # torn, as by a kill
    write(path, 2, 3, 4, loss=2.0)
    assert [(record["step"], record["loss"]) for record in records(path)] == [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
    ]


def test_a_run_that_starts_over_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, None, 0, 1, 2)
    write(path, None, 0)
    assert [record["step"] for record in records(path)] == [0]
    path.unlink()
    write(path, 3, 4)
    assert [record["step"] for record in records(path)] == [4]


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    log = MetricsLog(None, None, ["wandb"])
    log.write({"step": 1, "kind": "train"})
    log.close()
    assert not list(tmp_path.iterdir())


def shown(total: int, max_steps: int | None, steps: int, quiet: bool = False, first: int = 1) -> list[str]:
    """Each step takes a minute."""
    number = 0
    console = Console(file=io.StringIO(), width=200, quiet=quiet, get_time=lambda: 60.0 * number)
    with Display("train policy", total, max_steps, quiet, console) as display:
        for number in range(first, steps + 1):
            display.step(number * 2, number, 0.5, {"tokens_per_second": 99.6, "memory_mb": 1536.0})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_file_gets_a_line_every_twentieth() -> None:
    lines = shown(total=200, max_steps=None, steps=100)
    assert len(lines) == 20
    assert lines[0] == "train policy: 5%  step 5  loss 0.5000  100 tokens/s  1.5 GiB  1:35:00 left"
    assert lines[-1].startswith("train policy: 100%  step 100")


def test_a_run_of_few_steps_is_measured_by_them() -> None:
    lines = shown(total=1000, max_steps=4, steps=4)
    assert [line.split()[2] for line in lines] == ["25%", "50%", "75%", "100%"]


def test_a_run_that_goes_on_has_the_time_left_of_its_own_steps() -> None:
    lines = shown(total=200, max_steps=None, steps=100, first=51)
    assert lines[0] == "train policy: 51%  step 51  loss 0.5000  100 tokens/s  1.5 GiB"
    assert lines[1].startswith("train policy: 55%  step 55 ")
    assert lines[1].endswith("  0:45:00 left")


def test_quiet_says_nothing() -> None:
    assert shown(total=10, max_steps=None, steps=5, quiet=True) == []
