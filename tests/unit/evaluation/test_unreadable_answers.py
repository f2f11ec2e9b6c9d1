"""Answers that have no reading grade: they are left out of its means, and files and pages hold."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import textstat
from rich.console import Console

from scripted_policy import PROMPTS, Scripted
from steerlm.engines import Request
from steerlm.evaluation.figures import write_figures
from steerlm.evaluation.records import write_record
from steerlm.evaluation.report import report_html
from steerlm.evaluation.steering import evaluate_steering
from steerlm.evaluation.steering_settings import SteeringSettings
from steerlm.evaluation.steering_tables import steering_view
from steerlm.models.load import SteerModel

SETTINGS = SteeringSettings(
    attributes=["complexity", "verbosity"], conditions=["policy"], goals=2, perplexity=False, resamples=100
)
ENGLISH = "Rivers carry salt. It stays in the sea."


class Writer(Scripted):
    """Answers by the value asked for of complexity, and by the prompt."""

    def __init__(self, model: SteerModel, write: Callable[[int, str], str]) -> None:
        super().__init__(model, lambda asked: asked)
        self.write = write

    def text(self, request: Request) -> str:
        return self.write(self.asked(request, "complexity"), self.model.renderer.tokenizer.decode(request.prompt))


def strict(line: str) -> Any:
    """JSON as the standard has it, without NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=refuse)


def one_in_chinese(level: int, prompt: str) -> str:
    """Nothing at the lowest level, and to one of the prompts Chinese."""
    if level == 0:
        return ""
    return "你好世界" if "rock" in prompt else ENGLISH


@pytest.mark.parametrize(
    ("write", "grades"),
    [
        (one_in_chinese, [None, *[textstat.flesch_kincaid_grade(ENGLISH)] * 4]),
        (lambda level, prompt: "", [None] * 5),
    ],
)
def test_means_leave_them_out(
    write: Callable[[int, str], str], grades: list[float | None], policy: SteerModel, tmp_path: Path
) -> None:
    record = evaluate_steering(policy, PROMPTS, SETTINGS, tmp_path, engine=Writer(policy, write))
    kept = strict(write_record(tmp_path, "steering", record).read_text())
    row = kept["conditions"]["policy"]["attributes"]["complexity"]
    assert [point["value"] for point in row["curves"]["reading_grade"]] == pytest.approx(grades)
    assert row["own"] == "reading_grade"
    assert row["verdict"] == "too few prompts"
    assert all(strict(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines())
    assert "nan" not in re.sub("<[^>]*>", " ", report_html(kept, "x")).lower().split()
    shown = Console(record=True, width=200, file=io.StringIO())
    shown.print(steering_view(kept))
    text = " ".join(shown.export_text().split())
    assert "nan" not in text.lower().split()
    assert "answers have no reading grade, being empty or mostly not in Latin letters" in text
    assert len(write_figures(kept, tmp_path / "figures")) == 2
