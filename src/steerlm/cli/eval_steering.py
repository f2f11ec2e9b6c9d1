"""`steerlm eval steering`: whether a policy does what it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from steerlm.card import refresh_card
from steerlm.devices import pick_device
from steerlm.errors import DataError
from steerlm.evaluation.figures import has_matplotlib, remove_figures, write_figures
from steerlm.evaluation.prompts import BUNDLED, PromptSource, read_prompts
from steerlm.evaluation.records import FIGURES, REPORT, evaluation_folder
from steerlm.evaluation.report import write_report
from steerlm.evaluation.steering import Judges, evaluate_steering
from steerlm.evaluation.steering_settings import SteeringSettings
from steerlm.evaluation.steering_tables import steering_view
from steerlm.models.load import load_model
from steerlm.sources.bundled import held_out_prompts


def eval_steering_command(
    policy: Path,
    /,
    *,
    prompts: Path | None = None,
    judge: Path | None = None,
    second_judge: Path | None = None,
    settings: Annotated[SteeringSettings | None, Parameter(name="*")] = None,
    out: Path | None = None,
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Measure whether a policy does what it is asked, and write a report of one HTML page.

    steerlm eval steering runs/quickstart/policy --judge runs/quickstart/attribute-model

    Sets each attribute to each of its levels on a set of prompts, beside the untuned base that is asked in words, and
    measures the answers with the attribute model and with what owes nothing to it: length, reading grade, repetition,
    perplexity and more. Says of each attribute whether it steers, by a rule that the report states.

    Parameters
    ----------
    policy
        Directory of a trained policy.
    prompts
        Prompts, which should be none that the policy learnt from: JSONL or Parquet with "prompt" on each line, and
        "paraphrases", a list, where --paraphrases is to use them in place of our frames; or conversations, whose
        opening prompts are taken. Without it, those that come with steerlm.
    judge
        Directory of an attribute model that scores the answers.
    second_judge
        An attribute model that the policy did not learn from, trained on other data or with another seed; verdicts then
        rest on it.
    settings
        What to ask and how to answer; each has a flag of its own.
    out
        Folder for steering.json, steering.html, answers.jsonl and figures; without one, `evaluation` in the policy's
        directory. Answers that are there are not generated again.
    device
        Torch device; auto takes a GPU where there is one.
    json_
        Print JSON instead of tables.
    """
    errors = Console(stderr=True, soft_wrap=True)

    def say(text: str) -> None:
        errors.print(text, highlight=False, markup=False)

    place = pick_device(device)
    settings = settings or SteeringSettings()
    model = load_model(policy, "policy", place)
    asked = read_prompts(prompts) if prompts else list(held_out_prompts())
    if not asked:
        raise DataError(f"{prompts}: no prompts in it")
    judges = Judges(*(load_model(path, "attribute-model", place) if path else None for path in (judge, second_judge)))
    folder = out or evaluation_folder(policy)
    record = evaluate_steering(
        model,
        asked,
        settings,
        folder,
        judges,
        directory=policy,
        say=say,
        source=PromptSource(prompts.name) if prompts else BUNDLED,
    )
    report = write_report(record, folder / REPORT, policy.resolve().name)
    if has_matplotlib():
        write_figures(record, folder / FIGURES)
    else:
        remove_figures(folder / FIGURES)
        errors.print("no figures: matplotlib is not installed (pip install 'steerlm[report]')", markup=False)
    if out is None:
        refresh_card(policy, say)
    if json_:
        print((folder / "steering.json").read_text(encoding="utf-8"), end="")
    else:
        Console().print(steering_view(json.loads((folder / "steering.json").read_text(encoding="utf-8"))))
    errors.print(f"report: {report}", highlight=False, markup=False)
