"""`steerlm export`: plain weights, from an adapter or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.attributes import STEERLM
from steerlm.cli.main import run
from steerlm.models.adapters import Lora
from steerlm.models.directory import ModelInfo
from steerlm.models.load import TEMPORARY, load_model, new_model
from steerlm.steering import asked_values, prompt_ids
from tiny_lora import save_lora_base, with_lora


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An adapter and a plain model in the folders `adapter` and `plain`."""
    base = save_lora_base(tmp_path)
    model = new_model("policy", base, STEERLM, system="Be brief.")
    model.info.provenance.update(base="mine")
    model.save(tmp_path / "plain")
    with_lora(model, base, Lora(2, 4.0)).save(tmp_path / "adapter")
    return tmp_path


def test_an_adapter_becomes_plain_weights(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "hf", str(models / "adapter"), "--out", str(models / "new" / "out")]) == 0
    before, after = ModelInfo.load(models / "adapter"), ModelInfo.load(models / "new" / "out")
    assert after.provenance == {"base": "mine", "exported_from": before.fingerprint}
    assert (after.base, after.system, after.schema) == (None, "Be brief.", before.schema)
    assert after.fingerprint != before.fingerprint
    assert f"saved policy {after.fingerprint} to" in capsys.readouterr().err
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (models / "new" / "out" / name).read_bytes() == (models / "adapter" / name).read_bytes()


def test_a_plain_model_is_copied(models: Path) -> None:
    assert run(["export", "hf", str(models / "plain"), "--out", str(models / "out")]) == 0
    assert ModelInfo.load(models / "out").fingerprint == ModelInfo.load(models / "plain").fingerprint
    for file in (models / "plain").iterdir():
        if file.name != "steerlm.json":
            assert (models / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_what_cannot_be_exported(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, out, says in (
        ("adapter", "plain", "exists and is not empty; choose another --out"),
        ("adapter", "adapter", "exists and is not empty"),
        ("adapter", "data.jsonl", "exists and is not empty"),
        ("base", "out", "is no steerlm model"),
    ):
        assert run(["export", "hf", str(models / model), "--out", str(models / out)]) == 2
        assert says in capsys.readouterr().err
    assert not (models / "out").exists()


def test_an_export_that_was_killed_is_given_again(models: Path) -> None:
    torn = models / "out" / f"{TEMPORARY}torn"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_text("half of it")
    assert run(["export", "hf", str(models / "plain"), "--out", str(models / "out")]) == 0
    assert ModelInfo.load(models / "out").fingerprint == ModelInfo.load(models / "plain").fingerprint
    assert not torn.exists()


def test_what_is_refused_is_left_as_it_was(models: Path) -> None:
    torn = models / "out" / f"{TEMPORARY}torn"
    torn.mkdir(parents=True)
    (models / "out" / "notes.txt").write_text("mine")
    assert run(["export", "hf", str(models / "plain"), "--out", str(models / "out")]) == 2
    assert torn.exists()


def test_a_policy_at_a_setting(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs that know nothing of attributes then prompt it as we would at that setting."""
    command = ["export", "hf", str(models / "plain"), "--out"]
    assert run([*command, str(models / "brief"), "--set", "verbosity=0", "--set", "humor=3"]) == 0
    policy, brief = (load_model(models / name, "policy") for name in ("plain", "brief"))
    messages = [{"role": "user", "content": "Why is the sea salty?"}]
    ids = brief.renderer.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    asked = asked_values(policy.schema, {"verbosity": 0, "humor": 3})
    assert ids == prompt_ids(policy, "Why is the sea salty?", asked)
    assert "| verbosity | 0 to 4 | 0 |" in (models / "brief" / "README.md").read_text()
    assert brief.info.fingerprint != policy.info.fingerprint
    for wrong, says in (("humor=9", "levels 0 to 4"), ("humor=none", "a default must be a level")):
        assert run([*command, str(models / "wrong"), "--set", wrong]) == 2
        assert says in " ".join(capsys.readouterr().err.split())
