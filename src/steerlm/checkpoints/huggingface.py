"""A trained model as plain Hugging Face weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steerlm.errors import ConfigError, SchemaError
from steerlm.models.directory import ModelInfo
from steerlm.models.load import TEMPORARY, SteerModel, load_model
from steerlm.steering import parse_assignments


def export_hf(directory: Path, out: Path, defaults: Sequence[str] = ()) -> SteerModel:
    """Write the model in `directory` to `out` with all its weights, an adapter merged into its base.

    Its description goes with it, and says from which model it came. `defaults` such as `verbosity=1` become the values
    that a policy is asked for where a request names none. Raises `ConfigError` where `out` holds something but what a
    killed export left half-saved, `SchemaError` for values that the model cannot be asked for.
    """
    torn = list(out.glob(f"{TEMPORARY}*"))  # of an export that was killed while it saved
    if out.exists() and (not out.is_dir() or set(out.iterdir()) - set(torn)):
        raise ConfigError(f"{out} exists and is not empty; choose another --out")
    for left in torn:
        shutil.rmtree(left, ignore_errors=True)
    model = load_model(directory, ModelInfo.load(directory).kind)
    if defaults:
        model = _with_defaults(model, defaults)
    provenance = {**model.info.provenance, "exported_from": model.info.fingerprint}
    return replace(model, info=replace(model.info, provenance=provenance)).save(out)


def _with_defaults(model: SteerModel, assignments: Sequence[str]) -> SteerModel:
    """The same weights, asked for other values by default."""
    if model.info.kind != "policy":
        raise SchemaError("an attribute model is asked for nothing; leave out --set")
    asked = parse_assignments(model.schema, assignments)
    if unset := [name for name, value in asked.items() if value is None]:
        raise SchemaError(f"{unset[0]}=none: a default must be a level of the scale; leave it out")
    schema = model.schema.with_defaults({name: value for name, value in asked.items() if value is not None})
    return replace(model, info=replace(model.info, schema=schema), renderer=replace(model.renderer, schema=schema))
