"""The result of `steerlm eval steering` as a page of its own: one file, for a phone as for a desk, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerlm.evaluation.answers import ATTRIBUTE_MODELS, JUDGE, PERPLEXITY, SECOND, is_score
from steerlm.evaluation.charts import Line, line_chart
from steerlm.evaluation.published import PUBLISHED
from steerlm.evaluation.steering_words import UNSCORED_ROWS, leading, prompts_title, unscored_lines
from steerlm.evaluation.text_measures import TEXT_MEASURES, TOXIC_WORDS
from steerlm.files import write_text
from steerlm.pages import page

_CURVES = ("characters", "reading_grade")


def write_report(record: Mapping[str, Any], path: Path, name: str) -> Path:
    """Write the page about the model `name`; returns its path."""
    write_text(path, report_html(record, name))
    return path


def report_html(record: Mapping[str, Any], name: str) -> str:
    """The page."""
    return page(
        "steering.html.jinja",
        name=name,
        record=record,
        prompts_title=prompts_title(record),
        first=record["conditions"][leading(record)],
        conditions=record["conditions"],
        attributes=record["settings"]["attributes"],
        charts=_charts(record),
        measures=measure_titles(record),
        judging=_judging(record),
        joined=_joined(record),
        unscored=unscored_lines(record),
        unscored_rows=UNSCORED_ROWS,
        published=compared_with_published(record),
    )


def measure_titles(record: Mapping[str, Any]) -> dict[str, str]:
    """What the measures of a result are called, in its order."""
    first = next(iter(record["conditions"].values()))
    columns = next(iter(first["attributes"].values()))["curves"]
    titles = {item.name: item.title for item in (*TEXT_MEASURES, TOXIC_WORDS)}
    titles[PERPLEXITY] = "perplexity under the untuned base (geometric mean)"
    return {column: _title(column, titles) for column in columns}


def _title(column: str, titles: Mapping[str, str]) -> str:
    for prefix, model in ATTRIBUTE_MODELS.items():
        if column.startswith(prefix):
            return f"{column.removeprefix(prefix)}, by {model}"
    return titles[column]


def _judging(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attribute models that verdicts on scores rest on: fingerprint, title, whose verdicts, whether it taught."""
    rows = record["conditions"][leading(record)]["attributes"]
    return [
        {
            "model": fingerprint,
            "title": ATTRIBUTE_MODELS[prefix],
            "of": judged,
            "teaching": _teaching(record, fingerprint),
        }
        for prefix, fingerprint in _fingerprints(record).items()
        if (judged := [name for name, row in rows.items() if (row["own"] or "").startswith(prefix)])
    ]


def _joined(record: Mapping[str, Any]) -> dict[str, str]:
    """Whose scores stand in each table that joins several, where two attribute models gave theirs; else nothing."""
    joined = dict.fromkeys(("quality", "leakage", "goals"), "")
    if not (record["judge"] and record["second_judge"]):
        return joined
    first = record["conditions"][leading(record)]
    costs = [row["quality_cost"]["measures"] for row in first["attributes"].values() if row["quality_cost"]]
    leaks = [[cell["measure"] for cell in row.values()] for row in first["leakage"].values()]
    goals = [first["goal_space"]["measures"]] if first["goal_space"] else []
    for table, measures in zip(joined, (costs, leaks, goals), strict=True):
        for prefix, fingerprint in _fingerprints(record).items():
            if any(column.startswith(prefix) for columns in measures for column in columns):
                joined[table] = (
                    f"; these scores are those of {ATTRIBUTE_MODELS[prefix]}, {_teaching(record, fingerprint)}"
                )
    return joined


def _fingerprints(record: Mapping[str, Any]) -> dict[str, str]:
    """Of the attribute models, by the beginning of their measures' names, the one that is believed first first."""
    return {SECOND: record["second_judge"], JUDGE: record["judge"]}


def _teaching(record: Mapping[str, Any], fingerprint: str) -> str:
    """Whether the policy learnt from an attribute model: it annotated the policy's data."""
    if record["annotated_by"] is None:
        return "of which the policy does not say whether it learnt from it"
    if fingerprint in record["annotated_by"]:
        return "which annotated the data that the policy learnt from: it is the policy's teacher"
    return "which annotated none of the data that the policy learnt from"


def compared_with_published(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The papers' figures with ours beside them, where the attribute was swept."""
    figures = record["conditions"][leading(record)]["attributes"]
    rows = []
    for item in PUBLISHED:
        curve = figures.get(item.attribute, {}).get("curves", {}).get(item.column)
        ours = (curve[0], curve[-1]) if curve else None
        rows.append({"published": item, "ours": ours})
    return rows


def _charts(record: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """For each attribute its titled charts: its own measure, two of the text, and those without length."""
    titles = measure_titles(record)
    found: dict[str, list[tuple[str, Any]]] = {}
    for attribute in record["settings"]["attributes"]:
        rows = {name: item["attributes"][attribute] for name, item in record["conditions"].items()}
        lead = leading(record)
        first = rows[lead]
        own = [first["own"]] if first["own"] else []
        charts = []
        for column in dict.fromkeys([*own, *_CURVES]):
            lines = [
                Line(record["conditions"][name]["title"], row["curves"][column], color)
                for color, (name, row) in enumerate(rows.items())
            ]
            chart = line_chart(titles[column], first["levels"], lines, diagonal=is_score(column))
            charts.append((titles[column], chart))
        for controlled in first.get("length_controlled", ()):
            title = f"{titles[controlled['measure']]}, at equal length"
            line = Line(record["conditions"][lead]["title"], controlled["curve"], list(rows).index(lead))
            charts.append((title, line_chart(title, first["levels"], [line])))
        found[attribute] = charts
    return found
