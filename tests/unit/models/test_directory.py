"""`steerlm.json`: written and read back, and refused where it is another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.errors import ModelError
from steerlm.models.directory import ModelInfo, weights_fingerprint

INFO = ModelInfo(
    kind="policy",
    schema=Schema((Attribute("tone", 1, 7, 4, "warm or cold ☃"), *STEERLM.attributes)),
    dialect="nemo",
    system="Be brief.\n",
    fingerprint="0123",
    provenance={"base": "x", "settings": {"epochs": 2.0}},
    metrics={"loss": 1.25},
)


def test_round_trip(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    assert ModelInfo.load(tmp_path) == INFO
    assert ModelInfo.load(str(tmp_path), "policy") == INFO


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    with pytest.raises(ModelError, match=f"{tmp_path} is a policy, where an attribute-model is needed"):
        ModelInfo.load(tmp_path, "attribute-model")


def test_a_plain_directory_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is no steerlm model: it has no steerlm.json; train one"):
        ModelInfo.load(tmp_path)
    with pytest.raises(ModelError, match="is no steerlm model: no such directory"):
        ModelInfo.load(tmp_path / "none")
    with pytest.raises(ModelError, match="is no steerlm model: no such directory"):
        ModelInfo.load(tmp_path / "config.json")


def record(**changes: Any) -> dict[str, Any]:
    base = {"format": 1, "kind": "policy", "schema": [{"name": "tone"}], "dialect": "nemo"}
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not a readable steerlm.json"),
        ("{", "not a readable steerlm.json"),
        ("[]", "not a readable steerlm.json"),
        ("null", "not a readable steerlm.json"),
        (b"\xff", "not a readable steerlm.json"),
        (record(format=...), "not a readable steerlm.json: 'format'"),
        (record(format=2), "written by a newer steerlm; upgrade to read it"),
        (record(schema=...), "not a readable steerlm.json: 'schema'"),
        (record(schema=[]), "not a readable steerlm.json: a schema needs at least one attribute"),
        (record(schema=[{"name": "Tone"}]), "not a readable steerlm.json: attribute name 'Tone'"),
        (record(dialect=...), "not a readable steerlm.json"),
        (record(dialect="alpaca"), "unknown dialect 'alpaca'; this version knows nemo, chatml, llama3"),
        (record(dialect=["nemo"]), "unknown dialect"),
        (record(mood="good"), "not a readable steerlm.json"),
    ],
)
def test_files_that_are_not_ours(tmp_path: Path, content: Any, says: str) -> None:
    if isinstance(content, dict):
        content = json.dumps(content)
    (tmp_path / "steerlm.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=says):
        ModelInfo.load(tmp_path)


def test_what_is_missing_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "steerlm.json").write_text(json.dumps(record()))
    assert ModelInfo.load(tmp_path) == ModelInfo("policy", Schema((Attribute("tone"),)), "nemo")


def test_the_fingerprint_is_that_of_weights_schema_and_dialect(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no .safetensors weights"):
        weights_fingerprint(tmp_path, STEERLM, "nemo")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("a card")
    first = weights_fingerprint(tmp_path, STEERLM, "nemo")
    assert first == weights_fingerprint(str(tmp_path), STEERLM, "nemo")
    (tmp_path / "README.md").write_text("another card")
    assert weights_fingerprint(tmp_path, STEERLM, "nemo") == first
    changed = {
        weights_fingerprint(tmp_path, STEERLM, "chatml"),
        weights_fingerprint(tmp_path, Schema(STEERLM.attributes[::-1]), "nemo"),
    }
    (tmp_path / "model.safetensors").write_bytes(b"weight5")
    changed.add(weights_fingerprint(tmp_path, STEERLM, "nemo"))
    assert len({first, *changed}) == 4
