"""A trained model as plain Hugging Face weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from steerlm.errors import ConfigError
from steerlm.models.directory import ModelInfo
from steerlm.models.load import SteerModel, load_model


def export_hf(directory: Path, out: Path) -> SteerModel:
    """Write the model in `directory` to `out` with all its weights, an adapter merged into its base.

    Its description goes with it, and says from which model it came. Raises `ConfigError` where `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; choose another --out")
    model = load_model(directory, ModelInfo.load(directory).kind)
    provenance = {**model.info.provenance, "exported_from": model.info.fingerprint}
    return replace(model, info=replace(model.info, provenance=provenance)).save(out)
