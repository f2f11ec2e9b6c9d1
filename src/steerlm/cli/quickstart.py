"""`steerlm quickstart`: the whole method in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from steerlm.evaluation.steering_tables import steering_view
from steerlm.quickstart import QuickstartSettings, run_quickstart
from steerlm.training.config import load_settings


def quickstart_command(
    *,
    recipe: str | None = None,
    data: list[Path] | None = None,
    out: Path | None = None,
    base: str | None = None,
    seed: Annotated[int | None, Parameter(help="Seed of everything random.")] = None,
    fresh: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Rated conversations in, a steerable model out: import, attribute model, annotation, policy, steering table.

    Without options it trains the bundled sample on a 135M model in ten to thirty minutes on two cores. It can
    be stopped and run again: finished stages are kept.

    Parameters
    ----------
    recipe
        YAML file with settings, or the name of a recipe that comes with steerlm.
    data
        Rated data in any format that `steerlm data import` reads. May be repeated.
    out
        Directory of the run.
    base
        Base model: a Hugging Face id, a path, or smollm2.
    fresh
        Throw away unfinished work of an earlier run with other settings.
    """
    given = {"data": data, "out": out, "base": base, "seed": seed}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(QuickstartSettings, recipe or "quickstart", overrides)
    errors = Console(stderr=True, soft_wrap=True)
    result = run_quickstart(settings, lambda text: errors.print(text, highlight=False, markup=False), fresh)
    console = Console()
    console.print(steering_view(result.steering))
    minutes = sum(stage["seconds"] for stage in result.summary["stages"]) / 60
    # Small models repeat themselves; the table is made with the same penalty.
    penalty = settings.steering.repetition_penalty
    for line in (
        f"{minutes:.0f} minutes of work; figures in {settings.out / 'summary.json'}",
        f"Report: {result.report}",
        f"Talk to it: steerlm chat {result.policy} --repetition-penalty {penalty:g}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
