"""A policy to evaluate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steerlm.attributes import STEERLM
from steerlm.models.load import SteerModel, load_model, new_model


@pytest.fixture(scope="module")
def policy(chatml_base: Path, tmp_path_factory: pytest.TempPathFactory) -> SteerModel:
    """An untrained policy on disk, loaded, that says what it was made from."""
    model = new_model("policy", chatml_base, STEERLM)
    info = replace(model.info, provenance={"base": str(chatml_base)})
    directory = tmp_path_factory.mktemp("policy") / "policy"
    replace(model, info=info).save(directory)
    return load_model(directory, "policy")
