"""`steerlm annotate`: the attribute model scores every response of a conversation file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from steerlm.annotation import AnnotateSettings, annotate
from steerlm.attributes import Schema
from steerlm.devices import pick_device
from steerlm.models.load import load_model


def annotate_command(
    data: Path,
    *,
    model: Path,
    out: Path,
    schema: Path | None = None,
    settings: Annotated[AnnotateSettings | None, Parameter(name="*")] = None,
    device: str = "auto",
    fresh: Annotated[bool, Parameter(negative=())] = False,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Score every response of a file with an attribute model.

    steerlm annotate data.jsonl --model runs/attributes --out annotated.jsonl

    OUT is DATA with "predicted" scores on every assistant message; human ratings stay as they are. It appears whole
    or not at all. A killed run goes on where it stopped when the same command is given again, and ends with the same
    bytes; until then its work is in OUT.journal. Malformed lines are put aside in OUT.rejects.jsonl, counts and
    provenance in OUT.report.json.

    Parameters
    ----------
    data
        Conversation file: .jsonl, .jsonl.gz, .jsonl.zst or .parquet.
    model
        Directory of a trained attribute model.
    out
        File to write; compressed if it ends in .gz or .zst.
    schema
        YAML file with the attributes that the data's own ratings use; without one, the nine of SteerLM and the model's.
    settings
        How to score; each has a flag of its own.
    device
        Torch device; auto takes a GPU where there is one.
    fresh
        Throw away the unfinished work of an earlier run, and do a finished one again.
    json_
        Print the summary as JSON.
    """
    declared = Schema.from_yaml(schema) if schema else None
    judge = load_model(model, "attribute-model", pick_device(device))
    report = annotate(data, out, judge, settings, schema=declared, fresh=fresh)
    if json_:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
        return
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"{out}: {report}", highlight=False, markup=False)
    console.print(
        f"go on with: steerlm train policy --data {out} --out POLICY --contrast 0.5", highlight=False, markup=False
    )
