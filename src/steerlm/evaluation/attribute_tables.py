"""The evaluation of an attribute model as terminal tables; names of sources, subsets and files are shown as given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from steerlm.pages import figure, is_number, number


def evaluation_view(record: Mapping[str, Any]) -> Group:
    """Everything that a person needs to judge the judge."""
    return Group(*_parts(record))


def _parts(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    if figures := record.get("attributes"):
        yield _agreement(figures)
        yield Text(
            f"{record['responses']} responses of {record['conversations']} conversations; intervals: 95%, bootstrap "
            f"over conversations; mean, ridge: RMSE of the baselines, fitted on {record['baselines_fitted_on']}"
        )
        yield Text()
        yield _baselines(figures)
        if record["unscored"]:
            yield Text(f"{record['unscored']} rated responses are longer than the context and left out")
        for name, row in figures.items():
            yield from _lost(name, row)
            for source, part in row["sources"].items():
                yield from _lost(f"{name} of {source}", part)
        yield from _swapped(record["swapped_outputs"])
        yield Text()
        yield _ranking(figures)
        for name, row in figures.items():
            yield from _lost(f"{name}, ranking", row["ranking"] or {"beats": {}})
        yield Text()
        yield _calibration(figures)
        yield Text()
        yield _confusion(figures)
    for name, figures in record.get("preferences", {}).items():
        yield Text()
        yield _preferences(name, figures)
        yield Text(f"{name}: the weighted sum {figures['verdict']}", style="" if _won(figures) else "yellow")
        for subset, gains in figures["subset_gains"].items():
            yield from _lost(f"{name}, {subset}", gains)
    if (checks := record.get("invariance")) is not None:
        yield Text()
        yield _invariance(checks) if checks else Text("Invariance is not checked: no response fits into the context")


def _won(row: Mapping[str, Any]) -> bool:
    return all(row["beats"].values())


def _lost(title: str, row: Mapping[str, Any]) -> Iterator[Text]:
    """The verdict, where the model does not beat all baselines."""
    if not _won(row):
        yield Text(f"{title}: {row['verdict']}", style="yellow")


def _agreement(figures: Mapping[str, Any]) -> Table:
    """As wide as a terminal of 80 columns holds; all intervals are in the file."""
    table = Table(title="Agreement with people", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("attribute", no_wrap=True)
    for name in ("n", "Pearson", "Spearman", "MAE", "RMSE", "mean", "ridge"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in figures.items():
        for title, part in [
            (name, row["overall"]),
            *((f"  {source}", part) for source, part in row["sources"].items()),
        ]:
            model = part["model"]
            cells = [figure(model["pearson"]), number(model["spearman"]["value"])]
            cells += [number(model[key]["value"]) for key in ("mae", "rmse")]
            cells += [number(part[other]["rmse"]) for other in ("mean", "ridge")]
            table.add_row(Text(title), str(part["n"]), *cells)
    return table


def _baselines(figures: Mapping[str, Any]) -> Table:
    """Pearson of always saying the mean does not exist."""
    table = Table(title="Beside the baselines", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("attribute", no_wrap=True)
    for name in ("MAE", "of the mean", "of the ridge", "Pearson", "of the ridge"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in figures.items():
        part = row["overall"]
        errors = [part["model"]["mae"]["value"], part["mean"]["mae"], part["ridge"]["mae"]]
        correlations = [part["model"]["pearson"]["value"], part["ridge"]["pearson"]]
        table.add_row(name, *map(number, errors + correlations))
    return table


def _swapped(found: Mapping[str, Any]) -> Iterator[Text]:
    if found["found"]:
        moved = ", ".join(f"{name} by the output of {output}" for name, output in found["order"].items())
        yield Text(
            f"the outputs may be mixed up: ratings are better predicted in another order ({moved}); mean correlation "
            f"higher by {figure(found['gain'])}",
            style="bold red",
        )
    elif why := found["unchecked"]:
        yield Text(f"whether outputs are mixed up is not checked: {why}", style="yellow")


def _ranking(figures: Mapping[str, Any]) -> Table:
    table = Table(title="Responses to one prompt ranked as people did", title_justify="left")
    table.add_column("attribute", no_wrap=True)
    for name in ("pairs", "model", "ridge", "length alone"):
        table.add_column(name, justify="right")
    for name, row in figures.items():
        if ranking := row["ranking"]:
            shown = [figure(ranking.get(key)) for key in ("model", "ridge", "length")]
            table.add_row(name, str(ranking["pairs"]), *shown)
    return table


def _calibration(figures: Mapping[str, Any]) -> Table:
    table = Table(title="Mean rating by people where the model says about ...", title_justify="left")
    table.add_column("attribute", no_wrap=True)
    levels = sorted({row["level"] for item in figures.values() for row in item["calibration"]})
    for level in levels:
        table.add_column(str(level), justify="right")
    for name, item in figures.items():
        rows = {row["level"]: row for row in item["calibration"]}
        cells = [
            f"{rows[level]['rated']['value']:.2f} (n={rows[level]['n']})" if level in rows else "" for level in levels
        ]
        table.add_row(name, *cells)
    return table


def _confusion(figures: Mapping[str, Any]) -> Table:
    table = Table(title="Rounded levels: rated (rows) and predicted (columns)", title_justify="left")
    table.add_column("attribute", no_wrap=True)
    table.add_column("rated", justify="right")
    columns = sorted({level for item in figures.values() for level in item["levels"]})
    for level in columns:
        table.add_column(str(level), justify="right")
    for name, item in figures.items():
        for row, (level, counts) in enumerate(zip(item["levels"], item["confusion"], strict=True)):
            shown = dict(zip(item["levels"], map(str, counts), strict=True))
            last = row == len(item["levels"]) - 1
            cells = (shown.get(column, "") for column in columns)
            table.add_row(name if row == 0 else "", str(level), *cells, end_section=last)
    return table


def _preferences(name: str, figures: Mapping[str, Any]) -> Table:
    weighed = " ".join(f"{weight:+g} {attribute}" for attribute, weight in figures["weights"].items())
    notes = f"{figures['pairs']} pairs, {figures['ties']} ties left out, {figures['unscored']} too long; "
    if figures["truncated"]:
        notes += f"{figures['truncated']} responses scored without their oldest turns; "
    title = Text(f"{name}: the preferred response scores higher", style="table.title")
    table = Table(title=title, title_justify="left", caption=notes + weighed)
    table.add_column("subset")
    table.add_column("by", no_wrap=True)
    table.add_column("accuracy", justify="right")
    for part, accuracy in [("all pairs", figures["accuracy"]), *figures["subsets"].items()]:
        for row, (by, wins) in enumerate(accuracy.items()):
            table.add_row(Text(part if row == 0 else ""), by, figure(wins, 3), end_section=row == len(accuracy) - 1)
    return table


def _invariance(checks: list[Mapping[str, Any]]) -> Table:
    table = Table(title="Scores beside those of a response alone", title_justify="left")
    table.add_column("changed")
    table.add_column("responses", justify="right")
    table.add_column("greatest difference", justify="right")
    table.add_column("points of the scale", no_wrap=True)
    for check in checks:
        within = f"within {check['tolerance']:g}"
        said = Text(within) if check["holds"] else Text(f"NOT {within}", style="bold red")
        difference = f"{check['difference']:.2g}" if is_number(check["difference"]) else "no score"
        table.add_row(check["name"], str(check["responses"]), difference, said)
    return table
