"""The result of `steerlm eval steering` as terminal tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from steerlm.evaluation.answers import is_score
from steerlm.evaluation.steering_words import leading, unscored_lines
from steerlm.pages import figure, number

EXAMPLE_WIDTH = 34
"""Characters of an answer that the table shows: what 80 columns leave beside the figures."""


def steering_view(record: Mapping[str, Any]) -> Group:
    """What a person looks at: the verdicts, and one row a level with the beginning of one answer."""
    return Group(*_parts(record))


def _parts(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    conditions = list(record["conditions"].values())
    lead = record["conditions"][leading(record)]
    yield _levels(lead)
    if len(conditions) > 1:
        yield Text()
        yield _side_by_side(conditions)
    if any(condition["goal_space"] for condition in conditions):
        yield Text()
        yield _goal_space(conditions)
    yield Text()
    for name, row in lead["attributes"].items():
        style = "green" if row["verdict"] == "steers" else "red"
        yield Text.assemble(f"{name}: ", (row["verdict"], style), f" ({row['why']})")
        if compared := row.get("against_words"):
            yield Text(f"{name}, against the untuned base asked in words: {compared['verdict']}")
    yield from map(Text, unscored_lines(record))


def _levels(condition: Mapping[str, Any]) -> Table:
    table = Table(title=f"One attribute set, the others at default: {condition['title']}", title_justify="left")
    table.add_column("attribute", no_wrap=True)
    for name in ("level", "score", "characters", "grade"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("example", overflow="ellipsis", no_wrap=True)
    for name, row in condition["attributes"].items():
        own = row["own"] if is_score(row["own"]) else None
        for place, level in enumerate(row["levels"]):
            curves = {column: points[place]["value"] for column, points in row["curves"].items()}
            table.add_row(
                name if place == 0 else "",
                str(level),
                number(curves[own]) if own else "–",
                number(curves["characters"], 0),
                number(curves["reading_grade"], 1),
                Text(shorten(condition["examples"][name][0]["answers"][place], EXAMPLE_WIDTH, placeholder="…")),
                end_section=place == len(row["levels"]) - 1,
            )
    return table


def _side_by_side(conditions: list[Mapping[str, Any]]) -> Table:
    table = Table(title="Side by side", title_justify="left")
    table.add_column("attribute", no_wrap=True)
    table.add_column("condition")
    for name in ("within a prompt", "slope", "miss"):
        table.add_column(name, justify="right")
    table.add_column("")
    for name in conditions[0]["attributes"]:
        for place, condition in enumerate(conditions):
            row = condition["attributes"][name]
            cells = [figure(row.get(key)) for key in ("within_prompt", "slope", "miss")]
            last = place == len(conditions) - 1
            table.add_row("" if place else name, condition["title"], *cells, row["verdict"], end_section=last)
    return table


def _goal_space(conditions: list[Mapping[str, Any]]) -> Table:
    table = Table(title="Several attributes at once (arXiv 2505.23816)", title_justify="left")
    table.add_column("condition")
    for name in ("goals", "steering error", "miscalibration", "orthogonality"):
        table.add_column(name, justify="right")
    for condition in conditions:
        if space := condition["goal_space"]:
            cells = [figure(space[key]) for key in ("error", "miscalibration", "orthogonality")]
            table.add_row(condition["title"], str(space["goals"]), *cells)
    return table


def level_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a level with its means, of the leading condition."""
    condition = record["conditions"][leading(record)]
    return [
        {
            "attribute": name,
            "level": level,
            "mean_characters": row["curves"]["characters"][place]["value"],
            "mean_reading_grade": row["curves"]["reading_grade"][place]["value"],
            "mean_score": row["curves"][row["own"]][place]["value"] if row["own"] else None,
            "n": row["prompts"],
            "cut_at_limit": round(row["cut"][place] * row["prompts"]),
            "unscored": {instrument.rstrip(":"): counts[place] for instrument, counts in row["unscored"].items()},
        }
        for name, row in condition["attributes"].items()
        for place, level in enumerate(row["levels"])
    ]


def end_contrasts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The top of each attribute against its bottom: how many times longer, how many grades higher; and the verdict."""
    condition = record["conditions"][leading(record)]
    return [
        {
            "attribute": name,
            "length_ratio": row["ratio_of_length"],
            "grade_difference": row["effects"]["reading_grade"],
            "verdict": row["verdict"],
        }
        for name, row in condition["attributes"].items()
    ]
