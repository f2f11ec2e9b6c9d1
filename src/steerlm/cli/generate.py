"""`steerlm generate`: one prompt, one setting or every level of an attribute side by side."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerlm.cli.sampling import SamplingFlags, say
from steerlm.engines import Completion, LocalEngine, batch, complete, make_engine
from steerlm.errors import ConfigError
from steerlm.models.prompting import load_prompting
from steerlm.steering import asked_values, attribute_of, parse_assignments, prompt_ids


def generate_command(
    model: Path,
    prompt: str,
    *,
    set_: Annotated[list[str] | None, Parameter(name=["--set", "-s"])] = None,
    sweep: str | None = None,
    n: int = 1,
    system: str | None = None,
    sampling: Annotated[SamplingFlags | None, Parameter(name="*")] = None,
    engine: LocalEngine = "auto",
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Answer a prompt with the attributes you ask for.

    steerlm generate runs/quickstart/policy "Why is the sea salty?" --set verbosity=0 --set humor=4

    Parameters
    ----------
    model
        Directory of a trained policy.
    prompt
        What to answer.
    set_
        An attribute and its value, such as verbosity=1; "none" leaves it unset. May be repeated. The others are at
        the model's defaults.
    sweep
        An attribute of which to show every level, side by side.
    n
        Answers for each setting; more than one are sampled, at temperature 1 unless told otherwise.
    system
        System text; without it, the model's own.
    sampling
        How to choose tokens; each has a flag of its own.
    engine
        openvino (CPU, 8-bit weights, fast), torch (any device, any model), or auto.
    device
        Device to run on; auto takes a GPU where there is one.
    json_
        Print JSON.
    """
    if n < 1:
        raise ConfigError(f"--n {n}: ask for at least one answer")
    chosen = (sampling or SamplingFlags()).sampling(temperature=1.0 if n > 1 else 0.0)
    if n > 1 and chosen.temperature == 0:
        raise ConfigError(f"--n {n} at temperature 0 gives the same answer {n} times; raise --temperature")
    policy = load_prompting(model)
    asked = parse_assignments(policy.schema, set_ or [])
    if sweep is not None and sweep in asked:
        raise ConfigError(f"{sweep} is both set and swept; choose one")
    levels = attribute_of(policy.schema, sweep).levels if sweep else [None]
    settings = [asked_values(policy.schema, {**asked, **({sweep: level} if sweep else {})}) for level in levels]
    prompts = [prompt_ids(policy, prompt, values, system=system) for values in settings for _ in range(n)]
    with closing(make_engine(model, policy, engine, device, say=say)) as generator:
        answers = complete(generator, batch(prompts, chosen))
    rows = [(values, answers[index * n : (index + 1) * n]) for index, values in enumerate(settings)]
    if json_:
        print(json.dumps([_record(values, found) for values, found in rows], ensure_ascii=False, indent=2))
    else:
        _show(rows, sweep)


def _record(values: dict[str, int], answers: list[Completion]) -> dict[str, Any]:
    return {
        "attributes": values,
        "answers": [{"text": answer.text, "finish": answer.finish, "tokens": len(answer.tokens)} for answer in answers],
    }


def _show(rows: list[tuple[dict[str, int], list[Completion]]], sweep: str | None) -> None:
    console = Console()
    if sweep is None:
        for _, answers in rows:
            for number, answer in enumerate(answers):
                if number:
                    console.rule()
                console.print(Text(answer.text))
        return
    table = Table(show_lines=True)
    table.add_column(sweep, justify="right")
    table.add_column("characters", justify="right")
    table.add_column("answer", overflow="fold")
    for values, answers in rows:
        for answer in answers:
            table.add_row(str(values[sweep]), str(len(answer.text)), Text(answer.text))
    console.print(table)
