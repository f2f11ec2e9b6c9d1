"""The curves as PNG files, for papers and model cards. Needs matplotlib (`pip install 'steerlm[report]'`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steerlm.evaluation.answers import JUDGE, SECOND
from steerlm.evaluation.report import measure_titles
from steerlm.files import replacing

_SOFTWARE = "steerlm"
"""Written into each figure, to know it by."""


def has_matplotlib() -> bool:
    """Whether figures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def write_figures(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw one figure an attribute: its own measure, characters and reading grade; returns their paths. Figures of an
    earlier result are removed.
    """
    from matplotlib.figure import Figure

    titles = measure_titles(record)
    paths = []
    for attribute in record["settings"]["attributes"]:
        rows = {item["title"]: item["attributes"][attribute] for item in record["conditions"].values()}
        first = next(iter(rows.values()))
        columns = list(dict.fromkeys([*([first["own"]] if first["own"] else []), "characters", "reading_grade"]))
        figure = Figure(figsize=(3.6 * len(columns), 3.2), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(columns)))
        for axis, column in zip(axes, columns, strict=True):
            levels = first["levels"]
            if column.startswith((JUDGE, SECOND)):
                axis.plot(levels, levels, linestyle="--", color="0.6", linewidth=1, label="asked")
            for title, row in rows.items():
                low, value, high = (
                    [point[key] if point[key] is not None else np.nan for point in row["curves"][column]]
                    for key in ("low", "value", "high")
                )
                (line,) = axis.plot(levels, value, marker="o", markersize=3, label=title)
                axis.fill_between(levels, low, high, alpha=0.2, color=line.get_color())
            axis.set_xlabel(f"{attribute} asked")
            axis.set_xticks(levels)
            axis.set_title(titles[column], fontsize=9)
        axes[0].legend(fontsize=7)
        path = folder / f"{attribute}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": _SOFTWARE})
        paths.append(path)
    remove_figures(folder, paths)
    return paths


def remove_figures(folder: Path, kept: Sequence[Path] = ()) -> None:
    """Remove the figures that `write_figures` has made, but for those that are `kept`; images of others stay."""
    mark = f"Software\0{_SOFTWARE}".encode()
    for path in folder.glob("*.png"):
        if path not in kept and mark in path.read_bytes():
            path.unlink()
