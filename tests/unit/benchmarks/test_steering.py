"""What the steering benchmark asks, and that everybody is asked the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.steering import Options, evaluate, requests, transformers_seconds
from steerlm.attributes import STEERLM
from steerlm.models.load import SteerModel, load_model, new_model
from steerlm.steering import prompt_ids

TEXTS = ["Why is the sea salty?", "What is rock?"]


@pytest.fixture(scope="module")
def policy(chatml_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SteerModel]:
    directory = tmp_path_factory.mktemp("policy") / "policy"
    new_model("policy", chatml_base, STEERLM).save(directory)
    return directory, load_model(directory, "policy")


def test_each_level_of_each_attribute_once(policy: tuple[Path, SteerModel]) -> None:
    """Nine attributes of five levels, of which one is the default that all have in common: 9 x 4 + 1 a prompt."""
    _, model = policy
    found = requests(model, STEERLM.names, TEXTS)
    assert len(found) == len(TEXTS) * 37
    assert prompt_ids(model, TEXTS[1], {**STEERLM.defaults, "humor": 3}) in found


def test_all_of_it_on_a_small_policy(policy: tuple[Path, SteerModel]) -> None:
    directory, model = policy
    found = evaluate(Options(model=directory, attributes=("humor",), prompts=2, tokens=4, engine="torch"))
    assert found["answers"] == 2 * 5
    assert found["seconds"] > 0
    assert found["seconds_without_judge"] > 0
    groups = [requests(model, ["humor"], TEXTS)[:3], requests(model, ["humor"], TEXTS)[3:4]]
    assert transformers_seconds(directory, groups, 4, "f32") > 0
