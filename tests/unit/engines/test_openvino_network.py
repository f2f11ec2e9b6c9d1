"""The form of a policy that OpenVINO computes with, against transformers with the same weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from steerlm.attributes import STEERLM
from steerlm.engines import Request, Sampling, TorchEngine, make_engine, stream
from steerlm.engines.blocks import blocks_for
from steerlm.engines.make import Precision
from steerlm.engines.openvino import OpenVinoEngine
from steerlm.engines.openvino_network import PagedNetwork, Row, prepared
from steerlm.errors import ModelError
from steerlm.files import load_conversations
from steerlm.models.adapters import Lora
from steerlm.models.load import SteerModel, load_model, new_model
from steerlm.models.prompting import load_prompting
from steerlm.sources.bundled import SAMPLE
from tiny import TOKENIZERS, save_base
from tiny_lora import with_lora
from tiny_openvino import IN_BFLOAT16, SHAPE, round_weights, saved


def test_it_is_converted_once(directory: Path, network: PagedNetwork) -> None:
    folder = prepared(directory, progress=lambda done, total: pytest.fail("converted again"))
    info = json.loads((directory / "steerlm.json").read_text())
    assert folder.parent == directory / "openvino"
    assert folder.name.startswith(info["fingerprint"])
    assert sorted(file.name for file in folder.iterdir()) == ["facts.json", "openvino_model.bin", "openvino_model.xml"]
    assert network.context == 2048


ROTARY = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 256,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


@pytest.mark.parametrize(
    ("name", "rotary"),
    [*(("llama", kind) for kind in ROTARY), ("qwen2", "yarn"), ("qwen3", "default"), ("qwen3", "yarn")],
)
def test_architectures_and_rotary_embeddings(name: str, rotary: str, tmp_path: Path) -> None:
    """Log-probabilities at positions up to 2,000 are those of transformers with the same rounded weights."""
    model = saved(tmp_path, name, rope_parameters={"rope_theta": 10_000.0, **ROTARY[rotary]})
    round_weights(model)
    assert float(differences(model, tmp_path / "policy", "f32").max()) < 2e-3


@IN_BFLOAT16
def test_far_positions_in_bfloat16(tmp_path: Path) -> None:
    """Weights are stored in float16, rotary embeddings must not be."""
    model = saved(tmp_path, "llama")
    assert float(differences(model, tmp_path / "policy", "bf16").mean(dim=1).max()) < 0.1


def differences(model: SteerModel, directory: Path, precision: Precision) -> torch.Tensor:
    """Of log-probabilities of all tokens from those of a model, in nats, after every 50 of 2,000."""
    ids = [5 + k * k % 400 for k in range(2000)]
    with torch.no_grad():
        expected_TV = model.network(torch.tensor([ids])).logits[0, 49::50].log_softmax(dim=-1)
    network = PagedNetwork(prepared(directory, precision), 1 << 24, precision)
    blocks = list(range(blocks_for(len(ids))))
    rows = [Row(ids[past : past + 50], past, blocks, wanted=True) for past in range(0, 2000, 50)]
    scores_TV = torch.stack([torch.from_numpy(network.run([row])[0].copy()) for row in rows])
    return (scores_TV.log_softmax(dim=-1) - expected_TV).abs()


def test_a_longer_context_needs_a_new_conversion(tmp_path: Path) -> None:
    """Scaled rotary embeddings are switched on in config.json, as Qwen's documentation has it; the weights stay."""
    saved(tmp_path, "qwen2")
    before = prepared(tmp_path / "policy")
    file = tmp_path / "policy" / "config.json"
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "rope_theta": 10_000.0}
    changes = {"rope_parameters": rope, "max_position_embeddings": 8192}
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    after = prepared(tmp_path / "policy")
    assert PagedNetwork(after, 1 << 20).context == 8192
    assert not before.exists()


def test_an_adapter_follows_its_base(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", TOKENIZERS["chatml"](), "llama", **SHAPE)
    with_lora(new_model("policy", base, STEERLM), base, Lora(2, 4.0)).save(tmp_path / "adapter")
    before = prepared(tmp_path / "adapter")
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 4096}))
    after = prepared(tmp_path / "adapter")
    assert PagedNetwork(after, 1 << 20).context == 4096
    assert not before.exists()
    # Its last form serves without the base, wherever older ones lie.
    older = shutil.copytree(after, after.with_name(after.name.replace("-q8_0", "x-q8_0")))
    os.utime(older / "facts.json", ns=(0, 0))
    base.rename(tmp_path / "elsewhere")
    assert prepared(tmp_path / "adapter") == after


def test_a_converted_adapter_does_without_its_base(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", TOKENIZERS["chatml"](), "llama", **SHAPE)
    with_lora(new_model("policy", base, STEERLM), base, Lora(2, 4.0)).save(tmp_path / "adapter")
    before = prepared(tmp_path / "adapter")
    base.rename(tmp_path / "elsewhere")
    with closing(OpenVinoEngine(tmp_path / "adapter", cache_bytes=1 << 22)) as engine:
        assert engine.context
    assert list(before.parent.iterdir()) == [before]
    with pytest.raises(ModelError, match="base"):
        prepared(tmp_path / "adapter", "bf16")


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_biases_that_its_reader_gets_wrong(name: str, tmp_path: Path) -> None:
    saved(tmp_path, name, attention_bias=True)
    prompting = load_prompting(tmp_path / "policy")
    with pytest.raises(ModelError, match="biases in its attention"):
        make_engine(tmp_path / "policy", prompting, "openvino", "cpu")
    said: list[str] = []
    with closing(make_engine(tmp_path / "policy", prompting, "auto", "cpu", say=said.append)) as engine:
        assert isinstance(engine, TorchEngine)
    assert "engine torch, not openvino" in said[0]


_SIGNALLED = """
import gc, shutil, signal, sys
from pathlib import Path
from steerlm.engines.openvino_network import PagedNetwork, prepared

directory = Path(sys.argv[1])
shutil.rmtree(directory / "openvino", ignore_errors=True)
network = PagedNetwork(prepared(directory), 1 << 22)
seen = []
signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
signal.raise_signal(signal.SIGTERM)
del network
gc.collect()
signal.raise_signal(signal.SIGTERM)
assert seen == [signal.SIGTERM] * 2
"""


def test_signals_are_handled_after_a_model_was_converted_and_freed(directory: Path, tmp_path: Path) -> None:
    """OpenVINO's plugin leaves a freed stack for signals behind in the thread that loads it."""
    shutil.copytree(directory, tmp_path / "policy")
    done = subprocess.run([sys.executable, "-c", _SIGNALLED, str(tmp_path / "policy")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_logprobs_of_real_text(tmp_path: Path) -> None:
    """Mean absolute difference of 200 log-probabilities, in nats.

    The 8-bit form against the same rounded weights, in which it must be exact; that rounding alone makes 0.04 of this
    small model's.
    """
    new_model("policy", "smollm2", STEERLM).save(tmp_path / "policy")
    model = load_model(tmp_path / "policy", "policy")
    ids = real_text(model)
    exact = logprobs_of(model, ids)
    round_weights(model)
    rounded = logprobs_of(model, ids)
    eight_bits = paged_logprobs(tmp_path / "policy", "f32", ids)
    echoed = prompt_logprobs(tmp_path / "policy", ids)
    assert float((echoed - eight_bits).abs().max()) < 1e-3
    assert float((eight_bits - rounded).abs().mean()) < 1e-3
    assert float((eight_bits - exact).abs().mean()) < 0.05
    assert float((paged_logprobs(tmp_path / "policy", "int8", ids) - exact).abs().mean()) < 0.1


@IN_BFLOAT16
@pytest.mark.slow
def test_logprobs_of_real_text_in_bfloat16(tmp_path: Path) -> None:
    """The float16 form against the weights themselves."""
    new_model("policy", "smollm2", STEERLM).save(tmp_path / "policy")
    model = load_model(tmp_path / "policy", "policy")
    ids = real_text(model)
    assert float((paged_logprobs(tmp_path / "policy", "bf16", ids) - logprobs_of(model, ids)).abs().mean()) < 0.03


def real_text(model: SteerModel) -> list[int]:
    text = " ".join(message.text for item in load_conversations(SAMPLE)[:4] for message in item.messages)
    ids: list[int] = model.renderer.tokenizer(text, add_special_tokens=False)["input_ids"][:201]
    return ids


def logprobs_of(model: SteerModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found_TV = model.network(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
    return found_TV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def prompt_logprobs(directory: Path, ids: list[int]) -> torch.Tensor:
    """As an echo gives them."""
    request = Request(tuple(ids), Sampling(max_tokens=1), prompt_logprobs=0)
    with closing(OpenVinoEngine(directory)) as engine:
        [found] = [piece.prompt for piece in stream(engine, [request])]
    return torch.tensor([item.logprob for item in found])


def paged_logprobs(directory: Path, precision: Precision, ids: list[int]) -> torch.Tensor:
    """Token by token, as answers are made."""
    network = PagedNetwork(prepared(directory, precision), 1 << 26, precision)
    blocks = list(range(blocks_for(len(ids))))
    found = []
    for place, following in enumerate(ids[1:]):
        scores_V = torch.from_numpy(network.run([Row([ids[place]], place, blocks, wanted=True)])[0])
        found.append(scores_V.log_softmax(dim=-1)[following])
    return torch.stack(found)


def test_only_forms_of_ours_are_removed(tmp_path: Path) -> None:
    """Old ones, and what a killed conversion left a day ago; not what others keep beside them."""
    saved(tmp_path, "llama")
    policy = tmp_path / "policy"
    folder = policy / "openvino"
    for name in ("my-int4-export", "0123456789abcdef-2-01234567-q8_0", ".converting-dead", ".converting-alive"):
        (folder / name).mkdir(parents=True)
        (folder / name / "openvino_model.bin").write_bytes(b"weights")
    (folder / "0123456789abcdef-2-01234567-q8_0" / "facts.json").write_text("{}")
    os.utime(folder / ".converting-dead", (0, 0))
    made = prepared(policy)
    assert {path.name for path in folder.iterdir()} == {"my-int4-export", ".converting-alive", made.name}
