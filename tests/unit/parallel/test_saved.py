"""What sharded training leaves on disk: checkpoints that other numbers of processes read, and model directories."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from processes import launch
from sharded import Case, resume_in_process, save_apart_in_process, save_in_process
from steerlm.attributes import STEERLM
from steerlm.models.load import load_model, new_model

# By how many processes (of how many tensor ranks each) a checkpoint is saved, and by how many it is read.
LAYOUTS = {"2 data": ((2, 1), [(1, 1), (4, 1)]), "2 data x 2 tensor": ((4, 2), [(1, 1), (2, 2)])}


@pytest.fixture(scope="module", params=LAYOUTS)
def saved(request: Any, cases: dict[str, Case], tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("saved")
    (world, tensor_parallel), readers = LAYOUTS[request.param]
    return folder, readers, launch(world, save_in_process, cases, tensor_parallel, folder)


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_other_processes_go_on_from_a_checkpoint(saved: Any, cases: dict[str, Case]) -> None:
    """Weights, moments and step counts to the bit; a further step up to rounding."""
    folder, readers, by_rank = saved
    thirds = []
    for world, tensor_parallel in readers:
        for found in launch(world, resume_in_process, cases, tensor_parallel, folder):
            for name, wanted in by_rank[0].items():
                assert_equal(found[name]["weights"], wanted["weights"])
                assert_equal(found[name]["moments"], wanted["moments"])
                assert any("exp_avg_sq" in moment for moment in wanted["moments"])
                assert found[name]["rates"] == [1e-2, 1e-2]
            thirds.append(found)
    for found in thirds[1:]:
        for name, wanted in thirds[0].items():
            for key, value in wanted["third"].items():
                torch.testing.assert_close(found[name]["third"][key], value, rtol=1e-6, atol=1e-8)


def test_a_directory_that_processes_do_not_share_is_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    """Its checkpoint would be taken for whole, and lack what the other processes wrote."""
    says = (
        r"0/step-00000001: the main process does not see __1_0\.distcp, which another process wrote; .* choose an --out"
    )
    for told in launch(2, save_apart_in_process, cases["llama judge"], tmp_path):
        assert re.search(says, told)
    assert not list((tmp_path / "0").iterdir())


def test_one_process_saves_for_two(cases: dict[str, Case], tmp_path: Path) -> None:
    (wanted,) = launch(1, save_in_process, cases, 1, tmp_path)
    for found in launch(2, resume_in_process, cases, 1, tmp_path):
        for name in cases:
            assert_equal(found[name]["weights"], wanted[name]["weights"])
            assert_equal(found[name]["moments"], wanted[name]["moments"])


def test_the_model_directory_is_an_ordinary_one(saved: Any, cases: dict[str, Case], tmp_path: Path) -> None:
    folder, _, by_rank = saved
    for name, case in cases.items():
        if case.lora:
            continue
        directory = folder / name
        kind = AutoModelForCausalLM if case.kind == "policy" else AutoModelForSequenceClassification
        network = kind.from_pretrained(directory)
        assert_equal(network.state_dict(), by_rank[0][name]["weights"])
        model = load_model(directory, case.kind)
        assert {process[name]["fingerprint"] for process in by_rank} == {model.info.fingerprint}
        # Beside the weights it is what an ordinary model saves.
        new_model(case.kind, case.base, STEERLM).save(tmp_path / name)
        ordinary = {file.name: file for file in (tmp_path / name).iterdir() if "safetensors" not in file.name}
        ours = {file.name: file for file in directory.iterdir() if "safetensors" not in file.name}
        assert ours.keys() == ordinary.keys()
        for file in ordinary.keys() - {"steerlm.json"}:
            assert ours[file].read_text() == ordinary[file].read_text()
        weights = {file.name for file in directory.iterdir()} - ours.keys()
        assert "model.safetensors.index.json" in weights
        assert len(weights) > 2


def test_the_directory_of_an_adapter_is_an_ordinary_one(saved: Any, cases: dict[str, Case], tmp_path: Path) -> None:
    """The files that one process writes, in peft's names."""
    folder, _, by_rank = saved
    for name, case in cases.items():
        if case.lora is None:
            continue
        case.make().save(tmp_path / name)
        assert {file.name for file in (folder / name).iterdir()} == {file.name for file in (tmp_path / name).iterdir()}
        config = "adapter_config.json"
        assert (folder / name / config).read_text() == (tmp_path / name / config).read_text()
        found = load_file(folder / name / "adapter_model.safetensors")
        assert found.keys() == load_file(tmp_path / name / "adapter_model.safetensors").keys()
        weights = by_rank[0][name]["weights"]
        named = {key.replace(".modules_to_save", "").replace(".default", ""): key for key in weights}
        for key, value in found.items():
            assert torch.equal(value, weights[named[key.removeprefix("base_model.model.")]]), key
        model = load_model(folder / name, case.kind)
        assert {process[name]["fingerprint"] for process in by_rank} == {model.info.fingerprint}


def test_nothing_else_is_left(saved: Any, cases: dict[str, Case]) -> None:
    folder, _, _ = saved
    assert {path.name for path in folder.iterdir()} == {*cases, *(f"{name}-checkpoint" for name in cases)}
