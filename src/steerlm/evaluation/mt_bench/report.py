"""Scores as a table for the terminal, as JSON with provenance, and as a radar plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from steerlm.errors import ConfigError
from steerlm.evaluation.bootstrap import Estimate
from steerlm.evaluation.mt_bench.layouts import TURNS
from steerlm.evaluation.mt_bench.pairs import PositionBias, WinRate
from steerlm.evaluation.mt_bench.questions import CATEGORIES
from steerlm.evaluation.mt_bench.scores import Difference, Score
from steerlm.evaluation.records import distinct_names
from steerlm.files import replacing, sha256
from steerlm.provenance import environment

HIGHEST = 10


@dataclass(frozen=True)
class Report:
    """All that judgment files tell; `files` are what it was read from, `rules` how."""

    scores: Sequence[Score]
    differences: Sequence[Difference]
    win_rates: Sequence[WinRate]
    biases: Sequence[PositionBias]
    files: Sequence[Path]
    rules: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "scores": [score.to_dict() for score in self.scores],
            "differences": [item.to_dict() for item in self.differences],
            "win_rates": [rate.to_dict() for rate in self.win_rates],
            "position_bias": [bias.to_dict() for bias in self.biases],
            "provenance": {
                "files": {name: sha256(path) for path, name in distinct_names(self.files).items()},
                "rules": self.rules,
                **environment(),
            },
        }

    def tables(self) -> Iterator[Table]:
        """What there is to show, in order."""
        if self.scores:
            yield _total_table(self.scores)
            yield _category_table(self.scores)
        if self.differences:
            yield _difference_table(self.differences)
        if self.win_rates:
            yield _win_table(self.win_rates)

    def notes(self) -> Iterator[str]:
        """What a reader of the tables must know, one sentence each."""
        for score in self.scores:
            counts = score.counts
            doubtful = f"with a reference answer known to be wrong (total without them {_figure(score.sound) or '–'})"
            parts = {
                "without a rating, left out": counts.unrated,
                "missing": counts.missing,
                "duplicates": counts.duplicates,
                "whose recorded score is not what the text says": counts.differing,
                doubtful: counts.doubtful,
            }
            if shown := [f"{number} {what}" for what, number in parts.items() if number]:
                yield f"{score.model} by {score.judge}, {counts.rated} judgments: {'; '.join(shown)}"
        for bias in self.biases:
            yield (
                f"{bias.judge}: both orders agree in {bias.consistent} comparisons, the first answer won both times in "
                f"{bias.first}, the second in {bias.second}, {bias.errors} without a verdict left out, "
                f"{bias.duplicates} duplicates left out"
            )


def _table(title: str, *figures: str) -> Table:
    """Figures keep their width on a narrow terminal; names are folded."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("model", "judge"):
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, no_wrap=True, justify="right")
    return table


def _total_table(scores: Sequence[Score]) -> Table:
    table = _table("MT-Bench", "total [95%]", *(f"turn {turn}" for turn in TURNS), "judgments")
    for score in scores:
        turns = (_figure(score.turns[turn]) for turn in TURNS)
        table.add_row(score.model, score.judge, _interval(score.total), *turns, str(score.counts.rated))
    return table


def _category_table(scores: Sequence[Score]) -> Table:
    """Without the judges, for which there is no room beside eight categories: rows are those of the table of totals."""
    extra = sorted({name for score in scores for name in score.categories} - set(CATEGORIES))
    table = Table(title="By category", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    names = [*CATEGORIES, *extra]
    for name in names:
        table.add_column(name, no_wrap=True, justify="right")
    for score in scores:
        table.add_row(
            score.model, *(_figure(score.categories[name]) if name in score.categories else "" for name in names)
        )
    return table


def _difference_table(differences: Sequence[Difference]) -> Table:
    table = _table("What settings change", "points [95%]", "questions")
    for item in differences:
        table.add_row(item.model, item.judge, _interval(item.points, "+"), str(item.questions))
    return table


def _win_table(rates: Sequence[WinRate]) -> Table:
    table = _table("Pairwise, in both orders; a tie is half a win", "win rate [95%]", "won", "lost", "tied")
    for rate in rates:
        counts = (str(number) for number in (rate.wins, rate.losses, rate.ties))
        table.add_row(rate.model, rate.judge, _interval(rate.rate), *counts)
    return table


def _figure(estimate: Estimate) -> str:
    return "" if np.isnan(estimate.value) else f"{estimate.value:.2f}"


def _interval(estimate: Estimate, sign: str = "") -> str:
    if np.isnan(estimate.value):
        return ""
    if np.isnan(estimate.low):
        return f"{estimate.value:{sign}.2f}"
    return f"{estimate.value:{sign}.2f} [{estimate.low:{sign}.2f}, {estimate.high:{sign}.2f}]"


def radar(scores: Sequence[Score], path: Path) -> None:
    """Draw the categories of every score, 0 to 10, into a file of the kind that its suffix names.

    Raises `ConfigError` where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'steerlm[report]'") from error
    angles = np.linspace(0, 2 * np.pi, len(CATEGORIES), endpoint=False)
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    several_judges = len({score.judge for score in scores}) > 1
    for score in scores:
        values = [score.categories[name].value for name in CATEGORIES]
        label = f"{score.model} ({score.judge})" if several_judges else score.model
        # The first point again closes the line.
        axes.plot([*angles, angles[0]], [*values, values[0]], label=f"{label}: {score.total.value:.2f}", marker=".")
    axes.set_xticks(angles, CATEGORIES)
    axes.tick_params(axis="x", pad=14)  # points; names at the sides would lie on the circle
    axes.set_ylim(0, HIGHEST)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)
