"""Fixtures for all tests. What they are made of is in `tiny.py`, `strategies.py` and `references.py`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.models.load import SteerModel, load_model, new_model
from strategies import EXPLORE, random_conversation
from tiny import TOKENIZERS, save_base

# The same examples in every run; `EXPLORE=20 pytest tests/property` looks for new ones, twenty times as many.
_SLOW_MACHINES = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "ours", deadline=None, derandomize=EXPLORE == 1, max_examples=50 * EXPLORE, suppress_health_check=_SLOW_MACHINES
)
settings.load_profile("ours")


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and wait for each other where the machine is busy."""
    threads = torch.get_num_threads()
    if "slow" not in request.keywords:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def chatml_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose byte-level tokenizer knows chatml."""
    return save_base(tmp_path_factory.mktemp("chatml"), TOKENIZERS["chatml"]())


@pytest.fixture(scope="session")
def gpt2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 whose byte-level tokenizer knows no dialect, with tied embeddings."""
    return save_base(tmp_path_factory.mktemp("gpt2"), TOKENIZERS["gpt2"](), "qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def sentencepiece_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral with Llama 2's kind of tokenizer."""
    return save_base(tmp_path_factory.mktemp("llama2"), TOKENIZERS["llama2"](), "mistral")


@pytest.fixture(scope="session")
def _saved_attribute_model(chatml_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = new_model("attribute-model", chatml_base, STEERLM)
    with torch.no_grad():
        model.network.score.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    directory = tmp_path_factory.mktemp("models") / "attribute-model"
    model.save(directory)
    return directory


@pytest.fixture(scope="session")
def _saved_policy(chatml_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "policy"
    new_model("policy", chatml_base, STEERLM).save(directory)
    return directory


@pytest.fixture
def attribute_model(_saved_attribute_model: Path) -> SteerModel:
    return load_model(_saved_attribute_model, "attribute-model")


@pytest.fixture
def policy(_saved_policy: Path) -> SteerModel:
    return load_model(_saved_policy, "policy")


@pytest.fixture
def conversations() -> Callable[..., list[Conversation]]:
    """Makes random conversation trees: `conversations(count, seed=0, messages=8)`."""

    def make(count: int, seed: int = 0, messages: int = 8) -> list[Conversation]:
        generator = random.Random(seed)
        return [random_conversation(generator, f"tree-{k}", generator.randint(2, messages)) for k in range(count)]

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that is no part of the project."""
    folder = Path(os.environ.get("STEERLM_SHARED_DATA", ""))
    if not os.environ.get("STEERLM_SHARED_DATA") or not folder.is_dir():
        pytest.skip("set STEERLM_SHARED_DATA to the folder of real data to run this test")
    return folder
