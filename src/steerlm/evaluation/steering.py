"""Steering measured from outside: what changes in the answers when one attribute is set to each of its levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

import numpy as np
import textstat
from rich.table import Table
from rich.text import Text

from steerlm.engines import Engine, Sampling, batch, complete
from steerlm.errors import DataError
from steerlm.evaluation.bootstrap import Estimate, bootstrap
from steerlm.models.prompting import Prompting
from steerlm.steering import asked_values, prompt_ids

EXAMPLE_WIDTH = 34
"""Characters of an answer that the table shows: what 80 columns leave beside the figures."""


@dataclass(frozen=True, slots=True)
class LevelResult:
    """The answers to all prompts with one attribute at one level and the others at their defaults."""

    attribute: str
    level: int
    answers: tuple[str, ...]
    cut: int
    """How many answers reached the token limit."""

    @property
    def characters(self) -> list[int]:
        return [len(answer) for answer in self.answers]

    @property
    def grades(self) -> list[float]:
        return [reading_grade(answer) for answer in self.answers]

    def row(self) -> dict[str, Any]:
        """The figures of a result file."""
        return {
            "attribute": self.attribute,
            "level": self.level,
            "mean_characters": float(np.mean(self.characters)),
            "mean_reading_grade": float(np.mean(self.grades)),
            "n": len(self.answers),
            "cut_at_limit": self.cut,
        }


def reading_grade(text: str) -> float:
    """Flesch-Kincaid grade (years of school); 0 for text without words."""
    return float(textstat.flesch_kincaid_grade(text)) if any(char.isalpha() for char in text) else 0.0


def measure_steering(
    engine: Engine,
    model: Prompting,
    prompts: Sequence[str],
    attributes: Sequence[str],
    sampling: Sampling,
    levels: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[LevelResult]:
    """Answer every prompt at every level of every attribute. `progress` is told what is being generated."""
    if not prompts:
        raise DataError("no prompts to measure steering on")
    results = []
    for name in attributes:
        scale = (levels or {}).get(name, model.schema[name].levels)
        progress(f"{name} at {', '.join(map(str, scale))}")
        # All levels go in together: a batch costs little more than its longest answer.
        asked = [asked_values(model.schema, {name: level}) for level in scale]
        asking = [prompt_ids(model, prompt, values) for values in asked for prompt in prompts]
        found = complete(engine, batch(asking, sampling))
        for number, level in enumerate(scale):
            answers = found[number * len(prompts) : (number + 1) * len(prompts)]
            cut = sum(answer.finish == "length" for answer in answers)
            results.append(LevelResult(name, level, tuple(answer.text for answer in answers), cut))
    return results


@dataclass(frozen=True, slots=True)
class Contrast:
    """The top level of an attribute against its bottom: how many times longer, how many grades higher."""

    attribute: str
    length_ratio: Estimate
    grade_difference: Estimate

    def record(self) -> dict[str, Any]:
        figures = asdict(self)
        return {**figures, **{key: value._asdict() for key, value in figures.items() if isinstance(value, Estimate)}}


def ends_contrast(results: Sequence[LevelResult], attribute: str) -> Contrast:
    """Compare the highest level measured with the lowest, paired by prompt."""
    ordered = sorted((result for result in results if result.attribute == attribute), key=lambda result: result.level)
    low, high = ordered[0], ordered[-1]
    length_ratio = bootstrap(
        lambda top, bottom: float(top.mean() / bottom.mean()) if bottom.mean() else np.nan,
        np.array(high.characters, dtype=float),
        np.array(low.characters, dtype=float),
    )
    grade_difference = bootstrap(
        lambda top, bottom: float(top.mean() - bottom.mean()), np.array(high.grades), np.array(low.grades)
    )
    return Contrast(attribute, length_ratio, grade_difference)


def steering_table(results: Sequence[LevelResult], example: int = 0) -> Table:
    """What a person looks at: one row a level, with the beginning of one answer."""
    table = Table(title="Steering: one attribute set, the others at default", title_justify="left")
    table.add_column("attribute", no_wrap=True)
    for name in ("level", "characters", "grade"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("example", overflow="ellipsis", no_wrap=True)
    for result, after in zip(results, [*results[1:], None], strict=True):
        row = result.row()
        table.add_row(
            result.attribute,
            str(result.level),
            f"{row['mean_characters']:.0f}",
            f"{row['mean_reading_grade']:.1f}",
            Text(shorten(result.answers[example], EXAMPLE_WIDTH, placeholder="…")),
            end_section=after is None or after.attribute != result.attribute,
        )
    return table
