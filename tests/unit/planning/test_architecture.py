"""Parameter counts are those that the models' makers published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig

from steerlm.errors import ModelError
from steerlm.planning.architecture import Parameters, build, count_parameters, find_config
from steerlm.training.config import AttributeSettings, PolicySettings, TrainSettings
from tiny import llama


def counted(settings: TrainSettings) -> Parameters:
    with torch.device("meta"):
        return count_parameters(build(find_config(settings.base), settings))


@pytest.mark.parametrize(("name", "total"), [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192)])
def test_llama2_has_the_published_number_of_parameters(name: str, total: int) -> None:
    found = counted(PolicySettings(base=f"meta-llama/Llama-2-{name}-hf"))
    assert found.total == found.trainable == total
    assert found.embeddings == found.head


def test_a_judge_has_a_small_head() -> None:
    policy, judge = (counted(kind(base="meta-llama/Llama-2-13b-hf")) for kind in (PolicySettings, AttributeSettings))
    assert judge.head == 9 * 5120
    assert policy.total - judge.total == 32000 * 5120 - 9 * 5120


def test_tied_embeddings_are_counted_once(gpt2_base: Path) -> None:
    found = counted(PolicySettings(base=str(gpt2_base)))
    assert found.head == 0
    assert found.total == sum(weight.numel() for weight in build(find_config(gpt2_base), PolicySettings()).parameters())


def test_matrices_are_those_of_the_blocks(tmp_path: Path) -> None:
    """Per block: queries and outputs 32 x 32 each, keys and values 32 x 16 each, three of the MLP 32 x 48."""
    llama(100, tie_word_embeddings=False).config.save_pretrained(tmp_path)
    found = counted(PolicySettings(base=str(tmp_path)))
    assert found.blocks == 2
    assert found.matrices == found.trained_matrices == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)


def test_a_model_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the model"):
        find_config(tmp_path / "nothing")


def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    MixtralConfig(vocab_size=100, num_key_value_heads=2, num_local_experts=4, **small).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="experts or recurrent layers"):
        counted(PolicySettings(base=str(tmp_path)))
