"""Sharded over 2 and 4 processes, with and without tensor parallelism, a model is the model that it was."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from processes import launch
from sharded import (
    SEED,
    Case,
    other_gradients_in_process,
    other_ids,
    other_loss,
    other_networks,
    train_in_process,
    train_plainly,
)
from steerlm.errors import ConfigError
from steerlm.parallel.ranks import Ranks
from steerlm.parallel.shard import Root, shard, tensor_plan
from tiny import llama, qwen2, spread

Found = dict[str, dict[str, Any]]
LAYOUTS = {"2 data": (2, 1), "2 tensor": (2, 2), "4 data": (4, 1), "2 data x 2 tensor": (4, 2)}


@pytest.fixture(scope="module")
def plain(cases: dict[str, Case]) -> Found:
    found = {}
    for name, case in cases.items():
        torch.manual_seed(SEED)
        found[name] = train_plainly(case, case.make())
    return found


@pytest.fixture(scope="module")
def in_processes(cases: dict[str, Case]) -> Any:
    @cache
    def run(layout: str) -> list[Found]:
        world, tensor_parallel = LAYOUTS[layout]
        return launch(world, train_in_process, cases, tensor_parallel)

    return run


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], relative: float) -> None:
    """Each tensor to a part of its largest value."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = (found[name].double() - value.double()).abs().max()
        assert error <= relative * value.double().abs().max(), f"{name}: {error}"


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loaded_weights_are_those_of_an_ordinary_model(layout: str, in_processes: Any, plain: Found) -> None:
    """Bit for bit, with the rows of added tokens and the fresh head."""
    for found in in_processes(layout):
        for name, wanted in plain.items():
            assert_equal(found[name]["loaded"], wanted["loaded"])
            assert found[name]["new_tokens"] == wanted["new_tokens"]
            assert len(wanted["new_tokens"]) > 0 or "judge" in name


def test_no_process_holds_more_than_its_share(in_processes: Any, cases: dict[str, Case]) -> None:
    for name, case in cases.items():
        if case.lora:  # of whose matrices some have fewer rows than there are processes
            continue
        network = case.make().network
        sizes = {path: parameter.numel() for path, parameter in network.named_parameters()}
        total = sum(sizes.values())
        for layout in ("2 data", "4 data"):
            held = [found[name]["held"] for found in in_processes(layout)]
            assert sum(held) == total
            # First dimensions that do not divide evenly leave a row more to some.
            assert max(held) < 1.1 * total / len(held)
        # Matrices of the blocks are split twice over, all else is on both tensor ranks.
        split = sum(size for path, size in sizes.items() if "_proj." in path)
        held = [found[name]["held"] for found in in_processes("2 data x 2 tensor")]
        assert sum(held) == split + 2 * (total - split)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradients_are_those_of_one_process(layout: str, in_processes: Any, plain: Found) -> None:
    everywhere = in_processes(layout)
    for found in everywhere:
        for name, wanted in plain.items():
            assert found[name]["count"] == wanted["count"]
            assert found[name]["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
            assert found[name]["loss_before"] == pytest.approx(wanted["loss"], rel=1e-5)
            assert_close(found[name]["gradients"], wanted["gradients"], 1e-5)
            assert found[name]["norm"] == pytest.approx(wanted["norm"], rel=1e-5)
            assert wanted["norm"] > 0.5
            assert_close(found[name]["clipped"], wanted["clipped"], 1e-5)
    for name in plain:
        assert len({found[name]["norm"] for found in everywhere}) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_optimizer_and_new_tokens_do_what_they_do_in_one_process(layout: str, in_processes: Any, plain: Found) -> None:
    """With equal gradients the same weights, up to how AdamW's kernel rounds at the end of a vector."""
    for found in in_processes(layout):
        for name, wanted in plain.items():
            assert_close(found[name]["stepped"], wanted["stepped"], 5e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_data_ranks_run_equally_many_packs(layout: str, in_processes: Any) -> None:
    world, tensor_parallel = LAYOUTS[layout]
    found = in_processes(layout)
    for name in found[0]:
        packs = [process[name]["packs"] for process in found]
        assert len({len(sizes) for sizes in packs}) == 1
        # The ranks of one tensor group share their packs.
        assert all(packs[rank] == packs[rank - rank % tensor_parallel] for rank in range(world))


def test_computing_in_bfloat16(cases: dict[str, Case], plain: Found) -> None:
    """Weights, gradients and the head stay in float32; what is multiplied in the blocks is not."""
    low = {name: replace(case, dtype=torch.bfloat16) for name, case in cases.items()}
    for found in launch(2, train_in_process, low, 1):
        for name, wanted in plain.items():
            assert found[name]["loss"] == pytest.approx(wanted["loss"], rel=2e-2)
            assert found[name]["loss"] != pytest.approx(wanted["loss"], rel=1e-6)
            assert found[name]["types"]["block"] == torch.bfloat16
            assert found[name]["types"].get("head", torch.float32) == torch.float32
            assert found[name]["gradient_types"] == {torch.float32}
            assert_equal(found[name]["loaded"], wanted["loaded"])
        assert "head" in found["llama judge"]["types"]


def test_decoders_that_are_split_in_other_ways() -> None:
    """Norms of single heads (Qwen3), gathered outputs (Olmo2), fused matrices (Phi3)."""
    for found in launch(4, other_gradients_in_process):
        for name, network in other_networks().items():
            other_loss(network, other_ids()).backward()
            # Two data ranks saw the same tokens.
            wanted = {name: 2 * parameter.grad for name, parameter in network.named_parameters()}
            wanted["norm"] = torch.nn.utils.get_total_norm(wanted.values())
            assert_close(found[name], wanted, 1e-5)


def test_checkpointed_blocks_are_computed_again() -> None:
    """On one process too, where nothing else is done to the network."""
    ids = other_ids()
    gradients = []
    for checkpointing in (False, True):
        network = spread(llama(64)).train()
        calls = []
        for block in network.model.layers:
            block.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        root = Root(network)
        shard(network, root, Ranks.start("cpu"), activation_checkpointing=checkpointing)
        root(other_loss, network, ids).backward()
        assert len(calls) == (4 if checkpointing else 2)
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert_equal(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("network", "parts", "what"),
    [
        (llama(64), 3, "the 4 attention heads of LlamaForCausalLM"),
        (llama(64), 4, "the 2 key-value heads"),
        (qwen2(64), 2, "the 1 key-value heads of Qwen2ForCausalLM"),
        (llama(64, intermediate_size=51), 2, "the 51 feed-forward units"),
    ],
)
def test_what_cannot_be_split_is_refused(network: Any, parts: int, what: str) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel={parts} does not divide {what}"):
        tensor_plan(network, parts)


def test_models_without_a_plan_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = llama(64)
    monkeypatch.setattr(type(network.config), "base_model_tp_plan", {"layers.*.mlp": "moe_tp_experts"})
    with pytest.raises(ConfigError, match="in ways not known here \\(moe_tp_experts\\)"):
        tensor_plan(network, 2)
    monkeypatch.setattr(type(network.config), "base_model_tp_plan", None)
    with pytest.raises(ConfigError, match="no plan to split LlamaForCausalLM"):
        tensor_plan(network, 2)
