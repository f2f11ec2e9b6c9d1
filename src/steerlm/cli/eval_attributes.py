"""`steerlm eval attributes`: an attribute model against human ratings and preferences."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from steerlm.annotation.run import data_schema
from steerlm.attributes import Schema
from steerlm.card import refresh_card
from steerlm.cli.data_views import stdout
from steerlm.conversation import Conversation
from steerlm.devices import pick_device
from steerlm.errors import DataError
from steerlm.evaluation.attribute_model import evaluate_attributes
from steerlm.evaluation.attribute_settings import AttributeEvaluationSettings
from steerlm.evaluation.attribute_tables import evaluation_view
from steerlm.evaluation.preferences import is_preference_file, read_preferences
from steerlm.evaluation.records import data_provenance, distinct_names, evaluation_folder, write_record
from steerlm.models.load import load_model
from steerlm.sources import Imported, import_conversations
from steerlm.sources.detect import detect_kind
from steerlm.sources.hub import PREFIX


def eval_attributes_command(
    model: Path,
    data: list[Path],
    /,
    *,
    train: list[Path] | None = None,
    schema: Path | None = None,
    settings: Annotated[AttributeEvaluationSettings | None, Parameter(name="*")] = None,
    out: Path | None = None,
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Compare an attribute model with human ratings and preferences, beside baselines that understand nothing.

    steerlm eval attributes runs/attribute-model held-out.jsonl pairs.parquet --train rated.jsonl

    Shows errors and correlations with 95% intervals for each attribute and source, calibration, confusion, how often
    two responses to one prompt are ranked as people did, and whether scores depend on what is scored beside them. The
    model's own training data flatter it: give held-out data.

    Parameters
    ----------
    model
        Directory of a trained attribute model.
    data
        Rated data in any format that `steerlm data import` reads, and preference files: HelpSteer2-Preference, or
        RewardBench's layout (prompt, chosen, rejected). JSONL or Parquet.
    train
        Data on which the baselines are fitted: what the model was trained on. Without it they are cross-validated on
        the evaluated data. May be repeated.
    schema
        YAML file with the attributes that the data's ratings use; without one, the nine of SteerLM and the model's.
    settings
        How to score and compare; each has a flag of its own.
    out
        Folder for attributes.json; without one, `evaluation` in the model's directory.
    device
        Torch device; auto takes a GPU where there is one.
    json_
        Print JSON instead of tables.
    """
    for path in (*data, *(train or [])):
        if str(path).startswith(PREFIX):
            raise DataError(f"{path}: only files are evaluated on; make one of it with: steerlm data import")
    declared = Schema.from_yaml(schema) if schema else None
    judge = load_model(model, "attribute-model", pick_device(device))
    errors = Console(stderr=True, soft_wrap=True)

    def say(text: str) -> None:
        errors.print(text, highlight=False, markup=False)

    compared = [path for path in data if is_preference_file(path)]
    rated = [path for path in data if path not in compared]
    known = data_schema(judge.schema, declared)
    imported = _imported([*rated, *(train or [])], known, say)
    record = evaluate_attributes(
        judge,
        _conversations(rated, imported),
        settings,
        _conversations(train or [], imported) or None,
        {name: read_preferences(path) for path, name in distinct_names(compared).items()},
        say,
    )
    counts = {path: _counts(item) for path, item in imported.items()}
    record |= {"data": data_provenance(data, counts), "train": data_provenance(train or [], counts)}
    path = write_record(out or evaluation_folder(model), "attributes", record)
    if out is None:
        refresh_card(model, say)
    if json_:
        print(json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, indent=2))
        return
    stdout().print(evaluation_view(record))
    errors.print(f"figures in {path}", highlight=False, markup=False)


def _imported(paths: Sequence[Path], schema: Schema, say: Callable[[str], None]) -> dict[Path, Imported]:
    """What each file holds; `say` is told what of it is kept and left out."""
    found = {}
    for path, name in distinct_names(paths).items():
        found[path] = import_conversations(detect_kind(path), path, schema=schema)
        say(f"{name}: {found[path].report}")
    return found


def _conversations(paths: Sequence[Path], imported: Mapping[Path, Imported]) -> list[Conversation]:
    return [conversation for path in paths for conversation in imported[path].conversations]


def _counts(imported: Imported) -> dict[str, Any]:
    """What was read, kept and left out; not `sources` and `faults`, which hold paths of this machine."""
    return {name: value for name, value in imported.report.to_dict().items() if name not in ("sources", "faults")}
