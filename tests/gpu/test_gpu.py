"""What a GPU computes, against what the CPU does; wherever there is a CUDA GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from planned import branches, gpu_peak
from processes import free_port
from steerlm.annotation.scorer import Scorer
from steerlm.annotation.settings import ScoreSettings
from steerlm.attention import TreeLayout, use_tree_attention
from steerlm.engines import Sampling, TorchEngine, batch, complete
from steerlm.losses import token_nll
from steerlm.models.load import load_model
from steerlm.packing import Pack, lay_out
from steerlm.parallel.ranks import Ranks
from steerlm.planning.footprint import footprint
from steerlm.planning.rehearsal import one_run
from steerlm.steering import asked_values, prompt_ids
from steerlm.tokens import Segment, Span, TokenTree
from steerlm.training.config import AttributeSettings, PolicySettings, TrainSettings
from tiny import NETWORKS, spread
from tiny_runs import TRAIN, assert_same, logged, prepare, rated_trees, stop_on_ranks, train, trajectory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

# Its kernels take no heads of fewer than 16.
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
WIDE_HEADS: dict[str, dict[str, Any]] = {"gemma2": {**WIDE, "head_dim": 16, "query_pre_attn_scalar": 16}}
VOCABULARY = 97
KINDS: dict[str, type[PolicySettings | AttributeSettings]] = {
    "policy": PolicySettings,
    "attribute model": AttributeSettings,
}


def long_tree(seed: int) -> TokenTree:
    """A prompt with several answers, one of which goes on; blocks of attention that are whole, parts and empty."""
    draw = np.random.default_rng(seed)

    def segment(role: Any, parent: int, message: int) -> Segment:
        length = int(draw.integers(30, 400))
        ids = tuple(int(token) for token in draw.integers(0, VOCABULARY, length))
        if role == "user":
            return Segment(ids, (Span("user", length),), parent, message, length)
        spans = (Span("marker", 1), Span("response", length - 2), Span("end", 1))
        return Segment(ids, spans, parent, message, length - 1, weight=1.0)

    plan = [("user", -1), ("response", 0), ("response", 0), ("user", 2), ("response", 3), ("response", 3)]
    return TokenTree(f"t{seed}", tuple(segment(role, parent, at) for at, (role, parent) in enumerate(plan)))


def losses_and_gradients(name: str, made: Pack, form: Any, device: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    network = spread(NETWORKS[name](VOCABULARY, **WIDE_HEADS.get(name, WIDE))).to(device)  # type: ignore[arg-type]
    use_tree_attention(network, form)
    logits = network(
        input_ids=torch.as_tensor(made.ids_T, device=device)[None],
        position_ids=torch.as_tensor(made.positions_T, device=device)[None],
        tree=TreeLayout(made, device),
        use_cache=False,
    ).logits[0, torch.as_tensor(made.rows_N, device=device)]
    nll_N = token_nll(logits, torch.as_tensor(made.targets_N, device=device))
    nll_N.sum().backward()
    return nll_N.detach().cpu(), {key: weight.grad.cpu() for key, weight in network.named_parameters()}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_attention_gives_losses_and_gradients_of_the_dense_mask(name: str) -> None:
    """Packs of several sizes: what was compiled for one must hold for the next."""
    for trees in ([0], [1, 2, 3], [4]):
        made = lay_out([long_tree(seed) for seed in trees])
        wanted, slopes = losses_and_gradients(name, made, "dense", "cpu")
        found, gradients = losses_and_gradients(name, made, "flex", "cuda")
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        scale = max(slope.abs().max().item() for slope in slopes.values())
        for key, slope in slopes.items():
            torch.testing.assert_close(gradients[key], slope, rtol=2e-3, atol=1e-4 * scale)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare(tmp_path, **WIDE)


@pytest.mark.parametrize("task", TRAIN)
@pytest.mark.parametrize(
    "changes", [{}, {"gradient_checkpointing": True}, {"compile": True}, {"attention": "segments"}], ids=str
)
def test_a_training_is_the_one_on_the_cpu(folder: Path, task: str, changes: dict[str, Any]) -> None:
    train(folder, task, "cpu", device="cpu")
    train(folder, task, "gpu", device="cuda", **changes)
    assert_same(logged(folder / "gpu"), logged(folder / "cpu"), rtol=2e-3)


@pytest.mark.parametrize("task", TRAIN)
def test_a_training_in_bfloat16_learns_the_same(folder: Path, task: str) -> None:
    train(folder, task, "exact", device="cuda")
    train(folder, task, "short", device="cuda", precision="auto")
    short, exact = (trajectory(logged(folder / name), "loss") for name in ("short", "exact"))
    torch.testing.assert_close(short, exact, rtol=0.05, atol=0.0)
    assert not torch.equal(short, exact)


@pytest.mark.parametrize("task", TRAIN)
def test_a_training_that_is_stopped_goes_on(folder: Path, task: str) -> None:
    train(folder, task, "whole", device="cuda")
    assert "stopped after step 4" in stop_on_ranks(folder, task, "halved", {"device": "cuda"}, 4)
    train(folder, task, "halved", device="cuda")
    assert_same(logged(folder / "halved"), logged(folder / "whole"), rtol=1e-4)


@pytest.mark.parametrize("task", TRAIN)
def test_a_sharded_training_through_nccl(folder: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank that gathers and reduces with itself goes through the same code as many."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    def start(device: str, tensor_parallel: int) -> Ranks:
        place = torch.device("cuda", 0)
        address = f"tcp://127.0.0.1:{free_port()}"
        distributed.init_process_group("nccl", init_method=address, rank=0, world_size=1, device_id=place)
        return Ranks(0, 1, 0, place, init_device_mesh("cuda", (1, 1), mesh_dim_names=("data", "tensor")))

    train(folder, task, "alone", device="cuda")
    monkeypatch.setattr(Ranks, "start", start)
    train(folder, task, "sharded", device="cuda", gradient_checkpointing=True)
    assert_same(logged(folder / "sharded"), logged(folder / "alone"), rtol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("task", TRAIN)
def test_an_adapter_on_a_base_in_4_bits_learns(folder: Path, task: str) -> None:
    adapter = {"device": "cuda", "lora_rank": 4, "epochs": 4, "learning_rate": 1e-2}
    train(folder, task, "short", quantize="4bit", **adapter)
    train(folder, task, "whole", **adapter)
    short, whole = (trajectory(logged(folder / name), "loss") for name in ("short", "whole"))
    assert short[0].item() == pytest.approx(whole[0].item(), rel=0.3)
    assert short[-3:].mean() < short[:3].mean()


def of_size(kind: type[PretrainedConfig], **changes: Any) -> PretrainedConfig:
    """Large enough that what a GPU's libraries take for themselves does not count."""
    return kind(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=None,
        **changes,
    )


CONFIGS = {"llama": of_size(LlamaConfig), "qwen2, tied": of_size(Qwen2Config, tie_word_embeddings=True)}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shape", ["run", "branches"])
def test_memory_is_what_was_planned(config: str, kind: str, recompute: bool, shape: str) -> None:
    settings: TrainSettings = KINDS[kind](gradient_checkpointing=recompute, context=8192)
    made = one_run(6144) if shape == "run" else branches(6144)
    gpu_peak(CONFIGS[config], settings, branches(1024), torch.bfloat16)  # compiles what it runs
    real = gpu_peak(CONFIGS[config], settings, made, torch.bfloat16)
    planned = footprint(CONFIGS[config], settings, made)
    assert planned.peak == pytest.approx(real, rel=0.1)


def test_answers_are_those_of_the_cpu(folder: Path) -> None:
    train(folder, "policy", "policy", device="cpu")
    answers = {}
    for device in ("cpu", "cuda"):
        policy = load_model(folder / "policy", "policy", device)
        prompts = [
            prompt_ids(policy, text, asked_values(policy.schema, {"humor": value}))
            for text in ("Why is the sea salty?", "Hi")
            for value in (0, 4)
        ]
        answers[device] = complete(TorchEngine(policy), batch(prompts, Sampling(max_tokens=24)))
    for ours, theirs in zip(answers["cuda"], answers["cpu"], strict=True):
        assert ours.tokens == theirs.tokens


def test_scores_are_those_of_the_cpu(folder: Path) -> None:
    train(folder, "attributes", "judge", device="cpu")
    trees = rated_trees(12)
    exact = ScoreSettings(precision="fp32", context=96, pack_tokens=400)
    found, wanted = (
        Scorer(load_model(folder / "judge", "attribute-model", device), exact).score(trees).values
        for device in ("cuda", "cpu")
    )
    assert sum(map(len, wanted)) > 12
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for message, values in theirs.items():
            assert ours[message] == pytest.approx(values, abs=1e-3)


# The last, as Liger changes transformers' classes for good.
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel")
@pytest.mark.parametrize("task", TRAIN)
def test_ligers_kernels_change_nothing(folder: Path, task: str) -> None:
    train(folder, task, "plain", device="cuda")
    train(folder, task, "liger", device="cuda", kernels="liger")
    assert_same(logged(folder / "liger"), logged(folder / "plain"), rtol=2e-3)
